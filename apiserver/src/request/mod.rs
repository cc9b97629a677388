//! URL → [`RequestInfo`]: what a request asks for, before anything about it is looked up.
//!
//! Invariants: parsing is pure and total over paths that hyper accepts; the rules are those of upstream's
//! `requestinfo.go`. Whether the resource exists is not known here.

pub mod options;

use http::{Method, Uri};

pub use options::{DeleteOptions, ListOptions, Query};

/// Upstream's `RequestInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// The whole path, percent-decoded.
    pub path: String,
    /// The API verb of a resource request; the HTTP method in lower case otherwise.
    pub verb: String,
    /// `None` for non-resource paths such as `/healthz` or `/apis/apps/v1`.
    pub resource: Option<ResourcePath>,
}

/// The resource part of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// What follows the subresource, without a leading slash: the path that a proxy passes on.
    pub rest: String,
}

/// The path cannot be understood; the text is the client's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("unable to determine kind and namespace from url, {0}")]
    Incomplete(String),
    #[error("invalid URL escape in {0:?}")]
    Escape(String),
}

impl RequestInfo {
    pub fn parse(method: &Method, uri: &Uri) -> Result<Self, PathError> {
        let path = options::percent_decode(uri.path(), false)
            .ok_or_else(|| PathError::Escape(uri.path().to_string()))?;
        let mut info =
            RequestInfo { verb: method.as_str().to_ascii_lowercase(), resource: None, path: path.clone() };
        let trimmed = path.trim_matches('/');
        let all: Vec<&str> = if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').collect() };
        let (group, version, mut parts) = match all.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(info),
        };
        let mut resource =
            ResourcePath { group: group.into(), version: version.into(), ..ResourcePath::default() };
        if parts[0] == "watch" || parts[0] == "proxy" {
            if parts.len() < 2 {
                return Err(PathError::Incomplete(uri.to_string()));
            }
            info.verb = parts[0].into();
            parts = &parts[1..];
        } else {
            info.verb = match *method {
                Method::POST => "create",
                Method::GET | Method::HEAD => "get",
                Method::PUT => "update",
                Method::PATCH => "patch",
                Method::DELETE => "delete",
                _ => "",
            }
            .into();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            resource.namespace = parts[1].into();
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts = &parts[2..];
            }
        }
        resource.resource = parts[0].into();
        if let Some(name) = parts.get(1) {
            resource.name = (*name).into();
        }
        if let Some(subresource) = parts.get(2).filter(|_| info.verb != "proxy") {
            resource.subresource = (*subresource).into();
            resource.rest = parts[3..].join("/");
            // A trailing slash matters to what is proxied, and trimming lost it.
            if parts.len() > 3 && path.ends_with('/') {
                resource.rest.push('/');
            }
        }
        if resource.name.is_empty() {
            match info.verb.as_str() {
                "get" => {
                    let watch = Query::parse(uri.query().unwrap_or_default()).flag("watch");
                    info.verb = if watch { "watch" } else { "list" }.into();
                }
                "delete" => info.verb = "deletecollection".into(),
                _ => {}
            }
        }
        info.resource = Some(resource);
        Ok(info)
    }

    /// Requests that may last: exempt from the in-flight limit and the timeout.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || self.resource.as_ref().is_some_and(|resource| {
                matches!(resource.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward" | "log")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &str, uri: &str, verb: &str, expected: Option<[&str; 7]>) {
        let info = RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap()).unwrap();
        let found = info.resource.as_ref().map(|r| {
            [&r.group, &r.version, &r.namespace, &r.resource, &r.name, &r.subresource, &r.rest]
                .map(String::as_str)
        });
        assert_eq!((info.verb.as_str(), found), (verb, expected), "{method} {uri}");
    }

    #[test]
    fn paths_are_understood_as_upstream_does() {
        check("GET", "/", "get", None);
        check("GET", "/api/v1", "get", None);
        check("GET", "/apis/apps/v1", "get", None);
        check("GET", "/healthz/etcd", "get", None);
        check("GET", "/api/v1/pods", "list", Some(["", "v1", "", "pods", "", "", ""]));
        check("GET", "/api/v1/pods?watch=true", "watch", Some(["", "v1", "", "pods", "", "", ""]));
        check("GET", "/api/v1/pods?watch=0", "list", Some(["", "v1", "", "pods", "", "", ""]));
        check("GET", "/api/v1/watch/pods", "watch", Some(["", "v1", "", "pods", "", "", ""]));
        check("GET", "/api/v1/namespaces/a", "get", Some(["", "v1", "a", "namespaces", "a", "", ""]));
        check(
            "PUT",
            "/api/v1/namespaces/a/finalize",
            "update",
            Some(["", "v1", "a", "namespaces", "a", "finalize", ""]),
        );
        check("POST", "/api/v1/namespaces/a/pods", "create", Some(["", "v1", "a", "pods", "", "", ""]));
        check(
            "DELETE",
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection",
            Some(["apps", "v1", "a", "deployments", "", "", ""]),
        );
        check(
            "PATCH",
            "/apis/apps/v1/namespaces/a/deployments/d/scale",
            "patch",
            Some(["apps", "v1", "a", "deployments", "d", "scale", ""]),
        );
        check(
            "GET",
            "/api/v1/namespaces/a/services/http:s:80/proxy/x/y%20z/",
            "get",
            Some(["", "v1", "a", "services", "http:s:80", "proxy", "x/y z/"]),
        );
    }

    #[test]
    fn broken_paths_are_errors() {
        let parse = |uri: &str| RequestInfo::parse(&Method::GET, &uri.parse().unwrap());
        assert_eq!(parse("/api/v1/watch"), Err(PathError::Incomplete("/api/v1/watch".into())));
        assert_eq!(parse("/api/v1/pods/%zz"), Err(PathError::Escape("/api/v1/pods/%zz".into())));
    }
}

//! The filters of the chain, one small type each; their order is in [`super::chain`].

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use keelson_access::{
    authn::{Credentials, impersonation::Impersonation as Asked},
    authz::Attributes,
    user,
};
use keelson_objects::fields::FieldSelector;
use tokio::sync::Semaphore;

use super::{
    body::{Response, failure},
    chain::{Exchange, Filter, Next},
    websocket,
};
use crate::{
    authorization::{decide, refusal},
    config::Config,
    metrics::RequestLabels,
    request::{Query, RequestInfo},
    server::Server,
    status::Status,
};

/// Parses the URL; everything behind it can rely on `info` and `query`.
pub struct RequestInformation;

impl Filter for RequestInformation {
    fn call<'a>(&'a self, mut exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        match RequestInfo::parse(exchange.request.method(), exchange.request.uri()) {
            Ok(info) => exchange.info = info,
            Err(error) => {
                return Box::pin(std::future::ready(failure(&Status::bad_request(error.to_string()))));
            }
        }
        exchange.query = Query::parse(exchange.request.uri().query().unwrap_or_default());
        next.run(exchange)
    }
}

/// Gives every request an id that the response carries.
pub struct AuditId;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

impl Filter for AuditId {
    fn call<'a>(&'a self, mut exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let id = match exchange.headers().get(AUDIT_ID) {
                Some(id) if id.len() <= 64 => id.clone(),
                _ => HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
                    .unwrap_or_else(|_| HeaderValue::from_static("")),
            };
            exchange.request.headers_mut().insert(AUDIT_ID, id.clone());
            let mut response = next.run(exchange).await;
            let headers = response.headers_mut();
            headers.insert(AUDIT_ID, id);
            if !headers.contains_key(header::CACHE_CONTROL) {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
            }
            response
        })
    }
}

/// Counts and times requests.
pub struct Metrics(pub Arc<Server>);

impl Filter for Metrics {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let labels = RequestLabels::of(&exchange, &self.0.table);
            let long_running = exchange.info.is_long_running();
            let started = Instant::now();
            let uri = tracing::enabled!(tracing::Level::DEBUG).then(|| exchange.request.uri().clone());
            let response = next.run(exchange).await;
            let code = response.status().as_u16();
            if let Some(uri) = uri {
                tracing::debug!(verb = %labels.verb, %uri, code, elapsed = ?started.elapsed(), "request");
            }
            // A watch lasts as long as its client wants; timing it would say nothing.
            let elapsed = (!long_running).then(|| started.elapsed());
            self.0.metrics.observe_request(labels, code, elapsed);
            response
        })
    }
}

/// A panic of an endpoint is this request's 500, not the process's end.
pub struct PanicRecovery;

impl Filter for PanicRecovery {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        let uri = exchange.request.uri().clone();
        Box::pin(async move {
            AssertUnwindSafe(next.run(exchange)).catch_unwind().await.unwrap_or_else(|panic| {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("unknown");
                tracing::error!(%uri, panic = what, "an endpoint panicked");
                failure(&Status::internal(
                    "This request caused apiserver to panic. Look in the logs for details.",
                ))
            })
        })
    }
}

/// Ends requests that take too long, other than those made to last.
pub struct Timeout {
    limit: Duration,
}

impl Timeout {
    pub fn new(server: &Server) -> Self {
        Timeout { limit: server.config.request_timeout }
    }
}

impl Filter for Timeout {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        if exchange.info.is_long_running() || self.limit.is_zero() {
            return next.run(exchange);
        }
        let asked = exchange.query.get("timeout").and_then(|text| crate::config::parse_duration(text).ok());
        let limit = asked.filter(|asked| !asked.is_zero()).map_or(self.limit, |asked| asked.min(self.limit));
        Box::pin(async move {
            tokio::time::timeout(limit, next.run(exchange)).await.unwrap_or_else(|_| {
                failure(&Status::timeout("request did not complete within the allotted timeout"))
            })
        })
    }
}

/// Writes `Warning: 299 - "text"` headers.
pub struct Warnings;

impl Filter for Warnings {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        let warnings = exchange.warnings.clone();
        Box::pin(async move {
            let mut response = next.run(exchange).await;
            for text in fitting(warnings.take()) {
                let quoted: String = text
                    .chars()
                    .filter(|c| !c.is_control())
                    .flat_map(|c| match c {
                        '"' | '\\' => ['\\', c],
                        _ => ['\0', c],
                    })
                    .filter(|c| *c != '\0')
                    .collect();
                if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
                    response.headers_mut().append(header::WARNING, value);
                }
            }
            response
        })
    }
}

/// Clients refuse a response whose headers are too long, so beyond this many characters in all, each warning is cut and
/// the last ones are left out (upstream's figures).
const ALL_WARNINGS: usize = 4096;
const ONE_WARNING: usize = 256;

fn fitting(warnings: Vec<String>) -> Vec<String> {
    let length = |text: &String| text.chars().count();
    if warnings.iter().map(length).sum::<usize>() <= ALL_WARNINGS {
        return warnings;
    }
    let mut written = 0;
    let cut = warnings.into_iter().map(|text| text.chars().take(ONE_WARNING).collect::<String>());
    cut.take_while(|text| {
        written += length(text);
        written <= ALL_WARNINGS
    })
    .collect()
}

/// Finds out who asks. Refused credentials are a 401, absent ones the anonymous user (or a 401).
pub struct Authentication(pub Arc<Server>);

impl Filter for Authentication {
    fn call<'a>(&'a self, mut exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            if let Err(error) = websocket::move_token(exchange.request.headers_mut()) {
                tracing::warn!(peer = %exchange.peer.address, %error, "unable to authenticate the request");
                return failure(&Status::unauthorized());
            }
            let credentials = Credentials {
                peer_certificates: &exchange.peer.certificates,
                headers: exchange.request.headers(),
                path: &exchange.info.path,
            };
            match self.0.access.authentication.authenticate(&credentials).await {
                // A certificate that nobody vouches for was meant as proof: it does not make its owner anonymous.
                Ok(found) if found.user.name == user::ANONYMOUS && !exchange.peer.certificates.is_empty() => {
                    tracing::warn!(peer = %exchange.peer.address, "client certificate of an unknown authority");
                    return failure(&Status::unauthorized());
                }
                Ok(found) => exchange.user = found.user,
                Err(error) => {
                    tracing::warn!(peer = %exchange.peer.address, %error, "unable to authenticate the request");
                    return failure(&refusal(&self.0, Status::unauthorized()));
                }
            }
            // Nothing behind this filter needs the secret, and nothing that a request is passed on to may believe
            // what only a front proxy may say.
            let headers = exchange.request.headers_mut();
            headers.remove(header::AUTHORIZATION);
            remove_identity(headers, &self.0.config);
            next.run(exchange).await
        })
    }
}

/// Removes the headers by which front proxies name users.
fn remove_identity(headers: &mut HeaderMap, config: &Config) {
    let named = [
        &config.requestheader_username_headers,
        &config.requestheader_uid_headers,
        &config.requestheader_group_headers,
    ];
    for name in named.into_iter().flatten() {
        headers.remove(name.as_str());
    }
    remove_prefixed(headers, &config.requestheader_extra_headers_prefix);
}

fn remove_prefixed(headers: &mut HeaderMap, prefixes: &[impl AsRef<str>]) {
    // Names in a header map are in lower case.
    let prefixes: Vec<String> = prefixes.iter().map(|prefix| prefix.as_ref().to_ascii_lowercase()).collect();
    let wanted = |name: &&HeaderName| prefixes.iter().any(|prefix| name.as_str().starts_with(prefix));
    let names: Vec<HeaderName> = headers.keys().filter(wanted).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// `Impersonate-*` headers: the request continues as someone else, if the caller may do that.
pub struct Impersonation(pub Arc<Server>);

impl Filter for Impersonation {
    fn call<'a>(&'a self, mut exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        Box::pin(async move {
            let asked = match Asked::from_headers(exchange.headers()) {
                Ok(asked) => asked,
                Err(status) => return failure(&status.into()),
            };
            if let Some(asked) = asked {
                if let Err(status) = asked.check(&exchange.user, self.0.access.authorizer.as_ref()) {
                    return failure(&status.into());
                }
                let user = asked.user();
                tracing::debug!(by = %exchange.user.name, user = %user.name, "impersonation");
                exchange.user = user;
                // A target that the request is passed on to must not take them for its caller's.
                remove_prefixed(exchange.request.headers_mut(), &["impersonate-"]);
            }
            next.run(exchange).await
        })
    }
}

/// Refuses what exceeds the number of requests in flight; system:masters and long-running requests pass.
pub struct InFlight {
    server: Arc<Server>,
    reads: Option<Semaphore>,
    writes: Option<Semaphore>,
}

impl InFlight {
    pub fn new(server: &Arc<Server>) -> Self {
        let limit = |n: usize| (n > 0).then(|| Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        InFlight {
            server: server.clone(),
            reads: limit(server.config.max_requests_inflight),
            writes: limit(server.config.max_mutating_requests_inflight),
        }
    }
}

impl Filter for InFlight {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        if exchange.info.is_long_running() {
            return next.run(exchange);
        }
        Box::pin(async move {
            let reading = matches!(exchange.info.verb.as_str(), "get" | "list" | "watch");
            let (semaphore, kind) =
                if reading { (&self.reads, "readOnly") } else { (&self.writes, "mutating") };
            let permit = match semaphore.as_ref().map(Semaphore::try_acquire) {
                None => None,
                Some(Ok(permit)) => Some(permit),
                Some(Err(_)) if exchange.user.in_group(user::MASTERS) => None,
                Some(Err(_)) => {
                    self.server.metrics.dropped(kind);
                    return failure(&Status::too_many_requests(
                        "Too many requests, please try again later.",
                        1,
                    ));
                }
            };
            let _in_flight = self.server.metrics.in_flight(kind);
            let response = next.run(exchange).await;
            drop(permit);
            response
        })
    }
}

/// Asks the authorizers; no opinion at all is a refusal.
pub struct Authorization(pub Arc<Server>);

impl Filter for Authorization {
    fn call<'a>(&'a self, exchange: Exchange, next: Next<'a>) -> BoxFuture<'a, Response> {
        if let Err(status) = authorize(&self.0, &exchange) {
            return Box::pin(std::future::ready(failure(&status)));
        }
        next.run(exchange)
    }
}

fn authorize(server: &Server, exchange: &Exchange) -> Result<(), Status> {
    let info = &exchange.info;
    let base = Attributes { verb: &info.verb, path: &info.path, ..Attributes::of(&exchange.user) };
    let Some(resource) = &info.resource else {
        return decide(server, &base);
    };
    let selecting = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let text = |key| if selecting { exchange.query.get(key).unwrap_or_default() } else { "" };
    let fields = crate::generic::selectors::field_requirements(text("fieldSelector"));
    let labels = crate::generic::selectors::label_requirements(text("labelSelector"));
    // A collection cut down to one name is read by that name: nodes may watch single objects only.
    let reading = matches!(info.verb.as_str(), "list" | "watch");
    let selector = if reading { text("fieldSelector") } else { "" };
    let selector = selector.parse::<FieldSelector>().unwrap_or_default();
    let selected = selector.required("metadata.name").unwrap_or_default();
    decide(
        server,
        &Attributes {
            namespace: &resource.namespace,
            api_group: &resource.group,
            api_version: &resource.version,
            resource: &resource.resource,
            subresource: &resource.subresource,
            name: if resource.name.is_empty() { selected } else { &resource.name },
            resource_request: true,
            field_selector: &fields,
            label_selector: &labels,
            ..base
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_fit_into_headers() {
        let check = |warnings: Vec<String>, count: usize, longest: usize| {
            let fitting = fitting(warnings);
            let found = fitting.iter().map(|text| text.chars().count()).max();
            assert_eq!((fitting.len(), found), (count, Some(longest)));
        };
        check(vec!["a".repeat(4000), "b".into()], 2, 4000);
        check(vec!["é".repeat(5000), "b".into()], 2, 256);
        check((0..1000).map(|n| format!("{n:0>300}")).collect(), 16, 256);
    }

    #[test]
    fn prefixed_headers_go() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-extra-a", "x-remote", "impersonate-user"] {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        remove_prefixed(&mut headers, &["X-Remote-Extra-", "impersonate-"]);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-remote"]);
    }
}

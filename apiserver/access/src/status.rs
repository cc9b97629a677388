//! Refusals in the shape of `metav1.Status`: code, reason, message and details as upstream words them.
//!
//! Everything that can refuse a request in this package ends here, so the server's error boundary
//! has one type to render.

use std::fmt;

use serde_json::{Value, json};

use crate::authz::Attributes;

/// The resource or kind a refusal is about: `details` of a `Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    /// `(reason, message, field)` of each cause.
    pub causes: Vec<(String, String, String)>,
    pub retry_after_seconds: u32,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
}

impl Status {
    #[must_use]
    pub fn unauthorized() -> Self {
        Self { code: 401, reason: "Unauthorized", message: "Unauthorized".into(), details: None }
    }

    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.into(), details: None }
    }

    #[must_use]
    pub fn internal(error: impl fmt::Display) -> Self {
        Self {
            code: 500,
            reason: "InternalError",
            message: format!("Internal error occurred: {error}"),
            details: Some(Box::new(Details {
                causes: vec![(String::new(), error.to_string(), String::new())],
                ..Details::default()
            })),
        }
    }

    /// `<resource>.<group> "<name>" is forbidden: <error>`
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, error: impl fmt::Display) -> Self {
        let qualified = qualified(group, resource);
        let message = if name.is_empty() && qualified.is_empty() {
            format!("forbidden: {error}")
        } else if name.is_empty() {
            format!("{qualified} is forbidden: {error}")
        } else {
            format!("{qualified} {name:?} is forbidden: {error}")
        };
        Self { code: 403, reason: "Forbidden", message, details: details(group, resource, name) }
    }

    /// `<resource>.<group> "<name>" not found`
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: format!("{} {name:?} not found", qualified(group, resource)),
            details: details(group, resource, name),
        }
    }

    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, error: impl fmt::Display) -> Self {
        Self {
            code: 409,
            reason: "Conflict",
            message: format!(
                "Operation cannot be fulfilled on {} {name:?}: {error}",
                qualified(group, resource)
            ),
            details: details(group, resource, name),
        }
    }

    /// The 403 of a request that no authorizer allowed.
    #[must_use]
    pub fn denied(attributes: &Attributes<'_>, reason: &str) -> Self {
        let mut error = forbidden_message(attributes);
        if !reason.is_empty() {
            error.push_str(": ");
            error.push_str(reason);
        }
        Self::forbidden(attributes.api_group, attributes.resource, attributes.name, error)
    }

    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push((reason.into(), message.into(), field.into()));
        self
    }

    /// The `v1 Status` object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if let Some(details) = &self.details {
            let mut object = json!({});
            for (key, value) in [("name", &details.name), ("group", &details.group), ("kind", &details.kind)]
            {
                if !value.is_empty() {
                    object[key] = json!(value);
                }
            }
            if !details.causes.is_empty() {
                object["causes"] = details.causes.iter().map(cause).collect();
            }
            if details.retry_after_seconds > 0 {
                object["retryAfterSeconds"] = json!(details.retry_after_seconds);
            }
            status["details"] = object;
        }
        status["code"] = json!(self.code);
        status
    }
}

fn cause((reason, message, field): &(String, String, String)) -> Value {
    let mut object = json!({});
    for (key, value) in [("reason", reason), ("message", message), ("field", field)] {
        if !value.is_empty() {
            object[key] = json!(value);
        }
    }
    object
}

fn details(group: &str, resource: &str, name: &str) -> Option<Box<Details>> {
    Some(Box::new(Details {
        name: name.into(),
        group: group.into(),
        kind: resource.into(),
        ..Details::default()
    }))
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// Who cannot do what, where: the middle part of every 403 of the authorization filter.
#[must_use]
pub fn forbidden_message(attributes: &Attributes<'_>) -> String {
    let Attributes { user, verb, path, namespace, api_group, .. } = attributes;
    let user = &user.name;
    if !attributes.resource_request {
        return format!("User {user:?} cannot {verb} path {path:?}");
    }
    let mut resource = attributes.resource.to_owned();
    if !attributes.subresource.is_empty() {
        resource = format!("{resource}/{}", attributes.subresource);
    }
    if namespace.is_empty() {
        format!(
            "User {user:?} cannot {verb} resource {resource:?} in API group {api_group:?} at the cluster scope"
        )
    } else {
        format!(
            "User {user:?} cannot {verb} resource {resource:?} in API group {api_group:?} in the namespace {namespace:?}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::UserInfo;

    #[test]
    fn words_refusals_as_upstream() {
        let user = UserInfo::new("x", &[]);
        let check = |attributes: Attributes<'_>, reason: &str, expected: &str| {
            assert_eq!(Status::denied(&attributes, reason).message, expected);
        };
        let pods = Attributes {
            verb: "list",
            namespace: "default",
            resource: "pods",
            resource_request: true,
            ..Attributes::of(&user)
        };
        check(
            pods,
            "",
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
        );
        let scale = Attributes {
            verb: "update",
            api_group: "apps",
            resource: "deployments",
            subresource: "scale",
            name: "d",
            resource_request: true,
            ..Attributes::of(&user)
        };
        check(
            scale,
            "why",
            r#"deployments.apps "d" is forbidden: User "x" cannot update resource "deployments/scale" in API group "apps" at the cluster scope: why"#,
        );
        let path = Attributes { verb: "get", path: "/metrics", ..Attributes::of(&user) };
        check(path, "", r#"forbidden: User "x" cannot get path "/metrics""#);
    }

    #[test]
    fn renders_a_status() {
        let status = Status::forbidden("apps", "deployments", "d", "no");
        assert_eq!(
            status.to_json(),
            json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
                "message":"deployments.apps \"d\" is forbidden: no","reason":"Forbidden",
                "details":{"name":"d","group":"apps","kind":"deployments"},"code":403})
        );
    }
}

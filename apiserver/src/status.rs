//! The one place where every failure becomes a `metav1.Status`.
//!
//! Responsibility: reasons, codes, message texts and details as upstream's `apimachinery/pkg/api/errors` has
//! them, because clients match on them. Nothing else in this crate writes an error body by hand, except the
//! plain-text 404 of paths that are no API at all.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// One `metav1.StatusCause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

impl Cause {
    /// Upstream's `field.Required`.
    pub fn required(field: &str, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause { reason: "FieldValueRequired".into(), message, field: field.into() }
    }

    /// Upstream's `field.Invalid`; strings are quoted in Go's manner, everything else printed as JSON.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    /// Upstream's `field.Forbidden`.
    pub fn forbidden(field: &str, detail: &str) -> Self {
        Cause {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {detail}"),
            field: field.into(),
        }
    }

    fn sentence(&self) -> String {
        if self.field.is_empty() { self.message.clone() } else { format!("{}: {}", self.field, self.message) }
    }
}

impl From<keelson_registry::Cause> for Cause {
    fn from(cause: keelson_registry::Cause) -> Self {
        Cause { reason: cause.reason.as_str().to_string(), message: cause.message, field: cause.field }
    }
}

/// `metav1.StatusDetails`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A failed request, as the client will see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
}

/// Names a resource the way messages do: `deployments.apps`, `pods`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qualified<'a> {
    pub group: &'a str,
    pub name: &'a str,
}

impl fmt::Display for Qualified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(self.name) } else { write!(f, "{}.{}", self.name, self.group) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Status { code, reason, message: message.into(), details: None }
    }

    fn about(code: u16, reason: &'static str, message: String, resource: Qualified<'_>, name: &str) -> Self {
        let details = Details {
            name: name.into(),
            group: resource.group.into(),
            kind: resource.name.into(),
            ..Details::default()
        };
        Status { code, reason, message, details: Some(Box::new(details)) }
    }

    pub fn not_found(resource: Qualified<'_>, name: &str) -> Self {
        Self::about(404, "NotFound", format!("{resource} {name:?} not found"), resource, name)
    }

    /// What upstream answers for a path under an API that has no such resource.
    pub fn no_such_resource() -> Self {
        let mut status = Self::new(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(resource: Qualified<'_>, name: &str) -> Self {
        Self::about(409, "AlreadyExists", format!("{resource} {name:?} already exists"), resource, name)
    }

    pub fn generate_name_conflict(resource: Qualified<'_>, name: &str) -> Self {
        let message = format!(
            "{resource} {name:?} already exists, the server was not able to generate a unique name for the object"
        );
        Self::about(409, "AlreadyExists", message, resource, name).retry_after(1)
    }

    pub fn conflict(resource: Qualified<'_>, name: &str, why: impl fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::about(409, "Conflict", message, resource, name)
    }

    /// The conflict every client knows: its resourceVersion is not the stored one.
    pub fn modified(resource: Qualified<'_>, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn apply_conflict(message: String, causes: Vec<Cause>) -> Self {
        let mut status = Self::new(409, "Conflict", message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// `kind` is the kind with its group (`Deployment.apps`), not the resource.
    pub fn invalid(kind: Qualified<'_>, name: &str, causes: Vec<Cause>) -> Self {
        let mut sentences: Vec<String> = Vec::with_capacity(causes.len());
        for sentence in causes.iter().map(Cause::sentence) {
            if !sentences.contains(&sentence) {
                sentences.push(sentence);
            }
        }
        let tail = match sentences.as_slice() {
            [] => String::new(),
            [one] => format!(": {one}"),
            many => format!(": [{}]", many.join(", ")),
        };
        let mut status = Self::about(422, "Invalid", format!("{kind} {name:?} is invalid{tail}"), kind, name);
        if let Some(details) = status.details.as_mut() {
            details.causes = causes;
        }
        status
    }

    /// An error that upstream has no reason for: kubectl prints its bare message.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// A patch that is well formed but does not fit its object. Upstream does not tell more, and kubectl prints this
    /// sentence only if no kind is named.
    pub fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        let mut status = Self::new(422, "Invalid", message);
        status.details = Some(Box::default());
        status
    }

    pub fn forbidden(resource: Qualified<'_>, name: &str, why: impl fmt::Display) -> Self {
        let message = if resource.name.is_empty() {
            format!("forbidden: {why}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::about(403, "Forbidden", message, resource, name)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn method_not_supported(resource: Qualified<'_>, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {:?}", resource.to_string());
        Self::about(405, "MethodNotAllowed", message, resource, "")
    }

    pub fn method_not_allowed() -> Self {
        let mut status = Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Box::default());
        status
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {list}"
            ),
        )
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn entity_too_large(message: impl fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(seconds)
    }

    pub fn timeout(message: impl fmt::Display) -> Self {
        let mut status = Self::new(504, "Timeout", format!("Timeout: {message}"));
        status.details = Some(Box::default());
        status
    }

    /// A resourceVersion that this server has not reached yet (upstream `NewTooLargeResourceVersionError`).
    pub fn resource_version_too_large(asked: u64, current: u64) -> Self {
        let mut status =
            Self::timeout(format!("Too large resource version: {asked}, current: {current}")).retry_after(1);
        if let Some(details) = status.details.as_mut() {
            details.causes.push(Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            });
        }
        status
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    pub fn internal(error: impl fmt::Display) -> Self {
        let message = error.to_string();
        let mut status = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        status.details = Some(Box::new(Details {
            causes: vec![Cause { reason: String::new(), message, field: String::new() }],
            ..Details::default()
        }));
        status
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    #[must_use]
    pub fn with_message(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    #[must_use]
    pub fn with_cause(mut self, cause: Cause) -> Self {
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Not about the request: the store did not answer, or something here is broken.
    pub fn is_failure_of_the_server(&self) -> bool {
        matches!(self.reason, "InternalError" | "ServiceUnavailable" | "Timeout")
    }

    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// The object on the wire; also the `object` of a watch's ERROR event.
    pub fn to_json(&self) -> Value {
        let mut object = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            object["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            object["details"] = serde_json::to_value(details).unwrap_or_default();
        }
        object["code"] = self.code.into();
        object
    }
}

/// The Status that a delete answers with.
pub fn success(resource: Qualified<'_>, name: &str, uid: &str) -> Value {
    let details = Details {
        name: name.into(),
        group: resource.group.into(),
        kind: resource.name.into(),
        uid: uid.into(),
        ..Details::default()
    };
    serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": serde_json::to_value(details).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Qualified<'static> = Qualified { group: "", name: "pods" };
    const DEPLOYMENTS: Qualified<'static> = Qualified { group: "apps", name: "deployments" };
    const DEPLOYMENT: Qualified<'static> = Qualified { group: "apps", name: "Deployment" };

    #[track_caller]
    fn check(status: &Status, code: u16, reason: &str, message: &str) {
        assert_eq!((status.code, status.reason, status.message.as_str()), (code, reason, message));
    }

    #[test]
    fn messages_are_upstreams() {
        check(&Status::not_found(PODS, "x"), 404, "NotFound", r#"pods "x" not found"#);
        check(
            &Status::already_exists(DEPLOYMENTS, "x"),
            409,
            "AlreadyExists",
            r#"deployments.apps "x" already exists"#,
        );
        check(
            &Status::invalid(
                DEPLOYMENT,
                "x",
                vec![Cause::invalid("spec.replicas", &(-1).into(), "must be greater than or equal to 0")],
            ),
            422,
            "Invalid",
            r#"Deployment.apps "x" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#,
        );
        check(
            &Status::invalid(DEPLOYMENT, "x", vec![Cause::required("a", ""), Cause::required("b", "why")]),
            422,
            "Invalid",
            r#"Deployment.apps "x" is invalid: [a: Required value, b: Required value: why]"#,
        );
        check(&Status::forbidden(PODS, "", "no"), 403, "Forbidden", "pods is forbidden: no");
        check(
            &Status::modified(PODS, "x"),
            409,
            "Conflict",
            r#"Operation cannot be fulfilled on pods "x": the object has been modified; please apply your changes to the latest version and try again"#,
        );
    }

    #[test]
    fn json_has_the_order_and_fields_of_upstream() {
        assert_eq!(
            Status::not_found(PODS, "x").to_json().to_string(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},"code":404}"#
        );
    }
}

//! Admission: changes and refusals of writes that need to know the requester or other objects.
//!
//! One trait, one file per plugin. All plugins mutate, then all validate, in upstream's order.

pub mod chain;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_defaults;
pub mod node_restriction;
pub mod pod_security;
pub mod priority;
pub mod service_account;

use futures::future::BoxFuture;
use serde_json::Value;

use crate::state::text;
use crate::status::Status;
use crate::user::UserInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As admission reviews spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// A write on its way to storage.
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    pub user: &'a UserInfo,
    pub operation: Operation,
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty for cluster-scoped objects. For a Namespace itself: its own name.
    pub namespace: &'a str,
    /// Empty on create with generateName.
    pub name: &'a str,
    /// The object as it would be stored (create, update) or the body (subresources, connect);
    /// None on delete.
    pub object: Option<&'a mut Value>,
    /// The stored object (update, delete).
    pub old_object: Option<&'a Value>,
    pub dry_run: bool,
    /// Create-, Update-, Patch- or DeleteOptions; `Value::Null` when there are none.
    pub options: &'a Value,
    /// For the `Warning` headers of the response.
    pub warnings: Vec<String>,
    /// For the audit event.
    pub annotations: Vec<(String, String)>,
}

impl AdmissionRequest<'_> {
    #[must_use]
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.group == group && self.resource == resource
    }

    /// `<resource> "<name>" is forbidden: <error>` about this request's object.
    #[must_use]
    pub fn forbidden(&self, error: impl std::fmt::Display) -> Status {
        // Names are generated after admission: until then the prefix stands for the name.
        let metadata = self.object.as_deref().map_or(&Value::Null, |object| &object["metadata"]);
        let candidates = [self.name, text(&metadata["name"]), text(&metadata["generateName"])];
        let name = candidates.into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown");
        Status::forbidden(self.group, self.resource, name, error)
    }
}

pub type Admitted<'a> = BoxFuture<'a, Result<(), Status>>;

pub trait Admission: Send + Sync {
    /// As `--enable-admission-plugins` names it.
    fn name(&self) -> &'static str;

    fn handles(&self, operation: Operation) -> bool;

    fn mutate<'a>(&'a self, _request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn validate<'a>(&'a self, _request: &'a AdmissionRequest<'_>) -> Admitted<'a> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn admitted<'a>() -> Admitted<'a> {
    Box::pin(std::future::ready(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// A request in the making.
    pub(crate) struct Given<'a> {
        pub user: UserInfo,
        pub operation: Operation,
        pub group: &'a str,
        pub kind: &'a str,
        pub resource: &'a str,
        pub subresource: &'a str,
        pub namespace: &'a str,
        pub name: &'a str,
        pub old: Option<Value>,
    }

    impl Default for Given<'_> {
        fn default() -> Self {
            Self {
                user: UserInfo::new("someone", &[]),
                operation: Operation::Create,
                group: "",
                kind: "",
                resource: "",
                subresource: "",
                namespace: "",
                name: "",
                old: None,
            }
        }
    }

    pub(crate) fn request<'a>(given: &'a Given<'a>, object: &'a mut Value) -> AdmissionRequest<'a> {
        AdmissionRequest {
            user: &given.user,
            operation: given.operation,
            group: given.group,
            version: "v1",
            kind: given.kind,
            resource: given.resource,
            subresource: given.subresource,
            namespace: given.namespace,
            name: given.name,
            object: (given.operation != Operation::Delete).then_some(object),
            old_object: given.old.as_ref(),
            dry_run: false,
            options: &Value::Null,
            warnings: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// The object as the plugin leaves it. The plugin may not wait.
    pub(crate) fn mutate(
        plugin: &dyn Admission,
        given: &Given<'_>,
        mut object: Value,
    ) -> Result<Value, Status> {
        if plugin.handles(given.operation) {
            plugin.mutate(&mut request(given, &mut object)).now_or_never().unwrap()?;
        }
        Ok(object)
    }

    pub(crate) fn validate(
        plugin: &dyn Admission,
        given: &Given<'_>,
        mut object: Value,
    ) -> Result<(), Status> {
        if !plugin.handles(given.operation) {
            return Ok(());
        }
        plugin.validate(&request(given, &mut object)).now_or_never().unwrap()
    }

    #[test]
    fn refusals_name_the_object_as_far_as_it_has_a_name() {
        for (name, metadata, expected) in [
            ("p", serde_json::json!({"name": "q"}), r#"pods "p" is forbidden: no"#),
            ("", serde_json::json!({"name": "q"}), r#"pods "q" is forbidden: no"#),
            ("", serde_json::json!({"generateName": "web-"}), r#"pods "web-" is forbidden: no"#),
            ("", Value::Null, r#"pods "Unknown" is forbidden: no"#),
        ] {
            let given = Given { resource: "pods", name, ..Given::default() };
            let mut object = serde_json::json!({"metadata": metadata});
            assert_eq!(request(&given, &mut object).forbidden("no").message, expected);
        }
    }
}

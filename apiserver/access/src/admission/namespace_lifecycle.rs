//! NamespaceLifecycle: nothing new in missing or terminating namespaces, and the system's
//! namespaces are not deleted.

use std::sync::Arc;

use super::{Admission, AdmissionRequest, Admitted, Operation};
use crate::observed::{Freshness, Resource};
use crate::state::State;
use crate::status::Status;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle {
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
}

impl NamespaceLifecycle {
    async fn check(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if request.group.is_empty() && request.kind == "Namespace" {
            if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
                return Err(Status::forbidden(
                    request.group,
                    request.resource,
                    request.name,
                    "this namespace may not be deleted",
                ));
            }
            return Ok(());
        }
        let access_review = request.is("authorization.k8s.io", "localsubjectaccessreviews");
        if request.namespace.is_empty() || request.operation == Operation::Delete || access_review {
            return Ok(());
        }
        let namespace = match self.state.namespace(request.namespace) {
            Some(namespace) => namespace,
            None => {
                self.freshness.catch_up(Resource::Namespaces).await;
                self.state
                    .namespace(request.namespace)
                    .ok_or_else(|| Status::not_found("", "namespaces", request.namespace))?
            }
        };
        if request.operation == Operation::Create && namespace.terminating {
            let name = request.namespace;
            return Err(request
                .forbidden(format_args!(
                    "unable to create new content in namespace {name} because it is being terminated"
                ))
                .with_cause(
                    "NamespaceTerminating",
                    &format!("namespace {name} is being terminated"),
                    "metadata.namespace",
                ));
        }
        Ok(())
    }
}

impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        Box::pin(self.check(request))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate};
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer};
    use serde_json::{Value, json};

    #[test]
    fn guards_namespaces() {
        let state = State::default();
        for (name, phase) in [("live", "Active"), ("dying", "Terminating")] {
            let namespace = json!({"metadata": {"name": name}, "status": {"phase": phase}});
            state.observe(Resource::Namespaces, Event::Upsert(&namespace));
        }
        let plugin = NamespaceLifecycle { state: Arc::new(state), freshness: Arc::new(AlwaysFresh) };
        let check = |given: Given<'_>, expected: Result<(), &str>| {
            let result = mutate(&plugin, &given, Value::Null).map(|_| ()).map_err(|status| status.message);
            assert_eq!(result, expected.map_err(str::to_owned));
        };
        let pod = |namespace, operation| Given {
            operation,
            kind: "Pod",
            resource: "pods",
            namespace,
            name: "p",
            ..Given::default()
        };
        let namespace = |name, operation| Given {
            operation,
            kind: "Namespace",
            resource: "namespaces",
            namespace: name,
            name,
            ..Given::default()
        };
        check(pod("live", Operation::Create), Ok(()));
        check(pod("gone", Operation::Create), Err(r#"namespaces "gone" not found"#));
        check(pod("gone", Operation::Delete), Ok(()));
        check(
            pod("dying", Operation::Create),
            Err(
                r#"pods "p" is forbidden: unable to create new content in namespace dying because it is being terminated"#,
            ),
        );
        check(pod("dying", Operation::Update), Ok(()));
        check(pod("dying", Operation::Delete), Ok(()));
        check(
            namespace("kube-system", Operation::Delete),
            Err(r#"namespaces "kube-system" is forbidden: this namespace may not be deleted"#),
        );
        check(namespace("live", Operation::Delete), Ok(()));
        check(namespace("new", Operation::Create), Ok(()));
        let review = Given {
            operation: Operation::Create,
            group: "authorization.k8s.io",
            kind: "LocalSubjectAccessReview",
            resource: "localsubjectaccessreviews",
            namespace: "gone",
            ..Given::default()
        };
        check(review, Ok(()));
    }
}

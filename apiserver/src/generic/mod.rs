//! The only write path: every create, update, patch and delete of every kind passes through here.
//!
//! Order of a write, as upstream's: decode → defaults → ownership of fields → mutating admission → the kind's
//! preparation → validation → validating admission → one compare-and-swap in the store. A kind adds pure functions
//! (the registry's `Strategy`); the few that need state of the cluster add [`hooks`].
//!
//! Invariants: nothing is written that was not validated against the very version it replaces; a decision made on a
//! cached state is made again on the store's state before it becomes an error.

pub mod create;
pub mod decode;
pub mod delete;
pub mod errors;
mod escalation;
pub mod hooks;
pub mod metadata;
mod privileged;
pub mod selectors;
pub mod update;

use std::sync::Arc;

use keelson_access::{
    admission::{AdmissionRequest, Operation},
    user::UserInfo,
};
use keelson_storage::Resource;
use serde_json::Value;

use crate::{
    http::chain::WarningList, request::options::WriteOptions, served::Served, server::Server, status::Status,
};

/// One write on behalf of somebody.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub server: &'a Arc<Server>,
    pub served: &'a Served,
    pub user: &'a UserInfo,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    pub options: &'a WriteOptions,
    /// The field manager that owns what is written.
    pub manager: &'a str,
    pub ownership: update::Ownership,
    pub warnings: &'a WarningList,
}

/// The name under which the object is found, and what is admitted.
pub(crate) struct Subject<'a> {
    pub operation: Operation,
    pub name: &'a str,
    pub object: Option<&'a mut Value>,
    pub old: Option<&'a Value>,
}

impl<'a> Write<'a> {
    /// The storage of the kind; a virtual kind has none.
    pub fn resource(&self) -> Result<&'a Arc<Resource>, Status> {
        self.served
            .resource
            .as_ref()
            .ok_or_else(|| Status::method_not_supported(self.served.qualified(), "storage"))
    }

    fn admission_request<'r>(&'r self, subject: Subject<'r>, options: &'r Value) -> AdmissionRequest<'r> {
        let resource = &self.served.kind.resource;
        AdmissionRequest {
            user: self.user,
            operation: subject.operation,
            group: &resource.group,
            version: &resource.version,
            kind: &resource.kind,
            resource: &resource.plural,
            subresource: self.subresource,
            // A Namespace is in itself, as upstream's request attributes have it.
            namespace: if self.served.is("", "namespaces") { subject.name } else { self.namespace },
            name: subject.name,
            object: subject.object,
            old_object: subject.old,
            dry_run: self.options.dry_run,
            options,
            warnings: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// Runs the plugins that may change the object.
    pub(crate) async fn mutate(&self, subject: Subject<'_>) -> Result<(), Status> {
        let options = Value::Null;
        let operation = subject.operation;
        let mut request = self.admission_request(subject, &options);
        for plugin in self.server.access.admission.iter().filter(|plugin| plugin.handles(operation)) {
            plugin.mutate(&mut request).await?;
        }
        self.warnings.extend(std::mem::take(&mut request.warnings));
        Ok(())
    }

    /// Admission of the body of a subresource that is created (a Binding, an Eviction, a TokenRequest).
    pub async fn admit_create(&self, name: &str, object: &mut Value) -> Result<(), Status> {
        let operation = Operation::Create;
        self.mutate(Subject { operation, name, object: Some(object), old: None }).await?;
        self.validate(Subject { operation, name, object: Some(object), old: None }).await
    }

    /// Runs the plugins that may only refuse.
    pub(crate) async fn validate(&self, subject: Subject<'_>) -> Result<(), Status> {
        let options = Value::Null;
        let operation = subject.operation;
        let request = self.admission_request(subject, &options);
        for plugin in self.server.access.admission.iter().filter(|plugin| plugin.handles(operation)) {
            plugin.validate(&request).await?;
        }
        Ok(())
    }
}

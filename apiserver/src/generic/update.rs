//! Update: PUT, every PATCH, apply and the subresources that write their object.
//!
//! One loop: take the present object (cached first), let the caller make the new one from it, prepare, validate,
//! swap; start again from the store's state when another writer was faster.

use std::sync::Arc;

use keelson_access::{admission::Operation, authz::Attributes};
use keelson_registry::Scope;
use keelson_schema::apply::{self, Writer};
use keelson_storage::{Change, Current, Error, Object, Updated};
use serde_json::Value;

use super::{Subject, Write, create::Outcome, errors, escalation, hooks, metadata, privileged};
use crate::{
    authorization,
    status::{Cause, Status},
};

/// Rounds before a busy object is answered with a conflict.
const ATTEMPTS: usize = 8;

/// How the caller's new object came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Changed fields become the manager's (update and patch).
    Track,
    /// The object carries its `managedFields` already (apply).
    Done,
}

/// What an update did.
pub struct Written {
    pub outcome: Outcome,
    pub created: bool,
}

impl Write<'_> {
    /// The endpoint's scope, as the registry names it.
    fn scope(&self) -> Scope {
        match self.subresource {
            "status" => Scope::Status,
            "finalize" => Scope::Finalize,
            "ephemeralcontainers" => Scope::EphemeralContainers,
            "resize" => Scope::Resize,
            _ => Scope::Main,
        }
    }

    /// Updates the object `name`. `make` gets the present object (None: there is none, and the result would be
    /// created) in the served version and returns what it shall become; it may be called several times.
    pub async fn update<F>(&self, name: &str, mut make: F) -> Result<Written, Status>
    where
        F: FnMut(Option<&Value>) -> Result<Value, Status> + Send,
    {
        let resource = self.resource()?;
        let qualified = self.served.qualified();
        let key = self.served.key(self.namespace, name);
        let mut fresh = false;
        for _ in 0..ATTEMPTS {
            let current = match resource.current(key, fresh).await {
                Ok(current) => current,
                Err(Error::NotFound { .. }) if !fresh => {
                    fresh = true;
                    continue;
                }
                Err(Error::NotFound { .. }) => {
                    let object = make(None)?;
                    self.authorize_create(name)?;
                    match self.create(object, name).await {
                        Ok(outcome) => return Ok(Written { outcome, created: true }),
                        // Somebody else created it meanwhile: now it is an update.
                        Err(status) if status.reason == "AlreadyExists" => continue,
                        Err(status) => return Err(status),
                    }
                }
                Err(error) => return Err(errors::storage(error, qualified, name)),
            };
            match self.attempt(&current, name, &mut make).await {
                Ok(Some(outcome)) => return Ok(Written { outcome, created: false }),
                Ok(None) => fresh = true,
                // The cached state may be old: what is wrong must be wrong for the store's state. What the store itself
                // failed at is no decision, and may have happened: a patch must not be applied twice.
                Err(status) if fresh || status.is_failure_of_the_server() => return Err(status),
                Err(_) => fresh = true,
            }
        }
        Err(Status::modified(qualified, name))
    }

    /// Who may update or patch may not create by that.
    fn authorize_create(&self, name: &str) -> Result<(), Status> {
        let resource = &self.served.kind.resource;
        authorization::decide(
            self.server,
            &Attributes {
                verb: "create",
                namespace: self.namespace,
                api_group: &resource.group,
                api_version: &resource.version,
                resource: &resource.plural,
                subresource: self.subresource,
                name,
                resource_request: true,
                ..Attributes::of(self.user)
            },
        )
    }

    async fn attempt<F>(&self, current: &Current, name: &str, make: &mut F) -> Result<Option<Outcome>, Status>
    where
        F: FnMut(Option<&Value>) -> Result<Value, Status> + Send,
    {
        let kind = self.served.kind;
        let converted;
        let old = if let Some(conversion) = &kind.conversion {
            let mut value = current.value.clone();
            (conversion.from_storage)(&mut value);
            converted = value;
            &converted
        } else {
            &current.value
        };
        let mut new = make(Some(old))?;
        self.match_identity(&mut new, old, name)?;
        kind.default(&mut new);
        let subject =
            |object| Subject { operation: Operation::Update, name, object: Some(object), old: Some(old) };
        self.track(Some(old), &mut new);
        self.mutate(subject(&mut new)).await?;
        for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            metadata::keep(&mut new, old, field);
        }
        if self.scope() != Scope::Main {
            // A subresource never removes finalizers or owners on the side of what it is for.
            for field in ["generateName", "uid"] {
                metadata::keep(&mut new, old, field);
            }
        }
        kind.prepare_for_update(self.scope(), &mut new, old);
        let allocated = hooks::before_update(self, &mut new, old).await?;
        let result = self.attempt_prepared(current, old, new, name).await;
        match &result {
            Ok(Some(_)) if !self.options.dry_run => allocated.keep(),
            Ok(_) => allocated.release(None).await,
            Err(status) => allocated.release(Some(status)).await,
        }
        if let Ok(Some(Outcome::Stored(stored))) = &result
            && self.served.is("", "services")
        {
            hooks::after_update(self, old, &stored.value()).await;
        }
        result
    }

    async fn attempt_prepared(
        &self,
        current: &Current,
        old: &Value,
        mut new: Value,
        name: &str,
    ) -> Result<Option<Outcome>, Status> {
        let kind = self.served.kind;
        let qualified = self.served.qualified();
        let mut causes: Vec<Cause> =
            kind.validate_update(self.scope(), &new, old).into_iter().map(Into::into).collect();
        if self.scope() != Scope::Status {
            causes.extend(privileged::check(self, &new));
        }
        if !causes.is_empty() {
            return Err(Status::invalid(self.served.qualified_kind(), name, causes));
        }
        self.warnings.extend(kind.warnings(&new, Some(old)));
        self.validate(Subject { operation: Operation::Update, name, object: Some(&mut new), old: Some(old) })
            .await?;
        escalation::check(self, &new, Some(old))?;
        let gone = may_go(&new) && !kind.has_finalizers(&new);
        if self.options.dry_run {
            return Ok(Some(Outcome::Imagined(new)));
        }
        if let Some(conversion) = &kind.conversion {
            (conversion.to_storage)(&mut new);
        }
        let last = gone.then(|| new.clone());
        let change = if gone {
            Change::Delete
        } else if let Some(ttl) = self.server.ttl_of(self.served) {
            Change::WriteFor(new, ttl)
        } else {
            Change::Write(new)
        };
        let resource = self.resource()?;
        match resource.swap(current, change).await {
            Ok(None) => Ok(None),
            Ok(Some(updated)) => {
                if let (Updated::Deleted(object), Some(mut last)) = (&updated, last) {
                    hooks::after_delete(self, old).await;
                    // What the caller wrote, not the state that it replaced.
                    metadata::set(&mut last, "resourceVersion", object.resource_version().to_string());
                    return Ok(Some(Outcome::Imagined(last)));
                }
                Ok(Some(Outcome::Stored(updated.object().clone())))
            }
            Err(error) => Err(errors::storage(error, qualified, name)),
        }
    }

    /// Name, namespace, uid and resourceVersion must be the stored object's, where they are given.
    fn match_identity(&self, new: &mut Value, old: &Value, name: &str) -> Result<(), Status> {
        let qualified = self.served.qualified();
        let found = metadata::name(new);
        if found != name {
            return Err(if found.is_empty() && self.subresource.is_empty() {
                Status::bad_request("name must be provided")
            } else {
                Status::bad_request(format!(
                    "the name of the object ({found}) does not match the name on the URL ({name})"
                ))
            });
        }
        self.settle_namespace(new)?;
        let old_uid = metadata::text(old, "uid");
        let uid = metadata::text(new, "uid");
        if uid.is_empty() {
            metadata::set(new, "uid", old_uid);
        } else if uid != old_uid {
            return Err(Status::conflict(
                qualified,
                name,
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"),
            ));
        }
        let version = metadata::text(new, "resourceVersion");
        let stored = metadata::text(old, "resourceVersion");
        if version.is_empty() {
            if !self.served.kind.unconditional_update {
                return Err(Status::invalid(
                    self.served.qualified_kind(),
                    name,
                    vec![Cause {
                        reason: "FieldValueInvalid".into(),
                        message: "Invalid value: 0: must be specified for an update".into(),
                        field: "metadata.resourceVersion".into(),
                    }],
                ));
            }
            metadata::set(new, "resourceVersion", stored);
        } else if version != stored {
            return Err(Status::modified(qualified, name));
        }
        Ok(())
    }

    /// Records the changed fields as the manager's. This comes before admission: what admission sets is nobody's, or
    /// the manager's next apply would remove it as something that it no longer applies.
    ///
    /// As upstream, what cannot be recorded does not stop the write.
    pub(super) fn track(&self, live: Option<&Value>, new: &mut Value) {
        if self.ownership == Ownership::Done {
            return;
        }
        let api_version = self.served.kind.resource.gvk().api_version();
        let now = metadata::now();
        let writer = self.writer(&api_version, &now);
        if let Err(error) = apply::track_update(live, new, self.served.ty, writer) {
            tracing::error!(resource = %self.served.qualified(), %error, "recording the owners of fields failed");
        }
    }

    pub fn writer<'w>(&'w self, api_version: &'w str, now: &'w str) -> Writer<'w> {
        let status = self.served.kind.has_status();
        // What the preparation of this endpoint puts back, nobody can come to own through it.
        let reset_fields: &[&[&str]] = match self.subresource {
            "status" if self.served.is("", "pods") => {
                &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
            }
            "status" if self.served.is("apps", "deployments") => &[&["spec"], &["metadata", "labels"]],
            "status" => &[&["spec"]],
            _ if status => &[&["status"]],
            _ => &[],
        };
        Writer { manager: self.manager, api_version, subresource: self.subresource, reset_fields, now }
    }
}

/// An object marked as deleted goes when its last finalizer has gone and it needs no time to end.
fn may_go(object: &Value) -> bool {
    metadata::is_deleting(object)
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}

/// The stored object of an outcome, or the value of a dry run.
impl Outcome {
    pub fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Outcome::Stored(object) => Some(object),
            Outcome::Imagined(_) => None,
        }
    }
}

//! Create: from a decoded object to a stored one.

use std::sync::Arc;

use keelson_access::admission::Operation;
use keelson_storage::{Error, Object};
use serde_json::Value;

use super::{Subject, Write, errors, escalation, hooks, metadata, privileged};
use crate::status::{Cause, Status};

/// Attempts at a free generated name, as upstream.
const NAME_ATTEMPTS: usize = 8;

/// What a write left behind.
pub enum Outcome {
    Stored(Arc<Object>),
    /// A dry run: what would have been stored.
    Imagined(Value),
}

impl Write<'_> {
    /// Creates `object`; with `name` empty its metadata.name or generateName decides.
    pub async fn create(&self, object: Value, name: &str) -> Result<Outcome, Status> {
        let qualified = self.served.qualified();
        let generated = metadata::name(&object).is_empty() && name.is_empty();
        let prefix = metadata::text(&object, "generateName").to_string();
        if !generated || prefix.is_empty() {
            return self.create_named(object, name).await.map_err(|(status, _)| status);
        }
        let mut last = String::new();
        for _ in 0..NAME_ATTEMPTS {
            last = keelson_registry::names::generate(&prefix);
            match self.create_named(object.clone(), &last).await {
                Err((_, Failure::NameTaken)) => continue,
                other => return other.map_err(|(status, _)| status),
            }
        }
        Err(Status::generate_name_conflict(qualified, &last))
    }

    async fn create_named(&self, mut object: Value, name: &str) -> Result<Outcome, (Status, Failure)> {
        let refused = |status: Status| (status, Failure::Refused);
        let qualified = self.served.qualified();
        self.settle_namespace(&mut object).map_err(refused)?;
        if !name.is_empty() {
            let present = metadata::name(&object);
            if !present.is_empty() && present != name {
                return Err(refused(Status::bad_request(format!(
                    "the name of the object ({present}) does not match the name on the URL ({name})"
                ))));
            }
            metadata::set(&mut object, "name", name);
        }
        if !metadata::text(&object, "resourceVersion").is_empty() {
            return Err(refused(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            )));
        }
        for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
            metadata::remove(&mut object, field);
        }
        metadata::set(&mut object, "uid", uuid::Uuid::new_v4().to_string());
        metadata::set(&mut object, "creationTimestamp", metadata::now());
        let name = metadata::name(&object).to_string();
        let kind = self.served.kind;
        kind.default(&mut object);
        let subject =
            |object| Subject { operation: Operation::Create, name: &name, object: Some(object), old: None };
        self.track(None, &mut object);
        self.mutate(subject(&mut object)).await.map_err(refused)?;
        kind.default(&mut object);
        kind.prepare_for_create(&mut object);
        let allocated = hooks::before_create(self, &mut object).await.map_err(refused)?;
        let result = self.create_prepared(object, &name, qualified).await;
        match &result {
            Ok(_) if !self.options.dry_run => allocated.keep(),
            Ok(_) => allocated.release(None).await,
            Err((status, _)) => allocated.release(Some(status)).await,
        }
        result
    }

    async fn create_prepared(
        &self,
        mut object: Value,
        name: &str,
        qualified: crate::status::Qualified<'_>,
    ) -> Result<Outcome, (Status, Failure)> {
        let refused = |status: Status| (status, Failure::Refused);
        let kind = self.served.kind;
        let mut causes: Vec<Cause> = kind.validate_create(&object).into_iter().map(Into::into).collect();
        causes.extend(privileged::check(self, &object));
        if !causes.is_empty() {
            return Err(refused(Status::invalid(self.served.qualified_kind(), name, causes)));
        }
        self.warnings.extend(kind.warnings(&object, None));
        self.validate(Subject { operation: Operation::Create, name, object: Some(&mut object), old: None })
            .await
            .map_err(refused)?;
        escalation::check(self, &object, None).map_err(refused)?;
        let resource = self.resource().map_err(refused)?;
        let key = self.served.key(self.namespace, name);
        if self.options.dry_run {
            return match resource.get(key, keelson_storage::ReadVersion::Latest).await {
                Ok(_) => Err((Status::already_exists(qualified, name), Failure::NameTaken)),
                Err(Error::NotFound { .. }) => Ok(Outcome::Imagined(object)),
                Err(error) => Err(refused(errors::storage(error, qualified, name))),
            };
        }
        if let Some(conversion) = &kind.conversion {
            (conversion.to_storage)(&mut object);
        }
        let ttl = self.server.ttl_of(self.served);
        match resource.create(key, object, ttl).await {
            Ok(stored) => Ok(Outcome::Stored(stored)),
            Err(Error::AlreadyExists { current, .. }) => {
                let status = Status::already_exists(qualified, name);
                let leaving = metadata::is_deleting(&current.value());
                let message =
                    if leaving { "object is being deleted: " } else { "" }.to_owned() + &status.message;
                Err((status.with_message(message), Failure::NameTaken))
            }
            Err(error) => Err(refused(errors::storage(error, qualified, name))),
        }
    }

    /// The object's namespace is the request's.
    pub(crate) fn settle_namespace(&self, object: &mut Value) -> Result<(), Status> {
        let found = metadata::text(object, "namespace");
        if !self.served.kind.resource.namespaced {
            // Refused by validation, in its own words, if it is set.
            return Ok(());
        }
        if found.is_empty() {
            metadata::set(object, "namespace", self.namespace);
            Ok(())
        } else if found == self.namespace {
            Ok(())
        } else {
            Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ))
        }
    }
}

/// Whether another generated name may help.
enum Failure {
    NameTaken,
    Refused,
}

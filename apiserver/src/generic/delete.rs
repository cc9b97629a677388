//! Delete: grace periods, finalizers and propagation, then removal (upstream `rest.BeforeDelete` and
//! `registry/generic/registry/store.go`).
//!
//! [`plan`] decides purely; [`Write::delete`] executes it with one compare-and-swap.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use keelson_access::admission::Operation;
use keelson_registry::{Kind, Propagation};
use keelson_storage::{Change, Error, Object};
use serde_json::Value;

use super::{Subject, Write, errors, hooks, metadata};
use crate::{
    request::options::{DeleteOptions, PropagationPolicy},
    status::Status,
};

const ATTEMPTS: usize = 8;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a delete did.
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Arc<Object>),
    /// It waits for finalizers or its grace period.
    Pending(Arc<Object>),
    /// A dry run of either.
    Imagined { object: Value, gone: bool },
}

/// What is to be done with an object that is to be deleted.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    Remove,
    Mark(Value),
    /// It is being deleted already, as gracefully as now asked for.
    Nothing,
}

/// Decides; `now` is passed in so that deciding is pure.
pub fn plan(kind: &Kind, object: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    let deleting = metadata::is_deleting(object);
    let metadata_of = &object["metadata"];
    let finalizers = wanted_finalizers(kind, object, options);
    let present: Vec<&str> = metadata::finalizers(object).collect();
    let mut marked = object.clone();
    let mut changed = finalizers != present;
    if changed {
        if finalizers.is_empty() {
            metadata::remove(&mut marked, "finalizers");
        } else {
            metadata::set(&mut marked, "finalizers", finalizers.clone());
        }
    }
    let held = kind.has_finalizers(&marked);
    let grace = kind.grace_period(object, options.grace_period_seconds);
    match grace {
        Some(grace) if deleting => {
            let current = metadata_of["deletionGracePeriodSeconds"].as_i64();
            // Only a shorter period than the one under way changes anything.
            let shorter =
                options.grace_period_seconds.is_some() && current.is_none_or(|current| grace < current);
            if !shorter {
                if current == Some(0) && !held {
                    return Plan::Remove;
                }
                return if changed { Plan::Mark(marked) } else { Plan::Nothing };
            }
            if grace == 0 && !held {
                return Plan::Remove;
            }
            let began = metadata_of["deletionTimestamp"]
                .as_str()
                .and_then(|text| text.parse::<Timestamp>().ok())
                .and_then(|until| until.checked_sub(SignedDuration::from_secs(current.unwrap_or(0))).ok())
                .unwrap_or(now);
            set_deletion(&mut marked, after(began, grace), grace);
            changed = true;
        }
        Some(grace) if grace > 0 => {
            set_deletion(&mut marked, after(now, grace), grace);
            bump_generation(&mut marked);
            kind.mark_deleting(&mut marked);
            changed = true;
        }
        // No grace: at once, unless something holds it.
        _ if !held => return Plan::Remove,
        _ if !deleting => {
            set_deletion(&mut marked, now, 0);
            bump_generation(&mut marked);
            kind.mark_deleting(&mut marked);
            changed = true;
        }
        _ => {}
    }
    if changed { Plan::Mark(marked) } else { Plan::Nothing }
}

/// A pod may ask for more seconds than there are.
fn after(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

fn set_deletion(object: &mut Value, at: Timestamp, grace: i64) {
    metadata::set(object, "deletionTimestamp", metadata::format_time(at));
    metadata::set(object, "deletionGracePeriodSeconds", grace);
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|generation| *generation > 0) {
        metadata::set(object, "generation", generation.saturating_add(1));
    }
}

/// The garbage collector's two finalizers as the policy wants them, behind the others.
fn wanted_finalizers(kind: &Kind, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let has = |name: &str| metadata::finalizers(object).any(|finalizer| finalizer == name);
    let policy = options.policy();
    let orphan = match policy {
        Some(policy) => policy == PropagationPolicy::Orphan,
        None if has(ORPHAN) => true,
        None if has(FOREGROUND) => false,
        None => kind.propagation == Propagation::Orphan,
    };
    let foreground = match policy {
        Some(policy) => policy == PropagationPolicy::Foreground,
        None => has(FOREGROUND) && !has(ORPHAN),
    };
    let mut wanted: Vec<String> = metadata::finalizers(object)
        .filter(|finalizer| !matches!(*finalizer, ORPHAN | FOREGROUND))
        .map(str::to_string)
        .collect();
    if orphan {
        wanted.push(ORPHAN.into());
    }
    if foreground {
        wanted.push(FOREGROUND.into());
    }
    wanted
}

impl Write<'_> {
    pub async fn delete(&self, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
        let resource = self.resource()?;
        let qualified = self.served.qualified();
        let key = self.served.key(self.namespace, name);
        let kind = self.served.kind;
        let failed = |error: Error| errors::storage(error, qualified, name);
        let mut fresh = false;
        for _ in 0..ATTEMPTS {
            let current = match resource.current(key, fresh).await {
                Ok(current) => current,
                Err(Error::NotFound { .. }) if !fresh => {
                    fresh = true;
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            let old = &current.value;
            let admitted = async {
                check_preconditions(old, options, |why| Status::conflict(qualified, name, why))?;
                let subject = || Subject { operation: Operation::Delete, name, object: None, old: Some(old) };
                self.mutate(subject()).await?;
                self.validate(subject()).await
            };
            match admitted.await {
                Ok(()) => {}
                Err(_) if !fresh => {
                    fresh = true;
                    continue;
                }
                Err(status) => return Err(status),
            }
            if options.propagation_policy.is_none() && options.orphan_dependents.is_none() {
                self.warnings.extend(kind.warnings_on_delete(old));
            }
            let (change, gone) = match plan(kind, old, options, Timestamp::now()) {
                Plan::Nothing => return Ok(Deleted::Pending(current.object.clone())),
                Plan::Mark(object) if self.options.dry_run => {
                    return Ok(Deleted::Imagined { object, gone: false });
                }
                Plan::Remove if self.options.dry_run => {
                    return Ok(Deleted::Imagined { object: old.clone(), gone: true });
                }
                Plan::Mark(object) => (Change::Write(object), false),
                Plan::Remove => (Change::Delete, true),
            };
            match resource.swap(&current, change).await.map_err(failed)? {
                None => fresh = true,
                Some(updated) if gone => {
                    hooks::after_delete(self, old).await;
                    return Ok(Deleted::Gone(updated.object().clone()));
                }
                Some(updated) => return Ok(Deleted::Pending(updated.object().clone())),
            }
        }
        Err(Status::modified(qualified, name))
    }
}

fn check_preconditions(
    object: &Value,
    options: &DeleteOptions,
    conflict: impl Fn(String) -> Status,
) -> Result<(), Status> {
    let Some(wanted) = &options.preconditions else { return Ok(()) };
    let uid = metadata::text(object, "uid");
    if let Some(expected) = wanted.uid.as_deref().filter(|expected| *expected != uid) {
        return Err(conflict(format!(
            "Precondition failed: UID in precondition: {expected}, UID in object meta: {uid}"
        )));
    }
    let version = metadata::text(object, "resourceVersion");
    if let Some(expected) = wanted.resource_version.as_deref().filter(|expected| *expected != version) {
        return Err(conflict(format!(
            "Precondition failed: ResourceVersion in precondition: {expected}, ResourceVersion in object meta: {version}"
        )));
    }
    Ok(())
}

/// How many objects a deletecollection deletes at a time.
pub const COLLECTION_WORKERS: usize = 8;
/// Objects that a deletecollection lists at a time.
pub const COLLECTION_PAGE: usize = 500;

//! Server-side apply: merging applied configurations and tracking who owns which field.
//!
//! The rules are those of structured-merge-diff and of upstream's field manager around it. One difference: a manager
//! that wrote in another version of the API is taken to mean the same field names in this one; nothing is converted.
//! No clock: the caller says what time it is.

mod compare;
mod fieldset;
mod managed;
mod merge;
mod scale;
mod typed;

pub use scale::{managed_fields_of_parent, managed_fields_of_scale};

use crate::types::TypeRef;
use fieldset::{Element, Set, display_path};
use managed::{Managed, Manager, Operation, Owned};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Objects of clients that apply with kubectl carry what was applied in this annotation.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose applies take over what kubectl has applied on the client's side.
const KUBECTL: &str = "kubectl";
/// Bytes of all annotations together, above which the one above is not kept.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Who writes, as what.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The fieldManager of the request; for updates without one, the user agent up to the first slash.
    pub manager: &'a str,
    /// `apps/v1`: the version in which the object was sent.
    pub api_version: &'a str,
    /// `status`, `scale`, or empty.
    pub subresource: &'a str,
    /// Paths that this endpoint resets, so that nobody can own them through it: `&[&["status"]]` for the main
    /// resource of a kind with a status subresource, `&[&["spec"]]` and the like for the subresource.
    pub reset_fields: &'a [&'a [&'a str]],
    /// Now: RFC 3339 in UTC and whole seconds, `2024-01-02T03:04:05Z`.
    pub now: &'a str,
}

/// One field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `"kubectl" using apps/v1`, as upstream prints it. A cause's message is `conflict with <manager>`.
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 409 Conflict with one cause FieldManagerConflict per entry.
    #[error("{}", display_conflicts(.0))]
    Conflicts(Vec<Conflict>),
    /// 400
    #[error("{0}")]
    BadRequest(String),
    /// 500: upstream answers so when the applied object does not fit its schema.
    #[error("{0}")]
    Internal(String),
}

fn display_conflicts(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            conflict.manager, conflict.field
        );
    }
    let mut lines = Vec::new();
    let mut manager = "";
    for conflict in conflicts {
        if conflict.manager != manager {
            manager = &conflict.manager;
            lines.push(format!("conflicts with {manager}:"));
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Why the inner steps stop.
enum Stop {
    Conflicts(Vec<(Manager, Vec<Element>)>),
    Error(String),
}

impl From<Stop> for ApplyError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Conflicts(conflicts) => ApplyError::Conflicts(
                conflicts
                    .into_iter()
                    .map(|(manager, path)| Conflict {
                        manager: manager.to_string(),
                        field: display_path(&path),
                    })
                    .collect(),
            ),
            Stop::Error(text) => ApplyError::Internal(text),
        }
    }
}

/// Merges an applied configuration into the live object (`None`: it is being created) and records who owns what in
/// `metadata.managedFields` of the result.
///
/// `applied` is the patch as it was sent, decoded without a type ([`crate::decode::untyped`]): fields that the type
/// does not have are an error here. The result is not defaulted and may hold nulls; it is to be decoded into its type.
/// If nothing changes it equals `live`, times included.
pub fn apply(
    live: Option<&Value>,
    applied: &Value,
    ty: TypeRef<'_>,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let sent = applied["apiVersion"].as_str().unwrap_or_default();
    if sent != writer.api_version {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {sent}, expected: {}",
            writer.api_version
        )));
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    typed::validate(applied, ty, false).map_err(|error| {
        ApplyError::Internal(format!("failed to create typed patch object ({}): {error}", describe(applied)))
    })?;
    let mut managed = match live {
        Some(live) => Managed::of(live)
            .map_err(|error| ApplyError::Internal(format!("failed to decode managed fields: {error}")))?,
        None => Managed::default(),
    };
    let live = bare_live(live, applied);
    let application =
        Application { live: &live, applied, ty, writer, ignored: Set::of_fields(writer.reset_fields) };
    if managed.0.is_empty() {
        // Nobody was recorded so far: what is there belongs to those before the first apply.
        let empty = json!({"apiVersion": applied["apiVersion"], "kind": applied["kind"]});
        let before = Writer { manager: "before-first-apply", ..writer };
        record(&empty, &live, ty, before, &mut managed);
    }
    let (merged, mut managed) = match application.run(&managed, force) {
        Err(Stop::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            application.upgrade(&managed, conflicts)?
        }
        other => other?,
    };
    let mut object = match merged {
        Some(object) => {
            let manager = application.manager();
            if let Some(owned) = managed.0.get_mut(&manager) {
                owned.time = Some(writer.now.to_owned());
            }
            object
        }
        None => live.clone(),
    };
    if writer.manager == KUBECTL {
        refresh_last_applied(&mut object, applied);
    }
    managed.write(&mut object);
    Ok(object)
}

/// The live object as it takes part: with the type's name, without its managed fields.
fn bare_live(live: Option<&Value>, applied: &Value) -> Value {
    let mut bare = Map::new();
    for key in ["apiVersion", "kind"] {
        if let Some(value) = applied.get(key) {
            bare.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(Value::Object(live)) = live {
        bare.extend(live.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let mut bare = Value::Object(bare);
    managed::set_entries(&mut bare, None);
    bare
}

/// `default/web; apps/v1, Kind=Deployment`
fn describe(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let group_version = text("/apiVersion");
    let slash = if group_version.contains('/') { "" } else { "/" };
    format!(
        "{}/{}; {slash}{group_version}, Kind={}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/kind")
    )
}

struct Application<'a> {
    live: &'a Value,
    applied: &'a Value,
    ty: TypeRef<'a>,
    writer: Writer<'a>,
    ignored: Set,
}

/// The merged object, `None` if it is the live one; and the managers.
type Outcome = (Option<Value>, Managed);

impl Application<'_> {
    fn manager(&self) -> Manager {
        Manager::new(self.writer.manager, Operation::Apply, self.writer.api_version, self.writer.subresource)
    }

    fn run(&self, managed: &Managed, force: bool) -> Result<Outcome, Stop> {
        let mut managed = reconciled(managed, self.ty);
        let manager = self.manager();
        let merged = merge::merge(self.live, self.applied, self.ty)
            .map_err(|e| Stop::Error(format!("failed to merge config: {e}")))?;
        let set = typed::to_set(self.applied, self.ty).recursive_difference(&self.ignored);
        let before = managed.0.remove(&manager);
        let owned = Owned {
            set,
            api_version: self.writer.api_version.to_owned(),
            time: before.as_ref().and_then(|owned| owned.time.clone()),
        };
        managed.0.insert(manager.clone(), owned);
        let merged = self.prune(merged, &managed, before.map(|owned| owned.set).unwrap_or_default());
        self.take_over(&merged, &mut managed, &manager, force)?;
        strip(&mut managed, &manager);
        let changed = !compare::equal(self.live, &merged);
        Ok((changed.then_some(merged), managed))
    }

    /// Takes changed fields from their owners, or tells of the conflicts.
    fn take_over(
        &self,
        new: &Value,
        managed: &mut Managed,
        applier: &Manager,
        force: bool,
    ) -> Result<(), Stop> {
        let comparison = compare::compare(self.live, new, self.ty).excluding(&self.ignored);
        let changed = comparison.modified.union(&comparison.added);
        if !force {
            let conflicts: Vec<(Manager, Vec<Element>)> = managed
                .0
                .iter()
                .filter(|(manager, _)| *manager != applier)
                .flat_map(|(manager, owned)| {
                    let paths = owned.set.intersection(&changed).paths();
                    paths.into_iter().map(move |path| (manager.clone(), path))
                })
                .collect();
            if !conflicts.is_empty() {
                return Err(Stop::Conflicts(conflicts));
            }
        }
        lose(managed, Some(applier), &changed);
        lose(managed, Some(applier), &comparison.removed);
        managed.0.retain(|_, owned| !owned.set.is_empty());
        Ok(())
    }

    /// Removes what this manager applied the last time, does not apply any more and nobody else owns.
    fn prune(&self, merged: Value, managed: &Managed, last: Set) -> Value {
        if last.is_empty() {
            return merged;
        }
        let named = |set: &Set| typed::with_named_fields(set, Some(self.ty));
        let last = named(&last);
        let pruned = typed::remove(&merged, &last, self.ty);
        // Others' fields and ours of this time come back,
        let owned = managed.0.values().fold(Set::default(), |all, owned| all.union(&owned.set));
        let all = named(&typed::to_set(&merged, self.ty));
        let left = named(&typed::to_set(&pruned, self.ty));
        let pruned = typed::remove(&merged, &all.difference(&left.union(&named(&owned))), self.ty);
        // and so does what was never ours.
        let left = named(&typed::to_set(&pruned, self.ty));
        typed::remove(&merged, &all.difference(&left).intersection(&last), self.ty).into_owned()
    }

    /// kubectl going from client-side to server-side apply owns what its last client-side apply has set: conflicts
    /// about that are none.
    fn upgrade(&self, managed: &Managed, conflicts: Vec<(Manager, Vec<Element>)>) -> Result<Outcome, Stop> {
        let Some(allowed) = self.last_applied_set() else { return Err(Stop::Conflicts(conflicts)) };
        let left: Vec<_> = conflicts.into_iter().filter(|(_, path)| !allowed.has(path)).collect();
        if left.is_empty() { self.run(managed, true) } else { Err(Stop::Conflicts(left)) }
    }

    /// The fields of the last client-side apply that the live object still has as they were applied.
    fn last_applied_set(&self) -> Option<Set> {
        let text =
            self.live["metadata"]["annotations"].get(LAST_APPLIED)?.as_str().filter(|t| !t.is_empty())?;
        let last: Value = serde_json::from_str(text).ok()?;
        if last["apiVersion"] != self.writer.api_version || typed::validate(&last, self.ty, false).is_err() {
            return None;
        }
        let comparison = compare::compare(&last, self.live, self.ty);
        Some(
            typed::to_set(&last, self.ty)
                .difference(&comparison.modified)
                .difference(&comparison.added)
                .difference(&comparison.removed),
        )
    }
}

/// Keeps the annotation of client-side apply in step, so that one can go back to it.
fn refresh_last_applied(object: &mut Value, applied: &Value) {
    let has_annotation = object["metadata"]["annotations"]
        .get(LAST_APPLIED)
        .and_then(Value::as_str)
        .is_some_and(|text| !text.is_empty());
    if !has_annotation {
        return;
    }
    let mut last = applied.clone();
    if let Some(metadata) = last.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.shift_remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.shift_remove("annotations");
        }
    }
    last.sort_all_objects();
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    // Upstream ends its JSON with a line break.
    annotations.insert(LAST_APPLIED.to_owned(), format!("{last}\n").into());
    let size: usize =
        annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATIONS {
        annotations.shift_remove(LAST_APPLIED);
    }
}

/// Records the owner of a create, update or patch: `new` is the object as it will be stored, `live` what it replaces
/// (`None`: it is being created). The managers are those that `new` carries, so that clients can edit them; without
/// any, and on subresources, those of `live`.
///
/// On an error `new` keeps the managed fields of `live`; the write itself can go on, as it does upstream.
pub fn track_update(
    live: Option<&Value>,
    new: &mut Value,
    ty: TypeRef<'_>,
    writer: Writer<'_>,
) -> Result<(), ApplyError> {
    let of_live = || live.map(|live| Managed::of(live).unwrap_or_default()).unwrap_or_default();
    let mut managed = if !writer.subresource.is_empty() {
        of_live()
    } else if managed::is_reset(new) {
        Managed::default()
    } else {
        match Managed::of(new) {
            Ok(managed) if !managed.0.is_empty() => managed,
            _ => of_live(),
        }
    };
    managed::set_entries(new, None);
    let was_stored = live.is_some_and(|live| live.pointer("/metadata/uid").is_some_and(|uid| uid != ""));
    if managed.0.is_empty() && was_stored {
        // Nobody is recorded, by somebody's wish: it stays so until the first apply.
        return Ok(());
    }
    let unfit = [("live", live), ("new", Some(&*new))].into_iter().find_map(|(side, object)| {
        let object = object?;
        let error = typed::validate(object, ty, true).err()?;
        Some(format!("failed to convert {side} object ({}) to smd typed: {error}", describe(object)))
    });
    if let Some(text) = unfit {
        let entries = live.and_then(|live| live.pointer("/metadata/managedFields")).cloned();
        managed::set_entries(new, entries);
        return Err(ApplyError::Internal(text));
    }
    let live = bare_live(live, new);
    record(&live, new, ty, writer, &mut managed);
    managed.write(new);
    Ok(())
}

/// Gives the writer of an update what it has changed.
fn record(live: &Value, new: &Value, ty: TypeRef<'_>, writer: Writer<'_>, managed: &mut Managed) {
    let ignored = Set::of_fields(writer.reset_fields);
    *managed = reconciled(managed, ty);
    let comparison = compare::compare(live, new, ty).excluding(&ignored);
    lose(managed, None, &comparison.modified.clone().union(&comparison.added));
    lose(managed, None, &comparison.removed);
    // The writer's own set is what it has taken now together with what it had and kept.
    let taken =
        comparison.modified.union(&comparison.added).recursive_difference(&ignored).difference(&stripped());
    if !taken.is_empty() {
        let manager = Manager::new(writer.manager, Operation::Update, writer.api_version, writer.subresource);
        let mut owned = managed.0.remove(&manager).unwrap_or_else(|| Owned {
            set: Set::default(),
            api_version: writer.api_version.to_owned(),
            time: None,
        });
        owned.set.extend(&taken);
        owned.time = Some(writer.now.to_owned());
        managed.0.insert(manager, owned);
    }
    managed.cap();
}

/// Takes fields from everybody but one; who is left with nothing is forgotten.
fn lose(managed: &mut Managed, keeper: Option<&Manager>, fields: &Set) {
    managed.0.retain(|manager, owned| {
        if keeper == Some(manager) {
            return true;
        }
        if !owned.set.intersection(fields).is_empty() {
            owned.set = owned.set.difference(fields);
        }
        !owned.set.is_empty()
    });
}

fn reconciled(managed: &Managed, ty: TypeRef<'_>) -> Managed {
    let reconcile = |(manager, owned): (&Manager, &Owned)| {
        let owned = Owned { set: typed::reconcile(owned.set.clone(), ty), ..owned.clone() };
        (manager.clone(), owned)
    };
    Managed(managed.0.iter().map(reconcile).collect::<BTreeMap<_, _>>())
}

/// Fields that belong to the server, or say which object it is.
fn stripped() -> Set {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
}

fn strip(managed: &mut Managed, manager: &Manager) {
    if let Some(owned) = managed.0.get_mut(manager) {
        owned.set = owned.set.difference(&stripped());
        if owned.set.is_empty() {
            managed.0.remove(manager);
        }
    }
}

/// If `new` differs from `live` in the times of its managed fields only, it takes over those of `live`: a write that
/// changes nothing must not become one by the clock.
pub fn ignore_times(live: &Value, new: &mut Value) {
    let entries =
        |object: &Value| object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned();
    let (Some(old), Some(current)) = (entries(live), entries(new)) else { return };
    let timeless = |entry: &Value| {
        let mut entry = entry.clone();
        if let Some(map) = entry.as_object_mut() {
            map.shift_remove("time");
        }
        entry
    };
    let same_owners = old.len() == current.len()
        && old.iter().zip(&current).all(|(old, current)| timeless(old) == timeless(current));
    if !same_owners {
        return;
    }
    managed::set_entries(new, Some(Value::Array(old)));
    if live != new {
        managed::set_entries(new, Some(Value::Array(current)));
    }
}

#[cfg(test)]
mod tests;

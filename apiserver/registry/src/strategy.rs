//! What a kind may decide for itself. Every method has the answer of the plainest kind (a config map without rules),
//! so that a kind writes only what is its own. Metadata is validated by [`crate::Kind`], never here.

use jiff::Timestamp;
use serde_json::Value;

use crate::{Cause, Scope, equality, fields::Fields};

/// The pure rules of one kind. The API server calls them through the methods of [`crate::Kind`], which add what
/// holds for every kind (metadata validation, generation, status kept or taken).
pub trait Strategy: Sync {
    /// Fills in defaults; also runs on objects read from storage, so it must be idempotent.
    fn default(&self, _object: &mut Value) {}

    /// After the server has set name, uid and creationTimestamp; drops what a client may not set.
    fn prepare_for_create(&self, _object: &mut Value) {}

    /// Keeps what this endpoint does not own. Status is already the old one, and the generation is counted afterwards.
    fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {}

    /// Everything but status (and, as upstream, labels, annotations and the like) is already the old one.
    fn prepare_for_status_update(&self, _new: &mut Value, _old: &Value) {}

    /// Whether a status that comes with a new object is taken: a kubelet registers its Node whole.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    fn validate_create(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<Cause> {
        Vec::new()
    }

    fn validate_status_update(&self, _new: &Value, _old: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// As [`Strategy::prepare_for_update`], for the subresources that only one kind has.
    fn prepare_for_subresource_update(&self, _scope: Scope, _new: &mut Value, _old: &Value) {}

    fn validate_subresource_update(&self, _scope: Scope, _new: &Value, _old: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// Whether an update of a kind that counts generations counts: by default when spec means something else.
    fn generation_counts(&self, new: &Value, old: &Value) -> bool {
        !equality::equal(new.at("spec"), old.at("spec"))
    }

    /// Warnings for the `Warning` header; `old` is None on create.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Beyond `metadata.name` and `metadata.namespace`; the same names in the same order for every object.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Cells of the Table in the order of [`crate::Kind::columns`].
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        crate::columns::name_and_age(object, now)
    }

    /// `conditions` of a Table row: clients grey out what has completed.
    fn row_conditions(&self, _object: &Value) -> Option<Value> {
        None
    }

    /// Some(seconds): deletion is graceful, 0 meaning at once. None: the kind knows no grace.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Runs when the deletionTimestamp is first set (a namespace turns Terminating).
    fn mark_deleting(&self, _object: &mut Value) {}

    /// Finalizers beyond `metadata.finalizers` that keep a deleted object (a namespace's `spec.finalizers`).
    fn held_by_spec(&self, _object: &Value) -> bool {
        false
    }

    /// Warnings when it is deleted without a propagation policy.
    fn warnings_on_delete(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }
}

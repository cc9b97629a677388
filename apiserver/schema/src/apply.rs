//! Server-side apply.
use crate::types::TypeRef;
use serde_json::Value;

/// Who writes, as what.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The fieldManager; for updates without one, the user agent up to the first slash.
    pub manager: &'a str,
    /// `apps/v1`: the version in which the object was sent.
    pub api_version: &'a str,
    /// `status`, `scale`, or empty.
    pub subresource: &'a str,
    /// Paths that this endpoint resets and nobody can own through it: `&[&["status"]]` for the main resource of a
    /// kind with a status subresource, `&[&["spec"], &["metadata"]]` like upstream's strategy for the subresource.
    pub reset_fields: &'a [&'a [&'a str]],
    /// RFC 3339 in seconds, UTC.
    pub now: &'a str,
}

/// One field owned by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `"kubectl" using apps/v1`, as upstream prints it.
    pub manager: String,
    /// `.spec.replicas`
    pub field: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// 409; Display is upstream's `Apply failed with 1 conflict: …`; causes: reason FieldManagerConflict.
    #[error("{}", display_conflicts(.0))]
    Conflicts(Vec<Conflict>),
    /// 400
    #[error("{0}")]
    BadRequest(String),
    /// 500
    #[error("{0}")]
    Internal(String),
}

fn display_conflicts(_c: &[Conflict]) -> String {
    unimplemented!()
}

/// Merges an applied configuration into the live object (`None`: it is being created) and records ownership in
/// `metadata.managedFields` of the result. The result equals `live` if nothing changes.
pub fn apply(
    _live: Option<&Value>,
    _applied: &Value,
    _ty: TypeRef<'_>,
    _writer: Writer<'_>,
    _force: bool,
) -> Result<Value, ApplyError> {
    unimplemented!()
}

/// Records ownership of a create, update or patch in `new`'s `metadata.managedFields`.
pub fn track_update(
    _live: Option<&Value>,
    _new: &mut Value,
    _ty: TypeRef<'_>,
    _writer: Writer<'_>,
) -> Result<(), ApplyError> {
    unimplemented!()
}

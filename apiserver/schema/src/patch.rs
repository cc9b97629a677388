//! The three patches.
use crate::types::TypeRef;
use serde_json::Value;

/// Why a patch was not applied. [`PatchError::code`] is the HTTP code upstream answers with.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// 400 BadRequest
    #[error("{0}")]
    Malformed(String),
    /// 413 RequestEntityTooLarge
    #[error("The allowed maximum operations in a JSON patch is {allowed}, got {got}")]
    TooManyOperations { allowed: usize, got: usize },
    /// 422: the patch is well-formed but does not fit the object (a missing path, a failed test).
    #[error("{0}")]
    NotApplicable(String),
    /// 500
    #[error("{0}")]
    Internal(String),
}

impl PatchError {
    pub fn code(&self) -> u16 {
        match self {
            PatchError::Malformed(_) => 400,
            PatchError::TooManyOperations { .. } => 413,
            PatchError::NotApplicable(_) => 422,
            PatchError::Internal(_) => 500,
        }
    }
}

/// RFC 6902.
pub fn json(_original: &Value, _patch: &[u8]) -> Result<Value, PatchError> {
    unimplemented!()
}

/// RFC 7396.
pub fn merge(_original: &Value, _patch: &[u8]) -> Result<Value, PatchError> {
    unimplemented!()
}

/// Strategic merge patch.
pub fn strategic(_original: &Value, _patch: &[u8], _ty: TypeRef<'_>) -> Result<Value, PatchError> {
    unimplemented!()
}

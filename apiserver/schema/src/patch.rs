//! The three patches of the API: JSON patch (RFC 6902), JSON merge patch (RFC 7396) and strategic merge patch.
//!
//! They take the original as a value and the patch as bytes, and return the patched value; they do not decode it into
//! its type: the server does that next, which is where unknown fields are found. Errors say which HTTP code upstream
//! answers with. The original is never half patched.

mod json;
mod strategic;

pub use json::json;
pub use strategic::strategic;

use serde_json::Value;

/// Why a patch was not applied. [`PatchError::code`] is the HTTP code that upstream answers with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// 400 BadRequest: not a patch.
    #[error("{0}")]
    Malformed(String),
    /// 413 RequestEntityTooLarge
    #[error("The allowed maximum operations in a JSON patch is {allowed}, got {got}")]
    TooManyOperations { allowed: usize, got: usize },
    /// 422: the patch is well formed but does not fit the object (a missing path, a failed test).
    #[error("{0}")]
    NotApplicable(String),
    /// 500: what upstream does not expect of a patch.
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

/// JSON merge patch. The patch of an object is an object.
pub fn merge(original: &Value, patch: &[u8]) -> Result<Value, PatchError> {
    let patch: Value = serde_json::from_slice(patch)
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    if !patch.is_object() {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    }
    let mut patched = original.clone();
    json_patch::merge(&mut patched, &patch);
    Ok(patched)
}

#[cfg(test)]
mod tests;

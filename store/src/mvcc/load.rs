//! Rebuilding the index from a tree at start.

use std::sync::Arc;

use super::backend::{Backend, BackendError};
use super::index::Index;
use super::record::Revision;
use super::tree::scan_tree;
use super::values::{APPLIED_KEY, decode_applied};
use super::{COMPACTED_KEY, UNFINISHED_KEY};
use crate::lease::Leases;

/// What a tree says.
pub struct Loaded {
    pub index: Index,
    /// Which keys have leases; the leases themselves are metadata.
    pub leases: Leases,
    pub in_use: u64,
    /// Index and term of the last entry in it; index 0 for an empty tree.
    pub applied: (u64, u64),
    /// It is a copy that was not finished.
    pub unfinished: bool,
}

/// Reads the whole tree: this also finds damage before anything is served from it.
///
/// # Errors
/// The tree's: it has to be wiped and rebuilt.
pub fn load(backend: &Arc<dyn Backend>) -> Result<Loaded, BackendError> {
    let mut index = Index::new();
    let mut leases = Leases::default();
    let mut in_use = 0;
    let first = Revision { main: 0, sub: 0 };
    let end = Revision { main: i64::MAX, sub: 0 };
    scan_tree(&**backend, first, end, &mut |revision, record| {
        in_use += record.size();
        index.restore(
            &record.kv.key,
            revision,
            record.tombstone,
            record.kv.create_revision,
            record.kv.version,
        );
        leases.attach(&record.kv.key, record.kv.lease);
        true
    })?;
    let number = |key: &[u8]| -> Result<Option<i64>, BackendError> {
        Ok(backend.get(key)?.and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes))
    };
    if let Some(compacted) = number(COMPACTED_KEY)? {
        index.compacted = compacted;
        // Everything at the newest revision may have been deleted and compacted away.
        index.revision = index.revision.max(compacted);
    }
    let applied = match backend.get(APPLIED_KEY)? {
        Some(bytes) => decode_applied(&bytes).ok_or(BackendError::Damaged(0))?,
        None => (0, 0),
    };
    let unfinished = backend.get(UNFINISHED_KEY)?.is_some();
    Ok(Loaded { index, leases, in_use, applied, unfinished })
}

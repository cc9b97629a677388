//! Removing what compaction made unreadable, in small steps, so that neither reads nor writes wait for it.

use std::sync::atomic::Ordering;

use super::record::Revision;
use super::{BackendError, Store};

/// Keys for which the index is held at a time.
const STEP: usize = 512;
/// Revisions that are collected before they are removed from the tree, so that a place where several lie is written once.
const COLLECT: usize = 1 << 18;
/// Revisions that are removed from the tree in one batch.
const BATCH: usize = 1024;

impl Store {
    /// Removes from index and tree everything that a compaction at `revision` covers, but deletions only up to revision
    /// `deletions`. The tree must have everything up to the entry that compacted. Returns how many revisions went.
    ///
    /// # Errors
    /// The tree's.
    pub fn remove_compacted(&self, revision: i64, deletions: i64) -> Result<usize, BackendError> {
        let (mut total, mut after, mut removed) = (0, None, Vec::new());
        loop {
            let limits = (revision, deletions);
            after = self.index.write().compact_step(limits, after.as_deref(), STEP, &mut removed);
            if removed.len() >= COLLECT || after.is_none() {
                total += removed.len();
                self.remove(&mut removed)?;
            }
            if after.is_none() {
                return Ok(total);
            }
        }
    }

    /// Empties `revisions`.
    fn remove(&self, revisions: &mut Vec<Revision>) -> Result<(), BackendError> {
        revisions.sort_unstable();
        for some in revisions.chunks(BATCH) {
            let freed = self.values.remove_records(some)?;
            // Another state may have been put in place meanwhile, which has less.
            let _ = self.in_use.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |in_use| {
                Some(in_use.saturating_sub(freed))
            });
        }
        revisions.clear();
        Ok(())
    }
}

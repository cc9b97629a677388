//! Removing what compaction made unreadable, in small steps, so that neither reads nor writes wait for it.

use std::sync::atomic::Ordering;

use super::backend::Change;
use super::record::Revision;
use super::{BackendError, Store};

/// Keys for which the index is held at a time.
const STEP: usize = 512;

impl Store {
    /// Removes from index and tree everything that a compaction at `revision` covers, but deletions only up to revision
    /// `deletions`. The tree must have everything up to the entry that compacted. Returns how many revisions went.
    ///
    /// # Errors
    /// The tree's.
    pub fn remove_compacted(&self, revision: i64, deletions: i64) -> Result<usize, BackendError> {
        let (mut total, mut after) = (0, None);
        loop {
            let mut removed = Vec::new();
            let limits = (revision, deletions);
            after = self.index.write().compact_step(limits, after.as_deref(), STEP, &mut removed);
            total += removed.len();
            if !removed.is_empty() {
                self.remove(&removed)?;
            }
            if after.is_none() {
                return Ok(total);
            }
        }
    }

    fn remove(&self, revisions: &[Revision]) -> Result<(), BackendError> {
        let mut batch: Vec<Change> = Vec::new();
        let mut freed = 0;
        for revision in revisions {
            let Some(record) = self.values.get(*revision)? else { continue };
            freed += record.size();
            record.encode(*revision, |key, _| batch.push((key.to_vec(), None)));
        }
        fail::fail_point!("compaction_before_write");
        self.values.remove(batch)?;
        self.in_use.fetch_sub(freed, Ordering::Relaxed);
        Ok(())
    }
}

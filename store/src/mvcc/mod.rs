//! The multi-version store: an index of keys in memory, values by revision in a tree behind an overlay.
//!
//! [`Store`] is read by any thread; only [`WriteTxn`], which `apply` alone begins, changes it. A reader holds the index
//! for a bounded number of keys at a time and reads at a fixed revision, so it sees one state however long it takes.

mod backend;
mod block;
mod compaction;
#[cfg(test)]
mod fuzz;
mod hash;
mod index;
mod load;
mod overlay;
mod range;
mod rebuild;
mod record;
mod tree;
mod txn;
mod values;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};

pub use backend::{Backend, BackendError, Change, MemoryBackend, SledBackend};
pub use block::Packer;
pub use hash::Hash;
pub use index::{Index, KeyRange, RangeEnd};
pub use load::{Loaded, load};
pub use range::View;
pub use rebuild::{Rebuild, Step};
pub use record::{KEY_LENGTH, Record, Revision};
pub use tree::scan_tree;
pub use txn::{Compares, is_read_only, is_serializable};
pub use values::{APPLIED_KEY, Values, encode_applied};
pub use write::{KeyChange, WriteTxn};

/// Where the compacted revision lies in the tree.
pub const COMPACTED_KEY: &[u8] = b"m/compacted";

/// What a tree has while another one is being copied to it.
pub const UNFINISHED_KEY: &[u8] = b"m/unfinished";

/// What a read or write of the multi-version store refuses.
#[derive(Debug, thiserror::Error)]
pub enum MvccError {
    #[error("required revision has been compacted")]
    Compacted,
    #[error("required revision is a future revision")]
    FutureRevision,
    #[error("key not found")]
    KeyNotFound,
    #[error("lease not found")]
    LeaseNotFound,
    #[error("cannot read a value")]
    Backend(#[from] BackendError),
}

pub struct Store {
    index: RwLock<Index>,
    pub values: Arc<Values>,
    /// A copy of the index's, readable without its lock.
    revision: AtomicI64,
    compacted: AtomicI64,
    /// Bytes of all records that no compaction has removed.
    in_use: AtomicU64,
}

impl Store {
    pub fn new(index: Index, values: Arc<Values>, in_use: u64) -> Self {
        Self {
            revision: AtomicI64::new(index.revision),
            compacted: AtomicI64::new(index.compacted),
            index: RwLock::new(index),
            values,
            in_use: AtomicU64::new(in_use),
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::Acquire)
    }

    pub fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    pub fn key_count(&self) -> usize {
        self.index.read().key_count()
    }

    /// One state of the store for as long as the view lives. It blocks writers: for short work only.
    pub fn view(&self) -> View<RwLockReadGuard<'_, Index>> {
        View::new(self.index.read(), self.values.clone())
    }

    /// Begins the transaction of one applied entry.
    pub fn write(&self) -> WriteTxn<'_> {
        WriteTxn::new(self, self.index.write())
    }

    /// Puts another state in place of this one.
    pub fn replace(&self, loaded: Loaded, backend: Arc<dyn Backend>) {
        let mut index = self.index.write();
        // First, or whoever reads history without the index would take what it no longer finds for what never was.
        self.compacted.store(loaded.index.compacted, Ordering::Release);
        self.values.replace(backend, loaded.applied.0);
        self.revision.store(loaded.index.revision, Ordering::Release);
        self.in_use.store(loaded.in_use, Ordering::Relaxed);
        *index = loaded.index;
    }
}

//! Plain keys and values under the store's prefix, for state that is no API object (allocators of
//! service addresses and ports, identity leases).

use bytes::Bytes;

use crate::client::StoreError;

/// A plain value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    pub key: String,
    pub value: Bytes,
    pub mod_revision: u64,
}

/// Why a compare-and-swap did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The key is at another revision; what it holds now (`None`: it does not exist).
    #[error("the key was changed by another writer")]
    Conflict(Option<RawEntry>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Access to plain keys. Keys are relative to the prefix (`ranges/serviceips` is `/registry/ranges/serviceips`).
#[derive(Clone)]
pub struct RawStore {}

impl RawStore {
    /// A linearizable read.
    pub async fn get(&self, _key: &str) -> Result<Option<RawEntry>, StoreError> {
        todo!()
    }

    /// All entries below a key prefix, linearizable, in key order.
    pub async fn list(&self, _prefix: &str) -> Result<Vec<RawEntry>, StoreError> {
        todo!()
    }

    /// Writes unconditionally; returns the new revision. With `ttl_seconds` the key is removed by itself.
    pub async fn put(&self, _key: &str, _value: Bytes, _ttl_seconds: Option<u64>) -> Result<u64, StoreError> {
        todo!()
    }

    /// Writes if the key is at `expected` (0: does not exist); returns the new revision.
    pub async fn swap(&self, _key: &str, _expected: u64, _value: Bytes) -> Result<u64, SwapError> {
        todo!()
    }

    /// Deletes if the key is at `expected`.
    pub async fn remove(&self, _key: &str, _expected: u64) -> Result<(), SwapError> {
        todo!()
    }
}

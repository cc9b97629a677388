//! Plain keys and values under the store's prefix, for state that is no API object (allocators of
//! service addresses and ports, leases of API servers).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::RangeRequest;
use keelson_proto::etcd::mvccpb::KeyValue;

use crate::client::{StoreError, Swapped, Write, prefix_end};
use crate::storage::Inner;

/// A plain value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// Relative to the store's prefix.
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
pub struct RawStore {
    inner: Arc<Inner>,
}

impl RawStore {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{}", self.inner.prefix, key.trim_start_matches('/'))
    }

    fn entry(&self, entry: KeyValue) -> RawEntry {
        let key = String::from_utf8_lossy(&entry.key);
        RawEntry {
            key: key.strip_prefix(&self.inner.prefix).unwrap_or(&key).to_owned(),
            // A copy, so that a kept value does not hold on to the whole answer.
            value: Bytes::copy_from_slice(&entry.value),
            mod_revision: entry.mod_revision.max(0) as u64,
        }
    }

    /// A linearizable read.
    pub async fn get(&self, key: &str) -> Result<Option<RawEntry>, StoreError> {
        let (entry, _) = self.inner.client.get(&self.full(key)).await?;
        Ok(entry.map(|entry| self.entry(entry)))
    }

    /// All entries below a key prefix, linearizable, in key order.
    pub async fn list(&self, prefix: &str) -> Result<Vec<RawEntry>, StoreError> {
        let prefix = self.full(prefix);
        let request = RangeRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: prefix_end(&prefix),
            ..Default::default()
        };
        let response = self.inner.client.range(request).await?;
        Ok(response.kvs.into_iter().map(|entry| self.entry(entry)).collect())
    }

    /// Writes unconditionally; returns the new revision. With `ttl_seconds` the key is removed by itself.
    pub async fn put(&self, key: &str, value: Bytes, ttl_seconds: Option<u64>) -> Result<u64, StoreError> {
        let ttl = ttl_seconds.map(Duration::from_secs);
        let lease = self.inner.leases.lease(&self.inner.client, ttl).await?;
        let result = self.inner.client.put(&self.full(key), value, lease).await;
        if matches!(result, Err(StoreError::LeaseNotFound)) {
            self.inner.leases.forget(lease).await;
        }
        result
    }

    /// Writes if the key is at `expected` (0: does not exist); returns the new revision.
    pub async fn swap(&self, key: &str, expected: u64, value: Bytes) -> Result<u64, SwapError> {
        self.write(key, expected, Write::Put { value, lease: 0 }).await
    }

    /// Deletes if the key is at `expected`.
    pub async fn remove(&self, key: &str, expected: u64) -> Result<(), SwapError> {
        self.write(key, expected, Write::Delete).await.map(drop)
    }

    async fn write(&self, key: &str, expected: u64, write: Write) -> Result<u64, SwapError> {
        match self.inner.client.swap(&self.full(key), expected, write).await? {
            Swapped::Done(revision) => Ok(revision),
            Swapped::Conflict(found) => Err(SwapError::Conflict(found.map(|entry| self.entry(entry)))),
        }
    }
}

//! The process' one storage: connection, feed and the table of resources.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::client::{StoreConfig, StoreError};
use crate::metrics::Metrics;
use crate::raw::RawStore;
use crate::resource::{Resource, ResourceConfig};

/// Cheap to clone; the feed stops when the token given to [`Storage::connect`] is cancelled.
#[derive(Clone)]
pub struct Storage {}

impl Storage {
    /// Prepares the connection and starts the feed, which keeps trying while the store cannot be
    /// reached. Fails only for a configuration that cannot work. Needs a tokio runtime.
    pub fn connect(_config: StoreConfig, _shutdown: CancellationToken) -> Result<Self, StoreError> {
        todo!()
    }

    /// Adds a resource and starts to fill its cache. Called again with the same prefix it replaces
    /// nothing and returns the resource that is there.
    pub fn resource(&self, _config: ResourceConfig) -> Arc<Resource> {
        todo!()
    }

    /// Forgets a resource (a deleted CustomResourceDefinition): its watches end, its memory is freed.
    pub fn remove(&self, _prefix: &str) {
        todo!()
    }

    /// True when the caches of all resources are filled.
    pub fn ready(&self) -> bool {
        todo!()
    }

    /// Waits until the caches of all resources that exist now are filled.
    pub async fn wait_ready(&self) {
        todo!()
    }

    /// One linearizable read, for the `etcd` check of readyz and livez.
    pub async fn ping(&self) -> Result<(), StoreError> {
        todo!()
    }

    /// The store's current revision, linearizable. Concurrent callers share one request.
    pub async fn current_revision(&self) -> Result<u64, StoreError> {
        todo!()
    }

    /// Plain keys below the same prefix.
    pub fn raw(&self) -> RawStore {
        todo!()
    }

    pub fn metrics(&self) -> &Metrics {
        todo!()
    }
}

//! The process' one storage: connection, feed and the table of resources.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::{Phase, ResourceCache};
use crate::client::{Client, StoreConfig, StoreError};
use crate::compaction;
use crate::feed::Feed;
use crate::lease::Leases;
use crate::metrics::Metrics;
use crate::raw::RawStore;
use crate::resource::{Resource, ResourceConfig};

/// Cheap to clone; the feed stops when the token given to [`Storage::connect`] is cancelled.
#[derive(Clone)]
pub struct Storage {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) feed: Arc<Feed>,
    pub(crate) leases: Leases,
    pub(crate) metrics: Metrics,
    /// Ends with a slash.
    pub(crate) prefix: String,
    window_bytes: usize,
    revisions: Revisions,
}

impl Storage {
    /// Prepares the connection and starts the feed, which keeps trying while the store cannot be
    /// reached. Fails only for a configuration that cannot work. Needs a tokio runtime.
    pub fn connect(config: StoreConfig, shutdown: CancellationToken) -> Result<Self, StoreError> {
        let client = Client::new(&config)?;
        let prefix = format!("/{}/", config.prefix.trim_matches('/'));
        if prefix == "//" {
            return Err(StoreError::Config("the prefix is empty".into()));
        }
        let metrics = Metrics::default();
        let feed = Feed::new(client.clone(), prefix.clone(), metrics.clone(), shutdown.clone());
        tokio::spawn(feed.clone().run());
        if let Some(interval) = config.compaction_interval {
            tokio::spawn(compaction::run(client.clone(), interval, shutdown));
        }
        let inner = Inner {
            client,
            feed,
            leases: Leases::default(),
            metrics,
            prefix,
            window_bytes: config.window_bytes,
            revisions: Revisions::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Adds a resource and starts to fill its cache. Called again with the same prefix it replaces
    /// nothing and returns the resource that is there (the first one's configuration). Needs a tokio runtime.
    pub fn resource(&self, config: ResourceConfig) -> Arc<Resource> {
        let prefix = self.full_prefix(&config.prefix);
        let label: Arc<str> = config.name.as_str().into();
        let cache = self.inner.feed.cache(&prefix, || {
            let metrics = self.inner.metrics.of_cache(&label);
            ResourceCache::new(config, self.inner.window_bytes, metrics)
        });
        Arc::new(Resource::new(self.inner.clone(), cache, prefix, label))
    }

    /// Forgets a resource (a deleted CustomResourceDefinition): its watches end, its memory is freed.
    /// The stored objects stay.
    pub fn remove(&self, prefix: &str) {
        if let Some(cache) = self.inner.feed.remove(&self.full_prefix(prefix)) {
            self.inner.metrics.remove(&cache.config.name.as_str().into());
        }
    }

    fn full_prefix(&self, prefix: &str) -> String {
        format!("{}{}/", self.inner.prefix, prefix.trim_matches('/'))
    }

    /// True when the caches of all resources are filled.
    pub fn ready(&self) -> bool {
        self.inner.feed.caches().iter().all(|cache| cache.ready())
    }

    /// Waits until the caches of all resources that exist now are filled.
    pub async fn wait_ready(&self) {
        for cache in self.inner.feed.caches() {
            // An error means that the resource is gone.
            let _ = cache.signal().wait_for(|signal| signal.phase != Phase::Filling).await;
        }
    }

    /// One linearizable read, for the `etcd` check of readyz and livez.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.current_revision().await.map(drop)
    }

    /// The store's current revision, linearizable. Concurrent callers share one request.
    pub async fn current_revision(&self) -> Result<u64, StoreError> {
        self.inner.current_revision().await
    }

    /// The version up to which the caches have been fed.
    pub fn cached_revision(&self) -> u64 {
        self.inner.feed.reached()
    }

    /// Plain keys below the same prefix.
    pub fn raw(&self) -> RawStore {
        RawStore::new(self.inner.clone())
    }

    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }
}

impl Inner {
    pub(crate) async fn current_revision(self: &Arc<Self>) -> Result<u64, StoreError> {
        let batch = self.revisions.join(|| {
            let inner = self.clone();
            // A task of its own: a caller that is not polled any more must not hold up the others.
            let task = tokio::spawn(async move {
                let _turn = inner.revisions.turn.lock().await;
                // Who comes from here on may have seen a write that this request does not cover.
                inner.revisions.next.lock().take();
                let started = Instant::now();
                let result = inner.client.revision(&inner.prefix).await;
                inner.measure("getCurrentResourceVersion", &"".into(), started, result.is_err());
                result
            });
            task.map(|joined| joined.unwrap_or_else(|error| Err(StoreError::Other(error.to_string()))))
                .boxed()
        });
        batch.await
    }

    pub(crate) fn measure(&self, operation: &'static str, resource: &Arc<str>, since: Instant, failed: bool) {
        let took: Duration = since.elapsed();
        self.metrics.request(operation, resource, took, failed);
    }
}

type Batch = Shared<BoxFuture<'static, Result<u64, StoreError>>>;

/// Shares reads of the store's revision: one in flight, one waiting that serves all who arrived before
/// it starts.
#[derive(Default)]
struct Revisions {
    turn: tokio::sync::Mutex<()>,
    next: Mutex<Option<Batch>>,
}

impl Revisions {
    fn join(&self, make: impl FnOnce() -> BoxFuture<'static, Result<u64, StoreError>>) -> Batch {
        self.next.lock().get_or_insert_with(|| make().shared()).clone()
    }
}

//! One resource: the operations of the API's verbs.
//!
//! Reads come from the cache when it is as fresh as asked, else from the store. Writes are
//! compare-and-swap transactions on the one key; the cache learns of them through the feed alone.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::mvccpb::KeyValue;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::cache::{Phase, ResourceCache};
use crate::client::{StoreError, Swapped, Write};
use crate::codec::{self, Encoded};
use crate::error::{Error, UpdateError};
use crate::feed::FRESH_TIMEOUT;
use crate::list::List;
use crate::object::{Key, Object, TypeMeta};
use crate::options::{ListOptions, Preconditions, ReadVersion, Scope, WatchOptions, WatchStart};
use crate::storage::Inner;
use crate::subscription::Subscription;
use crate::watch::Watch;

/// How often an update is tried against other writers.
const MAX_ROUNDS: usize = 100;

/// Selectable fields of an object beyond `metadata.name` and `metadata.namespace`.
pub type FieldsOf = Arc<dyn Fn(&Value) -> Vec<(Cow<'static, str>, String)> + Send + Sync>;

/// What storage must know of a resource.
#[derive(Clone)]
pub struct ResourceConfig {
    /// Where the objects live, relative to the store's prefix, as upstream has it: `pods`, `minions`,
    /// `services/specs`, `apiextensions.k8s.io/customresourcedefinitions`.
    pub prefix: String,
    /// `pods` or `deployments.apps`, for metrics.
    pub name: String,
    /// The type that objects are stored with; written if an object lacks it.
    pub type_meta: TypeMeta,
    pub namespaced: bool,
    /// `None`: only metadata.name and metadata.namespace.
    pub fields: Option<FieldsOf>,
}

/// The present object, as the closures of update and delete see it.
#[derive(Clone, Debug)]
pub struct Current {
    pub object: Arc<Object>,
    /// The decoded object, with kind, apiVersion and metadata.resourceVersion.
    pub value: Value,
}

/// What an update's closure decided.
#[derive(Debug)]
pub enum Change {
    /// Write this object (metadata.resourceVersion in it is ignored). If it equals the present one,
    /// nothing is written and the version stays.
    Write(Value),
    /// Write this object, to be removed by the store after the time.
    WriteFor(Value, Duration),
    /// Leave it as it is.
    Keep,
    /// Delete it (the last finalizer is gone).
    Delete,
}

/// What an update did.
#[derive(Clone, Debug)]
pub enum Updated {
    /// The new version.
    Written(Arc<Object>),
    /// There was nothing to change.
    Unchanged(Arc<Object>),
    /// The last state, with the version of the deletion.
    Deleted(Arc<Object>),
}

impl Updated {
    pub fn object(&self) -> &Arc<Object> {
        match self {
            Self::Written(object) | Self::Unchanged(object) | Self::Deleted(object) => object,
        }
    }
}

/// One resource of the storage.
pub struct Resource {
    pub(crate) inner: Arc<Inner>,
    pub(crate) cache: Arc<ResourceCache>,
    /// The full key prefix; ends with a slash.
    pub(crate) prefix: String,
    pub(crate) label: Arc<str>,
}

/// How a compare-and-swap went.
enum Attempt {
    Done(Updated),
    /// Somebody else wrote; what is there now.
    Behind(Option<Current>),
}

impl Resource {
    pub(crate) fn new(inner: Arc<Inner>, cache: Arc<ResourceCache>, prefix: String, label: Arc<str>) -> Self {
        Self { inner, cache, prefix, label }
    }

    pub fn config(&self) -> &ResourceConfig {
        &self.cache.config
    }

    /// True when the cache is filled; until then reads that need it wait and then go to the store or
    /// fail with [`Error::NotReady`].
    pub fn ready(&self) -> bool {
        self.cache.ready()
    }

    /// Creates an object; its name and namespace must be those of the key. With `ttl` the store removes
    /// it by itself. Fails with [`Error::AlreadyExists`], which carries the present object.
    pub async fn create(
        &self,
        key: Key<'_>,
        value: Value,
        ttl: Option<Duration>,
    ) -> Result<Arc<Object>, Error> {
        let path = self.path(key)?;
        let encoded = self.encode(&value)?;
        match self.put("create", &path, 0, encoded.stored(), ttl).await? {
            Swapped::Done(revision) => Ok(Arc::new(self.assemble(&path, &value, &encoded, revision))),
            Swapped::Conflict(Some(found)) => {
                let current = self.decode(&path, &found)?.object;
                Err(Error::AlreadyExists { key: self.full(&path), current })
            }
            // The store compared and read in one transaction.
            Swapped::Conflict(None) => Err(Error::Contention { key: self.full(&path) }),
        }
    }

    /// Reads one object. Fails with [`Error::NotFound`].
    pub async fn get(&self, key: Key<'_>, version: ReadVersion) -> Result<Arc<Object>, Error> {
        let path = self.path(key)?;
        if self.freshen(version).await? {
            return self.get_cached(&path);
        }
        match self.read_store(&path).await? {
            Some(current) => Ok(current.object),
            None => Err(Error::NotFound { key: self.full(&path) }),
        }
    }

    /// What the cache has now, without waiting for anything. For the server's own look-ups.
    pub fn cached(&self, key: Key<'_>) -> Option<Arc<Object>> {
        let path = self.path(key).ok()?;
        self.cache.read().get(&path).ok().flatten().cloned()
    }

    /// Everything (of one namespace, unless empty) that the cache has now, in key order.
    pub fn cached_list(&self, namespace: &str) -> Vec<Arc<Object>> {
        let scope = if namespace.is_empty() { Scope::All } else { Scope::Namespace(namespace.to_owned()) };
        self.cache.read().range(&scope, "").cloned().collect()
    }

    /// Number of objects in the cache.
    pub fn count(&self) -> usize {
        self.cache.read().len()
    }

    /// Lists a scope; see [`ListOptions`]. Objects come in key order.
    pub async fn list(&self, options: ListOptions) -> Result<List, Error> {
        crate::list::list(self, options).await
    }

    /// Starts a watch; see [`WatchOptions`]. Fails with [`Error::Expired`] if the start has left the
    /// window.
    pub async fn watch(&self, options: WatchOptions) -> Result<Watch, Error> {
        let version = match options.start {
            WatchStart::After(_) => ReadVersion::Any,
            WatchStart::Now => ReadVersion::Latest,
            WatchStart::State { version, .. } => version,
        };
        self.wait_filled().await?;
        if !self.freshen(version).await? {
            // The cache is behind the store and a watch has no other source.
            return Err(Error::NotReady);
        }
        Watch::start(self.cache.clone(), self.inner.feed.progress(), options)
    }

    /// Read, decide, compare-and-swap, again on conflict. The first round takes the cached object, so
    /// that `decide` may be called on a state that is a moment old; before an error or "unchanged" from
    /// such a round counts, it is asked again with the store's state. `decide` must be repeatable.
    pub async fn update<E>(
        &self,
        key: Key<'_>,
        preconditions: &Preconditions,
        mut decide: impl FnMut(&Current) -> Result<Change, E>,
    ) -> Result<Updated, UpdateError<E>> {
        let path = self.path(key)?;
        let not_found = || Error::NotFound { key: self.full(&path) };
        let mut current = match self.cached_current(&path) {
            Some(current) => Sourced { current, fresh: false },
            None => Sourced { current: self.read_store(&path).await?.ok_or_else(not_found)?, fresh: true },
        };
        for _ in 0..MAX_ROUNDS {
            let decided = preconditions
                .check(&self.prefix, &current.current.object)
                .map_err(UpdateError::Storage)
                .and_then(|()| decide(&current.current).map_err(UpdateError::Caller));
            let change = match decided {
                Ok(change) => change,
                Err(error) if current.fresh => return Err(error),
                Err(error) => {
                    let stored = self.read_store(&path).await?.ok_or_else(not_found)?;
                    if stored.object.resource_version() == current.current.object.resource_version() {
                        return Err(error);
                    }
                    current = Sourced { current: stored, fresh: true };
                    continue;
                }
            };
            match self.attempt(&path, &current.current, change, current.fresh).await? {
                Attempt::Done(updated) => return Ok(updated),
                Attempt::Behind(Some(stored)) => current = Sourced { current: stored, fresh: true },
                Attempt::Behind(None) => return Err(not_found().into()),
            }
        }
        Err(Error::Contention { key: self.full(&path) }.into())
    }

    /// Deletes; `check` may refuse (and is asked again on conflict). Returns the last state with the
    /// version of the deletion.
    pub async fn delete<E>(
        &self,
        key: Key<'_>,
        preconditions: &Preconditions,
        mut check: impl FnMut(&Current) -> Result<(), E>,
    ) -> Result<Arc<Object>, UpdateError<E>> {
        let updated =
            self.update(key, preconditions, |current| check(current).map(|()| Change::Delete)).await?;
        Ok(updated.object().clone())
    }

    /// The present state of one object straight from the store (`fresh`) or, if it is there, from the
    /// cache: the first half of a caller's own update loop, for decisions that must await something.
    pub async fn current(&self, key: Key<'_>, fresh: bool) -> Result<Current, Error> {
        let path = self.path(key)?;
        if !fresh && let Some(current) = self.cached_current(&path) {
            return Ok(current);
        }
        self.read_store(&path).await?.ok_or_else(|| Error::NotFound { key: self.full(&path) })
    }

    /// One compare-and-swap against what [`Resource::current`] returned: the second half of a caller's
    /// own loop. `Ok(None)`: another writer was faster; take a fresh current and decide again.
    pub async fn swap(&self, current: &Current, change: Change) -> Result<Option<Updated>, Error> {
        let path = current.object.key.clone();
        match self.attempt(&path, current, change, false).await? {
            Attempt::Done(updated) => Ok(Some(updated)),
            Attempt::Behind(_) => Ok(None),
        }
    }

    /// The server's own view: state, then changes.
    pub fn subscribe(&self) -> Subscription {
        Subscription::new(self.cache.clone())
    }

    pub(crate) fn path(&self, key: Key<'_>) -> Result<String, Error> {
        key.path(self.cache.config.namespaced)
    }

    pub(crate) fn full(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    fn encode(&self, value: &Value) -> Result<Encoded, Error> {
        codec::encode(&self.cache.type_meta, value)
    }

    fn assemble(&self, path: &str, value: &Value, encoded: &Encoded, revision: u64) -> Object {
        codec::assemble(&self.cache.config, path, value, encoded, revision)
    }

    pub(crate) fn decode(&self, path: &str, entry: &KeyValue) -> Result<Current, Error> {
        let revision = entry.mod_revision.max(0) as u64;
        let (object, value) =
            codec::decode(&self.cache.config, &self.cache.type_meta, path, &entry.value, revision)?;
        Ok(Current { object: Arc::new(object), value })
    }

    /// Waits until the cache is as fresh as asked; false if the store must be asked instead.
    pub(crate) async fn freshen(&self, version: ReadVersion) -> Result<bool, Error> {
        match version {
            ReadVersion::Any => Ok(self.wait_filled().await.is_ok()),
            ReadVersion::Latest => {
                if !self.cache.ready() {
                    return Ok(false);
                }
                let revision = self.inner.current_revision().await?;
                let feed = &self.inner.feed;
                let fresh = feed.wait_for(revision, feed.patience()).await && self.cache.ready();
                self.inner.metrics.consistent_read(&self.label, fresh);
                Ok(fresh)
            }
            ReadVersion::AtLeast(requested) => {
                let filled = self.wait_filled().await.is_ok();
                if !self.inner.feed.wait_for(requested, FRESH_TIMEOUT).await {
                    return Err(Error::TooLarge { requested, current: self.inner.feed.reached() });
                }
                Ok(filled)
            }
        }
    }

    async fn wait_filled(&self) -> Result<(), Error> {
        let mut signal = self.cache.signal();
        match timeout(FRESH_TIMEOUT, signal.wait_for(|signal| signal.phase != Phase::Filling)).await {
            Ok(Ok(signal)) if signal.phase == Phase::Ready => Ok(()),
            _ => Err(Error::NotReady),
        }
    }

    fn get_cached(&self, path: &str) -> Result<Arc<Object>, Error> {
        let state = self.cache.read();
        state.get(path)?.cloned().ok_or_else(|| Error::NotFound { key: self.full(path) })
    }

    fn cached_current(&self, path: &str) -> Option<Current> {
        let object = self.cache.read().get(path).ok().flatten().cloned()?;
        let value = object.value();
        Some(Current { object, value })
    }

    /// One key, linearizable.
    async fn read_store(&self, path: &str) -> Result<Option<Current>, Error> {
        let started = Instant::now();
        let result = self.inner.client.get(&self.full(path)).await;
        self.inner.measure("get", &self.label, started, result.is_err());
        result?.0.map(|entry| self.decode(path, &entry)).transpose()
    }

    /// Carries out a decision on a state that may be old. `fresh`: it was read from the store.
    async fn attempt(
        &self,
        path: &str,
        current: &Current,
        change: Change,
        fresh: bool,
    ) -> Result<Attempt, Error> {
        let version = current.object.resource_version();
        let (value, ttl) = match change {
            Change::Write(value) => (value, None),
            Change::WriteFor(value, ttl) => (value, Some(ttl)),
            Change::Keep => return self.keep(path, current, fresh).await,
            Change::Delete => {
                return match self.write("delete", path, version, Write::Delete).await? {
                    Swapped::Done(revision) => {
                        let last = Arc::new(current.object.at_version(revision));
                        Ok(Attempt::Done(Updated::Deleted(last)))
                    }
                    Swapped::Conflict(found) => self.behind(path, found),
                };
            }
        };
        if ttl.is_none() && codec::same(&value, &current.value) {
            return self.keep(path, current, fresh).await;
        }
        let encoded = self.encode(&value)?;
        match self.put("update", path, version, encoded.stored(), ttl).await? {
            Swapped::Done(revision) => {
                let object = Arc::new(self.assemble(path, &value, &encoded, revision));
                Ok(Attempt::Done(Updated::Written(object)))
            }
            Swapped::Conflict(found) => self.behind(path, found),
        }
    }

    fn behind(&self, path: &str, found: Option<KeyValue>) -> Result<Attempt, Error> {
        Ok(Attempt::Behind(found.map(|entry| self.decode(path, &entry)).transpose()?))
    }

    /// Nothing is to be written; but that must have been decided on the present state.
    async fn keep(&self, path: &str, current: &Current, fresh: bool) -> Result<Attempt, Error> {
        let unchanged = || Attempt::Done(Updated::Unchanged(current.object.clone()));
        if fresh {
            return Ok(unchanged());
        }
        match self.read_store(path).await? {
            Some(stored) if stored.object.resource_version() == current.object.resource_version() => {
                Ok(unchanged())
            }
            stored => Ok(Attempt::Behind(stored)),
        }
    }

    async fn put(
        &self,
        operation: &'static str,
        path: &str,
        expected: u64,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<Swapped, StoreError> {
        let lease = self.inner.leases.lease(&self.inner.client, ttl).await?;
        let result = self.write(operation, path, expected, Write::Put { value: value.clone(), lease }).await;
        if !matches!(result, Err(StoreError::LeaseNotFound)) {
            return result;
        }
        // The shared lease is gone (the store was restored, or it ran out early): once more with a new one.
        self.inner.leases.forget(lease).await;
        let lease = self.inner.leases.lease(&self.inner.client, ttl).await?;
        self.write(operation, path, expected, Write::Put { value, lease }).await
    }

    async fn write(
        &self,
        operation: &'static str,
        path: &str,
        expected: u64,
        write: Write,
    ) -> Result<Swapped, StoreError> {
        let started = Instant::now();
        let result = self.inner.client.swap(&self.full(path), expected, write).await;
        self.inner.measure(operation, &self.label, started, result.is_err());
        result
    }
}

/// A state and whether it came from the store.
struct Sourced {
    current: Current,
    fresh: bool,
}

impl Preconditions {
    /// Compares with the present object, with upstream's words.
    fn check(&self, prefix: &str, object: &Object) -> Result<(), Error> {
        let failed =
            |message: String| Err(Error::Precondition { key: format!("{prefix}{}", object.key), message });
        if let Some(uid) = &self.uid
            && uid != object.uid()
        {
            return failed(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object.uid()
            ));
        }
        if let Some(version) = &self.resource_version
            && *version != object.resource_version().to_string()
        {
            return failed(format!(
                "Precondition failed: ResourceVersion in precondition: {version}, \
                 ResourceVersion in object meta: {}",
                object.resource_version()
            ));
        }
        Ok(())
    }
}

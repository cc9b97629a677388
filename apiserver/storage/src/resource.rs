//! One resource: the operations of the API's verbs.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, UpdateError};
use crate::list::List;
use crate::object::{Key, Object, TypeMeta};
use crate::options::{ListOptions, Preconditions, ReadVersion, WatchOptions};
use crate::subscription::Subscription;
use crate::watch::Watch;

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
pub struct Current {
    pub object: Arc<Object>,
    /// The decoded object, with kind, apiVersion and metadata.resourceVersion.
    pub value: Value,
}

/// What an update's closure decided.
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
pub struct Resource {}

impl Resource {
    pub fn config(&self) -> &ResourceConfig {
        todo!()
    }

    /// True when the cache is filled; until then reads wait and then fail with [`Error::NotReady`].
    pub fn ready(&self) -> bool {
        todo!()
    }

    /// Creates an object; its name and namespace are those of the key. With `ttl` the store removes it
    /// by itself. Fails with [`Error::AlreadyExists`], which carries the present object.
    pub async fn create(
        &self,
        _key: Key<'_>,
        _value: Value,
        _ttl: Option<Duration>,
    ) -> Result<Arc<Object>, Error> {
        todo!()
    }

    /// Reads one object. Fails with [`Error::NotFound`].
    pub async fn get(&self, _key: Key<'_>, _version: ReadVersion) -> Result<Arc<Object>, Error> {
        todo!()
    }

    /// What the cache has now, without waiting for anything. For the server's own look-ups.
    pub fn cached(&self, _key: Key<'_>) -> Option<Arc<Object>> {
        todo!()
    }

    /// Everything (of one namespace, unless empty) that the cache has now, in key order.
    pub fn cached_list(&self, _namespace: &str) -> Vec<Arc<Object>> {
        todo!()
    }

    /// Number of objects in the cache.
    pub fn count(&self) -> usize {
        todo!()
    }

    pub async fn list(&self, _options: ListOptions) -> Result<List, Error> {
        todo!()
    }

    pub async fn watch(&self, _options: WatchOptions) -> Result<Watch, Error> {
        todo!()
    }

    /// Read, decide, compare-and-swap, again on conflict. The first round takes the cached object, so
    /// that `decide` may be called on a state that is a moment old; before an error or "unchanged" from
    /// such a round counts, it is asked again with the store's state. `decide` must be repeatable.
    pub async fn update<E>(
        &self,
        _key: Key<'_>,
        _preconditions: &Preconditions,
        _decide: impl FnMut(&Current) -> Result<Change, E>,
    ) -> Result<Updated, UpdateError<E>> {
        todo!()
    }

    /// Deletes; `check` may refuse (and is asked again on conflict). Returns the last state with the
    /// version of the deletion.
    pub async fn delete<E>(
        &self,
        _key: Key<'_>,
        _preconditions: &Preconditions,
        _check: impl FnMut(&Current) -> Result<(), E>,
    ) -> Result<Arc<Object>, UpdateError<E>> {
        todo!()
    }

    /// The present state of one object straight from the store (`fresh`) or from the cache: the first
    /// half of a caller's own update loop, for decisions that must await something.
    pub async fn current(&self, _key: Key<'_>, _fresh: bool) -> Result<Current, Error> {
        todo!()
    }

    /// One compare-and-swap against what [`Resource::current`] returned: the second half of a caller's
    /// own loop. `Ok(None)`: another writer was faster; take a fresh current and decide again.
    pub async fn swap(&self, _current: &Current, _change: Change) -> Result<Option<Updated>, Error> {
        todo!()
    }

    /// The server's own view: state, then changes.
    pub fn subscribe(&self) -> Subscription {
        todo!()
    }
}

//! Shared, indexed caches: one watch per kind feeds a map of projections that any number of readers share.
//!
//! The full object lives only while its event is being projected. Subscribers are called in order, one event at a
//! time, after the cache shows the change; a late one is first told of everything that is there. After a gap in
//! the watch (410, a restarted server) the list is read anew and the differences, deletions included, are
//! delivered as events; objects whose resourceVersion did not change deliver none. An object that took the place of
//! another of its name is told of as a deletion and a new object, also when the watch missed the deletion.

mod objects;
mod reflect;

use std::borrow::Borrow;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use kube::api::Api;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt as _};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use uuid::Uuid;

use objects::{Entry, ObjectName, Objects};
pub use objects::{Indexer, Indexers};

/// What happened to an object.
#[derive(Debug)]
pub enum Event<P> {
    /// It is new (`old` is `None`) or has changed.
    Applied { old: Option<Arc<P>>, new: Arc<P> },
    /// It is gone; this is the last that was known of it.
    Deleted(Arc<P>),
    /// Everything that existed at the start has been delivered. Comes once for each subscriber.
    Synced,
}

impl<P> Clone for Event<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { old, new } => Self::Applied { old: old.clone(), new: new.clone() },
            Self::Deleted(last) => Self::Deleted(last.clone()),
            Self::Synced => Self::Synced,
        }
    }
}

type Subscriber<P> = Box<dyn FnMut(&Event<P>) + Send>;

struct Shared<P> {
    objects: RwLock<Objects<P>>,
    /// Held while an event is applied and delivered, so that a new subscriber misses none and sees none twice.
    subscribers: Mutex<Vec<Subscriber<P>>>,
    synced: watch::Sender<bool>,
}

/// A cache of projections; ends its watch when dropped.
pub struct Cache<P> {
    shared: Arc<Shared<P>>,
    task: Option<tokio::task::AbortHandle>,
}

impl<P> Drop for Cache<P> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Lists and watches `api` into a new cache. `project` turns each object into what the daemon keeps of it.
/// Streaming lists are used unless `config` asks for another strategy ([`config`] makes one); a server without
/// them is listed in pages.
///
/// With an `Api<PartialObjectMeta<K>>` only metadata is transferred. Must be called inside a tokio runtime.
pub fn start<K, P>(
    api: Api<K>,
    config: watcher::Config,
    project: impl Fn(K) -> P + Send + 'static,
    indexers: Indexers<P>,
) -> Arc<Cache<P>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    P: Send + Sync + 'static,
{
    let make = move |config| watcher(api.clone(), config);
    reflect::spawn(make, config, project, indexers)
}

/// The configuration that [`start`] is meant to be given: everything, by a streaming list.
#[must_use]
pub fn config() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

impl<P> Shared<P> {
    fn apply<O: Resource>(&self, object: O, project: impl Fn(O) -> P) -> ObjectName {
        let resource_version = object.meta().resource_version.clone().unwrap_or_default().into_boxed_str();
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let key = self.objects.read().name(namespace, &object.name_any());
        let uid = object.meta().uid.as_deref().and_then(|uid| Uuid::try_parse(uid).ok()).unwrap_or_default();
        let known = self.objects.read().entry(&key.namespace, &key.name).map(|entry| {
            (!resource_version.is_empty() && entry.resource_version == resource_version, entry.uid != uid)
        });
        match known {
            Some((true, _)) => return key,
            // The deletion of the one before was missed: a subscriber must not take the two for one.
            Some((false, true)) => self.delete(&key.namespace, &key.name),
            _ => {}
        }
        let new = Arc::new(project(object));
        let mut subscribers = self.subscribers.lock();
        let old = self.objects.write().insert(&key, Entry { value: new.clone(), resource_version, uid });
        deliver(&mut subscribers, &Event::Applied { old, new });
        key
    }

    fn delete(&self, namespace: &str, name: &str) {
        let mut subscribers = self.subscribers.lock();
        let removed = self.objects.write().remove(namespace, name);
        if let Some(old) = removed {
            deliver(&mut subscribers, &Event::Deleted(old));
        }
    }

    /// Removes what a new list did not have.
    fn retain(&self, seen: &HashSet<ObjectName>) {
        let gone: Vec<ObjectName> = self.objects.read().names().filter(|name| !seen.contains(name)).collect();
        for name in gone {
            self.delete(&name.namespace, &name.name);
        }
    }

    fn mark_synced(&self) {
        let mut subscribers = self.subscribers.lock();
        let first = self.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        if first {
            deliver(&mut subscribers, &Event::Synced);
        }
    }
}

fn deliver<P>(subscribers: &mut [Subscriber<P>], event: &Event<P>) {
    for subscriber in subscribers {
        subscriber(event);
    }
}

impl<P> Cache<P> {
    fn empty(indexers: Indexers<P>) -> Self {
        let shared = Shared {
            objects: RwLock::new(Objects::new(indexers)),
            subscribers: Mutex::new(Vec::new()),
            synced: watch::channel(false).0,
        };
        Self { shared: Arc::new(shared), task: None }
    }

    /// A cache that is synced and fed by hand, for the tests of what reads caches.
    #[must_use]
    pub fn fixed<O: Resource>(
        objects: impl IntoIterator<Item = O>,
        project: impl Fn(O) -> P,
        indexers: Indexers<P>,
    ) -> Arc<Self> {
        let cache = Self::empty(indexers);
        for object in objects {
            cache.shared.apply(object, &project);
        }
        cache.shared.mark_synced();
        Arc::new(cache)
    }

    /// An object; `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<P>> {
        self.shared.objects.read().entry(namespace, name).map(|entry| entry.value.clone())
    }

    /// All objects, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<P>> {
        self.shared.objects.read().values().cloned().collect()
    }

    /// The objects of a namespace, in no order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<P>> {
        self.shared.objects.read().values_in(namespace).cloned().collect()
    }

    /// The objects found under a key of an index, in no order. An index that does not exist finds nothing.
    #[must_use]
    pub fn indexed<Q: Borrow<str>>(&self, index: &str, key: Q) -> Vec<Arc<P>> {
        self.shared.objects.read().indexed(index, key.borrow()).cloned().collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.objects.read().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list has been read completely.
    #[must_use]
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for the first list.
    pub async fn wait_synced(&self) {
        // The sender lives as long as this cache, so waiting cannot fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Calls `subscriber` for every event from now on, after one `Applied` for each object that is there already
    /// (and `Synced`, if that is past). It runs on the watch's task: it should only note what to do. It may read
    /// this cache but not subscribe to it.
    pub fn subscribe(&self, mut subscriber: impl FnMut(&Event<P>) + Send + 'static) {
        let mut subscribers = self.shared.subscribers.lock();
        for new in self.list() {
            subscriber(&Event::Applied { old: None, new });
        }
        if self.has_synced() {
            subscriber(&Event::Synced);
        }
        subscribers.push(Box::new(subscriber));
    }
}

#[cfg(test)]
mod tests;

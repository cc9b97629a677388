//! Shared, indexed caches: one watch per kind feeds a map of projections that any number of readers share.
//!
//! The full object lives only while its event is being projected. Subscribers are called in order, one event at a
//! time, after the cache shows the change; a late one is first told of everything that is there. After a gap in
//! the watch (410, a restarted server) the list is read anew and the differences, deletions included, are
//! delivered as events; objects whose resourceVersion did not change deliver none. An object that took the place of
//! another of its name is told of as a deletion and a new object, also when the watch missed the deletion.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use kube::api::Api;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt as _};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use uuid::Uuid;

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

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

/// Gives the keys under which an object is found in one index.
pub type Indexer<P> = Box<dyn Fn(&P) -> Vec<String> + Send + Sync>;
/// Indexes by name.
pub type Indexers<P> = Vec<(&'static str, Indexer<P>)>;
type Subscriber<P> = Box<dyn FnMut(&Event<P>) + Send>;

struct Entry<P> {
    value: Arc<P>,
    resource_version: Box<str>,
    /// Nil for what has no uid of the usual form.
    uid: Uuid,
}

struct Index<P> {
    name: &'static str,
    keys_of: Indexer<P>,
    entries: HashMap<Box<str>, HashSet<ObjectName>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ObjectName {
    namespace: Arc<str>,
    name: Arc<str>,
}

struct Objects<P> {
    namespaces: HashMap<Arc<str>, HashMap<Arc<str>, Entry<P>>>,
    indexes: Vec<Index<P>>,
}

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
    spawn(make, config, project, indexers)
}

/// The configuration that [`start`] is meant to be given: everything, by a streaming list.
#[must_use]
pub fn config() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

fn spawn<O, P, S>(
    make: impl Fn(watcher::Config) -> S + Send + 'static,
    config: watcher::Config,
    project: impl Fn(O) -> P + Send + 'static,
    indexers: Indexers<P>,
) -> Arc<Cache<P>>
where
    O: Resource + Send + 'static,
    P: Send + Sync + 'static,
    S: Stream<Item = Result<watcher::Event<O>, watcher::Error>> + Send + 'static,
{
    let mut cache = Cache::empty(indexers);
    let shared = cache.shared.clone();
    let task = tokio::spawn(async move {
        let watching = AssertUnwindSafe(reflect(&shared, make, config, project)).catch_unwind();
        if watching.await.is_err() {
            // The panic has said why. Nobody would notice that this cache stands still, and its readers would go on
            // deciding on the past: as with client-go, the process ends and its supervisor starts it anew.
            tracing::error!(kind = std::any::type_name::<O>(), "A watch failed for good, ending");
            std::process::exit(1);
        }
    });
    cache.task = Some(task.abort_handle());
    Arc::new(cache)
}

async fn reflect<O, P, S>(
    shared: &Shared<P>,
    make: impl Fn(watcher::Config) -> S,
    mut config: watcher::Config,
    project: impl Fn(O) -> P,
) where
    O: Resource,
    S: Stream<Item = Result<watcher::Event<O>, watcher::Error>>,
{
    let mut backoff = BACKOFF_MIN;
    let mut replacing: Option<HashSet<ObjectName>> = None;
    loop {
        let mut stream = std::pin::pin!(make(config.clone()));
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let streaming =
                        config.initial_list_strategy == watcher::InitialListStrategy::StreamingList;
                    if streaming && refuses_streaming_lists(&error) {
                        tracing::info!("The API server has no streaming lists, listing in pages");
                        config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
                        break;
                    }
                    // 410 is how a server asks for a new list: normal, and to be done soon.
                    log_interruption::<O>(&error);
                    tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.5))).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    if is_expired(&error) {
                        // The stream itself would ask for the same version again, were this the answer's status.
                        break;
                    }
                    continue;
                }
            };
            match event {
                watcher::Event::Init => replacing = Some(HashSet::new()),
                watcher::Event::InitApply(object) => {
                    let name = shared.apply(object, &project);
                    if let Some(seen) = &mut replacing {
                        seen.insert(name);
                    }
                }
                watcher::Event::InitDone => {
                    backoff = BACKOFF_MIN;
                    if let Some(seen) = replacing.take() {
                        shared.retain(&seen);
                    }
                    shared.mark_synced();
                }
                watcher::Event::Apply(object) => {
                    backoff = BACKOFF_MIN;
                    shared.apply(object, &project);
                }
                watcher::Event::Delete(object) => {
                    backoff = BACKOFF_MIN;
                    shared.delete(object.meta().namespace.as_deref().unwrap_or_default(), &object.name_any());
                }
            }
        }
    }
}

fn log_interruption<O>(error: &watcher::Error) {
    let error: &dyn std::error::Error = error;
    tracing::debug!(error, kind = std::any::type_name::<O>(), "Watch interrupted");
}

/// Whether the version to go on from is no longer there.
fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status) => {
            status.code == 410
        }
        _ => false,
    }
}

/// A server that knows no `sendInitialEvents` says that the request is invalid.
fn refuses_streaming_lists(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status) => {
            matches!(status.code, 400 | 422)
        }
        _ => false,
    }
}

impl<P> Shared<P> {
    fn apply<O: Resource>(&self, object: O, project: impl Fn(O) -> P) -> ObjectName {
        let resource_version = object.meta().resource_version.clone().unwrap_or_default().into_boxed_str();
        let name: Arc<str> = object.name_any().into();
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let namespace: Arc<str> = match self.objects.read().namespaces.get_key_value(namespace) {
            Some((known, _)) => known.clone(),
            None => namespace.into(),
        };
        let key = ObjectName { namespace, name };
        let uid = object.meta().uid.as_deref().and_then(|uid| Uuid::try_parse(uid).ok()).unwrap_or_default();
        let known = self.objects.read().entry(&key).map(|entry| {
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
        let gone: Vec<ObjectName> = {
            let objects = self.objects.read();
            let all = objects.namespaces.iter().flat_map(|(namespace, names)| {
                names.keys().map(|name| ObjectName { namespace: namespace.clone(), name: name.clone() })
            });
            all.filter(|name| !seen.contains(name)).collect()
        };
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

impl<P> Objects<P> {
    fn entry(&self, key: &ObjectName) -> Option<&Entry<P>> {
        self.namespaces.get(&key.namespace)?.get(&key.name)
    }

    fn insert(&mut self, key: &ObjectName, entry: Entry<P>) -> Option<Arc<P>> {
        let new = entry.value.clone();
        let names = self.namespaces.entry(key.namespace.clone()).or_default();
        let old = names.insert(key.name.clone(), entry).map(|entry| entry.value);
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old, key);
            }
            index.insert(&new, key);
        }
        old
    }

    fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<P>> {
        let names = self.namespaces.get_mut(namespace)?;
        let old = names.remove(name)?.value;
        if names.is_empty() {
            self.namespaces.remove(namespace);
        }
        let key = ObjectName { namespace: namespace.into(), name: name.into() };
        for index in &mut self.indexes {
            index.remove(&old, &key);
        }
        Some(old)
    }
}

impl<P> Index<P> {
    fn insert(&mut self, value: &P, key: &ObjectName) {
        for index_key in (self.keys_of)(value) {
            self.entries.entry(index_key.into_boxed_str()).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, value: &P, key: &ObjectName) {
        for index_key in (self.keys_of)(value) {
            if let Some(names) = self.entries.get_mut(index_key.as_str()) {
                names.remove(key);
                if names.is_empty() {
                    self.entries.remove(index_key.as_str());
                }
            }
        }
    }
}

impl<P> Cache<P> {
    fn empty(indexers: Indexers<P>) -> Self {
        let indexes = indexers
            .into_iter()
            .map(|(name, keys_of)| Index { name, keys_of, entries: HashMap::new() })
            .collect();
        let shared = Shared {
            objects: RwLock::new(Objects { namespaces: HashMap::new(), indexes }),
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
        let objects = self.shared.objects.read();
        objects.namespaces.get(namespace)?.get(name).map(|entry| entry.value.clone())
    }

    /// All objects, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<P>> {
        let objects = self.shared.objects.read();
        objects.namespaces.values().flat_map(HashMap::values).map(|entry| entry.value.clone()).collect()
    }

    /// The objects of a namespace, in no order.
    #[must_use]
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<P>> {
        let objects = self.shared.objects.read();
        let names = objects.namespaces.get(namespace);
        names.into_iter().flat_map(HashMap::values).map(|entry| entry.value.clone()).collect()
    }

    /// The objects found under a key of an index, in no order. An index that does not exist finds nothing.
    #[must_use]
    pub fn indexed<Q: Borrow<str>>(&self, index: &str, key: Q) -> Vec<Arc<P>> {
        let objects = self.shared.objects.read();
        let index = objects.indexes.iter().find(|known| known.name == index);
        debug_assert!(index.is_some(), "an index that was never defined");
        let names = index.and_then(|index| index.entries.get(key.borrow()));
        names
            .into_iter()
            .flatten()
            .filter_map(|name| objects.entry(name))
            .map(|entry| entry.value.clone())
            .collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.objects.read().namespaces.values().map(HashMap::len).sum()
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
mod tests {
    use super::*;
    use crate::fake;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    /// Hands each watch request its events, and records the requests.
    #[derive(Clone)]
    struct Server {
        watches: Arc<Mutex<std::collections::VecDeque<mpsc::UnboundedReceiver<Value>>>>,
        requests: Arc<Mutex<Vec<String>>>,
        /// Watches that are to go on are refused.
        expired: Arc<Mutex<bool>>,
        streaming_lists: bool,
    }

    impl Server {
        fn new(streaming_lists: bool) -> Self {
            Self {
                watches: Arc::default(),
                requests: Arc::default(),
                expired: Arc::default(),
                streaming_lists,
            }
        }

        fn script(&self) -> mpsc::UnboundedSender<Value> {
            let (send, receive) = mpsc::unbounded_channel();
            self.watches.lock().push_back(receive);
            send
        }

        fn client(&self) -> kube::Client {
            let server = self.clone();
            fake::client(move |_, path, _| {
                server.requests.lock().push(path.to_owned());
                if path.contains("sendInitialEvents=true") && !server.streaming_lists {
                    return fake::failure(422, "Invalid");
                }
                if *server.expired.lock() && !path.contains("sendInitialEvents=true") {
                    return fake::failure(410, "Expired");
                }
                if !path.contains("watch=true") {
                    let items = json!([object("a", "1", "red")]);
                    let list = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": items});
                    return fake::json(200, &list);
                }
                let next = server.watches.lock().pop_front();
                match next {
                    Some(events) => fake::watch(events),
                    // Nothing scripted: a server that is down.
                    None => fake::failure(503, "ServiceUnavailable"),
                }
            })
        }

        fn start(&self) -> (Arc<Cache<Projected>>, mpsc::UnboundedReceiver<String>) {
            let indexer: Indexer<Projected> = Box::new(|projected| vec![projected.color.clone()]);
            let cache = start(Api::all(self.client()), config(), project, vec![("color", indexer)]);
            let (send, events) = mpsc::unbounded_channel();
            cache.subscribe(move |event| {
                let text = match event {
                    Event::Applied { old: None, new } => format!("+{}", new.name),
                    Event::Applied { old: Some(old), new } => {
                        format!("{} {}>{}", new.name, old.color, new.color)
                    }
                    Event::Deleted(last) => format!("-{}", last.name),
                    Event::Synced => "synced".to_owned(),
                };
                let _ = send.send(text);
            });
            (cache, events)
        }
    }

    #[derive(Debug)]
    struct Projected {
        name: String,
        color: String,
    }

    fn project(object: ConfigMap) -> Projected {
        let color = object.data.unwrap_or_default().remove("color").unwrap_or_default();
        Projected { name: object.metadata.name.unwrap_or_default(), color }
    }

    fn object(name: &str, version: &str, color: &str) -> Value {
        json!({
            "kind": "ConfigMap", "apiVersion": "v1", "data": {"color": color},
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version},
        })
    }

    fn event(kind: &str, object: Value) -> Value {
        json!({"type": kind, "object": object})
    }

    fn bookmark(version: &str, initial_done: bool) -> Value {
        let mut metadata = json!({"resourceVersion": version});
        if initial_done {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        event("BOOKMARK", json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}))
    }

    async fn expect(events: &mut mpsc::UnboundedReceiver<String>, expected: &[&str]) {
        for text in expected {
            let next = tokio::time::timeout(Duration::from_secs(300), events.recv()).await;
            assert_eq!(next.ok().flatten().as_deref(), Some(*text));
        }
    }

    fn names(objects: &[Arc<Projected>]) -> Vec<&str> {
        let mut names: Vec<&str> = objects.iter().map(|object| object.name.as_str()).collect();
        names.sort_unstable();
        names
    }

    #[tokio::test(start_paused = true)]
    async fn follows_a_streaming_list_and_its_indexes() {
        let server = Server::new(true);
        let script = server.script();
        let (cache, mut events) = server.start();
        assert!(!cache.has_synced());
        script.send(event("ADDED", object("a", "1", "red"))).unwrap();
        script.send(event("ADDED", object("b", "2", "red"))).unwrap();
        script.send(bookmark("2", true)).unwrap();
        expect(&mut events, &["+a", "+b", "synced"]).await;
        cache.wait_synced().await;
        assert_eq!(names(&cache.indexed("color", "red")), ["a", "b"]);
        script.send(event("MODIFIED", object("a", "3", "blue"))).unwrap();
        script.send(event("DELETED", object("b", "4", "red"))).unwrap();
        expect(&mut events, &["a red>blue", "-b"]).await;
        assert!(cache.indexed("color", "red").is_empty());
        assert_eq!(names(&cache.indexed("color", "blue")), ["a"]);
        assert_eq!(names(&cache.list_in("ns")), ["a"]);
        assert_eq!(cache.get("ns", "a").unwrap().color, "blue");
        assert!(cache.get("ns", "b").is_none() && cache.get("other", "a").is_none() && cache.len() == 1);

        let (send, mut late) = mpsc::unbounded_channel();
        cache.subscribe(move |event| {
            let _ = send.send(match event {
                Event::Applied { old, new } => format!("+{} {}", new.name, old.is_none()),
                Event::Deleted(_) => "deleted".into(),
                Event::Synced => "synced".into(),
            });
        });
        expect(&mut late, &["+a true", "synced"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_delivers_only_the_differences() {
        let server = Server::new(true);
        let script = server.script();
        let (cache, mut events) = server.start();
        for name in ["kept", "changed", "gone"] {
            script.send(event("ADDED", object(name, "1", "red"))).unwrap();
        }
        script.send(bookmark("1", true)).unwrap();
        expect(&mut events, &["+kept", "+changed", "+gone", "synced"]).await;

        let again = server.script();
        again.send(event("ADDED", object("kept", "1", "red"))).unwrap();
        again.send(event("ADDED", object("changed", "7", "blue"))).unwrap();
        again.send(event("ADDED", object("new", "8", "red"))).unwrap();
        again.send(bookmark("8", true)).unwrap();
        script.send(event("ERROR", fake::status_value(410, "Expired"))).unwrap();
        expect(&mut events, &["changed red>blue", "+new", "-gone"]).await;
        assert_eq!(names(&cache.list()), ["changed", "kept", "new"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_is_told_of_as_another_object() {
        let server = Server::new(true);
        let script = server.script();
        let (_cache, mut events) = server.start();
        let of = |version: &str, uid: u128| {
            let mut object = object("a", version, "red");
            object["metadata"]["uid"] = json!(Uuid::from_u128(uid).to_string());
            object
        };
        script.send(event("ADDED", of("1", 1))).unwrap();
        script.send(bookmark("1", true)).unwrap();
        expect(&mut events, &["+a", "synced"]).await;
        let again = server.script();
        again.send(event("ADDED", of("7", 2))).unwrap();
        again.send(bookmark("7", true)).unwrap();
        script.send(event("ERROR", fake::status_value(410, "Expired"))).unwrap();
        expect(&mut events, &["-a", "+a"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_410_brings_a_new_list() {
        let server = Server::new(true);
        let script = server.script();
        let (_cache, mut events) = server.start();
        script.send(bookmark("1", true)).unwrap();
        expect(&mut events, &["synced"]).await;
        *server.expired.lock() = true;
        drop(script);
        let again = server.script();
        again.send(event("ADDED", object("a", "7", "red"))).unwrap();
        again.send(bookmark("7", true)).unwrap();
        expect(&mut events, &["+a"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_down_is_asked_again_with_growing_pauses() {
        let server = Server::new(true);
        let (cache, mut events) = server.start();
        tokio::time::sleep(Duration::from_secs(120)).await;
        let asked = server.requests.lock().len();
        assert!((10..60).contains(&asked), "asked {asked} times in two minutes");
        assert!(!cache.has_synced());
        let script = server.script();
        script.send(bookmark("1", true)).unwrap();
        expect(&mut events, &["synced"]).await;
        // A watch that just ends goes on from where it was, without a new list.
        let next = server.script();
        next.send(event("ADDED", object("a", "9", "red"))).unwrap();
        drop(script);
        expect(&mut events, &["+a"]).await;
        let last = server.requests.lock().last().cloned().unwrap();
        assert!(last.contains("resourceVersion=1") && !last.contains("sendInitialEvents"), "{last}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_streaming_lists_it_lists_in_pages() {
        let server = Server::new(false);
        let script = server.script();
        let (_cache, mut events) = server.start();
        expect(&mut events, &["+a", "synced"]).await;
        script.send(event("ADDED", object("b", "6", "red"))).unwrap();
        expect(&mut events, &["+b"]).await;
    }

    #[tokio::test]
    async fn dropping_the_cache_ends_its_watch() {
        let server = Server::new(true);
        let script = server.script();
        let (cache, mut events) = server.start();
        script.send(bookmark("1", true)).unwrap();
        expect(&mut events, &["synced"]).await;
        drop(cache);
        script.closed().await;
    }

    #[test]
    fn fixed_caches_for_tests() {
        let objects = ["a", "b"].map(|name| serde_json::from_value(object(name, "1", "red")).unwrap());
        let cache = Cache::fixed(objects, project, Vec::new());
        assert!(cache.has_synced());
        assert_eq!(names(&cache.list()), ["a", "b"]);
    }
}

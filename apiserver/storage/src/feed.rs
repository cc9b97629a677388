//! The one store watch that feeds all caches, and the fillings that precede it.
//!
//! Invariant: when `progress` says N, every change up to N has been applied to every cache that is ready.
//! The watch is resumed where it broke; only when the store no longer has the changes between (or is not
//! the same store any more) are the caches filled anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    RangeRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use keelson_proto::etcd::mvccpb::event::EventType;
use parking_lot::RwLock;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cache::{Listing, Phase, ResourceCache, StoreChange};
use crate::client::{Client, StoreError, prefix_end, revision};
use crate::metrics::Metrics;

/// Objects per page of a filling.
const PAGE: i64 = 500;

/// Resources that are filled at a time.
const FILLINGS: usize = 8;

/// How long a reader waits for the cache to reach a version. Upstream: `blockTimeout`.
pub(crate) const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long it waits where the store cannot be asked for progress: changes are there in that time, and
/// if there were none, waiting does not help.
const UNASKED_TIMEOUT: Duration = Duration::from_millis(250);

/// Changes normally arrive within this time, without asking.
const ASK_AFTER: Duration = Duration::from_millis(10);

/// Between questions for progress. Upstream: `progressRequestPeriod`.
const ASK_AGAIN: Duration = Duration::from_millis(100);

const TRIM_INTERVAL: Duration = Duration::from_secs(60);

const MAX_PAUSE: Duration = Duration::from_secs(1);

/// `watch_id` of the answer to a question for progress.
const ANSWER: i64 = -1;

pub(crate) struct Feed {
    client: Client,
    /// Ends with a slash.
    prefix: String,
    /// Caches by their full key prefix, which ends with a slash.
    caches: RwLock<BTreeMap<String, Arc<ResourceCache>>>,
    progress: watch::Sender<u64>,
    ask: Notify,
    answers: AtomicBool,
    fillings: Semaphore,
    metrics: Metrics,
    shutdown: CancellationToken,
}

/// How far the feed has read.
#[derive(Clone, Copy, Debug)]
struct Position {
    revision: u64,
    cluster: u64,
}

/// Why a watch stream ended.
enum Broken {
    /// Go on where it broke.
    Stream(StoreError),
    /// The changes since then are lost.
    History(String),
}

impl Feed {
    pub(crate) fn new(
        client: Client,
        prefix: String,
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            client,
            prefix,
            caches: RwLock::default(),
            progress: watch::Sender::new(0),
            ask: Notify::new(),
            answers: AtomicBool::new(false),
            fillings: Semaphore::new(FILLINGS),
            metrics,
            shutdown,
        })
    }

    pub(crate) fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    pub(crate) fn reached(&self) -> u64 {
        *self.progress.borrow()
    }

    /// The cache with this prefix, made by `make` and filled if it is new.
    pub(crate) fn cache(
        self: &Arc<Self>,
        prefix: &str,
        make: impl FnOnce() -> ResourceCache,
    ) -> Arc<ResourceCache> {
        let mut caches = self.caches.write();
        if let Some(cache) = caches.get(prefix) {
            return cache.clone();
        }
        let cache = Arc::new(make());
        caches.insert(prefix.to_owned(), cache.clone());
        drop(caches);
        tokio::spawn(self.clone().fill(prefix.to_owned(), cache.clone()));
        cache
    }

    pub(crate) fn remove(&self, prefix: &str) -> Option<Arc<ResourceCache>> {
        let cache = self.caches.write().remove(prefix)?;
        cache.close();
        Some(cache)
    }

    pub(crate) fn caches(&self) -> Vec<Arc<ResourceCache>> {
        self.caches.read().values().cloned().collect()
    }

    /// Waits until all ready caches have reached a revision; false if they did not in time.
    pub(crate) async fn wait_for(&self, revision: u64, limit: Duration) -> bool {
        let mut progress = self.progress.subscribe();
        let deadline = Instant::now() + limit;
        let mut pause = ASK_AFTER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(pause.min(left), progress.wait_for(|&reached| reached >= revision)).await {
                Ok(reached) => return reached.is_ok(),
                Err(_) if pause >= left => return false,
                Err(_) => self.ask.notify_one(),
            }
            pause = ASK_AGAIN;
        }
    }

    /// How long a consistent read should wait for the cache before it goes to the store.
    pub(crate) fn patience(&self) -> Duration {
        if self.answers.load(Ordering::Relaxed) { FRESH_TIMEOUT } else { UNASKED_TIMEOUT }
    }

    /// Runs until shutdown.
    pub(crate) async fn run(self: Arc<Self>) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.follow() => {}
            () = self.trim() => {}
        }
        for cache in self.caches() {
            cache.close();
        }
    }

    /// Old events leave the windows even where nothing changes.
    async fn trim(&self) {
        loop {
            sleep(TRIM_INTERVAL).await;
            for cache in self.caches() {
                cache.trim();
            }
        }
    }

    async fn follow(self: &Arc<Self>) {
        let mut position = None;
        let mut pause = Duration::from_millis(20);
        loop {
            let before = position.map(|position: Position| position.revision);
            match self.follow_once(&mut position).await {
                Broken::Stream(error) => {
                    tracing::warn!(%error, ?position, "Store watch ended; it will be resumed");
                }
                Broken::History(reason) => {
                    tracing::warn!(
                        reason,
                        ?position,
                        "Store watch cannot be resumed; caches are filled anew"
                    );
                    position = None;
                }
            }
            if before == position.map(|position| position.revision) {
                pause = (pause * 2).min(MAX_PAUSE);
            } else {
                pause = Duration::from_millis(20);
            }
            sleep(pause).await;
        }
    }

    /// Watches until something breaks.
    async fn follow_once(self: &Arc<Self>, position: &mut Option<Position>) -> Broken {
        match self.client.version().await {
            Ok(version) => self.answers.store(answers_progress(&version), Ordering::Relaxed),
            Err(error @ (StoreError::Unavailable(_) | StoreError::Timeout(_))) => {
                return Broken::Stream(error);
            }
            // A store that does not tell its version is not asked for progress.
            Err(error) => {
                tracing::warn!(%error, "Could not learn the store's version");
                self.answers.store(false, Ordering::Relaxed);
            }
        }
        let from = match *position {
            Some(position) => position,
            None => match self.begin().await {
                Ok(begin) => *position.insert(begin),
                Err(error) => return Broken::Stream(error),
            },
        };
        let (requests, receiver) = mpsc::channel(4);
        let create = WatchCreateRequest {
            key: Bytes::copy_from_slice(self.prefix.as_bytes()),
            range_end: prefix_end(&self.prefix),
            start_revision: from.revision as i64 + 1,
            progress_notify: true,
            ..Default::default()
        };
        let send = |request| WatchRequest { request_union: Some(request) };
        // The channel is empty and its receiver is held: this cannot fail.
        let _ = requests.try_send(send(RequestUnion::CreateRequest(create)));
        let mut stream = match self.client.watch(receiver).await {
            Ok(stream) => stream,
            Err(error) => return Broken::Stream(error),
        };
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                () = self.ask.notified(), if self.answers.load(Ordering::Relaxed) => {
                    // A full channel has a question in it already.
                    let _ = requests.try_send(send(RequestUnion::ProgressRequest(WatchProgressRequest {})));
                    continue;
                }
            };
            let taken = match message {
                Ok(response) => self.take(response, position),
                Err(error) => Err(Broken::Stream(error)),
            };
            if let Err(broken) = taken {
                return broken;
            }
        }
    }

    /// Takes the store's present revision as the beginning of history.
    async fn begin(self: &Arc<Self>) -> Result<Position, StoreError> {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(self.prefix.as_bytes()),
            count_only: true,
            ..Default::default()
        };
        let header = self.client.range(request).await?.header.unwrap_or_default();
        let position = Position { revision: header.revision.max(0) as u64, cluster: header.cluster_id };
        let again = self.reached() > 0;
        if again {
            // Under the lock, so that a resource that is added now is filled after this moment.
            for (prefix, cache) in &*self.caches.read() {
                cache.start_filling();
                tokio::spawn(self.clone().fill(prefix.clone(), cache.clone()));
            }
        }
        self.advance(position.revision);
        Ok(position)
    }

    fn advance(&self, revision: u64) {
        self.metrics.revision.set(revision as i64);
        self.progress.send_replace(revision);
    }

    fn take(&self, response: WatchResponse, position: &mut Option<Position>) -> Result<(), Broken> {
        let Some(position) = position.as_mut() else {
            return Err(Broken::History("an event came before the watch began".into()));
        };
        let header = response.header.unwrap_or_default();
        if response.compact_revision > 0 {
            return Err(Broken::History(format!("compacted at {}", response.compact_revision)));
        }
        if response.canceled {
            return Err(Broken::Stream(StoreError::Unavailable(format!(
                "the store cancelled the watch: {}",
                response.cancel_reason
            ))));
        }
        if response.created {
            if header.cluster_id != position.cluster {
                return Err(Broken::History("this is another store".into()));
            }
            if revision(Some(&header)) < position.revision {
                return Err(Broken::History(format!("the store went back to {}", header.revision)));
            }
            return Ok(());
        }
        let reached = if response.events.is_empty() {
            if response.watch_id == ANSWER && !self.answers.load(Ordering::Relaxed) {
                return Ok(());
            }
            revision(Some(&header))
        } else {
            self.dispatch(response).unwrap_or(0)
        };
        if reached > position.revision {
            position.revision = reached;
            self.advance(reached);
        }
        Ok(())
    }

    /// Hands the events to their caches; returns the last revision.
    fn dispatch(&self, response: WatchResponse) -> Option<u64> {
        let mut last = None;
        let mut batches: Vec<(Arc<ResourceCache>, Vec<StoreChange>)> = Vec::new();
        let caches = self.caches.read();
        for event in response.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(entry) = event.kv else { continue };
            let revision = entry.mod_revision.max(0) as u64;
            last = Some(revision);
            let Ok(key) = std::str::from_utf8(&entry.key) else { continue };
            let Some((cache, relative)) = owner(&caches, key) else { continue };
            let change =
                StoreChange { key: relative.to_owned(), revision, value: (!deleted).then_some(entry.value) };
            match batches.iter_mut().find(|(known, _)| Arc::ptr_eq(known, cache)) {
                Some((_, batch)) => batch.push(change),
                None => batches.push((cache.clone(), vec![change])),
            }
        }
        drop(caches);
        for (cache, batch) in batches {
            cache.apply(batch);
        }
        last
    }

    /// Fills one cache from the store, as often as it takes.
    async fn fill(self: Arc<Self>, prefix: String, cache: Arc<ResourceCache>) {
        let mut signal = cache.signal();
        let filling = signal.borrow_and_update().filling;
        let work = async {
            let mut progress = self.progress.subscribe();
            if progress.wait_for(|&reached| reached > 0).await.is_err() {
                return;
            }
            let mut pause = Duration::from_millis(20);
            loop {
                // The semaphore is never closed.
                let permit = self.fillings.acquire().await;
                match self.list(&prefix, &cache).await {
                    Ok((revision, listing)) => {
                        cache.fill(filling, revision, listing);
                        return;
                    }
                    Err(error) => tracing::warn!(%error, prefix, "Could not list; will try again"),
                }
                drop(permit);
                sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        };
        tokio::select! {
            () = work => {}
            () = self.shutdown.cancelled() => {}
            _ = signal.wait_for(|signal| signal.filling != filling || signal.phase == Phase::Closed) => {}
        }
    }

    /// Everything below a prefix, at one revision.
    async fn list(&self, prefix: &str, cache: &ResourceCache) -> Result<(u64, Listing), StoreError> {
        let mut request = RangeRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: prefix_end(prefix),
            limit: PAGE,
            ..Default::default()
        };
        let mut listing = Listing::default();
        loop {
            let response = self.client.range(request.clone()).await?;
            if request.revision == 0 {
                request.revision = response.header.unwrap_or_default().revision;
            }
            for entry in &response.kvs {
                if let Some(key) =
                    std::str::from_utf8(&entry.key).ok().and_then(|key| key.strip_prefix(prefix))
                {
                    cache.list_entry(&mut listing, key, entry.mod_revision.max(0) as u64, &entry.value);
                }
            }
            match response.kvs.last() {
                Some(last) if response.more => request.key = after(&last.key),
                _ => return Ok((request.revision.max(0) as u64, listing)),
            }
        }
    }
}

/// The smallest key behind a key.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The cache whose prefix a key has, and the rest of the key.
fn owner<'a, 'k>(
    caches: &'a BTreeMap<String, Arc<ResourceCache>>,
    key: &'k str,
) -> Option<(&'a Arc<ResourceCache>, &'k str)> {
    // Prefixes end with a slash, so the owner's is one of the key's few ancestors; the longest wins.
    key.rmatch_indices('/').find_map(|(slash, _)| {
        let (prefix, relative) = key.split_at(slash + 1);
        caches.get(prefix).map(|cache| (cache, relative))
    })
}

/// Whether a store answers progress requests in order with the events. Before these versions an answer
/// could overtake events (etcd-io/etcd#15220), so it proved nothing.
fn answers_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::CacheMetrics;
    use crate::object::TypeMeta;
    use crate::resource::ResourceConfig;

    #[test]
    fn progress_is_believed_from_fixed_versions() {
        fn check(version: &str, expected: bool) {
            assert_eq!(answers_progress(version), expected, "{version}");
        }
        check("3.4.23", false);
        check("3.4.31", true);
        check("3.5.7", false);
        check("3.5.21", true);
        check("3.6.0-rc.1", true);
        check("4.0.0", true);
        check("3.3.99", false);
        check("", false);
    }

    #[test]
    fn keys_find_their_cache() {
        let mut caches = BTreeMap::new();
        for prefix in ["/registry/pods/", "/registry/services/specs/", "/registry/a.io/things/"] {
            let config = ResourceConfig {
                prefix: prefix.into(),
                name: prefix.into(),
                type_meta: TypeMeta { api_version: "v1".into(), kind: "Thing".into() },
                namespaced: true,
                fields: None,
            };
            let cache = ResourceCache::new(config, 1, CacheMetrics::default());
            caches.insert(prefix.to_owned(), Arc::new(cache));
        }
        let check = |key: &str, expected: Option<(&str, &str)>| {
            let found = owner(&caches, key).map(|(cache, relative)| (cache.config.prefix.as_str(), relative));
            assert_eq!(found, expected, "{key}");
        };
        check("/registry/pods/ns/a", Some(("/registry/pods/", "ns/a")));
        check("/registry/services/specs/ns/a", Some(("/registry/services/specs/", "ns/a")));
        check("/registry/services/endpoints/ns/a", None);
        check("/registry/podsecurity/a", None);
        check("/registry/a.io/things/x", Some(("/registry/a.io/things/", "x")));
        check("/other", None);
    }
}

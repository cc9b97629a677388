//! Who watches what, and the events on their way to them.
//!
//! Promises: every event that a watch matches reaches it exactly once, in the order of revisions, and all events of a
//! revision together. A watcher is either *synced*, and then [`Hub::publish`] hands it each change as it is applied, or
//! behind, and then its stream's task reads history out of the store until [`Hub::sync`] finds it level. A stream that
//! does not keep up has its watchers put behind instead of a growing queue: it holds up nobody else, nothing is lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::WatchResponse;
use keelson_proto::etcd::mvccpb::Event;
use keelson_proto::etcd::mvccpb::event::EventType;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;

use crate::mvcc::{KeyRange, MvccError, RangeEnd, Record, Revision, Store};

/// Bytes queued to one stream, above which its watchers fall behind.
const STREAM_LIMIT: usize = 2 << 20;

/// One change, as watchers see it.
#[derive(Debug, Clone)]
pub struct Change {
    pub record: Arc<Record>,
    /// The version before; filled in only when a watcher may want it.
    pub previous: Option<Arc<Record>>,
}

impl Change {
    /// As a client sees it, without the version before.
    pub fn event(&self) -> Event {
        let kind = if self.record.tombstone { EventType::Delete } else { EventType::Put };
        Event { r#type: kind as i32, kv: Some(self.record.kv.clone()), prev_kv: None }
    }

    fn size(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |record| record.kv.value.len());
        self.record.kv.key.len() + self.record.kv.value.len() + previous + 64
    }
}

/// Changes of one revision, for all watches of the same keys.
#[derive(Debug)]
pub struct Changes {
    list: Vec<Change>,
    encoded: OnceLock<Bytes>,
}

impl Changes {
    pub fn new(list: Vec<Change>) -> Self {
        Self { list, encoded: OnceLock::new() }
    }

    pub fn list(&self) -> &[Change] {
        &self.list
    }

    fn size(&self) -> usize {
        self.list.iter().map(Change::size).sum()
    }

    /// The field `events` of an answer, without versions before the changes. It is made when it is first asked for.
    pub fn encoded(&self) -> &Bytes {
        self.encoded.get_or_init(|| {
            let events = self.list.iter().map(Change::event).collect();
            WatchResponse { events, ..WatchResponse::default() }.encode_to_vec().into()
        })
    }
}

/// What a stream's queue holds.
#[derive(Debug)]
pub enum Item {
    Changes {
        watch: u64,
        revision: i64,
        changes: Arc<Changes>,
    },
    /// The watch gets no more from the hub; it has everything before `from`.
    Behind {
        watch: u64,
        from: i64,
    },
    /// Everything up to this revision has been queued before this, for all synced watches of the stream. It is to be
    /// told for one watch, or for all.
    Progress {
        watch: Option<u64>,
        revision: i64,
    },
}

/// The queue of one client stream.
#[derive(Default)]
pub struct Stream {
    queue: Mutex<(VecDeque<Item>, usize)>,
    arrived: Notify,
}

impl Stream {
    fn push(&self, item: Item, size: usize) {
        let mut queue = self.queue.lock();
        queue.0.push_back(item);
        queue.1 += size;
        drop(queue);
        self.arrived.notify_one();
    }

    /// Queues a mark of progress. Nobody needs two of them with nothing between, however often a client asks.
    fn mark(&self, watch: Option<u64>, revision: i64) {
        let mut queue = self.queue.lock();
        match queue.0.back_mut() {
            Some(Item::Progress { watch: same, revision: last }) if *same == watch => *last = revision,
            _ => queue.0.push_back(Item::Progress { watch, revision }),
        }
        drop(queue);
        self.arrived.notify_one();
    }

    fn is_full(&self) -> bool {
        self.queue.lock().1 >= STREAM_LIMIT
    }

    /// Everything queued.
    pub fn take(&self) -> VecDeque<Item> {
        let mut queue = self.queue.lock();
        queue.1 = 0;
        mem::take(&mut queue.0)
    }

    /// Waits until there is something to take.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

/// A synced watcher.
struct Watcher {
    stream: Arc<Stream>,
    watch: u64,
    /// Changes before it are not for this watcher.
    from: i64,
}

#[derive(Default)]
struct Inner {
    /// Watchers by what they watch, so that each distinct range is matched once per change.
    keys: HashMap<Bytes, Vec<Watcher>>,
    ranges: BTreeMap<KeyRange, Vec<Watcher>>,
}

impl Inner {
    fn of(&mut self, range: &KeyRange) -> Option<&mut Vec<Watcher>> {
        match range.end {
            RangeEnd::Single => self.keys.get_mut(&range.start),
            _ => self.ranges.get_mut(range),
        }
    }

    fn insert(&mut self, range: &KeyRange, watcher: Watcher) {
        match range.end {
            RangeEnd::Single => self.keys.entry(range.start.clone()).or_default().push(watcher),
            _ => self.ranges.entry(range.clone()).or_default().push(watcher),
        }
    }
}

#[derive(Default)]
pub struct Hub {
    inner: Mutex<Inner>,
    /// The last revision published. Changed only with `inner` locked.
    revision: AtomicI64,
    /// Watches that want the version before a change.
    previous_wanted: AtomicUsize,
    watchers: AtomicUsize,
}

impl Hub {
    pub fn new(revision: i64) -> Self {
        Self { revision: AtomicI64::new(revision), ..Self::default() }
    }

    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Synced watchers.
    pub fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    pub fn wants_previous(&self) -> bool {
        self.previous_wanted.load(Ordering::Relaxed) > 0
    }

    /// Announces a watch that wants previous versions, before it reads history or syncs.
    pub fn want_previous(&self) {
        self.previous_wanted.fetch_add(1, Ordering::Relaxed);
    }

    pub fn unwant_previous(&self) {
        self.previous_wanted.fetch_sub(1, Ordering::Relaxed);
    }

    /// Hands out the changes of one revision.
    pub fn publish(&self, revision: i64, changes: &[Change]) {
        let mut inner = self.inner.lock();
        self.revision.store(revision, Ordering::Release);
        let mut emptied = Vec::new();
        if !inner.keys.is_empty() {
            for change in changes {
                let key = &change.record.kv.key;
                if let Some(watchers) = inner.keys.get_mut(key) {
                    self.deliver(watchers, revision, &Arc::new(Changes::new(vec![change.clone()])));
                    if watchers.is_empty() {
                        inner.keys.remove(key);
                    }
                }
            }
        }
        for (range, watchers) in &mut inner.ranges {
            let matched: Vec<Change> =
                changes.iter().filter(|change| range.contains(&change.record.kv.key)).cloned().collect();
            if matched.is_empty() {
                continue;
            }
            self.deliver(watchers, revision, &Arc::new(Changes::new(matched)));
            if watchers.is_empty() {
                emptied.push(range.clone());
            }
        }
        for range in emptied {
            inner.ranges.remove(&range);
        }
    }

    fn deliver(&self, watchers: &mut Vec<Watcher>, revision: i64, changes: &Arc<Changes>) {
        let size = changes.size();
        watchers.retain(|watcher| {
            if revision < watcher.from {
                return true;
            }
            let (stream, watch) = (&watcher.stream, watcher.watch);
            if stream.is_full() {
                self.watchers.fetch_sub(1, Ordering::Relaxed);
                stream.push(Item::Behind { watch, from: revision }, 0);
                return false;
            }
            stream.push(Item::Changes { watch, revision, changes: changes.clone() }, size);
            true
        });
    }

    /// Makes a watcher synced if it needs nothing older than what will be published next. Otherwise it has to read
    /// history from `from` up to and with the revision returned.
    ///
    /// # Errors
    /// That revision.
    pub fn sync(&self, stream: &Arc<Stream>, watch: u64, range: &KeyRange, from: i64) -> Result<(), i64> {
        let mut inner = self.inner.lock();
        let revision = self.revision();
        if from <= revision {
            return Err(revision);
        }
        inner.insert(range, Watcher { stream: stream.clone(), watch, from });
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets a watcher, if it is synced.
    pub fn remove(&self, stream: &Arc<Stream>, watch: u64, range: &KeyRange) {
        let mut inner = self.inner.lock();
        let Some(watchers) = inner.of(range) else { return };
        let before = watchers.len();
        watchers.retain(|watcher| watcher.watch != watch || !Arc::ptr_eq(&watcher.stream, stream));
        self.watchers.fetch_sub(before - watchers.len(), Ordering::Relaxed);
        if watchers.is_empty() {
            match range.end {
                RangeEnd::Single => inner.keys.remove(&range.start),
                _ => inner.ranges.remove(range),
            };
        }
    }

    /// Queues a mark behind everything published so far.
    pub fn progress(&self, stream: &Stream, watch: Option<u64>) {
        // Locked: between the moment when a revision is named and when its changes are queued nobody may ask.
        let _inner = self.inner.lock();
        stream.mark(watch, self.revision());
    }

    /// The state was replaced by another one at `revision`: every watcher reads history from where it is.
    pub fn reset(&self, revision: i64) {
        let mut inner = self.inner.lock();
        let from = self.revision() + 1;
        let inner = mem::take(&mut *inner);
        for watcher in inner.keys.into_values().chain(inner.ranges.into_values()).flatten() {
            watcher.stream.push(Item::Behind { watch: watcher.watch, from: from.max(watcher.from) }, 0);
        }
        self.watchers.store(0, Ordering::Relaxed);
        self.revision.store(revision, Ordering::Release);
    }
}

/// A piece of history.
pub struct History {
    pub changes: Vec<Change>,
    /// Everything up to this revision is in it, or matched nothing.
    pub through: i64,
}

/// Limits of one piece of history, so that no stream keeps a thread for long.
const HISTORY_BYTES: usize = 1 << 20;
const HISTORY_RECORDS: usize = 4096;

/// Reads the changes of a range from revision `from` up to and with `through`, whole revisions, as many as fit.
///
/// # Errors
/// [`MvccError::Compacted`] if `from` is, even if it happened meanwhile.
pub fn history(
    store: &Store,
    range: &KeyRange,
    from: i64,
    through: i64,
    previous: bool,
) -> Result<History, MvccError> {
    if from < store.compacted() {
        return Err(MvccError::Compacted);
    }
    let (mut changes, mut bytes, mut seen, mut last) = (Vec::new(), 0, 0, from);
    let mut finished = true;
    store.values.scan(from, through, &mut |revision: Revision, record| {
        if revision.main != last && (bytes >= HISTORY_BYTES || seen >= HISTORY_RECORDS) {
            finished = false;
            return false;
        }
        last = revision.main;
        seen += 1;
        if range.contains(&record.kv.key) {
            let change = Change { record, previous: None };
            bytes += change.size();
            changes.push(change);
        }
        true
    })?;
    if previous {
        let before: Vec<_> = {
            let view = store.view();
            let kvs = changes.iter().map(|change| &change.record.kv);
            kvs.map(|kv| view.find(&kv.key, kv.mod_revision - 1)).collect()
        };
        for (change, before) in changes.iter_mut().zip(before) {
            // One that is compacted meanwhile counts as compacted before.
            change.previous = before.map_or(Ok(None), |at| store.values.get(at)).map_err(MvccError::from)?;
        }
    }
    // A compaction at a later revision may have removed some of this before it was read.
    if from < store.compacted() {
        return Err(MvccError::Compacted);
    }
    Ok(History { changes, through: if finished { through } else { last } })
}

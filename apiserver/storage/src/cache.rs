//! The watch cache of one resource: the present objects by key, and the window of recent events.
//!
//! Fed by [`ResourceCache::apply`] with the store's changes in revision order and by
//! [`ResourceCache::fill`] with a listing. While it is filling, changes wait beside it. Readers take the
//! lock for as long as it takes to collect `Arc`s; nothing is decoded under it and nothing awaits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::codec;
use crate::error::Error;
use crate::metrics::CacheMetrics;
use crate::object::{ByKey, Object, TypeMeta};
use crate::options::Scope;
use crate::resource::ResourceConfig;

mod window;

pub(crate) use window::{Change, Event, Gone, Window};

/// A change as the store tells it; the key is below the resource's prefix.
#[derive(Clone, Debug)]
pub(crate) struct StoreChange {
    pub(crate) key: String,
    pub(crate) revision: u64,
    /// `None`: deleted.
    pub(crate) value: Option<Bytes>,
}

/// What readers and watchers can learn without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signal {
    pub(crate) phase: Phase,
    /// Counts refills: a watcher of an older filling is over.
    pub(crate) filling: u64,
    /// Revision of the last change.
    pub(crate) version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Filling,
    Ready,
    /// The resource was removed or the process ends.
    Closed,
}

pub(crate) struct ResourceCache {
    pub(crate) config: ResourceConfig,
    pub(crate) type_meta: Arc<TypeMeta>,
    pub(crate) metrics: CacheMetrics,
    state: RwLock<State>,
    signal: watch::Sender<Signal>,
}

/// Under the lock.
pub(crate) struct State {
    objects: BTreeSet<ByKey>,
    /// Stored values that cannot be read: no read may pretend that they do not exist.
    corrupt: BTreeMap<Box<str>, Box<str>>,
    pub(crate) window: Window,
    pub(crate) signal: Signal,
    /// Changes at or below are part of the filling.
    filled_at: u64,
    /// Changes that arrived while filling.
    waiting: Vec<StoreChange>,
}

/// What a filling has read so far.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    objects: BTreeSet<ByKey>,
    corrupt: BTreeMap<Box<str>, Box<str>>,
}

/// A decoded change.
enum Decoded {
    Put(Object),
    Corrupt(String),
    Delete,
}

impl ResourceCache {
    pub(crate) fn new(config: ResourceConfig, window_bytes: usize, metrics: CacheMetrics) -> Self {
        let signal = Signal { phase: Phase::Filling, filling: 0, version: 0 };
        Self {
            type_meta: Arc::new(config.type_meta.clone()),
            config,
            metrics,
            state: RwLock::new(State {
                objects: BTreeSet::new(),
                corrupt: BTreeMap::new(),
                window: Window::new(window_bytes),
                signal,
                filled_at: 0,
                waiting: Vec::new(),
            }),
            signal: watch::Sender::new(signal),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    pub(crate) fn signal(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    pub(crate) fn ready(&self) -> bool {
        self.signal.borrow().phase == Phase::Ready
    }

    /// From here on changes wait for [`ResourceCache::fill`]. The old state stays for look-ups of the
    /// server itself; watches end.
    pub(crate) fn start_filling(&self) {
        let mut state = self.state.write();
        state.waiting.clear();
        state.signal = Signal { phase: Phase::Filling, filling: state.signal.filling + 1, version: 0 };
        let signal = state.signal;
        drop(state);
        self.signal.send_replace(signal);
    }

    /// Lets go of what has become too old in a resource that changes no more.
    pub(crate) fn trim(&self) {
        let mut state = self.state.write();
        state.window.evict(Instant::now());
        self.metrics.capacity.set(state.window.len() as i64);
    }

    /// The resource is gone or the process ends.
    pub(crate) fn close(&self) {
        let mut state = self.state.write();
        state.signal.phase = Phase::Closed;
        let signal = state.signal;
        drop(state);
        self.signal.send_replace(signal);
    }

    /// Adds an entry of the store to a listing.
    pub(crate) fn list_entry(&self, listing: &mut Listing, key: &str, revision: u64, value: &Bytes) {
        match self.decode(key, revision, Some(value)) {
            Decoded::Put(object) => {
                listing.objects.insert(ByKey(Arc::new(object)));
            }
            Decoded::Corrupt(reason) => {
                listing.corrupt.insert(key.into(), reason.into());
            }
            Decoded::Delete => {}
        }
    }

    /// Replaces the state by a listing at a revision, then catches up with the changes that waited.
    /// Returns false, and changes nothing, if another filling was begun meanwhile.
    pub(crate) fn fill(&self, filling: u64, revision: u64, listing: Listing) -> bool {
        let mut state = self.state.write();
        if state.signal.filling != filling || state.signal.phase != Phase::Filling {
            return false;
        }
        let old = std::mem::replace(&mut state.objects, listing.objects);
        state.corrupt = listing.corrupt;
        state.filled_at = revision;
        state.window.restart(revision);
        state.signal.version = revision;
        // Decoded under the lock, but only here and only what came during the listing.
        for change in std::mem::take(&mut state.waiting) {
            let decoded = self.decode(&change.key, change.revision, change.value.as_ref());
            state.apply(&change.key, change.revision, decoded);
        }
        state.signal.phase = Phase::Ready;
        self.publish(state);
        self.metrics.fills.inc();
        drop(old);
        true
    }

    /// Applies changes of the store, in revision order. Changes of one revision come in one call, so
    /// that no reader sees a part of a transaction.
    pub(crate) fn apply(&self, changes: Vec<StoreChange>) {
        self.metrics.received.inc_by(changes.len() as u64);
        if self.signal.borrow().phase == Phase::Ready {
            let decoded: Vec<Decoded> = changes
                .iter()
                .map(|change| self.decode(&change.key, change.revision, change.value.as_ref()))
                .collect();
            let mut state = self.state.write();
            // Only the feed, which is calling, starts a filling; so the phase is still the same.
            for (change, decoded) in changes.iter().zip(decoded) {
                state.apply(&change.key, change.revision, decoded);
            }
            self.publish(state);
            return;
        }
        let mut state = self.state.write();
        match state.signal.phase {
            Phase::Filling => state.waiting.extend(changes),
            Phase::Closed => {}
            // The filling ended between the look and the lock.
            Phase::Ready => {
                for change in changes {
                    let decoded = self.decode(&change.key, change.revision, change.value.as_ref());
                    state.apply(&change.key, change.revision, decoded);
                }
                self.publish(state);
            }
        }
    }

    fn publish(&self, state: parking_lot::RwLockWriteGuard<'_, State>) {
        self.metrics.objects.set(state.objects.len() as i64);
        self.metrics.capacity.set(state.window.len() as i64);
        let signal = state.signal;
        drop(state);
        self.signal.send_if_modified(|last| {
            // Two publishers may pass each other here; the newer state wins.
            if last.phase == Phase::Closed || (signal.filling, signal.version) < (last.filling, last.version)
            {
                return false;
            }
            std::mem::replace(last, signal) != signal
        });
    }

    fn decode(&self, key: &str, revision: u64, value: Option<&Bytes>) -> Decoded {
        let Some(value) = value else { return Decoded::Delete };
        match codec::decode(&self.config, &self.type_meta, key, value, revision) {
            Ok((object, _)) => Decoded::Put(object),
            Err(error) => {
                let reason = match error {
                    Error::Corrupt { reason, .. } => reason,
                    other => other.to_string(),
                };
                tracing::error!(resource = %self.config.name, key, reason, "Stored object cannot be decoded");
                Decoded::Corrupt(reason)
            }
        }
    }
}

impl State {
    fn apply(&mut self, key: &str, revision: u64, decoded: Decoded) {
        if revision <= self.filled_at {
            return;
        }
        self.signal.version = revision;
        match decoded {
            Decoded::Put(object) => {
                self.corrupt.remove(key);
                let object = Arc::new(object);
                let previous = self.objects.replace(ByKey(object.clone())).map(|ByKey(previous)| previous);
                self.window.push(Event::new(revision, Change::Put { object, previous }));
            }
            Decoded::Corrupt(reason) => {
                self.remove(key, revision);
                self.corrupt.insert(key.into(), reason.into());
            }
            Decoded::Delete => {
                self.corrupt.remove(key);
                self.remove(key, revision);
            }
        }
    }

    fn remove(&mut self, key: &str, revision: u64) {
        if let Some(ByKey(previous)) = self.objects.take(key) {
            self.window.push(Event::new(revision, Change::Delete { previous }));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<&Arc<Object>>, Error> {
        if let Some(reason) = self.corrupt.get(key) {
            return Err(Error::Corrupt { key: key.into(), reason: reason.to_string() });
        }
        Ok(self.objects.get(key).map(|ByKey(object)| object))
    }

    /// All objects, in key order.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.iter().map(|ByKey(object)| object)
    }

    /// The objects of a scope in key order, from `start` (relative to the scope's prefix) on.
    pub(crate) fn range(&self, scope: &Scope, start: &str) -> impl Iterator<Item = &Arc<Object>> {
        let prefix = scope_prefix(scope);
        let from = format!("{prefix}{start}");
        let exact = matches!(scope, Scope::Object { .. });
        self.objects
            .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
            .map(|ByKey(object)| object)
            .take_while(
                move |object| if exact { *object.key == *prefix } else { object.key.starts_with(&prefix) },
            )
    }

    /// Fails if something in the scope cannot be read.
    pub(crate) fn check(&self, scope: &Scope) -> Result<(), Error> {
        if self.corrupt.is_empty() {
            return Ok(());
        }
        let prefix = scope_prefix(scope);
        match self.corrupt.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded)).next() {
            Some((key, reason)) if key.starts_with(&prefix) => {
                Err(Error::Corrupt { key: key.to_string(), reason: reason.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// What the keys of a scope begin with, below the resource's prefix.
pub(crate) fn scope_prefix(scope: &Scope) -> String {
    match scope {
        Scope::All => String::new(),
        Scope::Namespace(namespace) => format!("{namespace}/"),
        Scope::Object { namespace, name } if namespace.is_empty() => name.clone(),
        Scope::Object { namespace, name } => format!("{namespace}/{name}"),
    }
}

#[cfg(test)]
mod tests;

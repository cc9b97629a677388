//! The server's own view on a resource, for authorizers and admission: state first, then changes, for ever.
//!
//! Where a client's watch is ended (a refilled cache, a window that moved on), a subscription compares
//! what it has told with what is there and tells the difference. Nothing is lost but the states between.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;

use crate::cache::{Change, Phase, ResourceCache, Signal};
use crate::object::{ByKey, Object};

/// What a subscriber learns.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A new object or a new version of one.
    Upsert(Arc<Object>),
    /// The last known state of an object that is gone.
    Delete(Arc<Object>),
    /// The initial state is complete. Sent once.
    Synced,
}

/// An endless stream of changes that survives restarts of the store and refills of the cache; changes
/// may be merged, but the replayed state is always the cache's.
pub struct Subscription {
    cache: Arc<ResourceCache>,
    signal: watch::Receiver<Signal>,
    /// What the subscriber has been told of (or will be, by `queue`).
    known: BTreeSet<ByKey>,
    queue: VecDeque<Notice>,
    cursor: Cursor,
    synced: bool,
}

#[derive(Clone, Copy, Debug)]
enum Cursor {
    /// The whole state must be compared.
    Lost,
    /// At a sequence number of a filling's window.
    At { filling: u64, next: u64 },
}

impl Subscription {
    pub(crate) fn new(cache: Arc<ResourceCache>) -> Self {
        Self {
            signal: cache.signal(),
            cache,
            known: BTreeSet::new(),
            queue: VecDeque::new(),
            cursor: Cursor::Lost,
            synced: false,
        }
    }

    /// The next notice; `None` only when the storage shuts down or the resource is removed. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            if let Some(notice) = self.queue.pop_front() {
                return Some(notice);
            }
            let phase = self.signal.borrow_and_update().phase;
            match phase {
                Phase::Closed => return None,
                Phase::Ready => self.advance(),
                Phase::Filling => {}
            }
            if self.queue.is_empty() && self.signal.changed().await.is_err() {
                return None;
            }
        }
    }

    /// What can be told without waiting; for users that drain in bulk.
    pub fn try_next(&mut self) -> Option<Notice> {
        if self.queue.is_empty() && self.signal.borrow_and_update().phase == Phase::Ready {
            self.advance();
        }
        self.queue.pop_front()
    }

    fn advance(&mut self) {
        let cache = self.cache.clone();
        let state = cache.read();
        if state.signal.phase != Phase::Ready {
            return;
        }
        let events = match self.cursor {
            Cursor::At { filling, next } if filling == state.signal.filling => {
                state.window.read(next, usize::MAX).ok()
            }
            _ => None,
        };
        match events {
            Some(events) => {
                for event in events {
                    match event.change() {
                        Change::Put { object, .. } => {
                            self.known.replace(ByKey(object.clone()));
                            self.queue.push_back(Notice::Upsert(object.clone()));
                        }
                        Change::Delete { previous } => {
                            self.known.remove(&*previous.key);
                            self.queue.push_back(Notice::Delete(previous.clone()));
                        }
                    }
                }
            }
            None => {
                let present: BTreeSet<ByKey> = state.objects().cloned().map(ByKey).collect();
                for ByKey(old) in self.known.difference(&present) {
                    self.queue.push_back(Notice::Delete(old.clone()));
                }
                for ByKey(object) in &present {
                    let told = self.known.get(&*object.key).map(|ByKey(known)| known.resource_version());
                    if told != Some(object.resource_version()) {
                        self.queue.push_back(Notice::Upsert(object.clone()));
                    }
                }
                self.known = present;
            }
        }
        self.cursor = Cursor::At { filling: state.signal.filling, next: state.window.next() };
        if !self.synced {
            self.synced = true;
            self.queue.push_back(Notice::Synced);
        }
    }
}

//! Watches by clients: a cursor in the resource's event window.
//!
//! Nothing is queued per watcher: a watcher that does not read costs nothing, and when the window has
//! moved past its cursor it is ended with an error, because to skip events would be to lie.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::cache::{Event, Gone, Phase, ResourceCache, Signal};
use crate::error::Error;
use crate::object::Object;
use crate::options::{Filter, Scope, WatchOptions, WatchStart};

/// How often a quiet watch tells how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Events taken from the window at a time.
const BATCH: usize = 64;

/// One event of a watch. Objects are shared with the cache.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<Object>),
    Modified(Arc<Object>),
    /// The last state that was selected, with the version of the deletion (or of the change by which the
    /// object left the selection).
    Deleted(Arc<Object>),
    /// An object of the watched kind with nothing but this version; `initial_events_end` asks for the
    /// annotation `k8s.io/initial-events-end: "true"`.
    Bookmark {
        resource_version: u64,
        initial_events_end: bool,
    },
    /// The last event: the watcher was too slow for the window. A 410 Expired Status with this message.
    Expired {
        message: String,
    },
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    cache: Arc<ResourceCache>,
    signal: watch::Receiver<Signal>,
    /// How far the feed of all resources is.
    progress: watch::Receiver<u64>,
    scope: Scope,
    filter: Filter,
    stage: Stage,
    /// Present objects still to be sent, oldest key first.
    initial: std::vec::IntoIter<Arc<Object>>,
    /// The version of the present state, until its bookmark is sent.
    initial_end: Option<u64>,
    batch: VecDeque<Arc<Event>>,
    cursor: u64,
    /// Events at or below are not wanted, though they may come later than the watch.
    after: u64,
    filling: u64,
    /// The version up to which everything was delivered.
    delivered: u64,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Over,
}

/// What a look into the window gave.
enum Look {
    Event(WatchEvent),
    Nothing,
    Over,
}

impl Watch {
    /// Begins at the cache's present state, which the caller has made fresh enough.
    pub(crate) fn start(
        cache: Arc<ResourceCache>,
        progress: watch::Receiver<u64>,
        options: WatchOptions,
    ) -> Result<Self, Error> {
        let signal = cache.signal();
        let reached = *progress.borrow();
        let state = cache.read();
        if state.signal.phase != Phase::Ready {
            return Err(Error::NotReady);
        }
        let now = reached.max(state.signal.version);
        let (initial, initial_end, cursor, delivered) = match options.start {
            WatchStart::After(version) => {
                let cursor = state.window.cursor_after(version).map_err(|gone| expired(version, gone))?;
                (Vec::new(), None, cursor, version)
            }
            WatchStart::Now => (Vec::new(), None, state.window.next(), now),
            WatchStart::State { mark_end, .. } => {
                state.check(&options.scope)?;
                let selected =
                    |object: &&Arc<Object>| options.filter.as_ref().is_none_or(|filter| filter(object));
                let initial = state.range(&options.scope, "").filter(selected).cloned().collect();
                (initial, mark_end.then_some(now), state.window.next(), now)
            }
        };
        let filling = state.signal.filling;
        drop(state);
        let start = Instant::now();
        Ok(Self {
            cache,
            signal,
            progress,
            scope: options.scope,
            filter: options.filter,
            stage: Stage::Running,
            initial: initial.into_iter(),
            initial_end,
            batch: VecDeque::new(),
            cursor,
            after: delivered,
            filling,
            delivered,
            bookmarks: options.bookmarks,
            next_bookmark: start + BOOKMARK_INTERVAL,
            deadline: options.timeout.map(|timeout| start + timeout),
        })
    }

    /// The next event; `None` when the watch is over (timeout, shutdown, or the cache was filled anew:
    /// clients watch again from their last version). Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            if self.stage == Stage::Over {
                return None;
            }
            if let Some(object) = self.initial.next() {
                return Some(WatchEvent::Added(object));
            }
            if let Some(resource_version) = self.initial_end.take() {
                return Some(WatchEvent::Bookmark { resource_version, initial_events_end: true });
            }
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.stage = Stage::Over;
                return self.last_bookmark();
            }
            // Read before the window: what the window then lacks came later.
            let reached = *self.progress.borrow();
            self.signal.borrow_and_update();
            match self.look() {
                Look::Event(event) => return Some(event),
                Look::Over => {
                    self.stage = Stage::Over;
                    continue;
                }
                Look::Nothing => self.delivered = self.delivered.max(reached),
            }
            let now = Instant::now();
            if self.bookmarks && self.next_bookmark <= now {
                self.next_bookmark = now + BOOKMARK_INTERVAL;
                return Some(self.bookmark());
            }
            let wake = match (self.deadline, self.bookmarks) {
                (Some(deadline), true) => Some(deadline.min(self.next_bookmark)),
                (deadline, false) => deadline,
                (None, true) => Some(self.next_bookmark),
            };
            let timer = async {
                match wake {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                changed = self.signal.changed() => {
                    if changed.is_err() {
                        self.stage = Stage::Over;
                    }
                }
                () = timer => {}
            }
        }
    }

    fn bookmark(&self) -> WatchEvent {
        WatchEvent::Bookmark { resource_version: self.delivered, initial_events_end: false }
    }

    /// A watch that runs out tells where to go on.
    fn last_bookmark(&mut self) -> Option<WatchEvent> {
        if !self.bookmarks {
            return None;
        }
        let reached = *self.progress.borrow();
        let state = self.cache.read();
        let same = state.signal.phase == Phase::Ready && state.signal.filling == self.filling;
        let drained = self.batch.is_empty() && same && self.cursor == state.window.next();
        // In the middle of a transaction a bookmark would hide its rest.
        let next = self.batch.front().map(|event| event.revision);
        drop(state);
        if drained {
            self.delivered = self.delivered.max(reached);
        } else if !same || next == Some(self.delivered) {
            return None;
        }
        Some(self.bookmark())
    }

    /// The version up to which everything has been delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    fn look(&mut self) -> Look {
        loop {
            while let Some(event) = self.batch.pop_front() {
                if event.revision <= self.after {
                    continue;
                }
                self.delivered = event.revision;
                let selected = |object: &Object| self.filter.as_ref().is_none_or(|filter| filter(object));
                if let Some(seen) = event.seen(&self.scope, selected) {
                    return Look::Event(seen);
                }
            }
            let state = self.cache.read();
            if state.signal.phase != Phase::Ready || state.signal.filling != self.filling {
                return Look::Over;
            }
            match state.window.read(self.cursor, BATCH) {
                Ok(events) => self.batch.extend(events.cloned()),
                Err(gone) => {
                    self.cache.metrics.terminated.inc();
                    self.stage = Stage::Over;
                    return Look::Event(WatchEvent::Expired { message: too_old(self.delivered, gone) });
                }
            }
            if self.batch.is_empty() {
                return Look::Nothing;
            }
            self.cursor += self.batch.len() as u64;
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("resource", &self.cache.config.name)
            .field("scope", &self.scope)
            .field("delivered", &self.delivered)
            .finish_non_exhaustive()
    }
}

fn too_old(version: u64, gone: Gone) -> String {
    format!("too old resource version: {version} ({})", gone.floor)
}

fn expired(version: u64, gone: Gone) -> Error {
    Error::Expired { message: too_old(version, gone), continue_token: None }
}

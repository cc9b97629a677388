//! The recent events of one resource, in order: what watchers read from and what a watch at a recent
//! version starts with.
//!
//! Every event has a sequence number; a watcher is only a cursor. What falls out of the window is gone:
//! a cursor that points there has been too slow. The window accounts for the bytes that it alone keeps
//! alive, which are those of superseded objects.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::object::Object;
use crate::options::Scope;
use crate::watch::WatchEvent;

/// Accounted per event, whatever its objects weigh.
const EVENT_BYTES: usize = 128;

/// Events older than this leave the window even if there is room. Upstream keeps at least 75 s.
const MAX_AGE: Duration = Duration::from_secs(300);

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    at: Instant,
    change: Change,
    /// The previous state at this revision, made when a watcher first needs it.
    parting: OnceLock<Arc<Object>>,
}

#[derive(Debug)]
pub(crate) enum Change {
    Put { object: Arc<Object>, previous: Option<Arc<Object>> },
    Delete { previous: Arc<Object> },
}

impl Event {
    pub(crate) fn new(revision: u64, change: Change) -> Self {
        Self { revision, at: Instant::now(), change, parting: OnceLock::new() }
    }

    pub(crate) fn change(&self) -> &Change {
        &self.change
    }

    /// What a watcher with this selection sees of the event. An object that leaves the selection is
    /// deleted, one that enters it is added.
    pub(crate) fn seen(&self, scope: &Scope, selected: impl Fn(&Object) -> bool) -> Option<WatchEvent> {
        let (object, previous) = match &self.change {
            Change::Put { object, previous } => (Some(object), previous.as_ref()),
            Change::Delete { previous } => (None, Some(previous)),
        };
        if !in_scope(scope, object.or(previous)?) {
            return None;
        }
        let now = object.filter(|object| selected(object));
        let before = previous.filter(|object| selected(object));
        match (now, before) {
            (Some(now), Some(_)) => Some(WatchEvent::Modified(now.clone())),
            (Some(now), None) => Some(WatchEvent::Added(now.clone())),
            (None, Some(before)) => Some(WatchEvent::Deleted(
                self.parting.get_or_init(|| Arc::new(before.at_version(self.revision))).clone(),
            )),
            (None, None) => None,
        }
    }

    fn bytes(&self) -> usize {
        let kept = match &self.change {
            Change::Put { previous, .. } => previous.as_ref(),
            Change::Delete { previous } => Some(previous),
        };
        EVENT_BYTES + kept.map_or(0, |object| object.weight())
    }
}

fn in_scope(scope: &Scope, object: &Object) -> bool {
    match scope {
        Scope::All => true,
        Scope::Namespace(namespace) => object.namespace() == namespace,
        Scope::Object { namespace, name } => object.namespace() == namespace && object.name() == name,
    }
}

/// Why there is nothing at a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Events after this revision are still there.
    pub(crate) floor: u64,
}

#[derive(Debug)]
pub(crate) struct Window {
    events: VecDeque<Arc<Event>>,
    /// Sequence number of the first event.
    first: u64,
    /// All events after this revision are in the window.
    floor: u64,
    bytes: usize,
    budget: usize,
}

impl Window {
    pub(crate) fn new(budget: usize) -> Self {
        Self { events: VecDeque::new(), first: 0, floor: 0, bytes: 0, budget }
    }

    /// Forgets all events: history begins anew after this revision.
    pub(crate) fn restart(&mut self, floor: u64) {
        self.first = self.next();
        self.events = VecDeque::new();
        self.bytes = 0;
        self.floor = floor;
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.bytes();
        self.events.push_back(Arc::new(event));
        self.evict(Instant::now());
    }

    pub(crate) fn evict(&mut self, now: Instant) {
        // The newest event stays whatever it weighs, or nobody would ever see it.
        while self.events.len() > 1 {
            let over = self.bytes > self.budget
                || self.events.front().is_some_and(|event| now.duration_since(event.at) > MAX_AGE);
            if !over {
                break;
            }
            if let Some(event) = self.events.pop_front() {
                self.bytes -= event.bytes();
                self.first += 1;
                self.floor = event.revision;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// The sequence number that the next event will have.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The cursor of the first event after a revision.
    pub(crate) fn cursor_after(&self, revision: u64) -> Result<u64, Gone> {
        if revision < self.floor {
            return Err(Gone { floor: self.floor });
        }
        Ok(self.first + self.events.partition_point(|event| event.revision <= revision) as u64)
    }

    /// Up to `limit` events from a cursor on.
    pub(crate) fn read(&self, cursor: u64, limit: usize) -> Result<impl Iterator<Item = &Arc<Event>>, Gone> {
        if cursor < self.first {
            return Err(Gone { floor: self.floor });
        }
        let skip = ((cursor - self.first) as usize).min(self.events.len());
        Ok(self.events.range(skip..).take(limit))
    }
}

//! Watches by clients: a cursor in the resource's event window.

use std::sync::Arc;

use crate::object::Object;

/// One event of a watch. Objects are shared with the cache.
#[derive(Clone)]
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
pub struct Watch {}

impl Watch {
    /// The next event; `None` when the watch is over (timeout, shutdown, or the cache was filled anew:
    /// clients watch again from their last version). Cancel safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        todo!()
    }
}

//! The server's own view on a resource, for authorizers and admission: state first, then changes, for ever.

use std::sync::Arc;

use crate::object::Object;

/// What a subscriber learns.
#[derive(Clone)]
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
pub struct Subscription {}

impl Subscription {
    /// The next notice; `None` only when the storage shuts down. Cancel safe.
    pub async fn next(&mut self) -> Option<Notice> {
        todo!()
    }
}

//! What a controller has asked for and not yet seen: creations and deletions in flight, so that a cache that is
//! behind never makes it create or delete twice. Expectations that were not met in five minutes are given up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keelson_client::cache::{Cache, Event};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::meta::{HasMeta, ObjectKey};

const TIMEOUT: Duration = Duration::from_secs(300);

struct Pending {
    creations: usize,
    /// Uids.
    deletions: HashSet<String>,
    since: Instant,
}

#[derive(Default)]
pub struct Expectations(Mutex<HashMap<ObjectKey, Pending>>);

impl Expectations {
    /// Whether the caches show everything that was asked for.
    #[must_use]
    pub fn satisfied(&self, key: &ObjectKey) -> bool {
        match self.0.lock().get(key) {
            Some(pending) => {
                pending.creations == 0 && pending.deletions.is_empty() || pending.since.elapsed() > TIMEOUT
            }
            None => true,
        }
    }

    /// To be called before asking.
    pub fn expect(&self, key: &ObjectKey, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let pending =
            Pending { creations, deletions: deletions.into_iter().collect(), since: Instant::now() };
        self.0.lock().insert(key.clone(), pending);
    }

    /// A creation was seen, or failed.
    pub fn created(&self, key: &ObjectKey) {
        self.not_created(key, 1);
    }

    pub fn not_created(&self, key: &ObjectKey, count: usize) {
        if let Some(pending) = self.0.lock().get_mut(key) {
            pending.creations = pending.creations.saturating_sub(count);
        }
    }

    /// A deletion was seen, or failed.
    pub fn deleted(&self, key: &ObjectKey, uid: &str) {
        if let Some(pending) = self.0.lock().get_mut(key) {
            pending.deletions.remove(uid);
        }
    }

    /// The object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }

    /// Forgets what was expected of owners that are gone: another of the same name must not wait for it. To be called
    /// before anything else subscribes to the owners.
    pub fn follow<P: HasMeta + Send + Sync + 'static>(self: &Arc<Self>, owners: &Cache<P>) {
        let expectations = self.clone();
        owners.subscribe(move |event| {
            if let Event::Deleted(last) = event {
                expectations.forget(&last.meta().key());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_what_was_asked_but_not_for_ever() {
        let (all, key) = (Expectations::default(), ObjectKey::new("ns", "a"));
        assert!(all.satisfied(&key));
        all.expect(&key, 2, ["u".to_owned()]);
        all.created(&key);
        all.deleted(&key, "other");
        assert!(!all.satisfied(&key));
        all.created(&key);
        assert!(!all.satisfied(&key));
        all.deleted(&key, "u");
        assert!(all.satisfied(&key));
        all.expect(&key, 1, []);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(all.satisfied(&key));
    }
}

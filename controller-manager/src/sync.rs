//! What the controllers' loops share: how work ends, and how changes become keys of the queue.

use std::future::Future;
use std::time::Duration;

use keelson_client::cache::{Cache, Event};
use keelson_client::queue::{Queue, Setback};

use crate::meta::{HasMeta, Meta, ObjectKey};
use crate::pod_control::message;

/// Why an object could not be brought to what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("{}", message(.0))]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Invalid(String),
}

/// `Some`: look again after this time.
pub type Outcome = Result<Option<Duration>, SyncError>;

/// Works on keys until the task ends.
pub async fn run<F, Fut>(queue: &Queue<ObjectKey>, workers: usize, work: F)
where
    F: Fn(ObjectKey) -> Fut + Sync,
    Fut: Future<Output = Outcome> + Send,
{
    let work = &work;
    queue.run(workers, |key| async move { work(key).await.map_err(setback) }).await;
}

/// A conflict and an object that is gone tell of a cache that is behind. They too are tried again ever more seldom: a
/// name that somebody else has taken stays taken.
#[must_use]
pub fn setback(error: SyncError) -> Setback {
    match &error {
        SyncError::Api(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            Setback::Outdated(error.to_string())
        }
        _ => Setback::Failed(error.to_string()),
    }
}

/// Every change of an object brings its key into the queue.
pub fn enqueue<P: HasMeta + Send + Sync + 'static>(cache: &Cache<P>, queue: &Queue<ObjectKey>) {
    let queue = queue.clone();
    cache.subscribe(move |event| match event {
        Event::Applied { new, .. } => queue.add(new.meta().key()),
        Event::Deleted(last) => queue.add(last.meta().key()),
        Event::Synced => {}
    });
}

/// Every change of a dependent brings its controller's key into the queue; the controller before a change of
/// hands too. `orphan` is told of dependents without a controller that are new or have other labels.
pub fn enqueue_controllers<P: HasMeta + Send + Sync + 'static>(
    cache: &Cache<P>,
    queue: &Queue<ObjectKey>,
    kind: &'static str,
    orphan: impl Fn(&Meta) + Send + 'static,
) {
    let queue = queue.clone();
    let add = move |meta: &Meta| {
        if let Some(key) = meta.controller_key(kind) {
            queue.add(key);
        }
    };
    cache.subscribe(move |event| match event {
        Event::Applied { old, new } => {
            let new = new.meta();
            let old = old.as_ref().map(|old| old.meta());
            if let Some(old) = old.filter(|old| old.controller != new.controller) {
                add(old);
            }
            add(new);
            let changed = old.is_none_or(|old| old.labels != new.labels || old.controller != new.controller);
            if new.controller.is_none() && changed && !new.deleting {
                orphan(new);
            }
        }
        Event::Deleted(last) => add(last.meta()),
        Event::Synced => {}
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use keelson_client::queue::Metrics;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_that_stays_taken_is_tried_ever_more_seldom() {
        let queue = Queue::new("test", &Metrics::unregistered());
        queue.add(ObjectKey::new("ns", "web"));
        let attempts = AtomicUsize::new(0);
        let work = run(&queue, 1, |_| async {
            attempts.fetch_add(1, Ordering::SeqCst);
            let taken = kube::core::Status::failure("taken", "AlreadyExists").with_code(409).boxed();
            Err(SyncError::Api(kube::Error::Api(taken)))
        });
        assert!(tokio::time::timeout(Duration::from_secs(60), work).await.is_err());
        let attempts = attempts.load(Ordering::SeqCst);
        assert!((2..20).contains(&attempts), "{attempts}");
    }
}

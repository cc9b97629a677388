//! What the controllers' loops share: how work ends, and how changes become keys of the queue.

use std::future::Future;
use std::time::Duration;

use keelson_client::cache::{Cache, Event};
use keelson_client::queue::Queue;

use crate::meta::{HasMeta, Meta, ObjectKey};
use crate::pod_control::message;

/// After losing a race for an object: by then the cache mostly shows who won.
const CONFLICT_DELAY: Duration = Duration::from_millis(100);
/// After an object turned out to be gone that the cache still shows.
const GONE_DELAY: Duration = Duration::from_secs(1);

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

/// Works on keys until the task ends. A conflict is no failure, nor is an object that is
/// gone: it is looked at again.
pub async fn run<F, Fut>(queue: &Queue<ObjectKey>, workers: usize, work: F)
where
    F: Fn(ObjectKey) -> Fut + Sync,
    Fut: Future<Output = Outcome> + Send,
{
    let work = &work;
    queue
        .run(workers, |key| async move {
            match work(key).await {
                Ok(again) => Ok(again),
                Err(SyncError::Api(kube::Error::Api(status))) if status.code == 409 => {
                    Ok(Some(CONFLICT_DELAY))
                }
                Err(SyncError::Api(kube::Error::Api(status))) if status.code == 404 => Ok(Some(GONE_DELAY)),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
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

//! The watch that feeds a cache: it lists anew after a gap, falls back where a server knows no streaming lists, and asks
//! again with growing pauses. What comes of an event is the cache's own matter.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use kube::runtime::watcher;
use kube::{Resource, ResourceExt as _};

use super::objects::{Indexers, ObjectName};
use super::{Cache, Shared};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

pub(super) fn spawn<O, P, S>(
    make: impl Fn(watcher::Config) -> S + Send + 'static,
    config: watcher::Config,
    project: impl Fn(O) -> P + Send + 'static,
    indexers: Indexers<P>,
) -> Arc<Cache<P>>
where
    O: Resource + Send + 'static,
    P: Send + Sync + 'static,
    S: Stream<Item = Result<watcher::Event<O>, watcher::Error>> + Send + 'static,
{
    let mut cache = Cache::empty(indexers);
    let shared = cache.shared.clone();
    let task = tokio::spawn(async move {
        let watching = AssertUnwindSafe(reflect(&shared, make, config, project)).catch_unwind();
        if watching.await.is_err() {
            // The panic has said why. Nobody would notice that this cache stands still, and its readers would go on
            // deciding on the past: as with client-go, the process ends and its supervisor starts it anew.
            tracing::error!(kind = std::any::type_name::<O>(), "A watch failed for good, ending");
            std::process::exit(1);
        }
    });
    cache.task = Some(task.abort_handle());
    Arc::new(cache)
}

async fn reflect<O, P, S>(
    shared: &Shared<P>,
    make: impl Fn(watcher::Config) -> S,
    mut config: watcher::Config,
    project: impl Fn(O) -> P,
) where
    O: Resource,
    S: Stream<Item = Result<watcher::Event<O>, watcher::Error>>,
{
    let mut backoff = BACKOFF_MIN;
    let mut replacing: Option<HashSet<ObjectName>> = None;
    loop {
        let mut stream = std::pin::pin!(make(config.clone()));
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let streaming =
                        config.initial_list_strategy == watcher::InitialListStrategy::StreamingList;
                    if streaming && refuses_streaming_lists(&error) {
                        tracing::info!("The API server has no streaming lists, listing in pages");
                        config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
                        break;
                    }
                    // 410 is how a server asks for a new list: normal, and to be done soon.
                    log_interruption::<O>(&error);
                    tokio::time::sleep(backoff.mul_f64(rand::random_range(0.5..1.5))).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    if is_expired(&error) {
                        // The stream itself would ask for the same version again, were this the answer's status.
                        break;
                    }
                    continue;
                }
            };
            match event {
                watcher::Event::Init => replacing = Some(HashSet::new()),
                watcher::Event::InitApply(object) => {
                    let name = shared.apply(object, &project);
                    if let Some(seen) = &mut replacing {
                        seen.insert(name);
                    }
                }
                watcher::Event::InitDone => {
                    backoff = BACKOFF_MIN;
                    if let Some(seen) = replacing.take() {
                        shared.retain(&seen);
                    }
                    shared.mark_synced();
                }
                watcher::Event::Apply(object) => {
                    backoff = BACKOFF_MIN;
                    shared.apply(object, &project);
                }
                watcher::Event::Delete(object) => {
                    backoff = BACKOFF_MIN;
                    shared.delete(object.meta().namespace.as_deref().unwrap_or_default(), &object.name_any());
                }
            }
        }
    }
}

fn log_interruption<O>(error: &watcher::Error) {
    let error: &dyn std::error::Error = error;
    tracing::debug!(error, kind = std::any::type_name::<O>(), "Watch interrupted");
}

/// Whether the version to go on from is no longer there.
fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status) => {
            status.code == 410
        }
        _ => false,
    }
}

/// A server that knows no `sendInitialEvents` says that the request is invalid.
fn refuses_streaming_lists(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status) => {
            matches!(status.code, 400 | 422)
        }
        _ => false,
    }
}

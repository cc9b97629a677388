//! Notices that something changed in the runtime and wakes the pod it belongs to.
//!
//! A runtime that serves `GetContainerEvents` says so at once and is listed only now and then; any other is listed
//! every [`RELIST`]. What changed is not carried along: the pod's worker observes for itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_proto::cri;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Result, Runtime, names};
use crate::metrics::Metrics;

/// Upstream's relisting period of the generic PLEG.
const RELIST: Duration = Duration::from_secs(1);
/// Beside a working event stream, as a safety net.
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(30);
/// Upstream's: after this long without a list, the node is not ready.
const HEALTHY_WITHIN: Duration = Duration::from_secs(180);

/// A pod as the runtime knows it, for finding orphans.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimePod {
    pub namespace: String,
    pub name: String,
    /// Id → state of sandboxes and containers; a change of it is an event.
    states: BTreeMap<String, i32>,
}

/// The last list and who is told about changes.
pub struct Events {
    runtime: Runtime,
    metrics: Arc<Metrics>,
    last: Mutex<(Option<Instant>, HashMap<String, RuntimePod>)>,
}

impl Events {
    pub fn new(runtime: Runtime, metrics: Arc<Metrics>) -> Self {
        Self { runtime, metrics, last: Mutex::new((None, HashMap::new())) }
    }

    /// Uid → pod, as of the last list.
    pub fn pods(&self) -> HashMap<String, RuntimePod> {
        self.last.lock().1.clone()
    }

    /// Whether the runtime has been listed lately.
    ///
    /// # Errors
    /// Upstream's sentence for the node's Ready condition.
    pub fn healthy(&self) -> std::result::Result<(), String> {
        match self.last.lock().0 {
            None => Err("PLEG is not healthy: pleg has yet to be successful".to_owned()),
            Some(at) if at.elapsed() > HEALTHY_WITHIN => Err(format!(
                "PLEG is not healthy: pleg was last seen active {}s ago; threshold is 3m0s",
                at.elapsed().as_secs()
            )),
            Some(_) => Ok(()),
        }
    }

    /// Runs until cancelled; `wake` gets a pod's uid.
    pub async fn run(
        self: Arc<Self>,
        wake: impl Fn(&str) + Send + Sync + 'static,
        cancel: CancellationToken,
    ) {
        let wake = Arc::new(wake);
        let streaming = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stream = tokio::spawn({
            let (this, wake, streaming, cancel) =
                (self.clone(), wake.clone(), streaming.clone(), cancel.clone());
            async move {
                tokio::select! {
                    () = this.stream(&*wake, &streaming) => {}
                    () = cancel.cancelled() => {}
                }
            }
        });
        loop {
            match self.relist().await {
                Ok(changed) => changed.iter().for_each(|uid| wake(uid)),
                Err(error) => tracing::warn!(%error, "listing the container runtime failed"),
            }
            let events = streaming.load(std::sync::atomic::Ordering::Relaxed);
            let pause = if events { RELIST_WITH_EVENTS } else { RELIST };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => break,
            }
        }
        stream.abort();
    }

    async fn stream(&self, wake: &(impl Fn(&str) + Send + Sync), streaming: &std::sync::atomic::AtomicBool) {
        use std::sync::atomic::Ordering::Relaxed;
        loop {
            match self.runtime.container_events().await {
                Ok(mut events) => {
                    streaming.store(true, Relaxed);
                    while let Ok(Some(event)) = events.message().await {
                        if let Some(metadata) = event.pod_sandbox_status.and_then(|sandbox| sandbox.metadata)
                        {
                            wake(&metadata.uid);
                        }
                    }
                    streaming.store(false, Relaxed);
                }
                Err(error) if error.is_unimplemented() => return,
                Err(error) => tracing::debug!(%error, "the runtime's event stream"),
            }
            tokio::time::sleep(RELIST).await;
        }
    }

    /// Lists once; the uids of pods that changed since the list before.
    pub async fn relist(&self) -> Result<HashSet<String>> {
        let started = Instant::now();
        let (sandboxes, containers) = futures::try_join!(
            self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }),
            self.runtime.list_containers(cri::ListContainersRequest { filter: None })
        )?;
        let (mut pods, mut running_pods, mut by_state) =
            (HashMap::<String, RuntimePod>::new(), 0, [0_i64; 4]);
        for sandbox in &sandboxes.items {
            if let Some(pod) = entry(&mut pods, &sandbox.labels) {
                pod.states.insert(sandbox.id.clone(), sandbox.state);
                running_pods += i64::from(sandbox.state() == cri::PodSandboxState::SandboxReady);
            }
        }
        for container in &containers.containers {
            if let Some(pod) = entry(&mut pods, &container.labels) {
                pod.states.insert(container.id.clone(), container.state);
                if let Some(count) =
                    usize::try_from(container.state).ok().and_then(|state| by_state.get_mut(state))
                {
                    *count += 1;
                }
            }
        }
        let mut last = self.last.lock();
        let changed = pods
            .iter()
            .filter(|(uid, pod)| last.1.get(*uid) != Some(pod))
            .map(|(uid, _)| uid.clone())
            .chain(last.1.keys().filter(|uid| !pods.contains_key(*uid)).cloned())
            .collect();
        *last = (Some(Instant::now()), pods);
        drop(last);
        self.metrics.relisted(started.elapsed(), running_pods, by_state);
        Ok(changed)
    }
}

fn entry<'a>(
    pods: &'a mut HashMap<String, RuntimePod>,
    labels: &HashMap<String, String>,
) -> Option<&'a mut RuntimePod> {
    let uid = labels.get(names::POD_UID)?;
    Some(pods.entry(uid.clone()).or_insert_with(|| RuntimePod {
        namespace: labels.get(names::POD_NAMESPACE).cloned().unwrap_or_default(),
        name: labels.get(names::POD_NAME).cloned().unwrap_or_default(),
        states: BTreeMap::new(),
    }))
}

//! One task per pod: observe → status → plan → act, until the pod is gone.
//!
//! It is woken by changes of the spec, of the runtime, of probes and of referenced objects, and by its own timer. What
//! failed is tried again after a pause as upstream's pod workers do, or once the spec or a referenced object changes: a
//! pod's own status comes back as a change, too, and says nothing new. All it remembers can be lost: a new worker finds
//! the pod's containers by their labels and carries on.

pub mod ending;
mod reporting;
mod resizing;
mod starting;
mod timing;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, ResourceRequirements};
use tokio::sync::{Notify, watch};

use super::{
    Desired, End,
    backoff::{self, Backoff, Postponed},
    describe, kill,
    plan::{self, Plan},
    reference,
};
use crate::{
    context::Kubelet,
    events::Type,
    probes::Probes,
    runtime::observe::{ObservedPod, State},
    status::{
        compute::{self, Waiting},
        publish::Publisher,
    },
    volumes::Mounted,
};

/// After what is soon over.
const RETRY: Duration = Duration::from_secs(1);
/// After an error; up to half as much more, so that not everything that failed at once is tried at once.
const RETRY_FAILED: Duration = Duration::from_secs(10);

/// What to do after a step.
enum Next {
    Again,
    Wait(Duration),
    Finished,
}

/// What can fail and be tried again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    /// The pod as a whole: its sandbox, its cgroup, what is to stop.
    Sync,
    Volumes,
    /// Creating the container of that name.
    Container(String),
}

/// Where the pod is in its life; it only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// All containers are to stop, or have.
    Ending,
    /// Nothing runs and its resources are given back; its records stay for logs until it is deleted.
    Ended,
}

/// The state of one pod on this node.
pub struct Worker {
    kubelet: Arc<Kubelet>,
    uid: String,
    desired: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    anew: Arc<AtomicBool>,
    /// The pod as it was when it was last looked at.
    wanted: Option<Arc<Pod>>,
    life: Life,
    waiting: HashMap<String, Waiting>,
    restarts: Backoff,
    pulls: Backoff,
    probes: Probes,
    status: PodStatus,
    latest: watch::Sender<PodStatus>,
    publisher: Option<Publisher>,
    /// Set once by a decision to end the pod before its time.
    failed: Option<End>,
    evict: watch::Receiver<Option<End>>,
    termination_messages: HashMap<String, String>,
    was_ready: HashSet<String>,
    /// What containers were last given, by id.
    given: HashMap<String, ResourceRequirements>,
    /// Why a resize waits.
    resize_pending: Option<Waiting>,
    mounted: Mounted,
    volume_failures: u32,
    postponed: Postponed<Work>,
    seen: Instant,
    running_reported: bool,
}

/// What others hold of a worker.
pub struct Handle {
    pub desired: watch::Sender<Desired>,
    pub wake: Arc<Notify>,
    /// Set before it is woken: what has failed may work now, and is tried at once.
    pub anew: Arc<AtomicBool>,
    /// Why, and how fast, the pod is to end before its time.
    pub evict: watch::Sender<Option<End>>,
    /// The status as last computed.
    pub status: watch::Receiver<PodStatus>,
}

impl Worker {
    /// A worker and its handle; nothing happens until it is run.
    pub fn new(kubelet: Arc<Kubelet>, desired: Desired) -> (Self, Handle) {
        let pod = desired.pod.clone();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let was_ready = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .filter(|status| status.ready)
            .filter_map(|status| {
                status.container_id.as_deref()?.split_once("://").map(|(_, id)| id.to_owned())
            })
            .collect();
        let publisher = kubelet.client.clone().map(|client| Publisher::start(client, pod.status.as_ref()));
        let (desired, receiver) = watch::channel(desired);
        let (evict, evicted) = watch::channel(None);
        let (latest, latest_receiver) = watch::channel(status.clone());
        let wake = Arc::new(Notify::new());
        let anew = Arc::new(AtomicBool::new(false));
        let over = compute::is_terminal(&status);
        let worker = Self {
            uid,
            desired: receiver,
            wake: wake.clone(),
            anew: anew.clone(),
            wanted: None,
            life: if over { Life::Ending } else { Life::Running },
            waiting: HashMap::new(),
            restarts: Backoff::new(backoff::RESTARTS),
            pulls: Backoff::new(backoff::RESTARTS),
            probes: Probes::default(),
            status,
            latest,
            publisher,
            failed: None,
            evict: evicted,
            termination_messages: HashMap::new(),
            was_ready,
            given: HashMap::new(),
            resize_pending: None,
            mounted: Mounted::default(),
            volume_failures: 0,
            postponed: Postponed::default(),
            seen: Instant::now(),
            running_reported: false,
            kubelet,
        };
        (worker, Handle { desired, wake, anew, evict, status: latest_receiver })
    }

    /// Runs until the pod is gone from this node.
    pub async fn run(mut self) {
        loop {
            let started = Instant::now();
            let next = Box::pin(self.step()).await;
            self.kubelet.metrics.pod_synced("sync", started.elapsed());
            match next {
                Next::Again => {}
                Next::Finished => return,
                Next::Wait(pause) => {
                    let wake = self.wake.clone();
                    tokio::select! {
                        () = wake.notified() => {}
                        changed = self.desired.changed() => if changed.is_err() { return },
                        _ = self.evict.changed() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    async fn step(&mut self) -> Next {
        let desired = self.desired.borrow_and_update().clone();
        if self.failed.is_none() {
            self.failed = self.evict.borrow_and_update().clone();
        }
        let pod = desired.pod.clone();
        let Some(spec) = pod.spec.clone() else { return Next::Finished };
        let changed = self.wanted.replace(pod.clone()).is_some_and(|before| asks_for_more(&before, &pod));
        if self.anew.swap(false, Ordering::AcqRel) || changed {
            self.postponed.clear();
        }
        let observed = match self.kubelet.runtime.observe(&self.uid).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = describe(&pod), %error, "observing a pod");
                return Next::Wait(RETRY);
            }
        };
        self.check_deadline(&spec);
        if self.life == Life::Running
            && (desired.deleting()
                || self.failed.is_some()
                || compute::is_over(&spec, &observed)
                // Others end pods too: what has failed in the API server's eyes never runs again.
                || pod.status.as_ref().is_some_and(compute::is_terminal))
        {
            self.life = Life::Ending;
        }
        let (mut changes, mut evictions) = (self.desired.clone(), self.evict.clone());
        match self.life {
            Life::Running => tokio::select! {
                biased;
                () = interrupted(&mut changes, &mut evictions) => Next::Again,
                next = self.advance(&desired, &spec, &observed) => next,
            },
            Life::Ending | Life::Ended => {
                let grace = self.grace(&desired);
                tokio::select! {
                    biased;
                    () = shortened(&mut changes, grace) => Next::Again,
                    next = self.end(&desired, &observed) => next,
                }
            }
        }
    }

    /// Brings a pod that should run nearer to its spec.
    async fn advance(&mut self, desired: &Desired, spec: &PodSpec, observed: &ObservedPod) -> Next {
        let pod = &desired.pod;
        let wake = self.wake.clone();
        let kubelet = self.kubelet.clone();
        self.probes.reconcile(&kubelet, pod, observed, &wake, &self.was_ready);
        let plan = plan::plan(pod, observed, &self.status, &self.probes.verdicts(observed));
        self.forget_waiting(observed, &plan);
        self.publish(desired, observed, false);
        // Nothing is started again in what is over: containers of which the records are lost had run, too.
        if compute::is_terminal(&self.status) {
            self.life = Life::Ending;
            return Next::Again;
        }
        if let Some(left) = self.postponed.left(&Work::Sync, Instant::now()) {
            return Next::Wait(self.until_deadline(spec).map_or(left, |deadline| deadline.min(left)));
        }
        if plan.kill_pod {
            let killing = kill::pod(&kubelet, pod, observed, desired.grace());
            if let Err(error) = self.reporting(desired, observed, killing).await {
                return self.sync_failed(pod, "FailedKillPod", &format!("error killing pod: {error}"));
            }
            // Whatever comes next is decided from what is then there.
            if plan.create_sandbox.is_none() {
                return if compute::is_over(spec, observed) { Next::Again } else { Next::Wait(RETRY) };
            }
        }
        for victim in &plan.kill {
            let Some(found) = observed.containers.iter().find(|container| container.id == victim.id) else {
                continue;
            };
            let grace = probe_grace(spec, victim).unwrap_or_else(|| desired.grace());
            let ip = observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first()).map(String::as_str);
            let killing = kill::container(&kubelet, pod, found, ip, grace, Some(&victim.message));
            if let Err(error) = self.reporting(desired, observed, killing).await {
                return self.sync_failed(pod, "FailedKillPod", &format!("error killing container: {error}"));
            }
            if matches!(found.state, State::Created) {
                let request = keelson_proto::cri::RemoveContainerRequest { container_id: found.id.clone() };
                let _ = kubelet.runtime.remove_container(request).await;
            }
        }
        if plan.kill.iter().any(|victim| victim.cause == plan::KillCause::Unknown) {
            // The runtime may need a while to know its own containers again.
            return Next::Wait(RETRY);
        }
        if !plan.kill.is_empty() {
            // Their exit is what the restart is decided and counted from.
            return Next::Again;
        }
        if let Some(next) = self.resize(desired, spec, observed).await {
            return next;
        }
        let starting = plan.create_sandbox.is_some() || !plan.start.is_empty();
        if starting && let Err(next) = self.ensure_cgroup(pod, spec) {
            return next;
        }
        // Volumes follow their objects for as long as the pod runs, also one that was started by an earlier kubelet.
        if (starting || spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()))
            && let Err(next) = self.mount_volumes(pod).await
        {
            return next;
        }
        if let Some(attempt) = plan.create_sandbox {
            return self.make_sandbox(pod, spec, attempt).await;
        }
        if self.start_containers(desired, spec, observed, &plan).await {
            return Next::Again;
        }
        self.remove_old(observed).await;
        self.publish(desired, observed, false);
        Next::Wait(self.pause(spec, observed))
    }

    fn sync_failed(&mut self, pod: &Pod, reason: &str, message: &str) -> Next {
        self.kubelet.events.record(&reference(pod, None), Type::Warning, reason, message);
        Next::Wait(self.postpone(Work::Sync))
    }

    /// Has what failed wait; for how long.
    fn postpone(&mut self, work: Work) -> Duration {
        let pause = RETRY_FAILED.mul_f64(rand::random_range(1.0..1.5));
        self.postponed.put(work, Instant::now() + pause);
        pause
    }

    /// Seconds that containers get to end in.
    fn grace(&self, desired: &Desired) -> i64 {
        let hurry = self.failed.as_ref().and_then(|end| end.grace);
        hurry.map_or(desired.grace(), |hurry| hurry.clamp(1, desired.grace()))
    }

    /// A reason to wait ends when the container runs, or is no longer to be started.
    fn forget_waiting(&mut self, observed: &ObservedPod, plan: &Plan) {
        if plan.start.is_empty() && plan.create_sandbox.is_none() {
            self.waiting.clear();
        }
        self.waiting.retain(|name, _| !observed.container(name).is_some_and(|container| container.running()));
    }
}

/// Whether a pod's source wants something else than before; its status is this kubelet's own word.
fn asks_for_more(before: &Arc<Pod>, now: &Arc<Pod>) -> bool {
    let (old, new) = (&before.metadata, &now.metadata);
    !Arc::ptr_eq(before, now)
        && (before.spec != now.spec
            || old.labels != new.labels
            || old.annotations != new.annotations
            || old.deletion_timestamp != new.deletion_timestamp)
}

/// A probe may say how long its container gets; the pod's own period is the default.
fn probe_grace(spec: &PodSpec, victim: &plan::Kill) -> Option<i64> {
    if victim.cause != plan::KillCause::Probe {
        return None;
    }
    let container = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|container| container.name == victim.name)?;
    let probe = if victim.message.contains("startup probe") {
        &container.startup_probe
    } else {
        &container.liveness_probe
    };
    probe.as_ref()?.termination_grace_period_seconds
}

/// Returns once the pod is to end, whatever is being done for it.
async fn interrupted(changes: &mut watch::Receiver<Desired>, evictions: &mut watch::Receiver<Option<End>>) {
    let deleted = async { changes.wait_for(Desired::deleting).await.is_ok() };
    let evicted = async { evictions.wait_for(Option::is_some).await.is_ok() };
    let happened = tokio::select! {
        happened = deleted => happened,
        happened = evicted => happened,
    };
    // A sender that is gone says nothing any more.
    if !happened {
        std::future::pending::<()>().await;
    }
}

/// Returns once the pod is to end sooner than within `grace` seconds.
async fn shortened(changes: &mut watch::Receiver<Desired>, grace: i64) {
    let sooner = changes.wait_for(|desired| desired.grace() < grace).await.is_ok();
    if !sooner {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pods_own_status_asks_for_nothing() {
        let before = json!({
            "metadata": {"name": "p", "resourceVersion": "1", "labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            "status": {"phase": "Pending"},
        });
        let pod = |value: &Value| Arc::new(serde_json::from_value::<Pod>(value.clone()).unwrap());
        let check = |pointer: &str, value: Value, expected: bool| {
            let mut now = before.clone();
            *now.pointer_mut(pointer).unwrap() = value;
            assert_eq!(asks_for_more(&pod(&before), &pod(&now)), expected, "{pointer}");
        };
        check("/status", json!({"phase": "Running", "podIP": "10.0.0.1"}), false);
        check("/metadata/resourceVersion", json!("2"), false);
        check("/metadata/labels", json!({"a": "2"}), true);
        check("/metadata", json!({"name": "p", "labels": {"a": "1"}, "annotations": {"b": "1"}}), true);
        check("/metadata", json!({"labels": {"a": "1"}, "deletionTimestamp": "2026-01-01T00:00:00Z"}), true);
        check("/spec/containers/0/image", json!("i:2"), true);
    }
}

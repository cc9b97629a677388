//! One task per pod: observe → status → plan → act, until the pod is gone.
//!
//! It is woken by changes of the spec, of the runtime, of probes and of referenced objects, and by its own timer. All
//! it remembers can be lost: a new worker finds the pod's containers by their labels and carries on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Secret};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use tokio::sync::{Notify, watch};

use super::{
    Desired, Source,
    backoff::{self, Backoff},
    describe, kill,
    plan::{self, Plan, Slot},
    reference, resources, start, termination,
};
use crate::{
    context::Kubelet,
    events::Type,
    probes::Probes,
    runtime::observe::{ObservedPod, State},
    status::{
        compute::{self, Inputs, Probed, Waiting},
        publish::{Publisher, Target},
    },
    volumes::Mounted,
};

/// After an error of the runtime.
const RETRY: Duration = Duration::from_secs(1);
/// The least time between looks at containers that are expected to end soon.
const MINIMUM_POLL: Duration = Duration::from_millis(100);
/// A runtime without events is listed this often anyway.
const MAXIMUM_POLL: Duration = Duration::from_secs(1);
const VOLUME_RETRY: Duration = Duration::from_millis(500);
const VOLUME_RETRY_MAX: Duration = Duration::from_secs(120);

/// What to do after a step.
enum Next {
    Again,
    Wait(Duration),
    Finished,
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
    life: Life,
    waiting: HashMap<String, Waiting>,
    restarts: Backoff,
    pulls: Backoff,
    probes: Probes,
    status: PodStatus,
    latest: watch::Sender<PodStatus>,
    publisher: Option<Publisher>,
    /// Set once by a decision to end the pod before its time.
    failed: Option<Waiting>,
    evict: watch::Receiver<Option<Waiting>>,
    termination_messages: HashMap<String, String>,
    was_ready: HashSet<String>,
    mounted: Mounted,
    volume_failures: u32,
    seen: Instant,
    running_reported: bool,
}

/// What others hold of a worker.
pub struct Handle {
    pub desired: watch::Sender<Desired>,
    pub wake: Arc<Notify>,
    /// A reason and message to end the pod with.
    pub evict: watch::Sender<Option<Waiting>>,
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
        let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let worker = Self {
            uid,
            desired: receiver,
            wake: wake.clone(),
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
            mounted: Mounted::default(),
            volume_failures: 0,
            seen: Instant::now(),
            running_reported: false,
            kubelet,
        };
        (worker, Handle { desired, wake, evict, status: latest_receiver })
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
        let observed = match self.kubelet.runtime.observe(&self.uid).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(pod = describe(&pod), %error, "observing a pod");
                return Next::Wait(RETRY);
            }
        };
        self.check_deadline(&spec);
        if self.life == Life::Running
            && (desired.deleting() || self.failed.is_some() || compute::is_over(&spec, &observed))
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
                let grace = desired.grace();
                tokio::select! {
                    biased;
                    () = shortened(&mut changes, grace) => Next::Again,
                    next = self.end(&desired, &observed) => next,
                }
            }
        }
    }

    /// Upstream's activeDeadlineSeconds: counted from the pod's start time.
    fn check_deadline(&mut self, spec: &PodSpec) {
        if self.failed.is_none() && self.until_deadline(spec) == Some(Duration::ZERO) {
            self.failed = Some(Waiting {
                reason: "DeadlineExceeded".to_owned(),
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
            });
        }
    }

    fn until_deadline(&self, spec: &PodSpec) -> Option<Duration> {
        let limit = Duration::from_secs(u64::try_from(spec.active_deadline_seconds?).ok()?);
        let started = self.status.start_time.as_ref()?.0;
        let age = Duration::try_from(Timestamp::now().duration_since(started)).unwrap_or_default();
        Some(limit.saturating_sub(age))
    }

    /// Brings a pod that should run nearer to its spec.
    async fn advance(&mut self, desired: &Desired, spec: &PodSpec, observed: &ObservedPod) -> Next {
        let pod = &desired.pod;
        let wake = self.wake.clone();
        let kubelet = self.kubelet.clone();
        self.probes.reconcile(&kubelet, pod, observed, &wake, &self.was_ready);
        let plan = plan::plan(pod, observed, &self.probes.verdicts(observed));
        self.forget_waiting(observed, &plan);
        self.publish(desired, observed, false);
        if plan.kill_pod {
            let result = kill::pod(&kubelet, pod, observed, desired.grace()).await;
            if let Err(error) = result {
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
            let killed = kill::container(&kubelet, pod, found, ip, grace, Some(&victim.message)).await;
            if let Err(error) = killed {
                return self.sync_failed(pod, "FailedKillPod", &format!("error killing container: {error}"));
            }
            if matches!(found.state, State::Created) {
                let request = keelson_proto::cri::RemoveContainerRequest { container_id: found.id.clone() };
                let _ = kubelet.runtime.remove_container(request).await;
            }
        }
        if !plan.kill.is_empty() {
            // Their exit is what the restart is decided and counted from.
            return Next::Again;
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

    fn ensure_cgroup(&self, pod: &Pod, spec: &PodSpec) -> Result<(), Next> {
        let limits = resources::pod_limits(spec, self.kubelet.config.cpu_cfs_quota);
        self.kubelet.cgroups.make_pod(&self.uid, resources::qos(spec), limits).map_err(|error| {
            let message = format!(
                "failed to ensure that the pod: {} cgroups exist and are correctly applied: {error}",
                self.uid
            );
            self.sync_failed(pod, "FailedCreatePodContainer", &message)
        })
    }

    async fn mount_volumes(&mut self, pod: &Pod) -> Result<(), Next> {
        let kubelet = self.kubelet.clone();
        match kubelet.volumes.mount(pod).await {
            Ok(mounted) => {
                self.mounted = mounted;
                self.volume_failures = 0;
                Ok(())
            }
            Err(error) => {
                kubelet.events.record(
                    &reference(pod, None),
                    Type::Warning,
                    "FailedMount",
                    &error.to_string(),
                );
                let pause = VOLUME_RETRY * 2_u32.saturating_pow(self.volume_failures.min(10));
                self.volume_failures += 1;
                Err(Next::Wait(pause.min(VOLUME_RETRY_MAX)))
            }
        }
    }

    async fn make_sandbox(&mut self, pod: &Pod, spec: &PodSpec, attempt: u32) -> Next {
        let kubelet = self.kubelet.clone();
        let network = kubelet.runtime_condition.read().network.clone();
        if let (Err(why), false) = (network, spec.host_network == Some(true)) {
            let message = format!("network is not ready: {why}");
            return self.sync_failed(pod, "NetworkNotReady", &message);
        }
        let handler = match self.runtime_handler(spec).await {
            Ok(handler) => handler,
            Err(message) => return self.sync_failed(pod, "FailedCreatePodSandBox", &message),
        };
        let config = start::sandbox_config(&kubelet, pod, spec, attempt);
        match start::sandbox(&kubelet, config, &handler).await {
            Ok(_) => Next::Again,
            Err(message) => self.sync_failed(pod, "FailedCreatePodSandBox", &message),
        }
    }

    /// The runtime's name for the pod's RuntimeClass.
    async fn runtime_handler(&self, spec: &PodSpec) -> Result<String, String> {
        let Some(name) = spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(String::new());
        };
        let failed = |error: String| format!("failed to get sandbox runtime: {error}");
        let client = self.kubelet.client.clone().ok_or_else(|| failed("no API server".to_owned()))?;
        let api: Api<k8s_openapi::api::node::v1::RuntimeClass> = Api::all(client);
        match api.get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(failed(format!("RuntimeClass {name:?} not found"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Starts what the plan says; true if anything was started, so that the pod is observed anew.
    async fn start_containers(
        &mut self,
        desired: &Desired,
        spec: &PodSpec,
        observed: &ObservedPod,
        plan: &Plan,
    ) -> bool {
        let Some(sandbox) = observed.ready_sandbox() else { return false };
        if plan.start.is_empty() {
            return false;
        }
        let kubelet = self.kubelet.clone();
        let pod = desired.pod.clone();
        let secrets = self.pull_secrets(&pod, spec).await;
        let sandbox_config = start::sandbox_config(&kubelet, &pod, spec, sandbox.attempt);
        let mounted = self.mounted.clone();
        let around = start::Surroundings {
            kubelet: &kubelet,
            pod: &pod,
            spec,
            mounted: &mounted,
            sandbox,
            sandbox_config: &sandbox_config,
            secrets: &secrets,
            observed,
        };
        let mut any = false;
        for &slot in &plan.start {
            let Some(container) = plan::container_of(spec, slot) else { continue };
            if self.in_backoff(&pod, slot, &container.name, observed) {
                continue;
            }
            let restart_count = observed
                .container(&container.name)
                .map_or_else(|| self.known_restarts(&container.name), |found| found.restart_count + 1);
            match start::container(&around, slot, &container, restart_count, &mut self.pulls).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                    any = true;
                }
                Err(waiting) => {
                    tracing::info!(pod = describe(&pod), container = container.name, ?waiting, "not started");
                    self.waiting.insert(container.name.clone(), waiting);
                }
            }
        }
        any
    }

    /// Records of containers may have been removed while the kubelet was down; the count goes on.
    fn known_restarts(&self, name: &str) -> u32 {
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let known = lists.into_iter().flatten().flatten().find(|status| status.name == name);
        let ran = |status: &&k8s_openapi::api::core::v1::ContainerStatus| {
            status.container_id.as_deref().is_some_and(|id| !id.is_empty())
        };
        known.filter(ran).and_then(|status| u32::try_from(status.restart_count + 1).ok()).unwrap_or(0)
    }

    /// Whether a container that ended has to wait; says so, and counts the restart if it does not.
    fn in_backoff(&mut self, pod: &Pod, slot: Slot, name: &str, observed: &ObservedPod) -> bool {
        let Some(finished) = observed.container(name).and_then(|container| container.finished_at()) else {
            return false;
        };
        let now = Timestamp::now();
        if self.restarts.remaining(name, finished, now).is_some() {
            let object = reference(pod, Some((slot.kind, name)));
            let message = format!("Back-off restarting failed container {name} in pod {}", describe(pod));
            let known = self.waiting.get(name).is_some_and(|waiting| waiting.reason == "CrashLoopBackOff");
            if !known {
                self.kubelet.events.record(&object, Type::Warning, "BackOff", &message);
            }
            let pause = backoff::go_seconds(self.restarts.pause(name));
            let message =
                format!("back-off {pause} restarting failed container={name} pod={}", describe(pod));
            self.waiting.insert(name.to_owned(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
            return true;
        }
        self.restarts.next(name, finished, now);
        false
    }

    async fn pull_secrets(&self, pod: &Pod, spec: &PodSpec) -> Vec<Arc<Secret>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut secrets = Vec::new();
        for reference in spec.image_pull_secrets.iter().flatten() {
            match self.kubelet.volumes.secrets.get(namespace, &reference.name, &self.uid).await {
                Ok(Some(secret)) => secrets.push(secret),
                Ok(None) => {
                    tracing::warn!(pod = describe(pod), secret = reference.name, "no such image pull secret")
                }
                Err(error) => tracing::warn!(pod = describe(pod), %error, "reading an image pull secret"),
            }
        }
        secrets
    }

    fn sync_failed(&self, pod: &Pod, reason: &str, message: &str) -> Next {
        self.kubelet.events.record(&reference(pod, None), Type::Warning, reason, message);
        Next::Wait(RETRY)
    }

    /// A reason to wait ends when the container runs, or is no longer to be started.
    fn forget_waiting(&mut self, observed: &ObservedPod, plan: &Plan) {
        if plan.start.is_empty() && plan.create_sandbox.is_none() {
            self.waiting.clear();
        }
        self.waiting.retain(|name, _| !observed.container(name).is_some_and(|container| container.running()));
    }

    /// Keeps the newest ended container of each name, for logs and the last state.
    async fn remove_old(&mut self, observed: &ObservedPod) {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for container in &observed.containers {
            let count = seen.entry(container.name.as_str()).or_default();
            *count += 1;
            if *count > 2 && !container.may_run() {
                let request =
                    keelson_proto::cri::RemoveContainerRequest { container_id: container.id.clone() };
                if let Err(error) = self.kubelet.runtime.remove_container(request).await {
                    tracing::debug!(%error, "removing an old container");
                }
                let _ = std::fs::remove_file(&container.log_path);
                self.termination_messages.remove(&container.id);
            }
        }
    }

    /// How long nothing has to be done unless something happens.
    fn pause(&self, spec: &PodSpec, observed: &ObservedPod) -> Duration {
        let now = Timestamp::now();
        let backoffs = observed
            .containers
            .iter()
            .filter_map(|container| self.restarts.remaining(&container.name, container.finished_at()?, now));
        let pulls = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .filter(|container| self.waiting.contains_key(&container.name))
            .map(|container| {
                let image = container.image.as_deref().unwrap_or_default();
                let last = self.pulls.last(image).and_then(|(at, _)| self.pulls.remaining(image, at, now));
                last.unwrap_or(Duration::from_secs(10))
            });
        let renew =
            self.mounted.renew_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        backoffs
            .chain(pulls)
            .chain(renew)
            .chain(self.until_deadline(spec))
            .chain(expected_end(spec, observed, now))
            .chain([self.kubelet.config.sync_frequency.mul_f64(rand::random_range(1.0..1.5))])
            .min()
            .unwrap_or(RETRY)
            .max(Duration::from_millis(10))
    }

    /// Ends the pod: containers, sandboxes, volumes, cgroup, and at last its object and records.
    async fn end(&mut self, desired: &Desired, observed: &ObservedPod) -> Next {
        let pod = &desired.pod;
        let kubelet = self.kubelet.clone();
        self.waiting.clear();
        self.probes.stop_restarts();
        if self.life == Life::Ending {
            self.publish(desired, observed, false);
            if observed.any_running() || observed.sandboxes.iter().any(|sandbox| sandbox.ready) {
                if let Err(error) = kill::pod(&kubelet, pod, observed, desired.grace()).await {
                    return self.sync_failed(pod, "FailedKillPod", &format!("error killing pod: {error}"));
                }
                return Next::Again;
            }
            self.probes.stop();
            self.publish(desired, observed, true);
            if let Err(error) = kubelet.volumes.remove(&self.uid) {
                tracing::warn!(pod = describe(pod), %error, "removing a pod's volumes");
                return Next::Wait(RETRY);
            }
            kubelet.volumes.release(&self.uid);
            if !kubelet.cgroups.remove_pod(&self.uid) {
                // The last processes may still be on their way out.
                return Next::Wait(MINIMUM_POLL);
            }
            self.life = Life::Ended;
        }
        if !desired.deleting() {
            self.publish(desired, observed, true);
            return Next::Wait(kubelet.config.sync_frequency);
        }
        if !desired.gone && desired.source == Source::Api && !self.delete_object(pod).await {
            return Next::Wait(RETRY);
        }
        if let Err(error) = kill::remove(&kubelet, observed).await {
            tracing::warn!(pod = describe(pod), %error, "removing a pod from the runtime");
            return Next::Wait(RETRY);
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let logs =
            kubelet.log_directory(&text(&pod.metadata.namespace), &text(&pod.metadata.name), &self.uid);
        let _ = tokio::fs::remove_dir_all(logs).await;
        Next::Finished
    }

    /// Tells the API server that nothing of the pod is left; true once it has no such object.
    async fn delete_object(&mut self, pod: &Pod) -> bool {
        if let Some(publisher) = &mut self.publisher {
            publisher.flush().await;
        }
        let (Some(client), Some(name)) = (self.kubelet.client.clone(), pod.metadata.name.as_deref()) else {
            return true;
        };
        let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => true,
            // Gone, or another pod has its name by now.
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => true,
            Err(error) => {
                tracing::warn!(pod = describe(pod), %error, "deleting a pod that has ended");
                false
            }
        }
    }

    fn publish(&mut self, desired: &Desired, observed: &ObservedPod, terminated: bool) {
        self.read_termination_messages(observed);
        let host_ips = self.kubelet.host_ips();
        let (probes, deleting) = (&self.probes, desired.deleting() || self.life != Life::Running);
        let probed = |container: &crate::runtime::observe::Container, _: &str| -> Probed {
            probes.probed(&container.id)
        };
        let mut status = compute::compute(&Inputs {
            pod: &desired.pod,
            observed,
            previous: &self.status,
            waiting: &self.waiting,
            probed: &probed,
            termination_messages: &self.termination_messages,
            host_ips: &host_ips,
            failed: self.failed.as_ref(),
            terminating: deleting,
            terminated,
            now: Timestamp::now(),
        });
        // Conditions that others own are theirs to change: what the API server last said of them holds.
        crate::status::conditions::adopt_foreign(&mut status, desired.pod.status.as_ref());
        if !self.running_reported && status.phase.as_deref() == Some("Running") {
            self.running_reported = true;
            self.report_start(&desired.pod);
        }
        if status != self.status {
            self.status = status;
            self.latest.send_replace(self.status.clone());
        }
        let uid = match (desired.source, &desired.mirror) {
            (Source::Api, _) => self.uid.clone(),
            (Source::File, Some(mirror)) => mirror.uid.clone(),
            (Source::File, None) => return,
        };
        let metadata = &desired.pod.metadata;
        if let (Some(publisher), false) = (&mut self.publisher, desired.gone) {
            let target = Target {
                namespace: metadata.namespace.clone().unwrap_or_default(),
                name: metadata.name.clone().unwrap_or_default(),
                uid,
            };
            publisher.publish(target, self.status.clone());
        }
    }

    fn report_start(&self, pod: &Pod) {
        // A pod that was adopted did not start now.
        if self.was_ready.is_empty() {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let age = created.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
            self.kubelet.metrics.pod_started(self.seen.elapsed(), age.unwrap_or(self.seen.elapsed()));
        }
    }

    fn read_termination_messages(&mut self, observed: &ObservedPod) {
        for container in &observed.containers {
            if container.exit_code().is_some() && !self.termination_messages.contains_key(&container.id) {
                let directory = self.kubelet.volumes.container_directory(&self.uid, &container.name);
                let message = termination::message(container, &directory);
                self.termination_messages.insert(container.id.clone(), message);
            }
        }
    }
}

/// How soon a container may end whose end is waited for: init containers, and those of pods that run to completion.
///
/// A young one is looked at often and an old one as often as the runtime is listed anyway.
fn expected_end(spec: &PodSpec, observed: &ObservedPod, now: Timestamp) -> Option<Duration> {
    let to_completion = plan::RestartPolicy::of(spec) != plan::RestartPolicy::Always;
    let init = |name: &str| {
        spec.init_containers
            .iter()
            .flatten()
            .any(|container| container.name == name && !plan::is_sidecar(container))
    };
    let ages = observed.containers.iter().filter_map(|container| match container.state {
        State::Running { started_at } if to_completion || init(&container.name) => {
            let at = crate::runtime::observe::timestamp(started_at)?;
            Some(Duration::try_from(now.duration_since(at)).unwrap_or_default())
        }
        _ => None,
    });
    let poll = (ages.min()? / 5).max(MINIMUM_POLL);
    (poll < MAXIMUM_POLL).then_some(poll)
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
async fn interrupted(
    changes: &mut watch::Receiver<Desired>,
    evictions: &mut watch::Receiver<Option<Waiting>>,
) {
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

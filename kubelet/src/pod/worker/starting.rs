//! Making what a pod runs in and starting its containers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret};
use kube::Api;

use super::{Next, RETRY, Work, Worker};
use crate::{
    events::Type,
    images::BACK_OFF,
    pod::{
        Desired,
        backoff::{self, Backoff},
        describe, had_run,
        plan::{self, Plan, Slot},
        reference,
        resources::{self, PodLimits},
        start,
    },
    runtime::{names, observe::ObservedPod},
    status::compute::Waiting,
};

const VOLUME_RETRY: Duration = Duration::from_millis(500);
const VOLUME_RETRY_MAX: Duration = Duration::from_secs(120);

impl Worker {
    pub(super) fn ensure_cgroup(&mut self, pod: &Pod, spec: &PodSpec) -> Result<(), Next> {
        self.limit_pod(pod, spec, resources::pod_limits(spec, self.kubelet.config.cpu_cfs_quota))
    }

    /// Makes the pod's cgroup with these limits, or gives them to the one that is there.
    pub(super) fn limit_pod(&mut self, pod: &Pod, spec: &PodSpec, limits: PodLimits) -> Result<(), Next> {
        self.kubelet.cgroups.make_pod(&self.uid, resources::qos(spec), limits).map_err(|error| {
            let message = format!(
                "failed to ensure that the pod: {} cgroups exist and are correctly applied: {error}",
                self.uid
            );
            self.sync_failed(pod, "FailedCreatePodContainer", &message)
        })
    }

    pub(super) async fn mount_volumes(&mut self, pod: &Pod) -> Result<(), Next> {
        if let Some(left) = self.postponed.left(&Work::Volumes, Instant::now()) {
            return Err(Next::Wait(left));
        }
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
                let pause = pause.min(VOLUME_RETRY_MAX);
                self.volume_failures += 1;
                self.postponed.put(Work::Volumes, Instant::now() + pause);
                Err(Next::Wait(pause))
            }
        }
    }

    pub(super) async fn make_sandbox(&mut self, pod: &Pod, spec: &PodSpec, attempt: u32) -> Next {
        let kubelet = self.kubelet.clone();
        let network = kubelet.runtime_condition.read().network.clone();
        if let (Err(why), false) = (network, spec.host_network == Some(true)) {
            let message = format!("network is not ready: {why}");
            kubelet.events.record(&reference(pod, None), Type::Warning, "NetworkNotReady", &message);
            return Next::Wait(RETRY);
        }
        if spec.host_users == Some(false) {
            let message = "Failed to create pod sandbox: user namespaces (hostUsers: false) are not supported by \
                           this kubelet";
            return self.sync_failed(pod, "FailedCreatePodSandBox", message);
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
    pub(super) async fn start_containers(
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
        let handler = self.runtime_handler(spec).await.unwrap_or_default();
        let around = start::Surroundings {
            kubelet: &kubelet,
            pod: &pod,
            spec,
            mounted: &mounted,
            sandbox,
            sandbox_config: &sandbox_config,
            secrets: &secrets,
            observed,
            handler: &handler,
        };
        let mut any = false;
        for &slot in &plan.start {
            let Some(container) = plan::container_of(spec, slot) else { continue };
            let work = Work::Container(container.name.clone());
            if self.postponed.left(&work, Instant::now()).is_some()
                || self.in_backoff(&pod, slot, &container, observed)
            {
                continue;
            }
            let restart_count = observed
                .container(&container.name)
                .map_or_else(|| self.known_restarts(&container.name), |found| found.restart_count + 1);
            // Beside the worker while it is used; a start that is broken off belongs to a pod that ends.
            let mut pulls = std::mem::replace(&mut self.pulls, Backoff::new(backoff::RESTARTS));
            let waiting = self.waiting.get(&container.name).map(|waiting| waiting.reason.clone());
            let starting =
                start::container(&around, slot, &container, restart_count, waiting.as_deref(), &mut pulls);
            let started = self.reporting(desired, observed, starting).await;
            self.pulls = pulls;
            match started {
                Ok(id) => {
                    self.given.insert(id, container.resources.clone().unwrap_or_default());
                    self.waiting.remove(&container.name);
                    any = true;
                }
                Err(waiting) => {
                    tracing::info!(pod = describe(&pod), container = container.name, ?waiting, "not started");
                    if !has_backoff(&waiting.reason) {
                        self.postpone(work);
                    }
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
        // A status without an id was computed after the loss, and has counted it.
        let next = known.map_or(0, |status| status.restart_count + i32::from(had_run(status)));
        u32::try_from(next).unwrap_or(0)
    }

    /// Whether a container that ended has to wait; says so, and counts the restart if it does not.
    fn in_backoff(&mut self, pod: &Pod, slot: Slot, spec: &Container, observed: &ObservedPod) -> bool {
        let name = spec.name.as_str();
        let Some(finished) = observed.container(name).and_then(|container| container.finished_at()) else {
            return false;
        };
        let now = Timestamp::now();
        let key = restart_key(name, &names::container_hash(spec));
        if self.restarts.remaining(&key, finished, now).is_some() {
            let object = reference(pod, Some((slot.kind, name)));
            let message = format!("Back-off restarting failed container {name} in pod {}", describe(pod));
            let known = self.waiting.get(name).is_some_and(|waiting| waiting.reason == "CrashLoopBackOff");
            if !known {
                self.kubelet.events.record(&object, Type::Warning, "BackOff", &message);
            }
            let pause = backoff::go_seconds(self.restarts.pause(&key));
            let message =
                format!("back-off {pause} restarting failed container={name} pod={}", describe(pod));
            self.waiting.insert(name.to_owned(), Waiting { reason: "CrashLoopBackOff".to_owned(), message });
            return true;
        }
        self.restarts.next(&key, finished, now);
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
}

/// Whether a reason not to have started comes with a back-off of its own: of the image's pulls, or of the container's
/// restarts where the runtime has one that ended.
fn has_backoff(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | BACK_OFF | "RunContainerError" | "PostStartHookError")
}

/// A container with another image is another one: it does not wait for what the old one did.
pub(super) fn restart_key(name: &str, hash: &str) -> String {
    format!("{name}/{hash}")
}

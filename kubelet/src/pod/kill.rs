//! Stopping containers and sandboxes: preStop, grace period, order.
//!
//! Regular containers end together; sidecars follow in the reverse of their order, within the same grace period.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use keelson_proto::cri;

use super::{
    hooks,
    plan::{Kind, is_sidecar},
    reference,
};
use crate::{
    context::Kubelet,
    events::Type,
    runtime::{
        Result, names,
        observe::{Container, ObservedPod},
    },
};

/// However long a preStop hook took, the container gets this many seconds after it.
const MINIMUM_GRACE: i64 = 2;

/// Stops everything that runs, then the sandboxes.
pub async fn pod(kubelet: &Kubelet, pod: &Pod, observed: &ObservedPod, grace: i64) -> Result<()> {
    let started = Instant::now();
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let running = || observed.containers.iter().filter(|container| container.may_run());
    let ip = observed.ready_sandbox().and_then(|sandbox| sandbox.ips.first()).map(String::as_str);
    let regular = running().filter(|container| !sidecars.contains(&container.name.as_str()));
    let stopped =
        futures::future::join_all(regular.map(|found| container(kubelet, pod, found, ip, grace, None))).await;
    stopped.into_iter().collect::<Result<Vec<()>>>()?;
    for name in sidecars.iter().rev() {
        for found in running().filter(|container| container.name == *name) {
            let spent = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
            container(kubelet, pod, found, ip, (grace - spent).max(MINIMUM_GRACE.min(grace)), None).await?;
        }
    }
    sandboxes(kubelet, observed).await
}

/// Stops all sandboxes, ready or not: one whose processes the machine's restart took still has its address.
pub async fn sandboxes(kubelet: &Kubelet, observed: &ObservedPod) -> Result<()> {
    for sandbox in &observed.sandboxes {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        ignore_gone(kubelet.runtime.stop_pod_sandbox(request).await.map(|_| ()))?;
    }
    Ok(())
}

/// Stops one container: event, preStop, SIGTERM, and after `grace` seconds SIGKILL.
pub async fn container(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    ip: Option<&str>,
    grace: i64,
    message: Option<&str>,
) -> Result<()> {
    let (kind, spec) = match spec_of(pod, &container.name) {
        Some((kind, spec)) => (kind, Some(spec)),
        None => (Kind::Regular, None),
    };
    let object = reference(pod, Some((kind, &container.name)));
    let default = format!("Stopping container {}", container.name);
    kubelet.events.record(&object, Type::Normal, "Killing", message.unwrap_or(&default));
    let started = Instant::now();
    // A container whose pod is unknown still has its hook, in an annotation.
    let hook = match &spec {
        Some(spec) => spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone()),
        None => container
            .annotations
            .get(names::PRE_STOP)
            .and_then(|json| serde_json::from_str::<LifecycleHandler>(json).ok()),
    };
    if let Some(hook) = hook
        && grace > 0
        && container.running()
    {
        let spec = spec.unwrap_or_default();
        let target = hooks::Target { pod, container: &spec, id: &container.id, ip };
        let limit = Duration::from_secs(grace.unsigned_abs());
        match tokio::time::timeout(limit, hooks::run(&kubelet.runtime, &hook, &target)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let message = format!("PreStopHook failed: {error}");
                kubelet.events.record(&object, Type::Warning, "FailedPreStopHook", &message);
            }
            Err(_) => {
                tracing::warn!(container = container.name, "the preStop hook took the whole grace period")
            }
        }
    }
    let spent = i64::try_from(started.elapsed().as_secs()).unwrap_or(i64::MAX);
    let left = (grace - spent).max(MINIMUM_GRACE.min(grace));
    kubelet.runtime.stop_container(&container.id, left).await
}

fn spec_of(pod: &Pod, name: &str) -> Option<(Kind, k8s_openapi::api::core::v1::Container)> {
    let spec = pod.spec.as_ref()?;
    let regular = spec.containers.iter().map(|container| (Kind::Regular, container.clone()));
    let init = spec.init_containers.iter().flatten().map(|container| (Kind::Init, container.clone()));
    let ephemeral =
        spec.ephemeral_containers.iter().flatten().map(|c| (Kind::Ephemeral, super::plan::from_ephemeral(c)));
    regular.chain(init).chain(ephemeral).find(|(_, container)| container.name == name)
}

/// Removes what is left of a pod in the runtime; nothing of it runs any more.
pub async fn remove(kubelet: &Kubelet, observed: &ObservedPod) -> Result<()> {
    for container in &observed.containers {
        let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
        ignore_gone(kubelet.runtime.remove_container(request).await.map(|_| ()))?;
    }
    for sandbox in &observed.sandboxes {
        remove_sandbox(kubelet, &sandbox.id).await?;
    }
    Ok(())
}

/// Removes one sandbox, stopped once more so that its network is given back; one that is gone is fine.
pub async fn remove_sandbox(kubelet: &Kubelet, id: &str) -> Result<()> {
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    ignore_gone(kubelet.runtime.stop_pod_sandbox(stop).await.map(|_| ()))?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    ignore_gone(kubelet.runtime.remove_pod_sandbox(request).await.map(|_| ()))
}

fn ignore_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

//! Starting: a pod's sandbox, and one container from image to postStart.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Secret};
use keelson_proto::cri;

use super::{
    backoff::Backoff,
    container::{self, ContainerInputs},
    dns, env, hooks, mounts,
    plan::{Kind, Slot},
    reference, resources, sandbox, security,
};
use crate::{
    context::Kubelet,
    events::Type,
    images::{BACK_OFF, Wanted},
    runtime::observe::{ObservedPod, Sandbox},
    status::compute::Waiting,
    volumes::Mounted,
};

/// What a pod's containers have in common while they are started.
pub struct Surroundings<'a> {
    pub kubelet: &'a Kubelet,
    pub pod: &'a Pod,
    pub spec: &'a PodSpec,
    pub mounted: &'a Mounted,
    pub sandbox: &'a Sandbox,
    pub sandbox_config: &'a cri::PodSandboxConfig,
    pub secrets: &'a [Arc<Secret>],
    pub observed: &'a ObservedPod,
    /// The runtime's name for the pod's RuntimeClass; empty for its default.
    pub handler: &'a str,
}

pub(super) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

/// The sandbox's configuration; the same for every container of it.
pub fn sandbox_config(kubelet: &Kubelet, pod: &Pod, spec: &PodSpec, attempt: u32) -> cri::PodSandboxConfig {
    let metadata = &pod.metadata;
    let logs = kubelet.log_directory(text(&metadata.namespace), text(&metadata.name), text(&metadata.uid));
    sandbox::config(&sandbox::SandboxInputs {
        pod,
        attempt,
        dns: dns::config(pod, &kubelet.config.cluster_dns, kubelet.cluster_domain(), &kubelet.host_resolver),
        log_directory: logs.to_string_lossy().into_owned(),
        cgroup_parent: kubelet.cgroups.pod_path(text(&metadata.uid), resources::qos(spec)),
        cluster_domain: kubelet.cluster_domain(),
    })
}

/// Makes the sandbox.
///
/// # Errors
/// The sentence of a FailedCreatePodSandBox event.
pub async fn sandbox(
    kubelet: &Kubelet,
    config: cri::PodSandboxConfig,
    handler: &str,
) -> Result<String, String> {
    let failed = |error: String| format!("Failed to create pod sandbox: {error}");
    tokio::fs::create_dir_all(&config.log_directory).await.map_err(|error| failed(error.to_string()))?;
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
    let response =
        kubelet.runtime.run_pod_sandbox(request).await.map_err(|error| failed(error.to_string()))?;
    kubelet.metrics.sandbox_started();
    Ok(response.pod_sandbox_id)
}

/// Starts one container; its id.
///
/// # Errors
/// The container's waiting state; its event is recorded.
pub async fn container(
    around: &Surroundings<'_>,
    slot: Slot,
    spec: &Container,
    restart_count: u32,
    waiting: Option<&str>,
    image_backoff: &mut Backoff,
) -> Result<String, Waiting> {
    let kubelet = around.kubelet;
    let object = reference(around.pod, Some((slot.kind, &spec.name)));
    let failed = |reason: &str, message: String| {
        kubelet.events.record(&object, Type::Warning, "Failed", &format!("Error: {message}"));
        Waiting { reason: reason.to_owned(), message }
    };
    let wanted = Wanted {
        pod: around.pod,
        container: spec,
        kind: slot.kind,
        secrets: around.secrets,
        sandbox: around.sandbox_config,
        waiting,
    };
    let image = kubelet.images.ensure(&wanted, image_backoff).await.inspect_err(|error| {
        if error.reason != BACK_OFF || waiting != Some(BACK_OFF) {
            let message = format!("Error: {}", error.reason);
            kubelet.events.record(&object, Type::Warning, "Failed", &message);
        }
    })?;
    security::verify_non_root(around.pod, spec, &image.user)
        .map_err(|message| failed("CreateContainerConfigError", message))?;
    let environment =
        environment(around, spec).await.map_err(|message| failed("CreateContainerConfigError", message))?;
    let mounts = mounts::of(around, spec, restart_count, &environment)
        .map_err(|message| failed("CreateContainerConfigError", message))?;
    let target = (slot.kind == Kind::Ephemeral).then(|| target(around, slot)).flatten();
    let config = container::config(ContainerInputs {
        pod: around.pod,
        container: spec,
        image_ref: image.id,
        image_user: image.user,
        restart_count,
        environment,
        mounts,
        node: container::Node::of(kubelet),
        root: &kubelet.root,
        target,
    });
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: around.sandbox.id.clone(),
        config: Some(config),
        sandbox_config: Some(around.sandbox_config.clone()),
    };
    let created = kubelet.runtime.create_container(request).await;
    let id = created.map_err(|error| failed("CreateContainerError", error.message))?.container_id;
    kubelet.events.record(&object, Type::Normal, "Created", "Container created");
    let request = cri::StartContainerRequest { container_id: id.clone() };
    let started = kubelet.runtime.start_container(request).await;
    started.map_err(|error| failed("RunContainerError", error.message))?;
    kubelet.metrics.container_started();
    kubelet.events.record(&object, Type::Normal, "Started", "Container started");
    post_start(around, spec, &id, &object).await.map(|()| id)
}

async fn post_start(
    around: &Surroundings<'_>,
    spec: &Container,
    id: &str,
    object: &k8s_openapi::api::core::v1::ObjectReference,
) -> Result<(), Waiting> {
    let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let kubelet = around.kubelet;
    let ip = around.sandbox.ips.first().map(String::as_str);
    let target = hooks::Target { pod: around.pod, container: spec, id, ip };
    let Err(error) = hooks::run(&kubelet.runtime, hook, &target).await else { return Ok(()) };
    let message = format!("PostStartHook failed: {error}");
    kubelet.events.record(object, Type::Warning, "FailedPostStartHook", &message);
    // A container whose hook failed did not start.
    let grace = around.spec.termination_grace_period_seconds.unwrap_or(30);
    kubelet.events.record(object, Type::Normal, "Killing", "FailedPostStartHook");
    if let Err(error) = kubelet.runtime.stop_container(id, grace).await {
        tracing::warn!(%error, container = spec.name, "stopping a container whose postStart hook failed");
    }
    Err(Waiting { reason: "PostStartHookError".to_owned(), message: error })
}

/// Id of the container that an ephemeral one looks into.
fn target(around: &Surroundings<'_>, slot: Slot) -> Option<String> {
    let ephemeral = around.spec.ephemeral_containers.as_ref()?.get(slot.index)?;
    let name = ephemeral.target_container_name.as_deref().filter(|name| !name.is_empty())?;
    around.observed.container(name).map(|container| container.id.clone())
}

async fn environment(around: &Surroundings<'_>, spec: &Container) -> Result<Vec<(String, String)>, String> {
    let kubelet = around.kubelet;
    let metadata = &around.pod.metadata;
    let (namespace, uid) = (text(&metadata.namespace), text(&metadata.uid));
    let (config_map_names, secret_names) = env::references(spec);
    let (mut config_maps, mut secrets) = (HashMap::new(), HashMap::new());
    for name in config_map_names {
        let found = kubelet
            .volumes
            .config_maps
            .get(namespace, &name, uid)
            .await
            .map_err(|error| error.to_string())?;
        config_maps.insert(name, found);
    }
    for name in secret_names {
        let found =
            kubelet.volumes.secrets.get(namespace, &name, uid).await.map_err(|error| error.to_string())?;
        secrets.insert(name, found);
    }
    let host_ips = kubelet.host_ips();
    let pod_ips = if around.spec.host_network == Some(true) { &host_ips } else { &around.sandbox.ips };
    let sources = env::Sources {
        pod: around.pod,
        config_maps: &config_maps,
        secrets: &secrets,
        services: &kubelet.service_envs().await,
        pod_ips,
        host_ips: &host_ips,
        node: kubelet.capacity,
        node_name: &kubelet.node_name,
    };
    env::environment(spec, &sources).map_err(|error| error.to_string())
}

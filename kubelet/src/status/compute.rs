//! Computes a pod's status from its spec and what was observed, as upstream's `generateAPIPodStatus`.
//!
//! Pure: the time is an argument, and the previous status is only used to keep what must not change (start time,
//! transition times, the last termination of a container that is gone).

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP,
        PodSpec, PodStatus, ResourceRequirements, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::conditions;
use crate::{
    pod::plan::{RestartPolicy, from_ephemeral, is_sidecar},
    runtime::observe::{Container, ObservedPod, State, timestamp},
};

/// Why a container is not running, as its waiting state says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What the probes found about a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    pub started: bool,
    pub ready: bool,
}

/// Everything a status is made of beside the pod itself.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a ObservedPod,
    /// The status that was computed before, or the API server's at the start.
    pub previous: &'a PodStatus,
    /// By container name.
    pub waiting: &'a HashMap<String, Waiting>,
    /// By container id; a container without probes is not in it.
    pub probed: &'a dyn Fn(&Container, &str) -> Probed,
    /// By container id, of containers that ended.
    pub termination_messages: &'a HashMap<String, String>,
    pub host_ips: &'a [String],
    /// A decision to end the pod: phase Failed with this reason and message once it is over.
    pub failed: Option<&'a Waiting>,
    /// The pod is being ended, or has ended: a container without a record is over and will not start.
    pub terminating: bool,
    /// Nothing of the pod runs and nothing will run again.
    pub terminated: bool,
    /// What containers were last given, by id.
    pub given: &'a HashMap<String, ResourceRequirements>,
    /// Whether the runtime makes mounts read-only all the way down.
    pub recursive_read_only: bool,
    pub now: Timestamp,
}

/// The pod's status now.
pub fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let Some(spec) = &pod.spec else { return PodStatus::default() };
    let policy = RestartPolicy::of(spec);
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let initialized = init_done(inits, inputs.observed) || regular_ran(spec, inputs.observed);
    let init_statuses: Vec<_> =
        inits.iter().map(|c| container_status(inputs, c, true, "PodInitializing", policy)).collect();
    let waiting_reason = if initialized { "ContainerCreating" } else { "PodInitializing" };
    let statuses: Vec<_> =
        spec.containers.iter().map(|c| container_status(inputs, c, false, waiting_reason, policy)).collect();
    let ephemeral: Vec<_> = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .map(|c| {
            container_status(inputs, &from_ephemeral(c), false, "ContainerCreating", RestartPolicy::Never)
        })
        .collect();
    let init_statuses = mark_init_ready(inits, init_statuses);

    let mut phase = phase(spec, &init_statuses, &statuses, inputs.terminated);
    let (mut reason, mut message) = (None, None);
    // A pod that was over stays over, whoever said so.
    if let Some(before) =
        [Some(inputs.previous), pod.status.as_ref()].into_iter().flatten().find(|s| is_terminal(s))
    {
        phase = if before.phase.as_deref() == Some("Failed") { "Failed" } else { "Succeeded" };
        reason.clone_from(&before.reason);
        message.clone_from(&before.message);
    }
    if let Some(failed) = inputs.failed {
        if inputs.terminated || !inputs.observed.any_running() {
            phase = "Failed";
        }
        (reason, message) = (Some(failed.reason.clone()), Some(failed.message.clone()));
    }

    let ips = pod_ips(inputs, spec);
    let host_network = spec.host_network == Some(true);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        host_ip: inputs.host_ips.first().cloned(),
        host_ips: Some(inputs.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: inputs.previous.start_time.clone().or(Some(Time(inputs.now))),
        qos_class: Some(crate::pod::resources::qos(spec).to_owned()),
        container_statuses: Some(statuses),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        observed_generation: pod.metadata.generation,
        nominated_node_name: inputs.previous.nominated_node_name.clone(),
        resize: inputs.previous.resize.clone(),
        ..PodStatus::default()
    };
    let sandbox = inputs.observed.ready_sandbox();
    let has_network = host_network || sandbox.is_some_and(|sandbox| !sandbox.ips.is_empty());
    let conditions = conditions::compute(pod, &status, sandbox.is_some() && has_network);
    status.conditions =
        Some(conditions::merge(inputs.previous.conditions.as_deref(), conditions, inputs.now));
    status
}

/// Whether a pod with this status has ended for good.
pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))
}

/// Whether no container of the pod runs and none is to run again.
pub fn is_over(spec: &PodSpec, observed: &ObservedPod) -> bool {
    let policy = RestartPolicy::of(spec);
    let finished = |container: &Spec| {
        observed
            .container(&container.name)
            .and_then(Container::exit_code)
            .is_some_and(|code| !policy.of_container(container).restarts_after(code))
    };
    let init_failed =
        spec.init_containers.iter().flatten().filter(|container| !is_sidecar(container)).any(|container| {
            let code = observed.container(&container.name).and_then(Container::exit_code);
            code.is_some_and(|code| code != 0) && policy.of_container(container) == RestartPolicy::Never
        });
    if init_failed {
        return !regular_ran(spec, observed) || spec.containers.iter().all(finished);
    }
    !spec.containers.is_empty() && spec.containers.iter().all(finished)
}

fn regular_ran(spec: &PodSpec, observed: &ObservedPod) -> bool {
    spec.containers.iter().any(|container| observed.container(&container.name).is_some())
}

fn init_done(inits: &[Spec], observed: &ObservedPod) -> bool {
    inits.iter().all(|container| match observed.container(&container.name) {
        Some(found) if is_sidecar(container) => found.running(),
        Some(found) => found.exit_code() == Some(0),
        None => false,
    })
}

fn pod_ips(inputs: &Inputs<'_>, spec: &PodSpec) -> Vec<String> {
    if spec.host_network == Some(true) {
        return if inputs.observed.sandboxes.is_empty() { Vec::new() } else { inputs.host_ips.to_vec() };
    }
    match inputs.observed.sandboxes.first() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        // The address of a pod that ended stays in its status until it is started again.
        _ if inputs.terminating || inputs.terminated => {
            inputs.previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
        }
        _ => Vec::new(),
    }
}

fn mark_init_ready(inits: &[Spec], mut statuses: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    for (container, status) in inits.iter().zip(&mut statuses) {
        if !is_sidecar(container) {
            let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            status.ready = ended.is_some_and(|ended| ended.exit_code == 0);
        }
    }
    statuses
}

fn container_status(
    inputs: &Inputs<'_>,
    container: &Spec,
    init: bool,
    waiting_reason: &str,
    policy: RestartPolicy,
) -> ContainerStatus {
    let name = container.name.as_str();
    let mut found = inputs.observed.containers.iter().filter(|found| found.name == name);
    let (newest, before) = (found.next(), found.next());
    let lists = [
        &inputs.previous.container_statuses,
        &inputs.previous.init_container_statuses,
        &inputs.previous.ephemeral_container_statuses,
    ];
    let previous = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    let mut status = ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let Some(newest) = newest else {
        absent(inputs, &mut status, previous, policy.of_container(container), waiting_reason);
        return status;
    };
    status.container_id = Some(format!("{}://{}", crate::pod::RUNTIME_NAME, newest.id));
    status.image_id.clone_from(&newest.image_id);
    if !newest.image.is_empty() {
        status.image.clone_from(&newest.image);
    }
    status.restart_count = i32::try_from(newest.restart_count).unwrap_or(i32::MAX);
    status.last_state = before
        .and_then(|before| terminated(inputs, before))
        .map(|terminated| ContainerState { terminated: Some(terminated), ..Default::default() })
        .or_else(|| previous.and_then(|previous| last_known(previous, status.container_id.as_deref())));
    match &newest.state {
        State::Running { started_at } => {
            let probed = (inputs.probed)(newest, name);
            status.started = Some(probed.started);
            status.ready = probed.ready;
            let started_at = timestamp(*started_at).map(Time);
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at }),
                ..Default::default()
            });
            status.user = newest.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: *uid,
                    gid: *gid,
                    supplemental_groups: Some(groups.clone()),
                }),
            });
            // What it has been given, which is not always what its spec says by now.
            let given = inputs.given.get(&newest.id).or(container.resources.as_ref()).cloned();
            status.allocated_resources = given.as_ref().and_then(|r| r.requests.clone());
            status.resources = given.filter(|r| r.requests.is_some() || r.limits.is_some());
            status.volume_mounts = volume_mounts(container, inputs.recursive_read_only);
        }
        State::Created => status.state = Some(waiting(waiting_reason, None)),
        State::Exited { exit_code, .. } => {
            let terminated = terminated(inputs, newest)
                .map(|t| ContainerState { terminated: Some(t), ..Default::default() });
            // An init container that succeeded is done whatever the policy; a sidecar always comes back.
            let restarts = !inputs.terminating
                && if init && !is_sidecar(container) {
                    *exit_code != 0 && policy.of_container(container) != RestartPolicy::Never
                } else {
                    policy.of_container(container).restarts_after(*exit_code)
                };
            match inputs.waiting.get(name).filter(|_| restarts) {
                Some(reason) => {
                    status.last_state = terminated;
                    status.state = Some(waiting(&reason.reason, Some(&reason.message)));
                }
                None => status.state = terminated,
            }
        }
        State::Unknown => {
            status.state = Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: 137,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message: Some(
                        "The container could not be located when the pod was terminated".to_owned(),
                    ),
                    ..Default::default()
                }),
                ..Default::default()
            });
        }
    }
    status
}

/// What of the pod's volumes a container has, and whether read-only ones are so all the way down.
fn volume_mounts(container: &Spec, recursive: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?.iter().map(|mount| {
        let enabled = match mount.recursive_read_only.as_deref() {
            Some("Enabled") => true,
            Some("IfPossible") => recursive,
            _ => false,
        };
        let read_only = mount.read_only.filter(|&read_only| read_only);
        let depth = if enabled { "Enabled" } else { "Disabled" };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only,
            recursive_read_only: read_only.map(|_| depth.to_owned()),
            ..Default::default()
        }
    });
    Some(mounts.collect()).filter(|mounts: &Vec<_>| !mounts.is_empty())
}

/// A container that the runtime has no record of.
fn absent(
    inputs: &Inputs<'_>,
    status: &mut ContainerStatus,
    previous: Option<&ContainerStatus>,
    policy: RestartPolicy,
    reason: &str,
) {
    if let Some(previous) = previous {
        status.restart_count = previous.restart_count;
        status.last_state.clone_from(&previous.last_state);
        let state = previous.state.as_ref();
        let ended = state.is_some_and(|state| state.terminated.is_some());
        let ran = state.is_some_and(|state| state.running.is_some());
        if ended || (ran && (inputs.terminating || policy == RestartPolicy::Never)) {
            status.container_id.clone_from(&previous.container_id);
            status.image_id.clone_from(&previous.image_id);
            status.state = if ended {
                previous.state.clone()
            } else {
                Some(ContainerState { terminated: Some(lost(previous)), ..Default::default() })
            };
            return;
        }
        // It had run and is to run again. The id is not carried on, so that this is counted once.
        if crate::pod::had_run(previous) && !inputs.terminating {
            status.restart_count += 1;
            if ran {
                let ended = ContainerState { terminated: Some(lost(previous)), ..Default::default() };
                status.last_state = Some(ended);
            }
        }
    }
    status.state = Some(match inputs.waiting.get(&status.name) {
        Some(waiting_for) => waiting(&waiting_for.reason, Some(&waiting_for.message)),
        None => waiting(reason, None),
    });
}

/// The termination before the container with this id, of which the runtime has no record.
fn last_known(previous: &ContainerStatus, id: Option<&str>) -> Option<ContainerState> {
    let ended = previous.state.as_ref().filter(|state| state.terminated.is_some());
    let before = ended.filter(|_| previous.container_id.as_deref() != id).or(previous.last_state.as_ref());
    before.cloned()
}

/// The end of a container that the runtime no longer knows.
fn lost(previous: &ContainerStatus) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: previous.container_id.clone(),
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        ..Default::default()
    }
}

fn waiting(reason: &str, message: Option<&str>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: message.filter(|message| !message.is_empty()).map(str::to_owned),
        }),
        ..Default::default()
    }
}

fn terminated(inputs: &Inputs<'_>, container: &Container) -> Option<ContainerStateTerminated> {
    let State::Exited { started_at, finished_at, exit_code, reason, message } = &container.state else {
        return None;
    };
    let reason = if reason.is_empty() { if *exit_code == 0 { "Completed" } else { "Error" } } else { reason };
    let message = inputs.termination_messages.get(&container.id).unwrap_or(message);
    Some(ContainerStateTerminated {
        container_id: Some(format!("{}://{}", crate::pod::RUNTIME_NAME, container.id)),
        exit_code: *exit_code,
        finished_at: timestamp(*finished_at).map(Time),
        started_at: timestamp(*started_at).map(Time),
        reason: Some(reason.to_owned()),
        message: (!message.is_empty()).then(|| message.clone()),
        signal: None,
    })
}

/// Upstream's `getPhase`.
fn phase(
    spec: &PodSpec,
    inits: &[ContainerStatus],
    statuses: &[ContainerStatus],
    over: bool,
) -> &'static str {
    let policy = RestartPolicy::of(spec);
    let (mut pending_init, mut failed_init) = (false, false);
    let has_run = statuses.iter().any(|status| {
        let state = status.state.as_ref();
        state.is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    });
    for (container, status) in spec.init_containers.iter().flatten().zip(inits) {
        let state = status.state.clone().unwrap_or_default();
        if is_sidecar(container) {
            let up = state.running.is_some() && status.started == Some(true);
            pending_init |= !has_run && !up;
            continue;
        }
        match state {
            ContainerState { running: Some(_), .. } => pending_init |= !has_run,
            ContainerState { terminated: Some(ended), .. } => failed_init |= ended.exit_code != 0,
            _ => match status.last_state.as_ref().and_then(|s| s.terminated.as_ref()) {
                Some(ended) => failed_init |= ended.exit_code != 0,
                None => pending_init |= !has_run,
            },
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    let mut restarting = false;
    for (container, status) in spec.containers.iter().zip(statuses) {
        match status.state.clone().unwrap_or_default() {
            ContainerState { running: Some(_), .. } => running += 1,
            ContainerState { terminated: Some(ended), .. } => {
                stopped += 1;
                succeeded += i32::from(ended.exit_code == 0);
                restarting |= policy.of_container(container).restarts_after(ended.exit_code);
            }
            ContainerState { waiting: Some(_), .. } => match status.last_state.as_ref() {
                Some(last) if last.terminated.is_some() => {
                    stopped += 1;
                    restarting |= policy.of_container(container) != RestartPolicy::Never;
                }
                _ => waiting += 1,
            },
            _ => unknown += 1,
        }
    }
    if failed_init && policy == RestartPolicy::Never && running == 0 {
        return "Failed";
    }
    if over && (stopped > 0 || waiting > 0 || unknown > 0) && running == 0 {
        // Nothing runs and nothing will: success only if every container succeeded.
        return if stopped == succeeded && stopped > 0 && waiting == 0 { "Succeeded" } else { "Failed" };
    }
    if pending_init || (failed_init && !has_run) || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        if restarting {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

#[cfg(test)]
#[path = "compute_tests.rs"]
mod tests;

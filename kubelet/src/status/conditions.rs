//! The conditions of a pod that the kubelet owns.
//!
//! Conditions of others (readiness gates, disruption) are kept as they are; a transition time only moves when the
//! status does.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::pod::plan::is_sidecar;

/// In the order in which upstream writes them.
const OWNED: &[&str] =
    &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

const RESIZE_PENDING: &str = "PodResizePending";
const DISRUPTED: &str = "DisruptionTarget";
const TERMINATED_BY_KUBELET: &str = "TerminationByKubelet";

struct Verdict {
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn verdict(
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
) -> Verdict {
    Verdict { kind, status, reason, message }
}

/// The kubelet's conditions of a pod with this status; `has_sandbox`: sandbox and network are there.
pub fn compute(pod: &Pod, status: &PodStatus, has_sandbox: bool) -> Vec<PodCondition> {
    let containers_ready = containers_ready(pod, status);
    let verdicts = [
        verdict("PodReadyToStartContainers", has_sandbox, None, None),
        initialized(pod, status),
        ready(pod, status, &containers_ready),
        containers_ready,
        verdict("PodScheduled", true, None, None),
    ];
    verdicts
        .into_iter()
        .map(|v| PodCondition {
            type_: v.kind.to_owned(),
            status: if v.status { "True" } else { "False" }.to_owned(),
            reason: v.reason.map(str::to_owned),
            message: v.message,
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        })
        .collect()
}

/// Puts our conditions before those of others, keeping transition times.
pub fn merge(
    previous: Option<&[PodCondition]>,
    mut ours: Vec<PodCondition>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let previous = previous.unwrap_or_default();
    for condition in &mut ours {
        let before = previous
            .iter()
            .find(|before| before.type_ == condition.type_ && before.status == condition.status);
        condition.last_transition_time =
            before.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now)));
    }
    let foreign = |condition: &&PodCondition| {
        !OWNED.contains(&condition.type_.as_str()) && condition.type_ != RESIZE_PENDING
    };
    ours.extend(previous.iter().filter(foreign).cloned());
    ours
}

/// Replaces the conditions that are not ours with what the API server has.
pub fn adopt_foreign(status: &mut PodStatus, api: Option<&PodStatus>) {
    let foreign = |condition: &PodCondition| {
        !OWNED.contains(&condition.type_.as_str()) && condition.type_ != RESIZE_PENDING
    };
    if let (Some(conditions), Some(api)) = (&mut status.conditions, api) {
        conditions.retain(|condition| !foreign(condition));
        conditions.extend(api.conditions.iter().flatten().filter(|condition| foreign(condition)).cloned());
    }
}

/// Whether a condition is this kubelet's to write.
pub fn is_owned(kind: &str, reason: Option<&str>) -> bool {
    OWNED.contains(&kind)
        || kind == RESIZE_PENDING
        || (kind == DISRUPTED && reason == Some(TERMINATED_BY_KUBELET))
}

/// Says that the pod ends for the node's sake, which Jobs do not count as a failure of its own.
pub fn disrupted(status: &mut PodStatus, previous: &PodStatus, message: &str, now: Timestamp) {
    set(status, previous, (DISRUPTED, TERMINATED_BY_KUBELET, message), now);
}

/// Says why a pod has not been given the resources that its spec asks for.
pub fn resize_pending(status: &mut PodStatus, previous: &PodStatus, why: (&str, &str), now: Timestamp) {
    set(status, previous, (RESIZE_PENDING, why.0, why.1), now);
}

fn set(
    status: &mut PodStatus,
    previous: &PodStatus,
    (kind, reason, message): (&str, &str, &str),
    now: Timestamp,
) {
    let held = |condition: &&PodCondition| condition.type_ == kind && condition.status == "True";
    let before = previous.conditions.iter().flatten().find(held);
    let since = before.and_then(|before| before.last_transition_time.clone());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != kind);
    conditions.push(PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        observed_generation: status.observed_generation,
        last_transition_time: since.or(Some(Time(now))),
        ..PodCondition::default()
    });
}

fn over(status: &PodStatus) -> bool {
    super::compute::is_terminal(status)
}

fn listed(what: &str, names: &[&str]) -> Option<String> {
    (!names.is_empty()).then(|| format!("containers with {what} status: [{}]", names.join(" ")))
}

fn initialized(pod: &Pod, status: &PodStatus) -> Verdict {
    const KIND: &str = "Initialized";
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    let statuses = status.init_container_statuses.as_deref().unwrap_or_default();
    if status.phase.as_deref() == Some("Succeeded") {
        return verdict(KIND, true, Some("PodCompleted"), None);
    }
    let has_run = status.container_statuses.iter().flatten().any(|status| {
        status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || status.restart_count > 0
    });
    let incomplete: Vec<&str> = inits
        .iter()
        .zip(statuses)
        .filter(|(container, status)| {
            if is_sidecar(container) {
                !has_run && status.started != Some(true)
            } else {
                !has_run && !status.ready
            }
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    match listed("incomplete", &incomplete) {
        None => verdict(KIND, true, None, None),
        message => verdict(KIND, false, Some("ContainersNotInitialized"), message),
    }
}

fn containers_ready(pod: &Pod, status: &PodStatus) -> Verdict {
    const KIND: &str = "ContainersReady";
    match status.phase.as_deref() {
        Some("Succeeded") => return verdict(KIND, false, Some("PodCompleted"), None),
        Some("Failed") => return verdict(KIND, false, Some("PodFailed"), None),
        _ => {}
    }
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let sidecars = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(container, _)| is_sidecar(container))
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(statuses)
        .filter(|status: &&ContainerStatus| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    match listed("unready", &unready) {
        None => verdict(KIND, true, None, None),
        message => verdict(KIND, false, Some("ContainersNotReady"), message),
    }
}

fn ready(pod: &Pod, status: &PodStatus, containers: &Verdict) -> Verdict {
    const KIND: &str = "Ready";
    if over(status) || !containers.status {
        return verdict(KIND, false, containers.reason, containers.message.clone());
    }
    let gates = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let unmet: Vec<String> = gates
        .iter()
        .filter_map(|gate| match conditions.iter().find(|condition| condition.type_ == gate.condition_type) {
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(condition) if condition.status != "True" => Some(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, condition.status
            )),
            Some(_) => None,
        })
        .collect();
    if unmet.is_empty() {
        verdict(KIND, true, None, None)
    } else {
        verdict(KIND, false, Some("ReadinessGatesNotReady"), Some(unmet.join(", ")))
    }
}

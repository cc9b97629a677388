//! What can be told of a pod from its status: phase, readiness, availability; and its conditions.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};

use crate::times;

pub const READY: &str = "Ready";
pub const POD_SCHEDULED: &str = "PodScheduled";
pub const INITIALIZED: &str = "Initialized";
pub const CONTAINERS_READY: &str = "ContainersReady";
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// The phase; empty when there is no status yet.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended for good.
#[must_use]
pub fn is_pod_terminal(pod: &Pod) -> bool {
    is_phase_terminal(phase(pod))
}

/// `Succeeded` or `Failed`.
#[must_use]
pub fn is_phase_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether controllers count the pod: it has not ended and is not being deleted.
#[must_use]
pub fn is_pod_active(pod: &Pod) -> bool {
    !is_pod_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A condition by its type.
#[must_use]
pub fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

/// Whether a condition is `True`.
#[must_use]
pub fn is_condition_true(status: &PodStatus, kind: &str) -> bool {
    condition(status, kind).is_some_and(|condition| condition.status == "True")
}

/// Sets a condition. A status that stays the same keeps its transition time; says whether anything changed.
pub fn set_condition(status: &mut PodStatus, mut new: PodCondition, now: Timestamp) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == new.type_) else {
        new.last_transition_time.get_or_insert_with(|| times::api_time(now));
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time.clone_from(&old.last_transition_time);
    } else {
        new.last_transition_time.get_or_insert_with(|| times::api_time(now));
    }
    let changed = *old != new;
    *old = new;
    changed
}

/// Whether the pod's `Ready` condition is true.
#[must_use]
pub fn is_pod_ready(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| is_condition_true(status, READY))
}

/// Whether the pod has been ready for `min_ready_seconds`.
#[must_use]
pub fn is_pod_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_after(pod, min_ready_seconds, now) == Some(0)
}

/// In how many seconds a ready pod becomes available (0: it is); `None` when it is not ready.
#[must_use]
pub fn available_after(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<i64> {
    let ready = pod.status.as_ref().and_then(|status| condition(status, READY))?;
    if ready.status != "True" {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(0);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    let ready_for = times::between(since, now).as_millis();
    let missing = i128::from(min_ready_seconds) * 1000 - ready_for;
    i64::try_from(missing.max(0).div_euclid(1000) + i128::from(missing.max(0) % 1000 != 0)).ok()
}

/// A container's status, init and ephemeral containers included.
#[must_use]
pub fn container_status<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|container| container.name == name)
}

/// Whether the pod shares the node's network.
#[must_use]
pub fn is_host_network(spec: &PodSpec) -> bool {
    spec.host_network == Some(true)
}

/// Whether an init container is a sidecar: it starts before the others and keeps running.
#[must_use]
pub fn is_sidecar(init_container: &k8s_openapi::api::core::v1::Container) -> bool {
    init_container.restart_policy.as_deref() == Some("Always")
}

/// `namespace/name`.
#[must_use]
pub fn key(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        times::parse("2026-11-20T12:00:00Z").unwrap()
    }

    fn condition_of(kind: &str, status: &str) -> PodCondition {
        PodCondition { type_: kind.into(), status: status.into(), ..PodCondition::default() }
    }

    fn ready_pod(since: i64) -> Pod {
        let mut status = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
        set_condition(&mut status, condition_of(READY, "True"), times::plus_seconds(now(), -since));
        Pod { status: Some(status), ..Pod::default() }
    }

    #[test]
    fn availability() {
        for (since, min_ready, expected) in
            [(0, 0, Some(0)), (0, 10, Some(10)), (9, 10, Some(1)), (10, 10, Some(0)), (20, 10, Some(0))]
        {
            let pod = ready_pod(since);
            assert!(is_pod_ready(&pod));
            assert_eq!(available_after(&pod, min_ready, now()), expected, "{since} of {min_ready}");
            assert_eq!(is_pod_available(&pod, min_ready, now()), expected == Some(0));
        }
        assert_eq!(available_after(&Pod::default(), 0, now()), None);
    }

    #[test]
    fn conditions_keep_their_transition_time() {
        let mut status = PodStatus::default();
        let later = times::plus_seconds(now(), 60);
        assert!(set_condition(&mut status, condition_of(READY, "False"), now()));
        assert!(!set_condition(&mut status, condition_of(READY, "False"), later));
        assert_eq!(condition(&status, READY).unwrap().last_transition_time, Some(times::api_time(now())));
        let with_reason = PodCondition { reason: Some("X".into()), ..condition_of(READY, "False") };
        assert!(set_condition(&mut status, with_reason, later));
        assert_eq!(condition(&status, READY).unwrap().last_transition_time, Some(times::api_time(now())));
        assert!(set_condition(&mut status, condition_of(READY, "True"), later));
        assert_eq!(condition(&status, READY).unwrap().last_transition_time, Some(times::api_time(later)));
        assert_eq!(status.conditions.unwrap().len(), 1);
    }

    #[test]
    fn phases() {
        let with = |phase: &str| Pod {
            status: Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }),
            ..Pod::default()
        };
        for (phase, terminal) in
            [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true)]
        {
            assert_eq!((is_pod_terminal(&with(phase)), is_pod_active(&with(phase))), (terminal, !terminal));
        }
        let mut deleted = with("Running");
        deleted.metadata.deletion_timestamp = Some(times::api_time(now()));
        assert!(!is_pod_active(&deleted));
    }
}

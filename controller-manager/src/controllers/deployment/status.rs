//! What a Deployment's status says, in the words that `kubectl rollout status` reads. Pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSetStatus};
use keelson_objects::times;

use super::plan::{self, Rollout, name};

pub const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
pub const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";

#[must_use]
pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
    }
}

/// Sets a condition; one that says the same with the same reason stays as it is.
pub fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let old = condition(status, kind).cloned();
    if old.as_ref().is_some_and(|old| old.status == value && old.reason.as_deref() == Some(reason)) {
        return;
    }
    let now = Some(times::api_time(now));
    let since = old.filter(|old| old.status == value).and_then(|old| old.last_transition_time);
    remove(status, kind);
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: since.or_else(|| now.clone()),
        last_update_time: now,
    });
}

/// The counts and the `Available` condition.
#[must_use]
pub fn counts(rollout: &Rollout<'_>, now: Timestamp) -> DeploymentStatus {
    let deployment = rollout.deployment;
    let old = deployment.status.clone().unwrap_or_default();
    let total = |of: fn(&ReplicaSetStatus) -> Option<i32>| -> i32 {
        rollout.all().filter_map(|set| of(set.status.as_ref()?)).fold(0, i32::saturating_add)
    };
    let available = total(|status| status.available_replicas);
    let asked = rollout.all().map(plan::size).fold(0, i32::saturating_add);
    let updated =
        rollout.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total(|status| Some(status.replicas))),
        updated_replicas: Some(updated),
        ready_replicas: Some(total(|status| status.ready_replicas)),
        available_replicas: Some(available),
        unavailable_replicas: Some((asked - available).max(0)),
        terminating_replicas: Some(total(|status| status.terminating_replicas)),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if available >= plan::replicas(deployment) - plan::max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".to_owned();
        set(&mut status, AVAILABLE, "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.".to_owned();
        set(&mut status, AVAILABLE, "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

fn deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds)?;
    // The greatest value stands for none.
    (seconds != i32::MAX).then(|| i64::from(seconds))
}

fn count(value: Option<i32>) -> i32 {
    value.unwrap_or(0)
}

/// Whether the rollout has reached its end.
#[must_use]
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = plan::replicas(deployment);
    count(status.updated_replicas) == wanted
        && count(status.replicas) == wanted
        && count(status.available_replicas) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(seconds), Some(condition)) = (deadline(deployment), condition(status, PROGRESSING)) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|at| times::plus_seconds(at.0, seconds) < now),
    }
}

/// The whole status of a rollout that is under way.
#[must_use]
pub fn progress(rollout: &Rollout<'_>, now: Timestamp) -> DeploymentStatus {
    let deployment = rollout.deployment;
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = counts(rollout, now);
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    }
    let current = condition(&old, PROGRESSING).cloned();
    let settled = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|condition| condition.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if deadline(deployment).is_some() && !settled {
        let who = match &rollout.new {
            Some(set) => format!("ReplicaSet {:?}", name(set)),
            None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{who} has successfully progressed.");
            set(&mut status, PROGRESSING, "True", NEW_SET_AVAILABLE, message, now);
        } else if has_progressed(&old, &status) {
            // The update time moves with every progress, which holds the deadline off.
            let since = current.filter(|c| c.status == "True").and_then(|c| c.last_transition_time);
            remove(&mut status, PROGRESSING);
            set(&mut status, PROGRESSING, "True", "ReplicaSetUpdated", format!("{who} is progressing."), now);
            if let (Some(since), Some(last)) =
                (since, status.conditions.as_mut().and_then(|all| all.last_mut()))
            {
                last.last_transition_time = Some(since);
            }
        } else if has_timed_out(deployment, &status, now) {
            let message = format!("{who} has timed out progressing.");
            set(&mut status, PROGRESSING, "False", TIMED_OUT, message, now);
        }
    }
    let failure = rollout.new.iter().chain(&rollout.old).find_map(|set| {
        set.status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|c| c.type_ == REPLICA_FAILURE)
    });
    match failure {
        Some(failure) => {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let (reason, message) = (text(&failure.reason), text(&failure.message));
            set(&mut status, REPLICA_FAILURE, &failure.status, &reason, message, now);
        }
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// When a rollout that makes no progress reaches its deadline.
#[must_use]
pub fn deadline_at(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let seconds = deadline(deployment)?;
    let condition = condition(status, PROGRESSING)?;
    if is_complete(deployment, status)
        || matches!(condition.reason.as_deref(), Some(NEW_SET_AVAILABLE | TIMED_OUT | PAUSED))
    {
        return None;
    }
    Some(times::plus_seconds(condition.last_update_time.as_ref()?.0, seconds + 1))
}

/// The status with the condition that a pause or its end calls for, if it has it not. Time spent paused does not
/// count against the deadline.
#[must_use]
pub fn pause(deployment: &Deployment, now: Timestamp) -> Option<DeploymentStatus> {
    deadline(deployment)?;
    let mut status = deployment.status.clone().unwrap_or_default();
    let current = condition(&status, PROGRESSING).and_then(|condition| condition.reason.clone());
    if current.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let (reason, message) = match (paused, current.as_deref() == Some(PAUSED)) {
        (true, false) => (PAUSED, "Deployment is paused"),
        (false, true) => (RESUMED, "Deployment is resumed"),
        _ => return None,
    };
    set(&mut status, PROGRESSING, "Unknown", reason, message.to_owned(), now);
    Some(status)
}

/// Whether two statuses say the same: a count that is left out is zero.
#[must_use]
pub fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let key = |s: &DeploymentStatus| {
        let counts = [
            s.replicas,
            s.updated_replicas,
            s.ready_replicas,
            s.available_replicas,
            s.unavailable_replicas,
            s.terminating_replicas,
            s.collision_count,
        ];
        (counts.map(count), s.observed_generation, s.conditions.clone().unwrap_or_default())
    };
    key(a) == key(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        times::plus_seconds(times::parse("2026-11-20T12:00:00Z").unwrap(), seconds)
    }

    fn deployment(status: Option<DeploymentStatus>) -> Deployment {
        let mut deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 60, "selector": {},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "template": {"spec": {"containers": []}}},
        }))
        .unwrap();
        deployment.status = status;
        deployment
    }

    fn set_with(replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1"},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": []}}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn reason(status: &DeploymentStatus) -> (&str, &str) {
        let condition = condition(status, PROGRESSING).unwrap();
        (condition.reason.as_deref().unwrap(), condition.message.as_deref().unwrap())
    }

    #[test]
    fn a_rollout_to_its_end() {
        let first = deployment(None);
        let status = progress(&Rollout::new(&first, vec![set_with(2, 0)]), at(0));
        assert_eq!(reason(&status), ("ReplicaSetUpdated", "ReplicaSet \"web-1\" is progressing."));
        assert_eq!(condition(&status, AVAILABLE).unwrap().status, "False");
        assert_eq!(status.unavailable_replicas, Some(2));

        let stuck = deployment(Some(status.clone()));
        assert_eq!(deadline_at(&stuck, &status), Some(at(61)));
        let same_again = progress(&Rollout::new(&stuck, vec![set_with(2, 0)]), at(59));
        assert!(same(&same_again, &status));
        let late = progress(&Rollout::new(&stuck, vec![set_with(2, 0)]), at(61));
        assert_eq!(
            reason(&late),
            ("ProgressDeadlineExceeded", "ReplicaSet \"web-1\" has timed out progressing.")
        );
        assert_eq!(deadline_at(&stuck, &late), None);

        let done = progress(&Rollout::new(&stuck, vec![set_with(2, 2)]), at(30));
        assert_eq!(
            reason(&done),
            ("NewReplicaSetAvailable", "ReplicaSet \"web-1\" has successfully progressed.")
        );
        assert_eq!(condition(&done, AVAILABLE).unwrap().status, "True");
        assert!(is_complete(&stuck, &done));
        // Losing a pod later is no rollout.
        let settled = deployment(Some(done));
        let lost = progress(&Rollout::new(&settled, vec![set_with(2, 1)]), at(900));
        assert_eq!(reason(&lost).0, "NewReplicaSetAvailable");
    }

    #[test]
    fn pausing() {
        let mut of = deployment(Some(DeploymentStatus::default()));
        assert!(pause(&of, at(0)).is_none());
        of.spec.as_mut().unwrap().paused = Some(true);
        let paused = pause(&of, at(0)).unwrap();
        assert_eq!(reason(&paused), ("DeploymentPaused", "Deployment is paused"));
        of.status = Some(paused);
        assert!(pause(&of, at(1)).is_none());
        of.spec.as_mut().unwrap().paused = None;
        assert_eq!(reason(&pause(&of, at(1)).unwrap()), ("DeploymentResumed", "Deployment is resumed"));
    }
}

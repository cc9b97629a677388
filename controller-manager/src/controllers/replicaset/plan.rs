//! What a ReplicaSet lacks, and what its status says. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use keelson_objects::times;

use crate::pod::{PodInfo, choose_to_delete};
use crate::pod_control::BURST;

#[derive(Debug)]
pub enum Scale {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<PodInfo>>),
}

/// `active` are the set's own; `related` also those of the sets that share its controller.
#[must_use]
pub fn scale(replicas: i32, active: &[Arc<PodInfo>], related: &[Arc<PodInfo>], now: Timestamp) -> Scale {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    if active.len() < wanted {
        return Scale::Create((wanted - active.len()).min(BURST));
    }
    let excess = (active.len() - wanted).min(BURST);
    if excess == 0 {
        return Scale::Nothing;
    }
    let mut crowd: HashMap<Box<str>, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pod.is_active()) {
        *crowd.entry(pod.node.clone()).or_default() += 1;
    }
    Scale::Delete(choose_to_delete(active.to_vec(), excess, &crowd, now))
}

/// What went wrong when pods were made or removed.
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// The status, and when to look again because a pod becomes available.
#[must_use]
pub fn status(
    set: &ReplicaSet,
    owned: &[Arc<PodInfo>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Timestamp>) {
    let old = set.status.clone().unwrap_or_default();
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let template = spec.and_then(|spec| spec.template.as_ref());
    let labels = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let active: Vec<_> = owned.iter().filter(|pod| pod.is_active()).collect();
    let count = |of: &dyn Fn(&PodInfo) -> bool| {
        Some(i32::try_from(active.iter().filter(|pod| of(pod)).count()).unwrap_or(i32::MAX))
    };
    let has_labels = |pod: &PodInfo| {
        labels.is_none_or(|labels| labels.iter().all(|(key, value)| pod.meta.labels.get(key) == Some(value)))
    };
    let terminating = owned.iter().filter(|pod| pod.meta.deleting && !pod.is_terminal()).count();
    let again = active
        .iter()
        .filter(|pod| !pod.is_available(min_ready, now))
        .filter_map(|pod| pod.available_at(min_ready))
        .min();
    let mut conditions = old.conditions.unwrap_or_default();
    let failed = conditions.iter().any(|condition| condition.type_ == "ReplicaFailure");
    match failure {
        Some(failure) if !failed => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(times::api_time(now)),
        }),
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some(_) => {}
    }
    let status = ReplicaSetStatus {
        replicas: count(&|_| true).unwrap_or(0),
        fully_labeled_replicas: count(&has_labels),
        ready_replicas: count(&PodInfo::is_ready),
        available_replicas: count(&|pod| pod.is_available(min_ready, now)),
        terminating_replicas: i32::try_from(terminating).ok(),
        observed_generation: set.metadata.generation,
        conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
    };
    (status, again)
}

/// Whether two statuses say the same: a count that is left out is zero.
#[must_use]
pub fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let counts = |s: &ReplicaSetStatus| {
        [s.fully_labeled_replicas, s.ready_replicas, s.available_replicas, s.terminating_replicas]
            .map(|n| n.unwrap_or(0))
    };
    let conditions = |s: &ReplicaSetStatus| s.conditions.clone().unwrap_or_default();
    a.replicas == b.replicas
        && counts(a) == counts(b)
        && a.observed_generation == b.observed_generation
        && conditions(a) == conditions(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use crate::pod::Phase;
    use serde_json::json;

    fn now() -> Timestamp {
        times::parse("2026-11-20T12:00:00Z").unwrap()
    }

    fn pods(count: usize) -> Vec<Arc<PodInfo>> {
        let make = |number: usize| {
            let meta = Meta { name: format!("p{number}"), uid: format!("p{number}"), ..Meta::default() };
            let ready = number.is_multiple_of(2).then(|| times::plus_seconds(now(), -10));
            Arc::new(PodInfo { meta, node: "n".into(), phase: Phase::Running, ready, ..PodInfo::default() })
        };
        (0..count).map(make).collect()
    }

    #[test]
    fn scaling() {
        #[track_caller]
        fn check(replicas: i32, existing: usize, expected: &str) {
            let pods = pods(existing);
            let text = match scale(replicas, &pods, &pods, now()) {
                Scale::Nothing => "nothing".to_owned(),
                Scale::Create(count) => format!("create {count}"),
                Scale::Delete(pods) => {
                    format!(
                        "delete {}",
                        pods.iter().map(|pod| pod.meta.name.as_str()).collect::<Vec<_>>().join(" ")
                    )
                }
            };
            assert_eq!(text, expected);
        }
        check(3, 3, "nothing");
        check(3, 1, "create 2");
        check(2000, 0, "create 500");
        check(2, 3, "delete p1");
        check(0, 2, "delete p0 p1");
        check(-1, 0, "nothing");
    }

    #[test]
    fn statuses() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"generation": 4},
            "spec": {"minReadySeconds": 20, "selector": {}, "template": {"metadata": {"labels": {"a": "b"}}}},
        }))
        .unwrap();
        let (first, again) = status(&set, &pods(3), None, now());
        assert_eq!(
            (first.replicas, first.fully_labeled_replicas, first.ready_replicas),
            (3, Some(0), Some(2))
        );
        assert_eq!((first.available_replicas, first.observed_generation), (Some(0), Some(4)));
        assert_eq!(again, Some(times::plus_seconds(now(), 10)));
        let failure = Failure { reason: "FailedCreate", message: "no".into() };
        let (failed, _) = status(&set, &pods(3), Some(&failure), now());
        assert!(!same(&first, &failed));
        let set = ReplicaSet { status: Some(failed.clone()), ..set };
        let (still, _) = status(&set, &pods(3), Some(&failure), times::plus_seconds(now(), 5));
        assert!(same(&still, &failed));
        assert!(status(&set, &pods(3), None, now()).0.conditions.is_none());
        let (later, again) = status(&set, &pods(3), None, times::plus_seconds(now(), 10));
        assert_eq!((later.available_replicas, again), (Some(2), None));
    }
}

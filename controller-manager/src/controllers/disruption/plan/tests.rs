//! Tables of a budget's status for the pods and scales that are observed.

use serde_json::{Value, json};

use super::*;
use crate::meta::Meta;

fn now() -> Timestamp {
    times::parse("2026-11-20T12:00:00Z").unwrap()
}

fn ago(seconds: i64) -> Time {
    times::api_time(times::plus_seconds(now(), -seconds))
}

fn controller(api_version: &str, kind: &str, uid: &str) -> Controller {
    Controller { api_version: api_version.into(), kind: kind.into(), name: uid.into(), uid: uid.into() }
}

/// A ready pod of a ReplicaSet; of none where `set` is empty.
fn pod(name: &str, set: &str) -> PodInfo {
    let controller = (!set.is_empty()).then(|| controller("apps/v1", "ReplicaSet", set));
    let meta = Meta { name: name.into(), uid: name.into(), controller, ..Meta::default() };
    PodInfo { meta, ready: Some(now()), ..PodInfo::default() }
}

fn unready(name: &str) -> PodInfo {
    PodInfo { ready: None, ..pod(name, "rs") }
}

fn leaving(name: &str) -> PodInfo {
    let mut pod = pod(name, "rs");
    pod.meta.deleting = true;
    pod
}

fn all(pods: impl IntoIterator<Item = PodInfo>) -> Vec<Arc<PodInfo>> {
    pods.into_iter().map(Arc::new).collect()
}

#[test]
fn controllers_with_a_scale() {
    #[track_caller]
    fn check(api_version: &str, kind: &str, expected: Result<Scalable, &str>) {
        let found = scalable(&controller(api_version, kind, "c"));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }
    check("apps/v1", "ReplicaSet", Ok(Scalable::ReplicaSet));
    check("extensions/v1beta1", "ReplicaSet", Ok(Scalable::ReplicaSet));
    check("apps/v1", "StatefulSet", Ok(Scalable::StatefulSet));
    check("apps/v1", "Deployment", Ok(Scalable::Deployment));
    check("v1", "ReplicationController", Ok(Scalable::ReplicationController));
    check("apps/v1", "DaemonSet", Err("daemonsets.apps does not implement the scale subresource"));
    check("batch/v1", "Job", Err("jobs.batch does not implement the scale subresource"));
    check(
        "example.com/v1",
        "ReplicaSet",
        Err(r#"no matches for kind "ReplicaSet" in version "example.com/v1""#),
    );
}

#[test]
fn demands() {
    #[track_caller]
    fn check(spec: Value, pods: &[Arc<PodInfo>], expected: Result<(i32, i32, bool), &str>) {
        let scale = |uid: &str, replicas| Scale { uid: uid.to_owned(), replicas };
        // Two ReplicaSets of one Deployment, and one that has none.
        let scales = Scales::from([
            ("old".into(), scale("deployment", 5)),
            ("new".into(), scale("deployment", 5)),
            ("other".into(), scale("other", 2)),
        ]);
        let spec = serde_json::from_value(spec).unwrap();
        let found = demand(&spec, pods, &scales).map(|it| (it.expected, it.desired, it.unmanaged));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_owned), "{spec:?}");
    }
    let some = all([pod("a", "old"), pod("b", "new"), pod("c", "new")]);
    check(json!({"minAvailable": 2}), &some, Ok((3, 2, false)));
    check(json!({"minAvailable": 2}), &[], Ok((0, 2, false)));
    check(json!({"minAvailable": "50%"}), &some, Ok((5, 3, false)));
    check(json!({"minAvailable": "100%"}), &some, Ok((5, 5, false)));
    check(json!({"maxUnavailable": "50%"}), &some, Ok((5, 2, false)));
    check(json!({"maxUnavailable": 1}), &some, Ok((5, 4, false)));
    check(json!({"maxUnavailable": 9}), &some, Ok((5, 0, false)));
    check(json!({}), &some, Ok((0, 0, false)));
    let two = all([pod("a", "new"), pod("b", "other")]);
    check(json!({"maxUnavailable": 1}), &two, Ok((7, 6, false)));
    // A number of pods counts those of nobody, a share does not.
    let unmanaged = all([pod("a", "new"), pod("b", "")]);
    check(json!({"minAvailable": 1}), &unmanaged, Ok((2, 1, false)));
    check(json!({"minAvailable": "20%"}), &unmanaged, Ok((5, 1, true)));
    check(json!({"maxUnavailable": 1}), &all([pod("b", "")]), Ok((0, 0, true)));
    let lost = all([pod("a", "new"), pod("b", "gone")]);
    check(json!({"minAvailable": 1}), &lost, Ok((2, 1, false)));
    check(json!({"maxUnavailable": 1}), &lost, Err(r#"found no controllers for pod "b""#));
    let wrong = "invalid value for IntOrString: invalid type: string is not a percentage";
    check(json!({"minAvailable": "5"}), &some, Err(wrong));
}

#[test]
fn evictions_that_are_not_over() {
    #[track_caller]
    fn check(pods: &[Arc<PodInfo>], kept: &[&str], spared: &[&str], until: Option<i64>) {
        let evicted = [("a", 10), ("b", 100), ("late", 120), ("gone", 5), ("leaving", 5)];
        let known = evicted.map(|(name, seconds)| (name.to_owned(), ago(seconds))).into();
        let found = disrupted(Some(&known), pods, now());
        assert_eq!(found.pods.keys().collect::<Vec<_>>(), kept);
        assert!(found.pods.iter().all(|(name, at)| known.get(name) == Some(at)));
        assert_eq!(found.spared.iter().map(|pod| &pod.meta.name).collect::<Vec<_>>(), spared);
        assert_eq!(found.until, until.map(|seconds| times::plus_seconds(now(), seconds)));
    }
    check(&[], &[], &[], None);
    check(&all([pod("untouched", "rs")]), &[], &[], None);
    check(&all([leaving("leaving")]), &[], &[], None);
    check(&all([pod("a", "rs"), pod("b", "rs"), leaving("leaving")]), &["a", "b"], &[], Some(20));
    check(&all([pod("late", "rs"), pod("a", "rs")]), &["a"], &["late"], Some(110));
    assert!(disrupted(None, &all([pod("a", "rs")]), now()).pods.is_empty());
}

#[test]
fn statuses() {
    #[track_caller]
    fn check(expected: i32, desired: i32, pods: &[Arc<PodInfo>], healthy: i32, allowed: i32) {
        let demand = Demand { expected, desired, unmanaged: false };
        let evicted = BTreeMap::from([("evicted".to_owned(), ago(1))]);
        let known = PodDisruptionBudgetStatus { observed_generation: Some(1), ..Default::default() };
        let found = status(&known, 2, &demand, pods, evicted.clone(), now());
        assert_eq!((found.current_healthy, found.disruptions_allowed), (Some(healthy), Some(allowed)));
        assert_eq!((found.expected_pods, found.desired_healthy), (Some(expected), Some(desired)));
        assert_eq!((found.observed_generation, found.disrupted_pods), (Some(2), Some(evicted)));
        let conditions = found.conditions.unwrap();
        let [condition] = conditions.as_slice() else { panic!("{conditions:?}") };
        let truth = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), truth);
        assert_eq!((condition.type_.as_str(), condition.observed_generation), ("DisruptionAllowed", Some(2)));
        assert_eq!(condition.last_transition_time, times::api_time(now()));
    }
    let pods = all([pod("a", "rs"), pod("b", "rs"), unready("c"), leaving("d"), pod("evicted", "rs")]);
    check(5, 1, &pods, 2, 1);
    check(5, 0, &pods, 2, 2);
    check(5, 2, &pods, 2, 0);
    check(5, 4, &pods, 2, 0);
    // Nothing is expected: nothing is allowed either.
    check(0, 0, &pods, 2, 0);
    check(0, 1, &[], 0, 0);
}

#[test]
fn a_transition_is_a_change_of_the_truth() {
    let demand = Demand { expected: 2, desired: 1, unmanaged: false };
    let (two, one) = (all([pod("a", "rs"), pod("b", "rs")]), all([pod("a", "rs")]));
    let later = |seconds| times::plus_seconds(now(), seconds);
    let transition =
        |status: &PodDisruptionBudgetStatus| status.conditions.as_ref().unwrap()[0].last_transition_time.0;
    let first = status(&PodDisruptionBudgetStatus::default(), 1, &demand, &two, BTreeMap::new(), now());
    assert_eq!(first.disrupted_pods, None);
    // The same again is not worth a write.
    assert_eq!(status(&first, 1, &demand, &two, BTreeMap::new(), later(5)), first);
    let fewer = status(&first, 1, &demand, &one, BTreeMap::new(), later(5));
    assert_eq!((fewer.disruptions_allowed, transition(&fewer)), (Some(0), later(5)));
    let failed = fail_safe(&fewer, "why".to_owned(), later(9));
    assert_eq!(transition(&failed), later(5));
    let condition = &failed.conditions.as_ref().unwrap()[0];
    assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", "why"));
    assert_eq!(fail_safe(&failed, "why".to_owned(), later(20)), failed);
    // What was counted before stays, but for what is allowed.
    let failed = fail_safe(&first, "why".to_owned(), later(9));
    assert_eq!((failed.current_healthy, failed.disruptions_allowed), (Some(2), Some(0)));
    let again = status(&failed, 1, &demand, &two, BTreeMap::new(), later(30));
    assert_eq!((again.disruptions_allowed, transition(&again)), (Some(1), later(30)));
    assert_eq!(again.conditions.as_ref().unwrap()[0].message, "");
}

//! Tables of what a DaemonSet's plan does for what it observes.

use super::*;
use crate::meta::Meta;
use k8s_openapi::api::core::v1::Taint;
use keelson_objects::times;
use serde_json::{Value, json};

fn now() -> Timestamp {
    times::parse("2026-11-20T12:00:00Z").unwrap()
}

fn node(name: &str) -> Arc<NodeInfo> {
    let labels = [("name".to_owned(), name.to_owned())].into();
    Arc::new(NodeInfo { meta: Meta { name: name.into(), labels, ..Meta::default() }, ..NodeInfo::default() })
}

fn tainted(name: &str, key: &str, effect: &str) -> Arc<NodeInfo> {
    let taint = Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
    Arc::new(NodeInfo { taints: vec![taint], ..(*node(name)).clone() })
}

/// `name@node`, then letters: `o`ld, `r`eady, `d`eleting, `f`ailed, `s`ucceeded, `p`inned only.
fn pod(text: &str) -> Arc<PodInfo> {
    let (place, flags) = text.split_once(':').unwrap_or((text, ""));
    let (name, node) = place.split_once('@').unwrap();
    let has = |flag: char| flags.contains(flag);
    let hash = if has('o') { "old" } else { "new" };
    let meta = Meta {
        name: name.into(),
        uid: name.into(),
        deleting: has('d'),
        labels: [(REVISION_HASH.to_owned(), hash.to_owned())].into(),
        ..Meta::default()
    };
    let (bound, pinned) = if has('p') { ("", node) } else { (node, "") };
    let phase = match () {
        () if has('f') => Phase::Failed,
        () if has('s') => Phase::Succeeded,
        () if has('p') => Phase::Pending,
        () => Phase::Running,
    };
    let ready = has('r').then(|| times::plus_seconds(now(), -5));
    Arc::new(PodInfo { meta, node: bound.into(), pinned: pinned.into(), phase, ready, ..PodInfo::default() })
}

fn set(spec: &Value) -> DaemonSet {
    let mut whole = json!({"metadata": {"generation": 3}, "spec": {"selector": {}, "template": {"spec": {"containers": []}}}});
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn with<T>(set: &DaemonSet, nodes: &[Arc<NodeInfo>], pods: &[&str], look: impl Fn(&Daemon<'_>) -> T) -> T {
    let pods: Vec<_> = pods.iter().map(|text| pod(text)).collect();
    let spec = set.spec.as_ref().unwrap();
    let mut pod_spec = spec.template.spec.clone().unwrap();
    tolerate(&mut pod_spec);
    look(&Daemon { set, spec, pod_spec, nodes, pods: &pods, hash: "new", now: now() })
}

fn text(changes: &Changes) -> String {
    let delete = changes.delete.iter().map(|removal| format!("-{}", removal.pod.meta.name));
    changes.create.iter().map(|node| format!("+{node}")).chain(delete).collect::<Vec<_>>().join(" ")
}

fn surging() -> Value {
    json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}})
}

#[test]
fn suitability() {
    #[track_caller]
    fn check(pod_spec: &Value, node: &Arc<NodeInfo>, expected: Suitability) {
        let mut spec = json!({"template": {"spec": {"containers": []}}});
        for (key, value) in pod_spec.as_object().unwrap() {
            spec["template"]["spec"][key] = value.clone();
        }
        assert_eq!(with(&set(&spec), &[], &[], |daemon| daemon.suitability(node)), expected);
    }
    use Suitability::{Keeps, Refuses, Runs};
    let plain = json!({});
    check(&plain, &node("a"), Runs);
    check(&json!({"nodeSelector": {"name": "a"}}), &node("a"), Runs);
    check(&json!({"nodeSelector": {"name": "a"}}), &node("b"), Refuses);
    check(&json!({"nodeName": "a"}), &node("b"), Refuses);
    let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["b"]}]}]}}}});
    check(&affinity, &node("a"), Runs);
    check(&affinity, &node("b"), Refuses);
    check(&plain, &tainted("a", "k", NO_SCHEDULE), Keeps);
    check(&plain, &tainted("a", "k", NO_EXECUTE), Refuses);
    check(&plain, &tainted("a", "k", "PreferNoSchedule"), Runs);
    check(&plain, &tainted("a", "node.kubernetes.io/unreachable", NO_EXECUTE), Runs);
    check(&plain, &tainted("a", "node.kubernetes.io/unschedulable", NO_SCHEDULE), Runs);
    check(&plain, &tainted("a", "node.kubernetes.io/network-unavailable", NO_SCHEDULE), Keeps);
    check(
        &json!({"hostNetwork": true}),
        &tainted("a", "node.kubernetes.io/network-unavailable", NO_SCHEDULE),
        Runs,
    );
}

#[test]
fn managing() {
    #[track_caller]
    fn check(spec: &Value, pods: &[&str], expected: &str) {
        let nodes = [node("a"), tainted("b", "k", NO_SCHEDULE), tainted("c", "k", NO_EXECUTE)];
        let changes = with(&set(spec), &nodes, pods, |daemon| daemon.manage(|node| node == "b"));
        assert_eq!(text(&changes), expected);
    }
    let plain = json!({});
    check(&plain, &[], "+a");
    check(&plain, &["1@a:p", "2@b:r", "3@c:r"], "-3");
    check(&plain, &["1@a:d"], "");
    check(&plain, &["1@a:fd"], "+a");
    check(&plain, &["1@a:f"], "-1");
    check(&plain, &["1@a:s", "2@b:f"], "-1");
    check(&plain, &["1@a:r", "2@a:r", "3@a:p"], "-2 -3");
    check(&plain, &["1@a:r", "2@gone:p"], "-2");
    check(&surging(), &["1@a:d"], "+a");
    check(&surging(), &["1@a:or", "2@a"], "");
    check(&surging(), &["1@a:or", "2@a:r"], "-1");
    check(&surging(), &["1@a:o", "2@a"], "-1");
    check(&surging(), &["1@a:or", "2@a", "3@a"], "-3");
}

#[test]
fn rolling() {
    #[track_caller]
    fn check(spec: &Value, pods: &[&str], expected: &str) {
        let nodes = [node("a"), node("b"), node("c")];
        assert_eq!(text(&with(&set(spec), &nodes, pods, |daemon| daemon.roll())), expected);
    }
    let plain = json!({});
    check(&plain, &["1@a:or", "2@b:or", "3@c:or"], "-1");
    check(&plain, &["1@a", "2@b:or", "3@c:or"], "");
    check(&plain, &["1@a:r", "2@b:or", "3@c:or"], "-2");
    check(&plain, &["2@b:or", "3@c:or"], "");
    check(&plain, &["1@a", "2@b:o", "3@c:or"], "-2");
    check(&plain, &["1@a:r", "2@b:r", "3@c:r"], "");
    let two = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}});
    check(&two, &["1@a:or", "2@b:or", "3@c:or"], "-1 -2");
    check(&surging(), &["1@a:or", "2@b:or", "3@c:or"], "+a");
    check(&surging(), &["1@a:or", "4@a", "2@b:or", "3@c:or"], "");
    check(&surging(), &["1@a:or", "4@a:r", "2@b:or", "3@c:or"], "+b -1");
    check(&surging(), &["1@a:o", "2@b:or", "3@c:or"], "+a +b");
    check(&surging(), &["1@a:r", "2@b:r", "3@c:r", "5@gone:or"], "-5");
}

#[test]
fn statuses() {
    let nodes = [node("a"), node("b"), node("c"), tainted("d", "k", NO_EXECUTE)];
    let slow = set(&json!({"minReadySeconds": 10}));
    let (status, again) = with(&slow, &nodes, &["1@a:r", "2@b:or", "3@d:r"], |daemon| daemon.status());
    assert_eq!((status.desired_number_scheduled, status.current_number_scheduled), (3, 2));
    assert_eq!((status.number_ready, status.number_misscheduled), (2, 1));
    assert_eq!((status.number_available, status.number_unavailable), (Some(0), Some(3)));
    assert_eq!((status.updated_number_scheduled, status.observed_generation), (Some(1), Some(3)));
    assert_eq!(again, Some(times::plus_seconds(now(), 5)));
    assert!(same(&status, &status.clone()) && !same(&status, &DaemonSetStatus::default()));
}

#[test]
fn pinning() {
    let mut spec: PodSpec = serde_json::from_value(json!({"containers": [], "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"matchExpressions": []}]}}}}))
    .unwrap();
    pin(&mut spec, "n");
    let made = k8s_openapi::api::core::v1::Pod { spec: Some(spec), ..Default::default() };
    assert_eq!(&*PodInfo::of(&made).pinned, "n");
    let mut bare = PodSpec::default();
    pin(&mut bare, "n");
    tolerate(&mut bare);
    tolerate(&mut bare);
    assert_eq!(bare.tolerations.unwrap().len(), 6);
}

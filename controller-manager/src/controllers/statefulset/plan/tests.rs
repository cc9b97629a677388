//! Tables of what a StatefulSet's plan does for what it observes.

use super::*;
use keelson_objects::times;
use serde_json::{Value, json};

fn now() -> Timestamp {
    times::parse("2026-11-20T12:00:00Z").unwrap()
}

/// `ordinal:` and letters: `r`eady, `o`ld revision, `d`eleting, `f`ailed, `a`dopted without labels.
fn pod_of(text: &str) -> Arc<PodInfo> {
    let (number, flags) = text.split_once(':').unwrap();
    let has = |flag: char| flags.contains(flag);
    let name = pod_name("web", number.parse().unwrap());
    let mut labels = [(REVISION_HASH.to_owned(), if has('o') { "web-old" } else { "web-new" }.to_owned())];
    let mut meta = Meta { name: name.clone(), uid: name.clone(), deleting: has('d'), ..Meta::default() };
    meta.labels.extend(std::mem::take(&mut labels));
    if !has('a') {
        meta.labels.extend([(POD_NAME.to_owned(), name), (POD_INDEX.to_owned(), number.to_owned())]);
    }
    let phase = if has('f') { Phase::Failed } else { Phase::Running };
    let ready = has('r').then(|| times::plus_seconds(now(), -5));
    Arc::new(PodInfo { meta, phase, ready, ..PodInfo::default() })
}

fn set(spec: &Value) -> StatefulSet {
    let mut whole = json!({"metadata": {"generation": 2}, "spec": {"replicas": 3, "selector": {}, "serviceName": "s",
        "template": {}, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
    for (key, value) in spec.as_object().unwrap() {
        whole["spec"][key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn with<T>(spec: &Value, pods: &[&str], look: impl Fn(&Observed<'_>) -> T) -> T {
    let set = set(spec);
    let pods: Vec<_> = pods.iter().map(|text| pod_of(text)).collect();
    let spec = set.spec.as_ref().unwrap();
    look(&Observed {
        name: "web",
        set: &set,
        spec,
        pods: &pods,
        current: "web-old",
        update: "web-new",
        now: now(),
    })
}

fn text(action: &Action) -> String {
    match action {
        Action::Create { ordinal, updated } => format!("+{ordinal}{}", if *updated { "" } else { "old" }),
        Action::Recreate(pod) => format!("!{}", pod.meta.name),
        Action::Condemn(pod) => format!("-{}", pod.meta.name),
        Action::Replace(pod) => format!("~{}", pod.meta.name),
        Action::Identify(pod) => format!("={}", pod.meta.name),
    }
}

#[track_caller]
fn check(spec: &Value, pods: &[&str], expected: &str) {
    let actions = with(spec, pods, |observed| observed.plan(|ordinal| ordinal == 9));
    assert_eq!(actions.iter().map(text).collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn in_order() {
    let plain = json!({});
    check(&plain, &[], "+0");
    check(&plain, &["0:"], "");
    check(&plain, &["0:r"], "+1");
    check(&plain, &["0:rd"], "");
    check(&plain, &["0:r", "1:f", "2:r"], "!web-1");
    check(&plain, &["0:r", "1:fd", "2:r"], "");
    check(&plain, &["0:r", "1:r", "2:r"], "");
    check(&json!({"minReadySeconds": 10}), &["0:r"], "");
    check(&json!({"ordinals": {"start": 5}, "replicas": 2}), &["5:r"], "+6");
    check(&json!({"ordinals": {"start": 9}, "replicas": 1}), &[], "");
    check(&json!({"replicas": 1}), &["0:ra"], "=web-0");
}

#[test]
fn shrinking() {
    let one = json!({"replicas": 1});
    check(&one, &["0:r", "1:r", "2:r"], "-web-2");
    check(&one, &["0:r", "1:r", "2:rd"], "");
    check(&one, &["0:", "1:r"], "");
    check(&one, &["0:r", "1:r", "2:"], "-web-2");
    check(&one, &["0:r", "1:", "2:"], "");
    check(&one, &["0:r", "1:", "2:r"], "-web-2");
    check(&json!({"replicas": 0}), &["0:"], "-web-0");
}

#[test]
fn in_parallel() {
    let parallel = |replicas: i32| json!({"podManagementPolicy": "Parallel", "replicas": replicas});
    check(&parallel(3), &[], "+0 +1 +2");
    check(&parallel(3), &["1:f", "2:d"], "+0 !web-1");
    check(&parallel(1), &["0:", "1:r", "2:d", "3:"], "-web-3 -web-1");
    check(&parallel(2), &["0:or", "1:or"], "~web-1");
    check(&parallel(2), &["0:or"], "+1");
    let many = with(&parallel(i32::MAX), &["3:r"], |observed| observed.plan(|_| false));
    assert_eq!(many.len(), BURST);
}

#[test]
fn rolling() {
    let plain = json!({});
    check(&plain, &["0:or", "1:or", "2:or"], "~web-2");
    check(&plain, &["0:or", "1:or", "2:ord"], "");
    check(&plain, &["0:or", "1:or"], "+2");
    check(&plain, &["0:or", "1:or", "2:"], "");
    check(&plain, &["0:or", "1:or", "2:r"], "~web-1");
    let strategy =
        |rolling: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
    check(&strategy(json!({"partition": 2})), &["0:or", "1:or", "2:or"], "~web-2");
    check(&strategy(json!({"partition": 2})), &["0:or", "1:or", "2:r"], "");
    check(&strategy(json!({"partition": 2})), &["0:or"], "+1old");
    check(&strategy(json!({"maxUnavailable": 2})), &["0:or", "1:or", "2:or"], "~web-2 ~web-1");
    check(&strategy(json!({"maxUnavailable": "50%"})), &["0:or", "1:or", "2:or"], "~web-2");
    check(&strategy(json!({"maxUnavailable": "1%"})), &["0:or", "1:or", "2:or"], "~web-2");
    check(&json!({"updateStrategy": {"type": "OnDelete"}}), &["0:or", "1:or"], "+2");
    check(&json!({"updateStrategy": {"type": "OnDelete"}}), &["0:or", "1:or", "2:or"], "");
}

#[test]
fn statuses() {
    let look = |pods: &[&str]| {
        with(&json!({"minReadySeconds": 0}), pods, |observed| {
            let (status, _) = observed.status(&observed.plan(|_| false));
            let count = |value: Option<i32>| value.unwrap_or(0);
            (
                [
                    status.replicas,
                    count(status.ready_replicas),
                    count(status.current_replicas),
                    count(status.updated_replicas),
                ],
                status.current_revision.unwrap(),
            )
        })
    };
    assert_eq!(look(&[]), ([1, 0, 0, 1], "web-old".to_owned()));
    assert_eq!(look(&["0:or", "1:or", "2:or"]), ([3, 3, 2, 0], "web-old".to_owned()));
    assert_eq!(look(&["0:or", "1:r", "2:r"]), ([3, 3, 0, 2], "web-old".to_owned()));
    assert_eq!(look(&["0:r", "1:r", "2:r"]), ([3, 3, 3, 3], "web-new".to_owned()));
    let again = with(&json!({"minReadySeconds": 20}), &["0:r"], |observed| observed.status(&[]).1);
    assert_eq!(again, Some(times::plus_seconds(now(), 15)));
}

#[test]
fn identities() {
    for (name, expected) in
        [("web-0", Some(0)), ("web-12", Some(12)), ("web-01", None), ("web-a-1", None), ("we-1", None)]
    {
        assert_eq!(ordinal("web", name), expected, "{name}");
    }
    let set = set(&json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}}],
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}}}));
    let meta = Meta { namespace: "ns".into(), name: "web".into(), uid: "u".into(), ..Meta::default() };
    let spec = set.spec.as_ref().unwrap();
    let made = pod(&meta, spec, &spec.template, "web-new", 4);
    let info = PodInfo::of(&made);
    assert!(has_identity(&info, 4) && revision(&info) == "web-new");
    assert_eq!((info.meta.name.as_str(), &*info.hostname, &*info.subdomain), ("web-4", "web-4", "s"));
    assert_eq!(info.claims, [("data".into(), "data-web-4".into())].into());
    assert_eq!(made.spec.unwrap().volumes.unwrap().len(), 2);
}

#[test]
fn claims() {
    #[track_caller]
    fn check(when_deleted: &str, when_scaled: &str, expected: [ClaimOwner; 2]) {
        let set = set(&json!({"persistentVolumeClaimRetentionPolicy":
            {"whenDeleted": when_deleted, "whenScaled": when_scaled}}));
        let spec = set.spec.unwrap();
        assert_eq!([claim_owner(&spec, false), claim_owner(&spec, true)], expected);
    }
    use ClaimOwner::{Nobody, Pod, Set};
    check("Retain", "Retain", [Nobody, Nobody]);
    check("Delete", "Retain", [Set, Set]);
    check("Retain", "Delete", [Nobody, Pod]);
    check("Delete", "Delete", [Set, Pod]);
}

//! Statuses of whole pods, from their specs and what the runtime reports.

use std::collections::HashMap;

use super::*;
use crate::runtime::observe::Sandbox;

fn pod(spec: serde_json::Value) -> Pod {
    let metadata = serde_json::json!({"name": "p", "namespace": "n", "uid": "u", "generation": 3});
    serde_json::from_value(serde_json::json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn one(policy: &str) -> Pod {
    pod(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}))
}

fn with_init(policy: &str, init_policy: Option<&str>) -> Pod {
    pod(serde_json::json!({"restartPolicy": policy,
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": init_policy}],
        "containers": [{"name": "c", "image": "i"}]}))
}

/// `name:run` or `name:exit<code>`, newest first.
fn observed(containers: &[&str]) -> ObservedPod {
    let containers = containers.iter().enumerate().map(|(index, text)| {
        let (name, state) = text.split_once(':').unwrap();
        let state = match state {
            "run" => State::Running { started_at: 1_000_000_000 },
            exit => State::Exited {
                started_at: 1_000_000_000,
                finished_at: 2_000_000_000,
                exit_code: exit.strip_prefix("exit").unwrap().parse().unwrap(),
                reason: String::new(),
                message: String::new(),
            },
        };
        Container {
            id: format!("{name}{index}"),
            name: name.into(),
            hash: String::new(),
            image: "i".into(),
            image_id: "sha".into(),
            restart_count: 1,
            sandbox_id: "sandbox".into(),
            created_at: 1,
            state,
            annotations: HashMap::new(),
            log_path: String::new(),
            user: None,
        }
    });
    let sandbox = Sandbox {
        id: "sandbox".into(),
        attempt: 0,
        ready: true,
        created_at: 1,
        ips: vec!["10.0.0.1".into()],
    };
    ObservedPod { sandboxes: vec![sandbox], containers: containers.collect() }
}

#[derive(Default)]
struct Case<'a> {
    waiting: HashMap<String, Waiting>,
    previous: PodStatus,
    terminating: bool,
    terminated: bool,
    unready: bool,
    failed: Option<&'a Waiting>,
}

fn run(pod: &Pod, containers: &[&str], case: &Case<'_>) -> PodStatus {
    compute(&Inputs {
        pod,
        observed: &observed(containers),
        previous: &case.previous,
        waiting: &case.waiting,
        probed: &|_, _| Probed { started: true, ready: !case.unready },
        termination_messages: &HashMap::new(),
        host_ips: &["192.0.2.1".to_owned()],
        failed: case.failed,
        terminating: case.terminating,
        terminated: case.terminated,
        given: &HashMap::new(),
        recursive_read_only: true,
        now: Timestamp::from_second(10).unwrap(),
    })
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> (&'a str, Option<&'a str>) {
    let found = status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
    (found.status.as_str(), found.reason.as_deref())
}

#[test]
fn phases() {
    let check = |pod: &Pod, containers: &[&str], terminated: bool, expected: &str| {
        let status = run(pod, containers, &Case { terminated, ..Case::default() });
        assert_eq!(status.phase.as_deref(), Some(expected), "{containers:?}");
    };
    check(&one("Always"), &[], false, "Pending");
    check(&one("Always"), &["c:run"], false, "Running");
    check(&one("Always"), &["c:exit1"], false, "Running");
    check(&one("Never"), &["c:exit0"], false, "Succeeded");
    check(&one("Never"), &["c:exit1"], false, "Failed");
    check(&one("OnFailure"), &["c:exit0"], false, "Succeeded");
    check(&one("OnFailure"), &["c:exit1"], false, "Running");
    check(&with_init("Always", None), &["s:run"], false, "Pending");
    check(&with_init("Always", None), &["s:exit1"], false, "Pending");
    check(&with_init("Never", None), &["s:exit1"], false, "Failed");
    check(&with_init("Always", None), &["s:exit0", "c:run"], false, "Running");
    check(&with_init("Always", Some("Always")), &["s:run", "c:run"], false, "Running");
    // A pod that was deleted is over whatever its policy.
    check(&one("Always"), &["c:exit0"], true, "Succeeded");
    check(&one("Always"), &["c:exit137"], true, "Failed");
    check(&one("Always"), &[], true, "Failed");
}

#[test]
fn waiting_reasons_and_last_states() {
    let waiting = |reason: &str| {
        HashMap::from([("c".to_owned(), Waiting { reason: reason.into(), message: "m".into() })])
    };
    let check = |containers: &[&str], reason: Option<&str>, expected: (&str, Option<i32>)| {
        let case = Case { waiting: reason.map(waiting).unwrap_or_default(), ..Case::default() };
        let status = run(&one("Always"), containers, &case).container_statuses.unwrap().remove(0);
        let state = status.state.unwrap();
        let shown = match (state.waiting, state.running, state.terminated) {
            (Some(waiting), ..) => waiting.reason.unwrap(),
            (_, Some(_), _) => "running".to_owned(),
            (.., Some(ended)) => ended.reason.unwrap(),
            _ => String::new(),
        };
        let last = status.last_state.and_then(|last| last.terminated).map(|ended| ended.exit_code);
        assert_eq!((shown.as_str(), last), expected, "{containers:?} {reason:?}");
    };
    check(&[], None, ("ContainerCreating", None));
    check(&[], Some("ImagePullBackOff"), ("ImagePullBackOff", None));
    check(&["c:exit3"], None, ("Error", None));
    check(&["c:exit0"], None, ("Completed", None));
    check(&["c:exit3"], Some("CrashLoopBackOff"), ("CrashLoopBackOff", Some(3)));
    check(&["c:run", "c:exit3"], None, ("running", Some(3)));
}

#[test]
fn conditions_of_a_pod() {
    let status = run(&one("Always"), &["c:run"], &Case::default());
    for kind in ["Ready", "ContainersReady", "Initialized", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(condition(&status, kind), ("True", None), "{kind}");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(status.observed_generation, Some(3));
    let status = run(&one("Always"), &["c:run"], &Case { unready: true, ..Case::default() });
    assert_eq!(condition(&status, "Ready"), ("False", Some("ContainersNotReady")));
    let status = run(&one("Never"), &["c:exit0"], &Case::default());
    assert_eq!(condition(&status, "Ready"), ("False", Some("PodCompleted")));
    assert_eq!(condition(&status, "Initialized"), ("True", Some("PodCompleted")));
    let status = run(&with_init("Always", None), &["s:run"], &Case::default());
    assert_eq!(condition(&status, "Initialized"), ("False", Some("ContainersNotInitialized")));
    let regular = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = regular.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn an_evicted_pod_fails_with_its_reason() {
    let evicted = Waiting { reason: "Evicted".into(), message: "low".into() };
    let case = Case { failed: Some(&evicted), terminating: true, ..Case::default() };
    let status = run(&one("Always"), &["c:run"], &case);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Running"), Some("Evicted")));
    let case = Case { terminated: true, ..case };
    let status = run(&one("Always"), &["c:exit137"], &case);
    assert_eq!((status.phase.as_deref(), status.message.as_deref()), (Some("Failed"), Some("low")));
    // Later computations keep the verdict.
    let case = Case { previous: status, terminated: true, ..Case::default() };
    let status = run(&one("Always"), &["c:exit137"], &case);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}

#[test]
fn mounts_are_told_with_their_depth() {
    let pod = pod(serde_json::json!({"containers": [{"name": "c", "volumeMounts": [
        {"name": "a", "mountPath": "/a"},
        {"name": "b", "mountPath": "/b", "readOnly": true},
        {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible"}]}]}));
    let status = run(&pod, &["c:run"], &Case::default()).container_statuses.unwrap().remove(0);
    let found = serde_json::to_value(status.volume_mounts).unwrap();
    assert_eq!(
        found,
        serde_json::json!([
            {"name": "a", "mountPath": "/a"},
            {"name": "b", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "c", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"}])
    );
}

/// The status of the one container, of which the runtime has these records, after it was as given.
fn after(pod: &Pod, containers: &[&str], previous: &PodStatus, terminating: bool) -> PodStatus {
    run(pod, containers, &Case { previous: previous.clone(), terminating, ..Case::default() })
}

fn known(list: &str, state: serde_json::Value) -> PodStatus {
    serde_json::from_value(serde_json::json!({list: [{"name": "c", "image": "i", "imageID": "sha",
        "containerID": "containerd://old", "ready": true, "restartCount": 3, "state": state}]}))
    .unwrap()
}

#[test]
fn restarts_are_counted_on_when_records_are_lost() {
    let running = serde_json::json!({"running": {}});
    let backing_off = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let check =
        |policy: &str, state: &serde_json::Value, terminating: bool, expected: (&str, i32, Option<i32>)| {
            let before = known("containerStatuses", state.clone());
            let first = after(&one(policy), &[], &before, terminating);
            let again = after(&one(policy), &[], &first, terminating);
            for status in [first, again] {
                let found = status.container_statuses.unwrap().remove(0);
                let last = found.last_state.and_then(|last| last.terminated).map(|last| last.exit_code);
                let got = (status.phase.as_deref().unwrap(), found.restart_count, last);
                assert_eq!(got, expected, "{policy} {state} {terminating}");
            }
        };
    check("Always", &running, false, ("Running", 4, Some(137)));
    check("OnFailure", &running, false, ("Running", 4, Some(137)));
    check("Never", &running, false, ("Failed", 3, None));
    check("Always", &backing_off, false, ("Pending", 4, None));
    check("Always", &running, true, ("Running", 3, None));
}

#[test]
fn an_end_without_a_record_is_the_last_state() {
    let before = known("containerStatuses", serde_json::json!({"terminated": {"exitCode": 7}}));
    let lost = after(&one("Always"), &[], &before, false);
    let found = after(&one("Always"), &["c:run"], &lost, false).container_statuses.unwrap().remove(0);
    assert_eq!(found.last_state.unwrap().terminated.unwrap().exit_code, 7);
    // A container's own end is not its last one.
    let mut own = before;
    own.container_statuses.as_mut().unwrap()[0].container_id = Some("containerd://c0".to_owned());
    let found = after(&one("Always"), &["c:run"], &own, false).container_statuses.unwrap().remove(0);
    assert_eq!(found.last_state, None);
}

#[test]
fn an_ephemeral_container_without_a_record_is_over() {
    let pod = pod(serde_json::json!({"containers": [{"name": "d", "image": "i"}],
        "ephemeralContainers": [{"name": "c", "image": "i"}]}));
    let check = |state: serde_json::Value, expected: i32| {
        let before = known("ephemeralContainerStatuses", state);
        let status = after(&pod, &["d:run"], &before, false);
        let found = status.ephemeral_container_statuses.unwrap().remove(0);
        assert_eq!(found.state.unwrap().terminated.unwrap().exit_code, expected);
        assert_eq!(found.restart_count, 3);
    };
    check(serde_json::json!({"running": {}}), 137);
    check(serde_json::json!({"terminated": {"exitCode": 0}}), 0);
}

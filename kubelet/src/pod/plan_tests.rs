//! Tables of what a pod's plan does for what the runtime reports and the last status says.

use super::*;
use crate::runtime::observe::Sandbox;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(
        serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
    )
    .unwrap()
}

fn one(policy: &str) -> Pod {
    pod(serde_json::json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}))
}

fn with_init(policy: &str, init_policy: Option<&str>) -> Pod {
    pod(serde_json::json!({"restartPolicy": policy,
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": init_policy}],
        "containers": [{"name": "c", "image": "i"}]}))
}

/// `name:state`, where state is `run`, `new`, `exit0`, `exit1`; the sandbox is `ready`, `down` or `none`.
fn observed(sandbox: &str, containers: &[&str]) -> ObservedPod {
    let sandboxes = match sandbox {
        "none" => vec![],
        state => vec![Sandbox {
            id: "sandbox".into(),
            attempt: 0,
            ready: state == "ready",
            created_at: 1,
            ips: vec!["10.0.0.1".into()],
        }],
    };
    let containers = containers
        .iter()
        .map(|text| {
            let (name, state) = text.split_once(':').unwrap();
            let state = match state {
                "run" => State::Running { started_at: 1 },
                "new" => State::Created,
                exit => State::Exited {
                    started_at: 1,
                    finished_at: 2,
                    exit_code: exit.strip_prefix("exit").unwrap().parse().unwrap(),
                    reason: String::new(),
                    message: String::new(),
                },
            };
            let spec = Spec { name: name.into(), image: Some("i".into()), ..Default::default() };
            Container {
                id: name.into(),
                name: name.into(),
                hash: names::container_hash(&spec),
                image: "i".into(),
                image_id: "i".into(),
                restart_count: 0,
                sandbox_id: "sandbox".into(),
                created_at: 1,
                state,
                annotations: HashMap::new(),
                log_path: String::new(),
                user: None,
            }
        })
        .collect();
    ObservedPod { sandboxes, containers }
}

/// A plan in one line: `pod` for a kill of all, `sandbox N`, `-name` for kills, `+init0` or `+0` for starts.
fn line(plan: &Plan) -> String {
    let mut words = Vec::new();
    if plan.kill_pod {
        words.push("pod".to_owned());
    }
    words.extend(plan.create_sandbox.map(|attempt| format!("sandbox {attempt}")));
    words.extend(plan.kill.iter().map(|kill| format!("-{}", kill.name)));
    words.extend(plan.start.iter().map(|slot| match slot.kind {
        Kind::Init => format!("+init{}", slot.index),
        Kind::Regular => format!("+{}", slot.index),
        Kind::Ephemeral => format!("+ephemeral{}", slot.index),
    }));
    words.join(" ")
}

fn check(pod: &Pod, sandbox: &str, containers: &[&str], expected: &str) {
    check_probed(pod, sandbox, containers, &Verdicts::default(), expected);
}

fn check_probed(pod: &Pod, sandbox: &str, containers: &[&str], verdicts: &Verdicts, expected: &str) {
    let plan = plan(pod, &observed(sandbox, containers), &PodStatus::default(), verdicts);
    assert_eq!(line(&plan), expected, "{sandbox} {containers:?}");
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_first_containers() {
    check(&one("Always"), "none", &[], "sandbox 0 +0");
    check(&with_init("Always", None), "none", &[], "sandbox 0 +init0");
    check(&one("Always"), "ready", &[], "+0");
}

#[test]
fn restart_policies() {
    check(&one("Always"), "ready", &["c:run"], "");
    check(&one("Always"), "ready", &["c:exit0"], "+0");
    check(&one("OnFailure"), "ready", &["c:exit1"], "+0");
    check(&one("OnFailure"), "ready", &["c:exit0"], "pod");
    check(&one("Never"), "ready", &["c:exit1"], "pod");
    check(&one("Never"), "ready", &["c:new"], "-c +0");
}

#[test]
fn a_lost_sandbox_is_made_anew_unless_all_is_over() {
    check(&one("Always"), "down", &["c:exit1"], "pod sandbox 1 +0");
    check(&one("Never"), "down", &["c:exit0"], "pod");
    check(&with_init("Always", None), "down", &["s:exit0", "c:exit1"], "pod sandbox 1 +init0");
    check(&with_init("Never", None), "down", &["s:exit1"], "pod");
}

#[test]
fn init_containers_run_first_and_in_order() {
    check(&with_init("Always", None), "ready", &[], "+init0");
    check(&with_init("Always", None), "ready", &["s:run"], "");
    check(&with_init("Always", None), "ready", &["s:exit0"], "+0");
    check(&with_init("Always", None), "ready", &["s:exit1"], "+init0");
    check(&with_init("Never", None), "ready", &["s:exit1"], "pod");
    check(&with_init("Always", None), "ready", &["s:exit0", "c:run"], "");
}

#[test]
fn sidecars_keep_running_and_end_with_the_pod() {
    let pod = with_init("Never", Some("Always"));
    let started = Verdicts { started: ["s".to_owned()].into(), ..Default::default() };
    check(&pod, "ready", &["s:run"], "");
    check_probed(&pod, "ready", &["s:run"], &started, "+0");
    check_probed(&pod, "ready", &["s:exit0", "c:run"], &started, "+init0");
    check_probed(&pod, "ready", &["s:run", "c:exit0"], &started, "pod");
    check_probed(&pod, "ready", &["s:exit1", "c:exit0"], &started, "pod");
}

#[test]
fn failed_probes_and_changed_images_restart() {
    let failed = Verdicts {
        failed: [("c".to_owned(), "failed liveness probe, will be restarted".to_owned())].into(),
        ..Default::default()
    };
    check_probed(&one("Always"), "ready", &["c:run"], &failed, "-c +0");
    check_probed(&one("Never"), "ready", &["c:run"], &failed, "pod -c");
    let mut changed = one("Always");
    changed.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    check(&changed, "ready", &["c:run"], "-c +0");
}

#[test]
fn an_ephemeral_container_starts_once() {
    let pod = pod(serde_json::json!({"containers": [{"name": "c", "image": "i"}],
        "ephemeralContainers": [{"name": "e", "image": "i"}]}));
    let check = |containers: &[&str], state: serde_json::Value, expected: &str| {
        let known = serde_json::json!({"ephemeralContainerStatuses": [{"name": "e", "image": "i", "imageID": "",
            "ready": false, "restartCount": 0, "state": state}]});
        let known = serde_json::from_value(known).unwrap();
        let plan = plan(&pod, &observed("ready", containers), &known, &Verdicts::default());
        assert_eq!(line(&plan), expected, "{containers:?} {state}");
    };
    let waiting = serde_json::json!({"waiting": {"reason": "ContainerCreating"}});
    check(&["c:run"], waiting.clone(), "+ephemeral0");
    check(&["c:run", "e:run"], waiting.clone(), "");
    check(&["c:run", "e:exit1"], waiting, "");
    // The runtime has no record of it, the API server has.
    check(&["c:run"], serde_json::json!({"running": {}}), "");
    check(&["c:run"], serde_json::json!({"terminated": {"exitCode": 0}}), "");
    check(&[], serde_json::json!({"terminated": {"exitCode": 0}}), "+0");
}

//! The life of a pod: how its containers start, fail, are watched over and end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::time::{Duration, Instant};

use e2e::kubectl::Kubectl;
use e2e::pods::{LONG, container, ended, event, pod, ready, shell, until_pod};
use e2e::wait::{until, until_contains};
use serde_json::{Value, json};

/// The status of a pod's first container.
fn main_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let kubectl = Kubectl::shared("init");
    let mut ordered = pod("ordered", "cat /work/log; sleep 3600");
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    ordered["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    ordered["spec"]["containers"][0]["volumeMounts"] = mount.clone();
    let mut inits = vec![
        // The first takes its time: were the second not to wait, it would write first.
        container("one", "sleep 2; echo one >> /work/log"),
        container("two", "echo two >> /work/log"),
    ];
    for init in &mut inits {
        init["volumeMounts"] = mount.clone();
    }
    ordered["spec"]["initContainers"] = json!(inits);
    kubectl.apply(&ordered.to_string());
    ready(&kubectl, "ordered");
    until_contains("the log", LONG, "one\ntwo\n", || kubectl.ask(&["logs", "ordered"]));
    let pod = kubectl.object(&["pod", "ordered"]).unwrap();
    for status in pod["status"]["initContainerStatuses"].as_array().unwrap() {
        assert_eq!(status["state"]["terminated"]["reason"], "Completed", "{status}");
    }

    let mut failing = e2e::pods::pod("failing", "echo never");
    failing["spec"]["restartPolicy"] = json!("Never");
    failing["spec"]["initContainers"] = json!([container("broken", "exit 4")]);
    kubectl.apply(&failing.to_string());
    let pod = ended(&kubectl, "failing");
    assert_eq!(pod["status"]["phase"], "Failed");
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 4);
    assert!(!main_status(&pod)["state"]["terminated"].is_object() || main_status(&pod)["restartCount"] == 0);
    let table = kubectl.run(&["get", "pod", "failing"]);
    assert!(table.contains("Init:Error"), "{table}");
}

#[test]
fn the_restart_policy_says_what_follows_an_exit() {
    let kubectl = Kubectl::shared("policy");
    let run = |name: &str, policy: &str, script: &str| {
        let mut object = pod(name, script);
        object["spec"]["restartPolicy"] = json!(policy);
        kubectl.apply(&object.to_string());
    };
    run("never", "Never", "exit 3");
    run("done", "OnFailure", "exit 0");
    run("crash", "Always", "echo line; exit 5");
    let mut retried = pod("retried", "[ -e /work/seen ] && exit 0; touch /work/seen; exit 1");
    retried["spec"]["restartPolicy"] = json!("OnFailure");
    retried["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    retried["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
    kubectl.apply(&retried.to_string());

    let never = ended(&kubectl, "never");
    assert_eq!(never["status"]["phase"], "Failed");
    let terminated = &main_status(&never)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(3), &json!("Error")));
    let done = ended(&kubectl, "done");
    assert_eq!(done["status"]["phase"], "Succeeded");
    assert_eq!(main_status(&done)["restartCount"], 0);
    let retried = ended(&kubectl, "retried");
    assert_eq!(retried["status"]["phase"], "Succeeded", "{}", retried["status"]);
    assert_eq!(main_status(&retried)["restartCount"], 1);
    assert_eq!(main_status(&retried)["lastState"]["terminated"]["exitCode"], 1);

    let crash = until_pod(&kubectl, "crash", "the container is held back", |pod| {
        main_status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(crash["status"]["phase"], "Running");
    assert!(main_status(&crash)["restartCount"].as_i64().unwrap() >= 1);
    assert_eq!(main_status(&crash)["lastState"]["terminated"]["exitCode"], 5);
    event(&kubectl, "crash", "BackOff");
    assert_eq!(kubectl.run(&["logs", "crash", "--previous"]), "line\n");
}

#[test]
fn a_liveness_probe_that_fails_restarts_the_container() {
    let kubectl = Kubectl::shared("liveness");
    let mut object = pod("probed", "touch /tmp/well; sleep 3600");
    object["spec"]["containers"][0]["livenessProbe"] = json!({
        "exec": {"command": ["cat", "/tmp/well"]}, "periodSeconds": 1, "failureThreshold": 2,
    });
    kubectl.apply(&object.to_string());
    ready(&kubectl, "probed");
    let first = kubectl.object(&["pod", "probed"]).unwrap();
    assert_eq!(main_status(&first)["restartCount"], 0);
    shell(&kubectl, "probed", "rm /tmp/well").unwrap();
    let second = until_pod(&kubectl, "probed", "the container is started again", |pod| {
        main_status(pod)["restartCount"] == 1 && main_status(pod)["state"]["running"].is_object()
    });
    assert_ne!(main_status(&first)["containerID"], main_status(&second)["containerID"]);
    assert!(event(&kubectl, "probed", "Unhealthy").contains("Liveness probe failed"));
    let killing = event(&kubectl, "probed", "Killing");
    assert!(killing.contains("failed liveness probe, will be restarted"), "{killing}");
}

#[test]
fn a_startup_probe_holds_the_other_probes_back() {
    let kubectl = Kubectl::shared("startup");
    let mut object = pod("slow", "sleep 3600");
    let main = &mut object["spec"]["containers"][0];
    main["startupProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 120});
    // Until the file is there this one would kill the container at its first try.
    main["livenessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/started"]}, "periodSeconds": 1, "failureThreshold": 1});
    kubectl.apply(&object.to_string());
    // Failures of the startup probe are told; by the second one a liveness probe would have acted.
    until("the startup probe has failed more than once", LONG, || {
        let selector = "involvedObject.name=slow,reason=Unhealthy";
        let events = kubectl.object(&["events", "--field-selector", selector])?;
        let event = &events["items"][0];
        let startup = event["message"].as_str().is_some_and(|text| text.contains("Startup probe failed"));
        if startup && event["count"].as_i64() > Some(1) { Ok(()) } else { Err(events.to_string()) }
    });
    let before = kubectl.object(&["pod", "slow"]).unwrap();
    assert_eq!(
        (&main_status(&before)["started"], &main_status(&before)["ready"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(main_status(&before)["restartCount"], 0);
    shell(&kubectl, "slow", "touch /tmp/started").unwrap();
    ready(&kubectl, "slow");
    let after = kubectl.object(&["pod", "slow"]).unwrap();
    assert_eq!(
        (&main_status(&after)["started"], &main_status(&after)["restartCount"]),
        (&json!(true), &json!(0))
    );
}

#[test]
fn readiness_decides_whether_a_service_knows_the_pod() {
    let kubectl = Kubectl::shared("readiness");
    let mut object = pod("gated", "sleep 3600");
    object["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    kubectl.apply(&object.to_string());
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gated"},
        "spec": {"selector": {"app": "gated"}, "ports": [{"port": 80}]}});
    kubectl.apply(&service.to_string());
    let address = until_pod(&kubectl, "gated", "the pod runs", |pod| pod["status"]["phase"] == "Running")
        ["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let until_known = |as_ready: bool| {
        until(&format!("both kinds of endpoints have it, ready: {as_ready}"), LONG, || {
            let label = "kubernetes.io/service-name=gated";
            let slices = kubectl.object(&["endpointslices", "-l", label])?;
            let endpoint = &slices["items"][0]["endpoints"][0];
            let subset = &kubectl.object(&["endpoints", "gated"])?["subsets"][0];
            let (list, other) = if as_ready {
                ("addresses", "notReadyAddresses")
            } else {
                ("notReadyAddresses", "addresses")
            };
            let right = endpoint["addresses"][0] == json!(address)
                && endpoint["conditions"]["ready"] == json!(as_ready)
                && subset[list][0]["ip"] == json!(address)
                && subset[other].is_null();
            if right { Ok(()) } else { Err(format!("{slices} {subset}")) }
        });
    };
    until_known(false);
    shell(&kubectl, "gated", "touch /tmp/ready").unwrap();
    ready(&kubectl, "gated");
    until_known(true);
    shell(&kubectl, "gated", "rm /tmp/ready").unwrap();
    until_known(false);
    assert_eq!(main_status(&kubectl.object(&["pod", "gated"]).unwrap())["restartCount"], 0);
}

#[test]
fn hooks_and_signals_come_in_order_within_the_grace_period() {
    let kubectl = Kubectl::shared("hooks");
    let directory = tempfile::tempdir().unwrap();
    let script = "trap 'echo term >> /log/hooks; exit 0' TERM; echo main >> /log/hooks; while true; do sleep 0.1; done";
    let mut object = pod("hooked", script);
    object["spec"]["terminationGracePeriodSeconds"] = json!(20);
    object["spec"]["volumes"] = json!([{"name": "log", "hostPath": {"path": directory.path()}}]);
    let main = &mut object["spec"]["containers"][0];
    main["volumeMounts"] = json!([{"name": "log", "mountPath": "/log"}]);
    main["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["sh", "-c", "echo post >> /log/start"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "sleep 1; echo pre >> /log/hooks"]}},
    });
    kubectl.apply(&object.to_string());
    ready(&kubectl, "hooked");
    let read =
        |file: &str| std::fs::read_to_string(directory.path().join(file)).map_err(|error| error.to_string());
    // Ready means that the postStart hook is done.
    assert_eq!(read("start").unwrap(), "post\n");
    until_contains("the container runs", LONG, "main\n", || read("hooks"));
    let started = Instant::now();
    kubectl.run(&["delete", "pod", "hooked", "--timeout=60s"]);
    assert_eq!(read("hooks").unwrap(), "main\npre\nterm\n");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());

    // One that does not listen is killed when its time is up, not before.
    let mut stubborn = pod("stubborn", "trap '' TERM; while true; do sleep 0.1; done");
    stubborn["spec"]["terminationGracePeriodSeconds"] = json!(3);
    kubectl.apply(&stubborn.to_string());
    ready(&kubectl, "stubborn");
    let started = Instant::now();
    kubectl.run(&["delete", "pod", "stubborn", "--timeout=60s"]);
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(20), "{took:?}");

    // Forced: gone from the API at once.
    kubectl.apply(&stubborn.to_string());
    ready(&kubectl, "stubborn");
    kubectl.run(&["delete", "pod", "stubborn", "--grace-period=0", "--force", "--timeout=10s"]);
    let gone = kubectl.refused(&["get", "pod", "stubborn"], None);
    assert!(gone.contains("not found"), "{gone}");
}

#[test]
fn a_post_start_hook_that_fails_kills_its_container() {
    let kubectl = Kubectl::shared("post-start");
    let mut object = pod("broken", "sleep 3600");
    object["spec"]["restartPolicy"] = json!("Never");
    object["spec"]["containers"][0]["lifecycle"] = json!({"postStart": {"exec": {"command": ["false"]}}});
    kubectl.apply(&object.to_string());
    event(&kubectl, "broken", "FailedPostStartHook");
    assert_eq!(ended(&kubectl, "broken")["status"]["phase"], "Failed");
}

#[test]
fn an_image_that_is_not_there_is_told() {
    let kubectl = Kubectl::shared("image");
    let mut object = pod("absent", "true");
    object["spec"]["containers"][0]["image"] = json!("localhost/absent:none");
    kubectl.apply(&object.to_string());
    let mut never = pod("never", "true");
    never["spec"]["containers"][0]["image"] = json!("localhost/absent:none");
    never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    kubectl.apply(&never.to_string());
    let reason =
        |pod: &Value| main_status(pod)["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned();
    until_pod(&kubectl, "absent", "pulling fails", |pod| {
        ["ErrImagePull", "ImagePullBackOff"].contains(&reason(pod).as_str())
    });
    until_pod(&kubectl, "absent", "pulling is held back", |pod| reason(pod) == "ImagePullBackOff");
    let message = event(&kubectl, "absent", "Failed");
    assert!(message.contains("localhost/absent:none") || message.contains("ErrImagePull"), "{message}");
    let message = event(&kubectl, "absent", "BackOff");
    assert!(message.contains("Back-off pulling image \"localhost/absent:none\""), "{message}");
    let pod =
        until_pod(&kubectl, "never", "the image may not be pulled", |pod| reason(pod) == "ErrImageNeverPull");
    assert_eq!(pod["status"]["phase"], "Pending");
    // Such a pod goes away like any other.
    kubectl.run(&["delete", "pod", "absent", "never", "--timeout=30s"]);
}

#[test]
fn a_container_that_cannot_be_made_is_tried_again_after_a_while_or_once_that_changes() {
    let kubectl = Kubectl::shared("retry");
    let mut never = pod("never", "true");
    never["spec"]["containers"][0]["image"] = json!("localhost/absent:none");
    never["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    kubectl.apply(&never.to_string());
    let mut lacks = pod("lacks", "sleep 3600");
    lacks["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "late"}}]);
    kubectl.apply(&lacks.to_string());
    for (name, reason) in [("never", "ErrImageNeverPull"), ("lacks", "Failed")] {
        let selector = format!("involvedObject.name={name},reason={reason}");
        let (first, last) = until(&format!("{name} is tried again"), LONG, || {
            let list = kubectl.object(&["events", "--field-selector", &selector])?;
            let event = &list["items"][0];
            let at =
                |field: &str| event[field].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            match (event["count"].as_i64(), at("firstTimestamp"), at("lastTimestamp")) {
                (Some(2..), Some(first), Some(last)) => Ok((first, last)),
                _ => Err(list.to_string()),
            }
        });
        // Upstream's ten seconds; events' times are whole seconds.
        assert!(last.duration_since(first).as_secs() >= 9, "{name}: tried at {first} and again by {last}");
    }
    kubectl.run(&["create", "configmap", "late", "--from-literal=a=1"]);
    ready(&kubectl, "lacks");
}

#[test]
fn limits_hold() {
    let kubectl = Kubectl::shared("limits");
    let mut object = pod("hungry", "exec tail /dev/zero");
    object["spec"]["restartPolicy"] = json!("Never");
    object["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "24Mi", "cpu": "500m"}});
    kubectl.apply(&object.to_string());
    let pod = ended(&kubectl, "hungry");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let terminated = &main_status(&pod)["state"]["terminated"];
    assert_eq!(
        (&terminated["reason"], &terminated["exitCode"]),
        (&json!("OOMKilled"), &json!(137)),
        "{terminated}"
    );
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let kubectl = Kubectl::shared("fit");
    let mut big = pod("big", "true");
    big["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    let mut picky = pod("picky", "sleep 3600");
    picky["spec"]["nodeSelector"] = json!({"disk": kubectl.namespace});
    kubectl.apply(&big.to_string());
    kubectl.apply(&picky.to_string());
    let message = event(&kubectl, "big", "FailedScheduling");
    assert!(message.starts_with("0/2 nodes are available: 2 Insufficient cpu."), "{message}");
    let message = event(&kubectl, "picky", "FailedScheduling");
    assert!(message.contains("2 node(s) didn't match Pod's node affinity/selector"), "{message}");
    let pod = kubectl.object(&["pod", "big"]).unwrap();
    let condition = &pod["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("PodScheduled"), &json!("Unschedulable")));

    // A node that comes to match is found without anyone asking again.
    kubectl.run(&["label", "node", "node-2", &format!("disk={}", kubectl.namespace), "--overwrite"]);
    let scheduled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ready(&kubectl, "picky")));
    kubectl.run(&["label", "node", "node-2", "disk-"]);
    assert!(
        scheduled.is_ok(),
        "the pod stays pending: {}",
        kubectl.object(&["pod", "picky"]).unwrap()["status"]
    );
    assert_eq!(kubectl.object(&["pod", "picky"]).unwrap()["spec"]["nodeName"], "node-2");
}

#[test]
fn a_pod_waits_until_its_claim_is_bound() {
    let kubectl = Kubectl::shared("claims");
    let mut storing = pod("storing", "sleep 3600");
    storing["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    kubectl.apply(&storing.to_string());
    let waits = |reason: &str| {
        let message = format!("0/2 nodes are available: {reason}.");
        until_pod(&kubectl, "storing", &message, |pod| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "PodScheduled" && c["message"] == *message)
        });
    };
    waits("persistentvolumeclaim \"data\" not found");
    let message = event(&kubectl, "storing", "FailedScheduling");
    assert_eq!(message, "0/2 nodes are available: persistentvolumeclaim \"data\" not found.");
    let storage = json!({"requests": {"storage": "1Gi"}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": storage}});
    kubectl.apply(&claim.to_string());
    waits("pod has unbound immediate PersistentVolumeClaims");
    // No controller of volumes runs here: the test plays it.
    let volume = format!("data-{}", kubectl.namespace);
    let node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]});
    let object = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/tmp"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}}}});
    kubectl.apply(&object.to_string());
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": volume}})
    .to_string();
    let bind = ["patch", "persistentvolumeclaim", "data", "--type=merge", "-p", &bound];
    let scheduled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        kubectl.run(&bind);
        until_pod(&kubectl, "storing", "it is where its volume is", |pod| {
            pod["spec"]["nodeName"] == "node-2"
        });
    }));
    kubectl.run(&["delete", "persistentvolume", &volume]);
    assert!(scheduled.is_ok(), "the pod stays pending");
}

#[test]
fn the_first_consumer_of_a_claim_has_its_volume_reserved() {
    let kubectl = Kubectl::shared("consumer");
    let name = format!("late-{}", kubectl.namespace);
    let class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    let node = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/tmp"},
            "storageClassName": name,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": name,
            "resources": {"requests": {"storage": "1Gi"}}}});
    let mut storing = pod("storing", "sleep 3600");
    storing["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let bound = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": name}})
    .to_string();
    let available = json!({"status": {"phase": "Available"}}).to_string();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for object in [&class, &volume, &claim, &storing] {
            kubectl.apply(&object.to_string());
        }
        // No controller of volumes runs here: the test plays it.
        let offer =
            ["patch", "persistentvolume", &name, "--subresource=status", "--type=merge", "-p", &available];
        kubectl.run(&offer);
        until("the volume is reserved", LONG, || {
            let volume = kubectl.object(&["persistentvolume", &name])?;
            let claim = &volume["spec"]["claimRef"];
            let reserved = claim["name"] == "data" && claim["namespace"] == *kubectl.namespace;
            if reserved { Ok(()) } else { Err(volume["spec"].to_string()) }
        });
        kubectl.run(&["patch", "persistentvolumeclaim", "data", "--type=merge", "-p", &bound]);
        until_pod(&kubectl, "storing", "it is where its volume is", |pod| {
            pod["spec"]["nodeName"] == "node-2"
        });
    }));
    kubectl.run(&["delete", "persistentvolume", &name]);
    kubectl.run(&["delete", "storageclass", &name]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn alone_taints_keep_pods_away_that_do_not_tolerate_them() {
    let kubectl = Kubectl::shared("taints");
    let key = format!("example.com/{}", kubectl.namespace);
    kubectl.run(&["taint", "node", "node-1", &format!("{key}=yes:NoSchedule")]);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let on_first = |name: &str| {
            let mut object = pod(name, "sleep 3600");
            object["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "node-1"});
            object
        };
        kubectl.apply(&on_first("plain").to_string());
        let message = event(&kubectl, "plain", "FailedScheduling");
        assert!(message.contains("1 node(s) had untolerated taint(s)"), "{message}");
        let mut tolerant = on_first("tolerant");
        tolerant["spec"]["tolerations"] = json!([{"key": key, "operator": "Exists"}]);
        kubectl.apply(&tolerant.to_string());
        ready(&kubectl, "tolerant");
    }));
    kubectl.run(&["taint", "node", "node-1", &format!("{key}-")]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    ready(&kubectl, "plain");
}

//! What controllers make of workloads beyond the first start, which `workloads` has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::api::Api;
use e2e::kubectl::Kubectl;
use e2e::pods::{LONG, container, event, shell, sleeper, template, until_pod};
use e2e::wait::until;
use http::Method;
use serde_json::{Value, json};

fn workload(kind: &str, name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template(name)},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

fn rolled_out(kubectl: &Kubectl, what: &str) {
    kubectl.run(&["rollout", "status", what, "--timeout=90s"]);
}

/// The pods of an app as (name, uid).
fn pods(kubectl: &Kubectl, app: &str) -> BTreeSet<(String, String)> {
    let list = kubectl.object(&["pods", "-l", &format!("app={app}")]).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|pod| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]))).collect()
}

#[test]
fn a_rolling_update_keeps_within_its_bounds() {
    let (kubectl, api) = (Kubectl::shared("rolling"), Api::admin());
    let mut deployment = workload(
        "Deployment",
        "web",
        &json!({"replicas": 3, "strategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}),
    );
    kubectl.apply(&deployment.to_string());
    rolled_out(&kubectl, "deployment/web");
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/web", kubectl.namespace);
    let version = api.get(&path).unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let list = format!("/apis/apps/v1/namespaces/{}/deployments", kubectl.namespace);
    let mut watch = api.watch(&format!("{list}?watch=true&resourceVersion={version}"));
    deployment["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "VERSION", "value": "2"}]);
    kubectl.apply(&deployment.to_string());
    // Every state on the way was within the bounds.
    loop {
        let (_, object) = watch.event(LONG);
        let (status, count) =
            (&object["status"], |field: &str| object["status"][field].as_i64().unwrap_or_default());
        assert!(count("replicas") <= 4, "{status}");
        assert!(count("availableReplicas") >= 3, "{status}");
        let current = status["observedGeneration"] == object["metadata"]["generation"];
        if current
            && count("updatedReplicas") == 3
            && count("replicas") == 3
            && count("availableReplicas") == 3
        {
            break;
        }
    }
    let sets = kubectl.object(&["replicasets"]).unwrap();
    assert_eq!(sets["items"].as_array().unwrap().len(), 2);
}

#[test]
fn recreate_ends_the_old_pods_before_it_starts_new_ones() {
    let (kubectl, api) = (Kubectl::shared("recreate"), Api::admin());
    let mut deployment =
        workload("Deployment", "web", &json!({"replicas": 2, "strategy": {"type": "Recreate"}}));
    kubectl.apply(&deployment.to_string());
    rolled_out(&kubectl, "deployment/web");
    let old: BTreeSet<String> = pods(&kubectl, "web").into_iter().map(|(_, uid)| uid).collect();
    let all = format!("/api/v1/namespaces/{}/pods", kubectl.namespace);
    let version = api.get(&all).unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = api.watch(&format!("{all}?watch=true&resourceVersion={version}&labelSelector=app%3Dweb"));
    deployment["spec"]["template"]["metadata"]["labels"]["version"] = json!("2");
    kubectl.apply(&deployment.to_string());
    let mut left = old.clone();
    let mut ready = BTreeSet::new();
    while ready.len() < 2 {
        let (kind, pod) = watch.event(LONG);
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let ended = ["Succeeded", "Failed"].contains(&pod["status"]["phase"].as_str().unwrap_or_default());
        if old.contains(&uid) {
            if kind == "DELETED" || ended {
                left.remove(&uid);
            }
            continue;
        }
        assert!(left.is_empty(), "{} came while {left:?} still ran", pod["metadata"]["name"]);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True") {
            ready.insert(uid);
        }
    }
}

#[test]
fn a_rollout_that_cannot_finish_says_so_and_harms_nothing() {
    let kubectl = Kubectl::shared("stuck");
    let mut deployment = workload("Deployment", "web", &json!({"replicas": 2, "progressDeadlineSeconds": 5}));
    kubectl.apply(&deployment.to_string());
    rolled_out(&kubectl, "deployment/web");
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!("localhost/absent:none");
    kubectl.apply(&deployment.to_string());
    let error = kubectl.refused(&["rollout", "status", "deployment/web", "--timeout=60s"], None);
    assert!(error.contains("exceeded its progress deadline"), "{error}");
    let object = kubectl.object(&["deployment", "web"]).unwrap();
    assert!(object["status"]["availableReplicas"].as_i64() >= Some(2), "{}", object["status"]);
    kubectl.run(&["rollout", "undo", "deployment/web"]);
    rolled_out(&kubectl, "deployment/web");
}

#[test]
fn a_stateful_set_goes_down_and_is_updated_from_its_end() {
    let (kubectl, api) = (Kubectl::shared("ordinals"), Api::admin());
    let mut set = workload("StatefulSet", "db", &json!({"serviceName": "db", "replicas": 3}));
    let all = format!("/api/v1/namespaces/{}/pods", kubectl.namespace);
    let version = api.get(&all).unwrap()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = api.watch(&format!("{all}?watch=true&resourceVersion={version}&labelSelector=app%3Ddb"));
    kubectl.apply(&set.to_string());
    // The order of one kind of change, as the API tells it.
    let mut order = |wanted: &str, count: usize| {
        let mut names = Vec::new();
        while names.len() < count {
            let (kind, pod) = watch.event(LONG);
            if kind == wanted {
                names.push(pod["metadata"]["name"].as_str().unwrap().to_owned());
            }
        }
        names
    };
    assert_eq!(order("ADDED", 3), ["db-0", "db-1", "db-2"]);
    rolled_out(&kubectl, "statefulset/db");
    let before = pods(&kubectl, "db");

    set["spec"]["template"]["metadata"]["labels"]["version"] = json!("2");
    kubectl.apply(&set.to_string());
    assert_eq!(order("DELETED", 3), ["db-2", "db-1", "db-0"]);
    rolled_out(&kubectl, "statefulset/db");
    let after = pods(&kubectl, "db");
    let names =
        |pods: &BTreeSet<(String, String)>| pods.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert!(after.is_disjoint(&before));

    kubectl.run(&["scale", "statefulset/db", "--replicas=1"]);
    assert_eq!(order("DELETED", 2), ["db-2", "db-1"]);
    until("one pod is left", LONG, || match pods(&kubectl, "db").len() {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn a_stateful_set_may_start_all_its_pods_at_once() {
    let kubectl = Kubectl::shared("parallel");
    let mut set = workload(
        "StatefulSet",
        "db",
        &json!({"serviceName": "db", "replicas": 3, "podManagementPolicy": "Parallel"}),
    );
    // None of them becomes ready: in order, only the first would ever be there.
    set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["false"]}});
    kubectl.apply(&set.to_string());
    until("three pods are there", LONG, || match pods(&kubectl, "db").len() {
        3 => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn a_daemon_set_replaces_its_pods_node_by_node() {
    let kubectl = Kubectl::shared("agents");
    let mut set = workload("DaemonSet", "agent", &json!({}));
    kubectl.apply(&set.to_string());
    rolled_out(&kubectl, "daemonset/agent");
    let before = pods(&kubectl, "agent");
    assert_eq!(before.len(), 2);
    set["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "VERSION", "value": "2"}]);
    kubectl.apply(&set.to_string());
    rolled_out(&kubectl, "daemonset/agent");
    let status = kubectl.object(&["daemonset", "agent"]).unwrap()["status"].clone();
    assert_eq!(status["updatedNumberScheduled"], 2, "{status}");
    assert!(pods(&kubectl, "agent").is_disjoint(&before));
    let revisions = kubectl.object(&["controllerrevisions"]).unwrap();
    assert_eq!(revisions["items"].as_array().unwrap().len(), 2);
    // A selector that fits no node leaves none.
    set["spec"]["template"]["spec"]["nodeSelector"] = json!({"no": "node"});
    kubectl.apply(&set.to_string());
    until("no pod is left", LONG, || match pods(&kubectl, "agent").len() {
        0 => Ok(()),
        count => Err(count.to_string()),
    });
}

#[test]
fn a_budget_lets_go_of_pods_one_by_one() {
    let (kubectl, api) = (Kubectl::shared("budget"), Api::admin());
    let mut deployment = workload("Deployment", "web", &json!({"replicas": 2}));
    // Pods are ready when the test says so, and not before.
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    kubectl.apply(&deployment.to_string());
    let budget = |mut spec: Value| {
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "web"}, "spec": spec});
        kubectl.run(&["delete", "pdb", "web", "--ignore-not-found"]);
        kubectl.apply(&budget.to_string());
    };
    // Makes every pod ready, and gives the budget when it has seen that.
    let allowed = |count: i64| {
        until("the budget allows disruptions", LONG, || {
            for (name, _) in pods(&kubectl, "web") {
                shell(&kubectl, &name, "touch /tmp/ready")?;
            }
            let budget = kubectl.object(&["pdb", "web"])?;
            let seen = budget["status"]["observedGeneration"] == budget["metadata"]["generation"];
            let here = budget["status"]["disruptionsAllowed"] == count && seen;
            if here { Ok(budget["status"].clone()) } else { Err(budget["status"].to_string()) }
        })
    };
    let condition = |status: &Value| {
        let condition = &status["conditions"][0];
        assert_eq!(condition["type"], "DisruptionAllowed", "{status}");
        condition["reason"].as_str().unwrap_or_default().to_owned()
    };
    let evict = |name: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        let path = format!("/api/v1/namespaces/{}/pods/{name}/eviction", kubectl.namespace);
        api.request(Method::POST, &path, Some(&eviction))
    };

    budget(json!({"minAvailable": 1}));
    until("two pods run", LONG, || match pods(&kubectl, "web").len() {
        2 => Ok(()),
        count => Err(count.to_string()),
    });
    let status = allowed(1);
    assert_eq!((&status["currentHealthy"], &status["expectedPods"]), (&json!(2), &json!(2)), "{status}");
    assert_eq!((&status["desiredHealthy"], condition(&status)), (&json!(1), "SufficientPods".to_owned()));
    let table = kubectl.run(&["get", "pdb", "web", "--no-headers"]);
    assert_eq!(table.split_whitespace().take(4).collect::<Vec<_>>(), ["web", "1", "N/A", "1"]);

    let before = pods(&kubectl, "web");
    let names: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
    evict(names[0]).ok();
    // The one that takes its place is not ready.
    let refused = evict(names[1]);
    let message = refused.refused(429, "TooManyRequests");
    assert_eq!(message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let status = until("the eviction is over", LONG, || {
        let status = kubectl.object(&["pdb", "web"])?["status"].clone();
        let over = status["disruptedPods"].is_null() && status["expectedPods"] == 2;
        if over && status["currentHealthy"] == 1 { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!(
        (&status["disruptionsAllowed"], condition(&status)),
        (&json!(0), "InsufficientPods".to_owned())
    );
    evict(names[1]).refused(429, "TooManyRequests");
    allowed(1);
    evict(names[1]).ok();

    // A share of what the Deployment asks for, which is found through its ReplicaSet.
    kubectl.run(&["scale", "deployment/web", "--replicas=3"]);
    budget(json!({"minAvailable": "50%"}));
    let status = allowed(1);
    assert_eq!((&status["desiredHealthy"], &status["expectedPods"]), (&json!(2), &json!(3)), "{status}");

    // Pods whose controller has no scale cannot be counted.
    kubectl.run(&["delete", "deployment", "web"]);
    kubectl.apply(&workload("DaemonSet", "web", &json!({})).to_string());
    budget(json!({"maxUnavailable": 1}));
    let status = until("the budget's pods cannot be counted", LONG, || {
        let status = kubectl.object(&["pdb", "web"])?["status"].clone();
        let message = "daemonsets.apps does not implement the scale subresource";
        if status["conditions"][0]["message"] == message { Ok(status) } else { Err(status.to_string()) }
    });
    assert_eq!((&status["disruptionsAllowed"], condition(&status)), (&json!(0), "SyncFailed".to_owned()));
    event(&kubectl, "web", "CalculateExpectedPodCountFailed");
}

#[test]
fn a_disruption_that_did_not_come_is_taken_back() {
    let kubectl = Kubectl::shared("spared");
    sleeper(&kubectl, "spared", None);
    // As an eviction leaves it whose delete was refused, long ago.
    let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let patch = json!({"status": {"conditions": [condition]}}).to_string();
    // kubectl's --subresource is younger than the kubectl of Debian 12.
    let path = format!("/api/v1/namespaces/{}/pods/spared/status", kubectl.namespace);
    Api::admin()
        .send(Method::PATCH, &path, "application/strategic-merge-patch+json", patch.into_bytes())
        .ok();
    let pod = until_pod(&kubectl, "spared", "the condition is taken back", |pod| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|known| known["type"] == "DisruptionTarget" && known["status"] == "False")
    });
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|known| known["type"] == "DisruptionTarget").unwrap();
    assert!(condition["reason"].is_null() && condition["message"].is_null(), "{condition}");
    assert!(pod["metadata"]["deletionTimestamp"].is_null(), "{}", pod["metadata"]);
}

#[test]
fn a_job_that_keeps_failing_is_given_up() {
    let kubectl = Kubectl::shared("backoff");
    let job = |name: &str, spec: Value, script: &str| {
        let mut job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "containers": [container("main", script)]}}},
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            job["spec"][field] = value.clone();
        }
        kubectl.apply(&job.to_string());
    };
    job("failing", json!({"backoffLimit": 1}), "exit 1");
    job("late", json!({"activeDeadlineSeconds": 2}), "sleep 3600");
    job(
        "indexed",
        json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3}),
        "echo index $JOB_COMPLETION_INDEX",
    );

    let failed = |name: &str, reason: &str| {
        kubectl.run(&["wait", "--for=condition=Failed", &format!("job/{name}"), "--timeout=90s"]);
        let job = kubectl.object(&["job", name]).unwrap();
        let conditions = job["status"]["conditions"].as_array().unwrap().clone();
        let condition = conditions.iter().find(|c| c["type"] == "Failed").unwrap();
        assert_eq!(condition["reason"], reason, "{condition}");
        job
    };
    assert_eq!(failed("failing", "BackoffLimitExceeded")["status"]["failed"], 2);
    let late = failed("late", "DeadlineExceeded");
    assert!(late["status"]["active"].as_i64().unwrap_or_default() == 0, "{}", late["status"]);
    kubectl.run(&["wait", "--for=condition=Complete", "job/indexed", "--timeout=90s"]);
    let indexed = kubectl.object(&["job", "indexed"]).unwrap();
    assert_eq!(indexed["status"]["completedIndexes"], "0-2");
    let logs = kubectl.run(&["logs", "-l", "job-name=indexed", "--prefix=false"]);
    let lines: BTreeSet<&str> = logs.lines().collect();
    assert_eq!(lines, BTreeSet::from(["index 0", "index 1", "index 2"]));
}

#[test]
fn a_suspended_job_waits_until_it_is_resumed() {
    let kubectl = Kubectl::shared("suspend");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "waiting"},
        "spec": {"suspend": true, "template": {"spec": {"restartPolicy": "Never",
            "containers": [container("main", "true")]}}},
    });
    kubectl.apply(&job.to_string());
    kubectl.run(&["wait", "--for=condition=Suspended", "job/waiting", "--timeout=60s"]);
    assert_eq!(kubectl.run(&["get", "pods", "-o", "name"]), "");
    kubectl.run(&["patch", "job", "waiting", "--type=merge", "-p", r#"{"spec":{"suspend":false}}"#]);
    kubectl.run(&["wait", "--for=condition=Complete", "job/waiting", "--timeout=60s"]);
}

#[test]
fn a_cron_job_starts_a_job_each_minute() {
    let kubectl = Kubectl::shared("cron");
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "tick"},
        "spec": {"schedule": "* * * * *", "concurrencyPolicy": "Forbid", "successfulJobsHistoryLimit": 1,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never",
                "containers": [container("main", "echo tick")]}}}}},
    });
    kubectl.apply(&cron.to_string());
    let suspended = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "asleep"},
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": cron["spec"]["jobTemplate"]},
    });
    kubectl.apply(&suspended.to_string());
    // The next full minute, and then the pod.
    let status = until("a job was run", Duration::from_secs(100), || {
        let object = kubectl.object(&["cronjob", "tick"])?;
        let status = object["status"].clone();
        if status["lastSuccessfulTime"].is_string() { Ok(status) } else { Err(status.to_string()) }
    });
    let scheduled = status["lastScheduleTime"].as_str().unwrap();
    assert!(scheduled.ends_with(":00Z"), "{scheduled}");
    let jobs = kubectl.object(&["jobs"]).unwrap();
    let jobs = jobs["items"].as_array().unwrap();
    assert!(!jobs.is_empty());
    for job in jobs {
        assert_eq!(job["metadata"]["ownerReferences"][0]["name"], "tick", "{}", job["metadata"]);
        assert_eq!(job["metadata"]["ownerReferences"][0]["controller"], true);
    }
    let first = jobs[0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(kubectl.run(&["logs", &format!("job/{first}")]), "tick\n");
}

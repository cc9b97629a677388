//! Daemons that are killed: everything carries on. A cluster of its own is what is broken.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::net::SocketAddr;
use std::time::Duration;

use e2e::kubectl::Kubectl;
use e2e::network::{http_get, on_host};
use e2e::own::OwnCluster;
use e2e::pods::{LONG, container, pod, ready};
use e2e::wait::{until, until_contains};
use keelson_local::{command, supervisor};
use serde_json::{Value, json};

/// Every daemon of a node that is also the control plane.
const DAEMONS: &[&str] = &[
    "kube-store",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "keelson-network",
    "containerd",
];

/// A Deployment `web` with a Service; its address.
fn web(kubectl: &Kubectl) -> SocketAddr {
    let server = container("httpd", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [server]}}},
    });
    kubectl.apply(&deployment.to_string());
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    kubectl.apply(&service.to_string());
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let address = kubectl.run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    SocketAddr::new(address.parse().unwrap(), 80)
}

/// What must not change while daemons come and go.
fn container_ids(kubectl: &Kubectl) -> Result<Vec<(Value, Value, Value)>, String> {
    let pods = kubectl.object(&["pods", "-l", "stays=yes"])?;
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    let statuses = items.iter().flat_map(|pod| {
        let name = pod["metadata"]["name"].clone();
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.into_iter().map(move |s| (name.clone(), s["containerID"].clone(), s["restartCount"].clone()))
    });
    Ok(statuses.collect())
}

#[test]
fn every_daemon_may_be_killed_and_everything_carries_on() {
    let own = OwnCluster::start();
    let host = &own.cluster.hosts[0];
    let kubectl = Kubectl::in_new_namespace(own.cluster.layout().admin_kubeconfig(), "faults");
    let address = web(&kubectl);
    let mut stays = pod("stays", "echo once; sleep 3600");
    stays["metadata"]["labels"] = json!({"stays": "yes"});
    kubectl.apply(&stays.to_string());
    ready(&kubectl, "stays");
    let before = container_ids(&kubectl).unwrap();
    assert_eq!(before.len(), 1);

    for daemon in DAEMONS {
        own.kill(daemon);
        // The whole journey works again: API, store, scheduler, controllers, kubelet, proxy.
        let name = format!("web-after-{}", daemon.trim_start_matches("kube-"));
        until(&format!("a write is taken after {daemon} was killed"), LONG, || {
            kubectl.ask(&["create", "configmap", &name])
        });
        // The last daemon may be back within the second of the last restart, which kubectl then refuses.
        until("a restart is taken", LONG, || kubectl.ask(&["rollout", "restart", "deployment/web"]));
        let rolled = kubectl.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        assert!(rolled.is_ok(), "after {daemon} was killed: {rolled:?}\n{}", own.log(daemon));
        until_contains(&format!("the Service answers after {daemon} was killed"), LONG, "web-", || {
            on_host(host, || http_get(address))
        });
        assert_eq!(container_ids(&kubectl).unwrap(), before, "after {daemon} was killed");
    }
    // Everything that was written is there.
    let names = kubectl.run(&["get", "configmaps", "-o", "name"]);
    assert_eq!(names.lines().filter(|name| name.contains("web-after-")).count(), DAEMONS.len(), "{names}");
    assert_eq!(kubectl.run(&["logs", "stays"]), "once\n");

    a_kubelet_that_was_away_adopts_its_containers(&own, &kubectl);
    an_unreachable_store_is_an_error_and_not_a_lie(&own, &kubectl);
}

/// The kubelet is gone for a while, during which a pod is deleted, another ends, and one is made.
fn a_kubelet_that_was_away_adopts_its_containers(own: &OwnCluster, kubectl: &Kubectl) {
    let layout = own.cluster.host_layout(&own.cluster.hosts[0]);
    let directory = tempfile::tempdir().unwrap();
    let mut ends = pod("ends", "while [ ! -e /signal/end ]; do sleep 0.1; done; exit 7");
    ends["spec"]["restartPolicy"] = json!("Never");
    ends["spec"]["volumes"] = json!([{"name": "signal", "hostPath": {"path": directory.path()}}]);
    ends["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "signal", "mountPath": "/signal"}]);
    for object in [&ends, &pod("removed", "sleep 3600")] {
        kubectl.apply(&object.to_string());
    }
    ready(kubectl, "ends");
    ready(kubectl, "removed");
    let before = container_ids(kubectl).unwrap();

    supervisor::stop(&layout, "kubelet").unwrap();
    // Asked of the runtime itself: the kubelet left its containers alone.
    let socket = layout.runtime_socket();
    let tasks = || {
        command::run("ctr", ["--address", &socket.to_string_lossy(), "-n", "k8s.io", "tasks", "list", "-q"])
            .map_err(|error| error.to_string())
    };
    let id = before[0].1.as_str().unwrap().trim_start_matches("containerd://").to_owned();
    assert!(tasks().unwrap().contains(&id));
    std::fs::write(directory.path().join("end"), "").unwrap();
    kubectl.run(&["delete", "pod", "removed", "--wait=false"]);
    kubectl.apply(&pod("made", "sleep 3600").to_string());

    let process = keelson_local::daemons::kubelet(&own.cluster.settings, &own.cluster.hosts[0]).unwrap();
    own.cluster.start(&own.cluster.hosts[0], &process).unwrap();
    ready(kubectl, "made");
    let ended = e2e::pods::ended(kubectl, "ends");
    assert_eq!(
        ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7,
        "{}",
        ended["status"]
    );
    until("the deleted pod is gone", LONG, || {
        let names = kubectl.ask(&["get", "pods", "-o", "name"])?;
        if names.contains("pod/removed") { Err(names) } else { Ok(()) }
    });
    assert_eq!(container_ids(kubectl).unwrap(), before);
    assert!(tasks().unwrap().contains(&id));
}

/// Without its store the API server says so; with it, it serves again, with the same data.
fn an_unreachable_store_is_an_error_and_not_a_lie(own: &OwnCluster, kubectl: &Kubectl) {
    let layout = own.cluster.host_layout(&own.cluster.hosts[0]);
    supervisor::stop(&layout, "kube-store").unwrap();
    until("the API server is not ready", LONG, || match kubectl.ask(&["get", "--raw", "/readyz"]) {
        Ok(text) => Err(text),
        Err(error) if error.contains("etcd") || error.contains("the server") => Ok(()),
        Err(error) => Err(error),
    });
    let refused = kubectl.ask(&["create", "configmap", "lost", "--request-timeout=5s"]);
    assert!(refused.is_err(), "{refused:?}");
    let process = keelson_local::daemons::store(
        &own.cluster.settings,
        &own.cluster.hosts[0],
        &keelson_local::daemons::initial_cluster(&[&own.cluster.hosts[0]]),
    );
    own.cluster.start(&own.cluster.hosts[0], &process).unwrap();
    until("writes are taken again", Duration::from_secs(60), || {
        kubectl.ask(&["create", "configmap", "found", "--request-timeout=5s"])
    });
    assert!(kubectl.run(&["get", "configmaps"]).contains("web-after-store"));
}

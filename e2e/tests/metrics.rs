//! A real Prometheus scrapes every daemon of the shared cluster.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::api::Api;
use e2e::kubectl::Kubectl;
use e2e::network::{on_host, refused};
use e2e::wait::until;
use http::Method;
use serde_json::{Value, json};

/// A name that upstream's dashboards know, and the job that must have it.
const METRICS: &[(&str, &str)] = &[
    ("kube-apiserver", "apiserver_request_duration_seconds_bucket"),
    ("kube-apiserver", "apiserver_request_total"),
    ("kube-apiserver", "apiserver_current_inflight_requests"),
    ("kube-apiserver", "process_resident_memory_bytes"),
    ("kube-controller-manager", "workqueue_depth"),
    ("kube-controller-manager", "workqueue_adds_total"),
    ("kube-controller-manager", "leader_election_master_status"),
    ("kube-scheduler", "scheduler_schedule_attempts_total"),
    ("kube-scheduler", "scheduler_pending_pods"),
    ("kubelet", "kubelet_running_pods"),
    ("kubelet", "kubelet_running_containers"),
    ("kube-proxy", "kubeproxy_sync_proxy_rules_duration_seconds_count"),
    ("kube-store", "etcd_disk_wal_fsync_duration_seconds_bucket"),
    ("kube-store", "etcd_server_has_leader"),
    ("keelson-network", "process_cpu_seconds_total"),
    ("keelson-dns", "process_cpu_seconds_total"),
];

/// Ends its process when dropped.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prometheus_finds_every_target_up() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("metrics");
    let namespace = kubectl.namespace.clone();
    kubectl.run(&["create", "serviceaccount", "prometheus"]);
    // system:monitoring opens /metrics everywhere but on kubelets, which ask for nodes/metrics.
    let own = format!("e2e-{namespace}");
    let account = format!("--serviceaccount={namespace}:prometheus");
    kubectl.run(&["create", "clusterrole", &own, "--verb=get", "--resource=nodes/metrics"]);
    for (binding, role) in [(&own, own.as_str()), (&format!("{own}-all"), "system:monitoring")] {
        kubectl.run(&["create", "clusterrolebinding", binding, &format!("--clusterrole={role}"), &account]);
    }
    let outcome = std::panic::catch_unwind(|| scrape(&cluster, &namespace));
    kubectl.run(&["delete", "clusterrole", &own]);
    kubectl.run(&["delete", "clusterrolebinding", &own, &format!("{own}-all")]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn scrape(cluster: &keelson_local::cluster::Cluster, namespace: &str) {
    let api = Api::admin();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("token"), api.token_for(namespace, "prometheus")).unwrap();
    let dns = api.get("/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns").unwrap();
    let dns = dns["items"][0]["status"]["podIP"].as_str().unwrap().to_owned();

    let first = cluster.hosts[0].address.to_string();
    let nodes: Vec<String> = cluster.hosts.iter().map(|host| host.address.to_string()).collect();
    let of_nodes = |port: u16| nodes.iter().map(|node| format!("{node}:{port}")).collect::<Vec<_>>();
    // A daemon's own certificate has no name that Prometheus could check; the token is what counts.
    let job = |name: &str, scheme: &str, targets: Vec<String>| {
        json!({
            "job_name": name, "scheme": scheme, "tls_config": {"insecure_skip_verify": true},
            "authorization": {"credentials_file": at("token")}, "static_configs": [{"targets": targets}],
        })
    };
    let jobs = [
        job("kube-store", "http", vec![format!("{first}:2381")]),
        job("kube-apiserver", "https", vec![format!("{first}:6443")]),
        job("kube-scheduler", "https", vec![format!("{first}:10259")]),
        job("kube-controller-manager", "https", vec![format!("{first}:10257")]),
        job("kubelet", "https", of_nodes(10250)),
        job("kube-proxy", "http", of_nodes(10249)),
        job("keelson-network", "http", of_nodes(10254)),
        job("keelson-dns", "http", vec![format!("{dns}:9153")]),
    ];
    let configuration =
        json!({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs});
    std::fs::write(at("prometheus.yml"), configuration.to_string()).unwrap();

    // On a node, from where pods can be reached.
    let host = &cluster.hosts[0];
    let port = on_host(host, || TcpListener::bind((host.address, 0)).unwrap().local_addr().unwrap());
    let mut words = host.enter();
    words.extend(["prometheus".to_owned(), format!("--web.listen-address={port}")]);
    words.push(format!("--config.file={}", at("prometheus.yml").display()));
    words.push(format!("--storage.tsdb.path={}", at("data").display()));
    let log = File::create(at("log")).unwrap();
    let child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let _prometheus = Prometheus(child);

    let expected: usize = 5 + 3 * nodes.len();
    let url = |path: &str| format!("http://{port}{path}");
    let ask = |path: &str| -> Result<Value, String> { get_json(port, path) };
    until(&format!("all targets at {} are up", url("/targets")), Duration::from_secs(60), || {
        let answer = ask("/api/v1/targets?state=active").map_err(|error| {
            format!("{error}: {}", std::fs::read_to_string(at("log")).unwrap_or_default())
        })?;
        let targets = answer["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let down: Vec<String> = targets
            .iter()
            .filter(|target| target["health"] != "up")
            .map(|target| format!("{}: {} {}", target["scrapeUrl"], target["health"], target["lastError"]))
            .collect();
        if targets.len() == expected && down.is_empty() {
            Ok(())
        } else {
            Err(format!("{} targets; {down:?}", targets.len()))
        }
    });
    for (job, name) in METRICS {
        until(&format!("{job} has {name}"), Duration::from_secs(15), || {
            let answer = ask(&format!("/api/v1/query?query={name}%7Bjob%3D%22{job}%22%7D"))?;
            match answer["data"]["result"].as_array().map(Vec::len) {
                Some(count) if count > 0 => Ok(()),
                _ => Err(answer.to_string()),
            }
        });
    }
    // The kinds are declared, not guessed.
    let metadata = ask("/api/v1/metadata?metric=apiserver_request_duration_seconds").unwrap();
    assert_eq!(metadata["data"]["apiserver_request_duration_seconds"][0]["type"], "histogram", "{metadata}");
}

fn get_json(address: SocketAddr, path: &str) -> Result<Value, String> {
    let url = format!("http://{address}{path}");
    let text = keelson_local::command::run("curl", ["--silent", "--max-time", "5", &url])
        .map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

#[test]
fn metrics_are_for_those_with_the_right() {
    let kubectl = Kubectl::shared("nometrics");
    let cluster = e2e::shared_cluster();
    let address = cluster.hosts[0].address;
    let admin = Api::admin();
    until("the default service account comes", Duration::from_secs(30), || {
        admin.get(&format!("/api/v1/namespaces/{}/serviceaccounts/default", kubectl.namespace))
    });
    let token = admin.token_for(&kubectl.namespace, "default");
    Api::with_token(&token).request(Method::GET, "/metrics", None).refused(403, "Forbidden");
    Api::anonymous().request(Method::GET, "/metrics", None).refused(403, "Forbidden");
    for port in [10250, 10257, 10259] {
        let code = |token: Option<&str>| {
            let mut words =
                vec!["--silent", "--insecure", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}"];
            let header = token.map(|token| format!("Authorization: Bearer {token}"));
            if let Some(header) = &header {
                words.extend(["-H", header]);
            }
            let url = format!("https://{address}:{port}/metrics");
            words.push(&url);
            keelson_local::command::run("curl", words).unwrap()
        };
        assert_eq!(code(Some(&token)), "403", "{port}");
        assert!(["401", "403"].contains(&code(None).as_str()), "{port}");
    }
    // Nothing else listens for them beside the secure ports.
    for port in [8080, 10251, 10252, 10255] {
        until(&format!("{port} is closed"), Duration::from_secs(5), || {
            refused(SocketAddr::new(address, port))
        });
    }
}

//! The command line and configuration file of every daemon, as `make up` runs them.
//!
//! Flags and fields are upstream's. Files are written anew at each start: they are derived, and a
//! person who wants other settings edits them under systemd or bootstraps with kubeadm.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::containerd;
use crate::host::Host;
use crate::layout::{HostLayout, Layout};
use crate::supervisor::Process;

pub const DNS_DOMAIN: &str = "cluster.local";
pub const POD_RANGE: &str = "10.244.0.0/16";
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
pub const KUBERNETES_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
pub const DNS_SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// What the daemons of a cluster need to know to be started.
#[derive(Debug, Clone)]
pub struct Settings {
    pub layout: Layout,
    /// Directory of the daemons' binaries.
    pub binaries: PathBuf,
    /// The API server that daemons talk to.
    pub server: String,
    /// Log verbosity (`-v`).
    pub verbosity: u8,
}

impl Settings {
    fn process(&self, host: &Host, name: &str, arguments: Vec<String>) -> Process {
        let mut command = host.enter();
        command.push(self.binaries.join(name).display().to_string());
        command.extend(arguments);
        Process { name: name.to_owned(), command }
    }

    /// Like [`Settings::process`], with `-v`, which every daemon but the store takes.
    fn component(&self, host: &Host, name: &str, mut arguments: Vec<String>) -> Process {
        arguments.push(format!("-v={}", self.verbosity));
        self.process(host, name, arguments)
    }

    fn kubeconfig(&self, file: &str) -> PathBuf {
        self.layout.kubeconfigs().join(file)
    }
}

/// `--name=value`, with anything that can be shown.
fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn file(name: &str, path: &Path) -> String {
    flag(name, path.display())
}

/// The members of the store as `--initial-cluster` wants them.
pub fn initial_cluster(hosts: &[&Host]) -> String {
    let members: Vec<String> =
        hosts.iter().map(|h| format!("{}=https://{}:2380", h.name, h.address)).collect();
    members.join(",")
}

pub fn store(settings: &Settings, host: &Host, initial_cluster: &str) -> Process {
    let pki = settings.layout.pki().join("etcd");
    let address = host.address;
    let arguments = vec![
        flag("name", &host.name),
        file("data-dir", &settings.layout.store_data(&host.name)),
        flag("listen-client-urls", format!("https://127.0.0.1:2379,https://{address}:2379")),
        flag("advertise-client-urls", format!("https://{address}:2379")),
        flag("listen-peer-urls", format!("https://{address}:2380")),
        flag("initial-advertise-peer-urls", format!("https://{address}:2380")),
        flag("initial-cluster", initial_cluster),
        file("cert-file", &pki.join("server.crt")),
        file("key-file", &pki.join("server.key")),
        file("trusted-ca-file", &pki.join("ca.crt")),
        flag("client-cert-auth", true),
        file("peer-cert-file", &pki.join("peer.crt")),
        file("peer-key-file", &pki.join("peer.key")),
        file("peer-trusted-ca-file", &pki.join("ca.crt")),
        flag("peer-client-cert-auth", true),
        flag("listen-metrics-urls", format!("http://127.0.0.1:2381,http://{address}:2381")),
    ];
    settings.process(host, "kube-store", arguments)
}

pub fn apiserver(settings: &Settings, host: &Host) -> Process {
    let pki = settings.layout.pki();
    let at = |name: &str| pki.join(name);
    let arguments = vec![
        flag("advertise-address", host.address),
        flag("secure-port", 6443),
        flag("etcd-servers", "https://127.0.0.1:2379"),
        file("etcd-cafile", &at("etcd/ca.crt")),
        file("etcd-certfile", &at("apiserver-etcd-client.crt")),
        file("etcd-keyfile", &at("apiserver-etcd-client.key")),
        file("tls-cert-file", &at("apiserver.crt")),
        file("tls-private-key-file", &at("apiserver.key")),
        file("client-ca-file", &at("ca.crt")),
        file("kubelet-client-certificate", &at("apiserver-kubelet-client.crt")),
        file("kubelet-client-key", &at("apiserver-kubelet-client.key")),
        file("kubelet-certificate-authority", &at("ca.crt")),
        flag("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname"),
        file("service-account-key-file", &at("sa.pub")),
        file("service-account-signing-key-file", &at("sa.key")),
        flag("service-account-issuer", format!("https://kubernetes.default.svc.{DNS_DOMAIN}")),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("allow-privileged", true),
    ];
    settings.component(host, "kube-apiserver", arguments)
}

pub fn controller_manager(settings: &Settings, host: &Host) -> Process {
    let pki = settings.layout.pki();
    let kubeconfig = settings.kubeconfig("controller-manager.conf");
    let arguments = vec![
        file("kubeconfig", &kubeconfig),
        flag("bind-address", "0.0.0.0"),
        file("cert-dir", &settings.layout.root().join("run")),
        file("client-ca-file", &pki.join("ca.crt")),
        flag("allocate-node-cidrs", true),
        flag("cluster-cidr", POD_RANGE),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        file("root-ca-file", &pki.join("ca.crt")),
        file("service-account-private-key-file", &pki.join("sa.key")),
        flag("use-service-account-credentials", true),
        flag("leader-elect", true),
    ];
    settings.component(host, "kube-controller-manager", arguments)
}

pub fn scheduler(settings: &Settings, host: &Host) -> Process {
    let arguments = vec![
        file("kubeconfig", &settings.kubeconfig("scheduler.conf")),
        flag("bind-address", "0.0.0.0"),
        file("cert-dir", &settings.layout.root().join("run")),
        file("client-ca-file", &settings.layout.pki().join("ca.crt")),
        flag("leader-elect", true),
    ];
    settings.component(host, "kube-scheduler", arguments)
}

pub fn runtime(settings: &Settings, host: &Host) -> io::Result<Process> {
    let layout = settings.layout.host(&host.name);
    let configuration = layout.config("containerd.toml");
    write(&configuration, &containerd::configuration(&layout, containerd::oom_score_is_restricted()?))?;
    let mut command = host.enter();
    command.extend(["containerd".to_owned(), "--config".to_owned(), configuration.display().to_string()]);
    Ok(Process { name: "containerd".to_owned(), command })
}

/// The kubeconfig file of a node's kubelet: the control plane's own node has upstream's name.
pub fn kubelet_kubeconfig(host: &Host) -> String {
    format!("kubelet-{}.conf", host.name)
}

/// The serving certificate's file stem under the pki directory.
pub fn kubelet_certificate(host: &Host) -> String {
    format!("kubelet-{}", host.name)
}

pub fn kubelet(settings: &Settings, host: &Host) -> io::Result<Process> {
    let layout = settings.layout.host(&host.name);
    let configuration = layout.config("kubelet.yaml");
    write_json(&configuration, &kubelet_configuration(settings, host, &layout))?;
    fs::create_dir_all(layout.directory().join("manifests"))?;
    let arguments = vec![
        file("config", &configuration),
        file("kubeconfig", &settings.kubeconfig(&kubelet_kubeconfig(host))),
        file("root-dir", &layout.kubelet()),
        flag("hostname-override", &host.name),
        flag("node-ip", host.address),
    ];
    Ok(settings.component(host, "kubelet", arguments))
}

fn kubelet_configuration(settings: &Settings, host: &Host, layout: &HostLayout) -> Value {
    let pki = settings.layout.pki();
    let certificate = kubelet_certificate(host);
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": host.cgroup_root,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DNS_DOMAIN,
        "containerRuntimeEndpoint": layout.runtime_endpoint(),
        // The machine is a person's own, and its disk is filled by more than this cluster: only a disk
        // that is nearly full evicts pods here (a production node keeps the defaults).
        "evictionHard": {
            "imagefs.available": "1%",
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        // A test host may have cgroup v1 only, or swap that nobody can turn off.
        "failCgroupV1": false,
        "failSwapOn": false,
        "podLogsDir": layout.pod_logs(),
        "resolvConf": resolv_conf(),
        "staticPodPath": layout.directory().join("manifests"),
        "tlsCertFile": pki.join(format!("{certificate}.crt")),
        "tlsPrivateKeyFile": pki.join(format!("{certificate}.key")),
    })
}

/// Where the addresses of this machine's name servers are. What systemd-resolved puts into /etc/resolv.conf is an
/// address of its own on the loopback interface, which in a pod is another one.
fn resolv_conf() -> &'static str {
    const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
    if Path::new(RESOLVED).exists() { RESOLVED } else { "/etc/resolv.conf" }
}

pub fn proxy(settings: &Settings, host: &Host) -> io::Result<Process> {
    let configuration = settings.layout.host(&host.name).config("kube-proxy.yaml");
    write_json(
        &configuration,
        &json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": { "kubeconfig": settings.kubeconfig("kube-proxy.conf") },
            "clusterCIDR": POD_RANGE,
            "hostnameOverride": host.name,
            "metricsBindAddress": "0.0.0.0:10249",
            "mode": "nftables",
        }),
    )?;
    Ok(settings.component(host, "kube-proxy", vec![file("config", &configuration)]))
}

/// The pod network's daemon: CNI configuration and routes to the other hosts' pods.
pub fn network(settings: &Settings, host: &Host) -> Process {
    let layout = settings.layout.host(&host.name);
    let arguments = vec![
        file("kubeconfig", &settings.kubeconfig("network.conf")),
        flag("node-name", &host.name),
        flag("cluster-cidr", POD_RANGE),
        file("cni-conf-dir", &layout.cni_configuration()),
        file("cni-state-dir", &layout.cni_state()),
        flag("metrics-bind-address", "0.0.0.0:10254"),
    ];
    settings.component(host, "keelson-network", arguments)
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    // JSON is YAML; pretty so that a person can read and edit it.
    write(path, &format!("{value:#}\n"))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
}

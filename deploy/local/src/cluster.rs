//! Starting a cluster step by step, each step waited for and told, and taking it away again.
//!
//! Invariant: every step is safe to repeat; a second `up` finds what runs and leaves it alone.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keelson_component_base::exit;
use kubeadm::certs::{self, Authorities, CertError, ClusterNames, Subject};
use kubeadm::kubeconfig::{self, Kubeconfig};

use crate::cgroups;
use crate::command::{self, CommandError};
use crate::containerd;
use crate::daemons::{self, DNS_DOMAIN, DNS_SERVICE, KUBERNETES_SERVICE, Settings};
use crate::host::{self, Host, Network};
use crate::images::{self, ImageError};
use crate::layout::{HostLayout, Layout};
use crate::ports;
use crate::sandboxes::{self, SandboxError};
use crate::supervisor::{self, Process, SupervisorError};
use crate::systemd::{self, UnitError};

/// How long a step may take before `up` gives up on it.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How long pods may take to end when the machine goes down.
const POD_GRACE: Duration = Duration::from_secs(10);

/// Why a cluster could not be started or taken away.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("cannot use {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot make certificates")]
    Certificates(#[from] CertError),
    #[error("cannot prepare images")]
    Image(#[from] ImageError),
    #[error("a command failed")]
    Command(#[from] CommandError),
    #[error("a process could not be managed")]
    Supervisor(#[from] SupervisorError),
    #[error("a unit could not be managed")]
    Unit(#[from] UnitError),
    #[error("pods could not be removed")]
    Sandbox(#[from] SandboxError),
    #[error("port {port}, which {daemon} needs, is taken by {holder}")]
    Port { port: u16, daemon: String, holder: String },
    #[error("the path {path} is too long for a socket: choose a shorter KEELSON_ROOT")]
    SocketPath { path: PathBuf },
    #[error("processes of pods do not end; the runtime's shims and the cgroup {cgroup} have them")]
    Processes { cgroup: String },
    #[error("{what} within {} s (last: {last}); see {log}", STEP_TIMEOUT.as_secs())]
    Timeout { what: String, last: String, log: String },
}

/// A cluster on this machine.
pub struct Cluster {
    pub settings: Settings,
    /// The first host runs the control plane; every host is a node.
    pub hosts: Vec<Host>,
    network: Option<Network>,
    /// The program with the `supervise` subcommand.
    supervisor: PathBuf,
    /// Told of each finished step.
    progress: fn(&str, Duration),
}

impl Cluster {
    /// A cluster whose state is under `layout`, with `node_count` hosts. The default root has the
    /// machine as its only host.
    pub fn new(layout: Layout, binaries: &Path, node_count: u8) -> Result<Self, ClusterError> {
        let (hosts, network) = if layout.is_default() {
            (vec![host::machine()?], None)
        } else {
            let network = Network::new(&layout)?;
            let hosts =
                (0..node_count).map(|index| network.host(index, &format!("node-{}", index + 1))).collect();
            (hosts, Some(network))
        };
        let server = format!("https://{}:6443", hosts[0].address);
        Ok(Self {
            settings: Settings { layout, binaries: binaries.to_owned(), server, verbosity: 2 },
            hosts,
            network,
            supervisor: binaries.join("keelson-local"),
            progress: |_, _| {},
        })
    }

    /// Has each finished step told to `progress`.
    pub fn with_progress(mut self, progress: fn(&str, Duration)) -> Self {
        self.progress = progress;
        self
    }

    pub fn layout(&self) -> &Layout {
        &self.settings.layout
    }

    pub fn host_layout(&self, host: &Host) -> HostLayout {
        self.layout().host(&host.name)
    }

    fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T, ClusterError>) -> Result<T, ClusterError> {
        let started = Instant::now();
        let result = work()?;
        (self.progress)(what, started.elapsed());
        Ok(result)
    }

    /// Starts whatever does not run yet and waits until nodes are Ready and DNS answers.
    pub fn up(&self) -> Result<(), ClusterError> {
        let first = &self.hosts[0];
        for host in self.hosts.iter().map(|host| self.host_layout(host)) {
            if !host.sockets_fit() {
                return Err(ClusterError::SocketPath { path: host.runtime_socket() });
            }
        }
        let root = self.layout().root().to_owned();
        self.layout().make().map_err(|source| ClusterError::File { path: root, source })?;
        if let Some(network) = &self.network {
            let count = u8::try_from(self.hosts.len()).unwrap_or(u8::MAX);
            self.step("network of its own", || Ok(network.ensure(count)?))?;
            let path = self.layout().network_file();
            network.keep().map_err(|source| ClusterError::File { path, source })?;
        }
        self.step("certificates and kubeconfigs", || self.credentials())?;
        self.step("kube-store answers", || {
            self.start(first, &daemons::store(&self.settings, first, &daemons::initial_cluster(&[first])))?;
            self.wait_for_http(first, "kube-store", &format!("http://{}:2381/health", first.address))
        })?;
        self.step("kube-apiserver is ready", || {
            self.start(first, &daemons::apiserver(&self.settings, first))?;
            let super_admin = self.layout().kubeconfigs().join("super-admin.conf");
            self.wait(first, "kube-apiserver", "kube-apiserver is not ready", || {
                kubectl(&super_admin, &["get", "--raw", "/readyz"])
            })?;
            Ok(crate::addons::apply_access(&super_admin)?)
        })?;
        self.step("kube-controller-manager and kube-scheduler run", || {
            self.start(first, &daemons::controller_manager(&self.settings, first))?;
            self.start(first, &daemons::scheduler(&self.settings, first))
        })?;
        for host in &self.hosts {
            self.node(host)?;
        }
        self.step("DNS answers", || self.dns())?;
        self.write_env()
    }

    /// Starts one node's processes and waits until it is Ready.
    pub fn node(&self, host: &Host) -> Result<(), ClusterError> {
        let layout = self.host_layout(host);
        let file_error = |source| ClusterError::File { path: layout.directory().to_owned(), source };
        self.step(&format!("containerd on {}", host.name), || {
            self.start(host, &daemons::runtime(&self.settings, host).map_err(file_error)?)?;
            let socket = layout.runtime_socket();
            self.wait(host, "containerd", "containerd does not answer", || {
                command::run("ctr", ["--address", &socket.to_string_lossy(), "version"])
            })?;
            if self.has_units() {
                systemd::stop_pods_with_the_machine(&self.stop_pods_command())?;
            }
            Ok(())
        })?;
        self.step(&format!("images on {}", host.name), || self.load_images(&layout))?;
        self.step(&format!("node {} is Ready", host.name), || {
            self.start(host, &daemons::kubelet(&self.settings, host).map_err(file_error)?)?;
            self.start(host, &daemons::network(&self.settings, host))?;
            self.start(host, &daemons::proxy(&self.settings, host).map_err(file_error)?)?;
            let admin = self.layout().admin_kubeconfig();
            self.wait(host, "kubelet", &format!("node {} is not Ready", host.name), || {
                let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
                match kubectl(&admin, &["get", "node", &host.name, "-o", path])?.as_str() {
                    "True" => Ok(String::new()),
                    other => Err(CommandError::Start {
                        program: "kubectl".to_owned(),
                        source: io::Error::other(format!("Ready is {other:?}")),
                    }),
                }
            })
        })
    }

    fn credentials(&self) -> Result<(), ClusterError> {
        let layout = self.layout();
        let first = &self.hosts[0];
        let names = ClusterNames {
            node: first.name.clone(),
            advertise_address: first.address,
            service_address: KUBERNETES_SERVICE,
            dns_domain: DNS_DOMAIN.to_owned(),
            extra_sans: Vec::new(),
        };
        let pki = layout.pki();
        let Authorities { cluster: authority, .. } = certs::ensure_all(&pki, &names)?;
        let directory = layout.kubeconfigs();
        let server = &self.settings.server;
        kubeconfig::ensure_all(&directory, &authority, server, &first.name)?;
        for (file, user) in [("kube-proxy.conf", "system:kube-proxy"), ("network.conf", "keelson:network")] {
            let wanted = Kubeconfig { server, user, subject: Subject::client(user, None) };
            kubeconfig::ensure(&directory.join(file), &authority, &wanted)?;
        }
        for host in &self.hosts {
            let user = format!("system:node:{}", host.name);
            let subject = Subject::client(user.clone(), Some("system:nodes"));
            let wanted = Kubeconfig { server, user: &user, subject };
            kubeconfig::ensure(&directory.join(daemons::kubelet_kubeconfig(host)), &authority, &wanted)?;
            let serving = certs::kubelet_serving_subject(&host.name, host.address);
            authority.ensure_leaf(&pki.join(daemons::kubelet_certificate(host)), &serving)?;
        }
        Ok(())
    }

    /// Builds the images that a node needs and loads them into its runtime.
    fn load_images(&self, host: &HostLayout) -> Result<(), ClusterError> {
        let binaries = &self.settings.binaries;
        let dns = images::program(
            "localhost/keelson-dns:latest",
            &binaries.join("keelson-dns"),
            "/usr/bin/keelson-dns",
            "",
        )?;
        for (file, image) in
            [("pause.tar", images::pause(&binaries.join("pause"))?), ("keelson-dns.tar", dns)]
        {
            let archive = self.layout().images().join(file);
            image.save(&archive)?;
            images::import(&host.runtime_socket(), &archive)?;
        }
        Ok(())
    }

    /// Builds `localhost/busybox` and loads it into every node's runtime.
    pub fn load_demo_image(&self, busybox: &Path) -> Result<(), ClusterError> {
        let archive = self.layout().images().join("busybox.tar");
        images::busybox(busybox)?.save(&archive)?;
        for host in &self.hosts {
            images::import(&self.host_layout(host).runtime_socket(), &archive)?;
        }
        Ok(())
    }

    fn dns(&self) -> Result<(), ClusterError> {
        let first = &self.hosts[0];
        crate::addons::apply_dns(&self.layout().admin_kubeconfig())?;
        let question = format!("kubernetes.default.svc.{DNS_DOMAIN}.");
        let server = SocketAddr::new(DNS_SERVICE, 53).to_string();
        let mut probe = first.enter();
        probe.extend([self.supervisor.display().to_string(), "lookup".into(), server, question]);
        self.wait(first, "kubelet", "the cluster's DNS does not answer", || {
            command::run(&probe[0], &probe[1..])
        })
    }

    /// Writes the environment for scripts.
    fn write_env(&self) -> Result<(), ClusterError> {
        let path = self.layout().env_file();
        let text = format!(
            "KUBECONFIG={}\nCONTAINER_RUNTIME_ENDPOINT={}\n",
            self.layout().admin_kubeconfig().display(),
            self.host_layout(&self.hosts[0]).runtime_endpoint(),
        );
        fs::write(&path, text).map_err(|source| ClusterError::File { path, source })
    }

    /// Whether processes are units: on the machine itself, where systemd runs it.
    fn has_units(&self) -> bool {
        self.network.is_none() && systemd::is_first_process()
    }

    /// What is run when the machine goes down. Containers that do not listen to SIGTERM would
    /// otherwise hold it up for a minute and a half.
    fn stop_pods_command(&self) -> Vec<String> {
        let program = self.supervisor.display().to_string();
        vec![program, "stop-pods".to_owned(), format!("--root={}", self.layout().root().display())]
    }

    /// Ends the processes of all pods on the machine, as when it goes down.
    pub fn stop_pods(&self) {
        for host in &self.hosts {
            cgroups::end_processes(&host.cgroup_root, POD_GRACE);
        }
    }

    /// Starts a process on a host: as a unit, or supervised in the background.
    pub fn start(&self, host: &Host, process: &Process) -> Result<(), ClusterError> {
        // A host with a network of its own has nobody else's programs on it.
        if self.network.is_none()
            && !self.is_running(host, &process.name)
            && let Some((port, holder)) = ports::taken(&process.name, host.address)
        {
            return Err(ClusterError::Port { port, daemon: process.name.clone(), holder });
        }
        if self.has_units() {
            let status = PathBuf::from("/proc/self/status");
            let restricted = containerd::oom_score_is_restricted()
                .map_err(|source| ClusterError::File { path: status, source })?;
            systemd::start(process, restricted)?;
        } else {
            supervisor::start(&self.supervisor, &self.host_layout(host), process)?;
        }
        Ok(())
    }

    /// Stops a process on a host; one that does not run is no error.
    pub fn stop(&self, host: &Host, name: &str) -> Result<(), ClusterError> {
        if self.has_units() {
            systemd::stop(name)?;
        } else {
            supervisor::stop(&self.host_layout(host), name)?;
        }
        Ok(())
    }

    fn is_running(&self, host: &Host, name: &str) -> bool {
        if self.has_units() {
            systemd::is_running(name)
        } else {
            supervisor::running(&self.host_layout(host), name).is_some()
        }
    }

    /// The names of all processes that were started on a host.
    fn known(&self, host: &Host) -> Vec<String> {
        if self.has_units() { systemd::known() } else { supervisor::known(&self.host_layout(host)) }
    }

    /// Where a person finds what a daemon said.
    fn log(&self, host: &Host, daemon: &str) -> String {
        if self.has_units() {
            format!("journalctl -u {}", systemd::unit(daemon))
        } else {
            supervisor::log_file(&self.host_layout(host), daemon).display().to_string()
        }
    }

    fn wait_for_http(&self, host: &Host, daemon: &str, url: &str) -> Result<(), ClusterError> {
        let mut probe = host.enter();
        probe.extend([
            "curl".into(),
            "--silent".into(),
            "--fail".into(),
            "--max-time".into(),
            "2".into(),
            url.into(),
        ]);
        self.wait(host, daemon, &format!("{daemon} is not healthy"), || command::run(&probe[0], &probe[1..]))
    }

    /// Asks until `ask` succeeds, at most for [`STEP_TIMEOUT`].
    fn wait(
        &self,
        host: &Host,
        daemon: &str,
        complaint: &str,
        mut ask: impl FnMut() -> Result<String, CommandError>,
    ) -> Result<(), ClusterError> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match ask() {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    let last = exit::chain(&error);
                    let log = self.log(host, daemon);
                    return Err(ClusterError::Timeout { what: complaint.to_owned(), last, log });
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Stops everything and leaves no process, mount, namespace, cgroup, interface or nftables
    /// table; `purge` removes the data too.
    pub async fn down(&self, purge: bool) -> Result<(), ClusterError> {
        for host in self.known_hosts() {
            self.down_host(&host).await?;
        }
        if let Some(network) = &self.network {
            network.remove()?;
        }
        (self.progress)("everything is stopped", Duration::ZERO);
        if purge && self.layout().root().exists() {
            let path = self.layout().root().to_owned();
            // Nothing is removed through a mount that is still there.
            unmount_below(&path)?;
            self.layout().remove().map_err(|source| ClusterError::File { path, source })?;
            (self.progress)("data is removed", Duration::ZERO);
        }
        Ok(())
    }

    /// The hosts given, and those of an earlier `up` with more of them.
    fn known_hosts(&self) -> Vec<Host> {
        let mut hosts = self.hosts.clone();
        let Some(network) = &self.network else { return hosts };
        for index in (hosts.len() as u8)..u8::MAX {
            let host = network.host(index, &format!("node-{}", index + 1));
            if !self.host_layout(&host).directory().exists() {
                break;
            }
            hosts.push(host);
        }
        hosts
    }

    async fn down_host(&self, host: &Host) -> Result<(), ClusterError> {
        let layout = self.host_layout(host);
        // Those with a lease first, while there is an API server to give it back to: at the next start nobody has to
        // wait for it. The kubelet, or it would start again what the next step removes.
        for name in ["kube-scheduler", "kube-controller-manager", "kubelet", "kube-proxy", "keelson-network"]
        {
            self.stop(host, name)?;
        }
        let traces = sandboxes::traces(&layout);
        if self.is_running(host, "containerd") || sandboxes::are_left(&layout) {
            let started = Instant::now();
            if let Err(error) = self.remove_sandboxes(host, &layout).await {
                let told =
                    format!("pods are killed, for the runtime does not help ({})", exit::chain(&error));
                (self.progress)(&told, started.elapsed());
            }
        }
        // Before its store, from whose list of servers it takes itself off.
        self.stop(host, "kube-apiserver")?;
        for name in self.known(host) {
            self.stop(host, &name)?;
        }
        // What the runtime did not take away.
        if !cgroups::end_processes(&host.cgroup_root, Duration::ZERO) || !sandboxes::end_shims(&layout) {
            return Err(ClusterError::Processes { cgroup: host.cgroup_root.clone() });
        }
        for network in &traces.networks {
            host::remove_namespace(network)?;
        }
        for socket in traces.sockets {
            // A shim that ended by itself took its socket along.
            let _ = fs::remove_file(socket);
        }
        if host.namespace.is_none() {
            for name in ["kube-proxy", "keelson-network"] {
                let program = self.settings.binaries.join(name);
                if program.exists() {
                    command::run(&program.to_string_lossy(), ["--cleanup"])?;
                }
            }
        }
        unmount_below(layout.directory())?;
        cgroups::remove(&host.cgroup_root);
        Ok(())
    }

    /// Has the runtime remove all pods; it is started for that if it does not run.
    async fn remove_sandboxes(&self, host: &Host, layout: &HostLayout) -> Result<(), ClusterError> {
        let path = layout.directory().to_owned();
        let process =
            daemons::runtime(&self.settings, host).map_err(|source| ClusterError::File { path, source })?;
        self.start(host, &process)?;
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match sandboxes::remove_all(&layout.runtime_socket()).await {
                // One that was just started does not listen yet, or has not read yet what there is.
                Err(SandboxError::Connect(..) | SandboxError::List(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await;
                }
                result => return Ok(result.map(drop)?),
            }
        }
    }
}

fn kubectl(kubeconfig: &Path, arguments: &[&str]) -> Result<String, CommandError> {
    let kubeconfig = kubeconfig.to_string_lossy();
    let mut all = vec!["--kubeconfig", &kubeconfig, "--request-timeout=5s"];
    all.extend(arguments);
    command::run("kubectl", all)
}

/// Unmounts whatever is still mounted below a directory, deepest first.
fn unmount_below(directory: &Path) -> Result<(), ClusterError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let mounts = fs::read_to_string(&path).map_err(|source| ClusterError::File { path, source })?;
    // The fifth word is the mount point; the kernel writes a space in it as \040.
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| p.replace("\\040", " "));
    let mut points: Vec<String> = points.filter(|point| Path::new(point).starts_with(directory)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        command::run("umount", ["--lazy", &point])?;
    }
    Ok(())
}

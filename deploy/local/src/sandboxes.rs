//! Taking away every pod sandbox of a host through the CRI, as `make down` does once the kubelet is
//! stopped, so that the runtime itself removes mounts, cgroups and network interfaces; and what can be
//! taken away of them without a runtime, should it not start any more.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use hyper_util::rt::TokioIo;
use keelson_proto::cri::runtime_service_client::RuntimeServiceClient;
use keelson_proto::cri::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use tonic::transport::{Channel, Endpoint};

use crate::layout::HostLayout;

/// How long the kernel may take to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the sandboxes of a host could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot reach the container runtime at {0}")]
    Connect(PathBuf, #[source] tonic::transport::Error),
    #[error("the container runtime refused to list sandboxes")]
    List(#[source] Box<tonic::Status>),
    #[error("the container runtime refused to remove sandbox {0}")]
    Remove(String, #[source] Box<tonic::Status>),
}

/// A client of the CRI runtime service on a unix socket.
pub async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>, SandboxError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is never resolved: the connector dials the socket.
    let channel = Endpoint::from_static("http://runtime").connect_with_connector(connector).await;
    Ok(RuntimeServiceClient::new(channel.map_err(|error| SandboxError::Connect(socket.to_owned(), error))?))
}

/// Stops and removes all sandboxes; returns how many there were.
pub async fn remove_all(socket: &Path) -> Result<usize, SandboxError> {
    let mut runtime = connect(socket).await?;
    let list = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
    let sandboxes = list.map_err(|status| SandboxError::List(Box::new(status)))?.into_inner().items;
    for sandbox in &sandboxes {
        let id = &sandbox.id;
        let failed = |status| SandboxError::Remove(id.clone(), Box::new(status));
        runtime
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() })
            .await
            .map_err(failed)?;
        runtime
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.clone() })
            .await
            .map_err(failed)?;
    }
    Ok(sandboxes.len())
}

/// The bundles of containers that the runtime has not taken away.
fn bundles(host: &HostLayout) -> Vec<PathBuf> {
    let tasks = host.containerd().join("state/io.containerd.runtime.v2.task/k8s.io");
    fs::read_dir(tasks).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether the runtime has left containers or their shims.
pub fn are_left(host: &HostLayout) -> bool {
    !bundles(host).is_empty() || !shims(host).is_empty()
}

/// What lies outside the host's directory and is there only for containers that are left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Names of network namespaces that the runtime made.
    pub networks: BTreeSet<String>,
    /// The shims' sockets.
    pub sockets: BTreeSet<PathBuf>,
}

/// Looks for traces while the runtime still knows of the containers.
pub fn traces(host: &HostLayout) -> Traces {
    let mut traces = Traces::default();
    for bundle in bundles(host) {
        let configuration = fs::read(bundle.join("config.json")).unwrap_or_default();
        traces.networks.extend(network_namespace(&configuration));
        traces.sockets.extend(shim_socket(&fs::read_to_string(bundle.join("address")).unwrap_or_default()));
    }
    traces
}

/// The path in what a shim wrote of its address, if it is where shims have their sockets.
fn shim_socket(address: &str) -> Option<PathBuf> {
    let path = Path::new(address.trim().strip_prefix("unix://")?);
    (path.parent() == Some(Path::new("/run/containerd/s"))).then(|| path.to_owned())
}

/// The name of the namespace in an OCI configuration, if the runtime made it.
fn network_namespace(configuration: &[u8]) -> Option<String> {
    let configuration: serde_json::Value = serde_json::from_slice(configuration).ok()?;
    let namespaces = configuration["linux"]["namespaces"].as_array()?;
    let path = namespaces.iter().find(|namespace| namespace["type"] == "network")?["path"].as_str()?;
    let path = path.strip_prefix("/var").unwrap_or(path);
    let name = path.strip_prefix("/run/netns/")?;
    name.starts_with("cni-").then(|| name.to_owned())
}

/// The shims that serve this host's runtime: they are told its socket.
fn shims(host: &HostLayout) -> Vec<Pid> {
    let socket = host.runtime_socket();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_shim(&line, socket.as_os_str().as_encoded_bytes())
    };
    pids.filter(ours).map(Pid::from_raw).collect()
}

fn is_shim(command_line: &[u8], socket: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next().and_then(|path| path.rsplit(|byte| *byte == b'/').next()).unwrap_or_default();
    program.starts_with(b"containerd-shim") && words.any(|word| word == socket)
}

/// Kills the shims that are left; returns whether they are gone.
pub fn end_shims(host: &HostLayout) -> bool {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let left = shims(host);
        if left.is_empty() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        for pid in left {
            // One that has just ended is what we want.
            let _ = signal::kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shims_of_the_hosts_own_runtime_are_ours() {
        let check = |line: &str, expected| {
            assert_eq!(
                is_shim(line.replace(' ', "\0").as_bytes(), b"/a/containerd.sock"),
                expected,
                "{line}"
            );
        };
        check("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /a/containerd.sock", true);
        check("/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /b/containerd.sock", false);
        check("ctr --address /a/containerd.sock", false);
        check("", false);
    }

    #[test]
    fn a_shims_socket_is_read_from_its_bundle() {
        let check = |address: &str, expected: Option<&str>| {
            assert_eq!(shim_socket(address).as_deref(), expected.map(Path::new), "{address}");
        };
        check("unix:///run/containerd/s/0a1b", Some("/run/containerd/s/0a1b"));
        check("unix:///run/containerd/containerd.sock", None);
        check("unix:///run/containerd/s/../../x", None);
        check("", None);
    }

    #[test]
    fn a_namespace_that_somebody_else_made_is_left() {
        let check = |namespaces: serde_json::Value, expected: Option<&str>| {
            let text = serde_json::json!({ "linux": { "namespaces": namespaces } }).to_string();
            assert_eq!(network_namespace(text.as_bytes()).as_deref(), expected, "{text}");
        };
        let at = |path: &str| serde_json::json!([{ "type": "pid" }, { "type": "network", "path": path }]);
        check(at("/var/run/netns/cni-1"), Some("cni-1"));
        check(at("/run/netns/cni-1"), Some("cni-1"));
        check(at("/proc/1/ns/net"), None);
        check(at("/run/netns/kl-12345678-0"), None);
        check(serde_json::json!([{ "type": "network" }]), None);
    }
}

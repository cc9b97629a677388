//! Starting a cluster twice, and taking it away: nothing is left but its data, and then not even that.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::kubectl::Kubectl;
use e2e::own::OwnCluster;
use e2e::pods::{LONG, sleeper};
use e2e::wait::until;
use keelson_local::supervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// The processes whose command line or cgroup names the cluster, with what they are.
fn processes(root: &Path, cgroup: &str) -> Vec<(i32, String)> {
    let root = root.display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // A process may end while it is looked at.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        (command.contains(&root) || cgroups.contains(cgroup)).then_some((pid, command))
    })
    .collect()
}

/// The names in /run/netns of the networks that these processes are in.
fn network_namespaces(processes: &[(i32, String)]) -> Vec<String> {
    let inode = |path: &str| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let own = inode("/proc/self/ns/net");
    let inodes: Vec<u64> = processes
        .iter()
        .filter_map(|(pid, _)| inode(&format!("/proc/{pid}/ns/net")))
        .filter(|found| Some(*found) != own)
        .collect();
    let entries = fs::read_dir("/run/netns").unwrap().flatten();
    let named = entries.filter(|entry| entry.metadata().is_ok_and(|m| inodes.contains(&m.ino())));
    named.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[test]
fn a_second_start_changes_nothing_and_a_stop_leaves_nothing() {
    let own = OwnCluster::start();
    let layout = own.cluster.layout().clone();
    let cgroup = own.cluster.hosts[0].cgroup_root.trim_start_matches('/').to_owned();
    let kubectl = Kubectl::in_default_namespace(layout.admin_kubeconfig());
    sleeper(&kubectl, "sleeper", None);
    kubectl.run(&["create", "configmap", "kept"]);
    let pids = || DAEMONS.iter().map(|daemon| own.pid(daemon)).collect::<Vec<_>>();
    let before = pids();
    assert!(before.iter().all(Option::is_some), "{before:?}");
    own.cluster.up().unwrap();
    assert_eq!(pids(), before);

    // Whoever kills a supervisor kills its daemon: nothing runs that nobody knows of, and the next start replaces it.
    let host = own.cluster.host_layout(&own.cluster.hosts[0]);
    let supervisor = supervisor::running(&host, "kubelet").unwrap();
    kill(supervisor, Signal::SIGKILL).unwrap();
    let kubelet = before[4].unwrap();
    // Nobody may have collected it yet; what has ended has no command line.
    until("the kubelet ends with its supervisor", LONG, || {
        match fs::read(format!("/proc/{kubelet}/cmdline")) {
            Ok(command) if !command.is_empty() => Err(kubelet.to_string()),
            _ => Ok(()),
        }
    });
    own.cluster.up().unwrap();
    let named = fs::read_to_string(host.run().join("kubelet.pid")).unwrap();
    assert_eq!(named.parse().ok(), own.pid("kubelet").map(Pid::as_raw));

    let running = processes(layout.root(), &cgroup);
    let networks = network_namespaces(&running);
    // The host's, and at least those of the DNS and of the pod that was made here.
    assert!(networks.len() >= 3, "{networks:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(own.cluster.down(false)).unwrap();

    // A killed process is gone once its parent has collected it.
    until("no process is left", Duration::from_secs(20), || {
        let left = processes(layout.root(), &cgroup);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    for network in &networks {
        assert!(!Path::new("/run/netns").join(network).exists(), "{network}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let left: Vec<&str> =
        mounts.lines().filter(|line| line.contains(&layout.root().display().to_string())).collect();
    assert!(left.is_empty(), "{left:?}");
    let links = keelson_local::command::ip("-o link show").unwrap();
    assert!(!links.contains(&layout.id()), "{links}");
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([Path::new("/sys/fs/cgroup").to_owned()]) {
        assert!(!hierarchy.join(&cgroup).exists(), "{}", hierarchy.join(&cgroup).display());
    }

    // The data is there, and a start finds it.
    assert!(layout.store_data("node-1").is_dir());
    own.cluster.up().unwrap();
    kubectl.run(&["get", "configmap", "kept"]);
    until("the pod runs again", LONG, || {
        let pod = kubectl.object(&["pod", "sleeper"])?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        if ready && kubectl.ask(&["exec", "sleeper", "--", "true"]).is_ok() {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });

    runtime.block_on(own.cluster.down(true)).unwrap();
    assert!(!layout.root().exists());
}

//! Memory of a cluster's processes, and how soon its API server is ready.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use keelson_local::cluster::Cluster;
use keelson_local::daemons;
use keelson_local::layout::Layout;
use keelson_local::supervisor;

use super::stats::median;
use super::{BenchError, Row, Section};

/// The processes whose memory together has a limit of 80 MiB.
const CONTROL_PLANE: &[&str] = &["kube-store", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const NODE: &[&str] = &["kubelet", "kube-proxy", "keelson-network"];
const STARTS: usize = 5;

/// Memory of a process in MiB.
pub struct Memory {
    /// All pages in memory (RSS).
    pub resident: f64,
    /// Shared pages counted by share (PSS).
    pub proportional: f64,
}

/// Memory of a process as the kernel counts it.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes =
            line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
        kibibytes.map(|n| n / 1024.0).ok_or_else(|| io::Error::other(format!("no {key} of process {pid}")))
    };
    Ok(Memory { resident: value("Rss:")?, proportional: value("Pss:")? })
}

/// CPU that a process has taken since its start, in seconds.
pub fn cpu(pid: u32) -> io::Result<f64> {
    // Fields after the name, which may hold anything but ends with the last bracket: proc(5), utime and stime.
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks =
        |place: usize| fields.split_whitespace().nth(place).and_then(|field| field.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        // The kernel always counts 100 ticks a second there, whatever its own are.
        (Some(user), Some(system)) => Ok((user + system) / 100.0),
        _ => Err(io::Error::other(format!("no times of process {pid}"))),
    }
}

/// The cluster at a root directory whose daemons are in `binaries`.
pub fn cluster(root: &Path, binaries: &Path) -> Result<Cluster, BenchError> {
    Ok(Cluster::new(Layout::new(root)?, binaries, 1)?)
}

/// What the daemons of the first node hold now.
pub fn resident(cluster: &Cluster, when: &str) -> Result<Section, BenchError> {
    let layout = cluster.host_layout(&cluster.hosts[0]);
    let mut rows = Vec::new();
    let mut total = Memory { resident: 0.0, proportional: 0.0 };
    for name in CONTROL_PLANE.iter().chain(NODE) {
        let pid = supervisor::daemon(&layout, name)
            .ok_or_else(|| BenchError::Unexpected(format!("{name} does not run")))?;
        let memory = memory(pid.as_raw().unsigned_abs())?;
        if CONTROL_PLANE.contains(name) {
            total.resident += memory.resident;
            total.proportional += memory.proportional;
        }
        rows.push(Row::new(format!("{name} RSS"), "MiB", memory.resident));
        rows.push(Row::new(format!("{name} PSS"), "MiB", memory.proportional));
    }
    rows.push(Row::new("control plane RSS", "MiB", total.resident));
    rows.push(Row::new("control plane PSS", "MiB", total.proportional));
    Ok(Section { title: format!("Memory, {when}"), peer: None, rows })
}

/// From the start of the API server's process to its `/readyz`, on the data that is there.
pub async fn startup(cluster: &Cluster) -> Result<Section, BenchError> {
    let host = &cluster.hosts[0];
    let layout = cluster.host_layout(host);
    let admin = cluster.layout().admin_kubeconfig();
    let mut times = Vec::new();
    for _ in 0..STARTS {
        supervisor::stop(&layout, "kube-apiserver")?;
        let started = Instant::now();
        cluster.start(host, &daemons::apiserver(&cluster.settings, host))?;
        loop {
            if TcpStream::connect((host.address, 6443)).is_ok() {
                let client = keelson_client::connect(&admin, "keelson-bench")?;
                if keelson_client::raw::get(&client, "/readyz").await.is_ok() {
                    break;
                }
            }
            if started.elapsed() > Duration::from_secs(30) {
                return Err(BenchError::Unexpected("kube-apiserver is not ready within 30 s".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(started.elapsed().as_secs_f64());
    }
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let rows = vec![
        Row::new("start to ready, median", "s", median(times)),
        Row::new(format!("start to ready, slowest of {STARTS}"), "s", slowest),
    ];
    Ok(Section { title: "API server start".to_owned(), peer: None, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_cpu() {
        let before = cpu(std::process::id()).unwrap();
        let begun = Instant::now();
        while cpu(std::process::id()).unwrap() < before + 0.02 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no CPU is counted");
        }
        assert!(cpu(u32::MAX).is_err());
    }

    #[test]
    fn a_process_has_memory() {
        let own = memory(std::process::id()).unwrap();
        assert!(own.resident >= own.proportional && own.proportional > 0.1);
        assert!(memory(u32::MAX).is_err());
    }
}

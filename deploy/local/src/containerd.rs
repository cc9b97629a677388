//! The configuration of a host's own containerd (1.6 or later, configuration version 2).

use std::fs;
use std::io;

use crate::layout::HostLayout;

/// Where Debian's containernetworking-plugins puts the CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The configuration text for containerd on this host.
pub fn configuration(host: &HostLayout, restrict_oom_score: bool) -> String {
    let containerd = host.containerd();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{socket}"

[ttrpc]
  address = "{socket}.ttrpc"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:latest"
  restrict_oom_score_adj = {restrict_oom_score}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  # Pods may be many and small: limits on descriptors are left to the unit or the shell.
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        root = containerd.join("root").display(),
        state = containerd.join("state").display(),
        socket = host.runtime_socket().display(),
        cni = host.cni_configuration().display(),
    )
}

/// Whether this machine forbids lowering a process's OOM score: runc then dies unless containerd
/// is told to leave scores alone.
pub fn oom_score_is_restricted() -> io::Result<bool> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(u64::MAX);
    Ok(bits & (1 << CAP_SYS_RESOURCE) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn all_state_is_under_the_host_directory() {
        let layout = Layout::new("/tmp/some-root").unwrap();
        let text = configuration(&layout.host("node-1"), true);
        for key in ["root = ", "state = ", "address = ", "conf_dir = "] {
            let line = text.lines().map(str::trim).find(|l| l.starts_with(key)).unwrap();
            assert!(line.contains("\"/tmp/some-root/hosts/node-1/"), "{line}");
        }
        assert!(text.contains("restrict_oom_score_adj = true"));
    }
}

//! Where a cluster keeps its files, and the names that it takes on the machine.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The root directory of a cluster that was given no other one.
pub const DEFAULT_ROOT: &str = "/var/lib/keelson";

/// The paths and names of one cluster, all derived from its root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// `root` must be absolute: daemons run in other working directories.
    pub fn new(root: impl Into<PathBuf>) -> std::io::Result<Self> {
        Ok(Self { root: std::path::absolute(root.into())? })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cluster at the default root lives in the machine's own network namespace.
    pub fn is_default(&self) -> bool {
        self.root == Path::new(DEFAULT_ROOT)
    }

    /// A short name, unique to this root, for namespaces, bridges and cgroups.
    pub fn id(&self) -> String {
        if self.is_default() {
            return "keelson".to_owned();
        }
        let digest = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    pub fn kubeconfigs(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfigs().join("admin.conf")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Environment for scripts: `KUBECONFIG` and `CONTAINER_RUNTIME_ENDPOINT`.
    pub fn env_file(&self) -> PathBuf {
        self.root.join("env")
    }

    pub fn store_data(&self, node: &str) -> PathBuf {
        self.root.join("hosts").join(node).join("store")
    }

    /// The directory of one host of the cluster.
    pub fn host(&self, node: &str) -> HostLayout {
        HostLayout { directory: self.root.join("hosts").join(node) }
    }
}

/// The paths of one host of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLayout {
    directory: PathBuf,
}

impl HostLayout {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pid files of supervised processes.
    pub fn run(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub fn logs(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Where the runtime writes the logs of containers.
    pub fn pod_logs(&self) -> PathBuf {
        self.logs().join("pods")
    }

    pub fn config(&self, file: &str) -> PathBuf {
        self.directory.join("config").join(file)
    }

    pub fn kubelet(&self) -> PathBuf {
        self.directory.join("kubelet")
    }

    pub fn containerd(&self) -> PathBuf {
        self.directory.join("containerd")
    }

    pub fn runtime_socket(&self) -> PathBuf {
        self.containerd().join("containerd.sock")
    }

    pub fn runtime_endpoint(&self) -> String {
        format!("unix://{}", self.runtime_socket().display())
    }

    pub fn cni_configuration(&self) -> PathBuf {
        self.directory.join("cni/net.d")
    }

    pub fn cni_state(&self) -> PathBuf {
        self.directory.join("cni/networks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_have_names_of_their_own() {
        let id = |root: &str| Layout::new(root).unwrap().id();
        assert_eq!(id(DEFAULT_ROOT), "keelson");
        assert_ne!(id("/tmp/a"), id("/tmp/b"));
        assert_eq!(id("/tmp/a"), id("/tmp/a"));
        // A bridge is named kl-<id> and its veth ends kl-<id>-<n>: 15 bytes is the kernel's limit.
        assert!(format!("kl-{}-10", id("/tmp/a")).len() <= 15);
    }
}

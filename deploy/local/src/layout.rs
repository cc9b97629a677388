//! Where a cluster keeps its files, and the names that it takes on the machine.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

/// The root directory of a cluster that was given no other one.
pub const DEFAULT_ROOT: &str = "/var/lib/keelson";

/// The paths and names of one cluster, all derived from its root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    default: bool,
}

/// What a cluster keeps directly below its root; nothing else there is ours to remove.
const PARTS: [&str; 7] = ["pki", "kubeconfig", "images", "run", "env", "network", "hosts"];

/// The longest path of a unix socket that the kernel takes.
const SOCKET_PATH: usize = 107;

impl Layout {
    /// The root is made absolute, since daemons run in other working directories, and links in it are
    /// followed, so that however a person writes it, it is the same cluster, and its mounts are found.
    ///
    /// # Errors
    /// A root with characters that `env`, ExecStart or an overlay's mount options would take apart.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let given = std::path::absolute(root.into())?;
        let plain = |c: char| c.is_alphanumeric() || "/._-+@=~".contains(c);
        if !given.to_str().is_some_and(|text| text.chars().all(plain)) {
            let message = format!(
                "{given:?} cannot be a cluster's root: only letters, digits and ._-+@=~ may be in its path"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let default = given == Path::new(DEFAULT_ROOT);
        Ok(Self { root: resolved(&given)?, default })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cluster at the default root lives in the machine's own network namespace.
    pub fn is_default(&self) -> bool {
        self.default
    }

    /// Makes the root; what hosts keep (pods' volumes and logs) is for root's eyes only.
    pub fn make(&self) -> io::Result<()> {
        let hosts = self.root.join("hosts");
        fs::create_dir_all(&hosts)?;
        fs::set_permissions(&hosts, fs::Permissions::from_mode(0o700))
    }

    /// Removes what the cluster kept, and the root itself unless a person put something else there.
    pub fn remove(&self) -> io::Result<()> {
        for path in PARTS.map(|part| self.root.join(part)) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })?;
        }
        fs::remove_dir(&self.root).or_else(|error| {
            if gone(&error) || error.kind() == io::ErrorKind::DirectoryNotEmpty { Ok(()) } else { Err(error) }
        })
    }

    /// A short name, unique to this root, for namespaces, bridges and cgroups.
    pub fn id(&self) -> String {
        if self.is_default() {
            return "keelson".to_owned();
        }
        let digest = Sha256::digest(self.root.as_os_str().as_encoded_bytes());
        digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Which private network the cluster has, once it has one.
    pub fn network_file(&self) -> PathBuf {
        self.root.join("network")
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

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The path without links and `..`; what does not exist yet is taken as it is.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut real = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(real.pop()),
            Component::Normal(name) => {
                let next = real.join(name);
                real =
                    next.canonicalize().or_else(|error| if gone(&error) { Ok(next) } else { Err(error) })?;
            }
            _ => {}
        }
    }
    Ok(real)
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

    /// Whether the kernel takes the path of every socket of this host.
    pub fn sockets_fit(&self) -> bool {
        self.runtime_socket().as_os_str().len() + ".ttrpc".len() <= SOCKET_PATH
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
    fn a_root_is_the_same_however_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, directory.path().join("link")).unwrap();
        let wanted = Layout::new(real.join("a")).unwrap();
        for written in ["link/a", "real/a/", "real/./a", "real/b/../a"] {
            assert_eq!(Layout::new(directory.path().join(written)).unwrap(), wanted, "{written}");
        }
        assert_eq!(Layout::new("/var/lib/keelson/").unwrap().id(), "keelson");
    }

    #[test]
    fn roots_that_would_be_taken_apart_are_refused() {
        for root in ["/tmp/a b", "/tmp/a:b", "/tmp/a,b", "/tmp/a\"b", "/tmp/a%b"] {
            let error = Layout::new(root).unwrap_err();
            assert!(error.to_string().contains("cannot be a cluster's root"), "{error}");
        }
        assert!(Layout::new("/tmp/a").unwrap().host("node-1").sockets_fit());
        assert!(!Layout::new(format!("/tmp/{}", "a".repeat(60))).unwrap().host("node-1").sockets_fit());
    }

    #[test]
    fn only_what_is_ours_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("root")).unwrap();
        layout.make().unwrap();
        fs::write(layout.env_file(), "").unwrap();
        fs::write(layout.root().join("thesis.txt"), "").unwrap();
        layout.remove().unwrap();
        let left: Vec<_> = fs::read_dir(layout.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["thesis.txt"]);
        fs::remove_file(layout.root().join("thesis.txt")).unwrap();
        layout.remove().unwrap();
        assert!(!layout.root().exists());
        layout.remove().unwrap();
    }

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

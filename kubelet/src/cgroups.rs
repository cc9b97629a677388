//! The cgroup tree of pods: `kubepods`, one below it per QoS class, one per pod; the runtime makes the containers'.
//!
//! cgroupfs driver. Works on v1 (a tree per controller) and on v2 (one tree). Containers are left alone: removing a
//! pod's cgroup fails while anything runs in it, and is tried again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::pod::resources::{self, PodLimits};

const MOUNT: &str = "/sys/fs/cgroup";
/// The v1 controllers that limits are written to; others follow where they are mounted.
const V1: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb", "systemd"];

/// Which tree the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The part of the host's cgroups that is ours.
#[derive(Debug, Clone)]
pub struct Cgroups {
    mount: PathBuf,
    version: Version,
    /// Path of `kubepods`, from the mount.
    base: PathBuf,
}

impl Cgroups {
    /// Looks at the host; `root` is the configuration's cgroupRoot.
    pub fn new(root: &str) -> Self {
        Self::at(Path::new(MOUNT), root)
    }

    fn at(mount: &Path, root: &str) -> Self {
        let version = if mount.join("cgroup.controllers").exists() { Version::V2 } else { Version::V1 };
        Self {
            mount: mount.to_path_buf(),
            version,
            base: PathBuf::from(root.trim_matches('/')).join("kubepods"),
        }
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// What CRI calls the pod's cgroup parent.
    pub fn pod_path(&self, uid: &str, qos: &str) -> String {
        format!("/{}", self.pod(uid, qos).display())
    }

    fn class(&self, qos: &str) -> PathBuf {
        match qos {
            resources::GUARANTEED => self.base.clone(),
            other => self.base.join(other.to_lowercase()),
        }
    }

    fn pod(&self, uid: &str, qos: &str) -> PathBuf {
        self.class(qos).join(format!("pod{uid}"))
    }

    /// Directories of one cgroup: one on v2, one per controller on v1.
    fn directories(&self, path: &Path) -> Vec<(&'static str, PathBuf)> {
        match self.version {
            Version::V2 => vec![("", self.mount.join(path))],
            Version::V1 => V1
                .iter()
                .filter(|controller| self.mount.join(controller).is_dir())
                .map(|&controller| (controller, self.mount.join(controller).join(path)))
                .collect(),
        }
    }

    /// Every tree that a runtime may have put the cgroup into; v1 hosts often have a v2 tree beside the others.
    fn everywhere(&self, path: &Path) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![self.mount.join(path)],
            Version::V1 => {
                let trees = fs::read_dir(&self.mount).into_iter().flatten().flatten();
                trees.map(|tree| tree.path().join(path)).collect()
            }
        }
    }

    /// Makes `kubepods` and the QoS classes; `allocatable` is what all pods together may use, zero for no limit.
    pub fn prepare(&self, allocatable: resources::Amounts) -> io::Result<()> {
        let whole =
            PodLimits { shares: resources::shares(allocatable.cpu), quota: 0, memory: allocatable.memory };
        self.make(&self.base, whole)?;
        for qos in [resources::BURSTABLE, resources::BEST_EFFORT] {
            self.make(&self.class(qos), PodLimits { shares: 2, quota: 0, memory: 0 })?;
        }
        Ok(())
    }

    /// Burstable pods together get the CPU they ask for.
    pub fn set_burstable(&self, milli: i64) -> io::Result<()> {
        let limits = PodLimits { shares: resources::shares(milli), quota: 0, memory: 0 };
        self.write(&self.class(resources::BURSTABLE), limits)
    }

    pub fn make_pod(&self, uid: &str, qos: &str, limits: PodLimits) -> io::Result<()> {
        self.make(&self.pod(uid, qos), limits)
    }

    /// Removes the pod's cgroup; false if something still runs in it.
    pub fn remove_pod(&self, uid: &str) -> bool {
        self.of_pod(uid).iter().fold(true, |gone, directory| gone & remove_tree(directory))
    }

    /// Kills what has outlived the containers of a pod that has ended: it would keep the pod for ever. Only for pods
    /// that are surely ours: another kubelet's look the same.
    pub fn kill_pod(&self, uid: &str) {
        self.of_pod(uid).iter().for_each(|directory| kill_tree(directory));
    }

    /// Wherever the pod may have a cgroup.
    fn of_pod(&self, uid: &str) -> Vec<PathBuf> {
        let classes = [resources::GUARANTEED, resources::BURSTABLE, resources::BEST_EFFORT];
        classes.iter().flat_map(|qos| self.everywhere(&self.pod(uid, qos))).collect()
    }

    /// Whether the kernel accounts for swap: a container can then be kept from it (v2 only).
    pub fn has_swap(&self) -> bool {
        self.version == Version::V2 && self.mount.join(&self.base).join("memory.swap.max").exists()
    }

    /// Uids of the pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut uids: Vec<String> = [resources::GUARANTEED, resources::BURSTABLE, resources::BEST_EFFORT]
            .iter()
            .flat_map(|qos| self.everywhere(&self.class(qos)))
            .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten())
            .filter_map(|entry| entry.file_name().to_string_lossy().strip_prefix("pod").map(str::to_owned))
            .collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    fn make(&self, path: &Path, limits: PodLimits) -> io::Result<()> {
        for (controller, directory) in self.directories(path) {
            fs::create_dir_all(&directory)?;
            if controller == "cpuset" {
                self.inherit_cpuset(path)?;
            }
        }
        if self.version == Version::V2 {
            self.delegate(path)?;
        }
        self.write(path, limits)
    }

    /// v1 cpusets start empty, and nothing can run in an empty one.
    fn inherit_cpuset(&self, path: &Path) -> io::Result<()> {
        let root = self.mount.join("cpuset");
        let mut directory = root.clone();
        for part in path.components() {
            let parent = directory.clone();
            directory.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if fs::read_to_string(directory.join(file)).is_ok_and(|text| text.trim().is_empty()) {
                    fs::write(directory.join(file), fs::read_to_string(parent.join(file))?)?;
                }
            }
        }
        Ok(())
    }

    /// v2 controllers work in a cgroup only if every one above it hands them down.
    fn delegate(&self, path: &Path) -> io::Result<()> {
        let available = fs::read_to_string(self.mount.join("cgroup.controllers"))?;
        let mut directory = self.mount.clone();
        for part in path.components() {
            for controller in available.split_whitespace() {
                // Not every controller can be delegated everywhere; those that matter fail loudly when written to.
                let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            directory.push(part);
        }
        Ok(())
    }

    fn write(&self, path: &Path, limits: PodLimits) -> io::Result<()> {
        match self.version {
            Version::V2 => {
                let directory = self.mount.join(path);
                let weight = 1 + (limits.shares.saturating_sub(2) * 9999) / 262_142;
                fs::write(directory.join("cpu.weight"), weight.to_string())?;
                let quota = if limits.quota > 0 { limits.quota.to_string() } else { "max".to_owned() };
                fs::write(directory.join("cpu.max"), format!("{quota} {}", resources::CPU_PERIOD))?;
                let memory = if limits.memory > 0 { limits.memory.to_string() } else { "max".to_owned() };
                fs::write(directory.join("memory.max"), memory)
            }
            Version::V1 => {
                let cpu = self.mount.join("cpu").join(path);
                if cpu.is_dir() {
                    fs::write(cpu.join("cpu.shares"), limits.shares.to_string())?;
                    // A limit that no longer holds is taken away, which -1 does.
                    let quota = if limits.quota > 0 { limits.quota } else { -1 };
                    if quota > 0 || limited(&cpu.join("cpu.cfs_quota_us")) {
                        fs::write(cpu.join("cpu.cfs_period_us"), resources::CPU_PERIOD.to_string())?;
                        fs::write(cpu.join("cpu.cfs_quota_us"), quota.to_string())?;
                    }
                }
                let memory = self.mount.join("memory").join(path);
                if memory.is_dir() && limits.memory > 0 {
                    fs::write(memory.join("memory.limit_in_bytes"), limits.memory.to_string())?;
                }
                Ok(())
            }
        }
    }
}

/// Whether a v1 file of a limit says anything but none.
fn limited(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() != "-1")
}

/// Removes a cgroup and those below it, leaves first; true if it is gone.
fn remove_tree(directory: &Path) -> bool {
    if !directory.is_dir() {
        return true;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Kills every process of a cgroup and those below it.
fn kill_tree(directory: &Path) {
    // One write does it on v2 from Linux 5.14 on.
    if fs::OpenOptions::new().write(true).open(directory.join("cgroup.kill")).is_ok_and(|mut file| {
        use io::Write as _;
        file.write_all(b"1").is_ok()
    }) {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_tree(&entry.path());
        }
    }
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // Zero is a process of another PID namespace, which cannot be named from here.
    for pid in processes.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlives_its_container_is_killed() {
        use std::os::unix::process::ExitStatusExt as _;
        let tree = tempfile::tempdir().unwrap();
        let container = tree.path().join("cpu/kubepods/podu/container");
        fs::create_dir_all(&container).unwrap();
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        // A file keeps the directory from being removed, as a process does with a cgroup.
        fs::write(container.join("cgroup.procs"), format!("0\n{}\n", child.id())).unwrap();
        let groups = Cgroups::at(tree.path(), "");
        assert!(!groups.remove_pod("u"));
        groups.kill_pod("u");
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        fs::remove_file(container.join("cgroup.procs")).unwrap();
        assert!(groups.remove_pod("u"));
    }

    #[test]
    fn both_versions() {
        let limits = PodLimits { shares: 1024, quota: 50_000, memory: 1 << 20 };
        let one = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            fs::create_dir(one.path().join(controller)).unwrap();
        }
        let groups = Cgroups::at(one.path(), "/a/");
        assert_eq!(groups.pod_path("u", resources::BURSTABLE), "/a/kubepods/burstable/podu");
        groups.make_pod("u", resources::BURSTABLE, limits).unwrap();
        let read = |path: &str| fs::read_to_string(one.path().join(path)).unwrap();
        assert_eq!(read("cpu/a/kubepods/burstable/podu/cpu.shares"), "1024");
        assert_eq!(read("cpu/a/kubepods/burstable/podu/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("memory/a/kubepods/burstable/podu/memory.limit_in_bytes"), "1048576");
        assert_eq!(groups.pods(), ["u"]);

        let two = tempfile::tempdir().unwrap();
        fs::write(two.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let groups = Cgroups::at(two.path(), "");
        groups.make_pod("u", resources::GUARANTEED, limits).unwrap();
        let read = |path: &str| fs::read_to_string(two.path().join(path)).unwrap();
        assert_eq!(read("kubepods/podu/cpu.weight"), "39");
        assert_eq!(read("kubepods/podu/cpu.max"), "50000 100000");
        assert_eq!(read("kubepods/podu/memory.max"), "1048576");
    }
}

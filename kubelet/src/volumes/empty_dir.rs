//! `emptyDir` volumes: a directory of the pod's own, on disk or in memory.
//!
//! Made once and then left alone: owner and modes are the pod's to change. A marker beside the pod's volumes says that
//! one was made completely.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec};

use super::{mounts, ownership};
use crate::pod::resources;

/// An empty directory to be made.
pub struct Wanted<'a> {
    pub path: PathBuf,
    /// The marker.
    pub ready: PathBuf,
    pub medium: &'a str,
    /// Of a directory in memory, in bytes.
    pub size: i64,
    pub group: Option<u32>,
}

/// How much a directory in memory may hold: its own limit, the pod's memory limit, or the node's memory; the least.
pub fn size(source: &EmptyDirVolumeSource, spec: &PodSpec, node: resources::Amounts) -> i64 {
    let own = source.size_limit.as_ref().and_then(resources::units);
    let pod = resources::pod_limits(spec, true).memory;
    [own.unwrap_or(0), pod, node.memory].into_iter().filter(|&bytes| bytes > 0).min().unwrap_or(0)
}

/// Makes the directory, unless it was made before.
///
/// # Errors
/// When it cannot be made, or its medium is none of ours.
pub fn make(wanted: &Wanted<'_>) -> io::Result<()> {
    let in_memory = match wanted.medium {
        "" => false,
        "Memory" => true,
        other => {
            let text = format!("unknown storage medium {other:?}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    let path: &Path = &wanted.path;
    if wanted.ready.exists() && path.is_dir() && (!in_memory || mounts::is_mounted(path)?) {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    if in_memory {
        mounts::tmpfs(path, wanted.size)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    if let Some(group) = wanted.group {
        ownership::give(path, group, false)?;
    }
    if let Some(parent) = wanted.ready.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&wanted.ready, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_made_once_and_then_the_pods() {
        let around = tempfile::tempdir().unwrap();
        let wanted = Wanted {
            path: around.path().join("volume"),
            ready: around.path().join("plugins/volume/ready"),
            medium: "",
            size: 0,
            group: Some(nix::unistd::getegid().as_raw()),
        };
        let mode = || fs::metadata(&wanted.path).unwrap().permissions().mode() & 0o7777;
        make(&wanted).unwrap();
        assert_eq!(mode(), 0o2777);
        fs::set_permissions(&wanted.path, fs::Permissions::from_mode(0o700)).unwrap();
        make(&wanted).unwrap();
        assert_eq!(mode(), 0o700, "a database that keeps its directory to itself goes on doing so");
        assert!(make(&Wanted { medium: "HugePages", ..wanted }).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let check = |limit: Option<&str>, container: &str, expected: i64| {
            let source: EmptyDirVolumeSource =
                serde_json::from_value(serde_json::json!({"medium": "Memory", "sizeLimit": limit})).unwrap();
            let spec: PodSpec = serde_json::from_value(serde_json::json!({"containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1", "memory": container}}}]}))
            .unwrap();
            let node = resources::Amounts { cpu: 0, memory: 1 << 30 };
            assert_eq!(size(&source, &spec, node), expected);
        };
        check(Some("1Mi"), "4Mi", 1 << 20);
        check(Some("8Mi"), "4Mi", 4 << 20);
        check(None, "4Gi", 1 << 30);
    }
}

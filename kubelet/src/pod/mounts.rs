//! What a container mounts: the pod's volumes, and files of the kubelet's own.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use keelson_proto::cri;

use super::{
    container, dns, env,
    start::{Surroundings, text},
    termination,
};
use crate::volumes::subpath;

/// The mounts of a container, made ready on the host.
///
/// # Errors
/// The message of a CreateContainerConfigError.
pub fn of(
    around: &Surroundings<'_>,
    spec: &Container,
    restart_count: u32,
    environment: &[(String, String)],
) -> Result<Vec<cri::Mount>, String> {
    let mut mounts = Vec::new();
    let recursive = around.kubelet.runtime_condition.read().recursive_read_only.contains(around.handler);
    for (index, mount) in spec.volume_mounts.iter().flatten().enumerate() {
        let volume = around.mounted.volumes.get(&mount.name).ok_or_else(|| {
            format!("cannot find volume {:?} to mount into container {:?}", mount.name, spec.name)
        })?;
        let host_path = match sub_path(mount, environment)? {
            None => volume.path.clone(),
            Some(sub_path) => bind_sub_path(around, spec, (index, mount), &volume.path, &sub_path)?,
        };
        let container_path = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        mounts.push(cri::Mount {
            container_path,
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true) || volume.read_only,
            recursive_read_only: recursive_read_only(mount, recursive)?,
            selinux_relabel: volume.own && selinux(),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
                Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
                _ => cri::MountPropagation::PropagationPrivate,
            } as i32,
            ..Default::default()
        });
    }
    own_files(around, spec, restart_count, &mut mounts).map_err(|error| error.to_string())?;
    Ok(mounts)
}

/// Whether the host enforces or logs by SELinux; only then is relabelling more than work.
fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// Whether submounts are to be read-only too (KEP-3857); the sentences are upstream's.
fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let wanted = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let refused = |why: &str| {
        Err(format!("volume {:?} requested recursive read-only mode, but it is {why}", mount.name))
    };
    if wanted == "Disabled" {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return refused("not read-only");
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|mode| *mode != "None") {
        return refused(&format!("not compatible with propagation {propagation:?}"));
    }
    match wanted {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => refused("not supported by the runtime"),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The path within the volume, if not all of it is mounted.
fn sub_path(mount: &VolumeMount, environment: &[(String, String)]) -> Result<Option<String>, String> {
    let missing = std::cell::RefCell::new(None);
    let path = match (&mount.sub_path, &mount.sub_path_expr) {
        (_, Some(expression)) if !expression.is_empty() => env::expand(expression, |name| {
            let found = environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            if found.is_none() {
                missing.replace(Some(name.to_owned()));
            }
            found
        }),
        (Some(path), _) => path.clone(),
        _ => String::new(),
    };
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for {name:?}")),
        None => Ok(Some(path).filter(|path| !path.is_empty())),
    }
}

fn bind_sub_path(
    around: &Surroundings<'_>,
    spec: &Container,
    (index, mount): (usize, &VolumeMount),
    volume: &Path,
    sub_path: &str,
) -> Result<PathBuf, String> {
    let target = around
        .kubelet
        .volumes
        .pod_directory(text(&around.pod.metadata.uid))
        .join("volume-subpaths")
        .join(&mount.name)
        .join(&spec.name)
        .join(index.to_string());
    match subpath::bind(volume, sub_path, &target) {
        Ok(()) => Ok(target),
        Err(error) => {
            tracing::warn!(%error, sub_path, "preparing a subPath");
            let (mount, container) = (&mount.name, &spec.name);
            Err(format!("failed to prepare subPath for volumeMount {mount:?} of container {container:?}"))
        }
    }
}

/// /etc/hosts and the termination message: files of the kubelet that every container gets.
fn own_files(
    around: &Surroundings<'_>,
    spec: &Container,
    restart_count: u32,
    mounts: &mut Vec<cri::Mount>,
) -> std::io::Result<()> {
    let volumes = &around.kubelet.volumes;
    let uid = text(&around.pod.metadata.uid);
    let file = |container_path: &str, host_path: &Path| cri::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        selinux_relabel: selinux(),
        ..Default::default()
    };
    let host_network = around.spec.host_network == Some(true);
    if !container::mounted_at(mounts, "/etc/hosts") && (host_network || !around.sandbox.ips.is_empty()) {
        let host_file = host_network.then(|| std::fs::read_to_string("/etc/hosts")).transpose()?;
        let content = dns::hosts_file(
            around.pod,
            &around.sandbox.ips,
            around.kubelet.cluster_domain(),
            host_file.as_deref(),
        );
        mounts.push(file("/etc/hosts", &volumes.write_pod_file(uid, "etc-hosts", &content)?));
    }
    let path = spec.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !path.is_empty() {
        let host = termination::file(&volumes.container_directory(uid, &spec.name), restart_count);
        termination::prepare(&host)?;
        mounts.push(file(path, &host));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fields: serde_json::Value) -> VolumeMount {
        let mut mount = serde_json::json!({"name": "v", "mountPath": "/v"});
        if let (Some(mount), Some(fields)) = (mount.as_object_mut(), fields.as_object()) {
            mount.extend(fields.clone());
        }
        serde_json::from_value(mount).unwrap()
    }

    #[test]
    fn read_only_all_the_way_down() {
        let check = |fields: serde_json::Value, supported: bool, expected: Result<bool, &str>| {
            let expected = expected
                .map_err(|why| format!("volume \"v\" requested recursive read-only mode, but it is {why}"));
            assert_eq!(recursive_read_only(&mount(fields.clone()), supported), expected, "{fields}");
        };
        let wants = |mode: &str| serde_json::json!({"readOnly": true, "recursiveReadOnly": mode});
        check(serde_json::json!({"readOnly": true}), true, Ok(false));
        check(wants("Disabled"), true, Ok(false));
        check(wants("IfPossible"), false, Ok(false));
        check(wants("IfPossible"), true, Ok(true));
        check(wants("Enabled"), true, Ok(true));
        check(wants("Enabled"), false, Err("not supported by the runtime"));
        check(serde_json::json!({"recursiveReadOnly": "Enabled"}), true, Err("not read-only"));
    }

    #[test]
    fn sub_paths_need_their_variables() {
        let environment = [("A".to_owned(), "x".to_owned())];
        let check = |fields: serde_json::Value, expected: Result<Option<&str>, &str>| {
            let expected = expected.map(|path| path.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(sub_path(&mount(fields), &environment), expected);
        };
        check(serde_json::json!({}), Ok(None));
        check(serde_json::json!({"subPath": "$(A)"}), Ok(Some("$(A)")));
        check(serde_json::json!({"subPathExpr": "d/$(A)"}), Ok(Some("d/x")));
        check(serde_json::json!({"subPathExpr": "$(B)"}), Err("missing value for \"B\""));
    }
}

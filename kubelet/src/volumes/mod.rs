//! A pod's volumes on this node: made before its containers, kept up to date while it runs, gone after it.
//!
//! Everything lives below `<root-dir>/pods/<uid>`, in upstream's layout, so that what is left over after a crash can
//! be found and removed. A volume source that is not one of ours is refused by name.

pub mod atomic;
pub mod empty_dir;
pub mod host_path;
pub mod mounts;
pub mod ownership;
pub mod payload;
pub mod remove;
pub mod subpath;
pub mod token;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, ProjectedVolumeSource, Secret, Volume};

use self::atomic::{File, Payload};
use crate::{objects::Referenced, pod::resources};

/// Why a volume cannot be had yet: the text of a FailedMount event.
#[derive(Debug, Clone, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// One volume as containers are given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    pub path: PathBuf,
    /// The kubelet alone writes to it: containers that could would decide where its next write goes.
    pub read_only: bool,
    /// Made for the pod, so the runtime may label it for the pod's SELinux context.
    pub own: bool,
}

/// Where a pod's volumes are on the host.
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    pub volumes: HashMap<String, MountedVolume>,
    /// Set by a token that must be renewed then.
    pub renew_at: Option<Timestamp>,
}

/// Makes volumes; shared by all pods.
pub struct Volumes {
    pub root: PathBuf,
    pub config_maps: Arc<Referenced<ConfigMap>>,
    pub secrets: Arc<Referenced<Secret>>,
    pub tokens: token::Tokens,
    /// What a container without limits is told of the node.
    pub node: resources::Amounts,
}

/// One volume's surroundings.
struct Place<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    namespace: &'a str,
    uid: &'a str,
    group: Option<u32>,
}

impl Volumes {
    pub fn pod_directory(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// Where a container's termination message and other files of the kubelet are.
    pub fn container_directory(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_directory(uid).join("containers").join(container)
    }

    /// Makes or refreshes all volumes of the pod.
    ///
    /// # Errors
    /// The first volume that cannot be made; asking again is right.
    pub async fn mount(&self, pod: &Pod) -> Result<Mounted, VolumeError> {
        let Some(spec) = &pod.spec else { return Ok(Mounted::default()) };
        let place = Place {
            pod,
            spec,
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            uid: pod.metadata.uid.as_deref().unwrap_or_default(),
            group: spec
                .security_context
                .as_ref()
                .and_then(|c| c.fs_group)
                .and_then(|group| u32::try_from(group).ok()),
        };
        let mut mounted = Mounted::default();
        for volume in spec.volumes.iter().flatten() {
            let (found, renew_at) = self
                .mount_one(&place, volume)
                .await
                .map_err(|message| VolumeError { volume: volume.name.clone(), message })?;
            mounted.volumes.insert(volume.name.clone(), found);
            mounted.renew_at = mounted.renew_at.into_iter().chain(renew_at).min();
        }
        Ok(mounted)
    }

    async fn mount_one(
        &self,
        place: &Place<'_>,
        volume: &Volume,
    ) -> Result<(MountedVolume, Option<Timestamp>), String> {
        let directory = |plugin: &str| {
            self.pod_directory(place.uid)
                .join("volumes")
                .join(format!("kubernetes.io~{plugin}"))
                .join(&volume.name)
        };
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            host_path::prepare(&path, source.type_.as_deref().unwrap_or_default())?;
            return Ok((MountedVolume { path, read_only: false, own: false }, None));
        }
        if let Some(source) = &volume.empty_dir {
            let wanted = empty_dir::Wanted {
                path: directory("empty-dir"),
                ready: self
                    .pod_directory(place.uid)
                    .join("plugins/kubernetes.io~empty-dir")
                    .join(&volume.name)
                    .join("ready"),
                medium: source.medium.as_deref().unwrap_or_default(),
                size: empty_dir::size(source, place.spec, self.node),
                group: place.group,
            };
            empty_dir::make(&wanted).map_err(|error| error.to_string())?;
            return Ok((MountedVolume { path: wanted.path, read_only: false, own: true }, None));
        }
        let (path, in_memory, payload, renew_at) = if let Some(source) = &volume.config_map {
            let optional = source.optional == Some(true);
            let mode = mode(source.default_mode);
            let payload =
                self.config_map(place, &source.name, source.items.as_deref(), mode, optional).await?;
            (directory("configmap"), false, payload, None)
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let optional = source.optional == Some(true);
            let mode = mode(source.default_mode);
            let payload = self.secret(place, name, source.items.as_deref(), mode, optional).await?;
            (directory("secret"), true, payload, None)
        } else if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            let payload = payload::downward(items, place.pod, mode(source.default_mode), self.node)?;
            (directory("downward-api"), true, payload, None)
        } else if let Some(source) = &volume.projected {
            let (payload, renew_at) = self.projected(place, source).await?;
            (directory("projected"), true, payload, renew_at)
        } else {
            return Err("no volume plugin matched: this kubelet has emptyDir, hostPath, configMap, secret, downwardAPI \
                        and projected"
                .to_owned());
        };
        // Files are small; doing this in place keeps a pod's start free of thread hops.
        let write = || -> io::Result<()> {
            make_directory(&path, 0o777)?;
            if in_memory {
                mounts::tmpfs(&path, 0)?;
            }
            // Top down only this far: what is written below is the group's before it can be seen.
            if let Some(group) = place.group {
                own_directory(&path, group)?;
            }
            atomic::write(&path, &payload, place.group).map(|_| ())
        };
        write().map_err(|error| error.to_string())?;
        Ok((MountedVolume { path, read_only: true, own: true }, renew_at))
    }

    async fn config_map(
        &self,
        place: &Place<'_>,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        mode: u32,
        optional: bool,
    ) -> Result<Payload, String> {
        let found =
            self.config_maps.get(place.namespace, name, place.uid).await.map_err(|e| e.to_string())?;
        match found {
            Some(map) => payload::select(payload::config_map_data(&map), items, mode, optional, "configmap"),
            None if optional => Ok(Payload::new()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    async fn secret(
        &self,
        place: &Place<'_>,
        name: &str,
        items: Option<&[k8s_openapi::api::core::v1::KeyToPath]>,
        mode: u32,
        optional: bool,
    ) -> Result<Payload, String> {
        match self.secrets.get(place.namespace, name, place.uid).await.map_err(|e| e.to_string())? {
            Some(secret) => payload::select(payload::secret_data(&secret), items, mode, optional, "secret"),
            None if optional => Ok(Payload::new()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    async fn projected(
        &self,
        place: &Place<'_>,
        projected: &ProjectedVolumeSource,
    ) -> Result<(Payload, Option<Timestamp>), String> {
        let default_mode = mode(projected.default_mode);
        let (mut payload, mut renew_at) = (Payload::new(), None);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                let items = source.items.as_deref();
                payload.extend(self.config_map(place, &source.name, items, default_mode, optional).await?);
            } else if let Some(source) = &source.secret {
                let optional = source.optional == Some(true);
                payload.extend(
                    self.secret(place, &source.name, source.items.as_deref(), default_mode, optional).await?,
                );
            } else if let Some(source) = &source.downward_api {
                let items = source.items.as_deref().unwrap_or_default();
                payload.extend(payload::downward(items, place.pod, default_mode, self.node)?);
            } else if let Some(source) = &source.service_account_token {
                let audience = source.audience.as_deref().unwrap_or_default();
                let expiration = source.expiration_seconds.unwrap_or(3600);
                let (token, at) = self.tokens.get(place.pod, audience, expiration).await?;
                renew_at = renew_at.into_iter().chain([at]).min();
                let owner = common_user(place.spec);
                let mode = if owner.is_some() || place.group.is_some() { 0o600 } else { default_mode };
                payload.insert(payload::clean(&source.path), File { data: token.into_bytes(), mode, owner });
            } else {
                return Err("a projected source of this kind is not supported by this kubelet".to_owned());
            }
        }
        Ok((payload, renew_at))
    }

    /// Writes a file of the kubelet's own that containers mount, such as the pod's /etc/hosts.
    pub fn write_pod_file(&self, uid: &str, name: &str, content: &str) -> io::Result<PathBuf> {
        let path = self.pod_directory(uid).join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == content) {
            return Ok(path);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Unmounts and removes everything of the pod; what is already gone is fine.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        let directory = self.pod_directory(uid);
        mounts::unmount_all(&directory)?;
        remove::tree(&directory)
    }

    /// Uids of the pods that have a directory.
    pub fn pods(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("pods")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// The pod is gone: its objects need no watching.
    pub fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
        self.tokens.release(uid);
    }
}

fn mode(default: Option<i32>) -> u32 {
    default.map_or(0o644, i32::cast_unsigned) & 0o777
}

/// The user that every container of the pod runs as, if it is one: a token then belongs to it.
fn common_user(spec: &PodSpec) -> Option<u32> {
    let pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|container| {
            container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    if !path.is_dir() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Gives a directory to the pod's group: what is made in it stays the group's.
fn own_directory(path: &Path, group: u32) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.gid() != group {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    let mode = metadata.permissions().mode() | 0o2770;
    if metadata.permissions().mode() != mode || metadata.gid() != group {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

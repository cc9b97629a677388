//! A container's configuration for CRI, from its spec and what was prepared for it. Pure.

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_proto::cri;

use super::{env, resources, security};
use crate::{context::Kubelet, runtime::names};

/// What a container needs beside its pod and spec.
pub struct ContainerInputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    /// What the image resolved to; containers are made from exactly that.
    pub image_ref: String,
    pub image_user: security::ImageUser,
    pub restart_count: u32,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<cri::Mount>,
    pub node: Node,
    pub root: &'a std::path::Path,
    /// Id of the container whose processes an ephemeral container sees.
    pub target: Option<String>,
}

/// What of the node a container's resources depend on.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    pub memory: i64,
    pub cfs_quota: bool,
    /// Cgroup v2's `cpu.weight` and friends are the runtime's business, except memory.oom.group.
    pub cgroup_v2: bool,
    /// Whether the kernel can keep a container from swap: upstream's default (NoSwap) does.
    pub swap: bool,
}

impl Node {
    pub fn of(kubelet: &Kubelet) -> Self {
        Self {
            memory: kubelet.capacity.memory,
            cfs_quota: kubelet.config.cpu_cfs_quota,
            cgroup_v2: kubelet.cgroups.version() == crate::cgroups::Version::V2,
            swap: kubelet.cgroups.has_swap(),
        }
    }
}

/// A container's resources as CRI takes them.
pub fn resources(pod: &Pod, container: &Container, node: &Node) -> cri::LinuxContainerResources {
    let limits = resources::limits(container.resources.as_ref());
    let requests = resources::requests(container.resources.as_ref());
    let mut linux = cri::LinuxContainerResources {
        cpu_shares: i64::try_from(resources::shares(requests.cpu)).unwrap_or(2),
        memory_limit_in_bytes: limits.memory,
        oom_score_adj: pod.spec.as_ref().map_or(0, |spec| resources::oom_score(spec, container, node.memory)),
        ..Default::default()
    };
    if node.cfs_quota {
        linux.cpu_period = resources::CPU_PERIOD;
        linux.cpu_quota = resources::quota(limits.cpu);
    }
    if node.cgroup_v2 {
        // All of a container dies together when it is out of memory.
        linux.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if node.swap {
        linux.unified.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
    linux
}

/// The CRI request's body.
pub fn config(inputs: ContainerInputs<'_>) -> cri::ContainerConfig {
    let ContainerInputs { pod, container, .. } = inputs;
    let lookup = |name: &str| {
        inputs.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| env::expand(word, lookup)).collect()
    };
    let linux = self::resources(pod, container, &inputs.node);
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: inputs.restart_count,
        }),
        image: Some(cri::ImageSpec {
            image: inputs.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: names::container_labels(pod, &container.name).into_iter().collect(),
        annotations: names::container_annotations(pod, container, inputs.restart_count).into_iter().collect(),
        mounts: inputs.mounts,
        log_path: format!("{}/{}.log", container.name, inputs.restart_count),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(linux),
            security_context: Some(security::context(
                pod,
                container,
                &inputs.image_user,
                inputs.target,
                inputs.root,
            )),
        }),
        envs: inputs
            .environment
            .into_iter()
            .map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() })
            .collect(),
        ..Default::default()
    }
}

/// Whether two mounts would be put at the same place.
pub fn mounted_at(mounts: &[cri::Mount], path: &str) -> bool {
    mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == path)
}

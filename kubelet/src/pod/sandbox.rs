//! The sandbox's configuration: names, DNS, ports, namespaces, cgroup parent. Pure.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use keelson_proto::cri;

use super::{dns, security};
use crate::runtime::names;

/// What a sandbox needs beside its pod.
pub struct SandboxInputs<'a> {
    pub pod: &'a Pod,
    pub attempt: u32,
    pub dns: cri::DnsConfig,
    pub log_directory: String,
    pub cgroup_parent: String,
    pub cluster_domain: &'a str,
}

/// The CRI request's body.
pub fn config(inputs: &SandboxInputs<'_>) -> cri::PodSandboxConfig {
    let pod = inputs.pod;
    let metadata = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.entry(names::CONFIG_SOURCE.to_owned()).or_insert_with(|| "api".to_owned());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: text(&metadata.name),
            uid: text(&metadata.uid),
            namespace: text(&metadata.namespace),
            attempt: inputs.attempt,
        }),
        // A pod on the host's network has the host's own name, which nobody may set.
        hostname: if spec.host_network == Some(true) {
            String::new()
        } else {
            dns::hostname(pod, inputs.cluster_domain).0
        },
        log_directory: inputs.log_directory.clone(),
        dns_config: Some(inputs.dns.clone()),
        port_mappings: port_mappings(&spec),
        labels: names::sandbox_labels(pod).into_iter().collect(),
        annotations: annotations.into_iter().collect(),
        linux: Some(linux(&spec, &inputs.cgroup_parent)),
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<cri::PortMapping> {
    let ports = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .flat_map(|c| c.ports.iter().flatten());
    ports
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: if spec.host_network == Some(true) { 0 } else { port.host_port.unwrap_or(0) },
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn linux(spec: &PodSpec, cgroup_parent: &str) -> cri::LinuxPodSandboxConfig {
    let context = spec.security_context.as_ref();
    let privileged = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| {
        container.security_context.as_ref().and_then(|context| context.privileged) == Some(true)
    });
    let groups = context.map(security::groups).unwrap_or_default();
    cri::LinuxPodSandboxConfig {
        cgroup_parent: cgroup_parent.to_owned(),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(security::namespaces(spec, None)),
            run_as_user: context.and_then(|c| c.run_as_user).map(|value| cri::Int64Value { value }),
            run_as_group: context
                .filter(|c| c.run_as_user.is_some())
                .and_then(|c| c.run_as_group)
                .map(|value| cri::Int64Value { value }),
            supplemental_groups: groups,
            supplemental_groups_policy: security::groups_policy(context) as i32,
            privileged,
            selinux_options: security::selinux(context.and_then(|c| c.se_linux_options.as_ref())),
            seccomp: Some(security::runtime_default()),
            ..Default::default()
        }),
        sysctls: context
            .and_then(|c| c.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
            .collect(),
        ..Default::default()
    }
}

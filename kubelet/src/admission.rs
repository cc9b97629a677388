//! Whether a pod that was bound to this node may run on it. Pure but for what the node has.
//!
//! The scheduler has decided already; this catches what changed since, and pods that never passed it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::{
    context::Kubelet,
    pod::{
        resources::{Amounts, pod_requests},
        security,
    },
    status::compute::Waiting,
};

/// What the node can give to pods.
pub fn allocatable(kubelet: &Kubelet) -> Amounts {
    let limit = pods_limit(kubelet);
    let eviction = crate::eviction::memory_threshold(&kubelet.config, kubelet.capacity.memory);
    Amounts { memory: (limit.memory - eviction).max(0), ..limit }
}

/// What all pods together may use before the kernel stops them: eviction comes before that.
pub fn pods_limit(kubelet: &Kubelet) -> Amounts {
    let reserved = |name: &str,
                    of: fn(&k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Option<i64>|
     -> i64 {
        [&kubelet.config.kube_reserved, &kubelet.config.system_reserved]
            .iter()
            .filter_map(|list| list.get(name))
            .filter_map(|text| of(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.clone())))
            .sum()
    };
    let cpu = reserved("cpu", crate::pod::resources::milli);
    let memory = reserved("memory", crate::pod::resources::units);
    Amounts { cpu: (kubelet.capacity.cpu - cpu).max(0), memory: (kubelet.capacity.memory - memory).max(0) }
}

/// Lets the pod run beside the others, or says why not.
pub fn admit(kubelet: &Kubelet, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Waiting> {
    sysctls(pod)?;
    apparmor(pod, apparmor_is_on())?;
    decide(pod, others, allocatable(kubelet), kubelet.config.max_pods)
}

/// Kernel parameters that a pod may set without harm to others: upstream's list.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

fn sysctls(pod: &Pod) -> Result<(), Waiting> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let wanted = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for sysctl in wanted {
        let name = sysctl.name.replace('/', ".");
        let refused =
            |why: &str| refuse("SysctlForbidden", format!("forbidden sysctl: {:?} {why}", sysctl.name));
        if spec.host_network == Some(true) && name.starts_with("net.") {
            return refused("not allowed with host net enabled");
        }
        if spec.host_ipc == Some(true) && name.starts_with("kernel.") {
            return refused("not allowed with host ipc enabled");
        }
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return refused("not allowlisted");
        }
    }
    Ok(())
}

fn apparmor_is_on() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|on| on.starts_with('Y'))
}

/// A pod that asks to be confined does not run where nothing would confine it.
fn apparmor(pod: &Pod, enabled: bool) -> Result<(), Waiting> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let confined = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| {
        security::apparmor_profile(pod, container).is_some_and(|profile| profile.type_ != "Unconfined")
    });
    if confined && !enabled {
        return refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned());
    }
    Ok(())
}

fn refuse(reason: &str, message: String) -> Result<(), Waiting> {
    Err(Waiting { reason: reason.to_owned(), message })
}

fn active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

fn decide(pod: &Pod, others: &[Arc<Pod>], allocatable: Amounts, max_pods: u32) -> Result<(), Waiting> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let others: Vec<&Pod> = others.iter().map(|pod| &**pod).filter(|pod| active(pod)).collect();
    if others.len() >= usize::try_from(max_pods).unwrap_or(usize::MAX) {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {max_pods}",
            others.len()
        );
        return refuse("OutOfpods", message);
    }
    let wanted = pod_requests(spec);
    let used = others.iter().filter_map(|pod| pod.spec.as_ref()).map(pod_requests);
    let used =
        used.fold(Amounts::default(), |a, b| Amounts { cpu: a.cpu + b.cpu, memory: a.memory + b.memory });
    let checks = [
        ("cpu", wanted.cpu, used.cpu, allocatable.cpu),
        ("memory", wanted.memory, used.memory, allocatable.memory),
    ];
    for (name, wanted, used, capacity) in checks {
        if wanted > 0 && wanted + used > capacity {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
            );
            return refuse(&format!("OutOf{name}"), message);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_without_effect_or_unsafe_is_refused() {
        let pod = |context: serde_json::Value, host_network: bool| -> Pod {
            let pod = serde_json::json!({"spec": {
                "hostNetwork": host_network, "securityContext": context, "containers": [{"name": "c"}]}});
            serde_json::from_value(pod).unwrap()
        };
        let sysctl = |name: &str| serde_json::json!({"sysctls": [{"name": name, "value": "1"}]});
        let check = |name: &str, host_network: bool, expected: Option<&str>| {
            let got = sysctls(&pod(sysctl(name), host_network)).err().map(|refusal| refusal.message);
            assert_eq!(got.as_deref(), expected);
        };
        check("net.ipv4.tcp_syncookies", false, None);
        check("net/ipv4/tcp_syncookies", false, None);
        check("kernel.msgmax", false, Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"));
        let host = "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled";
        check("net.ipv4.tcp_rmem", true, Some(host));

        let profile = |kind: &str| pod(serde_json::json!({"appArmorProfile": {"type": kind}}), false);
        assert!(apparmor(&profile("RuntimeDefault"), false).is_err());
        assert!(apparmor(&profile("RuntimeDefault"), true).is_ok());
        assert!(apparmor(&profile("Unconfined"), false).is_ok());
        assert!(apparmor(&pod(serde_json::json!({}), false), false).is_ok());
    }

    #[test]
    fn counts_what_is_there() {
        let pod = |cpu: &str, phase: &str| -> Arc<Pod> {
            let pod = serde_json::json!({"status": {"phase": phase}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let check = |others: &[Arc<Pod>], max: u32, expected: Option<&str>| {
            let node = Amounts { cpu: 2000, memory: 0 };
            let got = decide(&pod("1", "Pending"), others, node, max).err().map(|waiting| waiting.reason);
            assert_eq!(got.as_deref(), expected);
        };
        check(&[], 110, None);
        check(&[pod("1", "Running")], 110, None);
        check(&[pod("1500m", "Running")], 110, Some("OutOfcpu"));
        check(&[pod("1500m", "Succeeded")], 110, None);
        check(&[pod("0", "Running")], 1, Some("OutOfpods"));
    }
}

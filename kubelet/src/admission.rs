//! Whether a pod that was bound to this node may run on it. Pure but for what the node has.
//!
//! The scheduler has decided already; this catches what changed since, and pods that never passed it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::{
    context::Kubelet,
    pod::resources::{Amounts, pod_requests},
    status::compute::Waiting,
};

/// What the node can give to pods.
pub fn allocatable(kubelet: &Kubelet) -> Amounts {
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
    let eviction = crate::eviction::memory_threshold(&kubelet.config, kubelet.capacity.memory);
    Amounts {
        cpu: (kubelet.capacity.cpu - cpu).max(0),
        memory: (kubelet.capacity.memory - memory - eviction).max(0),
    }
}

/// Lets the pod run beside the others, or says why not.
pub fn admit(kubelet: &Kubelet, pod: &Pod, others: &[Arc<Pod>]) -> Result<(), Waiting> {
    decide(pod, others, allocatable(kubelet), kubelet.config.max_pods)
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
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {max_pods}",
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
                "Pod was rejected: Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
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

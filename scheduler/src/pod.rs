//! What scheduling needs of a pod, and nothing else: a whole API pod takes tens of kilobytes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod, PodSpec, Toleration, TopologySpreadConstraint, Volume};
use keelson_objects::pods;

use crate::labels::{self, Labels};
use crate::resources::Resources;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A port that a pod takes on its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Empty for all addresses.
    pub address: Box<str>,
    pub protocol: Box<str>,
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn collides_with(&self, other: &Self) -> bool {
        let any = |address: &str| address.is_empty() || address == "0.0.0.0" || address == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.address) || any(&other.address) || self.address == other.address)
    }
}

/// A claim whose volume a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedClaim {
    pub name: Box<str>,
    /// Made for this pod, and by its name.
    pub ephemeral: bool,
}

/// What a pod asks for beyond resources; most pods ask for little of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wishes {
    pub node_selector: Labels,
    pub affinity: Option<Affinity>,
    pub tolerations: Vec<Toleration>,
    pub spread: Vec<TopologySpreadConstraint>,
    pub claims: Vec<UsedClaim>,
}

/// One pod, as the scheduler sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodInfo {
    pub key: PodKey,
    pub uid: Box<str>,
    pub labels: Labels,
    pub priority: i32,
    pub requests: Resources,
    pub host_ports: Box<[HostPort]>,
    /// Uid of the controller that made it; its siblings are spread over nodes.
    pub controller: Option<Box<str>>,
    pub terminating: bool,
    pub wishes: Box<Wishes>,
}

impl PodInfo {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        labels::get(&self.labels, key)
    }

    /// Whether a volume of the pod is this claim's.
    pub fn uses_claim(&self, namespace: &str, name: &str) -> bool {
        *self.key.namespace == *namespace && self.wishes.claims.iter().any(|used| *used.name == *name)
    }
}

/// Where a pod stands in its life, as far as the scheduler cares.
#[derive(Debug, Clone, PartialEq)]
pub enum PodState {
    /// Has a node and takes room there.
    Assigned { node: Arc<str>, pod: Arc<PodInfo> },
    /// Waits for this scheduler.
    Pending(Arc<PodInfo>),
    /// Finished, gated, deleted while pending, or another scheduler's: takes no room, waits for nothing.
    Ignored,
}

/// Projects an API pod. `scheduler_name` is ours.
pub fn project(pod: &Pod, scheduler_name: &str) -> Option<(PodKey, PodState)> {
    let key = PodKey {
        namespace: pod.metadata.namespace.as_deref()?.into(),
        name: pod.metadata.name.as_deref()?.into(),
    };
    let spec = pod.spec.as_ref()?;
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let state = match spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        _ if matches!(phase, Some("Succeeded" | "Failed")) => PodState::Ignored,
        Some(node) => PodState::Assigned { node: node.into(), pod: Arc::new(info(&key, pod, spec)) },
        None if pod.metadata.deletion_timestamp.is_some() => PodState::Ignored,
        None if spec.scheduler_name.as_deref().unwrap_or("default-scheduler") != scheduler_name => {
            PodState::Ignored
        }
        // A gated pod is looked at again when its gates are taken away, which changes the pod.
        None if spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()) => PodState::Ignored,
        None => PodState::Pending(Arc::new(info(&key, pod, spec))),
    };
    Some((key, state))
}

fn info(key: &PodKey, pod: &Pod, spec: &PodSpec) -> PodInfo {
    let host_network = spec.host_network == Some(true);
    let sidecars = spec.init_containers.iter().flatten().filter(|container| pods::is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let host_ports = ports.filter_map(|port| {
        let number = port.host_port.or(host_network.then_some(port.container_port)).filter(|p| *p > 0)?;
        Some(HostPort {
            address: port.host_ip.as_deref().unwrap_or_default().into(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
            port: number,
        })
    });
    let owners = pod.metadata.owner_references.iter().flatten();
    PodInfo {
        key: key.clone(),
        uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
        labels: labels::of(pod.metadata.labels.as_ref()),
        priority: spec.priority.unwrap_or_default(),
        requests: Resources::of_pod(spec),
        host_ports: host_ports.collect(),
        controller: owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str().into()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        wishes: Box::new(Wishes {
            node_selector: labels::of(spec.node_selector.as_ref()),
            affinity: spec.affinity.clone(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            spread: spec.topology_spread_constraints.clone().unwrap_or_default(),
            claims: used_claims(&key.name, spec),
        }),
    }
}

fn used_claims(pod: &str, spec: &PodSpec) -> Vec<UsedClaim> {
    let used = |volume: &Volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some(UsedClaim { name: source.claim_name.as_str().into(), ephemeral: false });
        }
        let name = || format!("{pod}-{}", volume.name).into();
        volume.ephemeral.as_ref().map(|_| UsedClaim { name: name(), ephemeral: true })
    };
    spec.volumes.iter().flatten().filter_map(used).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A pod in namespace `default` that requests this much CPU.
    pub fn pod(name: &str, milli_cpu: i64) -> PodInfo {
        PodInfo {
            key: PodKey { namespace: "default".into(), name: name.into() },
            uid: format!("uid-{name}").into(),
            labels: Box::default(),
            priority: 0,
            requests: Resources { milli_cpu, ..Resources::default() },
            host_ports: Box::default(),
            controller: None,
            terminating: false,
            wishes: Box::default(),
        }
    }

    #[test]
    fn host_ports_collide_on_any_address() {
        let port = |address: &str, protocol: &str, port| HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        };
        for (other, expected) in [
            (port("", "TCP", 80), true),
            (port("127.0.0.1", "TCP", 80), true),
            (port("", "UDP", 80), false),
            (port("", "TCP", 81), false),
        ] {
            assert_eq!(port("", "TCP", 80).collides_with(&other), expected, "{other:?}");
        }
        assert!(!port("127.0.0.1", "TCP", 80).collides_with(&port("127.0.0.2", "TCP", 80)));
    }

    #[test]
    fn sidecars_take_ports_of_the_node_too() {
        let container = |name: &str, port: i32| serde_json::json!({"name": name, "ports": [{"containerPort": 1, "hostPort": port}]});
        let mut sidecar = container("sidecar", 81);
        sidecar["restartPolicy"] = "Always".into();
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "containers": [container("main", 80)], "initContainers": [container("init", 82), sidecar]}}))
            .unwrap();
        let Some((_, PodState::Pending(info))) = project(&pod, "default-scheduler") else {
            panic!("not pending")
        };
        assert_eq!(info.host_ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
    }

    #[test]
    fn claims_of_volumes() {
        let volumes = serde_json::json!([
            {"name": "config", "configMap": {"name": "c"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
        ]);
        let spec = serde_json::from_value(serde_json::json!({"containers": [], "volumes": volumes})).unwrap();
        let used: Vec<_> =
            used_claims("p", &spec).into_iter().map(|used| (used.name.to_string(), used.ephemeral)).collect();
        assert_eq!(used, [("shared".to_owned(), false), ("p-scratch".to_owned(), true)]);
    }

    #[test]
    fn only_our_ungated_pending_pods_wait() {
        let check = |manifest: serde_json::Value, expected: &str| {
            let pod: Pod = serde_json::from_value(manifest).unwrap();
            let state = match project(&pod, "default-scheduler").map(|(_, state)| state) {
                Some(PodState::Assigned { node, .. }) => format!("on {node}"),
                Some(PodState::Pending(_)) => "pending".to_owned(),
                Some(PodState::Ignored) => "ignored".to_owned(),
                None => "none".to_owned(),
            };
            assert_eq!(state, expected);
        };
        let make = |spec: serde_json::Value, phase: &str| {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": {"phase": phase}})
        };
        check(make(serde_json::json!({}), "Pending"), "pending");
        check(make(serde_json::json!({"nodeName": "a"}), "Running"), "on a");
        check(make(serde_json::json!({"nodeName": "a"}), "Succeeded"), "ignored");
        check(make(serde_json::json!({"schedulerName": "other"}), "Pending"), "ignored");
        check(make(serde_json::json!({"schedulingGates": [{"name": "g"}]}), "Pending"), "ignored");
    }
}

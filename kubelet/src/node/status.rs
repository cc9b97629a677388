//! The Node object of this machine: metadata at registration, status from what was measured. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
        NodeSystemInfo,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time},
};

use crate::pod::resources::Amounts;

/// The release whose API this kubelet speaks.
pub const VERSION: &str = "v1.36.0";

/// What was measured of the machine.
#[derive(Debug, Clone)]
pub struct Measured {
    pub capacity: Amounts,
    pub allocatable: Amounts,
    /// Bytes of the filesystem that holds the kubelet's directory.
    pub storage: u64,
    pub max_pods: u32,
    pub hostname: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub info: NodeSystemInfo,
    pub images: Vec<ContainerImage>,
    /// Why the node is not ready, if it is not.
    pub ready: Result<(), String>,
    pub memory_pressure: bool,
    pub disk_pressure: bool,
    pub pid_pressure: bool,
}

/// amd64, arm64, …: Go's names of architectures.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Labels that every node has.
pub fn labels(hostname: &str) -> BTreeMap<String, String> {
    let arch = architecture();
    [
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/hostname", hostname),
        ("kubernetes.io/os", "linux"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// The status, apart from conditions' times which follow the status before.
pub fn status(measured: &Measured, before: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let addresses = measured
        .addresses
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() })
        .chain([NodeAddress { type_: "Hostname".to_owned(), address: measured.hostname.clone() }])
        .collect();
    NodeStatus {
        addresses: Some(addresses),
        capacity: Some(resources(measured.capacity, measured.storage, measured.max_pods)),
        // A tenth of the disk is kept back from pods, as evictionHard's default does.
        allocatable: Some(resources(measured.allocatable, measured.storage / 10 * 9, measured.max_pods)),
        conditions: Some(conditions(measured, before.and_then(|status| status.conditions.as_deref()), now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(measured.port) }),
        }),
        images: Some(measured.images.clone()),
        node_info: Some(measured.info.clone()),
        declared_features: Some(vec!["ExtendWebSocketsToKubelet".to_owned()]),
        ..NodeStatus::default()
    }
}

fn resources(amounts: Amounts, storage: u64, pods: u32) -> BTreeMap<String, Quantity> {
    let cpu =
        if amounts.cpu % 1000 == 0 { (amounts.cpu / 1000).to_string() } else { format!("{}m", amounts.cpu) };
    [
        ("cpu", cpu),
        ("memory", format!("{}Ki", amounts.memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", storage / 1024)),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
        ("pods", pods.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), Quantity(value)))
    .collect()
}

fn conditions(measured: &Measured, before: Option<&[NodeCondition]>, now: Timestamp) -> Vec<NodeCondition> {
    let pressure = |kind: &str, held: bool, when: (&str, &str), otherwise: (&str, &str)| {
        let (reason, message) = if held { when } else { otherwise };
        (kind.to_owned(), held, reason.to_owned(), message.to_owned())
    };
    let ready = match &measured.ready {
        Ok(()) => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Err(message) => (false, "KubeletNotReady", message.clone()),
    };
    let list = [
        pressure(
            "MemoryPressure",
            measured.memory_pressure,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            measured.disk_pressure,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            measured.pid_pressure,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        ("Ready".to_owned(), ready.0, ready.1.to_owned(), ready.2),
    ];
    list.into_iter()
        .map(|(type_, held, reason, message)| {
            let status = if held { "True" } else { "False" }.to_owned();
            let known = before.unwrap_or_default().iter().find(|c| c.type_ == type_ && c.status == status);
            NodeCondition {
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: known.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
                message: Some(message),
                reason: Some(reason),
                status,
                type_,
            }
        })
        .collect()
}

/// Whether what this kubelet says of the node differs from what is known, in more than heartbeats.
///
/// Others have conditions and resources of their own in a node's status.
pub fn differs(known: &NodeStatus, new: &NodeStatus) -> bool {
    let conditions = |status: &NodeStatus| -> Vec<NodeCondition> {
        let ours = new.conditions.iter().flatten().filter_map(|ours| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|condition| condition.type_ == ours.type_).cloned()
        });
        ours.map(|condition| NodeCondition { last_heartbeat_time: None, ..condition }).collect()
    };
    let lacks = |known: &Option<BTreeMap<String, Quantity>>, new: &Option<BTreeMap<String, Quantity>>| {
        let known = |name: &String| known.as_ref().and_then(|known| known.get(name));
        new.iter().flatten().any(|(name, amount)| known(name) != Some(amount))
    };
    conditions(known) != conditions(new)
        || lacks(&known.capacity, &new.capacity)
        || lacks(&known.allocatable, &new.allocatable)
        || known.addresses != new.addresses
        || known.daemon_endpoints != new.daemon_endpoints
        || known.images != new.images
        || known.node_info != new.node_info
        || known.declared_features != new.declared_features
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ready: Result<(), String>) -> Measured {
        Measured {
            capacity: Amounts { cpu: 2000, memory: 8 << 30 },
            allocatable: Amounts { cpu: 1500, memory: 7 << 30 },
            storage: 100 << 30,
            max_pods: 110,
            hostname: "n".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            port: 10250,
            info: NodeSystemInfo::default(),
            images: vec![],
            ready,
            memory_pressure: false,
            disk_pressure: true,
            pid_pressure: false,
        }
    }

    #[test]
    fn conditions_keep_their_transition_times() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = status(&measured(Ok(())), None, at(1));
        let same = status(&measured(Ok(())), Some(&first), at(2));
        assert!(!differs(&first, &same), "a heartbeat is no change");
        let down = status(&measured(Err("x".into())), Some(&same), at(3));
        assert!(differs(&same, &down));
        let check = |status: &NodeStatus, kind: &str, value: &str, since: i64| {
            let condition = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            assert_eq!(
                (condition.status.as_str(), &condition.last_transition_time),
                (value, &Some(Time(at(since))))
            );
        };
        check(&same, "Ready", "True", 1);
        check(&down, "Ready", "False", 3);
        check(&down, "DiskPressure", "True", 1);
        assert_eq!(first.allocatable.unwrap()["cpu"], Quantity("1500m".into()));
    }

    #[test]
    fn what_others_write_is_no_difference() {
        let now = Timestamp::from_second(1).unwrap();
        let ours = status(&measured(Ok(())), None, now);
        let check = |change: &dyn Fn(&mut NodeStatus), expected: bool, what: &str| {
            let mut known = ours.clone();
            change(&mut known);
            assert_eq!(differs(&known, &ours), expected, "{what}");
        };
        let condition = |kind: &str, status: &str| NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            ..NodeCondition::default()
        };
        check(&|_| {}, false, "nothing");
        check(
            &|known| known.conditions.as_mut().unwrap().insert(0, condition("NetworkUnavailable", "False")),
            false,
            "a condition of another",
        );
        check(
            &|known| {
                known.capacity.as_mut().unwrap().insert("example.com/a".to_owned(), Quantity("1".to_owned()));
            },
            false,
            "a resource of another",
        );
        check(&|known| known.volumes_attached = Some(Vec::new()), false, "the attach-detach controller's");
        check(
            &|known| known.conditions.as_mut().unwrap()[3] = condition("Ready", "Unknown"),
            true,
            "the node lifecycle controller's verdict",
        );
        check(&|known| known.conditions = None, true, "conditions lost");
        check(
            &|known| {
                known.capacity.as_mut().unwrap().insert("cpu".to_owned(), Quantity("3".to_owned()));
            },
            true,
            "another amount of ours",
        );
        check(&|known| known.images = None, true, "images lost");
        check(&|known| known.addresses.as_mut().unwrap().truncate(1), true, "an address lost");
    }
}

//! What is told of this node as events: its start, and the transitions of its status, in upstream's words. Pure.
//!
//! Only transitions are told: a kubelet that is content says nothing.

use k8s_openapi::api::core::v1::{NodeStatus, ObjectReference};

use crate::events::Type;

/// One event about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub kind: Type,
    pub reason: &'static str,
    pub message: String,
}

/// A condition and its events' reasons where it holds and where it does not; a node's first status tells of some.
struct Condition {
    kind: &'static str,
    held: &'static str,
    otherwise: &'static str,
    from_nothing: bool,
}

/// In the order in which upstream tells of them.
const CONDITIONS: &[Condition] = &[
    Condition {
        kind: "MemoryPressure",
        held: "NodeHasInsufficientMemory",
        otherwise: "NodeHasSufficientMemory",
        from_nothing: true,
    },
    Condition {
        kind: "DiskPressure",
        held: "NodeHasDiskPressure",
        otherwise: "NodeHasNoDiskPressure",
        from_nothing: true,
    },
    Condition {
        kind: "PIDPressure",
        held: "NodeHasInsufficientPID",
        otherwise: "NodeHasSufficientPID",
        from_nothing: true,
    },
    Condition { kind: "Ready", held: "NodeReady", otherwise: "NodeNotReady", from_nothing: false },
];

/// The node as its events name it.
///
/// The uid is the node's name: `kubectl describe node` asks for it, since a kubelet speaks before there is a Node.
/// (Upstream's 1.36 has left it out, whereupon that command misses its events: kubernetes/kubernetes#138524.)
pub fn reference(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

/// What is told when the kubelet starts.
pub fn starting() -> Told {
    Told { kind: Type::Normal, reason: "Starting", message: "Starting kubelet.".to_owned() }
}

/// What is told when the cgroup of all pods has its limits.
pub fn allocatable_enforced() -> Told {
    let message = "Updated Node Allocatable limit across pods".to_owned();
    Told { kind: Type::Normal, reason: "NodeAllocatableEnforced", message }
}

/// What is told of a status that follows another; `before` is none where a node is registered.
pub fn of_status(node: &str, before: Option<&NodeStatus>, status: &NodeStatus) -> Vec<Told> {
    let mut told = Vec::new();
    let boot_id = |status: &NodeStatus| {
        status.node_info.as_ref().map(|info| info.boot_id.clone()).filter(|id| !id.is_empty())
    };
    if let (Some(known), Some(new)) = (before.and_then(boot_id), boot_id(status))
        && known != new
    {
        let message = format!("Node {node} has been rebooted, boot id: {new}");
        told.push(Told { kind: Type::Warning, reason: "Rebooted", message });
    }
    for condition in CONDITIONS {
        let of = |status: &NodeStatus| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|found| found.type_ == condition.kind).map(|found| found.status.clone())
        };
        let (known, Some(new)) = (before.and_then(of), of(status)) else { continue };
        let moved = known.as_ref().map_or(condition.from_nothing, |known| *known != new);
        if moved {
            told.push(now(node, if new == "True" { condition.held } else { condition.otherwise }));
        }
    }
    told
}

/// What is told when somebody cordons or uncordons the node.
pub fn of_schedulable(node: &str, unschedulable: bool) -> Told {
    now(node, if unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" })
}

fn now(node: &str, reason: &'static str) -> Told {
    Told { kind: Type::Normal, reason, message: format!("Node {node} status is now: {reason}") }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSystemInfo};

    use super::*;

    /// `Type=Status …`, after `boot:id` where the node says how it was booted.
    fn status(text: &str) -> NodeStatus {
        let mut status = NodeStatus { conditions: Some(Vec::new()), ..NodeStatus::default() };
        for word in text.split_whitespace() {
            if let Some(id) = word.strip_prefix("boot:") {
                status.node_info =
                    Some(NodeSystemInfo { boot_id: id.to_owned(), ..NodeSystemInfo::default() });
                continue;
            }
            let (kind, value) = word.split_once('=').unwrap();
            status.conditions.get_or_insert_default().push(NodeCondition {
                type_: kind.to_owned(),
                status: value.to_owned(),
                ..NodeCondition::default()
            });
        }
        status
    }

    #[test]
    fn transitions_are_told_and_nothing_else() {
        const FINE: &str = "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=True";
        let check = |before: Option<&str>, after: &str, expected: &[&str]| {
            let before = before.map(status);
            let told = of_status("n", before.as_ref(), &status(after));
            let reasons: Vec<&str> = told.iter().map(|told| told.reason).collect();
            assert_eq!(reasons, expected, "{before:?} → {after}");
        };
        let first = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];
        check(None, FINE, &first);
        check(None, &FINE.replace("Ready=True", "Ready=False"), &first);
        check(Some(""), FINE, &first);
        check(Some(FINE), FINE, &[]);
        check(Some(&format!("{FINE} NetworkUnavailable=False")), FINE, &[]);
        check(Some(&FINE.replace("Ready=True", "Ready=False")), FINE, &["NodeReady"]);
        // The node lifecycle controller has not heard of the kubelet for a while.
        check(Some(&FINE.replace("Ready=True", "Ready=Unknown")), FINE, &["NodeReady"]);
        check(Some(FINE), &FINE.replace("Ready=True", "Ready=False"), &["NodeNotReady"]);
        check(
            Some(FINE),
            &FINE.replace("False", "True"),
            &["NodeHasInsufficientMemory", "NodeHasDiskPressure", "NodeHasInsufficientPID"],
        );
        check(
            Some(&FINE.replace("DiskPressure=False", "DiskPressure=True")),
            FINE,
            &["NodeHasNoDiskPressure"],
        );
        check(Some("boot:a"), "boot:b", &["Rebooted"]);
        check(Some("boot:a"), "boot:a", &[]);
        check(Some("boot:"), "boot:b", &[]);
    }

    #[test]
    fn sentences_are_upstreams() {
        let check = |told: &Told, kind: Type, reason: &str, message: &str| {
            assert_eq!((told.kind, told.reason, told.message.as_str()), (kind, reason, message));
        };
        let told = of_status("n", Some(&status("boot:a Ready=False")), &status("boot:b Ready=True"));
        check(&told[0], Type::Warning, "Rebooted", "Node n has been rebooted, boot id: b");
        check(&told[1], Type::Normal, "NodeReady", "Node n status is now: NodeReady");
        let cordoned = "Node n status is now: NodeNotSchedulable";
        check(&of_schedulable("n", true), Type::Normal, "NodeNotSchedulable", cordoned);
        let uncordoned = "Node n status is now: NodeSchedulable";
        check(&of_schedulable("n", false), Type::Normal, "NodeSchedulable", uncordoned);
        assert_eq!(reference("n").uid.as_deref(), Some("n"));
    }
}

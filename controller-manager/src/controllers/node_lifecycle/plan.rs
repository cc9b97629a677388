//! When a node counts as lost, and which taints it gets. Pure.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NodeCondition, Taint};
use keelson_objects::{taints, times};
use tokio::time::Instant;

use crate::node::NodeInfo;

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const ZONE: &str = "topology.kubernetes.io/zone";
/// What the kubelet reports and becomes unknown when it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was last heard of a node, by this process's own clock: clocks of nodes need not agree.
#[derive(Debug, Clone)]
pub struct Health {
    pub heard: Instant,
    heartbeat: Option<Timestamp>,
    renewed: Option<Timestamp>,
}

impl Health {
    #[must_use]
    pub fn new(node: &NodeInfo, renewed: Option<Timestamp>, now: Instant) -> Self {
        Self { heard: now, heartbeat: heartbeat(node), renewed }
    }

    /// Takes in a look at the node: whatever moved is a sign of life.
    pub fn observe(&mut self, node: &NodeInfo, renewed: Option<Timestamp>, now: Instant) {
        let heartbeat = heartbeat(node);
        if heartbeat != self.heartbeat || renewed > self.renewed {
            self.heard = now;
        }
        self.heartbeat = heartbeat;
        self.renewed = renewed.max(self.renewed);
    }

    #[must_use]
    pub fn is_silent(&self, node: &NodeInfo, grace: Duration, startup_grace: Duration, now: Instant) -> bool {
        let grace = if node.condition("Ready").is_none() { startup_grace } else { grace };
        now.saturating_duration_since(self.heard) > grace
    }
}

fn heartbeat(node: &NodeInfo) -> Option<Timestamp> {
    node.condition("Ready")?.heartbeat
}

/// The conditions of a silent node that must become unknown; the others merge by type.
#[must_use]
pub fn unknown_conditions(node: &NodeInfo, now: Timestamp) -> Vec<NodeCondition> {
    let lost = |kind: &str| {
        let known = node.condition(kind);
        if known.is_some_and(|condition| &*condition.status == "Unknown") {
            return None;
        }
        let (reason, message, heartbeat) = match known {
            Some(condition) => {
                ("NodeStatusUnknown", "Kubelet stopped posting node status.", condition.heartbeat)
            }
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status.", Some(node.meta.created)),
        };
        Some(NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heartbeat.map(times::api_time),
            last_transition_time: Some(times::api_time(now)),
        })
    };
    REPORTED.into_iter().filter_map(lost).collect()
}

/// The state of a node by its `Ready` condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    NotReady,
    Unknown,
}

#[must_use]
pub fn readiness(node: &NodeInfo) -> Readiness {
    match node.condition("Ready").map(|condition| &*condition.status) {
        Some("True") => Readiness::Ready,
        Some("False") => Readiness::NotReady,
        _ => Readiness::Unknown,
    }
}

fn status<'a>(node: &'a NodeInfo, kind: &str) -> &'a str {
    node.condition(kind).map_or("", |condition| &condition.status)
}

/// The keys of the `NoSchedule` taints that the node's conditions call for.
fn no_schedule(node: &NodeInfo) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let mut add = |wanted: bool, key| {
        if wanted {
            keys.push(key);
        }
    };
    add(status(node, "Ready") == "False", NOT_READY);
    add(status(node, "Ready") == "Unknown", UNREACHABLE);
    add(status(node, "MemoryPressure") == "True", "node.kubernetes.io/memory-pressure");
    add(status(node, "DiskPressure") == "True", "node.kubernetes.io/disk-pressure");
    add(status(node, "PIDPressure") == "True", "node.kubernetes.io/pid-pressure");
    add(status(node, "NetworkUnavailable") == "True", "node.kubernetes.io/network-unavailable");
    add(node.unschedulable, "node.kubernetes.io/unschedulable");
    keys
}

const MANAGED_NO_SCHEDULE: [&str; 7] = [
    NOT_READY,
    UNREACHABLE,
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
    "node.kubernetes.io/unschedulable",
];

/// Whether the node is to be given the taint that evicts its pods, by its readiness.
#[must_use]
pub fn needs_eviction_taint(node: &NodeInfo) -> bool {
    let wanted = match readiness(node) {
        Readiness::Ready => return false,
        Readiness::NotReady => NOT_READY,
        Readiness::Unknown => UNREACHABLE,
    };
    !node.taints.iter().any(|taint| taint.key == wanted && taint.effect == taints::NO_EXECUTE)
}

/// What is to be done about the taints that evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// By readiness; one that is there for another reason is exchanged.
    Mark,
    /// As it is, but a node that is ready again loses it.
    Hold,
    /// None at all: everything looks lost, so it is more likely us.
    Clear,
}

/// All taints that the node should have, if they differ from those it has.
#[must_use]
pub fn taints(node: &NodeInfo, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let wanted = no_schedule(node);
    let mut result: Vec<Taint> = Vec::new();
    let evicting = match (readiness(node), eviction) {
        (Readiness::Ready, _) | (_, Eviction::Clear) => None,
        (Readiness::NotReady, _) => Some(NOT_READY),
        (Readiness::Unknown, _) => Some(UNREACHABLE),
    };
    let had_eviction = |taint: &Taint| {
        taint.effect == taints::NO_EXECUTE && (taint.key == NOT_READY || taint.key == UNREACHABLE)
    };
    for taint in &node.taints {
        let keep = if taint.effect == taints::NO_SCHEDULE && MANAGED_NO_SCHEDULE.contains(&taint.key.as_str())
        {
            wanted.contains(&taint.key.as_str())
        } else if had_eviction(taint) {
            evicting == Some(taint.key.as_str())
        } else {
            true
        };
        if keep {
            result.push(taint.clone());
        }
    }
    let add = |result: &mut Vec<Taint>, key: &str, effect: &str| {
        if !result.iter().any(|taint| taint.key == key && taint.effect == effect) {
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(times::api_time(now)),
            });
        }
    };
    for key in wanted {
        add(&mut result, key, taints::NO_SCHEDULE);
    }
    // Exchanging the reason is no new eviction.
    let exchange = node.taints.iter().any(had_eviction);
    if let Some(key) = evicting.filter(|_| eviction == Eviction::Mark || exchange) {
        add(&mut result, key, taints::NO_EXECUTE);
    }
    (result != node.taints).then_some(result)
}

#[must_use]
pub fn zone(node: &NodeInfo) -> &str {
    node.labels().get(ZONE).map_or("", String::as_str)
}

/// How fast nodes of a zone may be given up, in nodes a second.
#[must_use]
pub fn eviction_rate(ready: usize, not_ready: usize) -> f64 {
    // Upstream's defaults: --node-eviction-rate, --unhealthy-zone-threshold, --large-cluster-size-threshold.
    let disrupted = not_ready > 2 && not_ready * 100 >= (ready + not_ready) * 55;
    match (disrupted, ready + not_ready > 50) {
        (false, _) => 0.1,
        (true, true) => 0.01,
        (true, false) => 0.0,
    }
}

/// Ready and lost nodes by zone.
#[must_use]
pub fn zones<'a>(nodes: impl IntoIterator<Item = &'a NodeInfo>) -> HashMap<String, (usize, usize)> {
    let mut zones: HashMap<String, (usize, usize)> = HashMap::new();
    for node in nodes {
        let counts = zones.entry(zone(node).to_owned()).or_default();
        match readiness(node) {
            Readiness::Ready => counts.0 += 1,
            _ => counts.1 += 1,
        }
    }
    zones
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Condition;

    fn now() -> Timestamp {
        times::parse("2026-11-20T12:00:00Z").unwrap()
    }

    fn node(ready: &str, taints: &[(&str, &str)]) -> NodeInfo {
        let condition = |kind: &str, status: &str| Condition {
            kind: kind.into(),
            status: status.into(),
            heartbeat: Some(now()),
        };
        let taint = |(key, effect): &(&str, &str)| Taint {
            key: (*key).into(),
            effect: (*effect).into(),
            value: None,
            time_added: None,
        };
        NodeInfo {
            conditions: if ready.is_empty() { Vec::new() } else { vec![condition("Ready", ready)] },
            taints: taints.iter().map(taint).collect(),
            ..NodeInfo::default()
        }
    }

    #[test]
    fn tainting() {
        #[track_caller]
        fn check(node: &NodeInfo, eviction: Eviction, expected: Option<&str>) {
            let found = taints(node, eviction, now());
            let text = found.map(|taints| {
                let short = |taint: &Taint| {
                    format!("{}:{}", taint.key.trim_start_matches("node.kubernetes.io/"), taint.effect)
                };
                taints.iter().map(short).collect::<Vec<_>>().join(" ")
            });
            assert_eq!(text.as_deref(), expected);
        }
        let (ns, ne) = ("NoSchedule", "NoExecute");
        check(&node("True", &[]), Eviction::Mark, None);
        check(&node("", &[]), Eviction::Hold, None);
        check(&node("False", &[]), Eviction::Mark, Some("not-ready:NoSchedule not-ready:NoExecute"));
        check(&node("Unknown", &[]), Eviction::Mark, Some("unreachable:NoSchedule unreachable:NoExecute"));
        check(&node("Unknown", &[]), Eviction::Hold, Some("unreachable:NoSchedule"));
        check(
            &node("True", &[(NOT_READY, ns), (NOT_READY, ne), ("mine", ne)]),
            Eviction::Hold,
            Some("mine:NoExecute"),
        );
        check(
            &node("Unknown", &[(NOT_READY, ns), (NOT_READY, ne)]),
            Eviction::Hold,
            Some("unreachable:NoSchedule unreachable:NoExecute"),
        );
        check(
            &node("Unknown", &[(UNREACHABLE, ns), (UNREACHABLE, ne)]),
            Eviction::Clear,
            Some("unreachable:NoSchedule"),
        );
        let mut cordoned = node("True", &[]);
        cordoned.unschedulable = true;
        check(&cordoned, Eviction::Hold, Some("unschedulable:NoSchedule"));
        cordoned.unschedulable = false;
        cordoned.taints = node("", &[("node.kubernetes.io/unschedulable", ns)]).taints;
        check(&cordoned, Eviction::Hold, Some(""));
    }

    #[tokio::test(start_paused = true)]
    async fn silence() {
        let (grace, startup) = (Duration::from_secs(50), Duration::from_secs(60));
        let mut observed = node("True", &[]);
        let start = Instant::now();
        let mut health = Health::new(&observed, Some(now()), start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!health.is_silent(&observed, grace, startup, after(50)));
        assert!(health.is_silent(&observed, grace, startup, after(51)));
        health.observe(&observed, Some(times::plus_seconds(now(), 10)), after(40));
        health.observe(&observed, Some(times::plus_seconds(now(), 10)), after(60));
        assert!(!health.is_silent(&observed, grace, startup, after(90)));
        assert!(health.is_silent(&observed, grace, startup, after(91)));
        observed.conditions[0].heartbeat = Some(times::plus_seconds(now(), 99));
        health.observe(&observed, None, after(91));
        assert!(!health.is_silent(&observed, grace, startup, after(100)));

        let unknown = unknown_conditions(&observed, now());
        assert_eq!(
            unknown.iter().map(|c| c.reason.as_deref().unwrap()).collect::<Vec<_>>(),
            [
                "NodeStatusUnknown",
                "NodeStatusNeverUpdated",
                "NodeStatusNeverUpdated",
                "NodeStatusNeverUpdated",
            ]
        );
        assert_eq!(unknown_conditions(&node("Unknown", &[]), now()).len(), 3);
    }

    #[test]
    fn rates() {
        for (ready, not_ready, expected) in
            [(1, 1, 0.1), (0, 2, 0.1), (1, 3, 0.0), (30, 40, 0.01), (60, 40, 0.1)]
        {
            assert_eq!(eviction_rate(ready, not_ready), expected, "{ready} {not_ready}");
        }
    }
}

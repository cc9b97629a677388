//! Resources: a pod goes only where its requests fit, and rather where more is left and where CPU and
//! memory are used alike.

use std::sync::Arc;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, MAX_SCORE, Reason, Score, Verdict};
use crate::pod::PodInfo;
use crate::resources::{ASSUMED_MEMORY, ASSUMED_MILLI_CPU};

pub struct NodeResourcesFit;
pub struct NodeResourcesBalancedAllocation;

impl Filter for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let pod = cycle.pod;
        Some(Box::new(|node| fits(pod, node)))
    }
}

fn fits(pod: &PodInfo, node: &NodeInfo) -> Verdict {
    let mut reasons: Vec<Reason> = Vec::new();
    if node.pods.len() as i64 + 1 > node.facts.allowed_pods {
        reasons.push("Too many pods".into());
    }
    let (allocatable, requested, wanted) = (&node.facts.allocatable, &node.requested, &pod.requests);
    let lacks = |wanted: i64, requested: i64, allocatable: i64| {
        wanted > 0 && wanted > allocatable.saturating_sub(requested)
    };
    if lacks(wanted.milli_cpu, requested.milli_cpu, allocatable.milli_cpu) {
        reasons.push("Insufficient cpu".into());
    }
    if lacks(wanted.memory, requested.memory, allocatable.memory) {
        reasons.push("Insufficient memory".into());
    }
    if lacks(wanted.ephemeral_storage, requested.ephemeral_storage, allocatable.ephemeral_storage) {
        reasons.push("Insufficient ephemeral-storage".into());
    }
    for (name, amount) in &wanted.extended {
        let of = |map: &std::collections::BTreeMap<Box<str>, i64>| map.get(name).copied().unwrap_or_default();
        if lacks(*amount, of(&requested.extended), of(&allocatable.extended)) {
            reasons.push(format!("Insufficient {name}").into());
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// CPU and memory in use once the pod is there, as shares of what the node has. Pods without requests
/// count as small ones, or they would all go to one node.
fn shares(pod: &PodInfo, node: &NodeInfo) -> [Option<f64>; 2] {
    let or = |amount: i64, assumed: i64| if amount == 0 { assumed } else { amount };
    let sum = |amount: fn(&PodInfo) -> i64, assumed: i64| -> i64 {
        node.pods.iter().map(|p| or(amount(p), assumed)).fold(or(amount(pod), assumed), i64::saturating_add)
    };
    let share = |used: i64, total: i64| (total > 0).then(|| (used as f64 / total as f64).min(1.0));
    [
        share(sum(|p| p.requests.milli_cpu, ASSUMED_MILLI_CPU), node.facts.allocatable.milli_cpu),
        share(sum(|p| p.requests.memory, ASSUMED_MEMORY), node.facts.allocatable.memory),
    ]
}

impl Score for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn weight(&self) -> i64 {
        1
    }

    /// Least allocated: the larger the share that stays free, the better.
    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        let score = |node: &Arc<NodeInfo>| {
            let free: Vec<f64> =
                shares(cycle.pod, node).into_iter().flatten().map(|used| 1.0 - used).collect();
            let mean = if free.is_empty() { 0.0 } else { free.iter().sum::<f64>() / free.len() as f64 };
            (mean * MAX_SCORE as f64) as i64
        };
        Some(feasible.iter().map(score).collect())
    }
}

impl Score for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn weight(&self) -> i64 {
        1
    }

    /// The less CPU and memory differ in share, the better.
    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        if cycle.pod.requests.milli_cpu == 0 && cycle.pod.requests.memory == 0 {
            return None;
        }
        let score = |node: &Arc<NodeInfo>| match shares(cycle.pod, node) {
            // The standard deviation of two shares is half their distance.
            [Some(cpu), Some(memory)] => ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64,
            _ => MAX_SCORE,
        };
        Some(feasible.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::NodeFacts;
    use crate::namespaces::Namespaces;
    use crate::pod::tests::pod;
    use crate::resources::Resources;
    use crate::volumes::Volumes;

    fn node(milli_cpu: i64, used: i64, allowed_pods: i64) -> NodeInfo {
        let allocatable = Resources { milli_cpu, memory: 1 << 30, ..Resources::default() };
        NodeInfo {
            name: "n".into(),
            facts: Arc::new(NodeFacts { allocatable, allowed_pods, ..NodeFacts::default() }),
            pods: vec![Arc::new(pod("other", used))],
            requested: Resources { milli_cpu: used, ..Resources::default() },
        }
    }

    #[test]
    fn shortages_are_named() {
        let check = |wanted: Resources, node: &NodeInfo, expected: &[&str]| {
            let found = fits(&PodInfo { requests: wanted, ..pod("p", 0) }, node).err().unwrap_or_default();
            assert_eq!(found, expected);
        };
        let cpu = |milli_cpu| Resources { milli_cpu, ..Resources::default() };
        check(cpu(500), &node(1000, 500, 10), &[]);
        check(cpu(501), &node(1000, 500, 10), &["Insufficient cpu"]);
        check(cpu(0), &node(1000, 2000, 10), &[]);
        check(cpu(501), &node(1000, 500, 1), &["Too many pods", "Insufficient cpu"]);
        let gpu = Resources { extended: [("example.com/gpu".into(), 1)].into(), ..Resources::default() };
        check(gpu, &node(1000, 0, 10), &["Insufficient example.com/gpu"]);
    }

    #[test]
    fn emptier_nodes_score_higher() {
        let nodes = [Arc::new(node(1000, 800, 10)), Arc::new(node(1000, 100, 10))];
        let pod = pod("p", 100);
        let scores = NodeResourcesFit
            .score(
                &Cycle {
                    pod: &pod,
                    nodes: &nodes,
                    namespaces: &Namespaces::default(),
                    volumes: &Volumes::default(),
                },
                &nodes,
            )
            .unwrap();
        assert!(scores[1] > scores[0], "{scores:?}");
    }
}

//! Node selectors and node affinity: labels (and names) of nodes that a pod requires or prefers.

use std::sync::Arc;

use keelson_objects::nodes;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, Score, normalize};
use crate::pod::PodInfo;

pub struct NodeAffinity;

/// Whether the pod's node selector and required node affinity accept the node.
pub fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    let wishes = &pod.wishes;
    let selector = wishes.node_selector.iter().map(|(key, value)| (&**key, &**value));
    nodes::admits(selector, wishes.affinity.as_ref(), &node.name, |key| node.facts.label(key))
}

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let pod = cycle.pod;
        if pod.wishes.node_selector.is_empty() && pod.wishes.affinity.is_none() {
            return None;
        }
        Some(Box::new(|node| {
            if accepts(pod, node) {
                return Ok(());
            }
            Err(vec!["node(s) didn't match Pod's node affinity/selector".into()])
        }))
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        let affinity = cycle.pod.wishes.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_deref()?;
        let weigh = |node: &Arc<NodeInfo>| {
            let matching = preferred
                .iter()
                .filter(|p| nodes::matches_term(&p.preference, &node.name, |key| node.facts.label(key)));
            matching.map(|p| i64::from(p.weight)).sum()
        };
        normalize(&feasible.iter().map(weigh).collect::<Vec<_>>())
    }
}

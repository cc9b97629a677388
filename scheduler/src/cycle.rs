//! One decision: which node for this pod. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cache::NodeInfo;
use crate::framework::{Cycle, Filter, Reason, Score};

/// The rules in force, in order.
pub struct Profile {
    pub filters: Vec<Box<dyn Filter>>,
    pub scores: Vec<Box<dyn Score>>,
}

/// Why no node was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    pub refused: Refused,
    /// The rules that refused.
    pub plugins: Vec<&'static str>,
}

/// What was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The pod, by all nodes alike.
    Pod(Reason),
    /// Each node for its own reasons; how many for each of them.
    Nodes(BTreeMap<Reason, usize>),
}

impl std::fmt::Display for Unschedulable {
    /// Upstream's sentence, as `kubectl describe pod` shows it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available: ", self.nodes)?;
        match &self.refused {
            Refused::Pod(reason) => write!(f, "{reason}."),
            Refused::Nodes(reasons) => {
                let mut parts: Vec<String> =
                    reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
                parts.sort();
                write!(f, "{}.", parts.join(", "))
            }
        }
    }
}

/// Finds the best node. Ties are broken by `tie_break`, which gets the number of equals and picks one.
pub fn decide(
    profile: &Profile,
    cycle: &Cycle<'_>,
    tie_break: impl FnOnce(usize) -> usize,
) -> Result<Arc<NodeInfo>, Unschedulable> {
    let unschedulable = |refused, plugins| Unschedulable { nodes: cycle.nodes.len(), refused, plugins };
    for filter in &profile.filters {
        if let Some(reason) = filter.refuse(cycle) {
            return Err(unschedulable(Refused::Pod(reason), vec![filter.name()]));
        }
    }
    let filters: Vec<_> =
        profile.filters.iter().filter_map(|filter| Some((filter.name(), filter.prepare(cycle)?))).collect();
    let (mut refusals, mut plugins) = (BTreeMap::new(), Vec::new());
    let mut feasible = Vec::new();
    'nodes: for node in cycle.nodes {
        for (name, filter) in &filters {
            if let Err(reasons) = filter(node) {
                for reason in reasons {
                    *refusals.entry(reason).or_default() += 1;
                }
                if !plugins.contains(name) {
                    plugins.push(*name);
                }
                continue 'nodes;
            }
        }
        feasible.push(node.clone());
    }
    match feasible.len() {
        0 => Err(unschedulable(Refused::Nodes(refusals), plugins)),
        1 => Ok(feasible.swap_remove(0)),
        _ => Ok(best(profile, cycle, &feasible, tie_break)),
    }
}

fn best(
    profile: &Profile,
    cycle: &Cycle<'_>,
    feasible: &[Arc<NodeInfo>],
    tie_break: impl FnOnce(usize) -> usize,
) -> Arc<NodeInfo> {
    let mut totals = vec![0_i64; feasible.len()];
    for rule in &profile.scores {
        if let Some(scores) = rule.score(cycle, feasible) {
            for (total, score) in totals.iter_mut().zip(scores) {
                *total += score * rule.weight();
            }
        }
    }
    let highest = totals.iter().copied().max().unwrap_or_default();
    let equals: Vec<&Arc<NodeInfo>> =
        feasible.iter().zip(&totals).filter(|(_, total)| **total == highest).map(|(node, _)| node).collect();
    let chosen = tie_break(equals.len()).min(equals.len() - 1);
    equals[chosen].clone()
}

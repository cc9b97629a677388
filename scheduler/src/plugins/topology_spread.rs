//! Spreading: a pod's topology constraints, and where it has none, its controller's pods over nodes.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use keelson_objects::taints;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, Reason, Score, normalize_reversed};
use crate::plugins::node_affinity;
use crate::pod::PodInfo;
use crate::selector::PodSelector;

pub struct PodTopologySpread;

/// The spread of pods without constraints of their own (upstream's defaults, by host name only: the
/// label that every node has).
const HOSTNAME: &str = "kubernetes.io/hostname";

/// How many matching pods each domain has.
struct Domains<'a> {
    constraint: &'a TopologySpreadConstraint,
    selector: PodSelector,
    counts: HashMap<&'a str, i64>,
}

impl<'a> Domains<'a> {
    fn count(constraint: &'a TopologySpreadConstraint, cycle: &Cycle<'a>) -> Self {
        let mut selector = PodSelector::new(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = cycle.pod.label(key) {
                selector = selector.and_equals(key, value);
            }
        }
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for node in cycle.nodes {
            let Some(domain) = node.facts.label(&constraint.topology_key) else { continue };
            if !counts_for(constraint, cycle.pod, node) {
                continue;
            }
            *counts.entry(domain).or_default() += matching(node, &cycle.pod.key.namespace, &selector);
        }
        Self { constraint, selector, counts }
    }

    /// The skew that the pod would cause in `domain`, against the emptiest domain.
    fn skew(&self, pod: &PodInfo, domain: &str) -> i64 {
        let fewest = self.counts.values().copied().min().unwrap_or_default();
        // Fewer domains than asked for count as if an empty one were among them.
        let short =
            self.constraint.min_domains.is_some_and(|least| (self.counts.len() as i64) < i64::from(least));
        let own = i64::from(self.selector.matches(pod));
        self.counts.get(domain).copied().unwrap_or_default() + own - if short { 0 } else { fewest }
    }
}

/// Whether a node's pods count, by the constraint's policies (defaults: honour affinity, ignore taints).
fn counts_for(constraint: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    if constraint.node_affinity_policy.as_deref() != Some("Ignore") && !node_affinity::accepts(pod, node) {
        return false;
    }
    let forbids = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    constraint.node_taints_policy.as_deref() != Some("Honor")
        || node
            .facts
            .taints
            .iter()
            .filter(|t| forbids(&t.effect))
            .all(|taint| taints::tolerated_by(taint, &pod.wishes.tolerations))
}

fn matching(node: &NodeInfo, namespace: &str, selector: &PodSelector) -> i64 {
    let counted =
        |pod: &&Arc<PodInfo>| &*pod.key.namespace == namespace && !pod.terminating && selector.matches(pod);
    node.pods.iter().filter(counted).count() as i64
}

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let hard = cycle.pod.wishes.spread.iter().filter(|c| c.when_unsatisfiable == "DoNotSchedule");
        let domains: Vec<Domains<'a>> = hard.map(|constraint| Domains::count(constraint, cycle)).collect();
        if domains.is_empty() {
            return None;
        }
        let pod = cycle.pod;
        Some(Box::new(move |node| {
            const REASON: &str = "node(s) didn't match pod topology spread constraints";
            for domains in &domains {
                let Some(domain) = node.facts.label(&domains.constraint.topology_key) else {
                    return Err(vec![Reason::Owned(format!("{REASON} (missing required label)"))]);
                };
                if domains.skew(pod, domain) > i64::from(domains.constraint.max_skew) {
                    return Err(vec![REASON.into()]);
                }
            }
            Ok(())
        }))
    }
}

impl Score for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        let wishes = &cycle.pod.wishes;
        if wishes.spread.is_empty() {
            return spread_siblings(cycle, feasible);
        }
        let soft: Vec<Domains<'_>> = wishes
            .spread
            .iter()
            .filter(|c| c.when_unsatisfiable == "ScheduleAnyway")
            .map(|constraint| Domains::count(constraint, cycle))
            .collect();
        if soft.is_empty() {
            return None;
        }
        let crowd = |node: &Arc<NodeInfo>| {
            let count = |domains: &Domains<'_>| match node.facts.label(&domains.constraint.topology_key) {
                Some(domain) => domains.counts.get(domain).copied().unwrap_or_default(),
                // Outside every domain: as bad as the fullest.
                None => domains.counts.values().copied().max().unwrap_or_default(),
            };
            soft.iter().map(count).sum()
        };
        normalize_reversed(&feasible.iter().map(crowd).collect::<Vec<i64>>())
    }
}

/// The fewer pods of the same controller a node has, the better.
fn spread_siblings(cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
    let controller = cycle.pod.controller.as_deref()?;
    let siblings = |node: &Arc<NodeInfo>| {
        if node.facts.label(HOSTNAME).is_none() {
            return 0;
        }
        node.pods.iter().filter(|p| p.controller.as_deref() == Some(controller) && !p.terminating).count()
            as i64
    };
    normalize_reversed(&feasible.iter().map(siblings).collect::<Vec<_>>())
}

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
    /// The domains of all constraints that ask for this.
    fn of(when_unsatisfiable: &str, cycle: &Cycle<'a>) -> Vec<Self> {
        let constraints = cycle.pod.wishes.spread.iter();
        let asked: Vec<_> = constraints.filter(|c| c.when_unsatisfiable == when_unsatisfiable).collect();
        // Nodes outside a domain of one of them count for none.
        let inside = |node: &NodeInfo| asked.iter().all(|c| node.facts.label(&c.topology_key).is_some());
        asked.iter().map(|constraint| Self::count(constraint, cycle, &inside)).collect()
    }

    fn count(
        constraint: &'a TopologySpreadConstraint,
        cycle: &Cycle<'a>,
        inside: &dyn Fn(&NodeInfo) -> bool,
    ) -> Self {
        let mut selector = PodSelector::new(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = cycle.pod.label(key) {
                selector = selector.and_equals(key, value);
            }
        }
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for node in cycle.nodes.iter().filter(|node| inside(node)) {
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
    // As upstream: a selector without requirements counts nobody.
    if selector.is_everything() {
        return 0;
    }
    let counted =
        |pod: &&Arc<PodInfo>| &*pod.key.namespace == namespace && !pod.terminating && selector.matches(pod);
    node.pods.iter().filter(counted).count() as i64
}

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let domains = Domains::of("DoNotSchedule", cycle);
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
        let soft = Domains::of("ScheduleAnyway", cycle);
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cache::NodeFacts;
    use crate::namespaces::Namespaces;
    use crate::pod::Wishes;
    use crate::pod::tests::pod;
    use crate::resources::Resources;
    use crate::volumes::Volumes;

    fn labelled(name: &str) -> PodInfo {
        PodInfo { labels: [("app".into(), "web".into())].into(), ..pod(name, 0) }
    }

    /// `zone host pods`; a zone or host of `-` is none.
    fn node(text: &str) -> Arc<NodeInfo> {
        let mut parts = text.split(' ');
        let mut labels: Vec<(Box<str>, Box<str>)> = Vec::new();
        for key in ["zone", "host"] {
            let value = parts.next().unwrap();
            if value != "-" {
                labels.push((key.into(), value.into()));
            }
        }
        let count: usize = parts.next().unwrap().parse().unwrap();
        let mut pods: Vec<_> = (0..count).map(|n| Arc::new(labelled(&format!("{text}-{n}")))).collect();
        // Neither of these counts.
        pods.push(Arc::new(PodInfo { terminating: true, ..labelled("going") }));
        pods.push(Arc::new(pod("other", 0)));
        Arc::new(NodeInfo {
            name: text.into(),
            facts: Arc::new(NodeFacts { labels: labels.into(), ..NodeFacts::default() }),
            pods,
            requested: Resources::default(),
        })
    }

    #[test]
    fn where_one_more_may_go() {
        #[track_caller]
        fn check(constraints: Value, nodes: &[&str], expected: &[bool]) {
            let mut constraints: Vec<Value> = constraints.as_array().unwrap().clone();
            for constraint in &mut constraints {
                constraint["whenUnsatisfiable"] = "DoNotSchedule".into();
                let selector = json!({"matchLabels": {"app": "web"}});
                constraint.as_object_mut().unwrap().entry("labelSelector").or_insert(selector);
            }
            let spread = serde_json::from_value(constraints.into()).unwrap();
            let pod = PodInfo { wishes: Box::new(Wishes { spread, ..Wishes::default() }), ..labelled("new") };
            let nodes: Vec<_> = nodes.iter().map(|text| node(text)).collect();
            let (namespaces, volumes) = (Namespaces::default(), Volumes::default());
            let cycle = Cycle { pod: &pod, nodes: &nodes, namespaces: &namespaces, volumes: &volumes };
            let verdict = PodTopologySpread.prepare(&cycle).unwrap();
            assert_eq!(nodes.iter().map(|node| verdict(node).is_ok()).collect::<Vec<_>>(), expected);
        }
        let zone = |skew: i32| json!({"topologyKey": "zone", "maxSkew": skew});
        let host = |skew: i32| json!({"topologyKey": "host", "maxSkew": skew});
        check(json!([zone(1)]), &["a 1 2", "a 2 0", "b 3 1"], &[false, false, true]);
        check(json!([zone(2)]), &["a 1 2", "b 3 1"], &[true, true]);
        check(json!([zone(1)]), &["a 1 0", "- 2 0"], &[true, false]);
        // A node outside one of the topologies counts for none: zone b is no domain, so a is the emptiest.
        check(json!([zone(1), host(5)]), &["a 1 2", "b - 0"], &[true, false]);
        // Fewer domains than wanted: as if there were an empty one.
        let least = json!({"topologyKey": "zone", "maxSkew": 1, "minDomains": 3});
        check(json!([least]), &["a 1 1", "b 2 0"], &[false, true]);
        let everybody = json!({"topologyKey": "zone", "maxSkew": 1, "labelSelector": {}});
        check(json!([everybody]), &["a 1 5", "b 2 0"], &[true, true]);
    }
}

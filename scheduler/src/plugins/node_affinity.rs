//! Node selectors and node affinity: labels (and names) of nodes that a pod requires or prefers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, Score, normalize};

pub struct NodeAffinity;

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Terms are alternatives; the requirements of one must all hold. An empty term matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| meets(r, node.facts.label(&r.key)))
        && fields.iter().all(|r| r.key == "metadata.name" && meets(r, Some(&node.name)))
}

/// Whether the pod's node selector and required node affinity accept the node.
pub fn accepts(pod: &crate::pod::PodInfo, node: &NodeInfo) -> bool {
    let wishes = &pod.wishes;
    if !wishes.node_selector.iter().all(|(key, value)| node.facts.label(key) == Some(value)) {
        return false;
    }
    let affinity = wishes.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        None => true,
        Some(required) => required.node_selector_terms.iter().any(|term| term_matches(term, node)),
    }
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
            let matching = preferred.iter().filter(|p| term_matches(&p.preference, node));
            matching.map(|p| i64::from(p.weight)).sum()
        };
        normalize(&feasible.iter().map(weigh).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements() {
        let check = |operator: &str, values: &[&str], value: Option<&str>, expected: bool| {
            let requirement = NodeSelectorRequirement {
                key: "k".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            };
            assert_eq!(meets(&requirement, value), expected, "{operator} {values:?} {value:?}");
        };
        check("In", &["a", "b"], Some("b"), true);
        check("In", &["a"], None, false);
        check("NotIn", &["a"], None, true);
        check("NotIn", &["a"], Some("a"), false);
        check("Exists", &[], Some(""), true);
        check("DoesNotExist", &[], Some(""), false);
        check("Gt", &["5"], Some("6"), true);
        check("Lt", &["5"], Some("x"), false);
        check("Unknown", &[], Some("x"), false);
    }
}

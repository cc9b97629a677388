//! What controllers keep of a Node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint};

use crate::meta::{HasMeta, Meta};

#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub kind: Box<str>,
    pub status: Box<str>,
    pub heartbeat: Option<Timestamp>,
}

#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub meta: Meta,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub conditions: Vec<Condition>,
    pub pod_cidrs: Vec<String>,
}

impl HasMeta for NodeInfo {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl NodeInfo {
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let mut info = Self { meta: Meta::of(&node.metadata), ..Self::default() };
        if let Some(spec) = &node.spec {
            info.unschedulable = spec.unschedulable == Some(true);
            info.taints = spec.taints.clone().unwrap_or_default();
            info.pod_cidrs = spec.pod_cidrs.clone().unwrap_or_default();
            if info.pod_cidrs.is_empty() {
                info.pod_cidrs.extend(spec.pod_cidr.clone());
            }
        }
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        info.conditions = conditions
            .map(|condition| Condition {
                kind: condition.type_.as_str().into(),
                status: condition.status.as_str().into(),
                heartbeat: condition.last_heartbeat_time.as_ref().map(|time| time.0),
            })
            .collect();
        info
    }

    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| &*condition.kind == kind)
    }

    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.meta.labels
    }

    /// Whether a pod's node selector and required node affinity accept the node.
    #[must_use]
    pub fn is_selected_by(&self, spec: &PodSpec) -> bool {
        let labels = |(key, value): (&String, &String)| self.meta.labels.get(key) == Some(value);
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required =
            affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
        spec.node_selector.iter().flatten().all(labels)
            && required
                .is_none_or(|required| required.node_selector_terms.iter().any(|term| self.matches(term)))
    }

    /// Terms are alternatives; the requirements of one must all hold. An empty term matches nothing.
    fn matches(&self, term: &NodeSelectorTerm) -> bool {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|r| meets(r, self.meta.labels.get(&r.key).map(String::as_str)))
            && fields.iter().all(|r| r.key == "metadata.name" && meets(r, Some(&self.meta.name)))
    }
}

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

//! What controllers keep of a Node.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PodSpec, Taint};
use keelson_objects::nodes;

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
        let selector = spec.node_selector.iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()));
        let label = |key: &str| self.meta.labels.get(key).map(String::as_str);
        nodes::admits(selector, spec.affinity.as_ref(), &self.meta.name, label)
    }
}

//! Cordoned nodes take no new pods, except those that tolerate the taint that stands for it.

use k8s_openapi::api::core::v1::Taint;
use keelson_objects::taints;

use crate::framework::{Check, Cycle, Filter};

pub struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if taints::tolerated_by(&taint, &cycle.pod.wishes.tolerations) {
            return None;
        }
        Some(Box::new(|node| {
            if node.facts.unschedulable { Err(vec!["node(s) were unschedulable".into()]) } else { Ok(()) }
        }))
    }
}

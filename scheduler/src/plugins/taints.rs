//! Taints: a pod goes only where it tolerates every taint that forbids scheduling, and rather where
//! it tolerates those that discourage it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use keelson_objects::taints;

use crate::cache::NodeInfo;
use crate::framework::{Check, Cycle, Filter, Score, normalize_reversed};

pub struct TaintToleration;

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare<'a>(&self, cycle: &Cycle<'a>) -> Option<Check<'a>> {
        let tolerations = &cycle.pod.wishes.tolerations;
        Some(Box::new(|node| {
            let forbids = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
            let untolerated = node
                .facts
                .taints
                .iter()
                .filter(forbids)
                .find(|taint| !taints::tolerated_by(taint, tolerations));
            match untolerated {
                None => Ok(()),
                Some(taint) => {
                    let value = taint.value.as_deref().unwrap_or_default();
                    Err(vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into()])
                }
            }
        }))
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn score(&self, cycle: &Cycle<'_>, feasible: &[Arc<NodeInfo>]) -> Option<Vec<i64>> {
        let tolerations = &cycle.pod.wishes.tolerations;
        let intolerable = |node: &Arc<NodeInfo>| {
            let discouraging = node.facts.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
            discouraging.filter(|taint| !taints::tolerated_by(taint, tolerations)).count() as i64
        };
        normalize_reversed(&feasible.iter().map(intolerable).collect::<Vec<_>>())
    }
}

//! Taints: a pod goes only where it tolerates every taint that forbids scheduling, and rather where
//! it tolerates those that discourage it.

use std::sync::Arc;

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
            let forbids = |effect: &str| matches!(effect, taints::NO_SCHEDULE | taints::NO_EXECUTE);
            match taints::first_untolerated(&node.facts.taints, tolerations, forbids) {
                None => Ok(()),
                // Which taint it is, is not for everybody who may read the pod.
                Some(_) => Err(vec!["node(s) had untolerated taint(s)".into()]),
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
            let discouraging = node.facts.taints.iter().filter(|t| t.effect == taints::PREFER_NO_SCHEDULE);
            discouraging.filter(|taint| !taints::tolerated_by(taint, tolerations)).count() as i64
        };
        normalize_reversed(&feasible.iter().map(intolerable).collect::<Vec<_>>())
    }
}

//! On which nodes a DaemonSet's pods run, which are to be made or removed, and what its status says. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Toleration,
};
use keelson_objects::intstr::{Round, scaled_value};
use keelson_objects::pods;
use keelson_objects::taints::{NO_EXECUTE, NO_SCHEDULE, first_untolerated};

use crate::controllers::history::REVISION_HASH;
use crate::node::NodeInfo;
use crate::pod::{Phase, PodInfo};

const GENERATION_ANNOTATION: &str = "deprecated.daemonset.template.generation";
pub const GENERATION_LABEL: &str = "pod-template-generation";

/// What a node is to the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suitability {
    Runs,
    /// No new pod may come, but one that is there stays.
    Keeps,
    Refuses,
}

/// A pod to be removed.
#[derive(Debug)]
pub struct Removal {
    pub pod: Arc<PodInfo>,
    /// It had ended: back-off and an event.
    pub ended: Option<Phase>,
}

#[derive(Debug, Default)]
pub struct Changes {
    /// Names of nodes.
    pub create: Vec<String>,
    pub delete: Vec<Removal>,
}

/// The new and the old pod of a node.
type Pair<'a> = (Option<&'a Arc<PodInfo>>, Option<&'a Arc<PodInfo>>);

/// What is observed of one DaemonSet.
pub struct Daemon<'a> {
    pub set: &'a DaemonSet,
    pub spec: &'a DaemonSetSpec,
    /// Its pods' spec with the tolerations that all daemons have.
    pub pod_spec: PodSpec,
    pub nodes: &'a [Arc<NodeInfo>],
    pub pods: &'a [Arc<PodInfo>],
    /// Of the current template.
    pub hash: &'a str,
    pub now: Timestamp,
}

/// Adds the tolerations by which daemons stay where other pods leave.
pub fn tolerate(spec: &mut PodSpec) {
    let host_network = pods::is_host_network(spec);
    let tolerations = spec.tolerations.get_or_insert_default();
    let all = [
        ("not-ready", NO_EXECUTE),
        ("unreachable", NO_EXECUTE),
        ("disk-pressure", NO_SCHEDULE),
        ("memory-pressure", NO_SCHEDULE),
        ("pid-pressure", NO_SCHEDULE),
        ("unschedulable", NO_SCHEDULE),
    ];
    let network = host_network.then_some(("network-unavailable", NO_SCHEDULE));
    for (key, effect) in all.into_iter().chain(network) {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        tolerations.retain(|t| {
            t.key != toleration.key || t.effect != toleration.effect || t.operator.as_deref() == Some("Equal")
        });
        tolerations.push(toleration);
    }
}

/// Binds a pod to a node by affinity: the scheduler still looks whether there is room.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // The terms that were there have chosen this node already.
    let term = NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None };
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The template's generation, which pods carried before there were revisions.
#[must_use]
pub fn template_generation(set: &DaemonSet) -> Option<&str> {
    set.metadata.annotations.as_ref()?.get(GENERATION_ANNOTATION).map(String::as_str)
}

fn target(pod: &PodInfo) -> &str {
    if pod.node.is_empty() { &pod.pinned } else { &pod.node }
}

/// Oldest first, running before pending.
fn sort(pods: &mut [&Arc<PodInfo>]) {
    pods.sort_by(|a, b| {
        let key = |pod: &PodInfo| (pod.node.is_empty(), pod.phase == Phase::Pending, pod.meta.created);
        key(a).cmp(&key(b)).then_with(|| a.meta.name.cmp(&b.meta.name))
    });
}

impl<'a> Daemon<'a> {
    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_available(&self, pod: &PodInfo) -> bool {
        pod.is_available(self.min_ready(), self.now)
    }

    fn is_updated(&self, pod: &PodInfo) -> bool {
        let generation = template_generation(self.set);
        pod.meta.labels.get(REVISION_HASH).is_some_and(|hash| hash == self.hash)
            || generation.is_some() && pod.meta.labels.get(GENERATION_LABEL).map(String::as_str) == generation
    }

    #[must_use]
    pub fn suitability(&self, node: &NodeInfo) -> Suitability {
        let elsewhere =
            self.pod_spec.node_name.as_ref().is_some_and(|n| !n.is_empty() && *n != node.meta.name);
        if elsewhere || !node.is_selected_by(&self.pod_spec) {
            return Suitability::Refuses;
        }
        let tolerations = self.pod_spec.tolerations.as_deref().unwrap_or_default();
        let repels =
            |counts: fn(&str) -> bool| first_untolerated(&node.taints, tolerations, counts).is_some();
        match (repels(|effect| effect == NO_EXECUTE), repels(|effect| effect == NO_SCHEDULE)) {
            (true, _) => Suitability::Refuses,
            (false, true) => Suitability::Keeps,
            (false, false) => Suitability::Runs,
        }
    }

    /// Pods by the nodes they are on or bound for, without those that have ended and are being deleted.
    fn by_node(&self) -> BTreeMap<&'a str, Vec<&'a Arc<PodInfo>>> {
        let mut all: BTreeMap<&str, Vec<&Arc<PodInfo>>> = BTreeMap::new();
        for pod in self.pods {
            if !(pod.meta.deleting && pod.is_terminal()) {
                all.entry(target(pod)).or_default().push(pod);
            }
        }
        all
    }

    /// `(maxSurge, maxUnavailable)` in pods.
    fn allowances(&self, desired: i32) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling =
            strategy.filter(|_| self.is_rolling()).and_then(|strategy| strategy.rolling_update.as_ref());
        let resolve = |value: Option<_>, default: i32| {
            let number =
                value.map_or(default, |value| scaled_value(value, desired, Round::Up).unwrap_or(default));
            usize::try_from(number).unwrap_or(0)
        };
        let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
        let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }

    #[must_use]
    pub fn is_rolling(&self) -> bool {
        let kind = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        kind.is_none_or(|kind| kind == "RollingUpdate")
    }

    /// Brings pods to where they lack and away from where they should not be. `in_backoff` says of which nodes
    /// a failed pod is not to be replaced yet.
    #[must_use]
    pub fn manage(&self, in_backoff: impl Fn(&str) -> bool) -> Changes {
        let mut changes = Changes::default();
        let by_node = self.by_node();
        for node in self.nodes {
            let name = node.meta.name.as_str();
            let pods = by_node.get(name).map(Vec::as_slice).unwrap_or_default();
            let alive = pods.iter().copied().filter(|pod| !pod.meta.deleting);
            match self.suitability(node) {
                Suitability::Runs if pods.is_empty() => changes.create.push(name.to_owned()),
                Suitability::Refuses => changes.delete.extend(alive.map(plainly)),
                suitability => {
                    let (ended, mut running): (Vec<_>, Vec<_>) = alive.partition(|pod| pod.is_terminal());
                    for pod in ended {
                        if pod.phase == Phase::Failed && in_backoff(name) {
                            continue;
                        }
                        changes.delete.push(Removal { pod: pod.clone(), ended: Some(pod.phase) });
                    }
                    sort(&mut running);
                    if !self.surges() {
                        changes.delete.extend(running.into_iter().skip(1).map(plainly));
                    } else {
                        self.manage_surging(name, suitability, &running, &mut changes);
                    }
                }
            }
        }
        let known = |name: &str| self.nodes.iter().any(|node| node.meta.name == name);
        let lost =
            self.pods.iter().filter(|pod| pod.node.is_empty() && !pod.meta.deleting && !known(&pod.pinned));
        changes.delete.extend(lost.map(plainly));
        changes
    }

    fn surges(&self) -> bool {
        self.allowances(100).0 > 0
    }

    /// While it surges a node may have two pods: an old one that is available and a new one that is not yet.
    fn manage_surging(
        &self,
        node: &str,
        suitability: Suitability,
        running: &[&Arc<PodInfo>],
        changes: &mut Changes,
    ) {
        if running.is_empty() && suitability == Suitability::Runs {
            changes.create.push(node.to_owned());
        }
        if running.len() <= 1 {
            return;
        }
        let (mut new, mut old) = (None, None);
        for pod in running {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            match place {
                None => *place = Some(*pod),
                Some(_) => changes.delete.push(plainly(pod)),
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!old.is_ready() || self.is_available(new))
        {
            changes.delete.push(plainly(old));
        }
    }

    /// The one new and the one old pod of a node; `None` if there are more.
    fn pair(&self, pods: &[&'a Arc<PodInfo>]) -> Option<Pair<'a>> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|pod| !pod.meta.deleting) {
            let place = if self.is_updated(pod) { &mut new } else { &mut old };
            if place.replace(*pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// One step of a rolling update.
    #[must_use]
    pub fn roll(&self) -> Changes {
        let mut by_node = self.by_node();
        let mut desired = 0;
        for node in self.nodes.iter().filter(|node| self.suitability(node) == Suitability::Runs) {
            desired += 1;
            by_node.entry(&node.meta.name).or_default();
        }
        let (surge, unavailable) = self.allowances(desired);
        if surge > 0 {
            return self.roll_surging(&by_node, surge, usize::try_from(desired).unwrap_or(0));
        }
        let mut away = 0;
        let (mut replace, mut candidates) = (Vec::new(), Vec::new());
        for pods in by_node.values() {
            match self.pair(pods) {
                Some((None, Some(old))) if !self.is_available(old) => replace.push(old),
                Some((None, Some(old))) => candidates.push(old),
                Some((Some(new), None)) if self.is_available(new) => {}
                _ => away += 1,
            }
        }
        candidates.truncate(unavailable.saturating_sub(away));
        let delete = replace.into_iter().chain(candidates).map(plainly).collect();
        Changes { create: Vec::new(), delete }
    }

    fn roll_surging(
        &self,
        by_node: &BTreeMap<&str, Vec<&'a Arc<PodInfo>>>,
        surge: usize,
        desired: usize,
    ) -> Changes {
        let runs = |name: &str| {
            self.nodes
                .iter()
                .any(|node| node.meta.name == name && self.suitability(node) == Suitability::Runs)
        };
        let (mut surging, mut available) = (0, 0);
        let mut changes = Changes::default();
        let (mut candidates, mut leaving) = (Vec::new(), Vec::new());
        for (name, pods) in by_node {
            let Some((new, old)) = self.pair(pods) else {
                surging += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|pod| self.is_available(pod)));
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (self.is_available(old), runs(name)) {
                    (false, false) => changes.delete.push(plainly(old)),
                    (false, true) => changes.create.push((*name).to_owned()),
                    (true, false) => leaving.push(old),
                    (true, true) => candidates.push((*name).to_owned()),
                },
                (Some(new), Some(old)) if self.is_available(new) => changes.delete.push(plainly(old)),
                (Some(_), Some(_)) => surging += 1,
            }
        }
        // A node that the daemon leaves keeps its pod until enough others are available.
        leaving.truncate(available.saturating_sub(desired));
        changes.delete.extend(leaving.into_iter().map(plainly));
        candidates.truncate(surge.saturating_sub(surging));
        changes.create.extend(candidates);
        changes
    }

    /// The status, and when to look again because a pod becomes available.
    #[must_use]
    pub fn status(&self) -> (DaemonSetStatus, Option<Timestamp>) {
        let old = self.set.status.as_ref();
        let mut status = DaemonSetStatus {
            collision_count: old.and_then(|old| old.collision_count),
            conditions: old.and_then(|old| old.conditions.clone()),
            observed_generation: self.set.metadata.generation,
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        let mut again: Option<Timestamp> = None;
        let mut by_node = self.by_node();
        for node in self.nodes {
            let pods = by_node.entry(&node.meta.name).or_default();
            sort(pods);
            match (self.suitability(node) == Suitability::Runs, pods.first()) {
                (false, None) => {}
                (false, Some(_)) => status.number_misscheduled += 1,
                (true, None) => status.desired_number_scheduled += 1,
                (true, Some(pod)) => {
                    status.desired_number_scheduled += 1;
                    status.current_number_scheduled += 1;
                    status.number_ready += i32::from(pod.is_ready());
                    updated += i32::from(self.is_updated(pod));
                    if self.is_available(pod) {
                        available += 1;
                    } else if let Some(at) = pod.available_at(self.min_ready()) {
                        again = Some(again.map_or(at, |known| known.min(at)));
                    }
                }
            }
        }
        status.updated_number_scheduled = Some(updated);
        status.number_available = Some(available);
        status.number_unavailable = Some(status.desired_number_scheduled - available);
        (status, again)
    }
}

fn plainly(pod: &Arc<PodInfo>) -> Removal {
    Removal { pod: pod.clone(), ended: None }
}

/// Whether two statuses say the same: a count that is left out is zero.
#[must_use]
pub fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let key = |s: &DaemonSetStatus| {
        let optional =
            [s.updated_number_scheduled, s.number_available, s.number_unavailable, s.collision_count];
        (
            [s.desired_number_scheduled, s.current_number_scheduled, s.number_misscheduled, s.number_ready],
            optional.map(|count| count.unwrap_or(0)),
            s.observed_generation,
        )
    };
    key(a) == key(b)
}

#[cfg(test)]
mod tests;

//! The scheduler's picture of the cluster: nodes, and the pods that take room on them.
//!
//! Invariants: a node's totals are always the sum of the pods counted on it; a pod is counted at most
//! once; a pod that was given a node but is not bound yet ("assumed") counts from that moment, so that
//! the next decision sees its room taken. Knows no clock and does no I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::labels::{self, Labels};
use crate::pod::{PodInfo, PodKey, PodState};
use crate::resources::Resources;

/// What scheduling needs of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeFacts {
    pub labels: Labels,
    pub taints: Box<[Taint]>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    /// How many pods the node takes.
    pub allowed_pods: i64,
}

impl NodeFacts {
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        let (allocatable, allowed_pods) = allocatable.map(Resources::of_node).unwrap_or_default();
        Self {
            labels: labels::of(node.metadata.labels.as_ref()),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default().into(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or_default(),
            allocatable,
            allowed_pods,
        }
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        labels::get(&self.labels, key)
    }
}

/// A node with the pods on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub name: Arc<str>,
    pub facts: Arc<NodeFacts>,
    pub pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
}

impl NodeInfo {
    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.pods.push(pod);
    }

    fn remove(&mut self, uid: &str) {
        if let Some(index) = self.pods.iter().position(|p| &*p.uid == uid) {
            self.pods.swap_remove(index);
            // Saturated sums cannot be taken apart again.
            self.requested = Resources::default();
            self.pods.iter().for_each(|pod| self.requested.add(&pod.requests));
        }
    }
}

/// What a change may have made possible, so that waiting pods are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Nothing,
    /// A pod took a node: those that want to be near it may fit now.
    Placed,
    /// Room, a node, or a sibling appeared: pods that did not fit may fit now.
    Retry,
}

/// All nodes, and where each counted pod is.
#[derive(Debug, Default)]
pub struct Cache {
    /// A node that has pods but is not known itself has no facts yet and is never offered.
    nodes: BTreeMap<Arc<str>, Arc<NodeInfo>>,
    known: HashSet<Arc<str>>,
    placed: HashMap<PodKey, (Arc<str>, Arc<PodInfo>)>,
    assumed: HashSet<PodKey>,
}

impl Cache {
    /// The nodes that can be offered to a pod, as they are now. Cheap: nodes are shared until they change.
    pub fn snapshot(&self) -> Vec<Arc<NodeInfo>> {
        self.nodes.values().filter(|node| self.known.contains(&node.name)).cloned().collect()
    }

    pub fn set_node(&mut self, name: &str, facts: Arc<NodeFacts>) -> Change {
        let name = self.intern(name);
        let fresh = self.known.insert(name.clone());
        let node = self.node_mut(&name);
        if !fresh && node.facts == facts {
            // Heartbeats and image lists change nothing that keeps a pod waiting.
            return Change::Nothing;
        }
        node.facts = facts;
        Change::Retry
    }

    /// Pods that must be spread evenly may fit without the node: it may have been the emptiest.
    pub fn remove_node(&mut self, name: &str) -> Change {
        let Some(name) = self.known.take(name) else { return Change::Nothing };
        if self.nodes.get(&name).is_some_and(|node| node.pods.is_empty()) {
            self.nodes.remove(&name);
        }
        Change::Retry
    }

    /// Takes in what was observed of a pod. An observation always replaces an assumption.
    pub fn observe_pod(&mut self, key: &PodKey, state: &PodState) -> Change {
        match state {
            PodState::Assigned { node, pod } => {
                let old = self.placed.get(key).map(|(_, old)| old.clone());
                self.assumed.remove(key);
                self.place(node, pod.clone());
                match old {
                    Some(old) if old.requests != pod.requests || old.labels != pod.labels => Change::Retry,
                    // Pods that are going are not counted when others are spread.
                    Some(old) if old.terminating != pod.terminating => Change::Placed,
                    Some(_) => Change::Nothing,
                    None => Change::Placed,
                }
            }
            // The watch may still be telling of the time before our own binding.
            PodState::Pending(pod) if self.assumed.contains(key) && self.is_same(key, &pod.uid) => {
                Change::Nothing
            }
            PodState::Pending(_) | PodState::Ignored => self.remove_pod(key),
        }
    }

    fn is_same(&self, key: &PodKey, uid: &str) -> bool {
        self.placed.get(key).is_some_and(|(_, placed)| *placed.uid == *uid)
    }

    pub fn remove_pod(&mut self, key: &PodKey) -> Change {
        self.assumed.remove(key);
        let Some((node, pod)) = self.placed.remove(key) else { return Change::Nothing };
        self.node_mut(&node).remove(&pod.uid);
        let orphaned =
            !self.known.contains(&node) && self.nodes.get(&node).is_some_and(|n| n.pods.is_empty());
        if orphaned {
            self.nodes.remove(&node);
        }
        Change::Retry
    }

    /// Whether the pod has a node already, bound or assumed.
    pub fn is_placed(&self, key: &PodKey) -> bool {
        self.placed.contains_key(key)
    }

    /// Counts a pod on the node that it was just given.
    pub fn assume(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.assumed.insert(pod.key.clone());
        let node = self.intern(node);
        self.place(&node, pod);
    }

    /// Takes an assumption back after a failed binding; an observed pod stays, and so does what is assumed of
    /// another pod that took its name in the meantime.
    pub fn forget(&mut self, key: &PodKey, uid: &str) -> Change {
        let assumed = self.assumed.contains(key) && self.is_same(key, uid);
        if assumed { self.remove_pod(key) } else { Change::Nothing }
    }

    fn place(&mut self, node: &Arc<str>, pod: Arc<PodInfo>) {
        if let Some((old_node, old)) = self.placed.remove(&pod.key) {
            self.node_mut(&old_node).remove(&old.uid);
        }
        let node = self.intern(node);
        self.placed.insert(pod.key.clone(), (node.clone(), pod.clone()));
        self.node_mut(&node).add(pod);
    }

    /// One shared text per node name.
    fn intern(&self, name: &str) -> Arc<str> {
        self.nodes.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    fn node_mut(&mut self, name: &Arc<str>) -> &mut NodeInfo {
        let node = self.nodes.entry(name.clone()).or_insert_with(|| {
            Arc::new(NodeInfo {
                name: name.clone(),
                facts: Arc::default(),
                pods: Vec::new(),
                requested: Resources::default(),
            })
        });
        // Copied only while a snapshot still shares it.
        Arc::make_mut(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    fn requested(cache: &Cache, node: &str) -> i64 {
        cache.snapshot().iter().find(|n| &*n.name == node).map(|n| n.requested.milli_cpu).unwrap_or_default()
    }

    fn assigned(node: &str, pod: &Arc<PodInfo>) -> PodState {
        PodState::Assigned { node: node.into(), pod: pod.clone() }
    }

    #[test]
    fn an_assumed_pod_counts_once_and_is_confirmed_or_forgotten() {
        let mut cache = Cache::default();
        assert_eq!(cache.set_node("a", Arc::default()), Change::Retry);
        assert_eq!(cache.set_node("a", Arc::default()), Change::Nothing);
        let pod = Arc::new(pod("p", 100));
        cache.assume("a", pod.clone());
        assert_eq!(requested(&cache, "a"), 100);
        // The watch still tells of the pending pod: the assumption stands.
        cache.observe_pod(&pod.key, &PodState::Pending(pod.clone()));
        assert_eq!(requested(&cache, "a"), 100);
        cache.observe_pod(&pod.key, &assigned("a", &pod));
        assert_eq!(requested(&cache, "a"), 100);
        // Confirmed: a late failure of the binding call takes nothing back.
        assert_eq!(cache.forget(&pod.key, &pod.uid), Change::Nothing);
        assert_eq!(requested(&cache, "a"), 100);
        assert_eq!(cache.observe_pod(&pod.key, &PodState::Ignored), Change::Retry);
        assert_eq!(requested(&cache, "a"), 0);
        cache.assume("a", pod.clone());
        assert_eq!(cache.forget(&pod.key, &pod.uid), Change::Retry);
        assert_eq!(requested(&cache, "a"), 0);
    }

    #[test]
    fn pods_may_come_before_their_node_and_outlive_it() {
        let mut cache = Cache::default();
        let pod = Arc::new(pod("p", 50));
        cache.observe_pod(&pod.key, &assigned("late", &pod));
        assert!(cache.snapshot().is_empty());
        cache.set_node("late", Arc::default());
        assert_eq!(requested(&cache, "late"), 50);
        assert_eq!(cache.remove_node("late"), Change::Retry);
        assert!(cache.snapshot().is_empty());
        cache.set_node("late", Arc::default());
        assert_eq!(requested(&cache, "late"), 50);
    }

    #[test]
    fn pods_that_ask_for_everything_break_no_sums() {
        let mut cache = Cache::default();
        cache.set_node("a", Arc::default());
        let greedy = ["p", "q"].map(|name| Arc::new(pod(name, i64::MAX)));
        for pod in &greedy {
            cache.observe_pod(&pod.key, &assigned("a", pod));
        }
        let modest = Arc::new(pod("r", 5));
        cache.observe_pod(&modest.key, &assigned("a", &modest));
        assert_eq!(requested(&cache, "a"), i64::MAX);
        greedy.iter().for_each(|pod| _ = cache.remove_pod(&pod.key));
        assert_eq!(requested(&cache, "a"), 5);
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let mut cache = Cache::default();
        cache.set_node("a", Arc::default());
        let before = cache.snapshot();
        cache.assume("a", Arc::new(pod("p", 10)));
        assert_eq!(before[0].requested.milli_cpu, 0);
        assert_eq!(requested(&cache, "a"), 10);
    }
}

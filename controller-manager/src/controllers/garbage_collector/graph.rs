//! Who owns whom, and what follows from it. Pure.
//!
//! A node is an object that a watch has shown. An owner that no watch has shown is not in the graph, but its
//! dependents are known under its uid; whether it exists is asked live ([`Decision::LookUp`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub type Uid = Arc<str>;
pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// What the collector keeps of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The number of its resource in the collector's list.
    pub resource: usize,
    pub group: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Uid,
    pub resource_version: Box<str>,
    pub owners: Box<[OwnerReference]>,
    pub deleting: bool,
    pub foreground: bool,
    pub orphan: bool,
}

impl Observed {
    #[must_use]
    pub fn of(metadata: ObjectMeta, resource: usize, group: &Arc<str>, kind: &Arc<str>) -> Self {
        let has = |name: &str| metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            resource,
            group: group.clone(),
            kind: kind.clone(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
            deleting: metadata.deletion_timestamp.is_some(),
            namespace: metadata.namespace.unwrap_or_default().into(),
            name: metadata.name.unwrap_or_default().into(),
            uid: metadata.uid.unwrap_or_default().into(),
            resource_version: metadata.resource_version.unwrap_or_default().into(),
            owners: metadata.owner_references.unwrap_or_default().into(),
        }
    }

    /// It waits for its dependents to go before it goes itself.
    fn awaits_dependents(&self) -> bool {
        self.deleting && self.foreground
    }

    /// Whether a dependent's reference is to this object.
    fn is_named_by(&self, owner: &OwnerReference, dependent: &Self) -> bool {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        *self.name == *owner.name
            && *self.kind == *owner.kind
            && *self.group == *group
            && (self.namespace.is_empty() || self.namespace == dependent.namespace)
    }
}

/// How a deletion goes on to dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What to do about one object.
#[derive(Debug, PartialEq)]
pub enum Decision {
    Nothing,
    /// Whether these owners exist must be asked.
    LookUp(Vec<OwnerReference>),
    /// Some owners are gone or going, others are not: the object stays, without references to the former.
    Detach(Vec<OwnerReference>),
    Delete(Propagation),
    /// Dependents would wait for this object, which waits for them: they must not block it.
    Unblock(Vec<Uid>),
    /// All that it waited for is gone.
    RemoveForeground,
    /// Its dependents' turn.
    Wake(Vec<Uid>),
}

struct Node {
    observed: Option<Arc<Observed>>,
    dependents: HashSet<Uid>,
}

#[derive(Default)]
pub struct Graph {
    nodes: HashMap<Uid, Node>,
}

/// What a change calls for.
#[derive(Debug, Default, PartialEq)]
pub struct Wakes {
    pub examine: Vec<Uid>,
    pub orphan: Vec<Uid>,
}

impl Graph {
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Arc<Observed>> {
        self.nodes.get(uid)?.observed.as_ref()
    }

    /// How many objects are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.values().filter(|node| node.observed.is_some()).count()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn dependents(&self, uid: &str) -> Vec<Arc<Observed>> {
        let dependents = self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents);
        dependents.filter_map(|uid| self.get(uid).cloned()).collect()
    }

    fn unlink(&mut self, dependent: &str, owner: &str) {
        if let Some(node) = self.nodes.get_mut(owner) {
            node.dependents.remove(dependent);
            if node.observed.is_none() && node.dependents.is_empty() {
                self.nodes.remove(owner);
            }
        }
    }

    /// An object is new or has changed.
    pub fn apply(&mut self, new: Arc<Observed>) -> Wakes {
        let uid = new.uid.clone();
        let empty = || Node { observed: None, dependents: HashSet::new() };
        let old = self.nodes.entry(uid.clone()).or_insert_with(empty).observed.replace(new.clone());
        let mut wakes = Wakes::default();
        let owners_before = old.as_ref().map_or(&[][..], |old| &old.owners);
        if owners_before != &*new.owners {
            for owner in owners_before.iter().filter(|old| !new.owners.iter().any(|new| new.uid == old.uid)) {
                self.unlink(&uid, &owner.uid);
                // An owner may have waited for just this one.
                wakes.examine.push(owner.uid.as_str().into());
            }
            for owner in &new.owners {
                let node = self.nodes.entry(owner.uid.as_str().into()).or_insert_with(empty);
                node.dependents.insert(uid.clone());
                if node.observed.as_ref().is_some_and(|owner| owner.awaits_dependents()) {
                    // It may no longer be blocked by this one.
                    wakes.examine.push(owner.uid.as_str().into());
                }
            }
            if !new.owners.is_empty() {
                wakes.examine.push(uid.clone());
            }
        }
        let began = |is: fn(&Observed) -> bool| is(&new) && !old.as_deref().is_some_and(is);
        if began(Observed::awaits_dependents) {
            wakes.examine.push(uid.clone());
            if let Some(node) = self.nodes.get(&uid) {
                wakes.examine.extend(node.dependents.iter().cloned());
            }
            // Owners that wait count it as going now.
            wakes.examine.extend(new.owners.iter().map(|owner| Uid::from(owner.uid.as_str())));
        }
        if began(|observed| observed.deleting && observed.orphan) {
            wakes.orphan.push(uid);
        }
        wakes
    }

    /// An object is gone, or was never there.
    pub fn remove(&mut self, uid: &str) -> Wakes {
        let Some(node) = self.nodes.get_mut(uid) else { return Wakes::default() };
        let old = node.observed.take();
        let mut examine: Vec<Uid> = node.dependents.iter().cloned().collect();
        if node.dependents.is_empty() {
            self.nodes.remove(uid);
        }
        for owner in old.iter().flat_map(|old| old.owners.iter()) {
            self.unlink(uid, &owner.uid);
            if self.get(&owner.uid).is_some_and(|owner| owner.awaits_dependents()) {
                examine.push(owner.uid.as_str().into());
            }
        }
        Wakes { examine, orphan: Vec::new() }
    }

    /// What to do about an object; `exists` says what a live look at an owner gave, if there was one.
    #[must_use]
    pub fn decide(&self, uid: &str, exists: &dyn Fn(&OwnerReference) -> Option<bool>) -> Decision {
        let Some(object) = self.get(uid) else { return Decision::Nothing };
        if object.awaits_dependents() {
            return self.decide_waiting(object);
        }
        if object.deleting || object.owners.is_empty() {
            return Decision::Nothing;
        }
        let (mut solid, mut leaving, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut waiting = false;
        for owner in &object.owners {
            match self.get(&owner.uid).filter(|known| known.is_named_by(owner, object)) {
                Some(known) if known.awaits_dependents() => {
                    waiting = true;
                    leaving.push(owner.clone());
                }
                Some(_) => solid.push(owner.clone()),
                None => match exists(owner) {
                    Some(true) => solid.push(owner.clone()),
                    Some(false) => leaving.push(owner.clone()),
                    None => unknown.push(owner.clone()),
                },
            }
        }
        if !unknown.is_empty() {
            return Decision::LookUp(unknown);
        }
        match (solid.is_empty(), leaving.is_empty()) {
            (_, true) => Decision::Nothing,
            (false, false) => Decision::Detach(leaving),
            (true, false) => self.decide_deletion(object, waiting),
        }
    }

    fn decide_deletion(&self, object: &Observed, waiting: bool) -> Decision {
        let dependents = self.dependents(&object.uid);
        if waiting && !dependents.is_empty() {
            let circle = dependents.iter().any(|dependent| dependent.awaits_dependents());
            let blocks = |dependent: &&Arc<Observed>| {
                dependent.owners.iter().any(|o| *o.uid == *object.uid && o.block_owner_deletion == Some(true))
            };
            let blocking: Vec<Uid> = dependents.iter().filter(blocks).map(|d| d.uid.clone()).collect();
            if circle && !blocking.is_empty() {
                return Decision::Unblock(blocking);
            }
            return Decision::Delete(Propagation::Foreground);
        }
        Decision::Delete(match (object.orphan, object.foreground) {
            (true, _) => Propagation::Orphan,
            (_, true) => Propagation::Foreground,
            _ => Propagation::Background,
        })
    }

    fn decide_waiting(&self, object: &Observed) -> Decision {
        let dependents = self.dependents(&object.uid);
        let blocks = |dependent: &&Arc<Observed>| {
            dependent.owners.iter().any(|o| *o.uid == *object.uid && o.block_owner_deletion == Some(true))
        };
        let blocking: Vec<&Arc<Observed>> = dependents.iter().filter(blocks).collect();
        if blocking.is_empty() {
            return Decision::RemoveForeground;
        }
        let idle = blocking.into_iter().filter(|dependent| !dependent.deleting);
        let wake: Vec<Uid> = idle.map(|dependent| dependent.uid.clone()).collect();
        if wake.is_empty() { Decision::Nothing } else { Decision::Wake(wake) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, block: bool) -> OwnerReference {
        OwnerReference {
            api_version: "apps/v1".into(),
            kind: "K".into(),
            name: uid.into(),
            uid: uid.into(),
            block_owner_deletion: Some(block),
            controller: None,
        }
    }

    fn object(uid: &str, owners: &[OwnerReference], state: &str) -> Arc<Observed> {
        Arc::new(Observed {
            resource: 0,
            group: "apps".into(),
            kind: "K".into(),
            namespace: "ns".into(),
            name: uid.into(),
            uid: uid.into(),
            resource_version: "1".into(),
            owners: owners.into(),
            deleting: state.contains('d'),
            foreground: state.contains('f'),
            orphan: state.contains('o'),
        })
    }

    #[track_caller]
    fn check(objects: &[Arc<Observed>], of: &str, live: Option<bool>, expected: Decision) {
        let mut graph = Graph::default();
        for object in objects {
            graph.apply(object.clone());
        }
        assert_eq!(graph.decide(of, &|_| live), expected);
    }

    #[test]
    fn decisions() {
        let a = |state| object("a", &[], state);
        let b = |state| object("b", &[owner("a", true)], state);
        check(&[a("")], "a", None, Decision::Nothing);
        check(&[a(""), b("")], "b", None, Decision::Nothing);
        check(&[b("")], "b", None, Decision::LookUp(vec![owner("a", true)]));
        check(&[b("")], "b", Some(true), Decision::Nothing);
        check(&[b("")], "b", Some(false), Decision::Delete(Propagation::Background));
        check(&[b("o")], "b", Some(false), Decision::Delete(Propagation::Orphan));
        check(&[b("d")], "b", Some(false), Decision::Nothing);
        // Foreground: the owner waits, its dependent goes.
        check(&[a("df"), b("")], "a", None, Decision::Wake(vec!["b".into()]));
        check(&[a("df"), b("")], "b", None, Decision::Delete(Propagation::Background));
        check(&[a("df"), b("d")], "a", None, Decision::Nothing);
        check(&[a("df")], "a", None, Decision::RemoveForeground);
        check(&[a("df"), object("b", &[owner("a", false)], "")], "a", None, Decision::RemoveForeground);
        let c = object("c", &[owner("b", true)], "");
        check(&[a("df"), b(""), c.clone()], "b", None, Decision::Delete(Propagation::Foreground));
        // A circle.
        let looped = object("a", &[owner("b", true)], "df");
        check(&[looped, b("")], "b", None, Decision::Unblock(vec!["a".into()]));
        // One owner of two is gone.
        let two = object("c", &[owner("a", true), owner("x", true)], "");
        check(&[a(""), two.clone()], "c", Some(false), Decision::Detach(vec![owner("x", true)]));
        check(&[a("df"), two], "c", Some(true), Decision::Detach(vec![owner("a", true)]));
    }

    #[test]
    fn an_owner_of_another_namespace_or_kind_is_none() {
        let mut other = Observed::clone(&object("a", &[], ""));
        other.namespace = "elsewhere".into();
        let b = object("b", &[owner("a", true)], "");
        check(&[Arc::new(other.clone()), b.clone()], "b", None, Decision::LookUp(vec![owner("a", true)]));
        other.namespace = Box::default();
        check(&[Arc::new(other.clone()), b.clone()], "b", None, Decision::Nothing);
        other.kind = "L".into();
        check(&[Arc::new(other), b], "b", None, Decision::LookUp(vec![owner("a", true)]));
    }

    #[test]
    fn wakes() {
        let mut graph = Graph::default();
        let names = |wakes: Wakes| {
            let mut names: Vec<String> = wakes.examine.iter().map(|uid| uid.to_string()).collect();
            names.sort();
            names.dedup();
            (names.join(","), wakes.orphan.len())
        };
        assert_eq!(names(graph.apply(object("a", &[], ""))), (String::new(), 0));
        assert_eq!(names(graph.apply(object("b", &[owner("a", true)], ""))), ("b".into(), 0));
        assert_eq!(names(graph.apply(object("b", &[owner("a", true)], ""))), (String::new(), 0));
        assert_eq!(names(graph.apply(object("a", &[], "df"))), ("a,b".into(), 0));
        assert_eq!(names(graph.remove("b")), ("a".into(), 0));
        assert_eq!(names(graph.apply(object("a", &[], "do"))), (String::new(), 1));
        graph.apply(object("b", &[owner("a", true)], ""));
        assert_eq!(names(graph.remove("a")), ("b".into(), 0));
        assert_eq!(names(graph.apply(object("b", &[], ""))), ("a".into(), 0));
        assert_eq!(graph.len(), 1);
        graph.remove("b");
        assert!(graph.nodes.is_empty());
    }
}

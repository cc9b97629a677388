//! Which objects a node may read because pods bound to it refer to them.
//!
//! Edges: node ← pod ← secret, config map, service account, claim; claim ← volume ← secret;
//! node ← volume attachment, resource slice. Each referenced object counts, per node, the pods that
//! refer to it, so that a question is two look-ups however many pods there are.
//!
//! Invariant: a mirror pod, which a node writes itself, opens nothing.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::observed::{Event, Resource};
use crate::pod_references::{claims, config_maps, is_mirror, resource_claims, secrets};
use crate::state::{Namespaced, key, text};

/// What pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Referenced {
    Secret,
    ConfigMap,
    ServiceAccount,
    Claim,
    ResourceClaim,
}

const KINDS: usize = 5;

#[derive(Debug, PartialEq, Eq)]
struct Pod {
    node: Box<str>,
    /// Sorted, without duplicates.
    references: Vec<(Referenced, Box<str>)>,
}

#[derive(Debug)]
struct Volume {
    claim: (Box<str>, Box<str>),
    secrets: Vec<(Box<str>, Box<str>)>,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    pods: Namespaced<Pod>,
    /// By kind: object → node → number of pods.
    readers: [Namespaced<HashMap<Box<str>, u32>>; KINDS],
    volumes: HashMap<Box<str>, Volume>,
    /// Secret → the volumes that need it.
    volume_secrets: Namespaced<HashSet<Box<str>>>,
    attachments: HashMap<Box<str>, Box<str>>,
    slices: HashMap<Box<str>, Box<str>>,
}

impl Graph {
    pub(super) fn pod_is_on(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.pods.get(namespace, name).is_some_and(|pod| *pod.node == *node)
    }

    pub(super) fn reads(&self, node: &str, kind: Referenced, namespace: &str, name: &str) -> bool {
        let direct =
            self.readers[kind as usize].get(namespace, name).is_some_and(|nodes| nodes.contains_key(node));
        direct
            || (kind == Referenced::Secret
                && self
                    .volume_secrets
                    .get(namespace, name)
                    .is_some_and(|volumes| volumes.iter().any(|volume| self.mounts(node, volume))))
    }

    /// Whether a pod of the node claims the volume.
    pub(super) fn mounts(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|volume| {
            let (namespace, name) = &volume.claim;
            self.readers[Referenced::Claim as usize]
                .get(namespace, name)
                .is_some_and(|nodes| nodes.contains_key(node))
        })
    }

    pub(super) fn attachment_is_on(&self, node: &str, attachment: &str) -> bool {
        self.attachments.get(attachment).is_some_and(|own| **own == *node)
    }

    pub(super) fn slice_is_on(&self, node: &str, slice: &str) -> bool {
        self.slices.get(slice).is_some_and(|own| **own == *node)
    }

    pub(super) fn observe(&mut self, resource: Resource, event: Event<'_>) {
        match (resource, event) {
            (Resource::Pods, Event::Upsert(object)) => self.set_pod(object),
            (Resource::Pods, Event::Delete { namespace, name }) => self.remove_pod(namespace, name),
            (Resource::PersistentVolumes, Event::Upsert(object)) => self.set_volume(object),
            (Resource::PersistentVolumes, Event::Delete { name, .. }) => self.remove_volume(name),
            (Resource::VolumeAttachments, Event::Upsert(object)) => {
                set_node(&mut self.attachments, object);
            }
            (Resource::VolumeAttachments, Event::Delete { name, .. }) => drop(self.attachments.remove(name)),
            (Resource::ResourceSlices, Event::Upsert(object)) => set_node(&mut self.slices, object),
            (Resource::ResourceSlices, Event::Delete { name, .. }) => drop(self.slices.remove(name)),
            _ => {}
        }
    }

    fn set_pod(&mut self, object: &Value) {
        let node = text(&object["spec"]["nodeName"]);
        let (namespace, name) = key(object);
        if node.is_empty() {
            self.remove_pod(namespace, name);
            return;
        }
        let pod = Pod { node: node.into(), references: references(object) };
        // Most changes of pods are of their status.
        if self.pods.get(namespace, name) == Some(&pod) {
            return;
        }
        self.remove_pod(namespace, name);
        for (kind, referenced) in &pod.references {
            *self.readers[*kind as usize]
                .entry(namespace, referenced)
                .entry(pod.node.clone())
                .or_default() += 1;
        }
        self.pods.insert(namespace, name, pod);
    }

    fn remove_pod(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.pods.remove(namespace, name) else { return };
        for (kind, referenced) in &pod.references {
            let readers = &mut self.readers[*kind as usize];
            let Some(nodes) = readers.get_mut(namespace, referenced) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                readers.remove(namespace, referenced);
            }
        }
    }

    fn set_volume(&mut self, object: &Value) {
        let (_, name) = key(object);
        self.remove_volume(name);
        let claim = &object["spec"]["claimRef"];
        let (claim_namespace, claim_name) = (text(&claim["namespace"]), text(&claim["name"]));
        if claim_name.is_empty() {
            return;
        }
        let secrets = volume_secrets(&object["spec"], claim_namespace);
        for (namespace, secret) in &secrets {
            self.volume_secrets.entry(namespace, secret).insert(name.into());
        }
        let claim = (claim_namespace.into(), claim_name.into());
        self.volumes.insert(name.into(), Volume { claim, secrets });
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else { return };
        for (namespace, secret) in &volume.secrets {
            if let Some(volumes) = self.volume_secrets.get_mut(namespace, secret) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.volume_secrets.remove(namespace, secret);
                }
            }
        }
    }
}

fn set_node(nodes: &mut HashMap<Box<str>, Box<str>>, object: &Value) {
    let (_, name) = key(object);
    match text(&object["spec"]["nodeName"]) {
        "" => drop(nodes.remove(name)),
        node => drop(nodes.insert(name.into(), node.into())),
    }
}

fn references(pod: &Value) -> Vec<(Referenced, Box<str>)> {
    let mut found = Vec::new();
    if is_mirror(pod) {
        return found;
    }
    let account = text(&pod["spec"]["serviceAccountName"]);
    if !account.is_empty() {
        found.push((Referenced::ServiceAccount, account.into()));
    }
    secrets(pod, |name| found.push((Referenced::Secret, name.into())));
    config_maps(pod, |name| found.push((Referenced::ConfigMap, name.into())));
    found.extend(claims(pod).map(|name| (Referenced::Claim, name.into())));
    found.extend(resource_claims(pod).map(|name| (Referenced::ResourceClaim, name.into())));
    found.sort_unstable();
    found.dedup();
    found
}

/// The secrets of a volume that its kubelet needs, by namespace and name.
fn volume_secrets(spec: &Value, claim_namespace: &str) -> Vec<(Box<str>, Box<str>)> {
    let mut references = Vec::new();
    for driver in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
        references.push(&spec[driver]["secretRef"]);
    }
    for field in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        references.push(&spec["csi"][field]);
    }
    let mut secrets: Vec<(Box<str>, Box<str>)> = references
        .into_iter()
        .filter_map(|reference| {
            let name = reference["name"].as_str().filter(|name| !name.is_empty())?;
            let namespace = text(&reference["namespace"]);
            let namespace = if namespace.is_empty() { claim_namespace } else { namespace };
            Some((namespace.into(), name.into()))
        })
        .collect();
    if let Some(name) = spec["azureFile"]["secretName"].as_str() {
        let namespace = spec["azureFile"]["secretNamespace"].as_str().unwrap_or(claim_namespace);
        secrets.push((namespace.into(), name.into()));
    }
    secrets
}

//! Claims, persistent volumes and storage classes, as far as they decide where a pod can run.
//!
//! Holds what was last observed, no more: that a volume was just given to a claim is known here once the API server
//! says so; until then a second claim for it fails at the API server, by the volume's version.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelector, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_objects::labels::Selector;
use keelson_objects::owners;
use keelson_objects::quantity::Quantity;

use crate::labels::{self, Labels};

/// On a claim whose binding is complete; before, its volume may still be denied to it.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim for which a volume is to be made that the named node can use.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Where classes were named before there was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// The provisioner of classes whose volumes are made by people.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What a claim asks of a volume, and a volume offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Storage {
    pub class: Box<str>,
    pub attributes_class: Box<str>,
    pub size: Quantity,
    pub access_modes: Box<[Box<str>]>,
    /// A block device, not a file system.
    pub block: bool,
}

impl Storage {
    fn new(
        metadata: &ObjectMeta,
        class: Option<&String>,
        attributes_class: Option<&String>,
        amounts: Option<&BTreeMap<String, ApiQuantity>>,
        access_modes: Option<&Vec<String>>,
        mode: Option<&String>,
    ) -> Self {
        let text = |text: Option<&String>| text.map(String::as_str).unwrap_or_default().into();
        let annotated = metadata.annotations.as_ref().and_then(|annotations| annotations.get(CLASS));
        // The API server takes no claim or volume whose size it cannot read.
        let size = amounts.and_then(|amounts| Quantity::from_api(amounts.get("storage")?).ok());
        Self {
            class: text(annotated.or(class)),
            attributes_class: text(attributes_class),
            size: size.unwrap_or(Quantity::ZERO),
            access_modes: access_modes.into_iter().flatten().map(|mode| mode.as_str().into()).collect(),
            block: mode.is_some_and(|mode| mode == "Block"),
        }
    }
}

/// How far a claim is on its way to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Unbound,
    /// Asks for this volume, which is not its own yet.
    Prebound,
    Bound {
        volume: Box<str>,
    },
    /// Its volume is gone.
    Lost {
        volume: Box<str>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClaimInfo {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
    pub resource_version: Box<str>,
    pub standing: Standing,
    pub wanted: Storage,
    pub selector: Option<Selector>,
    pub selected_node: Option<Box<str>>,
    /// Uid of the pod that it was made for, or whatever else controls it.
    pub controller: Option<Box<str>>,
    pub deleting: bool,
}

impl ClaimInfo {
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let metadata = &claim.metadata;
        let spec = claim.spec.as_ref();
        let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key));
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let volume = spec.and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
        let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
        let selector = spec.and_then(|spec| spec.selector.as_ref());
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            resource_version: metadata.resource_version.as_deref().unwrap_or_default().into(),
            standing: match volume {
                volume if phase == Some("Lost") => {
                    Standing::Lost { volume: volume.unwrap_or_default().into() }
                }
                None => Standing::Unbound,
                Some(volume) if annotation(BIND_COMPLETED).is_some() => {
                    Standing::Bound { volume: volume.into() }
                }
                Some(_) => Standing::Prebound,
            },
            wanted: Storage::new(
                metadata,
                spec.and_then(|spec| spec.storage_class_name.as_ref()),
                spec.and_then(|spec| spec.volume_attributes_class_name.as_ref()),
                requests,
                spec.and_then(|spec| spec.access_modes.as_ref()),
                spec.and_then(|spec| spec.volume_mode.as_ref()),
            ),
            selector: selector.map(|selector| {
                Selector::from_label_selector(Some(selector)).unwrap_or_else(|_| Selector::nothing())
            }),
            selected_node: annotation(SELECTED_NODE).map(|node| node.as_str().into()),
            controller: owners::controller_of(metadata).map(|owner| owner.uid.as_str().into()),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// Which claim a volume is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRef {
    pub namespace: Box<str>,
    pub name: Box<str>,
    /// Empty where a person has set the volume aside for a claim that is yet to be made.
    pub uid: Box<str>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct VolumeInfo {
    pub name: Box<str>,
    pub resource_version: Box<str>,
    pub labels: Labels,
    pub offered: Storage,
    /// The nodes that can use it; none: all of them.
    pub nodes: Option<NodeSelector>,
    pub claim: Option<ClaimRef>,
    pub available: bool,
    pub deleting: bool,
}

impl VolumeInfo {
    pub fn of(volume: &PersistentVolume) -> Self {
        let metadata = &volume.metadata;
        let spec = volume.spec.as_ref();
        let text = |text: Option<&String>| text.map(String::as_str).unwrap_or_default().into();
        let claim = spec.and_then(|spec| spec.claim_ref.as_ref());
        Self {
            name: text(metadata.name.as_ref()),
            resource_version: text(metadata.resource_version.as_ref()),
            labels: labels::of(metadata.labels.as_ref()),
            offered: Storage::new(
                metadata,
                spec.and_then(|spec| spec.storage_class_name.as_ref()),
                spec.and_then(|spec| spec.volume_attributes_class_name.as_ref()),
                spec.and_then(|spec| spec.capacity.as_ref()),
                spec.and_then(|spec| spec.access_modes.as_ref()),
                spec.and_then(|spec| spec.volume_mode.as_ref()),
            ),
            nodes: spec.and_then(|spec| spec.node_affinity.as_ref()?.required.clone()),
            claim: claim.map(|claim| ClaimRef {
                namespace: text(claim.namespace.as_ref()),
                name: text(claim.name.as_ref()),
                uid: text(claim.uid.as_ref()),
            }),
            available: volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available"),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }

    /// Whether it is the claim's, or set aside for it.
    pub fn is_for(&self, claim: &ClaimInfo) -> bool {
        self.claim.as_ref().is_some_and(|of| {
            of.name == claim.name
                && of.namespace == claim.namespace
                && (of.uid.is_empty() || of.uid == claim.uid)
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClassInfo {
    pub name: Box<str>,
    /// Claims of it are bound only once a pod that uses them has a node in view.
    pub waits_for_consumer: bool,
    /// Whether something makes volumes of it.
    pub provisions: bool,
    pub topologies: Box<[TopologySelectorTerm]>,
}

impl ClassInfo {
    pub fn of(class: &StorageClass) -> Self {
        Self {
            name: class.metadata.name.as_deref().unwrap_or_default().into(),
            waits_for_consumer: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisions: !matches!(class.provisioner.as_str(), "" | NO_PROVISIONER),
            topologies: class.allowed_topologies.clone().unwrap_or_default().into(),
        }
    }
}

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<Box<str>, HashMap<Box<str>, Arc<ClaimInfo>>>,
    volumes: BTreeMap<Box<str>, Arc<VolumeInfo>>,
    classes: HashMap<Box<str>, Arc<ClassInfo>>,
}

impl Volumes {
    pub fn set_claim(&mut self, claim: Arc<ClaimInfo>) {
        self.claims.entry(claim.namespace.clone()).or_default().insert(claim.name.clone(), claim);
    }

    pub fn remove_claim(&mut self, namespace: &str, name: &str) {
        if let Some(claims) = self.claims.get_mut(namespace) {
            claims.remove(name);
            if claims.is_empty() {
                self.claims.remove(namespace);
            }
        }
    }

    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ClaimInfo>> {
        self.claims.get(namespace)?.get(name)
    }

    pub fn set_volume(&mut self, volume: Arc<VolumeInfo>) {
        self.volumes.insert(volume.name.clone(), volume);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn volume(&self, name: &str) -> Option<&VolumeInfo> {
        self.volumes.get(name).map(|volume| &**volume)
    }

    /// In the order of their names.
    pub fn of_class<'a>(&'a self, class: &str) -> impl Iterator<Item = &'a Arc<VolumeInfo>> {
        self.volumes.values().filter(move |volume| *volume.offered.class == *class)
    }

    pub fn set_class(&mut self, class: Arc<ClassInfo>) {
        self.classes.insert(class.name.clone(), class);
    }

    pub fn remove_class(&mut self, name: &str) {
        self.classes.remove(name);
    }

    pub fn class(&self, name: &str) -> Option<&ClassInfo> {
        self.classes.get(name).map(|class| &**class)
    }
}

//! What controllers keep of an object's metadata, and objects kept as compact JSON.
//!
//! A decoded workload takes tens of kilobytes of heap, its JSON a few; it is decoded when work on it begins.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_objects::owners;
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Namespace and name; the key of every work queue. The namespace is empty for cluster-scoped kinds.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The owner that is marked as controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
    pub uid: Box<str>,
}

impl Controller {
    fn of(owner: &OwnerReference) -> Self {
        Self {
            api_version: owner.api_version.as_str().into(),
            kind: owner.kind.as_str().into(),
            name: owner.name.as_str().into(),
            uid: owner.uid.as_str().into(),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Meta {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub labels: BTreeMap<String, String>,
    pub controller: Option<Controller>,
    pub created: Timestamp,
    pub deleting: bool,
}

impl Meta {
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            controller: owners::controller_of(metadata).map(Controller::of),
            created: metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }

    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }

    #[must_use]
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller.as_ref().is_some_and(|controller| &*controller.uid == uid)
    }

    /// The controller's key, if the controller is of this kind.
    #[must_use]
    pub fn controller_key(&self, kind: &str) -> Option<ObjectKey> {
        let controller = self.controller.as_ref().filter(|controller| &*controller.kind == kind)?;
        Some(ObjectKey::new(&self.namespace, &controller.name))
    }
}

/// What has metadata that controllers look at.
pub trait HasMeta {
    fn meta(&self) -> &Meta;
}

/// An object of a kind that is decoded only when it is worked on.
pub struct Compact<K> {
    pub meta: Meta,
    json: Box<[u8]>,
    kind: PhantomData<fn() -> K>,
}

impl<K> HasMeta for Compact<K> {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl<K: Resource + Serialize + DeserializeOwned> Compact<K> {
    /// Who last managed which field is of no use here; the server keeps it when a write leaves it out.
    #[must_use]
    pub fn of(mut object: K) -> Self {
        object.meta_mut().managed_fields = None;
        let meta = Meta::of(object.meta());
        // API types always serialize: their maps have string keys.
        let json = serde_json::to_vec(&object).unwrap_or_default().into_boxed_slice();
        Self { meta, json, kind: PhantomData }
    }

    /// The whole object.
    #[must_use]
    pub fn object(&self) -> K {
        #[expect(clippy::expect_used, reason = "the bytes are what serializing a K gave in `of`")]
        serde_json::from_slice(&self.json).expect("a serialized API object decodes")
    }
}

/// The indexes that every cache of objects with controllers has.
pub const BY_CONTROLLER: &str = "controller";
/// Objects without a controller, by namespace.
pub const ORPHANS: &str = "orphans";

/// The keys of [`BY_CONTROLLER`] and [`ORPHANS`].
#[must_use]
pub fn ownership_indexers<P: HasMeta>() -> keelson_client::cache::Indexers<P> {
    vec![
        (
            BY_CONTROLLER,
            Box::new(|object: &P| {
                object.meta().controller.iter().map(|controller| controller.uid.to_string()).collect()
            }),
        ),
        (
            ORPHANS,
            Box::new(|object: &P| match object.meta().controller {
                None => vec![object.meta().namespace.clone()],
                Some(_) => Vec::new(),
            }),
        ),
    ]
}

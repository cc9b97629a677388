//! One object as the cache keeps it: finished JSON and the little metadata that reads select by.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

/// Namespace and name. The namespace of cluster-scoped objects is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
}

impl<'a> Key<'a> {
    pub fn new(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name }
    }

    pub fn cluster(name: &'a str) -> Self {
        Self { namespace: "", name }
    }
}

/// `kind` and `apiVersion`, shared by all objects that were stored with them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

/// An immutable object at one version. Shared as `Arc<Object>`; watchers and lists never copy the body.
#[derive(Debug)]
pub struct Object {
    pub(crate) key: Box<str>,
    pub(crate) namespace_length: u32,
    pub(crate) version_offset: u32,
    pub(crate) resource_version: u64,
    pub(crate) type_meta: Arc<TypeMeta>,
    pub(crate) uid: Box<str>,
    pub(crate) labels: Box<[(Box<str>, Box<str>)]>,
    pub(crate) fields: Box<[(Cow<'static, str>, Box<str>)]>,
    pub(crate) body: Bytes,
}

impl Object {
    pub fn name(&self) -> &str {
        todo!()
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        todo!()
    }

    pub fn key(&self) -> Key<'_> {
        Key { namespace: self.namespace(), name: self.name() }
    }

    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub fn resource_version(&self) -> u64 {
        self.resource_version
    }

    /// The type under which the object is stored.
    pub fn type_meta(&self) -> &Arc<TypeMeta> {
        &self.type_meta
    }

    /// Labels sorted by name.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(name, value)| (&**name, &**value))
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(label, _)| (**label).cmp(name)).ok()?;
        Some(&self.labels[at].1)
    }

    /// A selectable field: `metadata.name`, `metadata.namespace`, or one that the resource's
    /// configuration extracts. `None`: the resource has no such selectable field.
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.fields.iter().find(|(field, _)| field == path).map(|(_, value)| &**value),
        }
    }

    /// The finished JSON object without `kind` and `apiVersion`, with `metadata.resourceVersion`. It
    /// begins with `{"metadata":{`, so that `{"kind":…,"apiVersion":…,` followed by `body()[1..]` is the
    /// full object, and the body itself is an item of a built-in list.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Decodes the full object, `kind` and `apiVersion` first. Costs a parse: not for hot paths.
    pub fn value(&self) -> Value {
        todo!()
    }
}

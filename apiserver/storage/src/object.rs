//! One object as the cache keeps it: finished JSON and the little metadata that reads select by.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::error::Error;

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

    /// The path below the resource's prefix. Refuses what would lead to another object's key.
    pub(crate) fn path(self, namespaced: bool) -> Result<String, Error> {
        let valid =
            |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['/', '\0']);
        match (namespaced, self.namespace) {
            (true, namespace) if valid(namespace) && valid(self.name) => {
                Ok(format!("{namespace}/{}", self.name))
            }
            (false, "") if valid(self.name) => Ok(self.name.to_owned()),
            _ => Err(Error::InvalidKey(format!("{}/{}", self.namespace, self.name))),
        }
    }
}

/// `kind` and `apiVersion`, shared by all objects that were stored with them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

/// An immutable object at one version. Shared as `Arc<Object>`; watchers and lists never copy the body.
#[derive(Clone, Debug)]
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
        match self.namespace_length as usize {
            0 => &self.key,
            length => &self.key[length + 1..],
        }
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        &self.key[..self.namespace_length as usize]
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
        let mut members = Map::new();
        members.insert("kind".into(), self.type_meta.kind.as_str().into());
        members.insert("apiVersion".into(), self.type_meta.api_version.as_str().into());
        // The body was rendered by the codec from a parsed object, so it always parses again.
        if let Ok(Value::Object(body)) = serde_json::from_slice(&self.body) {
            members.extend(body);
        }
        Value::Object(members)
    }

    /// The same content at another version: what a DELETED event shows.
    pub(crate) fn at_version(&self, version: u64) -> Self {
        let start = self.version_offset as usize;
        let end = start + digits(self.resource_version);
        let text = version.to_string();
        let mut body = Vec::with_capacity(self.body.len() - (end - start) + text.len());
        body.extend_from_slice(&self.body[..start]);
        body.extend_from_slice(text.as_bytes());
        body.extend_from_slice(&self.body[end..]);
        Self { resource_version: version, body: body.into(), ..self.clone() }
    }

    /// Heap bytes, about: what the event window accounts for.
    pub(crate) fn weight(&self) -> usize {
        self.body.len()
            + self.key.len()
            + std::mem::size_of::<Self>()
            + 64 * (self.labels.len() + self.fields.len())
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// A place in a set of objects ordered by key, as lists are.
#[derive(Clone, Debug)]
pub(crate) struct ByKey(pub(crate) Arc<Object>);

impl Borrow<str> for ByKey {
    fn borrow(&self) -> &str {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

//! The table of what is served: each kind of the registry bound to its storage and its schema.
//!
//! Built once at startup; look-ups take a group, a version and a plural from the URL.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use keelson_registry::Kind;
use keelson_schema::types::{Schemas, TypeRef};
use keelson_storage::{Key, Object, Resource, ResourceConfig, Storage, TypeMeta};
use serde_json::Value;

use crate::{request::ResourcePath, status::Qualified};

/// One served kind.
#[derive(Clone)]
pub struct Served {
    pub kind: &'static Kind,
    pub ty: TypeRef<'static>,
    /// None: never stored (reviews).
    pub resource: Option<Arc<Resource>>,
    /// `{"kind":…,"apiVersion":…,` of its objects.
    pub prefix: Arc<str>,
}

impl Served {
    /// As messages name the resource.
    pub fn qualified(&self) -> Qualified<'static> {
        Qualified { group: &self.kind.resource.group, name: &self.kind.resource.plural }
    }

    /// As messages name the kind.
    pub fn qualified_kind(&self) -> Qualified<'static> {
        Qualified { group: &self.kind.resource.group, name: &self.kind.resource.kind }
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.resource.group == group && self.kind.resource.plural == plural
    }

    /// The key of an object; cluster-scoped kinds ignore the namespace (a Namespace's request carries one).
    pub fn key<'a>(&self, namespace: &'a str, name: &'a str) -> Key<'a> {
        if self.kind.resource.namespaced { Key::new(namespace, name) } else { Key::cluster(name) }
    }

    /// The decoded object in the served version.
    pub fn value(&self, object: &Object) -> Value {
        let mut value = object.value();
        if let Some(conversion) = &self.kind.conversion {
            (conversion.from_storage)(&mut value);
        }
        value
    }
}

/// All served kinds.
pub struct Table {
    by_plural: HashMap<&'static str, Vec<Served>>,
    kinds: Vec<&'static Kind>,
}

/// A kind of the registry that has no schema: a defect of the build, found at startup.
#[derive(Debug, thiserror::Error)]
#[error("no schema for {0}")]
pub struct NoSchema(String);

impl Table {
    /// Binds every kind that `enabled` keeps.
    pub fn new(storage: &Storage, enabled: impl Fn(&Kind) -> bool) -> Result<Self, NoSchema> {
        let schemas = Schemas::builtin();
        let mut by_plural: HashMap<&'static str, Vec<Served>> = HashMap::new();
        let mut kinds = Vec::new();
        for kind in keelson_registry::kinds() {
            let gvk = kind.resource.gvk();
            if !enabled(kind) {
                continue;
            }
            let ty =
                schemas.of(&gvk.group, &gvk.version, &gvk.kind).ok_or_else(|| NoSchema(gvk.to_string()))?;
            let resource = kind.storage_prefix.map(|prefix| storage.resource(resource_config(kind, prefix)));
            let served = Served {
                kind,
                ty,
                resource,
                prefix: crate::encoding::prefix(&gvk.kind, &gvk.api_version()).into(),
            };
            by_plural.entry(kind.resource.plural.as_ref()).or_default().push(served);
            kinds.push(kind);
        }
        Ok(Table { by_plural, kinds })
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Served> {
        self.by_plural
            .get(plural)?
            .iter()
            .find(|served| served.kind.resource.group == group && served.kind.resource.version == version)
    }

    /// Whether a path names a resource, and a subresource if any, that exists.
    pub fn serves(&self, path: &ResourcePath) -> bool {
        self.find(&path.group, &path.version, &path.resource).is_some_and(|served| {
            path.subresource.is_empty() || served.kind.resource.subresource(&path.subresource).is_some()
        })
    }

    /// Any version of a resource.
    pub fn find_any(&self, group: &str, plural: &str) -> Option<&Served> {
        self.by_plural.get(plural)?.iter().find(|served| served.kind.resource.group == group)
    }

    pub fn kinds(&self) -> &[&'static Kind] {
        &self.kinds
    }

    pub fn all(&self) -> impl Iterator<Item = &Served> {
        self.by_plural.values().flatten()
    }
}

/// The kind under which a kind's objects are stored: two kinds may share one storage, and one of them converts.
pub fn stored(kind: &'static Kind) -> &'static Kind {
    keelson_registry::kinds()
        .iter()
        .find(|other| other.storage_prefix == kind.storage_prefix && other.conversion.is_none())
        .unwrap_or(kind)
}

fn resource_config(kind: &'static Kind, prefix: &'static str) -> ResourceConfig {
    let stored = stored(kind);
    let resource = &stored.resource;
    let name = Qualified { group: &resource.group, name: &resource.plural }.to_string();
    ResourceConfig {
        prefix: prefix.to_string(),
        name,
        type_meta: TypeMeta {
            api_version: resource.api_version().into_owned(),
            kind: resource.kind.to_string(),
        },
        namespaced: resource.namespaced,
        fields: (!stored.selectable.is_empty()).then(|| {
            let fields = move |value: &Value| {
                stored
                    .selectable_fields(value)
                    .into_iter()
                    .map(|(name, value)| (Cow::Borrowed(name), value))
                    .collect()
            };
            Arc::new(fields) as keelson_storage::FieldsOf
        }),
    }
}

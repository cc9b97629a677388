//! What a cache holds: projections by namespace and name, and indexes of them. No locks, no I/O.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

/// Gives the keys under which an object is found in one index.
pub type Indexer<P> = Box<dyn Fn(&P) -> Vec<String> + Send + Sync>;
/// Indexes by name.
pub type Indexers<P> = Vec<(&'static str, Indexer<P>)>;

pub(super) struct Entry<P> {
    pub value: Arc<P>,
    pub resource_version: Box<str>,
    /// Nil for what has no uid of the usual form.
    pub uid: Uuid,
}

struct Index<P> {
    name: &'static str,
    keys_of: Indexer<P>,
    entries: HashMap<Box<str>, HashSet<ObjectName>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

pub(super) struct Objects<P> {
    namespaces: HashMap<Arc<str>, HashMap<Arc<str>, Entry<P>>>,
    indexes: Vec<Index<P>>,
}

impl<P> Objects<P> {
    pub fn new(indexers: Indexers<P>) -> Self {
        let index = |(name, keys_of)| Index { name, keys_of, entries: HashMap::new() };
        Self { namespaces: HashMap::new(), indexes: indexers.into_iter().map(index).collect() }
    }

    /// The name of an object, its namespace shared with the others of it.
    pub fn name(&self, namespace: &str, name: &str) -> ObjectName {
        let known = self.namespaces.get_key_value(namespace).map(|(known, _)| known.clone());
        ObjectName { namespace: known.unwrap_or_else(|| namespace.into()), name: name.into() }
    }

    pub fn names(&self) -> impl Iterator<Item = ObjectName> {
        self.namespaces.iter().flat_map(|(namespace, names)| {
            names.keys().map(|name| ObjectName { namespace: namespace.clone(), name: name.clone() })
        })
    }

    pub fn entry(&self, namespace: &str, name: &str) -> Option<&Entry<P>> {
        self.namespaces.get(namespace)?.get(name)
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<P>> {
        self.namespaces.values().flat_map(HashMap::values).map(|entry| &entry.value)
    }

    pub fn values_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<P>> {
        let names = self.namespaces.get(namespace);
        names.into_iter().flat_map(HashMap::values).map(|entry| &entry.value)
    }

    /// What is found under a key of an index.
    pub fn indexed(&self, index: &str, key: &str) -> impl Iterator<Item = &Arc<P>> {
        let index = self.indexes.iter().find(|known| known.name == index);
        debug_assert!(index.is_some(), "an index that was never defined");
        let names = index.and_then(|index| index.entries.get(key)).into_iter().flatten();
        names.filter_map(|name| self.entry(&name.namespace, &name.name)).map(|entry| &entry.value)
    }

    pub fn len(&self) -> usize {
        self.namespaces.values().map(HashMap::len).sum()
    }

    /// Gives what was there under that name.
    pub fn insert(&mut self, key: &ObjectName, entry: Entry<P>) -> Option<Arc<P>> {
        let new = entry.value.clone();
        let names = self.namespaces.entry(key.namespace.clone()).or_default();
        let old = names.insert(key.name.clone(), entry).map(|entry| entry.value);
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old, key);
            }
            index.insert(&new, key);
        }
        old
    }

    pub fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<P>> {
        let names = self.namespaces.get_mut(namespace)?;
        let old = names.remove(name)?.value;
        if names.is_empty() {
            self.namespaces.remove(namespace);
        }
        let key = ObjectName { namespace: namespace.into(), name: name.into() };
        for index in &mut self.indexes {
            index.remove(&old, &key);
        }
        Some(old)
    }
}

impl<P> Index<P> {
    fn insert(&mut self, value: &P, key: &ObjectName) {
        for index_key in (self.keys_of)(value) {
            self.entries.entry(index_key.into_boxed_str()).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, value: &P, key: &ObjectName) {
        for index_key in (self.keys_of)(value) {
            if let Some(names) = self.entries.get_mut(index_key.as_str()) {
                names.remove(key);
                if names.is_empty() {
                    self.entries.remove(index_key.as_str());
                }
            }
        }
    }
}

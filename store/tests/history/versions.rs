//! Every version of every key, as the ledger has them.

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_proto::etcd::mvccpb::KeyValue;
use kube_store::mvcc::KeyRange;

use super::Changed;

pub type Keys = BTreeMap<Bytes, KeyValue>;

/// States of the store from a first revision on.
pub struct Versions {
    /// By key: revisions, ascending, with what the key has from there on.
    keys: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    pub first: i64,
}

impl Versions {
    /// Begins with the state at a revision.
    pub fn new(keys: &Keys, revision: i64) -> Self {
        let version = |(key, kv): (&Bytes, &KeyValue)| (key.clone(), vec![(revision, Some(kv.clone()))]);
        Self { keys: keys.iter().map(version).collect(), first: revision }
    }

    pub fn push(&mut self, revision: i64, changes: &[Changed]) {
        for Changed { kv, deleted } in changes {
            let version = if *deleted { None } else { Some(kv.clone()) };
            self.keys.entry(kv.key.clone()).or_default().push((revision, version));
        }
    }

    pub fn at(&self, key: &Bytes, revision: i64) -> Option<&KeyValue> {
        Self::version(self.keys.get(key)?, revision)
    }

    fn version(versions: &[(i64, Option<KeyValue>)], revision: i64) -> Option<&KeyValue> {
        let count = versions.partition_point(|(from, _)| *from <= revision);
        versions.get(count.checked_sub(1)?)?.1.as_ref()
    }

    /// What is in a range, by key.
    pub fn range(&self, range: &KeyRange, revision: i64) -> Vec<&KeyValue> {
        let of = self.keys.iter().filter(|(key, _)| range.contains(key));
        of.filter_map(|(_, versions)| Self::version(versions, revision)).collect()
    }

    pub fn keys(&self, revision: i64) -> Keys {
        let of = |(key, versions): (&Bytes, &Vec<_>)| {
            Some((key.clone(), Self::version(versions, revision)?.clone()))
        };
        self.keys.iter().filter_map(of).collect()
    }
}

//! The transaction of one applied entry: every change in it has the same revision, and readers see all or none.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse};
use keelson_proto::etcd::mvccpb::KeyValue;
use parking_lot::RwLockWriteGuard;

use super::index::{Index, KeyRange};
use super::record::{Record, Revision};
use super::{MvccError, Store, range};
use crate::lease::Leases;

/// One change that a transaction made.
#[derive(Debug, Clone)]
pub struct KeyChange {
    pub record: Arc<Record>,
    /// The version before it.
    pub previous: Option<Revision>,
}

pub struct WriteTxn<'a> {
    store: &'a Store,
    index: RwLockWriteGuard<'a, Index>,
    changes: Vec<KeyChange>,
}

impl<'a> WriteTxn<'a> {
    pub(super) fn new(store: &'a Store, index: RwLockWriteGuard<'a, Index>) -> Self {
        Self { store, index, changes: Vec::new() }
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The revision that a read within the transaction sees.
    pub fn revision(&self) -> i64 {
        self.index.revision + i64::from(!self.changes.is_empty())
    }

    fn next(&self) -> Revision {
        // One change takes far more than a byte of a request or of the index, so there are never 2^31 of them.
        Revision { main: self.index.revision + 1, sub: self.changes.len() as u32 }
    }

    pub(super) fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        range::records(&self.index, &self.store.values, range, self.revision())
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        range::range(&self.index, &self.store.values, self.revision(), request)
    }

    fn previous(&self, key: &[u8]) -> Result<Option<Arc<Record>>, MvccError> {
        match self.index.get(key, self.revision()) {
            None => Ok(None),
            Some(at) => Ok(Some(self.store.values.get(at)?.ok_or(MvccError::Compacted)?)),
        }
    }

    /// Refuses a put that keeps something of a version that is not there. After this and [`Self::check_lease`],
    /// [`Self::put`] cannot fail for a reason of the request's.
    pub fn check_previous(&self, request: &PutRequest) -> Result<(), MvccError> {
        if (request.ignore_value || request.ignore_lease)
            && self.index.get(&request.key, self.revision()).is_none()
        {
            return Err(MvccError::KeyNotFound);
        }
        Ok(())
    }

    /// Refuses a put with a lease that is not there.
    pub fn check_lease(&self, request: &PutRequest, leases: &Leases) -> Result<(), MvccError> {
        if request.lease != 0 && !leases.exists(request.lease) {
            return Err(MvccError::LeaseNotFound);
        }
        Ok(())
    }

    /// Puts a key; gives the version before it if the request asks for it.
    pub fn put(&mut self, request: &PutRequest, leases: &mut Leases) -> Result<Option<KeyValue>, MvccError> {
        let needed = request.prev_kv || request.ignore_value || request.ignore_lease;
        let previous = if needed { self.previous(&request.key)? } else { None };
        let (mut value, mut lease) = (request.value.clone(), request.lease);
        if let Some(previous) = &previous {
            if request.ignore_value {
                value = previous.kv.value.clone();
            }
            if request.ignore_lease {
                lease = previous.kv.lease;
            }
        }
        let revision = self.next();
        let placed = self.index.put(&request.key, revision);
        leases.attach(&request.key, lease);
        let kv = KeyValue {
            key: request.key.clone(),
            value,
            create_revision: placed.created,
            mod_revision: revision.main,
            version: placed.version,
            lease,
        };
        self.change(revision, Record { kv, tombstone: false }, placed.previous);
        Ok(previous.filter(|_| request.prev_kv).map(|previous| previous.kv.clone()))
    }

    /// Deletes a range; gives the number of keys and, if asked for, what they were.
    pub fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
        leases: &mut Leases,
    ) -> Result<(i64, Vec<KeyValue>), MvccError> {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let mut keys = Vec::new();
        let from = std::ops::Bound::Included(&range.start[..]);
        self.index.walk(&range, from, self.revision(), usize::MAX, |key, _| {
            keys.push(Bytes::copy_from_slice(key));
        });
        let previous = if request.prev_kv {
            self.records(&range)?.iter().map(|record| record.kv.clone()).collect()
        } else {
            Vec::new()
        };
        let deleted = keys.len() as i64;
        for key in keys {
            self.delete(key, leases);
        }
        Ok((deleted, previous))
    }

    /// Deletes one key, if it is there.
    pub fn delete(&mut self, key: Bytes, leases: &mut Leases) {
        let revision = self.next();
        if let Some(previous) = self.index.delete(&key, revision) {
            leases.attach(&key, 0);
            let kv = KeyValue { key, mod_revision: revision.main, ..KeyValue::default() };
            self.change(revision, Record { kv, tombstone: true }, Some(previous));
        }
    }

    fn change(&mut self, revision: Revision, record: Record, previous: Option<Revision>) {
        let record = Arc::new(record);
        self.store.in_use.fetch_add(record.size(), Ordering::Relaxed);
        self.store.values.put(revision, record.clone(), previous);
        self.changes.push(KeyChange { record, previous });
    }

    /// Ends the transaction: its changes become visible. Returns the store's revision and the changes.
    pub fn commit(mut self) -> (i64, Vec<KeyChange>) {
        if !self.changes.is_empty() {
            self.index.revision += 1;
            self.store.revision.store(self.index.revision, Ordering::Release);
        }
        (self.index.revision, self.changes)
    }

    /// Makes everything below `revision` unreadable; removing it is another's work.
    ///
    /// # Errors
    /// A revision that is compacted already or in the future.
    pub fn compact(&mut self, revision: i64) -> Result<(), MvccError> {
        if revision <= self.index.compacted {
            return Err(MvccError::Compacted);
        }
        if revision > self.index.revision {
            return Err(MvccError::FutureRevision);
        }
        self.index.compacted = revision;
        self.store.compacted.store(revision, Ordering::Release);
        let value = revision.to_be_bytes().to_vec();
        self.store.values.put_metadata(super::COMPACTED_KEY.to_vec(), Some(value));
        Ok(())
    }
}

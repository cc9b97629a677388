//! Reading keys: etcd's Range with all of its options.

use std::cmp::Reverse;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use keelson_proto::etcd::mvccpb::KeyValue;
use parking_lot::RwLockReadGuard;

use super::index::{Index, KeyRange};
use super::record::{Record, Revision};
use super::values::Values;
use super::{MvccError, Store};

/// Keys for which a reader holds the index at a time.
const STEP: usize = 4096;
/// How often a compaction may overtake a reader before it keeps writers, and with them compactions, out.
const ATTEMPTS: usize = 8;

/// One state of the store.
pub struct View<I> {
    index: I,
    values: Arc<Values>,
}

impl<I: Deref<Target = Index>> View<I> {
    pub(super) fn new(index: I, values: Arc<Values>) -> Self {
        Self { index, values }
    }

    pub fn revision(&self) -> i64 {
        self.index.revision
    }

    /// Where a key is as it was at `revision`; none if it was not there, or if that is compacted.
    pub fn find(&self, key: &[u8], revision: i64) -> Option<Revision> {
        (revision >= self.index.compacted).then(|| self.index.get(key, revision)).flatten()
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// # Errors
    /// A revision that is compacted or in the future, and the tree's.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        range(&self.index, &self.values, self.index.revision, request)
    }

    /// The records of a range at the view's revision.
    pub(super) fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        records(&self.index, &self.values, range, self.index.revision)
    }
}

/// Which revision a request reads at.
pub(super) fn resolve(compacted: i64, newest: i64, requested: i64) -> Result<i64, MvccError> {
    match requested {
        ..=0 => Ok(newest),
        revision if revision > newest => Err(MvccError::FutureRevision),
        revision if revision < compacted => Err(MvccError::Compacted),
        revision => Ok(revision),
    }
}

pub(super) fn records(
    index: &Index,
    values: &Values,
    range: &KeyRange,
    revision: i64,
) -> Result<Vec<Arc<Record>>, MvccError> {
    let mut found = Vec::new();
    index.walk(range, Bound::Included(&range.start), revision, usize::MAX, |_, at| found.push(at));
    found.into_iter().map(|at| values.get(at)?.ok_or(MvccError::Compacted)).collect()
}

/// Range within a state that does not change meanwhile.
pub(super) fn range(
    index: &Index,
    values: &Values,
    newest: i64,
    request: &RangeRequest,
) -> Result<RangeResponse, MvccError> {
    let revision = resolve(index.compacted, newest, request.revision)?;
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let mut selection = Selection::new(request);
    index.walk(&range, Bound::Included(&range.start), revision, usize::MAX, |_, at| selection.add(at));
    selection.answer(values, request)
}

impl Store {
    /// A key as it was at `revision`; none if it was not there, or if that is compacted.
    ///
    /// # Errors
    /// The tree's.
    pub fn at(&self, key: &[u8], revision: i64) -> Result<Option<Arc<Record>>, MvccError> {
        // Not read while the index is held.
        let found = self.view().find(key, revision);
        found.map_or(Ok(None), |at| Ok(self.values.get(at)?))
    }

    /// Range at one revision, without holding up writers for long. Returns the answer and the store's revision.
    ///
    /// # Errors
    /// A revision that is compacted or in the future, and the tree's.
    pub fn range(&self, request: &RangeRequest) -> Result<(RangeResponse, i64), MvccError> {
        self.at_newest(|past| past.range(request), |view| view.range(request))
    }

    /// Reads at the newest revision without keeping writers out. Whoever asks for the newest state is not told that it is
    /// compacted: when that overtakes the reader, it begins again; in the end with a view, which nothing overtakes.
    pub(super) fn at_newest<T>(
        &self,
        read: impl Fn(&Past<'_>) -> Result<T, MvccError>,
        read_view: impl FnOnce(&View<RwLockReadGuard<'_, Index>>) -> Result<T, MvccError>,
    ) -> Result<(T, i64), MvccError> {
        for _ in 0..ATTEMPTS {
            let newest = self.revision();
            match read(&Past { store: self, newest }) {
                Err(MvccError::Compacted) if self.compacted() > newest => {}
                other => return other.map(|found| (found, newest)),
            }
        }
        let view = self.view();
        Ok((read_view(&view)?, view.revision()))
    }
}

/// The store as it was at a revision, which is compacted at any time; then whatever is read fails with that.
pub(super) struct Past<'s> {
    store: &'s Store,
    pub newest: i64,
}

impl Past<'_> {
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let mut selection = Selection::new(request);
        let revision = resolve(self.store.compacted(), self.newest, request.revision)?;
        self.walk(&range, revision, |at| selection.add(at))?;
        selection.answer(&self.store.values, request)
    }

    /// The records of a range at the newest revision.
    pub fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        let mut found = Vec::new();
        self.walk(range, self.newest, |at| found.push(at))?;
        found.into_iter().map(|at| self.store.values.get(at)?.ok_or(MvccError::Compacted)).collect()
    }

    pub fn check_revision(&self, requested: i64) -> Result<(), MvccError> {
        check_revision(self.store.compacted(), self.newest, requested)
    }

    fn walk(
        &self,
        range: &KeyRange,
        revision: i64,
        mut found: impl FnMut(Revision),
    ) -> Result<(), MvccError> {
        let mut from = Bound::Included(Box::<[u8]>::from(range.start.as_ref()));
        loop {
            let index = self.store.index.read();
            if revision < index.compacted {
                return Err(MvccError::Compacted);
            }
            let bound = from.as_ref().map(Box::as_ref);
            match index.walk(range, bound, revision, STEP, |_, at| found(at)) {
                Some(next) => from = Bound::Excluded(next),
                None => return Ok(()),
            }
        }
    }
}

/// As in etcd, a revision below 0 is compacted within a transaction, while it means the newest outside of one.
pub(super) fn check_revision(compacted: i64, newest: i64, requested: i64) -> Result<(), MvccError> {
    match requested {
        0 => Ok(()),
        revision if revision > newest => Err(MvccError::FutureRevision),
        revision if revision < compacted => Err(MvccError::Compacted),
        _ => Ok(()),
    }
}

/// The revisions that a request asks for, as the index gives them.
struct Selection {
    revisions: Vec<Revision>,
    count: i64,
    keep: usize,
}

impl Selection {
    fn new(request: &RangeRequest) -> Self {
        // As in etcd: without an order but by another target, what is sorted is what the limit left.
        let whole = request.sort_order() != SortOrder::None || is_filtered(request);
        let keep = match usize::try_from(request.limit) {
            _ if request.count_only => 0,
            // One more than asked for tells whether there is more.
            Ok(limit) if limit > 0 && !whole => limit.saturating_add(1),
            _ => usize::MAX,
        };
        Self { revisions: Vec::new(), count: 0, keep }
    }

    fn add(&mut self, revision: Revision) {
        self.count += 1;
        if self.revisions.len() < self.keep {
            self.revisions.push(revision);
        }
    }

    fn answer(self, values: &Values, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
        let mut kvs = Vec::with_capacity(self.revisions.len());
        for revision in self.revisions {
            let record = values.get(revision)?.ok_or(MvccError::Compacted)?;
            let kv = Arc::try_unwrap(record).map_or_else(|shared| shared.kv.clone(), |own| own.kv);
            if passes(request, &kv) {
                kvs.push(kv);
            }
        }
        if is_sorted(request) {
            sort(request, &mut kvs);
        }
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if request.keys_only {
            for kv in &mut kvs {
                kv.value = Bytes::new();
            }
        }
        Ok(RangeResponse { header: None, kvs, more, count: self.count })
    }
}

fn is_filtered(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Whether the request wants another order than by ascending key, in which the index gives keys.
fn is_sorted(request: &RangeRequest) -> bool {
    match request.sort_order() {
        SortOrder::None => request.sort_target() != SortTarget::Key,
        SortOrder::Ascend => request.sort_target() != SortTarget::Key,
        SortOrder::Descend => true,
    }
}

fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let descend = request.sort_order() == SortOrder::Descend;
    fn by<K: Ord>(kvs: &mut [KeyValue], descend: bool, key: impl Fn(&KeyValue) -> K) {
        if descend {
            kvs.sort_by_key(|kv| Reverse(key(kv)));
        } else {
            kvs.sort_by_key(key);
        }
    }
    match request.sort_target() {
        SortTarget::Key => by(kvs, descend, |kv| kv.key.clone()),
        SortTarget::Version => by(kvs, descend, |kv| kv.version),
        SortTarget::Create => by(kvs, descend, |kv| kv.create_revision),
        SortTarget::Mod => by(kvs, descend, |kv| kv.mod_revision),
        SortTarget::Value => by(kvs, descend, |kv| kv.value.clone()),
    }
}

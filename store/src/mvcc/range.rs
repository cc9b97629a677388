//! Reading keys: etcd's Range with all of its options.

use std::cmp::Reverse;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::{RangeRequest, RangeResponse};
use keelson_proto::etcd::mvccpb::KeyValue;

use super::index::{Index, KeyRange};
use super::record::{Record, Revision};
use super::values::Values;
use super::{MvccError, Store};

/// Keys for which a reader holds the index at a time.
const STEP: usize = 4096;

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

    /// A key as it was at `revision`; none if it was not there, or if that is compacted.
    ///
    /// # Errors
    /// The tree's.
    pub fn at(&self, key: &[u8], revision: i64) -> Result<Option<Arc<Record>>, MvccError> {
        if revision < self.index.compacted {
            return Ok(None);
        }
        match self.index.get(key, revision) {
            Some(found) => Ok(self.values.get(found)?),
            None => Ok(None),
        }
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
pub(super) fn resolve(index: &Index, newest: i64, requested: i64) -> Result<i64, MvccError> {
    match requested {
        ..=0 => Ok(newest),
        revision if revision > newest => Err(MvccError::FutureRevision),
        revision if revision < index.compacted => Err(MvccError::Compacted),
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
    let revision = resolve(index, newest, request.revision)?;
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let mut selection = Selection::new(request);
    index.walk(&range, Bound::Included(&range.start), revision, usize::MAX, |_, at| selection.add(at));
    selection.answer(values, request)
}

impl Store {
    /// Range at one revision, without holding up writers for long. Returns the answer and the store's revision.
    ///
    /// # Errors
    /// A revision that is compacted or in the future, and the tree's.
    pub fn range(&self, request: &RangeRequest) -> Result<(RangeResponse, i64), MvccError> {
        match self.range_in_steps(request) {
            // A compaction overtook it. Whoever asks for the newest state is never told so: here nothing overtakes.
            Err(MvccError::Compacted) if request.revision <= 0 => {
                let view = self.view();
                Ok((view.range(request)?, view.revision()))
            }
            other => other,
        }
    }

    fn range_in_steps(&self, request: &RangeRequest) -> Result<(RangeResponse, i64), MvccError> {
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let mut selection = Selection::new(request);
        let mut fixed = None;
        let mut from = Bound::Included(Box::<[u8]>::from(range.start.as_ref()));
        loop {
            let index = self.index.read();
            let (revision, newest) = match fixed {
                Some(fixed) => fixed,
                None => (resolve(&index, index.revision, request.revision)?, index.revision),
            };
            fixed = Some((revision, newest));
            if revision < index.compacted {
                return Err(MvccError::Compacted);
            }
            let bound = from.as_ref().map(Box::as_ref);
            match index.walk(&range, bound, revision, STEP, |_, at| selection.add(at)) {
                Some(next) => from = Bound::Excluded(next),
                None => {
                    drop(index);
                    return Ok((selection.answer(&self.values, request)?, newest));
                }
            }
        }
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

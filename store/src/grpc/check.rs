//! What a request must be, whatever the state is.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::Status;

use super::error::status;
use crate::mvcc::{KeyRange, RangeEnd};

fn key(key: &Bytes) -> Result<(), Status> {
    if key.is_empty() { Err(status::empty_key()) } else { Ok(()) }
}

pub fn range(request: &RangeRequest) -> Result<(), Status> {
    key(&request.key)?;
    let known =
        SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(status::invalid_sort()) }
}

pub fn put(request: &PutRequest) -> Result<(), Status> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(status::value_provided());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(status::lease_provided());
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), Status> {
    key(&request.key)
}

pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), Status> {
    sizes(request, max_ops)?;
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

/// Nested transactions share the budget, which also bounds how deep they nest.
fn sizes(request: &TxnRequest, max_ops: usize) -> Result<(), Status> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let left = max_ops.checked_sub(ops).ok_or_else(status::too_many_ops)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => sizes(request, left)?,
            None => return Err(status::key_not_found()),
        }
    }
    Ok(())
}

/// Keys that are deleted. A request may have tens of thousands of ranges, so they are merged, not searched one by one.
#[derive(Default)]
struct Deleted {
    /// Ranges that do not touch: where each begins, and the key that it ends before, if any.
    apart: BTreeMap<Bytes, Option<Bytes>>,
}

impl Deleted {
    fn add(&mut self, range: KeyRange) {
        let KeyRange { start: mut begin, end } = range;
        let mut end = match end {
            RangeEnd::Single => Some([&begin[..], &[0]].concat().into()),
            RangeEnd::Unbounded => None,
            RangeEnd::Before(end) if end <= begin => return,
            RangeEnd::Before(end) => Some(end),
        };
        // All that begin within it, and the one before them if it reaches as far.
        while let Some((other, reaches)) = match &end {
            Some(end) => self.apart.range::<Bytes, _>(..=end).next_back(),
            None => self.apart.last_key_value(),
        } {
            if reaches.as_ref().is_some_and(|reaches| *reaches < begin) {
                break;
            }
            let (other, reaches) = (other.clone(), reaches.clone());
            self.apart.remove(&other);
            begin = begin.min(other);
            end = end.zip(reaches).map(|(one, other)| one.max(other));
        }
        self.apart.insert(begin, end);
    }

    fn merge(&mut self, mut other: Self) {
        if self.apart.len() < other.apart.len() {
            std::mem::swap(self, &mut other);
        }
        for (start, end) in other.apart {
            self.add(KeyRange { start, end: end.map_or(RangeEnd::Unbounded, RangeEnd::Before) });
        }
    }

    fn contains(&self, key: &Bytes) -> bool {
        let before = self.apart.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| end > key))
    }
}

/// What a list of operations puts and deletes.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Deleted,
}

impl Touched {
    fn put(&mut self, key: Bytes) -> Result<(), Status> {
        if self.deletes.contains(&key) || !self.puts.insert(key) {
            return Err(status::duplicate_key());
        }
        Ok(())
    }
}

/// Refuses a key that is put twice, or put and deleted, by operations that run together.
fn overlaps(ops: &[RequestOp]) -> Result<Touched, Status> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            touched.deletes.add(KeyRange::new(request.key.clone(), request.range_end.clone()));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else { continue };
        let mut success = overlaps(&request.success)?;
        let failure = overlaps(&request.failure)?;
        // Only one of the two branches runs: what both put is put once.
        success.puts.extend(failure.puts);
        if touched.puts.len() < success.puts.len() && touched.deletes.apart.is_empty() {
            std::mem::swap(&mut touched.puts, &mut success.puts);
        }
        for key in success.puts {
            touched.put(key)?;
        }
        // As etcd has it: what this one deletes, later ones may not put, but what earlier ones put, it may delete.
        touched.deletes.merge(success.deletes);
        touched.deletes.merge(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(request)) = &op.request {
            touched.put(request.key.clone())?;
        }
    }
    Ok(touched)
}

/// Whether a transaction may put something, in either branch: then it needs space.
pub fn puts(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => puts(nested),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_ranges_are_merged() {
        let of = |ranges: &[(&'static str, &'static str)]| {
            let mut deleted = Deleted::default();
            for (start, end) in ranges {
                deleted.add(KeyRange::new((*start).into(), (*end).into()));
            }
            deleted
        };
        let check = |ranges: &[(&'static str, &'static str)], apart: usize| {
            let (found, keys) = (of(ranges), ["a", "aa", "b", "c", "d", "e", "f", "z"]);
            assert_eq!(found.apart.len(), apart, "{ranges:?}");
            for key in keys {
                let mut all = ranges.iter().map(|(start, end)| KeyRange::new((*start).into(), (*end).into()));
                let expected = all.any(|range| range.contains(key.as_bytes()));
                assert_eq!(found.contains(&key.into()), expected, "{key} in {ranges:?}");
            }
        };
        check(&[("a", ""), ("c", "")], 2);
        check(&[("a", ""), ("a", "")], 1);
        check(&[("a", "c"), ("c", "e")], 1);
        check(&[("a", "b"), ("d", "e")], 2);
        check(&[("a", "b"), ("d", "e"), ("aa", "d")], 1);
        check(&[("d", "\0"), ("a", "b"), ("e", "f")], 2);
        check(&[("b", "a")], 0);
        check(&[("a", "c"), ("b", "\0")], 1);
    }

    fn put_op(key: &'static str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest { key: key.into(), ..PutRequest::default() })),
        }
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        let request =
            DeleteRangeRequest { key: key.into(), range_end: end.into(), ..DeleteRangeRequest::default() };
        RequestOp { request: Some(Request::RequestDeleteRange(request)) }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { compare: vec![], success, failure })) }
    }

    fn check(success: Vec<RequestOp>, expected: &str) {
        let request = TxnRequest { compare: vec![], success, failure: vec![] };
        let found = txn(&request, 5).map_err(|status| status.message().to_owned()).err().unwrap_or_default();
        assert_eq!(found, expected);
    }

    #[test]
    fn transactions() {
        const DUPLICATE: &str = "etcdserver: duplicate key given in txn request";
        const TOO_MANY: &str = "etcdserver: too many operations in txn request";
        check(vec![put_op("a"), put_op("b")], "");
        check(vec![put_op("a"), put_op("a")], DUPLICATE);
        check(vec![put_op("b"), delete_op("a", "c")], DUPLICATE);
        check(vec![put_op("c"), delete_op("a", "c")], "");
        check(vec![put_op("z"), delete_op("a", "\0")], DUPLICATE);
        check(vec![delete_op("a", "c"), delete_op("b", "d")], "");
        check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])], "");
        check(vec![txn_op(vec![put_op("a")], vec![]), put_op("a")], DUPLICATE);
        check(vec![txn_op(vec![delete_op("a", "")], vec![]), put_op("a")], DUPLICATE);
        check(vec![txn_op(vec![put_op("a")], vec![]), delete_op("a", "")], DUPLICATE);
        let (puts, deletes) = (txn_op(vec![], vec![put_op("a")]), txn_op(vec![delete_op("a", "")], vec![]));
        check(vec![deletes.clone(), puts.clone()], DUPLICATE);
        check(vec![puts, deletes], "");
        check(vec![txn_op(vec![put_op("a")], vec![delete_op("a", "")])], "");
        check(vec![put_op("")], "etcdserver: key is not provided");
        check(vec![RequestOp { request: None }], "etcdserver: key not found");
        check((0..6).map(|_| delete_op("a", "")).collect(), TOO_MANY);
        let mut deep = put_op("a");
        for _ in 0..100 {
            deep = txn_op(vec![deep], vec![]);
        }
        check(vec![deep], TOO_MANY);
    }
}

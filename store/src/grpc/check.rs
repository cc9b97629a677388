//! What a request must be, whatever the state is.

use std::collections::BTreeSet;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::Status;

use super::error::status;
use crate::mvcc::KeyRange;

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

/// What a list of operations puts and deletes.
#[derive(Default)]
struct Touched {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Touched {
    fn put(&mut self, key: Bytes) -> Result<(), Status> {
        if self.deletes.iter().any(|range| range.contains(&key)) || !self.puts.insert(key) {
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
            touched.deletes.push(KeyRange::new(request.key.clone(), request.range_end.clone()));
        }
    }
    let mut nested_deletes = Vec::new();
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else { continue };
        let mut success = overlaps(&request.success)?;
        let failure = overlaps(&request.failure)?;
        // Only one of the two branches runs: what both put is put once.
        success.puts.extend(failure.puts);
        for key in success.puts {
            touched.put(key)?;
        }
        nested_deletes.extend(success.deletes.into_iter().chain(failure.deletes));
    }
    touched.deletes.extend(nested_deletes);
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

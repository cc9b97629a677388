//! The requests of the store's measures: keys as names of objects are, values of 256 bytes.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};

use super::connection::frame;
use super::load::Make;

/// Every key of this benchmark begins with this.
pub const PREFIX: &str = "/keelson-bench/";
pub const VALUE_BYTES: usize = 256;
/// Keys that loads write and read.
pub const KEYS: usize = 10_000;

pub fn key(number: usize) -> Bytes {
    // Spread over the key space, as names of objects are.
    format!("{PREFIX}{:08x}", (number as u32).wrapping_mul(2_654_435_761)).into()
}

/// The end of the range of all keys with a prefix.
pub fn end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

pub fn value() -> Bytes {
    vec![b'v'; VALUE_BYTES].into()
}

pub fn put(key: Bytes) -> PutRequest {
    PutRequest { key, value: value(), ..PutRequest::default() }
}

pub fn everything() -> DeleteRangeRequest {
    DeleteRangeRequest { key: PREFIX.into(), range_end: end(PREFIX), ..DeleteRangeRequest::default() }
}

/// What an API server sends for a create: put where the key has no revision.
fn create(number: usize) -> TxnRequest {
    let key: Bytes = format!("{PREFIX}txn/{number:08}").into();
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put(key.clone()))) }],
        failure: vec![RequestOp {
            request: Some(request_op::Request::RequestRange(RangeRequest { key, ..RangeRequest::default() })),
        }],
    }
}

/// All requests of a load are made before it: encoding would be the client's cost.
fn prepared(requests: impl Iterator<Item = Bytes>) -> Make {
    let requests: Vec<Bytes> = requests.collect();
    Arc::new(move |number| requests[number % requests.len()].clone())
}

pub fn puts() -> Make {
    prepared((0..KEYS).map(|number| frame(&put(key(number)))))
}

pub fn gets() -> Make {
    prepared((0..KEYS).map(|number| frame(&RangeRequest { key: key(number), ..RangeRequest::default() })))
}

/// The first keys of all, so many at a time.
pub fn ranges(limit: usize) -> Make {
    let request = RangeRequest {
        key: PREFIX.into(),
        range_end: end(PREFIX),
        limit: limit as i64,
        ..RangeRequest::default()
    };
    prepared(std::iter::once(frame(&request)))
}

/// Puts of so many keys in no order, so that neighbours are not overwritten together, and again from the first on. There may
/// be many, so each is made when it is sent.
pub fn overwrites(keys: usize, value_bytes: usize) -> Make {
    Arc::new(move |number| {
        let key = key(number.wrapping_mul(1_000_003) % keys);
        let value = vec![(number / keys) as u8; value_bytes].into();
        frame(&PutRequest { key, value, ..PutRequest::default() })
    })
}

/// Each creates another key, so each is made when it is sent.
pub fn creates(first: usize) -> Make {
    Arc::new(move |number| frame(&create(first + number)))
}

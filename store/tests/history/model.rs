//! The plain model: what a revision's changes and answers must be.

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, TargetUnion};
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use keelson_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, ResponseOp, TxnRequest,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::mvcc::KeyRange;

use super::Changed;
use super::versions::Versions;

/// A state of the store, and what is written behind it at the next revision.
pub struct Model<'a> {
    versions: &'a Versions,
    before: i64,
    written: BTreeMap<Bytes, Option<KeyValue>>,
    pub changes: Vec<Changed>,
}

/// What an operation answers, but for headers.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(bool, Vec<ResponseOp>),
    Other,
}

impl<'a> Model<'a> {
    /// Behind a revision that the versions have.
    pub fn behind(versions: &'a Versions, before: i64) -> Self {
        Self { versions, before, written: BTreeMap::new(), changes: Vec::new() }
    }

    fn get(&self, key: &Bytes) -> Option<&KeyValue> {
        match self.written.get(key) {
            Some(version) => version.as_ref(),
            None => self.versions.at(key, self.before),
        }
    }

    fn all(&self, range: &KeyRange) -> Vec<KeyValue> {
        let mut found: BTreeMap<&Bytes, &KeyValue> =
            self.versions.range(range, self.before).into_iter().map(|kv| (&kv.key, kv)).collect();
        for (key, version) in self.written.iter().filter(|(key, _)| range.contains(key)) {
            match version {
                Some(kv) => found.insert(key, kv),
                None => found.remove(key),
            };
        }
        found.into_values().cloned().collect()
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let revision = self.before + 1;
        let previous = self.get(&put.key).cloned();
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            lease: put.lease,
            mod_revision: revision,
            create_revision: previous.as_ref().map_or(revision, |kv| kv.create_revision),
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
        };
        self.written.insert(put.key.clone(), Some(kv.clone()));
        self.changes.push(Changed { kv, deleted: false });
        PutResponse { header: None, prev_kv: previous.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, key: &Bytes) {
        self.written.insert(key.clone(), None);
        let kv = KeyValue { key: key.clone(), mod_revision: self.before + 1, ..Default::default() };
        self.changes.push(Changed { kv, deleted: true });
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone = self.all(&KeyRange::new(delete.key.clone(), delete.range_end.clone()));
        for kv in &gone {
            self.delete(&kv.key);
        }
        let deleted = gone.len() as i64;
        DeleteRangeResponse {
            header: None,
            deleted,
            prev_kvs: if delete.prev_kv { gone } else { Vec::new() },
        }
    }

    fn run(&mut self, ops: &[RequestOp]) -> Vec<ResponseOp> {
        ops.iter()
            .map(|op| {
                let response = match op.request.as_ref().unwrap() {
                    Op::RequestPut(put) => OpResponse::ResponsePut(self.put(put)),
                    Op::RequestDeleteRange(delete) => {
                        OpResponse::ResponseDeleteRange(self.delete_range(delete))
                    }
                    Op::RequestRange(request) => {
                        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
                        OpResponse::ResponseRange(answer_range(self.all(&range), request))
                    }
                    Op::RequestTxn(_) => panic!("no client nests transactions"),
                };
                ResponseOp { response: Some(response) }
            })
            .collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.get(&compare.key);
        let order = match compare.target_union.as_ref().unwrap() {
            TargetUnion::Version(version) => kv.map_or(0, |kv| kv.version).cmp(version),
            TargetUnion::CreateRevision(revision) => kv.map_or(0, |kv| kv.create_revision).cmp(revision),
            TargetUnion::ModRevision(revision) => kv.map_or(0, |kv| kv.mod_revision).cmp(revision),
            TargetUnion::Lease(lease) => kv.map_or(0, |kv| kv.lease).cmp(lease),
            TargetUnion::Value(value) => match kv {
                Some(kv) => kv.value.cmp(value),
                // A key that is not there has no value to compare.
                None => return false,
            },
        };
        match compare.result() {
            CompareResult::Equal => order.is_eq(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::NotEqual => order.is_ne(),
        }
    }

    fn txn(&mut self, txn: &TxnRequest) -> Answer {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if holds { &txn.success } else { &txn.failure };
        Answer::Txn(holds, self.run(ops))
    }

    pub fn execute(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Put(put) => Answer::Put(self.put(put)),
            Operation::DeleteRange(delete) => Answer::DeleteRange(self.delete_range(delete)),
            Operation::Txn(txn) => self.txn(txn),
            Operation::LeaseRevoke(revoke) => {
                self.revoke(revoke.id);
                Answer::Other
            }
            _ => Answer::Other,
        }
    }

    pub fn revoke(&mut self, lease: i64) {
        let everything = KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        for kv in self.all(&everything).iter().filter(|kv| kv.lease == lease) {
            self.delete(&kv.key);
        }
    }
}

/// What a range request is answered with, of all that is in the range.
pub fn answer_range(mut kvs: Vec<KeyValue>, request: &RangeRequest) -> RangeResponse {
    let count = kvs.len() as i64;
    if request.count_only {
        return RangeResponse { count, ..Default::default() };
    }
    let more = request.limit > 0 && count > request.limit;
    if more {
        kvs.truncate(request.limit as usize);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    RangeResponse { header: None, kvs, more, count }
}

pub fn answer(response: &Response) -> Answer {
    let without_header = |op: &ResponseOp| {
        let mut op = op.clone();
        match op.response.as_mut() {
            Some(OpResponse::ResponsePut(response)) => response.header = None,
            Some(OpResponse::ResponseRange(response)) => response.header = None,
            Some(OpResponse::ResponseDeleteRange(response)) => response.header = None,
            _ => {}
        }
        op
    };
    match response {
        Response::Put(response) => {
            Answer::Put(PutResponse { header: None, prev_kv: response.prev_kv.clone() })
        }
        Response::DeleteRange(response) => {
            Answer::DeleteRange(DeleteRangeResponse { header: None, ..response.clone() })
        }
        Response::Txn(response) => {
            Answer::Txn(response.succeeded, response.responses.iter().map(without_header).collect())
        }
        _ => Answer::Other,
    }
}

//! Transactions: compares, then the operations of one branch, nested at will.
//!
//! As in etcd, all compares of all levels are decided before the first operation runs, and everything that can be
//! refused is refused before anything is changed.

use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::response_op::Response;
use keelson_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeResponse, PutResponse, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, TxnResponse,
};
use keelson_proto::etcd::mvccpb::KeyValue;

use super::index::{Index, KeyRange};
use super::range::{Past, View, check_revision};
use super::record::Record;
use super::write::WriteTxn;
use super::{MvccError, Store};
use crate::lease::Leases;

/// Whether a transaction only reads, in either branch.
pub fn is_read_only(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether it may read what this member has, be it old.
pub fn is_serializable(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// What compares read from.
pub trait Compares {
    fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError>;
    fn check_range(&self, request: &RangeRequest) -> Result<(), MvccError>;
}

impl<I: std::ops::Deref<Target = Index>> Compares for View<I> {
    fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        View::records(self, range)
    }

    fn check_range(&self, request: &RangeRequest) -> Result<(), MvccError> {
        check_revision(self.index().compacted, self.revision(), request.revision)
    }
}

impl Compares for Past<'_> {
    fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        Past::records(self, range)
    }

    fn check_range(&self, request: &RangeRequest) -> Result<(), MvccError> {
        self.check_revision(request.revision)
    }
}

impl Compares for WriteTxn<'_> {
    fn records(&self, range: &KeyRange) -> Result<Vec<Arc<Record>>, MvccError> {
        WriteTxn::records(self, range)
    }

    fn check_range(&self, request: &RangeRequest) -> Result<(), MvccError> {
        check_revision(self.index().compacted, self.index().revision, request.revision)
    }
}

/// A transaction whose compares are decided: the operations that will run.
pub struct Plan<'r> {
    succeeded: bool,
    steps: Vec<Step<'r>>,
}

enum Step<'r> {
    Operation(&'r RequestOp),
    Nested(Plan<'r>),
}

/// Decides all compares.
pub fn plan<'r>(state: &impl Compares, request: &'r TxnRequest) -> Result<Plan<'r>, MvccError> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(state, compare)? {
            succeeded = false;
            break;
        }
    }
    let operations = if succeeded { &request.success } else { &request.failure };
    let steps = operations
        .iter()
        .map(|operation| match &operation.request {
            Some(Request::RequestTxn(nested)) => plan(state, nested).map(Step::Nested),
            _ => Ok(Step::Operation(operation)),
        })
        .collect::<Result<_, _>>()?;
    Ok(Plan { succeeded, steps })
}

fn holds(state: &impl Compares, compare: &Compare) -> Result<bool, MvccError> {
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let records = state.records(&range)?;
    if records.is_empty() {
        // A key that is not there has revision 0, but no value, not even an empty one.
        return Ok(compare.target() != CompareTarget::Value && matches(compare, &KeyValue::default()));
    }
    Ok(records.iter().all(|record| matches(compare, &record.kv)))
}

fn matches(compare: &Compare, kv: &KeyValue) -> bool {
    let union = compare.target_union.as_ref();
    // A value of another kind than the target counts for none, which is 0 or empty.
    let wanted = match (compare.target(), union) {
        (CompareTarget::Version, Some(TargetUnion::Version(wanted)))
        | (CompareTarget::Create, Some(TargetUnion::CreateRevision(wanted)))
        | (CompareTarget::Mod, Some(TargetUnion::ModRevision(wanted)))
        | (CompareTarget::Lease, Some(TargetUnion::Lease(wanted))) => *wanted,
        _ => 0,
    };
    let order = match compare.target() {
        CompareTarget::Version => kv.version.cmp(&wanted),
        CompareTarget::Create => kv.create_revision.cmp(&wanted),
        CompareTarget::Mod => kv.mod_revision.cmp(&wanted),
        CompareTarget::Lease => kv.lease.cmp(&wanted),
        CompareTarget::Value => match union {
            Some(TargetUnion::Value(wanted)) => kv.value.cmp(wanted),
            _ => kv.value[..].cmp(&[]),
        },
    };
    match compare.result() {
        CompareResult::Equal => order.is_eq(),
        CompareResult::NotEqual => order.is_ne(),
        CompareResult::Greater => order.is_gt(),
        CompareResult::Less => order.is_lt(),
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

impl Store {
    /// Runs a transaction that only reads, at one revision, without holding up writers for long. Returns the answer and the
    /// store's revision.
    ///
    /// # Errors
    /// As Range.
    pub fn txn(&self, request: &TxnRequest) -> Result<(TxnResponse, i64), MvccError> {
        self.at_newest(
            |past| read(past, past.newest, request, |range| past.range(range)),
            |view| read(view, view.revision(), request, |range| view.range(range)),
        )
    }
}

fn read(
    state: &impl Compares,
    newest: i64,
    request: &TxnRequest,
    range: impl Fn(&RangeRequest) -> Result<RangeResponse, MvccError>,
) -> Result<TxnResponse, MvccError> {
    let plan = plan(state, request)?;
    plan.check_ranges(state)?;
    let mut responses = Vec::with_capacity(plan.steps.len());
    for step in &plan.steps {
        if let Step::Operation(RequestOp { request: Some(Request::RequestRange(request)) }) = step {
            let mut response = range(request)?;
            response.header = header(newest);
            responses.push(ResponseOp { response: Some(Response::ResponseRange(response)) });
        }
    }
    Ok(TxnResponse { header: header(newest), succeeded: plan.succeeded, responses })
}

impl Plan<'_> {
    fn check_ranges(&self, state: &impl Compares) -> Result<(), MvccError> {
        for step in &self.steps {
            match step {
                Step::Nested(nested) => nested.check_ranges(state)?,
                Step::Operation(RequestOp { request: Some(Request::RequestRange(range)) }) => {
                    state.check_range(range)?;
                }
                Step::Operation(_) => {}
            }
        }
        Ok(())
    }
}

impl WriteTxn<'_> {
    /// Runs a transaction.
    ///
    /// # Errors
    /// What refuses one of its operations; then nothing was changed, unless the tree itself failed.
    pub fn txn(&mut self, request: &TxnRequest, leases: &mut Leases) -> Result<TxnResponse, MvccError> {
        let plan = plan(self, request)?;
        self.check_puts(&plan, leases)?;
        plan.check_ranges(self)?;
        self.run(&plan, leases)
    }

    fn check_puts(&self, plan: &Plan<'_>, leases: &Leases) -> Result<(), MvccError> {
        for step in &plan.steps {
            match step {
                Step::Nested(nested) => self.check_puts(nested, leases)?,
                Step::Operation(RequestOp { request: Some(Request::RequestPut(put)) }) => {
                    self.check_previous(put)?;
                    self.check_lease(put, leases)?;
                }
                Step::Operation(_) => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, plan: &Plan<'_>, leases: &mut Leases) -> Result<TxnResponse, MvccError> {
        let mut responses = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let response = match step {
                Step::Nested(nested) => Some(Response::ResponseTxn(self.run(nested, leases)?)),
                Step::Operation(operation) => match &operation.request {
                    Some(Request::RequestRange(range)) => {
                        let mut response = self.range(range)?;
                        response.header = header(self.revision());
                        Some(Response::ResponseRange(response))
                    }
                    Some(Request::RequestPut(put)) => {
                        let prev_kv = self.put(put, leases)?;
                        Some(Response::ResponsePut(PutResponse { header: header(self.revision()), prev_kv }))
                    }
                    Some(Request::RequestDeleteRange(delete)) => {
                        let (deleted, prev_kvs) = self.delete_range(delete, leases)?;
                        let header = header(self.revision());
                        Some(Response::ResponseDeleteRange(DeleteRangeResponse { header, deleted, prev_kvs }))
                    }
                    Some(Request::RequestTxn(_)) | None => None,
                },
            };
            responses.push(ResponseOp { response });
        }
        // The outermost one's header is the gRPC layer's; those of nested ones are empty, as in etcd.
        Ok(TxnResponse { header: header(0), succeeded: plan.succeeded, responses })
    }
}

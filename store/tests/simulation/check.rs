//! What every history must be: the calls, replayed in the order of their revisions on a plain model.
//!
//! The store tells each call its revision, and each value is written once; so the order is known and needs no search.
//! Writes without an answer are matched to the revisions that nobody else explains. Then: every answer is that of the
//! model, no revision is without a cause, none has two, and no call contradicts what was over before it began (strict
//! serializability).

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::TargetUnion;
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use keelson_proto::etcd::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseOp,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::mvcc::KeyRange;

use crate::clients::{Call, Outcome, Request};
use crate::watches::{Changed, Ledger, Watch};
use crate::world::SECOND;

type Keys = BTreeMap<Bytes, KeyValue>;

/// The plain model: what a revision's changes and answers must be.
struct Model {
    keys: Keys,
    revision: i64,
    changes: Vec<Changed>,
}

impl Model {
    fn at(keys: &Keys, revision: i64) -> Self {
        Self { keys: keys.clone(), revision, changes: Vec::new() }
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let previous = self.keys.get(&put.key).cloned();
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            lease: put.lease,
            mod_revision: self.revision,
            create_revision: previous.as_ref().map_or(self.revision, |kv| kv.create_revision),
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
        };
        self.keys.insert(put.key.clone(), kv.clone());
        self.changes.push(Changed { kv, deleted: false });
        PutResponse { header: None, prev_kv: previous.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, key: &Bytes) {
        self.keys.remove(key);
        let kv = KeyValue { key: key.clone(), mod_revision: self.revision, ..Default::default() };
        self.changes.push(Changed { kv, deleted: true });
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        let gone: Vec<KeyValue> = self.keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
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
                    Op::RequestRange(request) => OpResponse::ResponseRange(range(&self.keys, request)),
                    Op::RequestTxn(_) => panic!("no client nests transactions"),
                };
                ResponseOp { response: Some(response) }
            })
            .collect()
    }

    /// What an operation answers, but for headers.
    fn execute(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Put(put) => Answer::Put(self.put(put)),
            Operation::DeleteRange(delete) => Answer::DeleteRange(self.delete_range(delete)),
            Operation::Txn(txn) => {
                let holds = txn.compare.iter().all(|compare| {
                    let found = self.keys.get(&compare.key).map_or(0, |kv| kv.mod_revision);
                    compare.target_union == Some(TargetUnion::ModRevision(found))
                });
                let ops = if holds { &txn.success } else { &txn.failure };
                Answer::Txn(holds, self.run(ops))
            }
            Operation::LeaseRevoke(revoke) => {
                self.revoke(revoke.id);
                Answer::Other
            }
            _ => Answer::Other,
        }
    }

    fn revoke(&mut self, lease: i64) {
        let keys: Vec<Bytes> =
            self.keys.values().filter(|kv| kv.lease == lease).map(|kv| kv.key.clone()).collect();
        for key in keys {
            self.delete(&key);
        }
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(bool, Vec<ResponseOp>),
    Other,
}

fn answer(response: &Response) -> Answer {
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
        Response::Put(response) => Answer::Put(response.clone()),
        Response::DeleteRange(response) => Answer::DeleteRange(response.clone()),
        Response::Txn(response) => {
            Answer::Txn(response.succeeded, response.responses.iter().map(without_header).collect())
        }
        _ => Answer::Other,
    }
}

fn range(keys: &Keys, request: &RangeRequest) -> RangeResponse {
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    let mut kvs: Vec<KeyValue> = keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
    let count = kvs.len() as i64;
    let more = request.limit > 0 && count > request.limit;
    if more {
        kvs.truncate(request.limit as usize);
    }
    RangeResponse { header: None, kvs, more, count }
}

/// The revision that an answer names, if it has one that counts for order.
fn revision(call: &Call) -> Option<i64> {
    match &call.outcome {
        Outcome::Applied { revision, .. } | Outcome::Read { revision, .. } => Some(*revision),
        _ => None,
    }
}

fn is_serializable(call: &Call) -> bool {
    matches!(&call.request, Request::Range(range) if range.serializable)
}

/// Newest revisions over time: of calls that had ended at a moment.
struct Floor(Vec<(u64, i64)>);

impl Floor {
    fn new(history: &[Call]) -> Self {
        let mut ends: Vec<(u64, i64)> =
            history.iter().filter_map(|call| Some((call.ended?, revision(call)?))).collect();
        ends.sort_unstable();
        let mut newest = 0;
        for (_, revision) in &mut ends {
            newest = newest.max(*revision);
            *revision = newest;
        }
        Self(ends)
    }

    /// The newest revision that anyone had been told before `time`.
    fn before(&self, time: u64) -> i64 {
        let count = self.0.partition_point(|(ended, _)| *ended < time);
        count.checked_sub(1).map_or(0, |at| self.0[at].1)
    }
}

/// What a history showed.
pub struct Verdict {
    pub revisions: usize,
    pub acknowledged: usize,
    pub unknown_applied: usize,
    pub expired: usize,
    /// The state at the end.
    pub keys: BTreeMap<Bytes, KeyValue>,
    pub revision: i64,
}

/// # Panics
/// At the first thing that no correct store does.
pub fn check(history: &[Call], ledger: &Ledger, watches: &[Watch], clock_jumped: bool) -> Verdict {
    let floor = Floor::new(history);
    order(history, &floor);

    // Calls by the revision that they were told; those without an answer in the order in which they began.
    let mut told: BTreeMap<i64, Vec<&Call>> = BTreeMap::new();
    let mut unknown: Vec<&Call> = Vec::new();
    let mut compactions: Vec<i64> = vec![0];
    for call in history {
        if let Request::Operation(Operation::Compaction(request)) = &call.request {
            compactions.push(request.revision);
        }
        match (&call.outcome, &call.request) {
            (Outcome::Applied { result: Err(_), .. }, _) => {}
            (Outcome::Unknown, Request::Operation(_)) => unknown.push(call),
            _ => {
                if let Some(revision) = revision(call) {
                    told.entry(revision).or_default().push(call);
                }
            }
        }
    }
    let compacted = compactions.iter().copied().max().unwrap_or(0);

    let last = ledger.revisions.keys().next_back().copied().unwrap_or(1);
    let told_last = told.keys().next_back().copied().unwrap_or(1);
    assert!(told_last <= last, "revision {told_last} was told, but no member has any behind {last}");
    let mut states: Vec<Keys> = vec![Keys::new(); 2];
    let mut verdict = Verdict {
        revisions: ledger.revisions.len(),
        acknowledged: 0,
        unknown_applied: 0,
        expired: 0,
        keys: Keys::new(),
        revision: last,
    };
    for at in 1..=last {
        let before = states.last().unwrap().clone();
        let mut after = before.clone();
        if at > 1 {
            let (seen, changes) =
                ledger.revisions.get(&at).unwrap_or_else(|| panic!("nobody ever had revision {at}"));
            // The call that made it.
            let mut makers: Vec<&&Call> = told
                .get(&at)
                .into_iter()
                .flatten()
                .filter(|call| makes(call, &before, at, changes))
                .collect();
            if makers.len() > 1 {
                // A lease whose last keys went just before it was revoked.
                makers.retain(|call| !matches!(call.request, Request::Operation(Operation::LeaseRevoke(_))));
            }
            assert!(makers.len() <= 1, "revision {at} was told to several that wrote: {makers:#?}");
            if let [maker] = makers[..] {
                let mut model = Model::at(&before, at);
                assert!(
                    floor.before(maker.begun) < at,
                    "revision {at} had been told before it began: {maker:#?}"
                );
                let Request::Operation(operation) = &maker.request else { unreachable!() };
                let expected = model.execute(operation);
                assert_eq!(&model.changes, changes, "revision {at} is not what {maker:#?} wrote");
                let Outcome::Applied { result: Ok(response), .. } = &maker.outcome else { unreachable!() };
                assert_eq!(answer(response), expected, "a wrong answer at revision {at} to {maker:#?}");
                verdict.acknowledged += 1;
            } else {
                let found = unknown.iter().position(|call| {
                    let Request::Operation(operation) = &call.request else { return false };
                    let mut model = Model::at(&before, at);
                    model.execute(operation);
                    floor.before(call.begun) < at && &model.changes == changes
                });
                match found {
                    Some(place) => {
                        unknown.remove(place);
                        verdict.unknown_applied += 1;
                    }
                    None => {
                        expiry(at, *seen, changes, &before, history, clock_jumped);
                        verdict.expired += 1;
                    }
                }
            }
            for changed in changes {
                match changed.deleted {
                    true => after.remove(&changed.kv.key),
                    false => after.insert(changed.kv.key.clone(), changed.kv.clone()),
                };
            }
            states.push(after);
        }
        // Those that read there, or changed nothing.
        for call in told.get(&at).into_iter().flatten() {
            let changes = ledger.revisions.get(&at).map_or(&[][..], |(_, changes)| changes);
            quiet(call, (at, changes), &before, &states);
        }
    }
    for call in history {
        let (Outcome::ReadCompacted, Request::Range(range)) = (&call.outcome, &call.request) else {
            continue;
        };
        assert!(range.revision > 0 && range.revision < compacted, "told compacted: {call:#?}");
    }
    for watch in watches.iter().filter(|watch| !watch.is_tap()) {
        check_watch(watch, ledger, &states, last, compacted);
    }
    verdict.keys = states.pop().unwrap();
    verdict
}

/// Nothing that began after something else had ended is before it.
fn order(history: &[Call], floor: &Floor) {
    for call in history.iter().filter(|call| !is_serializable(call)) {
        let Some(revision) = revision(call) else { continue };
        let known = floor.before(call.begun);
        assert!(revision >= known, "revision {known} had been told before this began: {call:#?}");
    }
}

/// Whether a call changed something at revision `at`.
fn makes(call: &Call, before: &Keys, at: i64, changes: &[Changed]) -> bool {
    match (&call.request, &call.outcome) {
        (Request::Operation(operation), Outcome::Applied { result: Ok(response), .. }) => {
            let mut model = Model::at(before, at);
            model.execute(operation);
            match response {
                // It may be told `at` for having come after whatever made it.
                Response::Txn(txn) => txn.responses.iter().any(|op| match &op.response {
                    Some(OpResponse::ResponsePut(_)) => true,
                    Some(OpResponse::ResponseDeleteRange(delete)) => delete.deleted > 0,
                    _ => false,
                }),
                Response::Put(_) => true,
                Response::DeleteRange(delete) => delete.deleted > 0,
                // Its keys are all that went.
                Response::LeaseRevoke(_) => !changes.is_empty() && model.changes == changes,
                _ => false,
            }
        }
        _ => false,
    }
}

/// A call that changed nothing: its answer is of the state that it was told.
fn quiet(call: &Call, (at, changes): (i64, &[Changed]), before: &Keys, states: &[Keys]) {
    let now = states.last().unwrap();
    match (&call.request, &call.outcome) {
        (Request::Range(request), Outcome::Read { response, .. }) => {
            let read_at = if request.revision > 0 { request.revision } else { at };
            assert!(read_at <= at, "a read of the future: {call:#?}");
            let expected = range(&states[read_at as usize], request);
            assert_eq!(response, &expected, "a wrong answer to {call:#?}");
        }
        (Request::Operation(operation), Outcome::Applied { result: Ok(response), .. })
            if !makes(call, before, at, changes) =>
        {
            let mut model = Model::at(now, at + 1);
            let expected = model.execute(operation);
            assert!(model.changes.is_empty(), "it changed nothing, but had to: {call:#?}");
            assert_eq!(answer(response), expected, "a wrong answer to {call:#?}");
        }
        _ => {}
    }
}

/// What no client wrote: a lease ran out, or was revoked by a call without an answer that named it again.
fn expiry(at: i64, seen: u64, changes: &[Changed], before: &Keys, history: &[Call], clock_jumped: bool) {
    let lease = changes.first().and_then(|changed| before.get(&changed.kv.key)).map_or(0, |kv| kv.lease);
    assert!(lease != 0, "nobody wrote revision {at}, or it was written before: {changes:#?}");
    let mut model = Model::at(before, at);
    model.revoke(lease);
    assert_eq!(model.changes, changes, "revision {at} is no lease's end");
    let mut ttl = 0;
    let mut renewed = 0;
    for call in history {
        match (&call.request, &call.outcome) {
            (Request::Operation(Operation::LeaseGrant(LeaseGrantRequest { id, ttl: granted })), _)
                if *id == lease =>
            {
                (ttl, renewed) = (*granted, call.begun);
            }
            (Request::KeepAlive(id), Outcome::KeptAlive(answer))
                if *id == lease && answer.ttl > 0 && call.ended.is_some_and(|ended| ended < seen) =>
            {
                renewed = renewed.max(call.begun);
            }
            _ => {}
        }
    }
    let ends = renewed + ttl.unsigned_abs() * SECOND;
    assert!(clock_jumped || seen >= ends, "lease {lease} ran out at {seen}, before {ends}");
}

/// Ordered, unique, atomic and reliable: exactly the ledger's changes of its range but for gaps, with what was before.
fn check_watch(watch: &Watch, ledger: &Ledger, states: &[Keys], last: i64, compacted: i64) {
    let mut seen = watch.seen.iter();
    let skipped = |at: i64| watch.gaps.iter().any(|(from, to)| (*from..*to).contains(&at));
    for (_, to) in &watch.gaps {
        assert!(*to <= compacted, "a watch was told of a compaction at {to} that nobody asked for");
    }
    assert_eq!(watch.next, last + 1, "a watch did not get to the end");
    for (at, (_, changes)) in &ledger.revisions {
        let expected: Vec<&Changed> =
            changes.iter().filter(|changed| watch.range.contains(&changed.kv.key)).collect();
        if expected.is_empty() || skipped(*at) {
            continue;
        }
        let (revision, events) = seen.next().unwrap_or_else(|| panic!("a watch lacks revision {at}"));
        assert_eq!(revision, at, "a watch lacks revision {at} or has one too many");
        let got: Vec<&Changed> = events.iter().map(|event| &event.changed).collect();
        assert_eq!(got, expected, "a watch got another revision {at}");
        if !watch.wants_previous() {
            continue;
        }
        for event in events {
            let before = states[*at as usize - 1].get(&event.changed.kv.key);
            // What is compacted need not be given any more.
            let may_lack = *at <= compacted && event.previous.is_none();
            assert!(
                event.previous.as_ref() == before || may_lack,
                "a wrong previous version at {at}: {event:#?}, not {before:#?}"
            );
        }
    }
    assert!(seen.next().is_none(), "a watch has more than there is");
}

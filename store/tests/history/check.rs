//! What every history must be: the calls, replayed in the order of their revisions on a plain model.
//!
//! The store tells each call its revision, and each value is written once; so the order is known and needs no search.
//! Writes without an answer are matched to the revisions that nobody else explains. Then: every answer is that of the
//! model, no revision is without a cause, none has two, no call contradicts what was over before it began (strict
//! serializability), and no member's process goes back in time, not even in reads that need no quorum.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use keelson_proto::etcd::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, TxnRequest};
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::mvcc::KeyRange;

use super::matching::assign;
use super::model::{Model, answer, answer_range};
use super::versions::{Keys, Versions};
use super::{Call, Changed, Ledger, Outcome, Request, SECOND, Watched};

/// Where a history begins.
pub struct Start {
    pub keys: Keys,
    pub revision: i64,
    /// The highest revision at which a compaction was asked for.
    pub compacted: i64,
}

impl Default for Start {
    fn default() -> Self {
        Self { keys: Keys::new(), revision: 1, compacted: 0 }
    }
}

/// What a history showed.
pub struct Verdict {
    pub revisions: usize,
    pub acknowledged: usize,
    pub unknown_applied: usize,
    pub expired: usize,
    /// The state at the end, from which another history may begin.
    pub end: Start,
    /// Calls without an answer that have not happened, by their place in the history: they may yet.
    pub open: Vec<usize>,
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
struct Floor {
    first: i64,
    ends: Vec<(u64, i64)>,
}

impl Floor {
    fn new<'a>(calls: impl Iterator<Item = &'a Call>, first: i64) -> Self {
        let mut ends: Vec<(u64, i64)> =
            calls.filter_map(|call| Some((call.ended?, revision(call)?))).collect();
        ends.sort_unstable();
        let mut newest = first;
        for (_, revision) in &mut ends {
            newest = newest.max(*revision);
            *revision = newest;
        }
        Self { first, ends }
    }

    /// The newest revision that anyone had been told before `time`.
    fn before(&self, time: u64) -> i64 {
        let count = self.ends.partition_point(|(ended, _)| *ended < time);
        count.checked_sub(1).map_or(self.first, |at| self.ends[at].1)
    }
}

/// # Panics
/// At the first thing that no correct store does.
pub fn check(
    start: &Start,
    history: &[Call],
    ledger: &Ledger,
    watches: &[Watched<'_>],
    clock_jumped: bool,
) -> Verdict {
    let floor = Floor::new(history.iter(), start.revision);
    order(history, &floor);
    let leases = Leases::new(history);
    leases.none_is_revoked_twice();
    if !clock_jumped {
        leases.none_is_lost_early(history);
    }

    let mut told: BTreeMap<i64, Vec<&Call>> = BTreeMap::new();
    let mut unknown = Unknown::default();
    let mut compacted = start.compacted;
    for (place, call) in history.iter().enumerate() {
        if let Request::Operation(Operation::Compaction(request)) = &call.request {
            compacted = compacted.max(request.revision);
        }
        match (&call.outcome, &call.request) {
            (Outcome::Applied { result: Err(_), .. }, _) => {}
            (Outcome::Unknown, Request::Operation(operation)) => unknown.add(place, operation),
            _ => {
                if let Some(revision) = revision(call) {
                    told.entry(revision).or_default().push(call);
                }
            }
        }
    }

    let newest = ledger.revisions.keys().next_back().copied();
    let last = newest.map_or(start.revision, |newest| newest.max(start.revision));
    let told_last = told.keys().next_back().copied().unwrap_or(1);
    assert!(told_last <= last, "revision {told_last} was told, but no member has any behind {last}");
    let mut versions = Versions::new(&start.keys, start.revision);
    let mut verdict = Verdict {
        revisions: 0,
        acknowledged: 0,
        unknown_applied: 0,
        expired: 0,
        end: Start::default(),
        open: Vec::new(),
    };
    // Revisions that only deleted, with the calls that could each have done it.
    let mut deletions: Vec<(i64, Vec<usize>)> = Vec::new();
    for at in start.revision..=last {
        let nothing = (0, Vec::new());
        let (seen, changes) = match ledger.revisions.get(&at) {
            Some(entry) => entry,
            None if at == start.revision => &nothing,
            None => panic!("nobody ever had revision {at}"),
        };
        // The first one is that of the state at the start: whatever made it was before this history.
        if at > start.revision {
            verdict.revisions += 1;
            let before = at - 1;
            // The call that made it.
            let mut makers: Vec<&&Call> = told
                .get(&at)
                .into_iter()
                .flatten()
                .filter(|call| makes(call, &versions, at, changes))
                .collect();
            // A lease whose last keys went just before it was revoked: by a call of another kind, or at a revision that
            // somebody knew before this one began (whoever deleted them has no answer then).
            let revokes = |call: &Call| matches!(call.request, Request::Operation(Operation::LeaseRevoke(_)));
            let others = makers.iter().any(|call| !revokes(call));
            makers.retain(|call| !revokes(call) || !(others || floor.before(call.begun) >= at));
            assert!(makers.len() <= 1, "revision {at} was told to several that wrote: {makers:#?}");
            if let [maker] = makers[..] {
                assert!(
                    floor.before(maker.begun) < at,
                    "revision {at} had been told before it began: {maker:#?}"
                );
                let mut model = Model::behind(&versions, before);
                let Request::Operation(operation) = &maker.request else { unreachable!() };
                let expected = model.execute(operation);
                assert_eq!(&model.changes, changes, "revision {at} is not what {maker:#?} wrote");
                let Outcome::Applied { result: Ok(response), .. } = &maker.outcome else { unreachable!() };
                assert_eq!(answer(response), expected, "a wrong answer at revision {at} to {maker:#?}");
                verdict.acknowledged += 1;
            } else {
                let could = |place: &usize| {
                    let Request::Operation(operation) = &history[*place].request else { return false };
                    let mut model = Model::behind(&versions, before);
                    model.execute(operation);
                    floor.before(history[*place].begun) < at && &model.changes == changes
                };
                if let Some(put) = changes.iter().find(|changed| !changed.deleted) {
                    let writer = unknown.take_writer(&put.kv.value).filter(could);
                    assert!(
                        writer.is_some(),
                        "nobody wrote revision {at}, or it was written before: {changes:#?}"
                    );
                    verdict.unknown_applied += 1;
                } else if leases.ended(at, *seen, changes, &versions, clock_jumped) {
                    verdict.expired += 1;
                } else {
                    deletions.push((at, unknown.deleters.iter().copied().filter(could).collect()));
                    verdict.unknown_applied += 1;
                }
            }
            versions.push(at, changes);
        }
        // Those that read there, or changed nothing.
        for call in told.get(&at).into_iter().flatten() {
            quiet(call, (at, changes), &versions);
        }
    }
    // A read of a member that was behind when this history began says nothing that can be checked.
    for (_, calls) in told.range(..start.revision) {
        assert!(
            calls.iter().all(|call| is_serializable(call)),
            "the revision of another history: {calls:#?}"
        );
    }
    let wanted: Vec<Vec<usize>> = deletions.iter().map(|(_, could)| could.clone()).collect();
    let deleted = assign(&wanted).unwrap_or_else(|place| {
        let at = deletions[place].0;
        panic!("nobody deleted what revision {at} deletes, and no lease ended: {:#?}", ledger.revisions[&at])
    });
    for call in history {
        let (Outcome::ReadCompacted, Request::Range(range)) = (&call.outcome, &call.request) else {
            continue;
        };
        assert!(range.revision > 0 && range.revision < compacted, "told compacted: {call:#?}");
    }
    for watch in watches {
        check_watch(watch, ledger, &versions, last, compacted);
    }
    verdict.end = Start { keys: versions.keys(last), revision: last, compacted };
    verdict.open = unknown.left(&deleted);
    verdict
}

/// Nothing that began after something else had ended is before it; and no process is before what it told itself.
fn order(history: &[Call], floor: &Floor) {
    let mut lives: BTreeMap<(usize, u64), Vec<&Call>> = BTreeMap::new();
    for call in history {
        let Some(revision) = revision(call) else { continue };
        if let Some(life) = call.life {
            lives.entry((call.member, life)).or_default().push(call);
        }
        if !is_serializable(call) {
            let known = floor.before(call.begun);
            assert!(revision >= known, "revision {known} had been told before this began: {call:#?}");
        }
    }
    for calls in lives.values() {
        let told = Floor::new(calls.iter().copied(), 1);
        for call in calls {
            let known = told.before(call.begun);
            assert!(
                revision(call) >= Some(known),
                "its member had told revision {known} before this began: {call:#?}"
            );
        }
    }
}

/// Whether a call changed something at revision `at`.
fn makes(call: &Call, versions: &Versions, at: i64, changes: &[Changed]) -> bool {
    match (&call.request, &call.outcome) {
        (Request::Operation(operation), Outcome::Applied { result: Ok(response), .. }) => match response {
            // It may be told `at` for having come after whatever made it.
            Response::Txn(txn) => txn.responses.iter().any(|op| match &op.response {
                Some(OpResponse::ResponsePut(_)) => true,
                Some(OpResponse::ResponseDeleteRange(delete)) => delete.deleted > 0,
                _ => false,
            }),
            Response::Put(_) => true,
            Response::DeleteRange(delete) => delete.deleted > 0,
            // Its keys are all that went.
            Response::LeaseRevoke(_) => {
                let mut model = Model::behind(versions, at - 1);
                model.execute(operation);
                !changes.is_empty() && model.changes == changes
            }
            _ => false,
        },
        _ => false,
    }
}

/// A call that changed nothing: its answer is of the state that it was told.
fn quiet(call: &Call, (at, changes): (i64, &[Changed]), versions: &Versions) {
    match (&call.request, &call.outcome) {
        (Request::Range(request), Outcome::Read { response, .. }) => {
            let read_at = if request.revision > 0 { request.revision } else { at };
            assert!(read_at <= at, "a read of the future: {call:#?}");
            // What was before the start of this history is not known.
            if read_at >= versions.first {
                let range = KeyRange::new(request.key.clone(), request.range_end.clone());
                let kvs = versions.range(&range, read_at).into_iter().cloned().collect();
                let expected = answer_range(kvs, request);
                assert_eq!(response, &expected, "a wrong answer to {call:#?}");
            }
        }
        (Request::Operation(operation), Outcome::Applied { result: Ok(response), .. })
            if !makes(call, versions, at, changes) =>
        {
            let mut model = Model::behind(versions, at);
            let expected = model.execute(operation);
            assert!(model.changes.is_empty(), "it changed nothing, but had to: {call:#?}");
            assert_eq!(answer(response), expected, "a wrong answer to {call:#?}");
        }
        _ => {}
    }
}

/// Calls without an answer.
#[derive(Default)]
struct Unknown {
    /// By each value that they may write.
    writers: HashMap<Bytes, usize>,
    /// Those that may delete, in the order in which they began.
    deleters: Vec<usize>,
    taken: BTreeSet<usize>,
}

impl Unknown {
    fn add(&mut self, place: usize, operation: &Operation) {
        let mut deletes = false;
        match operation {
            Operation::Put(put) => drop(self.writers.insert(put.value.clone(), place)),
            Operation::DeleteRange(_) | Operation::LeaseRevoke(_) => deletes = true,
            Operation::Txn(TxnRequest { success, failure, .. }) => {
                for op in success.iter().chain(failure) {
                    match op.request.as_ref() {
                        Some(Op::RequestPut(put)) => drop(self.writers.insert(put.value.clone(), place)),
                        Some(Op::RequestDeleteRange(_)) => deletes = true,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if deletes {
            self.deleters.push(place);
        }
    }

    /// Who wrote a value: nobody twice.
    fn take_writer(&mut self, value: &Bytes) -> Option<usize> {
        let place = *self.writers.get(value)?;
        self.taken.insert(place).then_some(place)
    }

    /// Those that have not happened.
    fn left(&self, deleted: &BTreeSet<usize>) -> Vec<usize> {
        let all: BTreeSet<usize> = self.writers.values().chain(&self.deleters).copied().collect();
        all.into_iter().filter(|place| !self.taken.contains(place) && !deleted.contains(place)).collect()
    }
}

/// What was promised of leases.
struct Leases<'a>(HashMap<i64, Vec<&'a Call>>);

impl<'a> Leases<'a> {
    fn new(history: &'a [Call]) -> Self {
        let mut leases: HashMap<i64, Vec<&Call>> = HashMap::new();
        for call in history {
            if let Request::Operation(Operation::LeaseGrant(LeaseGrantRequest { id, .. }))
            | Request::Operation(Operation::LeaseRevoke(LeaseRevokeRequest { id }))
            | Request::KeepAlive(id) = &call.request
            {
                leases.entry(*id).or_default().push(call);
            }
        }
        Self(leases)
    }

    /// Until when a lease has to live, by what was told before `time`. A grant that is known to have been made counts
    /// from when it was asked for, whenever and whether it was answered.
    fn ends(&self, lease: i64, time: u64, is_known: bool) -> Option<u64> {
        let mut ends = None;
        for call in self.0.get(&lease).into_iter().flatten() {
            let answered = call.ended.is_some_and(|ended| ended < time);
            let ttl = match (&call.request, &call.outcome) {
                (_, Outcome::Applied { result: Ok(Response::LeaseGrant(granted)), .. })
                    if answered || is_known =>
                {
                    granted.ttl
                }
                (Request::Operation(Operation::LeaseGrant(asked)), Outcome::Unknown) if is_known => asked.ttl,
                (_, Outcome::KeptAlive(answer)) if answered && answer.ttl > 0 => answer.ttl,
                _ => continue,
            };
            ends = ends.max(Some(call.begun + ttl.unsigned_abs() * SECOND));
        }
        ends
    }

    /// What no client wrote: whether a lease ran out, or was revoked by a call without an answer.
    fn ended(
        &self,
        at: i64,
        seen: u64,
        changes: &[Changed],
        versions: &Versions,
        clock_jumped: bool,
    ) -> bool {
        let first = changes.first().and_then(|changed| versions.at(&changed.kv.key, at - 1));
        let Some(lease) = first.map(|kv| kv.lease).filter(|lease| *lease != 0) else { return false };
        let mut model = Model::behind(versions, at - 1);
        model.revoke(lease);
        if model.changes != changes {
            return false;
        }
        let revoked = self.0.get(&lease).into_iter().flatten().any(|call| {
            let is_revocation = matches!(call.request, Request::Operation(Operation::LeaseRevoke(_)));
            is_revocation && matches!(call.outcome, Outcome::Unknown) && call.begun <= seen
        });
        revoked || clock_jumped || self.ends(lease, seen, true).is_some_and(|ends| seen >= ends)
    }

    /// Each id is granted once, so only one call can have ended it.
    fn none_is_revoked_twice(&self) {
        let revokes = |call: &&&Call| {
            matches!(
                (&call.request, &call.outcome),
                (Request::Operation(Operation::LeaseRevoke(_)), Outcome::Applied { result: Ok(_), .. })
            )
        };
        for (lease, calls) in &self.0 {
            let revoked: Vec<_> = calls.iter().filter(revokes).collect();
            assert!(revoked.len() <= 1, "lease {lease} is revoked twice: {revoked:#?}");
        }
    }

    /// Nobody is told that a lease is gone before it could be. (In the simulation all of a member's turn is one moment.)
    fn none_is_lost_early(&self, history: &[Call]) {
        for call in history {
            let (Request::KeepAlive(lease), Outcome::KeptAlive(answer), Some(ended)) =
                (&call.request, &call.outcome, call.ended)
            else {
                continue;
            };
            let Some(ends) = self.ends(*lease, call.begun, false).filter(|_| answer.ttl <= 0) else {
                continue;
            };
            let revoked = self.0.get(lease).into_iter().flatten().any(|other| {
                matches!(other.request, Request::Operation(Operation::LeaseRevoke(_))) && other.begun <= ended
            });
            assert!(revoked || ended >= ends, "lease {lease} was to live until {ends}: {call:#?}");
        }
    }
}

/// Ordered, unique, atomic and reliable: exactly the ledger's changes of its range but for gaps, with what was before.
fn check_watch(watch: &Watched<'_>, ledger: &Ledger, versions: &Versions, last: i64, compacted: i64) {
    let mut seen = watch.seen.iter();
    let skipped = |at: i64| watch.gaps.iter().any(|(from, to)| (*from..*to).contains(&at));
    for (_, to) in watch.gaps {
        assert!(*to <= compacted, "a watch was told of a compaction at {to} that nobody asked for");
    }
    assert_eq!(watch.next, last + 1, "a watch did not get to the end");
    let wants = |changed: &Changed| {
        let filtered = if changed.deleted { watch.no_delete } else { watch.no_put };
        !filtered && watch.range.contains(&changed.kv.key)
    };
    for (at, (_, changes)) in ledger.revisions.range(versions.first + 1..) {
        let expected: Vec<&Changed> = changes.iter().filter(|changed| wants(changed)).collect();
        if expected.is_empty() || skipped(*at) {
            continue;
        }
        let (revision, events) = seen.next().unwrap_or_else(|| panic!("a watch lacks revision {at}"));
        assert_eq!(revision, at, "a watch lacks revision {at} or has one too many");
        let got: Vec<&Changed> = events.iter().map(|event| &event.changed).collect();
        assert_eq!(got, expected, "a watch got another revision {at}");
        if !watch.previous {
            continue;
        }
        for event in events {
            let before = versions.at(&event.changed.kv.key, *at - 1);
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

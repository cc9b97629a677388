//! Histories that no correct store gives are refused, each for what is wrong with it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::mvcc::KeyRange;
use kube_store::node::LeaseAnswer;

use super::check::{Start, check};
use super::{Call, Changed, Ledger, Outcome, Request, SECOND, Seen, Watched};

fn version(revision: i64, created: i64, version: i64, value: &'static str) -> KeyValue {
    KeyValue {
        key: "k".into(),
        value: value.into(),
        mod_revision: revision,
        create_revision: created,
        version,
        ..KeyValue::default()
    }
}

/// A history in which the key `k` is written, overwritten, and read; times are seconds.
struct History {
    calls: Vec<Call>,
    ledger: Ledger,
    seen: Vec<(i64, Vec<Seen>)>,
    next: i64,
}

fn call(begun: u64, ended: u64, request: Request, outcome: Outcome) -> Call {
    let ended = (ended > 0).then_some(ended * SECOND);
    Call { client: 0, member: 0, life: Some(1), begun: begun * SECOND, ended, request, outcome }
}

fn put(value: &'static str, lease: i64) -> Request {
    let put = PutRequest { key: "k".into(), value: value.into(), lease, ..PutRequest::default() };
    Request::Operation(Operation::Put(put))
}

fn applied(revision: i64, response: Response) -> Outcome {
    Outcome::Applied { revision, result: Ok(response) }
}

fn written(revision: i64) -> Outcome {
    applied(revision, Response::Put(PutResponse::default()))
}

fn get(serializable: bool) -> Request {
    Request::Range(RangeRequest { key: "k".into(), serializable, ..RangeRequest::default() })
}

fn read(revision: i64, kv: KeyValue) -> Outcome {
    Outcome::Read { revision, response: RangeResponse { kvs: vec![kv], count: 1, ..Default::default() } }
}

impl History {
    /// Written at 2 and 3, read at 3.
    fn new() -> Self {
        let mut history = Self { calls: Vec::new(), ledger: Ledger::default(), seen: Vec::new(), next: 4 };
        history.change(2, version(2, 2, 1, "a"), None);
        history.change(3, version(3, 2, 2, "b"), Some(version(2, 2, 1, "a")));
        history.calls = vec![
            call(1, 2, put("a", 0), written(2)),
            call(3, 4, put("b", 0), written(3)),
            call(5, 6, get(false), read(3, version(3, 2, 2, "b"))),
        ];
        history
    }

    fn change(&mut self, revision: i64, kv: KeyValue, previous: Option<KeyValue>) {
        let changed = Changed { deleted: kv.version == 0, kv };
        self.ledger.take(revision, vec![changed.clone()], revision as u64 * SECOND).unwrap();
        self.seen.push((revision, vec![Seen { changed, previous }]));
        self.next = revision + 1;
    }

    /// The key is written with a lease of 5 s, and deleted with its end at a second.
    fn with_lease(ended_at: u64) -> Self {
        let mut history = Self::new();
        let grant = Request::Operation(Operation::LeaseGrant(LeaseGrantRequest { id: 7, ttl: 5 }));
        let granted = LeaseGrantResponse { id: 7, ttl: 5, ..Default::default() };
        history.calls.push(call(10, 11, grant, applied(3, Response::LeaseGrant(granted))));
        history.calls.push(call(12, 13, put("c", 7), written(4)));
        let leased = KeyValue { lease: 7, ..version(4, 2, 3, "c") };
        history.change(4, leased.clone(), Some(version(3, 2, 2, "b")));
        let gone = KeyValue { key: "k".into(), mod_revision: 5, ..Default::default() };
        history.change(5, gone, Some(leased));
        history.ledger.revisions.get_mut(&5).unwrap().0 = ended_at * SECOND;
        history
    }

    fn check(&self, expected: Result<(), &str>) {
        let range = KeyRange::new("k".into(), Bytes::new());
        let watch = Watched {
            range: &range,
            previous: true,
            no_put: false,
            no_delete: false,
            next: self.next,
            seen: &self.seen,
            gaps: &[],
        };
        let run = || drop(check(&Start::default(), &self.calls, &self.ledger, &[watch], false));
        match (catch_unwind(AssertUnwindSafe(run)), expected) {
            (Ok(()), Ok(())) => {}
            (Ok(()), Err(expected)) => panic!("not found: {expected}"),
            (Err(panic), expected) => {
                let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = panic.downcast_ref::<String>().cloned().or(literal).unwrap_or_default();
                assert!(expected.is_err_and(|expected| text.contains(expected)), "{expected:?}: {text}");
            }
        }
    }
}

/// A history with something changed.
fn but(change: impl FnOnce(&mut History)) -> History {
    let mut history = History::new();
    change(&mut history);
    history
}

#[test]
fn what_is_wrong_with_calls_is_found() {
    History::new().check(Ok(()));
    // Stale, and of the past.
    but(|h| h.calls[2].outcome = read(2, version(2, 2, 1, "a")))
        .check(Err("had been told before this began"));
    but(|h| h.calls[2].outcome = read(3, version(2, 2, 1, "a"))).check(Err("a wrong answer"));
    but(|h| h.calls.push(call(7, 8, get(true), read(2, version(2, 2, 1, "a")))))
        .check(Err("its member had told revision 3"));
    but(|h| {
        h.calls.push(call(7, 8, get(true), read(2, version(2, 2, 1, "a"))));
        h.calls[3].life = Some(2);
    })
    .check(Ok(()));
    // Acknowledged and lost, at the end and elsewhere.
    but(|h| h.calls.push(call(7, 8, put("c", 0), written(4)))).check(Err("was told, but no member has any"));
    but(|h| h.calls.push(call(7, 8, put("c", 0), written(3)))).check(Err("was told to several that wrote"));
    // Refused, and done all the same; done twice.
    but(|h| h.calls[1].outcome = Outcome::Refused).check(Err("nobody wrote revision 3"));
    but(|h| h.calls[1].outcome = Outcome::Unknown).check(Ok(()));
    but(|h| {
        h.calls[1].outcome = Outcome::Unknown;
        h.change(4, version(4, 2, 3, "b"), Some(version(3, 2, 2, "b")));
    })
    .check(Err("nobody wrote revision 4, or it was written before"));
    // Without a cause, or before its cause.
    but(|h| h.change(4, version(4, 2, 3, "x"), None)).check(Err("nobody wrote revision 4"));
    but(|h| (h.calls[1].begun, h.calls[1].ended) = (7 * SECOND, Some(8 * SECOND)))
        .check(Err("revision 3 had been told before"));
    // Deletions without an answer explain one revision each.
    let delete = |h: &mut History, revision| {
        let gone = KeyValue { key: "k".into(), mod_revision: revision, ..Default::default() };
        h.change(revision, gone, Some(version(3, 2, 2, "b")));
    };
    let request = |outcome| {
        let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
        call(7, 0, Request::Operation(Operation::DeleteRange(delete)), outcome)
    };
    but(|h| delete(h, 4)).check(Err("nobody deleted what revision 4 deletes"));
    but(|h| {
        delete(h, 4);
        h.calls.push(request(Outcome::Unknown));
    })
    .check(Ok(()));
    but(|h| {
        let none = DeleteRangeResponse { deleted: 0, ..Default::default() };
        h.calls.push(Call { ended: Some(8 * SECOND), ..request(applied(3, Response::DeleteRange(none))) });
    })
    .check(Err("it changed nothing, but had to"));
}

#[test]
fn what_is_wrong_with_watches_is_found() {
    let gone = |h: &mut History| drop(h.seen.remove(0));
    but(gone).check(Err("a watch lacks revision 2"));
    but(|h| drop(h.seen.pop())).check(Err("a watch lacks revision 3"));
    but(|h| h.next = 3).check(Err("did not get to the end"));
    but(|h| h.seen.swap(0, 1)).check(Err("a watch lacks revision 2 or has one too many"));
    but(|h| h.seen.push(h.seen[1].clone())).check(Err("more than there is"));
    but(|h| h.seen[1].1[0].changed.kv.create_revision = 3).check(Err("another revision 3"));
    but(|h| h.seen[1].1[0].previous = None).check(Err("a wrong previous version at 3"));
}

#[test]
fn what_is_wrong_with_leases_is_found() {
    let keep_alive = |begun, ended, ttl| {
        let answer = LeaseAnswer { ttl, granted: ttl };
        call(begun, ended, Request::KeepAlive(7), Outcome::KeptAlive(answer))
    };
    let revoke = |outcome| {
        call(13, 0, Request::Operation(Operation::LeaseRevoke(LeaseRevokeRequest { id: 7 })), outcome)
    };
    History::with_lease(15).check(Ok(()));
    History::with_lease(14).check(Err("nobody deleted what revision 5 deletes"));
    let renewed = |ended_at, call: Call| {
        let mut history = History::with_lease(ended_at);
        history.calls.push(call);
        history
    };
    renewed(16, keep_alive(12, 13, 5)).check(Err("nobody deleted what revision 5 deletes"));
    renewed(17, keep_alive(12, 13, 5)).check(Ok(()));
    renewed(16, keep_alive(12, 17, 5)).check(Ok(()));
    renewed(14, revoke(Outcome::Unknown)).check(Ok(()));
    // Told to be gone, while it has to be there.
    renewed(15, keep_alive(13, 14, 0)).check(Err("lease 7 was to live until"));
    renewed(15, keep_alive(14, 15, 0)).check(Ok(()));
    // Revoked once, or by nobody who could have done it.
    let revoked = |begun, ended| Call {
        ended: Some(ended * SECOND),
        begun: begun * SECOND,
        ..revoke(applied(5, Response::LeaseRevoke(LeaseRevokeResponse::default())))
    };
    renewed(14, revoked(13, 14)).check(Ok(()));
    let with = |ended_at, calls: [Call; 2]| {
        let mut history = History::with_lease(ended_at);
        history.calls.extend(calls);
        history
    };
    with(14, [revoked(13, 14), revoked(13, 15)]).check(Err("lease 7 is revoked twice"));
    with(15, [revoked(13, 14), revoked(16, 17)]).check(Err("lease 7 is revoked twice"));
    let nothing = Outcome::Read { revision: 5, response: RangeResponse::default() };
    let known = call(14, 15, get(false), nothing);
    with(14, [known.clone(), revoked(16, 17)]).check(Err("nobody deleted what revision 5 deletes"));
    with(15, [known, revoked(16, 17)]).check(Ok(()));
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    let deleted = DeleteRangeResponse { deleted: 1, ..Default::default() };
    let delete = Request::Operation(Operation::DeleteRange(delete));
    let deleted = call(13, 14, delete, applied(5, Response::DeleteRange(deleted)));
    with(14, [deleted, revoked(13, 14)]).check(Ok(()));
}

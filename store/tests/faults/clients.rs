//! Clients: each asks one thing after the other, of whichever member, and records what it was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::apply::Response;
use kube_store::node::LeaseAnswer;
use parking_lot::Mutex;
use tonic::Status;

use crate::client::Client as Connection;
use crate::history::{Call, Outcome, Request};
use crate::random::Random;
use crate::shared::Shared;

const KEYS: u64 = 24;
/// Puts may be of a lease of this many, the newest.
const LEASES: usize = 8;

/// Leases that somebody asked for.
#[derive(Default)]
pub struct Leases {
    ids: Mutex<Vec<i64>>,
    last: AtomicI64,
}

impl Leases {
    /// All have run out.
    pub fn forget(&self) {
        self.ids.lock().clear();
    }
}

pub struct Client {
    number: usize,
    random: Random,
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    connections: Vec<Connection>,
    member: usize,
    serial: u64,
    /// What it last read.
    known: Vec<KeyValue>,
    /// The newest revision that it was told.
    revision: i64,
}

fn key(number: u64) -> Bytes {
    format!("k{number:02}").into()
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

impl Client {
    pub fn new(number: usize, random: Random, shared: Arc<Shared>, leases: Arc<Leases>) -> Self {
        let connections = (0..shared.members()).map(|member| shared.client(member)).collect();
        Self {
            number,
            random,
            shared,
            leases,
            connections,
            member: 0,
            serial: 0,
            known: Vec::new(),
            revision: 1,
        }
    }

    /// Asks until it is told to stop, and waits for its last answer. Gives itself back with what happened.
    pub async fn run(mut self, stop: Arc<AtomicBool>) -> (Self, Vec<Call>) {
        let mut history = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if self.random.one_in(10) {
                self.member = self.random.index(self.connections.len());
            }
            let request = self.choose();
            let call = self.call(request).await;
            let pause = match &call.outcome {
                // Its member is probably down.
                Outcome::Refused | Outcome::Unknown => {
                    self.member = self.random.index(self.connections.len());
                    20
                }
                _ => self.random.below(15),
            };
            history.push(call);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        (self, history)
    }

    fn put(&mut self, key: Bytes) -> PutRequest {
        self.serial += 1;
        // Each value is written once, so that what is read tells who wrote it. Now and then it is long.
        let mut value = format!("c{}-{}", self.number, self.serial);
        if self.random.one_in(20) {
            value.push_str(&"-".repeat(self.random.index(12_000)));
        }
        let lease = if self.random.one_in(5) { self.some_lease().unwrap_or(0) } else { 0 };
        PutRequest { key, value: value.into(), lease, prev_kv: self.random.one_in(3), ..Default::default() }
    }

    fn some_lease(&mut self) -> Option<i64> {
        let ids = self.leases.ids.lock();
        if ids.is_empty() { None } else { Some(ids[self.random.index(ids.len())]) }
    }

    fn some_range(&mut self) -> (Bytes, Bytes) {
        let from = self.random.below(KEYS);
        match self.random.below(6) {
            0 => (key(from), key(self.random.between(from + 1, KEYS))),
            1 => (key(from), b"\0".as_slice().into()),
            _ => (key(from), Bytes::new()),
        }
    }

    fn choose(&mut self) -> Request {
        let operation = match self.random.below(1000) {
            0..240 => {
                let key = key(self.random.below(KEYS));
                Operation::Put(self.put(key))
            }
            240..300 => {
                // Where little else is written, so that it is the lease that deletes it.
                let key = format!("l{:02}", self.random.below(KEYS)).into();
                let lease = self.some_lease().unwrap_or(0);
                Operation::Put(PutRequest { lease, ..self.put(key) })
            }
            300..350 => {
                let (key, range_end) = self.some_range();
                Operation::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv: self.random.one_in(2) })
            }
            350..500 => Operation::Txn(self.transaction()),
            500..512 => {
                // Only what is in the ledger may be compacted, or nobody would know what it was.
                let mut whole = self.shared.ledger.lock();
                let behind = if self.random.one_in(3) { 0 } else { self.random.below(200) as i64 };
                let revision = (whole.through - behind).max(1);
                whole.compacted = whole.compacted.max(revision);
                Operation::Compaction(CompactionRequest { revision, physical: self.random.one_in(4) })
            }
            512..530 => {
                let id = self.leases.last.fetch_add(1, Ordering::Relaxed) + 1;
                let mut ids = self.leases.ids.lock();
                ids.push(id);
                if ids.len() > LEASES {
                    ids.remove(0);
                }
                Operation::LeaseGrant(LeaseGrantRequest { id, ttl: self.random.between(1, 5) as i64 })
            }
            530..540 => match self.some_lease() {
                Some(id) => Operation::LeaseRevoke(LeaseRevokeRequest { id }),
                None => return self.read(),
            },
            540..600 => match self.some_lease() {
                Some(id) => return Request::KeepAlive(id),
                None => return self.read(),
            },
            _ => return self.read(),
        };
        Request::Operation(operation)
    }

    fn read(&mut self) -> Request {
        let (key, range_end) = self.some_range();
        let revision = match self.random.below(8) {
            0 => (self.revision - self.random.below(100) as i64).max(0),
            _ => 0,
        };
        let limit = if self.random.one_in(4) { 3 } else { 0 };
        let (count_only, keys_only) = (self.random.one_in(12), self.random.one_in(12));
        let serializable = self.random.one_in(3);
        Request::Range(RangeRequest {
            key,
            range_end,
            revision,
            limit,
            serializable,
            count_only,
            keys_only,
            ..Default::default()
        })
    }

    /// Swaps what the client last read, or writes several keys at once.
    fn transaction(&mut self) -> TxnRequest {
        if self.known.is_empty() || self.random.one_in(3) {
            let first = self.random.below(KEYS - 3);
            let mut success = Vec::new();
            for number in first..first + self.random.between(2, 3) {
                let put = self.put(key(number));
                success.push(op(Op::RequestPut(put)));
            }
            let delete = DeleteRangeRequest { key: key(first + 3), prev_kv: true, ..Default::default() };
            success.push(op(Op::RequestDeleteRange(delete)));
            return TxnRequest { success, ..Default::default() };
        }
        let known = self.known[self.random.index(self.known.len())].clone();
        let (target, union) = match self.random.below(5) {
            0 => (CompareTarget::Version, TargetUnion::Version(known.version)),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(known.create_revision)),
            2 => (CompareTarget::Value, TargetUnion::Value(known.value)),
            3 => (CompareTarget::Lease, TargetUnion::Lease(known.lease)),
            _ => (CompareTarget::Mod, TargetUnion::ModRevision(known.mod_revision)),
        };
        let result = match self.random.below(6) {
            0 => CompareResult::Less,
            1 => CompareResult::Greater,
            2 => CompareResult::NotEqual,
            _ => CompareResult::Equal,
        };
        let compare = Compare {
            result: result as i32,
            target: target as i32,
            key: known.key.clone(),
            target_union: Some(union),
            ..Default::default()
        };
        let put = self.put(known.key.clone());
        let failure = match self.random.one_in(4) {
            true => Op::RequestPut(self.put(known.key)),
            false => Op::RequestRange(RangeRequest { key: known.key, ..Default::default() }),
        };
        TxnRequest {
            compare: vec![compare],
            success: vec![op(Op::RequestPut(put))],
            failure: vec![op(failure)],
        }
    }

    async fn call(&mut self, request: Request) -> Call {
        let member = self.member;
        let life = self.shared.life(member);
        let begun = self.shared.now();
        // Some are impatient, and leave behind what may happen yet.
        let patience = Duration::from_millis(if self.random.one_in(10) { 300 } else { 6000 });
        let asked = ask(&self.connections[member], &request);
        let outcome = match tokio::time::timeout(patience, asked).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(status)) => self.failed(&request, &status),
            Err(_) => Outcome::Unknown,
        };
        let ended = self.shared.now();
        let was = self.shared.life(member);
        self.learn(&request, &outcome);
        self.count(&request, &outcome);
        Call {
            client: self.number,
            member,
            life: (was == life).then_some(life),
            begun,
            ended: (!matches!(outcome, Outcome::Unknown)).then_some(ended),
            request,
            outcome,
        }
    }

    /// What an error says of a call.
    fn failed(&self, request: &Request, status: &Status) -> Outcome {
        let message = status.message();
        match message.strip_prefix("etcdserver: ").unwrap_or(message) {
            "mvcc: required revision has been compacted" => match request {
                Request::Range(_) => Outcome::ReadCompacted,
                _ => Outcome::Refused,
            },
            "mvcc: required revision is a future revision"
            | "requested lease not found"
            | "rpc not supported for learner"
            // Nobody was reached.
            | "tcp connect error" => Outcome::Refused,
            "lease already exists" | "corrupt cluster" | "mvcc: database space exceeded" => {
                self.shared.fail(format!("client {} was told {message} of {request:#?}", self.number));
                Outcome::Unknown
            }
            _ => Outcome::Unknown,
        }
    }

    fn learn(&mut self, request: &Request, outcome: &Outcome) {
        match outcome {
            Outcome::Read { revision, response } => {
                self.revision = self.revision.max(*revision);
                let Request::Range(range) = request else { return };
                if !range.keys_only && !range.count_only {
                    self.known.clone_from(&response.kvs);
                }
            }
            Outcome::Applied { revision, .. } => {
                self.revision = self.revision.max(*revision);
                self.shared.accepted();
            }
            _ => {}
        }
    }

    fn count(&self, request: &Request, outcome: &Outcome) {
        let kind = match request {
            Request::Operation(Operation::Put(_)) => "put",
            Request::Operation(Operation::DeleteRange(_)) => "delete",
            Request::Operation(Operation::Txn(_)) => "txn",
            Request::Operation(Operation::Compaction(_)) => "compact",
            Request::Operation(Operation::LeaseGrant(_)) => "grant",
            Request::Operation(Operation::LeaseRevoke(_)) => "revoke",
            Request::Operation(_) => unreachable!("no client asks for it"),
            Request::Range(range) if range.serializable => "get (serializable)",
            Request::Range(_) => "get",
            Request::KeepAlive(_) => "keep alive",
        };
        let outcome = match outcome {
            Outcome::Unknown => "unknown",
            Outcome::Refused | Outcome::ReadCompacted => "refused",
            _ => "ok",
        };
        *self.shared.counts.lock().calls.entry((kind, outcome)).or_default() += 1;
    }
}

fn revision(header: Option<ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

async fn ask(client: &Connection, request: &Request) -> Result<Outcome, Status> {
    let mut kv = client.kv.clone();
    let mut lease = client.lease.clone();
    let applied = |revision, response| Outcome::Applied { revision, result: Ok(response) };
    let operation = match request {
        Request::Range(range) => {
            let mut response = kv.range(range.clone()).await?.into_inner();
            let revision = revision(response.header.take());
            return Ok(Outcome::Read { revision, response });
        }
        Request::KeepAlive(id) => {
            let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: *id }]);
            let mut answers = lease.lease_keep_alive(requests).await?.into_inner();
            let answer = answers.message().await?.ok_or_else(|| Status::unknown("the stream ended"))?;
            return Ok(Outcome::KeptAlive(LeaseAnswer { ttl: answer.ttl, granted: answer.ttl }));
        }
        Request::Operation(operation) => operation.clone(),
    };
    Ok(match operation {
        Operation::Put(put) => {
            let response = kv.put(put).await?.into_inner();
            applied(revision(response.header), Response::Put(response))
        }
        Operation::DeleteRange(delete) => {
            let response = kv.delete_range(delete).await?.into_inner();
            applied(revision(response.header), Response::DeleteRange(response))
        }
        Operation::Txn(txn) => {
            let response = kv.txn(txn).await?.into_inner();
            applied(revision(response.header), Response::Txn(response))
        }
        Operation::Compaction(compaction) => {
            let response = kv.compact(compaction).await?.into_inner();
            applied(revision(response.header), Response::Compaction(response))
        }
        Operation::LeaseGrant(grant) => {
            let response = lease.lease_grant(grant).await?.into_inner();
            applied(revision(response.header), Response::LeaseGrant(response))
        }
        Operation::LeaseRevoke(revoke) => {
            let response = lease.lease_revoke(revoke).await?.into_inner();
            applied(revision(response.header), Response::LeaseRevoke(response))
        }
        _ => unreachable!("no client asks for it"),
    })
}

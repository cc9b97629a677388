//! Clients, what they ask for, and the history of what they were told.

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest,
};
use keelson_proto::etcd::storepb::command::Operation;
use kube_store::mvcc::MvccError;
use kube_store::node::{Answer, Event, LeaseAnswer, Refused};
use tokio::sync::oneshot;

use crate::history::{Call, Outcome, Request};
use crate::random::Random;
use crate::world::{MILLISECOND, Members, state};

const CLIENTS: usize = 6;
const KEYS: u64 = 8;
/// Puts may be of a lease of this many.
const LEASES: u64 = 4;

enum Waiting {
    Answer(oneshot::Receiver<Answer>),
    Barrier(oneshot::Receiver<Result<(), Refused>>),
    /// The member may read.
    Read,
    Lease(oneshot::Receiver<Result<LeaseAnswer, Refused>>),
}

#[derive(Default)]
struct Client {
    waiting: Option<(usize, Waiting)>,
    /// What it last read: keys with their mod revisions.
    known: Vec<(Bytes, i64)>,
    /// The newest revision that it was told.
    revision: i64,
    member: usize,
}

pub struct Clients {
    clients: Vec<Client>,
    pub history: Vec<Call>,
    random: Random,
    serial: u64,
    /// Shorter or longer breaks between calls, in milliseconds.
    pace: u64,
    leases: Vec<i64>,
    /// Then leases may have expired early.
    pub clock_jumped: bool,
    /// No new calls any more.
    pub quiet: bool,
}

fn key(number: u64) -> Bytes {
    format!("k{number}").into()
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

impl Clients {
    pub fn new(mut random: Random) -> Self {
        let pace = [10, 40, 150][random.index(3)];
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        Self {
            clients,
            history: Vec::new(),
            random,
            serial: 0,
            pace,
            leases: Vec::new(),
            clock_jumped: false,
            quiet: false,
        }
    }

    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// The break before a client's next call.
    pub fn think(&mut self) -> u64 {
        let pace = self.pace;
        self.random.between(1, pace * 2) * MILLISECOND
    }

    fn put(&mut self, key: Bytes) -> PutRequest {
        self.serial += 1;
        // Each value is written once, so that what is read tells who wrote it. Now and then it is long.
        let mut value = format!("v{}", self.serial);
        if self.random.one_in(10) {
            value.push_str(&"-".repeat(self.random.index(6000)));
        }
        let lease = match self.leases.last() {
            Some(_) if self.random.one_in(4) => self.leases[self.random.index(self.leases.len())],
            _ => 0,
        };
        PutRequest { key, value: value.into(), lease, prev_kv: self.random.one_in(3), ..Default::default() }
    }

    fn some_key(&mut self) -> Bytes {
        key(self.random.below(KEYS))
    }

    fn some_range(&mut self) -> (Bytes, Bytes) {
        let from = self.random.below(KEYS);
        match self.random.below(4) {
            0 => (key(from), key(self.random.between(from, KEYS))),
            1 => (b"k".as_slice().into(), b"l".as_slice().into()),
            _ => (key(from), Bytes::new()),
        }
    }

    fn choose(&mut self, client: usize) -> Request {
        let operation = match self.random.below(100) {
            0..35 => {
                let key = self.some_key();
                Operation::Put(self.put(key))
            }
            35..43 => {
                let (key, range_end) = self.some_range();
                let prev_kv = self.random.one_in(2);
                Operation::DeleteRange(DeleteRangeRequest { key, range_end, prev_kv })
            }
            43..58 => Operation::Txn(self.transaction(client)),
            58..61 => {
                let revision = self.clients[client].revision;
                Operation::Compaction(CompactionRequest {
                    revision: (revision - self.random.below(20) as i64).max(1),
                    physical: false,
                })
            }
            61..64 => {
                self.serial += 1;
                let (id, ttl) = (self.serial as i64, self.random.between(2, 6) as i64);
                self.leases.push(id);
                if self.leases.len() > LEASES as usize {
                    self.leases.remove(0);
                }
                Operation::LeaseGrant(LeaseGrantRequest { id, ttl })
            }
            64..66 if !self.leases.is_empty() => {
                let id = self.leases[self.random.index(self.leases.len())];
                Operation::LeaseRevoke(LeaseRevokeRequest { id })
            }
            66..70 if !self.leases.is_empty() => {
                return Request::KeepAlive(self.leases[self.random.index(self.leases.len())]);
            }
            _ => {
                let (key, range_end) = self.some_range();
                let newest = self.clients[client].revision;
                let revision = match self.random.below(5) {
                    0 => (newest - self.random.below(10) as i64).max(0),
                    _ => 0,
                };
                let limit = if self.random.one_in(4) { 2 } else { 0 };
                let serializable = self.random.one_in(3);
                return Request::Range(RangeRequest {
                    key,
                    range_end,
                    revision,
                    limit,
                    serializable,
                    ..Default::default()
                });
            }
        };
        Request::Operation(operation)
    }

    /// Swaps what the client last read, or writes several keys at once.
    fn transaction(&mut self, client: usize) -> TxnRequest {
        let known = &self.clients[client].known;
        if known.is_empty() || self.random.one_in(3) {
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
        let (key, revision) = known[self.random.index(known.len())].clone();
        let compare = Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Default::default()
        };
        let put = self.put(key.clone());
        let range = RangeRequest { key, ..Default::default() };
        TxnRequest {
            compare: vec![compare],
            success: vec![op(Op::RequestPut(put))],
            failure: vec![op(Op::RequestRange(range))],
        }
    }

    /// A client's next call: where it goes, the event that it is, and its number.
    pub fn next(
        &mut self,
        client: usize,
        members: &Members,
        now: u64,
    ) -> Option<(usize, Option<Event>, usize)> {
        if self.quiet || self.clients[client].waiting.is_some() {
            return None;
        }
        // A client stays with a member for a while.
        if self.random.one_in(8) || members[self.clients[client].member].process.is_none() {
            let running: Vec<usize> =
                (0..members.len()).filter(|member| members[*member].process.is_some()).collect();
            if running.is_empty() {
                return None;
            }
            self.clients[client].member = running[self.random.index(running.len())];
        }
        let request = self.choose(client);
        self.begin(client, self.clients[client].member, request, members, now)
    }

    pub fn begin(
        &mut self,
        client: usize,
        member: usize,
        request: Request,
        members: &Members,
        now: u64,
    ) -> Option<(usize, Option<Event>, usize)> {
        let at = &members[member];
        let state = state(members, member)?;
        if at.process.as_ref().is_some_and(|process| process.shared.is_learner()) {
            return None;
        }
        let number = self.history.len();
        let mut call = Call {
            client,
            member,
            life: Some(at.life),
            begun: now,
            ended: None,
            request: request.clone(),
            outcome: Outcome::Unknown,
        };
        let (waiting, event) = match request {
            Request::Operation(operation) => {
                let (reply, answer) = oneshot::channel();
                (Waiting::Answer(answer), Event::Propose { operation, reply })
            }
            // As the service: whoever is alone need not ask itself.
            Request::Range(range)
                if range.serializable
                    || at.process.as_ref().is_some_and(|process| process.shared.is_sole()) =>
            {
                if at.paused_until > now {
                    return None;
                }
                self.read(&mut call, state, &range, now);
                self.history.push(call);
                return Some((member, None, number));
            }
            Request::Range(_) => {
                let (reply, answer) = oneshot::channel();
                (Waiting::Barrier(answer), Event::Read { reply })
            }
            Request::KeepAlive(lease) => {
                let (reply, answer) = oneshot::channel();
                (Waiting::Lease(answer), Event::KeepAlive { lease, reply })
            }
        };
        self.history.push(call);
        self.clients[client].waiting = Some((number, waiting));
        Some((member, Some(event), number))
    }

    fn read(&mut self, call: &mut Call, state: &kube_store::apply::State, range: &RangeRequest, now: u64) {
        call.ended = Some(now);
        call.outcome = match state.store.range(range) {
            Ok((response, revision)) => {
                let client = &mut self.clients[call.client];
                client.revision = client.revision.max(revision);
                client.known = response.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
                Outcome::Read { revision, response }
            }
            Err(MvccError::Compacted) => Outcome::ReadCompacted,
            // A member that is behind what this client has seen elsewhere.
            Err(MvccError::FutureRevision) => Outcome::Refused,
            Err(error) => panic!("a read failed: {error:?}"),
        };
    }

    /// Takes the answers that a member has given; the clients that are free again.
    pub fn answered(&mut self, member: usize, now: u64) -> Vec<usize> {
        let mut free = Vec::new();
        for client in 0..self.clients.len() {
            let Some((number, waiting)) = self.clients[client].waiting.take() else { continue };
            if self.history[number].member != member {
                self.clients[client].waiting = Some((number, waiting));
                continue;
            }
            match self.answer(number, waiting, now) {
                Some(waiting) => self.clients[client].waiting = Some((number, waiting)),
                None => free.push(client),
            }
        }
        free
    }

    /// Gives back what still waits.
    fn answer(&mut self, number: usize, waiting: Waiting, now: u64) -> Option<Waiting> {
        use oneshot::error::TryRecvError::Empty;
        match waiting {
            Waiting::Answer(mut answer) => match answer.try_recv() {
                Err(Empty) => return Some(Waiting::Answer(answer)),
                Ok(Ok((revision, result))) => {
                    let call = &mut self.history[number];
                    call.ended = Some(now);
                    let client = &mut self.clients[call.client];
                    client.revision = client.revision.max(revision);
                    let result = result.map_err(|rejected| format!("{rejected:?}"));
                    call.outcome = Outcome::Applied { revision, result };
                }
                Ok(Err(_)) | Err(_) => {}
            },
            Waiting::Barrier(mut answer) => match answer.try_recv() {
                Err(Empty) => return Some(Waiting::Barrier(answer)),
                Ok(Ok(())) => return Some(Waiting::Read),
                Ok(Err(_)) | Err(_) => {}
            },
            Waiting::Read => return Some(Waiting::Read),
            Waiting::Lease(mut answer) => match answer.try_recv() {
                Err(Empty) => return Some(Waiting::Lease(answer)),
                Ok(Ok(answer)) => {
                    let call = &mut self.history[number];
                    call.ended = Some(now);
                    call.outcome = Outcome::KeptAlive(answer);
                }
                Ok(Err(_)) | Err(_) => {}
            },
        }
        None
    }

    /// Reads of a member that may: a little after they may, as a task that has to be scheduled first.
    pub fn read_what_may(&mut self, member: usize, members: &Members, now: u64) -> Vec<usize> {
        let mut free = Vec::new();
        let Some(state) = state(members, member) else { return free };
        for client in 0..self.clients.len() {
            let Some((number, Waiting::Read)) = &self.clients[client].waiting else { continue };
            let number = *number;
            if self.history[number].member != member || self.random.one_in(3) {
                continue;
            }
            self.clients[client].waiting = None;
            let mut call = self.history[number].clone();
            if let Request::Range(range) = call.request.clone() {
                self.read(&mut call, state, &range, now);
            }
            self.history[number] = call;
            free.push(client);
        }
        free
    }

    /// A member's process is gone, and with it every answer that it owed. Its clients call again after a while.
    pub fn lost(&mut self, member: usize) -> Vec<usize> {
        let mut free = Vec::new();
        for (number, client) in self.clients.iter_mut().enumerate() {
            if client.waiting.take_if(|(call, _)| self.history[*call].member == member).is_some() {
                free.push(number);
            }
        }
        free
    }

    /// A client waits no longer for a call; true: it did.
    pub fn abandon(&mut self, client: usize, call: usize) -> bool {
        self.clients[client].waiting.take_if(|(number, _)| *number == call).is_some()
    }

    pub fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.waiting.is_none())
    }
}

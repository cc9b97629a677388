//! The same requests, one at a time, to kube-store and to a real etcd: the answers have to be the same, field by field,
//! and so do errors, code and message.
//!
//! What cannot be the same is left out: ids of members and of the cluster, Raft's term, ids of leases that the server
//! chooses, the order of a lease's keys (etcd has a hash table) and of leases (etcd: by expiry), seconds that passed.
//! `PEER_ETCD` names the etcd (Debian's if unset), `PEER_SEED` the seed, `PEER_REQUESTS` how many requests, and
//! `PEER_DIFFERENCES` after how many differences it ends (later ones may follow from earlier ones).
//!
//! Where kube-store is meant to differ from the etcd at hand:
//!
//! - A transaction that puts a key and deletes *everything from* a key below it: etcd takes the delete's end, `\0`, for
//!   an ordinary key, so the overlap escapes it, and one key changes twice at one revision. kube-store refuses it like
//!   every other overlap. Not sent.
//! - Unknown values of `sort_order` and `sort_target`: etcd 3.4 and 3.5 crash or answer unsorted; kube-store refuses
//!   them, as etcd does from 3.6 on. Not sent.
//! - A deletion at the very revision that is compacted: etcd up to 3.5.15 forgets it, so that a watch from there misses
//!   it; kube-store keeps it, as later ones do. Only revisions of puts are compacted here.
//! - The checksum at the very revision that is compacted: told by kube-store, as by etcd from 3.5.12 and 3.4.30 on. Not
//!   asked for.
//! - The checksum where no key is there: an etcd counts what a compaction has yet to remove, so it changes until that is
//!   done; kube-store's is the last of them from the start. Asked for until it is.
//! - etcd 3.4 answers a request for alarms without a header; kube-store with one, as 3.5 does.

mod requests;
mod watches;

use std::fmt::Debug;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::request_op::Request as OpRequest;
use keelson_proto::etcd::etcdserverpb::response_op::Response;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    AlarmRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
};
use tokio_stream::StreamExt;
use tonic::Status;

use self::requests::{Generator, REQUEST_BYTES, Request, STREAMS, TXN_OPS};
use self::watches::Pair;
use crate::etcd::{self, Etcd};
use crate::harness::{self, Client, Member};

/// Requests between two looks at what the watches got.
const LEVEL_EVERY: u64 = 40;

/// Leaves of a header what both servers have to agree on.
pub fn anonymous(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

/// An answer as it is compared.
type Answer = Result<String, String>;

fn answer<T: Debug>(result: Result<tonic::Response<T>, Status>, plain: impl FnOnce(&mut T)) -> Answer {
    match result {
        Ok(response) => {
            let mut response = response.into_inner();
            plain(&mut response);
            Ok(format!("{response:?}"))
        }
        Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
    }
}

fn plain_txn(response: &mut TxnResponse) {
    anonymous(&mut response.header);
    for op in &mut response.responses {
        match &mut op.response {
            Some(Response::ResponseRange(response)) => anonymous(&mut response.header),
            Some(Response::ResponsePut(response)) => anonymous(&mut response.header),
            Some(Response::ResponseDeleteRange(response)) => anonymous(&mut response.header),
            Some(Response::ResponseTxn(response)) => plain_txn(response),
            None => {}
        }
    }
}

/// Revokes what was just granted, if it was.
async fn grant_briefly(client: &Client, request: LeaseGrantRequest) -> Answer {
    let chosen = request.id == 0;
    let mut granted = 0;
    let answered = answer(client.lease.clone().lease_grant(request).await, |response| {
        granted = response.id;
        anonymous(&mut response.header);
        if chosen {
            response.id = 0;
        }
    })?;
    let request = LeaseRevokeRequest { id: granted };
    let revoked = answer(client.lease.clone().lease_revoke(request).await, |r| anonymous(&mut r.header))?;
    Ok(format!("{answered}, then {revoked}"))
}

async fn keep_alive(client: &Client, id: i64) -> Answer {
    let requests = tokio_stream::once(LeaseKeepAliveRequest { id });
    let result = async {
        let mut stream = client.lease.clone().lease_keep_alive(requests).await?.into_inner();
        let response = stream.message().await?;
        response.map(tonic::Response::new).ok_or_else(|| Status::unknown("the stream ended"))
    };
    answer(result.await, |response| anonymous(&mut response.header))
}

/// Asks one server.
async fn ask(client: &Client, request: Request, old: bool) -> Answer {
    let (mut kv, mut lease) = (client.kv.clone(), client.lease.clone());
    let mut maintenance = client.maintenance.clone();
    match request {
        Request::Range(request) => answer(kv.range(request).await, |r| anonymous(&mut r.header)),
        Request::Put(request) => answer(kv.put(request).await, |r| anonymous(&mut r.header)),
        Request::DeleteRange(request) => answer(kv.delete_range(request).await, |r| anonymous(&mut r.header)),
        Request::Txn(request) => answer(kv.txn(request).await, plain_txn),
        Request::Compact(request) => answer(kv.compact(request).await, |r| anonymous(&mut r.header)),
        Request::Grant(request) => answer(lease.lease_grant(request).await, |r| anonymous(&mut r.header)),
        Request::GrantBriefly(request) => grant_briefly(client, request).await,
        Request::Revoke(id) => {
            let request = LeaseRevokeRequest { id };
            answer(lease.lease_revoke(request).await, |r| anonymous(&mut r.header))
        }
        Request::KeepAlive(id) => keep_alive(client, id).await,
        Request::TimeToLive { id, keys } => {
            let request = LeaseTimeToLiveRequest { id, keys };
            answer(lease.lease_time_to_live(request).await, |response| {
                anonymous(&mut response.header);
                response.keys.sort();
                // No lease here comes near its end.
                if response.ttl > 0 && response.ttl <= response.granted_ttl {
                    response.ttl = response.granted_ttl;
                }
            })
        }
        Request::Leases => answer(lease.lease_leases(LeaseLeasesRequest {}).await, |response| {
            anonymous(&mut response.header);
            response.leases.sort_by_key(|lease| lease.id);
        }),
        Request::HashKv(revision) => {
            let request = HashKvRequest { revision };
            answer(maintenance.hash_kv(request).await, |response| {
                anonymous(&mut response.header);
                // etcd says it since 3.5.9.
                response.hash_revision = 0;
            })
        }
        Request::Alarms => answer(maintenance.alarm(AlarmRequest::default()).await, |response| {
            anonymous(&mut response.header);
            if old {
                response.header = None;
            }
        }),
        Request::Watch { .. } | Request::Cancel { .. } | Request::Progress { .. } => {
            unreachable!("they go to a stream")
        }
    }
}

/// Both servers and their watches.
struct Peers {
    ours: Client,
    theirs: Client,
    streams: Vec<Pair>,
    compacted: i64,
    /// The etcd is a 3.4.
    old: bool,
}

impl Peers {
    async fn ours(&self, request: Request) -> Answer {
        ask(&self.ours, request, self.old).await
    }

    async fn theirs(&self, request: Request) -> Answer {
        ask(&self.theirs, request, self.old).await
    }

    /// Sends a request to both; says what differs.
    async fn send(&mut self, request: Request) -> Result<(), String> {
        let same = |answers: (Vec<_>, Vec<_>)| match answers.0 == answers.1 {
            true => Ok(()),
            false => Err(format!("kube-store: {:?}\netcd: {:?}", answers.0, answers.1)),
        };
        match request {
            Request::Watch { stream, create } => same(self.streams[stream].create(create).await),
            Request::Cancel { stream, id } => {
                // What a watch gets before it is cancelled is no longer known afterwards.
                self.streams[stream].level().await?;
                same(self.streams[stream].cancel(id).await)
            }
            Request::Progress { stream } => {
                self.streams[stream].level().await?;
                // An etcd from 3.5.8 on does not answer while a watch is behind.
                self.settle().await?;
                match self.streams[stream].tells_progress() {
                    true => same(self.streams[stream].progress().await),
                    false => Ok(()),
                }
            }
            request => {
                let compaction = match &request {
                    Request::Compact(request) => Some(request.revision),
                    _ => None,
                };
                if compaction.is_some() {
                    // Or it would be chance which watches have read their history before.
                    self.level().await?;
                    self.settle().await?;
                }
                if let Request::HashKv(revision) = request
                    && !self.any_key(revision).await
                {
                    return self.settled_checksum(revision).await;
                }
                let (ours, theirs) = tokio::join!(self.ours(request.clone()), self.theirs(request));
                if let Some(revision) = compaction
                    && ours.is_ok()
                {
                    self.compacted = revision;
                }
                match ours == theirs {
                    true => Ok(()),
                    false => Err(format!("kube-store: {}\netcd: {}", show(&ours), show(&theirs))),
                }
            }
        }
    }

    /// Whether a key is there at a revision; yes where that cannot be read.
    async fn any_key(&self, revision: i64) -> bool {
        let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        let request = RangeRequest { key, range_end, revision, count_only: true, ..RangeRequest::default() };
        self.ours.range(request).await.is_ok_and(|response| response.count > 0)
    }

    /// The checksum where no key is there: an etcd takes in what its compaction has not removed yet, so that has to end.
    async fn settled_checksum(&self, revision: i64) -> Result<(), String> {
        let request = Request::HashKv(revision);
        let ours = self.ours(request.clone()).await;
        let what = format!("etcd's checksum at revision {revision}, where no key is, is {}", show(&ours));
        harness::eventually(&what, async || (self.theirs(request.clone()).await == ours).then_some(())).await;
        Ok(())
    }

    async fn level(&self) -> Result<(), String> {
        for stream in &self.streams {
            stream.level().await?;
        }
        Ok(())
    }

    /// Waits until etcd has brought every watch up to now: it takes those that are behind in turns, so one that is
    /// new and has been told of something is behind none of them.
    async fn settle(&self) -> Result<(), String> {
        let put = PutRequest { key: "~".into(), ..PutRequest::default() };
        let put = Request::Put(put);
        let (ours, theirs) = tokio::join!(self.ours(put.clone()), self.theirs(put));
        if ours != theirs {
            return Err(format!("kube-store: {}\netcd: {}", show(&ours), show(&theirs)));
        }
        watches::catch_up(&self.theirs, "~", self.revision().await).await;
        Ok(())
    }

    /// The newest revision, which both have.
    async fn revision(&self) -> i64 {
        let request = RangeRequest { key: "a".into(), count_only: true, ..RangeRequest::default() };
        self.ours.range(request).await.unwrap().header.unwrap().revision
    }
}

fn show(answer: &Answer) -> &str {
    match answer {
        Ok(text) | Err(text) => text,
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Both servers, with the same flags.
async fn start(flags: &[String]) -> (Member, Etcd) {
    let mut member = harness::members(1).remove(0);
    member.extra.extend_from_slice(flags);
    member.start();
    member.ready().await;
    (member, Etcd::start(flags).await)
}

/// Changes one revision's worth of large values, twice; what a watch that wants both versions gets of the second time,
/// response by response.
async fn parts(client: &Client) -> Vec<(bool, Vec<Bytes>)> {
    let create = WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv: true,
        fragment: true,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut watch = client.watch.clone();
    let mut responses = watch.watch(requests).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
    let put = |at: usize| {
        let value = vec![b'v'; (150 << 10) + at];
        let put = PutRequest { key: format!("k{at}").into(), value: value.into(), ..PutRequest::default() };
        RequestOp { request: Some(OpRequest::RequestPut(put)) }
    };
    let mut parts = Vec::new();
    for _ in 0..2 {
        let request = TxnRequest { success: (0..TXN_OPS).map(put).collect(), ..TxnRequest::default() };
        client.kv.clone().txn(request).await.unwrap();
        parts.clear();
        while parts.last().is_none_or(|(more, _)| *more) {
            let response = responses.message().await.unwrap().unwrap();
            let keys = response.events.into_iter().map(|event| event.kv.unwrap().key).collect();
            parts.push((response.fragment, keys));
        }
    }
    parts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_are_split_where_etcd_splits_them() {
    let (member, peer) = start(&[]).await;
    let (ours, theirs) = (parts(&member.client()).await, parts(&peer.client()).await);
    assert!(ours.len() > 1, "{ours:?}");
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_etcds() {
    let seed = number("PEER_SEED", rand::random());
    let count = number("PEER_REQUESTS", 2000);
    println!("PEER_SEED={seed} PEER_REQUESTS={count} PEER_ETCD={}", etcd::program());
    let flags = [format!("--max-request-bytes={REQUEST_BYTES}"), format!("--max-txn-ops={TXN_OPS}")];
    let (member, peer) = start(&flags).await;
    let (ours, theirs) = (member.client(), peer.client());
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(Pair::open(&ours, &theirs).await);
    }
    let old = theirs.status().await.unwrap().version.starts_with("3.4.");
    let mut peers = Peers { ours, theirs, streams, compacted: -1, old };
    let mut generator = Generator::new(seed);
    let mut revision = peers.revision().await;
    let mut puts = Vec::new();
    let (mut differences, most) = (Vec::new(), number("PEER_DIFFERENCES", 1) as usize);
    for serial in 0..count {
        let request = generator.next(revision, peers.compacted, &puts);
        let put = matches!(request, Request::Put(_));
        let shown = format!("{request:?}");
        if let Err(difference) = peers.send(request).await {
            differences.push(format!("request {serial} at revision {revision}: {shown}\n{difference}"));
        }
        let before = std::mem::replace(&mut revision, peers.revision().await);
        if put && revision > before {
            puts.push(revision);
        }
        puts.retain(|revision| *revision > peers.compacted);
        if (serial.is_multiple_of(LEVEL_EVERY) || serial + 1 == count)
            && let Err(difference) = peers.level().await
        {
            differences.push(format!("by request {serial}: {difference}"));
        }
        if differences.len() >= most {
            break;
        }
    }
    assert!(differences.is_empty(), "seed {seed}: {}", differences.join("\n\n"));
}

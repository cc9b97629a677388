//! The services Lock and Election: queues of keys below a prefix, in the order of their creation, each as long-lived as
//! its lease. Who is first holds the lock, or leads. Built on KV, Lease and the hub as any client could build them.
//!
//! A client that goes away while it waits leaves the queue. As in etcd, all errors have the code Unknown, those of the
//! services below included.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::kv_server::Kv;
use keelson_proto::etcd::etcdserverpb::lease_server::Lease;
use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request as Op;
use keelson_proto::etcd::etcdserverpb::response_op::Response as OpResponse;
use keelson_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, TxnRequest, TxnResponse,
};
use keelson_proto::etcd::mvccpb::KeyValue;
use keelson_proto::etcd::v3electionpb::election_server::Election;
use keelson_proto::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use keelson_proto::etcd::v3lockpb::lock_server::Lock;
use keelson_proto::etcd::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Server, Service, status};
use crate::mvcc::KeyRange;
use crate::watch::{Item, Stream};

/// Seconds that the lease lives which is granted where the client brings none.
const TTL: i64 = 60;

/// The keys below a name.
fn prefix(name: &[u8]) -> (Bytes, Bytes) {
    ([name, b"/"].concat().into(), [name, b"0"].concat().into())
}

/// As Go prints it.
fn hexadecimal(lease: i64) -> String {
    let sign = if lease < 0 { "-" } else { "" };
    format!("{sign}{:x}", lease.unsigned_abs())
}

fn is_created_at(key: Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Compare::default()
    }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    RequestOp { request: Some(Op::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() })) }
}

fn get(key: Bytes) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

/// An error of a service below.
fn relayed(error: Status) -> Status {
    Status::unknown(error.message())
}

/// Wakes on changes below a prefix.
struct Changes {
    server: Arc<Server>,
    stream: Arc<Stream>,
    range: KeyRange,
}

/// The one watch of a stream.
const WATCH: u64 = 1;

impl Changes {
    fn below(server: &Arc<Server>, (key, end): (Bytes, Bytes)) -> Self {
        let changes = Self { server: server.clone(), stream: Arc::default(), range: KeyRange::new(key, end) };
        changes.follow();
        changes
    }

    fn follow(&self) {
        let hub = &self.server.state.hub;
        // Refused only if there was a change between the two.
        while hub.sync(&self.stream, WATCH, &self.range, hub.revision() + 1).is_err() {}
    }

    /// Waits for a change that was not seen yet.
    async fn next(&self) -> Result<(), Status> {
        tokio::select! {
            () = self.server.stopping.cancelled() => return Err(status::stopped()),
            () = self.stream.arrived() => {}
        }
        if self.stream.take().iter().any(|item| matches!(item, Item::Behind { .. })) {
            self.follow();
        }
        Ok(())
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.server.state.hub.remove(&self.stream, WATCH, &self.range);
    }
}

/// A key in a queue. It is deleted if it is dropped before it is first: the client has gone.
struct Candidate {
    server: Arc<Server>,
    below: (Bytes, Bytes),
    key: Bytes,
    created: i64,
    lease: i64,
    entered: Option<ResponseHeader>,
    waiting: bool,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.waiting {
            let (server, key, created) = (self.server.clone(), self.key.clone(), self.created);
            tokio::spawn(async move {
                // Without an answer its lease ends it.
                let _ = server.leave(key, created).await;
            });
        }
    }
}

impl Server {
    async fn run(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        Ok(Kv::txn(self, Request::new(request)).await.map_err(relayed)?.into_inner())
    }

    async fn read(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(Kv::range(self, Request::new(request)).await.map_err(relayed)?.into_inner())
    }

    /// Deletes a key of a queue, if it is still the one.
    async fn leave(&self, key: Bytes, created: i64) -> Result<TxnResponse, Status> {
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        let success = vec![RequestOp { request: Some(Op::RequestDeleteRange(delete)) }];
        self.run(TxnRequest { compare: vec![is_created_at(key, created)], success, failure: vec![] }).await
    }

    /// Gives a key of a queue another value.
    async fn proclaim(&self, leader: LeaderKey, value: Bytes) -> Result<Option<ResponseHeader>, Status> {
        let compare = vec![is_created_at(leader.key.clone(), leader.rev)];
        let success = vec![put(leader.key, value, leader.lease)];
        let response = self.run(TxnRequest { compare, success, failure: vec![] }).await?;
        if response.succeeded { Ok(response.header) } else { Err(Status::unknown("election: not leader")) }
    }

    async fn first(&self, (key, range_end): (Bytes, Bytes)) -> Result<RangeResponse, Status> {
        let (sort_target, sort_order) = (SortTarget::Create as i32, SortOrder::Ascend as i32);
        let request =
            RangeRequest { key, range_end, sort_target, sort_order, limit: 1, ..RangeRequest::default() };
        self.read(request).await
    }
}

impl Service {
    /// Enters a queue, or takes up the place that the lease has there.
    async fn enter(&self, name: &[u8], lease: i64, value: Bytes) -> Result<Candidate, Status> {
        let lease = if lease == 0 {
            let request = LeaseGrantRequest { ttl: TTL, id: 0 };
            self.lease_grant(Request::new(request)).await.map_err(relayed)?.into_inner().id
        } else {
            lease
        };
        let below = prefix(name);
        let key: Bytes = [&below.0, hexadecimal(lease).as_bytes()].concat().into();
        let response = self
            .run(TxnRequest {
                compare: vec![is_created_at(key.clone(), 0)],
                success: vec![put(key.clone(), value.clone(), lease)],
                failure: vec![RequestOp { request: Some(Op::RequestRange(get(key.clone()))) }],
            })
            .await?;
        let entered = response.header;
        let known = match response.responses.into_iter().next().and_then(|op| op.response) {
            Some(OpResponse::ResponseRange(found)) => found.kvs.into_iter().next(),
            _ => None,
        };
        let created = match &known {
            Some(known) => known.create_revision,
            None => entered.as_ref().map_or(0, |header| header.revision),
        };
        let server = self.0.clone();
        let candidate = Candidate { server, below, key, created, lease, entered, waiting: true };
        if let Some(known) = known
            && known.value != value
        {
            self.0.proclaim(candidate.leader_key(name), value).await?;
        }
        Ok(candidate)
    }
}

impl Candidate {
    fn leader_key(&self, name: &[u8]) -> LeaderKey {
        let (name, key) = (Bytes::copy_from_slice(name), self.key.clone());
        LeaderKey { name, key, rev: self.created, lease: self.lease }
    }

    /// Waits until there is nobody before it. Its header: of its entry if it was first at once, else of then.
    async fn become_first(mut self) -> Result<Self, Status> {
        let changes = Changes::below(&self.server, self.below.clone());
        let before = RangeRequest {
            key: self.below.0.clone(),
            range_end: self.below.1.clone(),
            max_create_revision: self.created - 1,
            limit: 1,
            keys_only: true,
            ..RangeRequest::default()
        };
        let mut waited = false;
        while !self.server.read(before.clone()).await?.kvs.is_empty() {
            waited = true;
            changes.next().await?;
        }
        self.waiting = false;
        if waited {
            let own = self.server.read(get(self.key.clone())).await?;
            if own.kvs.first().is_none_or(|kv| kv.create_revision != self.created) {
                return Err(Status::unknown("mutex: session is expired"));
            }
            self.entered = own.header;
        }
        Ok(self)
    }
}

#[tonic::async_trait]
impl Lock for Service {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let LockRequest { name, lease } = request.into_inner();
        let holder = self.enter(&name, lease, Bytes::new()).await?.become_first().await?;
        Ok(Response::new(LockResponse { header: holder.entered, key: holder.key.clone() }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..DeleteRangeRequest::default() };
        let header = self.delete_range(Request::new(delete)).await.map_err(relayed)?.into_inner().header;
        Ok(Response::new(UnlockResponse { header }))
    }
}

fn no_key() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

#[tonic::async_trait]
impl Election for Service {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let CampaignRequest { name, lease, value } = request.into_inner();
        let first = self.enter(&name, lease, value).await?.become_first().await?;
        let leader = Some(first.leader_key(&name));
        Ok(Response::new(CampaignResponse { header: first.entered, leader }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let ProclaimRequest { leader, value } = request.into_inner();
        let header = self.0.proclaim(leader.ok_or_else(no_key)?, value).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let found = self.first(prefix(&request.into_inner().name)).await?;
        let kv = found.kvs.into_iter().next();
        let kv = kv.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(LeaderResponse { header: found.header, kv: Some(kv) }))
    }

    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    /// Tells who leads, and whenever that or what it proclaims has changed; not necessarily each value in between.
    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let below = prefix(&request.into_inner().name);
        let (answers, stream) = mpsc::channel(4);
        let server = self.0.clone();
        tokio::spawn(async move {
            let changes = Changes::below(&server, below.clone());
            let mut told = None;
            let look = async {
                loop {
                    let found = server.first(below.clone()).await?;
                    let leader: Option<KeyValue> = found.kvs.into_iter().next();
                    if leader.is_some() && leader != told {
                        told.clone_from(&leader);
                        let response = LeaderResponse { header: found.header, kv: leader };
                        if answers.send(Ok(response)).await.is_err() {
                            return Ok(());
                        }
                    }
                    changes.next().await?;
                }
            };
            let ended: Result<(), Status> = tokio::select! {
                ended = look => ended,
                () = answers.closed() => return,
            };
            if let Err(error) = ended {
                let _ = answers.send(Err(error)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let leader = request.into_inner().leader.ok_or_else(no_key)?;
        let header = self.leave(leader.key, leader.rev).await?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

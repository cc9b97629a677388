//! What the other members ask of this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_proto::peer::peer_server::Peer;
use keelson_proto::peer::snapshot_chunk::Part;
use keelson_proto::peer::{
    HashKvAnswer, HashKvQuery, LeaseAnswer, LeaseQuery, MessageBatch, MessagesResponse, SnapshotChunk,
    SnapshotResponse,
};
use keelson_raft::MessageType;
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming};

use super::wire;
use crate::grpc::{Server, status};
use crate::mvcc::Hash;
use crate::node::{Chain, Event, Refused};
use crate::snapshot::{Receiver, SnapshotError, Snapshots};

pub struct PeerService {
    server: Arc<Server>,
    snapshots: Arc<Mutex<Snapshots>>,
    serial: AtomicU64,
}

impl PeerService {
    /// `epoch` tells apart the files of several lives.
    pub fn new(server: Arc<Server>, snapshots: Arc<Mutex<Snapshots>>, epoch: u64) -> Self {
        Self { server, snapshots, serial: AtomicU64::new(epoch) }
    }

    fn check_cluster(&self, cluster: u64) -> Result<(), Status> {
        if cluster == self.server.cluster {
            return Ok(());
        }
        tracing::error!(
            theirs = format!("{cluster:x}"),
            ours = format!("{:x}", self.server.cluster),
            "a peer of another cluster: compare --initial-cluster and --initial-cluster-token"
        );
        Err(Status::failed_precondition("etcdserver: cluster ID mismatch"))
    }

    fn check_member(&self, from: u64) -> Result<(), Status> {
        if self.server.state.members.read().contains_key(&from) {
            Ok(())
        } else {
            Err(status::member_not_found())
        }
    }

    fn send(&self, event: Event) -> Result<(), Status> {
        self.server.events.send(event).map_err(|_| status::stopped())
    }

    async fn lease(&self, query: LeaseQuery, keep_alive: bool) -> Result<Response<LeaseAnswer>, Status> {
        self.check_cluster(query.cluster_id)?;
        match self.server.ask_lease(query.id, keep_alive).await {
            Ok(answer) => Ok(Response::new(LeaseAnswer { ttl: answer.ttl, granted_ttl: answer.granted })),
            Err(Refused::NotLeader) => Err(status::not_leader()),
            Err(Refused::Timeout) => Err(status::timeout()),
            Err(Refused::Stopped) => Err(status::stopped()),
        }
    }
}

fn refuse(error: &SnapshotError) -> Status {
    tracing::warn!(error = %Chain(error), "a peer's snapshot is refused");
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn messages(
        &self,
        request: Request<Streaming<MessageBatch>>,
    ) -> Result<Response<MessagesResponse>, Status> {
        let mut batches = request.into_inner();
        loop {
            let batch = tokio::select! {
                () = self.server.stopping.cancelled() => return Err(status::stopped()),
                batch = batches.message() => batch?,
            };
            let Some(batch) = batch else { return Ok(Response::new(MessagesResponse {})) };
            self.check_cluster(batch.cluster_id)?;
            self.check_member(batch.from)?;
            let mut messages = Vec::with_capacity(batch.messages.len());
            for bytes in &batch.messages {
                self.server.metrics.peer_received.inc_by(bytes.len() as u64);
                let message =
                    wire::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
                // A snapshot comes with its state, or not at all.
                if message.to == self.server.member && message.get_msg_type() != MessageType::MsgSnapshot {
                    messages.push(message);
                }
            }
            self.send(Event::Messages(messages))?;
        }
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let mut chunks = request.into_inner();
        let malformed = || Status::invalid_argument("the snapshot's chunks are out of order");
        let Some(Part::Header(header)) = chunks.message().await?.and_then(|chunk| chunk.part) else {
            return Err(malformed());
        };
        self.check_cluster(header.cluster_id)?;
        self.check_member(header.from)?;
        let mut message =
            wire::decode(&header.message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if message.get_msg_type() != MessageType::MsgSnapshot || message.to != self.server.member {
            return Err(malformed());
        }
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut receiver = Receiver::new(&self.snapshots.lock(), serial);
        let (mut crc, mut length) = (crc32fast::Hasher::new(), 0);
        let end = loop {
            match chunks.message().await?.and_then(|chunk| chunk.part) {
                Some(Part::Data(data)) => {
                    crc.update(&data.data);
                    length += data.data.len() as u64;
                    let push = || receiver.push(data.data).map_err(|error| refuse(&error));
                    tokio::task::block_in_place(push)?;
                }
                Some(Part::End(end)) => break end,
                _ => return Err(malformed()),
            }
        };
        if end.length != length || end.crc32 != crc.finalize() {
            return Err(Status::data_loss("the snapshot's checksum is wrong"));
        }
        let finish = || {
            receiver.finish(&mut self.snapshots.lock(), self.server.cluster).map_err(|error| refuse(&error))
        };
        let (index, term) = tokio::task::block_in_place(finish)?;
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        self.send(Event::SnapshotReceived { message: Box::new(message) })?;
        Ok(Response::new(SnapshotResponse {}))
    }

    async fn hash_kv(&self, request: Request<HashKvQuery>) -> Result<Response<HashKvAnswer>, Status> {
        let query = request.into_inner();
        self.check_cluster(query.cluster_id)?;
        let (Hash { hash, revision: hash_revision, compacted }, revision) =
            self.server.hash_at(query.revision)?;
        let compact_revision = compacted;
        Ok(Response::new(HashKvAnswer { hash, compact_revision, hash_revision, revision }))
    }

    async fn lease_keep_alive(&self, request: Request<LeaseQuery>) -> Result<Response<LeaseAnswer>, Status> {
        self.lease(request.into_inner(), true).await
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseQuery>,
    ) -> Result<Response<LeaseAnswer>, Status> {
        self.lease(request.into_inner(), false).await
    }
}

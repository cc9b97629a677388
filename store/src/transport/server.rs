//! What the other members ask of this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_proto::etcd::etcdserverpb::MemberListResponse;
use keelson_proto::etcd::storepb::MembershipChange;
use keelson_proto::peer::peer_server::Peer;
use keelson_proto::peer::snapshot_chunk::Part;
use keelson_proto::peer::{
    HashKvAnswer, HashKvQuery, LeaseAnswer, LeaseQuery, MembersRequest, MembersResponse, MembershipAnswer,
    MembershipQuery, MessageBatch, MessagesResponse, SnapshotChunk, SnapshotResponse,
};
use keelson_raft::{ConfState, MessageType};
use parking_lot::Mutex;
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::{REMOVED, SUPERSEDED, wire};
use crate::grpc::{Server, status};
use crate::incarnation::peer_cluster;
use crate::mvcc::Hash;
use crate::node::{Chain, Event, Refused};
use crate::seldom::Seldom;
use crate::snapshot::{Receiver, SnapshotError, Snapshots};

pub struct PeerService {
    server: Arc<Server>,
    snapshots: Arc<Mutex<Snapshots>>,
    serial: AtomicU64,
    foreign: Seldom,
}

impl PeerService {
    /// `epoch` tells apart the files of several lives.
    pub fn new(server: Arc<Server>, snapshots: Arc<Mutex<Snapshots>>, epoch: u64) -> Self {
        Self { server, snapshots, serial: AtomicU64::new(epoch), foreign: Seldom::default() }
    }

    fn check_cluster(&self, cluster: u64) -> Result<(), Status> {
        self.check_cluster_of(cluster, &[])
    }

    /// As [`Self::check_cluster`], of a peer that says where it is.
    fn check_cluster_of(&self, cluster: u64, peer_urls: &[String]) -> Result<(), Status> {
        if cluster == self.server.peers.cluster() {
            return Ok(());
        }
        let of_past = |past: u64| peer_cluster(self.server.cluster, past) == cluster;
        let superseded =
            self.server.state.members.read().incarnation().past.iter().any(|past| of_past(past.id));
        if self.foreign.is_due() {
            match superseded {
                true => tracing::warn!(
                    peer = ?peer_urls,
                    "a member from before --force-new-cluster is up: it joins by itself when it is started again without a \
                     leader. If it has one, two clusters serve clients: stop one of them"
                ),
                false => tracing::error!(
                    peer = ?peer_urls,
                    theirs = format!("{cluster:x}"),
                    ours = format!("{:x}", self.server.peers.cluster()),
                    "a peer of another cluster: compare --initial-cluster and --initial-cluster-token. If one of the two was \
                     added with `member add`, its data directory may have been made with --initial-cluster-state=new: remove \
                     it and start that member with --initial-cluster-state=existing. If --force-new-cluster was used on each \
                     of two members, two clusters serve clients: stop one of them and remove its data directory"
                ),
            }
        }
        Err(Status::failed_precondition(match superseded {
            true => SUPERSEDED,
            false => "etcdserver: cluster ID mismatch",
        }))
    }

    /// One that is not known may have been added by what this member has yet to apply; one that was removed is told.
    fn check_member(&self, from: u64) -> Result<(), Status> {
        match self.server.state.members.read().is_removed(from) {
            true => Err(Status::failed_precondition(REMOVED)),
            false => Ok(()),
        }
    }

    /// Takes a snapshot from its chunks; returns its position and configuration.
    async fn receive(&self, chunks: &mut Streaming<SnapshotChunk>) -> Result<(u64, u64, ConfState), Status> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let mut receiver = receiver(&self.snapshots, serial);
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
        // From here until it is installed there is no other: what consensus is told of has to be what is installed.
        let Some(gate) = self.server.shared.begin_install() else {
            return Err(Status::unavailable("another snapshot is being installed"));
        };
        let (cluster, member) = (self.server.cluster, self.server.member);
        let finish =
            || receiver.finish(&mut self.snapshots.lock(), cluster, member).map_err(|error| refuse(&error));
        let received = tokio::task::block_in_place(finish)?;
        gate.hand_on();
        Ok(received)
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

/// Whoever makes a snapshot keeps the others waiting until it is done: meanwhile peers go on being heard.
fn receiver(snapshots: &Mutex<Snapshots>, serial: u64) -> Receiver {
    tokio::task::block_in_place(|| Receiver::new(&snapshots.lock(), serial))
}

fn refuse(error: &SnapshotError) -> Status {
    tracing::warn!(error = %Chain(error), "a peer's snapshot is refused");
    Status::internal(error.to_string())
}

fn malformed() -> Status {
    Status::invalid_argument("the snapshot's chunks are out of order")
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn messages(
        &self,
        request: Request<Streaming<MessageBatch>>,
    ) -> Result<Response<MessagesResponse>, Status> {
        let mut batches = request.into_inner();
        let mut membership = self.server.shared.watch_membership();
        let mut sender = None;
        let mut received = None;
        loop {
            let batch = tokio::select! {
                () = self.server.stopping.cancelled() => return Err(status::stopped()),
                Ok(()) = membership.changed() => {
                    // A member that was removed may have nothing more to say, and is told at once.
                    sender.map_or(Ok(()), |from| self.check_member(from))?;
                    continue;
                }
                batch = batches.message() => batch?,
            };
            let Some(batch) = batch else { return Ok(Response::new(MessagesResponse {})) };
            self.check_cluster_of(batch.cluster_id, &batch.peer_urls)?;
            self.check_member(batch.from)?;
            if sender.replace(batch.from) != Some(batch.from) {
                received = Some(self.server.metrics.peers.from(batch.from));
                self.server.peers.introduce(batch.from, &batch.peer_urls);
            }
            let mut messages = Vec::with_capacity(batch.messages.len());
            if let Some(received) = &received {
                received.inc_by(batch.messages.iter().map(|bytes| bytes.len() as u64).sum());
            }
            for bytes in &batch.messages {
                let message =
                    wire::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
                // A snapshot comes with its state, or not at all.
                if message.to == self.server.member && message.get_msg_type() != MessageType::MsgSnapshot {
                    messages.push(message);
                }
            }
            self.send(Event::Messages { from: batch.from, messages })?;
        }
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let mut chunks = request.into_inner();
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
        let (index, term, conf_state) = self.receive(&mut chunks).await?;
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(conf_state);
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

    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let members = self.server.state.members.read();
        let (list, incarnation) = (members.list(), members.incarnation().encode_to_vec());
        drop(members);
        Ok(Response::new(MembersResponse {
            cluster_id: self.server.cluster,
            member_id: self.server.member,
            members: MemberListResponse { header: None, members: list }.encode_to_vec().into(),
            incarnation: incarnation.into(),
            leader: self.server.shared.leader(),
        }))
    }

    async fn change_membership(
        &self,
        request: Request<MembershipQuery>,
    ) -> Result<Response<MembershipAnswer>, Status> {
        let query = request.into_inner();
        self.check_cluster(query.cluster_id)?;
        let change = MembershipChange::decode(query.change)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (members, index) = self.server.change_membership_here(change).await?;
        let members = MemberListResponse { header: None, members }.encode_to_vec().into();
        Ok(Response::new(MembershipAnswer { index, members }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::env::Env;

    #[test]
    fn a_snapshot_in_the_making_keeps_no_peer_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let opened = Snapshots::open(Env::real().disk, directory.path(), 1).unwrap();
        let snapshots = Arc::new(Mutex::new(opened));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let being_made = snapshots.lock();
        let (begun, has_begun) = mpsc::channel();
        let receiving: Vec<_> = (0..3)
            .map(|serial| {
                let (snapshots, begun) = (snapshots.clone(), begun.clone());
                runtime.spawn(async move {
                    begun.send(()).unwrap();
                    receiver(&snapshots, serial)
                })
            })
            .collect();
        for _ in &receiving {
            has_begun.recv_timeout(Duration::from_secs(20)).expect("one waits for the other");
        }
        drop(being_made);
        for receiver in receiving {
            drop(runtime.block_on(receiver).unwrap());
        }
    }
}

//! The service Maintenance.

use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::etcd::etcdserverpb::maintenance_server::Maintenance;
use keelson_proto::etcd::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use keelson_proto::etcd::storepb::command::Operation;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{ETCD_VERSION, Server, long, status};
use crate::apply::Response as Applied;
use crate::mvcc::Hash;
use crate::node::Event;

const SECTOR: usize = 512;
/// How long a transfer of leadership may take.
const TRANSFER: Duration = Duration::from_secs(5);

impl Server {
    /// The cluster's alarms, and this member's own before the others know of it.
    pub fn alarms(&self, kind: AlarmType) -> Vec<AlarmMember> {
        let mut alarms = self.state.alarms.read().list(kind);
        let own = AlarmMember { member_id: self.member, alarm: AlarmType::Nospace as i32 };
        let asked = matches!(kind, AlarmType::None | AlarmType::Nospace);
        if asked && self.shared.no_space() && !alarms.contains(&own) {
            alarms.push(own);
        }
        alarms
    }

    /// The checksum at a revision (0: the newest), with the newest revision.
    pub fn hash_at(&self, revision: i64) -> Result<(Hash, i64), Status> {
        long(|| self.state.store.hash(revision)).map_err(|error| self.read_failed(error))
    }
}

#[tonic::async_trait]
impl Maintenance for Server {
    /// A member above its quota raises its alarm and disarms it by itself. Disarmed by hand before there is room, it is
    /// raised again.
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let request = request.into_inner();
        let mut response = if request.action() == AlarmAction::Get {
            self.read_barrier().await?;
            AlarmResponse { header: None, alarms: self.alarms(request.alarm()) }
        } else {
            match self.propose(Operation::Alarm(request)).await?.1 {
                Applied::Alarm(response) => response,
                _ => return Err(Self::mismatch()),
            }
        };
        response.header = self.current_header();
        Ok(Response::new(response))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut errors: Vec<String> = self
            .alarms(AlarmType::None)
            .iter()
            .map(|alarm| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name()))
            .collect();
        let leader = self.shared.leader();
        if leader == 0 {
            errors.push("etcdserver: no leader".to_owned());
        }
        Ok(Response::new(StatusResponse {
            header: self.current_header(),
            version: ETCD_VERSION.to_owned(),
            db_size: self.state.store.values.backend().size().cast_signed(),
            leader,
            raft_index: self.shared.last_index(),
            raft_term: self.shared.term(),
            raft_applied_index: self.state.applied(),
            errors,
            db_size_in_use: self.state.store.in_use().cast_signed(),
            is_learner: self.shared.is_learner(),
        }))
    }

    /// Has a smaller tree built beside this one, if it takes more than it has to; nobody has to wait for that.
    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.send(Event::Defragment)?;
        Ok(Response::new(DefragmentResponse { header: self.current_header() }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let (Hash { hash, .. }, newest) = self.hash_at(0)?;
        Ok(Response::new(HashResponse { header: self.header(newest), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        let (Hash { hash, revision, compacted }, newest) = self.hash_at(request.into_inner().revision)?;
        Ok(Response::new(HashKvResponse {
            header: self.header(newest),
            hash,
            compact_revision: compacted,
            hash_revision: revision,
        }))
    }

    type SnapshotStream = ReceiverStream<Result<SnapshotResponse, Status>>;

    /// The state as `kube-store` keeps it (a manifest and its files, one after the other), zeros up to a multiple of 512
    /// bytes, and the SHA-256 of all that: etcd's clients look for a checksum behind a whole number of sectors.
    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let (taken, wait) = oneshot::channel();
        let send = Box::new(move |outgoing| drop(taken.send(outgoing)));
        self.send(Event::Snapshot { send })?;
        let mut outgoing = wait
            .await
            .map_err(|_| status::stopped())?
            .map_err(|error| Status::internal(format!("etcdserver: {error}")))?;
        let (pieces, stream) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let (mut hash, mut length) = (Sha256::new(), 0);
            let send = |blob: bytes::Bytes, remaining_bytes| {
                let response = SnapshotResponse { header: None, remaining_bytes, blob };
                pieces.blocking_send(Ok(response)).is_ok()
            };
            loop {
                match outgoing.piece() {
                    Ok(Some(piece)) => {
                        hash.update(&piece);
                        length += piece.len();
                        if !send(piece, outgoing.remaining()) {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let _ = pieces.blocking_send(Err(Status::internal(format!("etcdserver: {error}"))));
                        return;
                    }
                }
            }
            let mut end = vec![0; length.next_multiple_of(SECTOR) - length];
            hash.update(&end);
            end.extend_from_slice(&hash.finalize());
            send(end.into(), 0);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let to = request.into_inner().target_id;
        if !self.shared.is_leader() {
            return Err(status::not_leader());
        }
        if self.state.members.read().get(&to).is_none_or(|member| member.is_learner) {
            return Err(status::bad_transferee());
        }
        let mut leader = self.shared.watch_leader();
        self.send(Event::MoveLeader { to })?;
        match tokio::time::timeout(TRANSFER, leader.wait_for(|leader| *leader == to)).await {
            Ok(Ok(_)) => Ok(Response::new(MoveLeaderResponse { header: self.current_header() })),
            Ok(Err(_)) => Err(status::stopped()),
            Err(_) => Err(status::timeout()),
        }
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        Err(status::no_downgrade())
    }
}

//! The service Lease. Renewals and remaining times are the leader's: other members ask it.

use keelson_proto::etcd::etcdserverpb::lease_server::Lease;
use keelson_proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use keelson_proto::etcd::storepb::command::Operation;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Server, Service, error, status};
use crate::apply::Response as Applied;
use crate::node::{Event, LeaseAnswer, Refused};

impl Server {
    /// Asks this member's node, which has to be the leader.
    pub async fn ask_lease(&self, lease: i64, keep_alive: bool) -> Result<LeaseAnswer, Refused> {
        let (reply, answer) = oneshot::channel();
        let event =
            if keep_alive { Event::KeepAlive { lease, reply } } else { Event::TimeToLive { lease, reply } };
        self.events.send(event).map_err(|_| Refused::Stopped)?;
        self.answered(answer).await
    }

    /// Asks whoever leads; should it just have changed, once more. One that is gone may be long in not answering, and
    /// leases run out meanwhile: it is waited for no longer than it leads.
    async fn ask_leader(&self, lease: i64, keep_alive: bool) -> Result<LeaseAnswer, Status> {
        let mut answer = Err(status::no_leader());
        let mut leaders = self.shared.watch_leader();
        for _ in 0..2 {
            let leader = *leaders.borrow_and_update();
            answer = match leader {
                0 => Err(status::no_leader()),
                _ if leader == self.member => self.ask_lease(lease, keep_alive).await.map_err(error::refused),
                _ => tokio::select! {
                    answer = self.peers.ask_lease(leader, lease, keep_alive) => answer,
                    Ok(_) = leaders.wait_for(|now| *now != leader && *now != 0) => Err(status::no_leader()),
                },
            };
            if answer.is_ok() {
                break;
            }
        }
        answer
    }
}

#[tonic::async_trait]
impl Lease for Service {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let mut request = request.into_inner();
        self.check_space()?;
        if request.ttl > crate::lease::MAX_TTL {
            return Err(status::lease_ttl_too_large());
        }
        request.ttl = request.ttl.max(self.limits.min_lease_ttl);
        if request.id == 0 {
            request.id = self.new_lease_id();
        }
        match self.propose(Operation::LeaseGrant(request)).await? {
            (revision, Applied::LeaseGrant(mut response)) => {
                self.metrics.lease_granted.inc();
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Server::mismatch()),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        match self.propose(Operation::LeaseRevoke(request.into_inner())).await? {
            (revision, Applied::LeaseRevoke(mut response)) => {
                self.metrics.lease_revoked.inc();
                response.header = self.header(revision);
                Ok(Response::new(response))
            }
            _ => Err(Server::mismatch()),
        }
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, stream) = mpsc::channel(16);
        let server = self.0.clone();
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    () = server.stopping.cancelled() => break,
                    () = answers.closed() => break,
                    request = requests.message() => request,
                };
                let Ok(Some(LeaseKeepAliveRequest { id })) = request else { break };
                // Before the renewal: the lease was alive at this revision.
                let header = server.current_header();
                let answer = server.ask_leader(id, true).await;
                let response = answer.map(|answer| LeaseKeepAliveResponse { header, id, ttl: answer.ttl });
                let ended = response.is_err();
                server.metrics.lease_renewed.inc();
                if answers.send(response).await.is_err() || ended {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let LeaseAnswer { ttl, granted } = self.ask_leader(id, false).await?;
        let keys = if keys && ttl >= 0 { self.state.leases.read().keys(id) } else { Vec::new() };
        let header = self.current_header();
        Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl: granted, keys }))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.state.leases.read().iter().map(|(id, _)| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.current_header(), leases }))
    }
}

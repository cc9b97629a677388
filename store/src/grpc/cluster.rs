//! The service Cluster: who the members are, and changes of that. The leader checks and proposes a change; other members
//! hand it on, and answer once they have applied it themselves.

use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::cluster_server::Cluster;
use keelson_proto::etcd::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse,
};
use keelson_proto::etcd::storepb::MembershipChange;
use keelson_proto::etcd::storepb::membership_change::Change;
use prost::Message as _;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Server, error, status};
use crate::apply::Response as Applied;
use crate::config::Url;
use crate::node::Event;

/// Before the one that leads is asked again, should no other have taken over meanwhile.
const AGAIN: Duration = Duration::from_millis(100);

/// Peer URLs as they are compared and kept: of one form, and sorted.
fn peer_urls(given: &[String]) -> Result<Vec<String>, Status> {
    let parsed: Result<Vec<Url>, String> = given.iter().map(|url| url.parse()).collect();
    let mut urls: Vec<String> =
        parsed.map_err(|_| status::bad_member_urls())?.iter().map(Url::to_string).collect();
    urls.sort();
    urls.dedup();
    if urls.is_empty() { Err(status::bad_member_urls()) } else { Ok(urls) }
}

impl Server {
    /// Has this member's node change the membership; it has to be the leader. Returns the members afterwards, and the
    /// log's index of the change.
    pub async fn change_membership_here(
        &self,
        change: MembershipChange,
    ) -> Result<(Vec<Member>, u64), Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Membership { change, reply })?;
        match answer.await {
            Ok(Ok((_, Ok(Applied::Membership { members, index })))) => Ok((members, index)),
            Ok(Ok((_, Ok(_)))) => Err(Self::mismatch()),
            Ok(Ok((_, Err(rejected)))) => Err(error::rejected(&rejected)),
            Ok(Err(refused)) => Err(error::refused(refused)),
            Err(_) => Err(status::stopped()),
        }
    }

    /// Asks whoever leads, and then waits until this member has applied it too: its clients read what they wrote.
    pub async fn change_membership(&self, change: Change) -> Result<Vec<Member>, Status> {
        let change = MembershipChange { change: Some(change), ..MembershipChange::default() };
        let deadline = Instant::now() + self.limits.request_timeout;
        let mut leader = self.shared.watch_leader();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(status::timeout());
            }
            let asked = *leader.borrow_and_update();
            let answer = match asked {
                0 => Err(status::not_leader()),
                _ if asked == self.member => self.change_membership_here(change.clone()).await,
                _ => self.hand_on(asked, &change, left).await,
            };
            match answer {
                // It was not proposed there; it may be handing over.
                Err(refused) if refused.message() == status::not_leader().message() => {
                    let _ = tokio::time::timeout(left.min(AGAIN), leader.changed()).await;
                }
                answer => return answer.map(|(members, _)| members),
            }
        }
    }

    async fn hand_on(
        &self,
        leader: u64,
        change: &MembershipChange,
        left: Duration,
    ) -> Result<(Vec<Member>, u64), Status> {
        let answer = self.peers.ask_membership(leader, change.encode_to_vec(), left).await;
        // What became of it is not known, and to try again might fail on what was done.
        let answer = answer.map_err(|refused| refused.unwrap_or_else(status::timeout))?;
        let list = MemberListResponse::decode(answer.members).map_err(|_| Self::mismatch())?;
        if change.change == Some(Change::Remove(self.member)) {
            // It may never hear of that by the log.
            return Ok((list.members, answer.index));
        }
        let mut applied = self.shared.watch_membership();
        // Not an error of the change: it is done.
        let _ = tokio::time::timeout(left, applied.wait_for(|index| *index >= answer.index)).await;
        Ok((list.members, answer.index))
    }

    /// Not used before: of the URLs, and of what differs at every request.
    fn new_member_id(&self, urls: &[String]) -> u64 {
        let mut hash = Sha256::new();
        for url in urls {
            hash.update(url.as_bytes());
            hash.update([0]);
        }
        hash.update(self.new_lease_id().to_be_bytes());
        let digest = hash.finalize();
        // A digest is 32 bytes long. 0 means "nobody" to Raft.
        digest.first_chunk::<8>().map_or(1, |bytes| u64::from_be_bytes(*bytes)).max(1)
    }
}

#[tonic::async_trait]
impl Cluster for Server {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let MemberAddRequest { peer_urls: given, is_learner } = request.into_inner();
        let peer_urls = peer_urls(&given)?;
        let id = self.new_member_id(&peer_urls);
        let member = Member { id, peer_urls, is_learner, ..Member::default() };
        let members = self.change_membership(Change::Add(member.clone())).await?;
        Ok(Response::new(MemberAddResponse { header: self.header(0), member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let members = self.change_membership(Change::Remove(request.into_inner().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(0), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let MemberUpdateRequest { id, peer_urls: given } = request.into_inner();
        let peer_urls = peer_urls(&given)?;
        let update = Change::Update(Member { id, peer_urls, ..Member::default() });
        let members = self.change_membership(update).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(0), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.read_barrier().await?;
        }
        let members = self.state.members.read().list();
        Ok(Response::new(MemberListResponse { header: self.header(0), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let members = self.change_membership(Change::Promote(request.into_inner().id)).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(0), members }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_of_one_form() {
        let check = |given: &[&str], expected: Option<&[&str]>| {
            let given: Vec<String> = given.iter().map(|url| (*url).to_owned()).collect();
            let found = peer_urls(&given).ok();
            let expected = expected.map(|urls| urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
            assert_eq!(found, expected, "{given:?}");
        };
        check(&["http://b:2", "http://a:1/", "http://b:2"], Some(&["http://a:1", "http://b:2"]));
        check(&[], None);
        check(&["a:1"], None);
        check(&["http://a"], None);
        check(&["ftp://a:1"], None);
        check(&["http://a:1/path"], None);
    }
}

//! What the leader alone does for leases: it renews them, knows how long they have left, and proposes to revoke them.

use keelson_proto::etcd::etcdserverpb::LeaseRevokeRequest;
use keelson_proto::etcd::storepb::command::Operation;
use keelson_raft::Role;

use super::pending::Proposal;
use super::{LeaseAnswer, Node, Parts, Refused};
use crate::lease::Deadlines;

/// Leases whose revocation is proposed in one tick.
const EXPIRE_BATCH: usize = 256;

impl Node {
    /// Proposes to revoke what has run out. Never by way of another leader, which may have just come to be: it has
    /// given all leases their full time, and renewed some that this member knows nothing of.
    pub(super) fn expire_leases(&mut self) {
        let leader = self.parts.group.status().role == Role::Leader;
        if !leader || self.parts.state.store.values.is_full() {
            return;
        }
        for id in self.deadlines.take_expired(self.parts.clock.now(), EXPIRE_BATCH) {
            let operation = Operation::LeaseRevoke(LeaseRevokeRequest { id });
            // Without an answer, and dropped rather than deferred: should it be lost, the lease is offered again.
            let _ = self.propose(Proposal { operation, reply: None, deadline: self.now });
        }
    }
}

/// Renews a lease. A ttl of 0: there is none, or it has run out.
pub(super) fn keep_alive(
    parts: &Parts,
    deadlines: &mut Deadlines,
    leading: bool,
    id: i64,
) -> Result<LeaseAnswer, Refused> {
    if !leading {
        return Err(Refused::NotLeader);
    }
    let now = parts.clock.now();
    match parts.state.leases.read().ttl(id) {
        Some(ttl) if !deadlines.is_expired(id, now) => {
            deadlines.set(id, ttl, now);
            Ok(LeaseAnswer { ttl, granted: ttl })
        }
        _ => Ok(LeaseAnswer { ttl: 0, granted: 0 }),
    }
}

/// How long a lease has left. A ttl of -1: there is none.
pub(super) fn time_to_live(
    parts: &Parts,
    deadlines: &Deadlines,
    leading: bool,
    id: i64,
) -> Result<LeaseAnswer, Refused> {
    if !leading {
        return Err(Refused::NotLeader);
    }
    match parts.state.leases.read().ttl(id) {
        Some(granted) => {
            let ttl = deadlines.left(id, parts.clock.now()).unwrap_or(granted);
            Ok(LeaseAnswer { ttl, granted })
        }
        None => Ok(LeaseAnswer { ttl: -1, granted: 0 }),
    }
}

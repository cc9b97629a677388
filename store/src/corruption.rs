//! Whether all members hold the same: checksums of one revision, compared by the leader from time to time and by a
//! member before it serves clients.
//!
//! Only members are asked and counted: whoever merely introduced itself is a peer, too, and would have a say.
//!
//! Members that differ from what a majority holds get an alarm CORRUPT; without a majority it is the whole cluster's
//! (member 0). While one is raised nothing is read or written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::etcd::etcdserverpb::{AlarmRequest, AlarmType};
use keelson_proto::etcd::storepb::command::Operation;
use keelson_proto::peer::HashKvAnswer;
use tokio_util::sync::CancellationToken;

use crate::grpc::Server;
use crate::mvcc::Hash;

/// This member holds something else than the others.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{member:x} found data inconsistency with peers: at revision {revision} it holds other data than {peer:x}; remove \
     the data directory of the member that is wrong and let it join again"
)]
pub struct Inconsistent {
    pub member: u64,
    pub peer: u64,
    pub revision: i64,
}

/// All members but this one.
fn others(server: &Server) -> Vec<u64> {
    server.state.members.read().keys().copied().filter(|id| *id != server.member).collect()
}

/// Compares this member with all others that can be asked, before it serves clients.
///
/// # Errors
/// Another one holds something else.
pub async fn initial_check(server: &Server) -> Result<(), Inconsistent> {
    let own = match server.hash_at(0) {
        Ok((own, _)) => own,
        Err(error) => {
            tracing::warn!(error = error.message(), "cannot compute this member's checksum: not compared");
            return Ok(());
        }
    };
    let mut compared = 0;
    for (peer, answer) in server.peers.ask_hashes(&others(server), own.revision).await {
        match answer {
            Ok(answer) if answer.compact_revision != own.compacted => {}
            Ok(answer) if answer.hash == own.hash => compared += 1,
            Ok(_) => return Err(Inconsistent { member: server.member, peer, revision: own.revision }),
            Err(error) => tracing::warn!(
                peer = format!("{peer:x}"),
                error = error.message(),
                "cannot compare this member's data with a peer's"
            ),
        }
    }
    tracing::info!(revision = own.revision, compared, "no corruption found");
    Ok(())
}

/// Compares all members now and then, while this one leads.
pub async fn check_periodically(server: Arc<Server>, every: Duration, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        // What is known to be wrong is said once.
        if !server.shared.is_leader() || server.state.alarms.read().any(AlarmType::Corrupt) {
            continue;
        }
        for member in check(&server).await {
            let request = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: member,
                alarm: AlarmType::Corrupt as i32,
            };
            if let Err(error) = server.propose(Operation::Alarm(request)).await {
                tracing::error!(error = error.message(), "cannot raise the alarm CORRUPT");
            }
        }
    }
}

/// The members that hold something else than most; 0: nobody knows which.
async fn check(server: &Server) -> Vec<u64> {
    let own = match server.hash_at(0) {
        Ok((own, _)) => own,
        Err(error) => {
            tracing::warn!(error = error.message(), "cannot compute this member's checksum");
            return Vec::new();
        }
    };
    let answers = server.peers.ask_hashes(&others(server), own.revision).await;
    let members = answers.len() + 1;
    let mut known = Vec::new();
    for (peer, answer) in answers {
        match answer {
            Ok(answer) => known.push((peer, answer)),
            Err(error) => tracing::warn!(
                peer = format!("{peer:x}"),
                error = error.message(),
                "a member's data cannot be compared"
            ),
        }
    }
    let wrong = judge(server.member, own, &known, members);
    if wrong.is_empty() {
        tracing::info!(revision = own.revision, peers = known.len(), "compared the members' data");
    } else {
        tracing::error!(revision = own.revision, ?wrong, ?known, ?own, "members hold different data");
    }
    wrong
}

/// Who is wrong, of `members` in the cluster. Only checksums of the same revision, compacted at the same, compare.
fn judge(leader: u64, own: Hash, peers: &[(u64, HashKvAnswer)], members: usize) -> Vec<u64> {
    let mut holders: BTreeMap<u32, Vec<u64>> = BTreeMap::from([(own.hash, vec![leader])]);
    for (peer, answer) in peers {
        if answer.compact_revision == own.compacted && answer.hash_revision == own.revision {
            holders.entry(answer.hash).or_default().push(*peer);
        }
    }
    if holders.len() == 1 {
        return Vec::new();
    }
    let majority = holders.iter().find(|(_, holding)| holding.len() > members / 2).map(|(hash, _)| *hash);
    match majority {
        None => vec![0],
        Some(right) => {
            holders.into_iter().filter(|(hash, _)| *hash != right).flat_map(|(_, wrong)| wrong).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minority_is_wrong() {
        let own = Hash { hash: 7, revision: 10, compacted: 5 };
        let check = |peers: &[(u32, i64)], members: usize, expected: &[u64]| {
            let answer = |&(hash, compact_revision): &(u32, i64)| HashKvAnswer {
                hash,
                compact_revision,
                hash_revision: 10,
                revision: 12,
            };
            let peers: Vec<_> = (2..).zip(peers.iter().map(answer)).collect();
            assert_eq!(judge(1, own, &peers, members), expected, "{peers:?}");
        };
        check(&[], 1, &[]);
        check(&[(7, 5), (7, 5)], 3, &[]);
        check(&[(7, 5), (8, 5)], 3, &[3]);
        check(&[(8, 5), (8, 5)], 3, &[1]);
        check(&[(8, 5), (9, 5)], 3, &[0]);
        check(&[(8, 5)], 2, &[0]);
        // Another compaction came between: that says nothing.
        check(&[(7, 5), (8, 6)], 3, &[]);
        // One of three did not answer.
        check(&[(8, 5)], 3, &[0]);
        check(&[(7, 5), (8, 5), (7, 5)], 5, &[3]);
    }
}

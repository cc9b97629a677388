//! Applying a log without a node, and making one member out of a cluster that lost its majority.

use std::sync::Arc;
use std::thread;

use keelson_proto::etcd::etcdserverpb::Member;
use keelson_proto::etcd::storepb::{Configuration, Incarnation, Superseded};
use keelson_raft::{ConfState, Entry, configuration_change};

use crate::apply::{Fatal, State};
use crate::incarnation;
use crate::membership::Members;
use crate::mvcc::{Store, Values};
use crate::snapshot::SnapshotError;
use crate::start::{Disks, StartError};
use crate::wal::Identity;

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("the state machine failed")]
    Apply(#[from] Fatal),
    #[error("cannot make a snapshot")]
    Snapshot(#[from] SnapshotError),
    #[error("the tree of values cannot be written")]
    Tree,
}

/// Entries being applied to a state that nobody else uses.
pub struct Replay {
    state: Arc<State>,
    drain: thread::JoinHandle<()>,
}

impl Replay {
    /// # Errors
    /// The system's refusal to start a thread.
    pub fn begin(state: Arc<State>) -> Result<Self, RecoveryError> {
        let drain =
            state.store.values.spawn(|| true, |_| {}, || {}, |_| {}).map_err(RecoveryError::Thread)?;
        Ok(Self { state, drain })
    }

    /// Applies entries, which follow on what the state has; returns how many.
    ///
    /// # Errors
    /// The state machine's.
    pub fn apply<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<usize, RecoveryError> {
        let mut count = 0;
        for entry in entries {
            match configuration_change(entry) {
                None => drop(self.state.apply(entry)?),
                // Who votes is not the state's matter here.
                Some(change) => {
                    drop(self.state.apply_configuration(entry, &change, || Ok(ConfState::default())));
                }
            }
            count += 1;
            if self.state.store.values.is_full() {
                self.drained()?;
            }
        }
        Ok(count)
    }

    fn drained(&self) -> Result<(), RecoveryError> {
        match self.state.store.values.wait_drained(self.state.applied()) {
            true => Ok(()),
            false => Err(RecoveryError::Tree),
        }
    }

    /// Everything is in the tree, and the thread has ended.
    ///
    /// # Errors
    /// The tree's.
    pub fn end(self) -> Result<(), RecoveryError> {
        let drained = self.drained();
        self.state.store.values.close();
        // It panics only with a bug, which has been logged.
        let _ = self.drain.join();
        drained
    }
}

/// Makes this member the only one of its cluster, durably: a snapshot of everything in its log, committed or not (what it
/// has may have been acknowledged, and nobody is left to say otherwise), in which it is alone. That is a new incarnation,
/// which the others join when they come back ([`crate::rejoin`]); one that is alone already stays as it is. `members` are
/// those that the tree need not have, and `fresh` is a random number.
///
/// The snapshot stands behind the last entry, as if the beginning of the new cluster were one of its own. So a tree of the
/// old one is older than it, and not taken for the state by whoever starts after a crash: what its manifest's name makes
/// durable is all of the change at once, and until then nothing has happened.
pub(crate) fn force_new_cluster(
    disks: Disks,
    Identity { cluster, member }: Identity,
    members: Members,
    fresh: u64,
) -> Result<(), StartError> {
    let Disks { mut snapshots, trees, backend, loaded, wal, recovered } = disks;
    let (applied, applied_term) = loaded.applied;
    let values = Values::new(backend, applied);
    let store = Store::new(loaded.index, values, loaded.in_use);
    let state = State::new(store, loaded.leases, members, applied)?;
    let replay = Replay::begin(state.clone())?;
    replay.apply(recovered.entries.iter())?;
    replay.end()?;
    let mut metadata = state.metadata(recovered.entries.last().map_or(applied_term, |entry| entry.term));
    metadata.alarms.retain(|alarm| alarm.member_id == member);
    let last_term = metadata.applied_term;
    let term = recovered.hard_state.term.max(last_term);
    let end = Superseded { id: 0, index: metadata.applied_index, term, last_term };
    let alone = alone(&state.members.read(), member, end, fresh);
    alone.describe(&mut metadata);
    metadata.applied_index += 1;
    let revision = metadata.revision;
    snapshots.take(&state.store, metadata, vec![member], cluster).map_err(StartError::Snapshot)?;
    tracing::warn!(
        member = format!("{member:x}"),
        incarnation = format!("{:x}", alone.incarnation().id),
        last_entry = end.index,
        of_term = last_term,
        revision,
        "--force-new-cluster: this member is now the only one of its cluster. Start it without the flag from now on. The \
         other members, started as before while it runs, set their data aside and join it"
    );
    fail::fail_point!("force_after_snapshot");
    // It says who the members were; the next one is built from the snapshot. Its file has to be closed before.
    drop((state, wal));
    trees.remove_all();
    fail::fail_point!("force_after_trees");
    Ok(())
}

/// The members if there is but one: the ids of all others are gone for good.
fn alone(members: &Members, member: u64, end: Superseded, fresh: u64) -> Members {
    let own = members.get(&member).cloned().unwrap_or_default();
    let others: Vec<u64> = members.keys().copied().filter(|id| *id != member).collect();
    let incarnation: Incarnation = match others.is_empty() {
        true => members.incarnation().clone(),
        false => incarnation::next(members.incarnation(), end, fresh, &others),
    };
    let removed = members.removed().iter().copied().filter(|id| *id != member).chain(others).collect();
    let configuration = Configuration { voters: vec![member], ..Configuration::default() };
    Members::new([Member { id: member, is_learner: false, ..own }], removed, configuration, incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_already_stays_in_its_incarnation() {
        let member = |id| Member { id, is_learner: id == 1, ..Member::default() };
        let before = Members::bootstrap([member(1), member(2), member(3)]);
        let after = alone(&before, 1, Superseded::default(), 77);
        assert_eq!(after.keys().copied().collect::<Vec<_>>(), [1]);
        assert!(!after.is_learner(1) && after.is_removed(2) && after.is_removed(3));
        assert_eq!((after.incarnation().id, &after.incarnation().absent[..]), (77, &[2, 3][..]));
        let again = alone(&after, 1, Superseded::default(), 88);
        assert_eq!(again.incarnation(), after.incarnation());
    }
}

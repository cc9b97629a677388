//! Applying a log without a node, and making one member out of a cluster that lost its majority.

use std::sync::Arc;
use std::thread;

use keelson_proto::etcd::etcdserverpb::Member;
use keelson_proto::etcd::storepb::Metadata;
use keelson_raft::{Entry, EntryType};

use crate::apply::{Fatal, State};
use crate::mvcc::{Store, Values};
use crate::snapshot::SnapshotError;
use crate::start::{Disks, StartError};

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

    /// Applies entries, which follow on what the state has; returns how many. Membership is not the state's matter here.
    ///
    /// # Errors
    /// The state machine's.
    pub fn apply<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<usize, RecoveryError> {
        let mut count = 0;
        for entry in entries {
            if entry.get_entry_type() == EntryType::EntryNormal {
                self.state.apply(entry)?;
            } else {
                let empty = Entry { index: entry.index, term: entry.term, ..Entry::default() };
                self.state.apply(&empty)?;
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

/// Makes `member` the only one of its cluster, durably: a snapshot of everything in its log, committed or not (what it
/// has may have been acknowledged, and nobody is left to say otherwise), in which it is alone.
pub(crate) fn force_new_cluster(disks: Disks, cluster: u64, member: Member) -> Result<(), StartError> {
    let Disks { mut snapshots, trees, backend, loaded, wal, recovered } = disks;
    let (applied, applied_term) = loaded.applied;
    let values = Values::new(backend, applied);
    let store = Store::new(loaded.index, values, loaded.in_use);
    let state = State::new(store, loaded.leases, Default::default(), applied)?;
    let replay = Replay::begin(state.clone())?;
    replay.apply(recovered.entries.iter())?;
    replay.end()?;
    let term = recovered.entries.last().map_or(applied_term, |entry| entry.term);
    let state_then = state.metadata(term);
    let known = state.members.read().get(&member.id).cloned();
    #[allow(clippy::needless_update, reason = "whatever else there may be says who the members were")]
    let alone = Metadata {
        applied_index: state_then.applied_index,
        applied_term: term,
        revision: state_then.revision,
        compact_revision: state_then.compact_revision,
        leases: state_then.leases,
        members: vec![Member { is_learner: false, ..known.unwrap_or(member.clone()) }],
        alarms: state_then.alarms.into_iter().filter(|alarm| alarm.member_id == member.id).collect(),
        ..Metadata::default()
    };
    tracing::warn!(
        member = format!("{:x}", member.id),
        entries = alone.applied_index,
        revision = alone.revision,
        "--force-new-cluster: this member is now the only one of its cluster. Start it without the flag from now on. \
         Remove the data of the other members, add them with `etcdctl member add` and start them with \
         --initial-cluster-state=existing"
    );
    snapshots.take(&state.store, alone, vec![member.id], cluster).map_err(StartError::Snapshot)?;
    // It says who the members were; the next one is built from the snapshot. Its file has to be closed before.
    drop((state, wal));
    trees.remove_all();
    Ok(())
}

//! What the node tells everyone else without being asked.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keelson_raft::{Role, Status};
use parking_lot::RwLock;
use tokio::sync::watch;

/// Written by the node and the log's thread, read by all.
pub struct Shared {
    term: AtomicU64,
    commit: AtomicU64,
    last_index: AtomicU64,
    pending: AtomicU64,
    leading: AtomicBool,
    sole: AtomicBool,
    leader: watch::Sender<u64>,
    wal_bytes: AtomicU64,
    wal_written: AtomicU64,
    wal_full: AtomicBool,
    low_space: AtomicBool,
    learner: AtomicBool,
    /// Members from which this one, if it leads, has heard nothing for several election timeouts.
    silent: RwLock<BTreeSet<u64>>,
    /// The log's index of the last change of the membership that was applied.
    membership: watch::Sender<u64>,
    /// How often another member said, while there was no leader, that it belongs to a later incarnation.
    superseded: watch::Sender<u64>,
    /// Whether a snapshot was received and is not installed yet.
    installing: AtomicBool,
}

/// Keeps other snapshots out until the one that was received is installed, or has failed.
pub struct InstallGate<'a>(&'a AtomicBool);

impl InstallGate<'_> {
    /// The node opens it again.
    pub fn hand_on(self) {
        std::mem::forget(self);
    }
}

impl Drop for InstallGate<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            term: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            last_index: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            leading: AtomicBool::new(false),
            sole: AtomicBool::new(false),
            leader: watch::Sender::new(0),
            wal_bytes: AtomicU64::new(0),
            wal_written: AtomicU64::new(0),
            wal_full: AtomicBool::new(false),
            low_space: AtomicBool::new(false),
            learner: AtomicBool::new(false),
            silent: RwLock::default(),
            membership: watch::Sender::new(0),
            superseded: watch::Sender::new(0),
            installing: AtomicBool::new(false),
        }
    }
}

impl Shared {
    pub(super) fn update(&self, status: &Status, pending: u64) {
        self.pending.store(pending, Ordering::Relaxed);
        self.term.store(status.term, Ordering::Relaxed);
        self.commit.store(status.commit, Ordering::Relaxed);
        self.last_index.store(status.last_index, Ordering::Relaxed);
        self.leading.store(status.role == Role::Leader, Ordering::Relaxed);
        self.leader.send_if_modified(|leader| std::mem::replace(leader, status.leader) != status.leader);
    }

    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    pub fn commit(&self) -> u64 {
        self.commit.load(Ordering::Relaxed)
    }

    /// Requests that wait for their entry to be applied.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    pub fn last_index(&self) -> u64 {
        self.last_index.load(Ordering::Relaxed)
    }

    pub fn is_leader(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    pub(super) fn set_sole(&self, sole: bool) {
        self.sole.store(sole, Ordering::Release);
    }

    /// Whether this member's state has everything that was ever acknowledged by anyone, so that a linearizable read needs
    /// nobody's word: it is the only voter and leads, and what it acknowledges it has applied. The node takes this back
    /// before it takes part in anything that another voter could commit.
    pub fn is_sole(&self) -> bool {
        self.sole.load(Ordering::Acquire)
    }

    /// 0: none is known.
    pub fn leader(&self) -> u64 {
        *self.leader.borrow()
    }

    /// Follows the leader's id.
    pub fn watch_leader(&self) -> watch::Receiver<u64> {
        self.leader.subscribe()
    }

    /// Whether this member only learns: clients are not served then.
    pub fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Relaxed)
    }

    pub(super) fn set_silent(&self, silent: BTreeSet<u64>) {
        *self.silent.write() = silent;
    }

    /// Whether this member leads and has heard nothing from another for several election timeouts.
    pub fn is_silent(&self, member: u64) -> bool {
        self.silent.read().contains(&member)
    }

    pub(super) fn set_membership(&self, index: u64, learner: bool) {
        self.learner.store(learner, Ordering::Relaxed);
        self.membership.send_replace(index);
    }

    /// Follows the index of the last change of the membership.
    pub fn watch_membership(&self) -> watch::Receiver<u64> {
        self.membership.subscribe()
    }

    pub(super) fn hear_of_successor(&self) {
        self.superseded.send_modify(|times| *times += 1);
    }

    /// Follows what others say of a later incarnation of the cluster. It is hearsay.
    pub fn watch_superseded(&self) -> watch::Receiver<u64> {
        self.superseded.subscribe()
    }

    /// None: another snapshot is being installed.
    pub fn begin_install(&self) -> Option<InstallGate<'_>> {
        (!self.installing.swap(true, Ordering::Acquire)).then_some(InstallGate(&self.installing))
    }

    pub fn is_installing(&self) -> bool {
        self.installing.load(Ordering::Relaxed)
    }

    pub(super) fn end_install(&self) {
        self.installing.store(false, Ordering::Release);
    }

    pub fn set_wal_size(&self, bytes: u64, written: u64) {
        self.wal_bytes.store(bytes, Ordering::Relaxed);
        self.wal_written.store(written, Ordering::Relaxed);
    }

    pub fn wal_bytes(&self) -> u64 {
        self.wal_bytes.load(Ordering::Relaxed)
    }

    pub fn wal_written(&self) -> u64 {
        self.wal_written.load(Ordering::Relaxed)
    }

    pub(super) fn set_wal_full(&self, full: bool) {
        self.wal_full.store(full, Ordering::Relaxed);
    }

    pub(super) fn wal_full(&self) -> bool {
        self.wal_full.load(Ordering::Relaxed)
    }

    /// Whether the quota is exceeded, or the disk nearly full. Returns what it was.
    pub fn set_low_space(&self, low: bool) -> bool {
        self.low_space.swap(low, Ordering::Relaxed)
    }

    /// Whether writes that take space are refused.
    pub fn no_space(&self) -> bool {
        self.wal_full.load(Ordering::Relaxed) || self.low_space.load(Ordering::Relaxed)
    }
}

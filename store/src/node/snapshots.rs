//! Snapshots of this member's state: made when the log has grown and for those that have fallen behind it, and installed when
//! a peer has sent one. The keeper's thread makes them ([`crate::snapshot`]); a task of the transport's sends them.

use std::time::Duration;

use keelson_raft::{Message, SnapshotStatus};

use super::{Chain, Event, Node, Stopped};
use crate::snapshot::{self, Job, Outgoing, SnapshotError};

/// WAL bytes above which a snapshot is made, so that the log can be cut.
const SNAPSHOT_AT: u64 = 48 << 20;
/// How long a member to which a snapshot could not be sent waits for the next one: each is made afresh, and a peer whose
/// disk is full would keep this one writing snapshots all the time.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(3);
/// WAL bytes to be written between two snapshots.
const SNAPSHOT_EVERY: u64 = 16 << 20;

// Tests need not write that much.
fn snapshot_at() -> u64 {
    fail::fail_point!("snapshot_at", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(SNAPSHOT_AT));
    SNAPSHOT_AT
}

fn snapshot_every() -> u64 {
    fail::fail_point!("snapshot_every", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(SNAPSHOT_EVERY));
    SNAPSHOT_EVERY
}

impl Node {
    /// Has a snapshot of this moment made and sent.
    pub(super) fn send_snapshot(&mut self, mut message: Message) {
        let to = message.to;
        tracing::info!(peer = format!("{to:x}"), "a member has fallen behind the log and gets a snapshot");
        let (events, sender) = (self.parts.events.clone(), self.parts.network.snapshot_sender());
        let send = Box::new(move |outgoing: Result<Outgoing, SnapshotError>| match outgoing {
            Ok(outgoing) => {
                let (index, term) = outgoing.position();
                let metadata = message.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (index, term);
                metadata.set_conf_state(outgoing.conf_state());
                sender(message, outgoing);
            }
            Err(_) => {
                let _ = events.send(Event::SnapshotSent { to, ok: false });
            }
        });
        self.take_snapshot(vec![send]);
    }

    pub(super) fn take_snapshot(&mut self, send: Vec<snapshot::Send>) {
        self.snapshot_under_way = true;
        self.snapshot_at_written = self.parts.shared.wal_written();
        let metadata = Box::new(self.parts.state.metadata(self.applied_term));
        let voters = self.parts.group.conf_state().voters.clone();
        self.parts.keeper.submit(Job::Take { metadata, voters, send });
    }

    pub(super) fn maybe_snapshot(&mut self) {
        let shared = &self.parts.shared;
        if !self.snapshot_under_way
            && shared.wal_bytes() > snapshot_at()
            && shared.wal_written() >= self.snapshot_at_written + snapshot_every()
        {
            self.take_snapshot(Vec::new());
        }
    }

    /// The keeper has made a snapshot, or could not.
    pub(super) fn snapshot_taken(
        &mut self,
        result: Result<snapshot::Taken, SnapshotError>,
    ) -> Result<(), Stopped> {
        self.snapshot_under_way = false;
        match result {
            Ok(taken) => {
                tracing::info!(index = taken.index, "made a snapshot");
                self.parts.wal.cut(taken.index);
            }
            // The tree cannot be read: it is rebuilt at the next start.
            Err(SnapshotError::Backend(error)) => return Err(Stopped::Tree(error)),
            // The log is kept, so nothing is lost; it is tried again when more is written.
            Err(error) => tracing::error!(error = %Chain(&error), "cannot make a snapshot"),
        }
        Ok(())
    }

    pub(super) fn snapshot_not_sent(&mut self, to: u64) {
        let wait = SNAPSHOT_RETRY.as_millis() / self.parts.tick.as_millis().max(1);
        self.failed_snapshots.push((self.now + wait as u64, to));
    }

    /// Has consensus try again with the members that have waited long enough.
    pub(super) fn retry_snapshots(&mut self) {
        for (_, to) in self.failed_snapshots.extract_if(.., |(at, _)| *at <= self.now) {
            self.parts.group.snapshot_sent(to, SnapshotStatus::Failure);
        }
    }

    /// Puts the state of a snapshot, which a peer sent and which is durable, in place of this one.
    pub(super) fn install(&mut self, index: u64) -> Result<(), Stopped> {
        // Whoever makes a snapshot at the moment holds them for long: meanwhile peers go on being heard.
        let snapshots = tokio::task::block_in_place(|| self.parts.snapshots.lock());
        (self.parts.install)(&self.parts.state, &snapshots)?;
        // It may be a newer one than consensus was told of, and of another term.
        self.applied_term = snapshots.latest().map_or(0, |latest| snapshot::position(latest).1);
        drop(snapshots);
        tracing::info!(index, applied = self.parts.state.applied(), "installed a peer's snapshot");
        self.parts.metrics.snapshots_installed.inc();
        self.follow_membership(index);
        Ok(())
    }
}

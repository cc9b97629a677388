//! One member: a single loop over a closed set of events, between consensus, the log and the state machine.
//!
//! The loop waits for nothing but the next event: the log, snapshots and peers have threads and tasks of their own and
//! answer with events. (Only a sole voter, whom nobody else waits for, and a follower with a quick disk wait for their
//! log: see `write`.) Order within a turn: send what consensus may send before its entries are durable (a leader
//! replicates while it writes), queue the write, apply what is committed, answer.
//!
//! [`Node`] does no I/O by itself and asks no clock but `env`'s: the task in [`run`] is all that a simulation replaces.

mod event;
mod forwarded;
mod leases;
mod membership;
mod pending;
mod shared;
mod snapshots;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::storepb::Command;
use keelson_raft::{
    Dropped, Entry, EntryType, Group, HardState, Message, MessageType, Output, Role, SnapshotStatus, Write,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

pub use event::{Event, LeaseAnswer, Network, Reader, Refused, SnapshotSender, Stopped};
pub use pending::Answer;
pub use shared::{InstallGate, Shared};

use crate::apply::{Applied, Effect, State};
use crate::env::Clock;
use crate::lease::Deadlines;
use crate::metrics::Metrics;
use crate::snapshot::{self, Job, Keeper, Snapshots};
use crate::wal::{self, WalHandle};
use forwarded::Forwarded;
use leases::{keep_alive, time_to_live};
use membership::Membership;
use pending::{Pending, Proposal};

/// Entries kept in memory for followers that are a little behind.
const LOG_KEEP: usize = 8 << 20;

// Tests need not write that much.
fn log_keep() -> usize {
    fail::fail_point!("log_keep", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(LOG_KEEP));
    LOG_KEEP
}

fn log_most() -> usize {
    fail::fail_point!("log_most", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(LOG_MOST));
    LOG_MOST
}

/// What builds the state from the latest snapshot when a peer has sent one.
pub type Install = Box<dyn FnMut(&State, &Snapshots) -> Result<(), Stopped> + Send>;

/// What a node is made of.
pub struct Parts {
    pub member: u64,
    pub cluster: u64,
    /// Tells apart the lives of this member.
    pub epoch: u64,
    pub group: Group<Reader>,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub wal: WalHandle,
    pub keeper: Keeper,
    pub snapshots: Arc<Mutex<Snapshots>>,
    pub install: Install,
    pub network: Box<dyn Network>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    pub tick: Duration,
    /// Ticks after which a request fails.
    pub request_ticks: u64,
    /// The least election timeout.
    pub election_ticks: u64,
    /// Whether changes of the membership that would cost the quorum are refused.
    pub strict_reconfig_check: bool,
    pub max_learners: u32,
    /// Where threads and tasks answer to.
    pub events: UnboundedSender<Event>,
}

/// Entries kept in memory for members that are heard from and on the way to catch up, such as by a snapshot.
const LOG_MOST: usize = 128 << 20;
/// Events of one turn, at most.
const MOST_EVENTS: usize = 1024;
/// A follower that waited longer for its disk does not wait for it again for some time.
const SLOW_WRITE: Duration = Duration::from_millis(10);
/// Entries whose application takes longer are counted, as in etcd.
const SLOW_APPLY: Duration = Duration::from_millis(100);

/// Readers of one ReadIndex round.
struct Confirmed {
    /// What has to be applied before they may read.
    index: u64,
    /// The tick at which they fail.
    deadline: u64,
    readers: Vec<Reader>,
}

pub struct Node {
    parts: Parts,
    now: u64,
    pending: Pending,
    /// Proposals that wait: for a leader, or for the tree to catch up.
    deferred: VecDeque<Proposal>,
    forwarded: Forwarded,
    /// Reads whose index is not yet applied.
    reads: Vec<Confirmed>,
    deadlines: Deadlines,
    leading: bool,
    /// The last write queued, and the last that is durable.
    written: u64,
    persisted: u64,
    /// When the last tick was.
    ticked: Duration,
    /// The tick until which this member's disk counts as slow.
    slow_until: u64,
    /// What was left out of the log since the last write: a commit index.
    left_out: Option<HardState>,
    /// Term of the last applied entry.
    applied_term: u64,
    /// A snapshot that was installed: its index, and the write that makes consensus know of it.
    installed: Option<(u64, u64)>,
    /// Members to which a snapshot could not be sent, with the tick at which consensus is told.
    failed_snapshots: Vec<(u64, u64)>,
    snapshot_under_way: bool,
    snapshot_at_written: u64,
    membership: Membership,
    /// A snapshot was received in this turn.
    received: bool,
}

/// Ends the process if consensus panics: it does where going on could lose data.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Runs a node until it is stopped or cannot go on. It shares a thread with the connections to its peers, so that what
/// they say and are told changes no threads, and with nothing that takes long.
///
/// # Errors
/// Why it cannot.
pub async fn run(mut node: Node, mut events: UnboundedReceiver<Event>) -> Result<(), Stopped> {
    let _abort = AbortOnPanic;
    let mut next_tick = node.parts.clock.now() + node.parts.tick;
    let timer = tokio::time::sleep(node.parts.tick);
    tokio::pin!(timer);
    loop {
        tokio::select! {
            biased;
            event = events.recv() => {
                // It never ends: the node itself has a sender.
                let mut next = event;
                // What has queued up goes into the same turn: one write, one message per peer. Bounded, so that ticks
                // come in time.
                let mut left = MOST_EVENTS;
                while let Some(event) = next {
                    if node.handle(event)? {
                        return Ok(());
                    }
                    left -= 1;
                    next = if left > 0 { events.try_recv().ok() } else { None };
                }
            }
            () = &mut timer => {}
        }
        let now = node.parts.clock.now();
        if now >= next_tick {
            node.tick()?;
            // A pause is one tick, not many: other members may have spoken meanwhile, and are read first.
            next_tick = (next_tick + node.parts.tick).max(now);
        }
        if now >= next_tick || timer.is_elapsed() {
            timer.as_mut().reset(tokio::time::Instant::now() + next_tick.saturating_sub(now));
        }
        node.turn()?;
    }
}

impl Node {
    /// `applied_term`: that of the entry at the state's applied index.
    pub fn new(mut parts: Parts, applied_term: u64) -> Self {
        if parts.group.conf_state().voters == [parts.member] {
            parts.group.campaign();
        }
        let ticked = parts.clock.now();
        let mut node = Self {
            parts,
            now: 0,
            pending: Pending::default(),
            deferred: VecDeque::new(),
            forwarded: Forwarded::default(),
            reads: Vec::new(),
            deadlines: Deadlines::default(),
            leading: false,
            written: 0,
            persisted: 0,
            ticked,
            slow_until: 0,
            left_out: None,
            applied_term,
            installed: None,
            failed_snapshots: Vec::new(),
            snapshot_under_way: false,
            snapshot_at_written: 0,
            membership: Membership::default(),
            received: false,
        };
        let applied = node.parts.state.applied();
        node.follow_membership(applied);
        node
    }

    /// Takes one event; true: it was the request to stop.
    ///
    /// # Errors
    /// What this member cannot go on after.
    pub fn handle(&mut self, event: Event) -> Result<bool, Stopped> {
        let ticks = self.parts.request_ticks;
        match event {
            Event::Propose { operation, reply } => {
                let proposal = Proposal { operation, reply: Some(reply), deadline: self.now + ticks };
                self.propose_or_defer(proposal);
            }
            Event::Read { reply } => self.parts.group.read(Reader::Read(reply), ticks),
            Event::KeepAlive { lease, reply } => {
                self.parts.group.read(Reader::KeepAlive { lease, reply }, ticks);
            }
            Event::TimeToLive { lease, reply } => {
                self.parts.group.read(Reader::TimeToLive { lease, reply }, ticks);
            }
            Event::Messages { from, messages } => {
                self.membership.hear(from, self.now);
                for message in messages {
                    self.hear(message);
                }
            }
            Event::Membership { change, reply } => self.change_membership(change, reply),
            Event::Removed => self.leave(),
            Event::Superseded { by } => self.superseded(by),
            Event::SnapshotReceived { message } => {
                self.received = true;
                if let Err(error) = self.parts.group.step(*message) {
                    tracing::debug!(%error, "a peer's snapshot is ignored");
                }
            }
            Event::SnapshotSent { to, ok: true } => {
                self.parts.group.snapshot_sent(to, SnapshotStatus::Finish);
            }
            Event::SnapshotSent { to, ok: false } => self.snapshot_not_sent(to),
            Event::Unreachable(peer) => {
                self.membership.lose(peer);
                self.parts.group.unreachable(peer);
            }
            Event::Wal(report) => self.log_reports(report)?,
            Event::Keeper(snapshot::Report::Taken(result)) => self.snapshot_taken(result)?,
            Event::Keeper(snapshot::Report::CompactionFailed(error)) | Event::TreeFailed(error) => {
                return Err(Stopped::Tree(error));
            }
            Event::TreeDrained => self.retry_deferred(),
            Event::Snapshot { send } => self.take_snapshot(vec![send]),
            Event::Defragment => self.parts.keeper.submit(Job::Shrink),
            Event::MoveLeader { to } => self.parts.group.transfer_leader(to),
            Event::Stop => return Ok(true),
        }
        Ok(false)
    }

    /// Takes a peer's message, unless the tree is too far behind for what it brings.
    fn hear(&mut self, message: Message) {
        let values = &self.parts.state.store.values;
        match message.get_msg_type() {
            MessageType::MsgPropose if values.is_full() || !self.forwarded.is_empty() => {
                self.forwarded.add(message, self.now + self.parts.request_ticks);
                return;
            }
            // As if the network had lost it: it is sent again.
            MessageType::MsgAppend if values.is_overfull() => return,
            _ => {}
        }
        if let Err(error) = self.parts.group.step(message) {
            tracing::debug!(%error, "a peer's message is ignored");
        }
    }

    /// A leader that cannot write hands over to the member that has most: it would apply nothing, and hold everything
    /// that the others commit in memory.
    fn resign(&mut self) {
        let others = self.parts.group.progress().into_iter();
        let best = others
            .filter(|other| other.id != self.parts.member && other.voter && other.active)
            .max_by_key(|other| other.matched);
        if let Some(to) = best {
            // Nothing happens while that is under way.
            self.parts.group.transfer_leader(to.id);
        }
    }

    /// Counts a tick: deadlines, elections, heartbeats, leases.
    ///
    /// # Errors
    /// What this member cannot go on after.
    pub fn tick(&mut self) -> Result<(), Stopped> {
        self.now += 1;
        // However it was held up (by its disk, a large change, or by whoever stopped the process), nobody could renew leases.
        let now = self.parts.clock.now();
        let late = now.saturating_sub(std::mem::replace(&mut self.ticked, now));
        if late > 2 * self.parts.tick {
            self.deadlines.postpone(late - self.parts.tick);
        }
        for reader in self.parts.group.tick() {
            reader.fail(Refused::Timeout);
        }
        self.retry_snapshots();
        // What they wait for may be long in coming: a full disk keeps this member from applying what others have.
        let late = self.reads.extract_if(.., |confirmed| confirmed.deadline <= self.now);
        for reader in late.flat_map(|confirmed| confirmed.readers) {
            reader.fail(Refused::Timeout);
        }
        for proposal in self.pending.expire(self.now) {
            self.parts.metrics.proposals_failed.inc();
            proposal.refuse(Refused::Timeout);
        }
        // Or clients that give up and try again would fill the memory while nothing can be written.
        self.deferred.retain(|proposal| !proposal.is_abandoned());
        while self.deferred.front().is_some_and(|proposal| proposal.deadline <= self.now) {
            if let Some(proposal) = self.deferred.pop_front() {
                self.parts.metrics.proposals_failed.inc();
                proposal.refuse(Refused::Timeout);
            }
        }
        self.forwarded.expire(self.now);
        self.retry_deferred();
        if self.leading {
            if self.parts.shared.wal_full() {
                self.resign();
            }
            self.expire_leases();
        }
        self.tick_membership()
    }

    fn propose_or_defer(&mut self, proposal: Proposal) {
        if !self.deferred.is_empty() || self.parts.state.store.values.is_full() {
            self.deferred.push_back(proposal);
            return;
        }
        if let Some(proposal) = self.propose(proposal) {
            self.deferred.push_back(proposal);
        }
    }

    fn retry_deferred(&mut self) {
        while !self.parts.state.store.values.is_full()
            && let Some(message) = self.forwarded.take()
        {
            if let Err(error) = self.parts.group.step(message) {
                tracing::debug!(%error, "a forwarded proposal is ignored");
            }
        }
        while !self.parts.state.store.values.is_full()
            && let Some(proposal) = self.deferred.pop_front()
        {
            if let Some(proposal) = self.propose(proposal) {
                self.deferred.push_front(proposal);
                break;
            }
        }
    }

    /// Gives back what has to wait.
    fn propose(&mut self, proposal: Proposal) -> Option<Proposal> {
        let request = self.pending.next_request();
        let command = Command {
            member: self.parts.member,
            epoch: self.parts.epoch,
            request,
            operation: Some(proposal.operation),
        };
        let data = Bytes::from(command.encode_to_vec());
        match self.parts.group.propose(data) {
            Ok(()) => {
                self.pending.add(request, proposal.reply, proposal.deadline);
                None
            }
            Err(Dropped::NoLeader | Dropped::TooMany) => {
                // `command` was made of it and nothing else has it.
                let operation = command.operation?;
                Some(Proposal { operation, reply: proposal.reply, deadline: proposal.deadline })
            }
        }
    }

    /// Does everything that there is to do.
    ///
    /// # Errors
    /// What this member cannot go on after.
    pub fn turn(&mut self) -> Result<(), Stopped> {
        while let Some(output) = self.parts.group.output() {
            self.output(output)?;
        }
        if std::mem::take(&mut self.received) {
            // Consensus has had it installed, or has refused it.
            self.parts.shared.end_install();
        }
        self.follow_leader();
        self.propose_changes();
        self.serve_reads();
        self.maybe_snapshot();
        let status = self.parts.group.status();
        self.parts.shared.update(&status, self.pending.len());
        let level = self.parts.state.applied() >= status.commit;
        self.parts.shared.set_sole(level && self.parts.group.is_sole_leader());
        Ok(())
    }

    fn output(&mut self, output: Output<Reader>) -> Result<(), Stopped> {
        self.send(output.messages);
        if let Some(write) = output.write {
            let number = write.number;
            if let Some(snapshot) = &write.snapshot {
                let metadata = snapshot.get_metadata();
                self.install(metadata.index)?;
                self.installed = Some((write.number, metadata.index));
            }
            self.write(write)?;
            if self.persisted == self.written && number > self.persisted {
                // There was nothing to write, and nothing before it is still being written.
                self.written = number;
                self.persisted(number);
            }
        }
        self.apply(&output.committed)?;
        let deadline = self.now + self.parts.request_ticks;
        let confirmed = output.reads.into_iter();
        self.reads.extend(confirmed.map(|(index, readers)| Confirmed { index, deadline, readers }));
        Ok(())
    }

    /// Has a write made, if it has anything that must not be lost. A commit index by itself may be, but not while entries
    /// behind it are kept: a change of the membership is proposed only when the one before it is committed, and whoever
    /// finds both in its log and knows of neither would stand for election with a majority that does not meet the others'.
    ///
    /// Who needs nobody else to commit has nothing to do before a write is durable, and makes it by itself: two changes of
    /// threads less for each. So does a follower, which has only that to say, as long as its disk is quick: on a slow one
    /// it goes on hearing the leader.
    fn write(&mut self, mut write: Write) -> Result<(), Stopped> {
        let left_out = self.left_out.take();
        write.hard_state = write.hard_state.or(left_out);
        if !write.must_sync && self.persisted == self.written {
            self.left_out = write.hard_state;
            return Ok(());
        }
        let follows = self.parts.group.status().role == Role::Follower && self.now >= self.slow_until;
        let by_itself = self.persisted == self.written
            && write.snapshot.is_none()
            && (follows || self.parts.group.is_sole_leader());
        self.written = write.number;
        if !by_itself {
            self.parts.wal.write(write);
            return Ok(());
        }
        let (reports, begun) = (RefCell::new(Vec::new()), self.parts.clock.now());
        self.parts.wal.write_now(write, &|report| reports.borrow_mut().push(report)).map_err(Stopped::Wal)?;
        let took = self.parts.clock.now().saturating_sub(begun);
        if took > SLOW_WRITE {
            self.slow_until = self.now + self.parts.election_ticks;
        }
        reports.into_inner().into_iter().try_for_each(|report| self.log_reports(report))
    }

    fn log_reports(&mut self, report: wal::Report) -> Result<(), Stopped> {
        match report {
            wal::Report::Persisted(number) => self.persisted(number),
            wal::Report::Full(full) => {
                self.parts.shared.set_wal_full(full);
                if full && self.leading {
                    tracing::warn!("cannot write: hands over, if another member can take it");
                }
            }
            wal::Report::Failed(error) => return Err(Stopped::Wal(error)),
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        let mut by_peer: Vec<(u64, Vec<Message>)> = Vec::new();
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.send_snapshot(message);
                continue;
            }
            match by_peer.iter_mut().find(|(to, _)| *to == message.to) {
                Some((_, batch)) => batch.push(message),
                None => by_peer.push((message.to, vec![message])),
            }
        }
        for (to, batch) in by_peer {
            self.parts.network.send(to, batch);
        }
    }

    fn persisted(&mut self, number: u64) {
        self.persisted = number;
        self.parts.group.persisted(number);
        if let Some((_, index)) = self.installed.take_if(|(write, _)| *write <= number) {
            self.parts.group.applied(index);
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), Stopped> {
        let begun = self.parts.clock.now();
        for entry in entries {
            // A snapshot that was installed may be newer than the one that consensus knows of.
            if entry.index <= self.parts.state.applied() {
                continue;
            }
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.apply_configuration(entry);
                continue;
            }
            fail::fail_point!("apply_before");
            let applied = self.parts.state.apply(entry).map_err(Stopped::Apply)?;
            fail::fail_point!("apply_after");
            self.applied_term = entry.term;
            if let Some(applied) = applied {
                self.finish(applied, entry.index);
            }
        }
        if let Some(last) = entries.last() {
            if self.parts.clock.now().saturating_sub(begun) > SLOW_APPLY {
                self.parts.metrics.slow_applies.inc();
            }
            self.parts.group.applied(last.index);
            let keep = if self.parts.state.members.read().len() > 1 { log_keep() } else { 0 };
            self.parts.group.shrink_log(keep, log_most());
        }
        Ok(())
    }

    /// Does what else an applied entry asks for, and answers its client if that is here.
    fn finish(&mut self, applied: Applied, index: u64) {
        self.effect(applied.effect, index);
        if applied.member == self.parts.member && applied.epoch == self.parts.epoch {
            self.pending.answer(applied.request, applied.revision, applied.result);
        }
    }

    fn effect(&mut self, effect: Effect, index: u64) {
        match effect {
            Effect::None => {}
            Effect::Granted { lease, ttl } if self.leading => {
                self.deadlines.set(lease, ttl, self.parts.clock.now());
            }
            Effect::Granted { .. } => {}
            Effect::Revoked { lease } => self.deadlines.remove(lease),
            Effect::Compacted { revision } => self.parts.keeper.submit(Job::Compact { revision, index }),
            Effect::Membership => self.follow_membership(index),
        }
    }

    /// Takes up or lays down what the leader alone does.
    fn follow_leader(&mut self) {
        let status = self.parts.group.status();
        let leading = status.role == Role::Leader;
        if leading && !self.leading {
            tracing::info!(term = status.term, "became leader");
            // How long each has left is not replicated: all get their full time.
            let now = self.parts.clock.now();
            for (id, ttl) in self.parts.state.leases.read().iter() {
                self.deadlines.set(id, ttl, now);
            }
        } else if !leading && self.leading {
            tracing::info!(
                term = status.term,
                leader = format!("{:x}", status.leader),
                "is leader no longer"
            );
            self.deadlines.clear();
        }
        self.leading = leading;
        if self.parts.shared.leader() != status.leader {
            if status.leader != 0 {
                tracing::info!(term = status.term, leader = format!("{:x}", status.leader), "has a leader");
                self.parts.metrics.leader_changes.inc();
            } else {
                tracing::warn!(term = status.term, "has no leader");
            }
            self.retry_deferred();
        }
    }

    fn serve_reads(&mut self) {
        let applied = self.parts.state.applied();
        for confirmed in self.reads.extract_if(.., |confirmed| confirmed.index <= applied) {
            for reader in confirmed.readers {
                match reader {
                    Reader::Read(reply) => {
                        let _ = reply.send(Ok(()));
                    }
                    Reader::KeepAlive { lease, reply } => {
                        let answer = keep_alive(&self.parts, &mut self.deadlines, self.leading, lease);
                        let _ = reply.send(answer);
                    }
                    Reader::TimeToLive { lease, reply } => {
                        let answer = time_to_live(&self.parts, &self.deadlines, self.leading, lease);
                        let _ = reply.send(answer);
                    }
                }
            }
        }
    }
}

/// An error with its causes, for one log line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(out, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

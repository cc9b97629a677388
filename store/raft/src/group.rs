//! One member's part in the group: raft-rs's `RawNode` behind calls that cannot be made in the wrong order.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message,
    MessageType, Snapshot,
};
use raft::{RawNode, SnapshotStatus, StateRole};

use crate::admit::refusal;
use crate::changes::{Changes, is_change};
use crate::log::Log;
use crate::logger::logger;
use crate::reads::Reads;
use crate::timeout::election_timeout;

/// What a member starts with, apart from its state.
#[derive(Debug, Clone)]
pub struct Config {
    /// Never 0.
    pub id: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// The least election timeout in ticks; the greatest is twice as much.
    pub election_ticks: usize,
    pub seed: u64,
    /// Bytes of entries in one append message.
    pub max_message: u64,
    /// Bytes proposed and not yet committed, above which proposals are dropped.
    pub max_uncommitted: u64,
    /// The group is older than this member's log, which may have been lost: until it is given some, it elects nobody,
    /// since it may have been the one that remembered what a majority promised.
    pub joining: bool,
}

/// The state that a member starts from: what its snapshot and WAL say.
#[derive(Debug, Clone, Default)]
pub struct Initial {
    pub hard_state: HardState,
    pub conf_state: ConfState,
    /// Index and term of the entry before `entries`.
    pub before: (u64, u64),
    pub entries: Vec<Entry>,
    /// The state machine's position.
    pub applied: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

impl From<StateRole> for Role {
    fn from(role: StateRole) -> Self {
        match role {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub role: Role,
    /// 0: unknown.
    pub leader: u64,
    pub term: u64,
    pub commit: u64,
    pub last_index: u64,
}

/// One step of a change of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Adds a voter, or makes one of a learner.
    AddVoter(u64),
    AddLearner(u64),
    Remove(u64),
}

impl From<Change> for ConfChangeSingle {
    fn from(change: Change) -> Self {
        let (kind, id) = match change {
            Change::AddVoter(id) => (ConfChangeType::AddNode, id),
            Change::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        single
    }
}

/// How far the leader knows another member, or itself, to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub id: u64,
    pub voter: bool,
    /// The last index that it is known to hold durably.
    pub matched: u64,
    /// It answered lately.
    pub active: bool,
}

/// Why a proposal did not enter the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    #[error("no leader")]
    NoLeader,
    #[error("too many proposals are under way")]
    TooMany,
}

/// What has to become durable before [`Group::persisted`] may be called with its number. Writes are numbered in order,
/// and one that is durable says so of all before it.
#[derive(Debug)]
pub struct Write {
    pub number: u64,
    pub hard_state: Option<HardState>,
    /// Replaces the whole log.
    pub snapshot: Option<Snapshot>,
    pub entries: Vec<Entry>,
    /// False: nothing was promised to anyone yet (at most the commit index moved, and not over a change of the
    /// configuration), the write may be left out.
    pub must_sync: bool,
}

/// What the caller has to do, in this order: send `messages`, begin `write`, install its snapshot, apply `committed`,
/// answer `reads` once their index is applied.
#[derive(Debug)]
pub struct Output<R> {
    pub messages: Vec<Message>,
    pub write: Option<Write>,
    pub committed: Vec<Entry>,
    /// Readers with the index that has to be applied before they may read.
    pub reads: Vec<(u64, Vec<R>)>,
}

/// `R` is whatever the caller hands in with a read, to find the reader again.
pub struct Group<R> {
    node: RawNode<Log>,
    reads: Reads<R>,
    seed: u64,
    election: Range<usize>,
    /// Messages that wait for an output to be durable, by its number.
    held: VecDeque<(u64, Vec<Message>)>,
    /// Messages that waited and may go with the next output.
    released: Vec<Message>,
    changes: Changes,
    /// The write of a snapshot, until it is durable. raft-rs knows the log behind it, and takes what it has for applied only
    /// then: an election in between would make it look at entries that are no longer there, and panic.
    restoring: Option<u64>,
    leader: u64,
    /// Whether this member leads and has committed an entry of its term; before that it answers no read.
    serving: bool,
    joining: bool,
}

impl<R> Group<R> {
    /// # Errors
    /// raft-rs refuses a configuration or a state that contradicts itself.
    pub fn new(config: &Config, initial: Initial) -> raft::Result<Self> {
        let election = config.election_ticks..config.election_ticks * 2;
        let changes = Changes::new(&initial.entries, initial.hard_state.commit);
        let mut log = Log::new(initial.hard_state, initial.conf_state, initial.before);
        log.append(initial.entries);
        log.set_applied(initial.applied);
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: election.start,
            max_election_tick: election.end,
            applied: initial.applied,
            max_size_per_msg: config.max_message,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            max_uncommitted_size: config.max_uncommitted,
            max_committed_size_per_ready: 4 << 20,
            ..raft::Config::default()
        };
        let node = RawNode::new(&raft_config, log, &logger())?;
        let retry = config.heartbeat_ticks as u64 * 2;
        let mut group = Self {
            node,
            reads: Reads::new(retry.max(1)),
            seed: config.seed,
            election,
            held: VecDeque::new(),
            released: Vec::new(),
            changes,
            leader: 0,
            serving: false,
            joining: config.joining,
            restoring: None,
        };
        group.settle();
        Ok(group)
    }

    /// After every call into raft-rs: the election timeout is ours again, and reads know of a new leader.
    fn settle(&mut self) {
        let raft = &mut self.node.raft;
        let wanted =
            election_timeout(self.seed, raft.id, raft.term, raft.state.into(), self.election.clone());
        if raft.randomized_election_timeout() != wanted {
            raft.set_randomized_election_timeout(wanted);
        }
        let serving = raft.state == StateRole::Leader && raft.commit_to_current_term();
        if self.leader != raft.leader_id || self.serving != serving {
            (self.leader, self.serving) = (raft.leader_id, serving);
            self.reads.restart();
        }
    }

    /// Counts one tick; returns the readers that waited too long.
    pub fn tick(&mut self) -> Vec<R> {
        if self.restoring.is_some() {
            self.node.raft.election_elapsed = 0;
        }
        self.node.tick();
        self.settle();
        self.reads.tick()
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// A message of a kind that no peer sends, or from a member that is not of the group; it changed nothing.
    pub fn step(&mut self, mut message: Message) -> raft::Result<()> {
        let raft = &self.node.raft;
        if let Some(reason) = refusal(&message, raft.id, raft.raft_log.last_index()) {
            tracing::error!(
                from = format!("{:x}", message.from),
                kind = ?message.get_msg_type(),
                reason,
                "a message that no member sends is refused"
            );
            return Err(raft::Error::StepLocalMsg);
        }
        let lost = match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if self.is_joining() => {
                return Ok(());
            }
            MessageType::MsgTimeoutNow if self.restoring.is_some() => return Ok(()),
            // One that follows would hand it on, which raft-rs panics about: whoever asked has not heard of the new leader.
            MessageType::MsgTransferLeader if self.node.raft.state != StateRole::Leader => return Ok(()),
            // The leader alone proposes changes of the configuration.
            MessageType::MsgPropose if message.entries.iter().any(is_change) => return Ok(()),
            MessageType::MsgHeartbeat => self.admit_loss(&mut message),
            MessageType::MsgAppendResponse => {
                self.learn_loss(&message);
                None
            }
            // raft-rs learns from it what is committed, but not from one of an earlier term. A member that was removed and
            // knows it may have no other way to tell the one that remains, which asks it for its vote time and again.
            MessageType::MsgRequestPreVoteResponse if message.reject => {
                message.term = message.term.max(self.node.raft.term);
                None
            }
            _ => None,
        };
        let result = match self.node.step(message) {
            // A proposal that a follower forwarded and that no longer finds a leader: its sender times out.
            Err(raft::Error::ProposalDropped) => Ok(()),
            other => other,
        };
        if let Some(mut admission) = lost {
            admission.term = self.node.raft.term;
            self.released.push(admission);
        }
        self.settle();
        result
    }

    fn is_joining(&self) -> bool {
        self.joining && self.node.raft.raft_log.last_index() == 0
    }

    /// A leader names a commit index that it knows this member to hold. If it is not here, the log was lost, which raft-rs
    /// panics about; here the leader is told what is left instead.
    fn admit_loss(&self, heartbeat: &mut Message) -> Option<Message> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        if heartbeat.commit <= last || heartbeat.term < raft.term {
            return None;
        }
        tracing::warn!(
            last,
            leader_knows = heartbeat.commit,
            "this member's log ends before what it once had: the leader is asked for the rest"
        );
        let mut admission = Message { from: raft.id, to: heartbeat.from, reject: true, ..Message::default() };
        admission.set_msg_type(MessageType::MsgAppendResponse);
        (admission.index, admission.reject_hint) = (heartbeat.commit, last);
        heartbeat.commit = last;
        Some(admission)
    }

    /// A follower that rejects what it once had has lost it. raft-rs takes such an answer for an old one; but to probe
    /// again does no harm if it is.
    fn learn_loss(&mut self, answer: &Message) {
        let raft = &mut self.node.raft;
        if !answer.reject || raft.state != StateRole::Leader || answer.term != raft.term {
            return;
        }
        if let Some(progress) = raft.mut_prs().get_mut(answer.from)
            && answer.reject_hint < progress.matched
        {
            progress.matched = 0;
            progress.become_probe();
            progress.next_idx = answer.reject_hint + 1;
        }
    }

    /// Puts `data` before the leader, which may be another member.
    ///
    /// # Errors
    /// It did not enter the log here; a proposal that was forwarded may still be lost silently.
    pub fn propose(&mut self, data: Bytes) -> Result<(), Dropped> {
        let mut message = Message { from: self.node.raft.id, ..Message::default() };
        message.set_msg_type(MessageType::MsgPropose);
        message.set_entries(vec![Entry { data, ..Entry::default() }].into());
        let result = self.node.raft.step(message);
        self.settle();
        match result {
            Ok(()) => Ok(()),
            Err(_) if self.node.raft.leader_id == raft::INVALID_ID => Err(Dropped::NoLeader),
            Err(_) => Err(Dropped::TooMany),
        }
    }

    /// Whether a change of the configuration may be proposed: by a leader that knows all that was committed before it,
    /// while no other change is under way.
    pub fn may_change_configuration(&self) -> bool {
        let raft = &self.node.raft;
        raft.state == StateRole::Leader
            && raft.commit_to_current_term()
            && !raft.has_pending_conf()
            && raft.lead_transferee.is_none()
            && !self.is_joint()
    }

    fn is_joint(&self) -> bool {
        !self.conf_state().voters_outgoing.is_empty()
    }

    /// Puts a change of the configuration into the log; `context` comes back with it. More than one step goes through a
    /// joint configuration, which is left by itself.
    ///
    /// # Errors
    /// It did not enter the log: see [`Self::may_change_configuration`].
    pub fn propose_configuration(&mut self, changes: &[Change], context: Bytes) -> Result<(), Dropped> {
        if !self.may_change_configuration() {
            return Err(Dropped::TooMany);
        }
        let mut change = ConfChangeV2 { context, ..ConfChangeV2::default() };
        change.set_changes(changes.iter().copied().map(ConfChangeSingle::from).collect::<Vec<_>>().into());
        let result = self.node.propose_conf_change(Vec::new(), change);
        self.settle();
        result.map_err(|_| Dropped::TooMany)
    }

    /// Makes a committed change of the configuration take effect, or, if it was refused, must not be called. On an error
    /// nothing has changed, on this as on every other member.
    ///
    /// # Errors
    /// A change that the configuration does not allow.
    pub fn apply_configuration(&mut self, change: &ConfChangeV2) -> raft::Result<ConfState> {
        let conf_state = self.node.apply_conf_change(change)?;
        self.node.mut_store().conf_state = conf_state.clone();
        let raft = &mut self.node.raft;
        let votes = conf_state.voters.contains(&raft.id) || conf_state.voters_outgoing.contains(&raft.id);
        if raft.state == StateRole::Leader && !votes {
            // Without a place in its own configuration raft-rs cannot lead. The others are told what is committed, and one
            // of them need not wait for its timeout.
            raft.bcast_append();
            let best = raft.prs().iter().filter(|(id, _)| conf_state.voters.contains(id));
            if let Some(to) = best.max_by_key(|(_, progress)| progress.matched).map(|(id, _)| *id) {
                raft.send_timeout_now(to);
            }
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
        self.settle();
        Ok(conf_state)
    }

    /// Asks for a linearizable read; it comes back in an output, or from [`Self::tick`] after `ticks`.
    pub fn read(&mut self, reader: R, ticks: u64) {
        self.reads.add(reader, ticks);
    }

    /// Stands for election at once: for the only voter, which need not wait.
    pub fn campaign(&mut self) {
        // Refused only when it makes no sense, such as by a leader.
        let _ = self.node.campaign();
        self.settle();
    }

    pub fn transfer_leader(&mut self, to: u64) {
        self.node.transfer_leader(to);
        self.settle();
    }

    pub fn unreachable(&mut self, peer: u64) {
        self.node.report_unreachable(peer);
        self.settle();
    }

    pub fn snapshot_sent(&mut self, peer: u64, status: SnapshotStatus) {
        self.node.report_snapshot(peer, status);
        self.settle();
    }

    /// Everything up to output `number` is durable.
    pub fn persisted(&mut self, number: u64) {
        self.node.on_persist_ready(number);
        self.restoring.take_if(|write| *write <= number);
        if self.changes.persisted(number) && self.node.raft.state == StateRole::Leader {
            // The others have not been told.
            self.node.raft.bcast_append();
        }
        self.settle();
        while self.held.front().is_some_and(|(held, _)| *held <= number) {
            if let Some((_, mut messages)) = self.held.pop_front() {
                self.released.append(&mut messages);
            }
        }
    }

    /// The state machine stands at `index`.
    pub fn applied(&mut self, index: u64) {
        self.node.mut_store().set_applied(index);
        self.node.advance_apply_to(index);
        self.settle();
    }

    /// Forgets applied entries beyond `keep` bytes: what a slow follower may still be sent. A leader keeps up to `most` for
    /// members that it hears from and that lack them, or one that gets a snapshot would need the next one by the time it
    /// has it.
    pub fn shrink_log(&mut self, keep: usize, most: usize) {
        let raft = &self.node.raft;
        let lacking = (raft.state == StateRole::Leader && self.log_bytes() > keep)
            .then(|| {
                let others = raft.prs().iter().filter(|(id, other)| **id != raft.id && other.recent_active);
                others.map(|(_, other)| other.matched).min()
            })
            .flatten();
        self.node.mut_store().shrink(keep, lacking.unwrap_or(u64::MAX), most);
    }

    /// The next piece of work, until there is none.
    pub fn output(&mut self) -> Option<Output<R>> {
        if let Some(context) = self.reads.begin() {
            self.node.read_index(self.context(context));
            self.settle();
        }
        let mut messages = mem::take(&mut self.released);
        if !self.node.has_ready() {
            let committed = self.changes.admit(Vec::new());
            self.withhold(&mut messages);
            let nothing_else = messages.is_empty() && committed.is_empty();
            return (!nothing_else).then_some(Output { messages, write: None, committed, reads: vec![] });
        }
        let mut ready = self.node.ready();
        let mut write = Write {
            number: ready.number(),
            hard_state: ready.hs().cloned(),
            snapshot: (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone()),
            entries: ready.take_entries(),
            must_sync: ready.must_sync(),
        };
        if write.snapshot.is_some() {
            self.changes.restore();
            self.restoring = Some(write.number);
        }
        self.changes.append(&write.entries);
        if let Some(hard_state) = &write.hard_state {
            write.must_sync |= self.changes.seals(write.number, hard_state.commit);
        }
        messages.extend(ready.take_messages().into_iter().filter_map(|message| self.mend(message)));
        self.withhold(&mut messages);
        let held = ready.take_persisted_messages();
        let committed = self.changes.admit(ready.take_committed_entries());
        let read_states = ready.take_read_states();

        let log = self.node.mut_store();
        if let Some(snapshot) = &write.snapshot {
            log.restore(snapshot);
        }
        log.append(write.entries.iter().cloned());
        if let Some(hard_state) = &write.hard_state {
            log.hard_state = hard_state.clone();
        }
        self.node.advance_append_async(ready);
        if !held.is_empty() {
            self.held.push_back((write.number, held));
        }
        let reads = read_states
            .into_iter()
            .filter_map(|state| {
                let readers = self.finish(&state.request_ctx);
                (!readers.is_empty()).then_some((state.index, readers))
            })
            .collect();
        self.settle();
        Some(Output { messages, write: Some(write), committed, reads })
    }

    /// raft-rs adds entries to an append that still waits to be sent without any, even if that one stands elsewhere in the
    /// log: after a rejection they begin before it. Its receiver would acknowledge as many entries behind that place as
    /// it got, which it does not have. None: what precedes them is no longer here.
    fn mend(&self, mut message: Message) -> Option<Message> {
        if message.get_msg_type() == MessageType::MsgAppend
            && let Some(before) = message.entries.first().map(|first| first.index - 1)
            && before != message.index
        {
            message.log_term = self.node.raft.raft_log.term(before).ok()?;
            message.index = before;
        }
        Some(message)
    }

    fn withhold(&self, messages: &mut [Message]) {
        if self.changes.is_empty() {
            return;
        }
        let commit = self.node.raft.raft_log.committed;
        for message in messages {
            self.changes.withhold(message, commit);
        }
    }

    /// Contexts are unique among members and within a process's life; an answer to an earlier life is not ours, since
    /// `seed` differs.
    fn context(&self, round: u64) -> Vec<u8> {
        let mut context = Vec::with_capacity(24);
        for word in [self.node.raft.id, self.seed, round] {
            context.extend_from_slice(&word.to_be_bytes());
        }
        context
    }

    fn finish(&mut self, context: &[u8]) -> Vec<R> {
        match context.last_chunk::<8>() {
            Some(round) if context == self.context(u64::from_be_bytes(*round)) => {
                self.reads.finish(u64::from_be_bytes(*round))
            }
            _ => Vec::new(),
        }
    }

    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        Status {
            role: raft.state.into(),
            leader: raft.leader_id,
            term: raft.term,
            commit: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
        }
    }

    /// Whether nobody can commit anything without this member, and it knows all that was committed: it is the only voter,
    /// leads, and has committed an entry of its term.
    pub fn is_sole_leader(&self) -> bool {
        let conf_state = self.conf_state();
        self.serving && conf_state.voters == [self.node.raft.id] && conf_state.voters_outgoing.is_empty()
    }

    pub fn log_bytes(&self) -> usize {
        self.node.store().bytes()
    }

    pub fn conf_state(&self) -> &ConfState {
        &self.node.store().conf_state
    }

    /// What a leader knows of all members; what others know of each other is old.
    pub fn progress(&self) -> Vec<Progress> {
        let raft = &self.node.raft;
        let voters = &self.conf_state().voters;
        raft.prs()
            .iter()
            .map(|(id, progress)| Progress {
                id: *id,
                voter: voters.contains(id),
                matched: progress.matched,
                active: progress.recent_active || *id == raft.id,
            })
            .collect()
    }
}

/// The change of the configuration that an entry holds; none if it is no such entry.
pub fn configuration_change(entry: &Entry) -> Option<ConfChangeV2> {
    match entry.get_entry_type() {
        EntryType::EntryConfChangeV2 => ConfChangeV2::parse_from_bytes(&entry.data).ok(),
        EntryType::EntryNormal | EntryType::EntryConfChange => None,
    }
}

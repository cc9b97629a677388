//! Changes of the membership: the leader checks and proposes them one after the other; every member follows what is
//! applied. One that was removed ends, when another member says so: until then those that remain may not know for good
//! that they need it no more.

use std::collections::HashMap;

use bytes::Bytes;
use keelson_proto::etcd::storepb::command::Operation;
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_proto::etcd::storepb::{Command, MembershipChange};
use keelson_raft::{Entry, configuration_change};
use prost::Message as _;

use super::pending::{Proposal, Reply};
use super::{Node, Refused, Stopped};
use crate::apply::Rejected;
use crate::membership::{Refusal, Standing, describe, step};

/// Election timeouts after which a member that the leader hears nothing from is not waited for any more.
const SILENCE: u64 = 5;

/// A change that waits for the one before it.
pub(super) struct Waiting {
    change: MembershipChange,
    reply: Reply,
    /// The tick at which it fails.
    deadline: u64,
}

/// What the node knows of the membership besides the state.
#[derive(Default)]
pub(super) struct Membership {
    waiting: Vec<Waiting>,
    /// When each other member was last heard from, in ticks.
    heard: HashMap<u64, u64>,
    /// Since when a leader has not been hearing from a member, in ticks.
    quiet: HashMap<u64, u64>,
    /// The log says that this member was removed.
    removed: bool,
    /// The tick at which a member that was removed, and told so by another, ends.
    end: Option<u64>,
    /// The tick since which there is no leader.
    leaderless: Option<u64>,
    /// The tick at which the others were asked whether this one still is a member.
    asked: u64,
    /// The tick at which it was last said that there are two clusters.
    warned: Option<u64>,
}

impl Membership {
    pub fn hear(&mut self, from: u64, now: u64) {
        self.heard.insert(from, now);
    }

    /// The connection to a member is lost.
    pub fn lose(&mut self, member: u64) {
        self.heard.remove(&member);
    }

    /// Whether a member has been heard from since a tick.
    fn hears(&self, member: u64, since: u64) -> bool {
        self.heard.get(&member).is_some_and(|at| *at > since)
    }
}

impl Node {
    pub(super) fn change_membership(&mut self, change: MembershipChange, reply: Reply) {
        let deadline = self.now + self.parts.request_ticks;
        self.membership.waiting.push(Waiting { change, reply, deadline });
        self.propose_changes();
    }

    /// Proposes the change that is next, if there is one and it may be.
    pub(super) fn propose_changes(&mut self) {
        if !self.leading {
            for waiting in self.membership.waiting.drain(..) {
                // Its client may have gone.
                let _ = waiting.reply.send(Err(Refused::NotLeader));
            }
            return;
        }
        while !self.membership.waiting.is_empty() && self.parts.group.may_change_configuration() {
            let Waiting { mut change, reply, deadline } = self.membership.waiting.remove(0);
            change.max_learners = self.parts.max_learners;
            let revision = self.parts.state.store.revision();
            let Some(made) = change.change.clone() else {
                let _ = reply.send(Ok((revision, Err(Rejected::Membership(Refusal::Impossible)))));
                continue;
            };
            if let Err(refusal) = self.check_change(&change, &made) {
                tracing::warn!(change = describe(&made), reason = %refusal, "a change of the membership is refused");
                let _ = reply.send(Ok((revision, Err(Rejected::Membership(refusal)))));
                continue;
            }
            if made == Change::Remove(self.parts.member) {
                // Another one leads first, and then removes this one.
                tracing::info!("is to be removed: hands over first");
                self.resign();
                let _ = reply.send(Err(Refused::NotLeader));
                continue;
            }
            tracing::info!(change = describe(&made), "proposes a change of the membership");
            let operation = Operation::Membership(change);
            let Some(step) = step(&made) else {
                self.propose_or_defer(Proposal { operation, reply: Some(reply), deadline });
                continue;
            };
            let request = self.pending.next_request();
            let command = Command {
                member: self.parts.member,
                epoch: self.parts.epoch,
                request,
                operation: Some(operation),
            };
            let context = Bytes::from(command.encode_to_vec());
            match self.parts.group.propose_configuration(&[step], context) {
                // Its deadline is not earlier than those of others before it only if it begins anew.
                Ok(()) => self.pending.add(request, Some(reply), self.now + self.parts.request_ticks),
                Err(_) => {
                    let Some(Operation::Membership(change)) = command.operation else { return };
                    self.membership.waiting.insert(0, Waiting { change, reply, deadline });
                    return;
                }
            }
        }
    }

    fn check_change(&self, change: &MembershipChange, made: &Change) -> Result<(), Refusal> {
        let members = self.parts.state.members.read();
        let since = self.now.saturating_sub(self.parts.election_ticks);
        let progress = self.parts.group.progress();
        let standing = Standing {
            leader: self.parts.member,
            // Not the leader whose silence of that very length made this member the leader.
            connected: &|id| self.membership.hears(id, since),
            matched: &|id| progress.iter().find(|one| one.id == id).map(|one| one.matched),
        };
        standing.check(&members, made, self.parts.strict_reconfig_check)?;
        members.check(change)
    }

    /// Another member, which has it durably, says that this one was removed: it ends, when whoever asked for that through it
    /// has got an answer.
    pub(super) fn leave(&mut self) {
        let end = self.now + self.parts.election_ticks;
        self.membership.end.get_or_insert(end);
    }

    /// Another member says that it belongs to a later incarnation. One that has a leader has a majority behind it, and
    /// goes on; otherwise it asks around ([`crate::rejoin`]), since anybody could say so.
    pub(super) fn superseded(&mut self, by: u64) {
        self.membership.lose(by);
        self.parts.group.unreachable(by);
        if self.parts.group.status().leader == 0 {
            self.parts.shared.hear_of_successor();
            return;
        }
        if self.membership.warned.is_none_or(|at| self.now >= at + self.parts.request_ticks) {
            self.membership.warned = Some(self.now);
            tracing::error!(
                member = format!("{by:x}"),
                "--force-new-cluster made a new cluster of a member although a majority of this one lives: two clusters serve \
                 clients. Stop that member and remove its data, or stop all members of this one and start them again"
            );
        }
    }

    /// Applies an entry that changes the configuration.
    pub(super) fn apply_configuration(&mut self, entry: &Entry) {
        fail::fail_point!("membership_before");
        let Some(change) = configuration_change(entry) else {
            // No version writes such an entry.
            tracing::error!(index = entry.index, "a change of the configuration cannot be decoded");
            return;
        };
        let (state, group) = (&self.parts.state, &mut self.parts.group);
        let applied = state.apply_configuration(entry, &change, || group.apply_configuration(&change));
        fail::fail_point!("membership_after");
        self.applied_term = entry.term;
        if let Some(applied) = applied {
            self.finish(applied, entry.index);
        }
    }

    /// Follows the membership as it is applied at `index`.
    pub(super) fn follow_membership(&mut self, index: u64) {
        let members = self.parts.state.members.read();
        let own = self.parts.member;
        self.parts.network.follow(&members);
        self.parts.shared.set_membership(index, members.is_learner(own));
        self.membership.heard.retain(|id, _| members.contains_key(id));
        let ids: Vec<String> = members
            .values()
            .map(|member| format!("{:x}{}", member.id, if member.is_learner { " (learner)" } else { "" }))
            .collect();
        tracing::info!(index, members = ids.join(", "), "the members are");
        self.membership.removed = members.is_removed(own);
        if self.membership.removed {
            tracing::warn!("this member was removed: it ends when another one says so too");
        }
    }

    /// Counts a tick.
    ///
    /// # Errors
    /// This member was removed, and another one said so.
    pub(super) fn tick_membership(&mut self) -> Result<(), Stopped> {
        self.notice_silence();
        let now = self.now;
        for late in self.membership.waiting.extract_if(.., |waiting| waiting.deadline <= now) {
            let _ = late.reply.send(Err(Refused::Timeout));
        }
        self.propose_changes();
        if self.membership.end.is_some_and(|end| end <= now) {
            return Err(Stopped::Removed);
        }
        if self.membership.removed {
            if now >= self.membership.asked + self.parts.election_ticks {
                self.ask_others();
            }
            return Ok(());
        }
        // A member that was removed while it was away hears nothing more, and one that does not vote never gives up the
        // leader that it once had: whoever does not hear from a leader for long asks whether it still is a member.
        let leader = self.parts.group.status().leader;
        let silence = 2 * self.parts.election_ticks;
        if leader == self.parts.member || self.membership.hears(leader, now.saturating_sub(silence)) {
            self.membership.leaderless = None;
        } else {
            let since = *self.membership.leaderless.get_or_insert(now);
            if now >= since.max(self.membership.asked) + silence {
                self.ask_others();
            }
        }
        Ok(())
    }

    /// Tells who has been silent for long. Only a leader knows: nobody but it hears from all.
    fn notice_silence(&mut self) {
        let (now, timeout) = (self.now, self.parts.election_ticks);
        let mut quiet = std::mem::take(&mut self.membership.quiet);
        if self.leading {
            let since = now.saturating_sub(timeout);
            let members = self.parts.state.members.read();
            let others = members.keys().filter(|id| **id != self.parts.member);
            let unheard = others.filter(|id| !self.membership.hears(**id, since));
            let unheard = unheard.map(|id| (*id, quiet.remove(id).unwrap_or(now)));
            self.membership.quiet = unheard.collect();
        }
        let silent = self.membership.quiet.iter().filter(|(_, since)| **since + SILENCE * timeout <= now);
        self.parts.shared.set_silent(silent.map(|(id, _)| *id).collect());
    }

    /// Asks whether this one still is a member: whoever knows that it is not answers any message with that.
    fn ask_others(&mut self) {
        self.membership.asked = self.now;
        let others = self.parts.state.members.read();
        for id in others.keys().filter(|id| **id != self.parts.member) {
            self.parts.network.send(*id, Vec::new());
        }
    }
}

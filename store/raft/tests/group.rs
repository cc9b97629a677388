//! Groups of members on a network in memory: elections, replication, reads, and lost messages, all from a seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_raft::{
    Change, ConfState, Config, Entry, EntryType, Group, Initial, Message, MessageType, Role,
    configuration_change,
};

struct Member {
    group: Group<&'static str>,
    applied: Vec<Bytes>,
    index: u64,
    served: Vec<(u64, &'static str)>,
    /// All entries, for a member that starts again.
    kept: Vec<keelson_raft::Entry>,
}

impl Member {
    /// Handles every output; gives what is to be sent.
    fn work(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(output) = self.group.output() {
            messages.extend(output.messages);
            if let Some(snapshot) = output.write.as_ref().and_then(|write| write.snapshot.as_ref()) {
                // These tests have no state but the index.
                self.index = snapshot.get_metadata().index;
            }
            for entry in output.committed {
                self.index = entry.index;
                self.kept.push(entry.clone());
                if entry.get_entry_type() != EntryType::EntryNormal {
                    let change = configuration_change(&entry).unwrap();
                    let conf_state = self.group.apply_configuration(&change).unwrap();
                    assert_eq!(&conf_state, self.group.conf_state());
                } else if !entry.data.is_empty() {
                    self.applied.push(entry.data);
                }
            }
            if let Some(write) = output.write {
                self.group.persisted(write.number);
            }
            self.group.applied(self.index);
            for (index, readers) in output.reads {
                assert!(index <= self.index, "in this test every commit is applied at once");
                self.served.extend(readers.into_iter().map(|reader| (index, reader)));
            }
        }
        messages
    }
}

struct Cluster {
    members: BTreeMap<u64, Member>,
    cut: Vec<u64>,
}

/// A member without a log.
fn member(id: u64, count: u64, seed: u64, joining: bool) -> Member {
    let initial = Initial {
        conf_state: ConfState { voters: (1..=count).collect(), ..ConfState::default() },
        ..Initial::default()
    };
    started(id, initial, seed, joining)
}

fn started(id: u64, initial: Initial, seed: u64, joining: bool) -> Member {
    let config = Config {
        id,
        heartbeat_ticks: 2,
        election_ticks: 20,
        seed,
        max_message: 1 << 20,
        max_uncommitted: 1 << 20,
        joining,
    };
    let index = initial.applied;
    let group = Group::new(&config, initial).unwrap();
    Member { group, applied: vec![], index, served: vec![], kept: vec![] }
}

impl Cluster {
    fn new(count: u64, seed: u64) -> Self {
        let members = (1..=count).map(|id| (id, member(id, count, seed, false))).collect();
        Self { members, cut: vec![] }
    }

    /// Handles every output until nobody has one.
    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for member in self.members.values_mut() {
                messages.extend(member.work());
            }
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let cut = self.cut.contains(&message.to) || self.cut.contains(&message.from);
                if let Some(member) = self.members.get_mut(&message.to).filter(|_| !cut) {
                    // Of one that was removed: it changes nothing.
                    let _ = member.group.step(message);
                }
            }
        }
    }

    fn tick(&mut self) -> Vec<&'static str> {
        let failed = self.members.values_mut().flat_map(|member| member.group.tick()).collect();
        self.settle();
        failed
    }

    fn leader(&mut self) -> u64 {
        for _ in 0..1000 {
            self.tick();
            for (id, member) in &self.members {
                if member.group.status().role == Role::Leader && !self.cut.contains(id) {
                    return *id;
                }
            }
        }
        panic!("no leader within 1000 ticks");
    }

    fn group(&mut self, id: u64) -> &mut Group<&'static str> {
        &mut self.members.get_mut(&id).unwrap().group
    }
}

#[test]
fn the_only_voter_leads_at_once_and_serves_reads() {
    let mut cluster = Cluster::new(1, 1);
    // A read that comes before there is a leader is served as soon as there is one, without waiting for a tick.
    cluster.group(1).read("early", 10);
    cluster.settle();
    cluster.group(1).campaign();
    cluster.settle();
    assert_eq!(cluster.members[&1].served, [(1, "early")]);
    cluster.group(1).propose("x".into()).unwrap();
    cluster.settle();
    cluster.group(1).read("r", 10);
    cluster.settle();
    assert_eq!(cluster.members[&1].applied, ["x"]);
    assert_eq!(cluster.members[&1].served, [(1, "early"), (2, "r")]);
}

#[test]
fn the_same_seed_elects_the_same_leader() {
    for seed in 0..20 {
        let run = || {
            let mut cluster = Cluster::new(3, seed);
            (cluster.leader(), cluster.group(1).status())
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn followers_forward_and_read() {
    let mut cluster = Cluster::new(3, 5);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    cluster.group(follower).propose("x".into()).unwrap();
    cluster.settle();
    cluster.group(follower).read("r", 100);
    cluster.settle();
    assert_eq!(cluster.members[&follower].served, [(2, "r")]);
    for _ in 0..2 {
        cluster.tick();
    }
    assert!(cluster.members.values().all(|member| member.applied == ["x"]));
}

#[test]
fn a_member_that_lost_its_log_is_given_it_again() {
    let mut cluster = Cluster::new(3, 5);
    let leader = cluster.leader();
    for data in ["x", "y"] {
        cluster.group(leader).propose(data.into()).unwrap();
        cluster.settle();
    }
    for _ in 0..2 {
        cluster.tick();
    }
    let lost = leader % 3 + 1;
    for joining in [false, true] {
        assert_eq!(cluster.members[&lost].applied, ["x", "y"]);
        cluster.members.insert(lost, member(lost, 3, 5, joining));
        for _ in 0..20 {
            cluster.tick();
        }
    }
    assert_eq!(cluster.members[&lost].applied, ["x", "y"]);
}

/// With the leader gone, the two that are left may not have what the lost log held.
#[test]
fn a_member_that_lost_its_log_elects_nobody() {
    for (joining, elected) in [(false, true), (true, false)] {
        let mut cluster = Cluster::new(3, 5);
        let leader = cluster.leader();
        let (lost, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
        cluster.cut = vec![other];
        cluster.group(leader).propose("promised".into()).unwrap();
        cluster.settle();
        cluster.cut = vec![leader];
        cluster.members.insert(lost, member(lost, 3, 5, joining));
        let mut leaders = 0;
        for _ in 0..200 {
            cluster.tick();
            leaders += usize::from(cluster.group(other).status().role == Role::Leader);
        }
        assert_eq!(leaders > 0, elected, "joining: {joining}");
    }
}

#[test]
fn a_leader_that_is_cut_off_serves_no_read_and_its_proposal_is_replaced() {
    let mut cluster = Cluster::new(3, 9);
    let old = cluster.leader();
    cluster.cut = vec![old];
    cluster.group(old).propose("lost".into()).unwrap();
    cluster.group(old).read("stale", 200);
    let new = cluster.leader();
    assert_ne!(old, new);
    cluster.group(new).propose("kept".into()).unwrap();
    let mut failed = Vec::new();
    for _ in 0..250 {
        failed.extend(cluster.tick());
    }
    assert_eq!(failed, ["stale"], "the read fails at its deadline, unserved");
    assert!(cluster.members[&old].served.is_empty());
    cluster.cut.clear();
    for _ in 0..10 {
        cluster.tick();
    }
    assert!(cluster.members.values().all(|member| member.applied == ["kept"]));
}

/// raft-rs puts the entries that a follower asks for into an append without entries that waits for it already, though
/// that one stands behind them. The follower would acknowledge what it does not have.
#[test]
fn a_rejection_behind_a_commit_is_answered_at_its_place() {
    let mut cluster = Cluster::new(3, 5);
    let leader = cluster.leader();
    let (behind, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.cut = vec![behind];
    cluster.group(leader).propose("x".into()).unwrap();
    cluster.settle();
    cluster.cut.clear();
    cluster.group(leader).propose("y".into()).unwrap();
    let mut answers = Vec::new();
    let sent = cluster.members.get_mut(&leader).unwrap().work();
    for id in [other, behind] {
        for message in sent.iter().filter(|message| message.to == id) {
            cluster.group(id).step(message.clone()).unwrap();
        }
        answers.extend(cluster.members.get_mut(&id).unwrap().work());
    }
    assert!(answers.last().is_some_and(|answer| answer.reject), "{answers:?}");
    for answer in answers {
        cluster.group(leader).step(answer).unwrap();
    }
    let sent = cluster.members.get_mut(&leader).unwrap().work();
    let mut appended = 0;
    for message in sent {
        if message.get_msg_type() == MessageType::MsgAppend
            && let Some(first) = message.entries.first()
        {
            assert_eq!(message.index + 1, first.index, "{message:?}");
            appended += 1;
        }
        cluster.group(message.to).step(message).unwrap();
    }
    assert!(appended > 0);
    cluster.settle();
    for _ in 0..2 {
        cluster.tick();
    }
    assert!(cluster.members.values().all(|member| member.applied == ["x", "y"]));
}

/// A group whose log begins behind its first state, as the store's does: who joins gets a snapshot.
fn begun(count: u64, seed: u64) -> Cluster {
    let members = (1..=count).map(|id| {
        let mut initial = Initial {
            conf_state: ConfState { voters: (1..=count).collect(), ..ConfState::default() },
            before: (1, 1),
            applied: 1,
            ..Initial::default()
        };
        (initial.hard_state.term, initial.hard_state.commit) = (1, 1);
        (id, started(id, initial, seed, false))
    });
    Cluster { members: members.collect(), cut: vec![] }
}

impl Cluster {
    fn change(&mut self, changes: &[Change]) {
        let leader = self.leader();
        for _ in 0..100 {
            if self.group(leader).may_change_configuration() {
                self.group(leader).propose_configuration(changes, "context".into()).unwrap();
                return self.settle();
            }
            self.tick();
        }
        panic!("no change is possible");
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }

    /// A member with nothing.
    fn join(&mut self, id: u64) {
        self.members.insert(id, started(id, Initial::default(), 5, false));
    }

    fn voters(&self, of: u64) -> (Vec<u64>, Vec<u64>) {
        let conf_state = self.members[&of].group.conf_state();
        assert!(conf_state.voters_outgoing.is_empty());
        let (mut voters, mut learners) = (conf_state.voters.clone(), conf_state.learners.clone());
        voters.sort_unstable();
        learners.sort_unstable();
        (voters, learners)
    }
}

#[test]
fn a_learner_joins_with_nothing_and_becomes_a_voter() {
    let mut cluster = begun(1, 5);
    cluster.group(1).campaign();
    cluster.settle();
    cluster.change(&[Change::AddLearner(2)]);
    let progress = cluster.group(1).progress();
    assert!(progress.iter().any(|other| other.id == 2 && !other.voter && other.matched == 0), "{progress:?}");
    cluster.group(1).propose("without it".into()).unwrap();
    cluster.settle();
    assert_eq!(cluster.members[&1].applied, ["without it"]);
    cluster.join(2);
    cluster.ticks(30);
    let index = cluster.group(1).status().commit;
    assert_eq!(cluster.members[&2].index, index);
    assert_eq!(cluster.voters(2), (vec![1], vec![2]));
    // However long it hears nothing, it does not stand.
    let term = cluster.group(1).status().term;
    cluster.cut = vec![1];
    cluster.ticks(200);
    cluster.cut.clear();
    cluster.ticks(30);
    assert_eq!((cluster.leader(), cluster.group(1).status().term), (1, term));
    cluster.change(&[Change::AddVoter(2)]);
    cluster.ticks(30);
    assert_eq!(cluster.voters(2), (vec![1, 2], vec![]));
    cluster.group(1).transfer_leader(2);
    cluster.ticks(30);
    assert_eq!(cluster.leader(), 2);
}

#[test]
fn several_changes_go_through_a_joint_configuration_and_leave_it() {
    let mut cluster = begun(3, 5);
    cluster.leader();
    for id in [4, 5] {
        cluster.join(id);
    }
    cluster.change(&[Change::AddVoter(4), Change::AddVoter(5), Change::AddLearner(3), Change::Remove(2)]);
    cluster.ticks(60);
    let leader = cluster.leader();
    for id in [1, 4, 5] {
        assert_eq!(cluster.voters(id), (vec![1, 4, 5], vec![3]), "{id}");
    }
    cluster.group(leader).propose("x".into()).unwrap();
    cluster.settle();
    cluster.ticks(5);
    for id in [1, 3, 4, 5] {
        assert_eq!(cluster.members[&id].applied, ["x"], "{id}");
    }
}

#[test]
fn a_new_leader_leaves_the_joint_configuration_of_the_one_before() {
    let conf_state = ConfState {
        voters: vec![1, 2, 3],
        voters_outgoing: vec![1, 2],
        auto_leave: true,
        ..ConfState::default()
    };
    let members = (1..=3).map(|id| {
        let mut initial =
            Initial { conf_state: conf_state.clone(), before: (7, 2), applied: 7, ..Initial::default() };
        (initial.hard_state.term, initial.hard_state.commit) = (2, 7);
        (id, started(id, initial, 5, false))
    });
    let mut cluster = Cluster { members: members.collect(), cut: vec![] };
    cluster.leader();
    cluster.ticks(20);
    for id in 1..=3 {
        assert_eq!(cluster.voters(id), (vec![1, 2, 3], vec![]));
    }
}

#[test]
fn a_leader_that_removes_itself_steps_down_and_another_takes_over_at_once() {
    for count in 2..=5 {
        let mut cluster = begun(count, 5);
        let old = cluster.leader();
        cluster.change(&[Change::Remove(old)]);
        assert_ne!(cluster.group(old).status().role, Role::Leader);
        cluster.ticks(2);
        let new = cluster.leader();
        assert_ne!(old, new);
        cluster.group(new).propose("x".into()).unwrap();
        cluster.settle();
        assert!(!cluster.voters(new).0.contains(&old));
        // It disturbs nobody.
        let term = cluster.group(new).status().term;
        cluster.ticks(200);
        assert_eq!((cluster.leader(), cluster.group(new).status().term), (new, term), "{count}");
    }
}

#[test]
fn one_change_is_under_way_at_a_time_and_only_the_leader_proposes() {
    let mut cluster = begun(3, 5);
    let leader = cluster.leader();
    let follower = leader % 3 + 1;
    assert!(cluster.group(follower).propose_configuration(&[Change::Remove(1)], "".into()).is_err());
    cluster.cut = vec![follower, follower % 3 + 1];
    while !cluster.group(leader).may_change_configuration() {
        cluster.tick();
    }
    cluster.group(leader).propose_configuration(&[Change::AddVoter(4)], "".into()).unwrap();
    cluster.settle();
    assert!(cluster.group(leader).propose_configuration(&[Change::AddVoter(5)], "".into()).is_err());
    assert_eq!(cluster.voters(leader), (vec![1, 2, 3], vec![]), "it is not committed");
    // The others go on without it, and it takes theirs.
    cluster.cut = vec![leader];
    let new = cluster.leader();
    cluster.change(&[Change::AddLearner(6)]);
    cluster.cut.clear();
    cluster.ticks(60);
    for id in 1..=3 {
        assert_eq!(cluster.voters(id), (vec![1, 2, 3], vec![6]), "{id}, led by {new}");
    }
}

/// The configuration comes from the state at the applied index; what is behind it in the log is applied again.
#[test]
fn a_member_that_starts_again_applies_the_change_again() {
    let mut cluster = begun(3, 5);
    let leader = cluster.leader();
    cluster.change(&[Change::Remove(leader % 3 + 1)]);
    cluster.ticks(10);
    let entries = cluster.members[&leader].kept.clone();
    let last = entries.last().unwrap().clone();
    let mut initial = Initial {
        conf_state: ConfState { voters: vec![1, 2, 3], ..ConfState::default() },
        before: (1, 1),
        entries,
        applied: 1,
        ..Initial::default()
    };
    (initial.hard_state.term, initial.hard_state.commit) = (last.term, last.index);
    let mut again = Cluster { members: BTreeMap::new(), cut: vec![] };
    again.members.insert(leader, started(leader, initial, 5, false));
    again.settle();
    assert_eq!(again.voters(leader), cluster.voters(leader));
}

/// Until it is durable here that a change is committed, nobody learns that from this member, nor goes this member by it.
#[test]
fn a_change_takes_effect_and_is_told_once_its_commit_is_durable() {
    let mut cluster = begun(2, 5);
    let leader = cluster.leader();
    while !cluster.group(leader).may_change_configuration() {
        cluster.tick();
    }
    cluster.group(leader).propose_configuration(&[Change::Remove(3 - leader)], "".into()).unwrap();
    for id in [leader, 3 - leader] {
        for message in cluster.members.get_mut(&id).unwrap().work() {
            cluster.group(message.to).step(message).unwrap();
        }
    }
    let group = cluster.group(leader);
    let (mut told, mut last) = (0, 0);
    for _ in 0..4 {
        while let Some(output) = group.output() {
            let change = group.status().last_index;
            assert_eq!(group.status().commit, change);
            assert!(output.messages.iter().all(|message| message.commit < change), "{:?}", output.messages);
            assert!(output.committed.iter().all(|entry| entry.index < change));
            told += output.messages.len();
            if let Some(write) = output.write {
                assert_eq!(write.must_sync, write.hard_state.is_some_and(|state| state.commit == change));
                last = write.number;
            }
        }
        group.tick();
    }
    assert!(told > 1, "heartbeats go on");
    group.persisted(last);
    let output = group.output().unwrap();
    let change = group.status().last_index;
    assert_eq!(output.committed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [change]);
    assert!(output.messages.iter().any(|message| message.commit == change), "{:?}", output.messages);
}

/// One of two was removed, knows it, and has a longer log of a lower term: so it neither stands for election nor votes for
/// the other one, which does not know it and asks for its vote.
#[test]
fn who_remains_learns_of_a_removal_from_a_refused_vote() {
    let mut before = begun(2, 5);
    let leader = before.leader();
    let other = 3 - leader;
    before.change(&[Change::Remove(leader)]);
    let entries = before.members[&leader].kept.clone();
    let (last, removal) = (entries.last().unwrap().clone(), entries.len());
    assert_ne!(last.get_entry_type(), EntryType::EntryNormal);
    let initial = |voters: &[u64], entries: &[Entry], applied: u64, term: u64| {
        let mut initial = Initial {
            conf_state: ConfState { voters: voters.to_vec(), ..ConfState::default() },
            before: (1, 1),
            entries: entries.to_vec(),
            applied,
            ..Initial::default()
        };
        (initial.hard_state.term, initial.hard_state.commit) = (term, applied);
        initial
    };
    let mut longer = entries.clone();
    longer.push(Entry { index: last.index + 1, term: last.term, ..Entry::default() });
    let mut cluster = Cluster { members: BTreeMap::new(), cut: vec![] };
    let removed = initial(&[other], &longer, last.index, last.term);
    cluster.members.insert(leader, started(leader, removed, 5, false));
    let remaining = initial(&[1, 2], &entries[..removal], 1, last.term + 1);
    cluster.members.insert(other, started(other, remaining, 5, false));
    assert_eq!(cluster.leader(), other);
    assert_eq!(cluster.voters(other), (vec![other], vec![]));
}

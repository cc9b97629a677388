//! Groups of members on a network in memory: elections, replication, reads, and lost messages, all from a seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_raft::{ConfState, Config, Group, Initial, Message, MessageType, Role};

struct Member {
    group: Group<&'static str>,
    applied: Vec<Bytes>,
    index: u64,
    served: Vec<(u64, &'static str)>,
}

impl Member {
    /// Handles every output; gives what is to be sent.
    fn work(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(output) = self.group.output() {
            messages.extend(output.messages);
            for entry in output.committed {
                self.index = entry.index;
                if !entry.data.is_empty() {
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
    let config = Config {
        id,
        heartbeat_ticks: 2,
        election_ticks: 20,
        seed,
        max_message: 1 << 20,
        max_uncommitted: 1 << 20,
        joining,
    };
    let conf_state = ConfState { voters: (1..=count).collect(), ..ConfState::default() };
    let group = Group::new(&config, Initial { conf_state, ..Initial::default() }).unwrap();
    Member { group, applied: vec![], index: 0, served: vec![] }
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
                if !self.cut.contains(&message.to) && !self.cut.contains(&message.from) {
                    self.members.get_mut(&message.to).unwrap().group.step(message).unwrap();
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

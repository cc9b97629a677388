//! Whatever a peer's stream can hold: it is decoded or refused, and consensus takes it without a panic, in whatever state
//! it is.

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_raft::{
    ConfState, Config, Entry, EntryType, Group, HardState, Initial, Message, MessageType, SnapshotStatus,
};

use super::wire;
use crate::fuzz::{self, Random};

const KINDS: &[MessageType] = &[
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn ids(random: &mut Random) -> Vec<u64> {
    (0..random.below(4)).map(|_| random.below(6) as u64).collect()
}

fn arbitrary(random: &mut Random) -> Message {
    let mut message = Message {
        from: random.below(5) as u64,
        to: 1,
        term: random.number(),
        index: random.number(),
        log_term: random.number(),
        commit: random.number(),
        commit_term: random.number(),
        reject: random.percent(30),
        reject_hint: random.number(),
        request_snapshot: if random.percent(5) { random.number() } else { 0 },
        priority: random.below(3) as i64,
        context: random.bytes(9).into(),
        ..Message::default()
    };
    message.set_msg_type(*random.choose(KINDS));
    let first = if random.percent(80) { message.index.wrapping_add(1) } else { random.number() };
    for at in 0..random.below(4) {
        let mut entry =
            Entry { index: first.wrapping_add(at as u64), term: random.number(), ..Entry::default() };
        entry.data = random.bytes(20).into();
        if random.percent(20) {
            entry.set_entry_type(*random.choose(&[EntryType::EntryConfChange, EntryType::EntryConfChangeV2]));
            if random.percent(50) {
                entry.data = Bytes::new();
            }
        }
        message.mut_entries().push(entry);
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (random.number(), random.number());
        let mut voters = ids(random);
        if random.percent(70) {
            voters.push(1);
        }
        let (learners, voters_outgoing, learners_next) = match random.percent(30) {
            true => (ids(random), ids(random), ids(random)),
            false => Default::default(),
        };
        let auto_leave = random.percent(10);
        metadata.set_conf_state(ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
            ..ConfState::default()
        });
    }
    message
}

/// Three members that talk to each other, and one that writes whatever it likes to the first.
struct World {
    groups: BTreeMap<u64, Group<u64>>,
    on_the_way: Vec<Message>,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let voters = vec![1, 2, 3];
        let group = |id: u64| {
            let config = Config {
                id,
                heartbeat_ticks: 1,
                election_ticks: 5,
                seed: random.next(),
                max_message: 1 << 20,
                max_uncommitted: 1 << 20,
                joining: false,
            };
            let before = (1, 1);
            let hard_state = HardState { term: 1, commit: 1, ..HardState::default() };
            let conf_state = ConfState { voters: voters.clone(), ..ConfState::default() };
            let initial = Initial { hard_state, conf_state, before, entries: Vec::new(), applied: 1 };
            (id, Group::new(&config, initial).unwrap())
        };
        Self { groups: (1..=3).map(group).collect(), on_the_way: Vec::new() }
    }

    /// Everything that a member has to do, as the node does it.
    fn work(&mut self, id: u64) {
        let group = self.groups.get_mut(&id).unwrap();
        while let Some(output) = group.output() {
            self.on_the_way.extend(output.messages);
            if let Some(write) = output.write {
                if let Some(snapshot) = &write.snapshot {
                    let index = snapshot.get_metadata().index;
                    group.persisted(write.number);
                    group.applied(index);
                } else {
                    group.persisted(write.number);
                }
            }
            for entry in &output.committed {
                if let Some(change) = keelson_raft::configuration_change(entry) {
                    // The state machine refuses what is no member's; here whatever consensus allows.
                    let _ = group.apply_configuration(&change);
                }
            }
            if let Some(last) = output.committed.last() {
                group.applied(last.index);
                group.shrink_log(200, 400);
            }
        }
    }

    fn step(&mut self, random: &mut Random) {
        let id = random.below(3) as u64 + 1;
        let group = self.groups.get_mut(&id).unwrap();
        match random.below(10) {
            0..3 => drop(group.tick()),
            3 => drop(group.propose(random.bytes(30).into())),
            4 => group.read(random.next(), 10),
            5 => {
                let to = random.below(4) as u64;
                match random.below(3) {
                    0 => group.unreachable(to),
                    1 => group.snapshot_sent(to, SnapshotStatus::Finish),
                    _ => group.transfer_leader(to),
                }
            }
            _ => {
                for message in std::mem::take(&mut self.on_the_way) {
                    if random.percent(10) {
                        continue;
                    }
                    let message = wire::decode(&wire::encode(&message).unwrap()).unwrap();
                    if let Some(group) = self.groups.get_mut(&message.to) {
                        // As from a peer: an error is ignored.
                        let _ = group.step(message);
                    }
                }
                for id in 1..=3 {
                    self.work(id);
                }
            }
        }
        self.work(id);
    }

    /// Something that a member said, with some of it changed, or anything at all; as bytes, like everything on a stream.
    fn lie(&mut self, random: &mut Random) {
        let mut bytes = match (random.percent(50), self.on_the_way.is_empty()) {
            (true, false) => {
                let mut message = random.choose(&self.on_the_way).clone();
                message.to = 1;
                let one = random.number();
                match random.below(7) {
                    0 => message.term = one,
                    1 => message.index = one,
                    2 => message.commit = one,
                    3 => message.log_term = one,
                    4 => message.reject = !message.reject,
                    5 => message.reject_hint = one,
                    _ => message.from = random.below(5) as u64,
                }
                wire::encode(&message).unwrap()
            }
            _ => wire::encode(&arbitrary(random)).unwrap(),
        };
        if random.percent(20) {
            random.mutate(&mut bytes);
        }
        if let Ok(message) = wire::decode(&bytes) {
            let _ = self.groups.get_mut(&1).unwrap().step(message);
        }
        self.work(1);
    }
}

#[test]
fn consensus_survives_whatever_a_peer_says() {
    fuzz::run("peer messages", 600, |random| {
        let mut world = World::new(random);
        for _ in 0..random.below(200) {
            world.step(random);
        }
        for _ in 0..60 {
            world.lie(random);
            if random.percent(50) {
                world.step(random);
            }
        }
    });
}

#[test]
fn arbitrary_bytes_are_no_message() {
    fuzz::run("peer bytes", 20_000, |random| {
        let mut bytes = match random.percent(50) {
            true => wire::encode(&arbitrary(random)).unwrap(),
            false => random.bytes(200),
        };
        random.mutate(&mut bytes);
        if let Ok(message) = wire::decode(&bytes) {
            // Not the same to the bit: fields that nobody knows come in any order.
            let again = wire::decode(&wire::encode(&message).unwrap()).unwrap();
            assert_eq!((again.term, again.entries.len()), (message.term, message.entries.len()));
        }
    });
}

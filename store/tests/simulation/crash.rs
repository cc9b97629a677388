//! Single crashes, step by step: what a process finds written but not synced after it was killed counts from then on, and
//! what it knows to be committed it knows again, if it has anything that came after, or if it is a change of the
//! membership of which anybody was told.

use std::path::Path;
use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb::{Member as Named, PutRequest};
use keelson_proto::etcd::storepb::command::Operation;
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_proto::etcd::storepb::{Configuration, MembershipChange, Metadata};
use keelson_raft::Entry;
use kube_store::lease::Leases;
use kube_store::mvcc::{Index, MemoryBackend, Store, Values};
use kube_store::node::{Answer, Event, Stopped};
use kube_store::snapshot::{Outgoing, Receiver, SnapshotError, Snapshots};
use kube_store::wal::{Identity, Known, Recovered, Wal};

use tokio::sync::oneshot;

use crate::disk::{Faults, Loss, SimulatedDisk};
use crate::member::{Booted, Member, Process, Sent, boot, founders, url};
use crate::random::Random;

fn open(disk: &SimulatedDisk) -> (Wal, Recovered) {
    let identity = Identity { cluster: 1, member: 1 };
    Wal::open(Arc::new(disk.clone()), Path::new("/data/wal"), identity, Known::default(), 7).unwrap()
}

#[test]
fn what_was_read_from_the_log_is_durable() {
    crate::thresholds();
    for seed in 0..50 {
        let (disk, mut random) = (SimulatedDisk::default(), Random::new(seed));
        let (mut wal, _) = open(&disk);
        wal.append(
            None,
            None,
            &[Entry { term: 1, index: 1, data: vec![7; 2000].into(), ..Entry::default() }],
        );
        // The write is done, its fsync is not.
        disk.set_faults(Faults { fuse: Some(1), ..Faults::default() });
        wal.commit().unwrap_err();
        disk.end(Loss::Process, &mut random);
        let (_, found) = open(&disk);
        assert_eq!(found.entries.len(), 1, "the system had it");
        disk.end(Loss::Power, &mut random);
        assert_eq!(open(&disk).1.entries, found.entries, "seed {seed}");
    }
}

fn start(member: &Member, all: &[Member]) -> Process {
    match boot(member, &founders(all), None, 7).unwrap() {
        Booted::Process(process) => *process,
        Booted::Unknown => panic!("it begins the cluster"),
    }
}

/// Lets a process do what there is to do, but for its tree.
fn go_on(process: &mut Process) {
    for _ in 0..20 {
        while let Ok(event) = process.inbox.try_recv() {
            process.node.handle(event).unwrap();
        }
        process.node.turn().unwrap();
        if process.wal.gather() {
            let events = process.events.clone();
            process.wal.write(&|report| drop(events.send(Event::Wal(report)))).unwrap();
        }
    }
}

#[test]
fn a_change_of_the_membership_before_the_end_of_the_log_stays_committed() {
    crate::thresholds();
    let member = Member::new(1, true, 1, Arc::default(), 100);
    let mut process = start(&member, std::slice::from_ref(&member));
    go_on(&mut process);
    assert!(process.shared.is_leader());
    let second = Named { id: 2, peer_urls: vec![url(2)], ..Named::default() };
    let change = MembershipChange { change: Some(Change::Add(second)), ..MembershipChange::default() };
    let (reply, answer) = oneshot::channel();
    process.events.send(Event::Membership { change, reply }).unwrap();
    go_on(&mut process);
    answer.blocking_recv().unwrap().unwrap().1.unwrap();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    let (reply, mut answer) = oneshot::channel();
    process.events.send(Event::Propose { operation: Operation::Put(put), reply }).unwrap();
    go_on(&mut process);
    answer.try_recv().unwrap_err();
    drop(process);
    member.disk.end(Loss::Power, &mut Random::new(1));
    let mut process = start(&member, std::slice::from_ref(&member));
    go_on(&mut process);
    assert!(process.state.members.read().contains_key(&2));
    assert!(!process.shared.is_leader(), "it leads without the other one's vote");
}

/// Two members on a network that loses nothing.
struct Pair {
    members: [Member; 2],
    /// None: it has ended.
    processes: [Option<Process>; 2],
    /// How often each may still write its log.
    writes: [usize; 2],
}

impl Pair {
    fn new() -> Self {
        let members = [1, 2].map(|id| Member::new(id, true, id, Arc::default(), 100));
        let processes = [0, 1].map(|place| Some(start(&members[place], &members)));
        Self { members, processes, writes: [usize::MAX; 2] }
    }

    /// Both do what there is to do, so many ticks long. What a turn sends arrives before its log is written.
    fn run(&mut self, ticks: usize) {
        for round in 0..ticks * 4 {
            for place in 0..2 {
                self.go_on(place, round % 4 == 0);
            }
            for (process, writes) in self.processes.iter_mut().zip(&mut self.writes) {
                if let Some(process) = process.as_mut().filter(|_| *writes > 0)
                    && process.wal.gather()
                {
                    *writes -= 1;
                    let events = process.events.clone();
                    process.wal.write(&|report| drop(events.send(Event::Wal(report)))).unwrap();
                }
            }
        }
    }

    fn go_on(&mut self, place: usize, ticks: bool) {
        let Some(process) = &mut self.processes[place] else { return };
        if ticks {
            match process.node.tick() {
                Err(Stopped::Removed) => return self.processes[place] = None,
                other => other.unwrap(),
            }
        }
        while let Ok(event) = process.inbox.try_recv() {
            process.node.handle(event).unwrap();
        }
        process.node.turn().unwrap();
        let (events, sent) = (process.events.clone(), process.outbox.take().0);
        let Some(other) = &self.processes[1 - place] else { return };
        for sent in sent {
            let Sent::Messages { messages, .. } = sent else { panic!("nobody needs a snapshot") };
            let from = self.members[place].id;
            // As the peers' service does it.
            match other.state.members.read().is_removed(from) {
                true => events.send(Event::Removed).unwrap(),
                false => other.events.send(Event::Messages { from, messages }).unwrap(),
            }
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads =
            |process: &Option<Process>| process.as_ref().is_some_and(|process| process.shared.is_leader());
        self.processes.iter().position(leads)
    }

    fn lose_power(&mut self, place: usize, seed: u64) {
        self.processes[place] = None;
        self.members[place].disk.end(Loss::Power, &mut Random::new(seed));
        self.processes[place] = Some(start(&self.members[place], &self.members));
        self.writes[place] = usize::MAX;
    }
}

/// However little of it was durable when its power was lost: whoever remains of two goes on, if need be alone.
#[test]
fn who_remains_of_two_does_not_wait_for_the_one_that_was_removed() {
    crate::thresholds();
    let mut seen = std::collections::BTreeSet::new();
    for writes in 0..8 {
        let mut pair = Pair::new();
        pair.run(100);
        let stays = pair.leader().unwrap();
        let (change, goes) = (Some(Change::Remove(pair.members[1 - stays].id)), 1 - stays);
        let change = MembershipChange { change, ..MembershipChange::default() };
        let (reply, mut answer) = oneshot::channel();
        let event = Event::Membership { change, reply };
        pair.processes[stays].as_ref().unwrap().events.send(event).unwrap();
        pair.writes[stays] = writes;
        pair.run(100);
        let is_done = |answer: &Answer| matches!(answer, Ok((_, Ok(_))));
        let (acknowledged, gone) =
            (answer.try_recv().as_ref().is_ok_and(is_done), pair.processes[goes].is_none());
        pair.lose_power(stays, writes as u64);
        pair.run(200);
        let circumstances =
            format!("{writes} writes, acknowledged: {acknowledged}, the other one gone: {gone}");
        assert!(pair.leader().is_some(), "nobody leads: {circumstances}");
        if acknowledged {
            let process = pair.processes[stays].as_ref().unwrap();
            assert!(process.state.members.read().is_removed(pair.members[goes].id), "{circumstances}");
        }
        seen.insert((acknowledged, gone));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(false, false), (true, true)]);
}

/// Wherever its power is lost while a member receives a snapshot: it has that one as a whole, or the one before it.
#[test]
fn a_snapshot_that_is_received_has_all_of_its_files() {
    let open =
        |disk: &SimulatedDisk| Snapshots::open(Arc::new(disk.clone()), Path::new("/data/snap"), 9).unwrap();
    let metadata = |index, revision| Metadata {
        applied_index: index,
        applied_term: 1,
        revision,
        configuration: Some(Configuration { voters: vec![1], ..Configuration::default() }),
        ..Metadata::default()
    };
    let (source, store) = (SimulatedDisk::default(), empty_store());
    let mut snapshots = open(&source);
    for index in 1..=3 {
        let mut txn = store.write();
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        txn.put(&put, &mut Leases::default()).unwrap();
        txn.commit();
        snapshots.take(&store, metadata(index, store.revision()), vec![1], 9).unwrap();
    }
    let mut pieces = Vec::new();
    let mut outgoing = Outgoing::open(&snapshots).unwrap();
    while let Some(piece) = outgoing.piece().unwrap() {
        pieces.push(piece);
    }
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..2000 {
        let (disk, mut random) = (SimulatedDisk::default(), Random::new(seed));
        let mut target = open(&disk);
        target.begin(metadata(1, 1), 9).unwrap();
        disk.set_faults(Faults { fuse: Some(random.below(40)), ..Faults::default() });
        let receive = |target: &mut Snapshots| -> Result<(), SnapshotError> {
            let mut receiver = Receiver::new(target, 5);
            pieces.iter().try_for_each(|piece| receiver.push(piece.clone()))?;
            receiver.finish(target, 9, 1).map(|_| ())
        };
        let received = receive(&mut target).is_ok();
        drop(target);
        disk.end(Loss::Power, &mut random);
        let found = open(&disk);
        let mut records = 0;
        let read = found.visit(&mut |_, _| {
            records += 1;
            Ok(())
        });
        read.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        assert!(!received || records == 3, "seed {seed}");
        assert!([0, 3].contains(&records), "seed {seed}");
        seen.insert((received, records));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(false, 0), (false, 3), (true, 3)]);
}

fn empty_store() -> Store {
    Store::new(Index::new(), Values::new(Arc::new(MemoryBackend::default()), 0), 0)
}

//! Single crashes, step by step: what a process finds written but not synced after it was killed counts from then on, and
//! what it knows to be committed it knows again, if it has anything that came after.

use std::path::Path;
use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb::{Member as Named, PutRequest};
use keelson_proto::etcd::storepb::MembershipChange;
use keelson_proto::etcd::storepb::command::Operation;
use keelson_proto::etcd::storepb::membership_change::Change;
use keelson_raft::Entry;
use kube_store::node::Event;
use kube_store::wal::{Identity, Recovered, Wal};

use tokio::sync::oneshot;

use crate::disk::{Faults, Loss, SimulatedDisk};
use crate::member::{Booted, Member, Process, boot, founders, url};
use crate::random::Random;

fn open(disk: &SimulatedDisk) -> (Wal, Recovered) {
    let identity = Identity { cluster: 1, member: 1 };
    Wal::open(Arc::new(disk.clone()), Path::new("/data/wal"), identity, 0, 7).unwrap()
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

fn start(member: &Member) -> Process {
    match boot(member, &founders(std::slice::from_ref(member)), None, 7).unwrap() {
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
    let mut process = start(&member);
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
    let mut process = start(&member);
    go_on(&mut process);
    assert!(process.state.members.read().contains_key(&2));
    assert!(!process.shared.is_leader(), "it leads without the other one's vote");
}

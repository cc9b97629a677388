//! What a member does, step by step, where a process has threads; and what comes of each step.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::storepb::command::Operation;
use kube_store::env::Disk;
use kube_store::node::{Event, Stopped};
use kube_store::wal::Report;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::disk::Loss;
use crate::member::{DIRECTORY, Member, Sent, TICK};
use crate::totals::Fault;
use crate::world::{Action, MICROSECOND, MILLISECOND, World};

/// As a process does it: less room than that is none for the tree.
const TREE_SPACE: u64 = 16 << 20;

impl World {
    /// Sends an event to a member that runs; false: it does not.
    pub fn send(&mut self, member: usize, event: Event) -> bool {
        let Some(process) = &self.members[member].process else { return false };
        process.events.send(event).expect("the process has the receiver");
        self.wake(member);
        true
    }

    fn wake(&mut self, member: usize) {
        let delay = self.random.between(1, 200) * MICROSECOND;
        let Member { process, life, .. } = &mut self.members[member];
        if let Some(process) = process
            && !std::mem::replace(&mut process.turn_due, true)
        {
            let life = *life;
            self.at(delay, Action::Turn { member, life });
        }
    }

    pub fn tick(&mut self, member: usize) {
        let Member { process: Some(process), rate, life, .. } = &mut self.members[member] else { return };
        let result = process.node.tick();
        let delay = TICK.as_nanos() as u64 * 100 / *rate;
        let life = *life;
        self.at(delay, Action::Tick { member, life });
        match result {
            Ok(()) => self.turn(member),
            Err(stopped) => self.settle(member, Err(stopped)),
        }
    }

    pub fn turn(&mut self, member: usize) {
        let most = self.random.between(1, 64) as usize;
        let Member { process: Some(process), .. } = &mut self.members[member] else { return };
        process.turn_due = false;
        let mut taken = 0;
        let mut result = Ok(());
        while taken < most
            && let Ok(event) = process.inbox.try_recv()
        {
            taken += 1;
            if let Err(stopped) = process.node.handle(event) {
                result = Err(stopped);
                break;
            }
        }
        let result = result.and_then(|()| process.node.turn());
        self.settle(member, result);
        if taken == most {
            self.wake(member);
        }
    }

    pub fn write_log(&mut self, member: usize) {
        let Member { process: Some(process), .. } = &mut self.members[member] else { return };
        let events = process.events.clone();
        let report = |report: Report| drop(events.send(Event::Wal(report)));
        match process.wal.write(&report) {
            Ok(true) => process.wal_busy = false,
            Ok(false) => {
                let life = self.members[member].life;
                self.at(500 * MILLISECOND, Action::Wal { member, life });
            }
            Err(error) => report(Report::Failed(error)),
        }
        self.wake(member);
        self.settle(member, Ok(()));
    }

    pub fn keep(&mut self, member: usize) {
        let Member { process: Some(process), life, .. } = &mut self.members[member] else { return };
        let idle = !process.keeper.gather();
        let (life, needs) = (*life, process.keeper.needs());
        if needs.is_some_and(|index| process.state.store.values.drained() < index) {
            self.at(5 * MILLISECOND, Action::Keeper { member, life });
            return;
        }
        let events = process.events.clone();
        // Not always at once after a job, so that more happens while a tree is built beside.
        let shrinks = idle || self.random.percent(30);
        process.keeper.step(&|report| drop(events.send(Event::Keeper(report))));
        let backend = |process: &crate::member::Process| Arc::as_ptr(&process.state.store.values.backend());
        let before = backend(process);
        if shrinks {
            process.keeper.shrink();
        }
        let switched = !std::ptr::addr_eq(before, backend(process));
        process.keeper_busy = false;
        if switched {
            self.totals.event("trees shrunk", 1);
        }
        self.wake(member);
        self.settle(member, Ok(()));
    }

    pub fn drain(&mut self, member: usize) {
        let Member { process: Some(process), life, disk, .. } = &mut self.members[member] else { return };
        let life = *life;
        if disk.available(Path::new(DIRECTORY)).is_ok_and(|room| room < TREE_SPACE) {
            self.at(500 * MILLISECOND, Action::Drain { member, life });
            return;
        }
        process.drain_busy = false;
        let result = process.state.store.values.drain_step();
        self.settle(member, result.map(|_| ()).map_err(Stopped::Tree));
    }

    /// A process tells the others its name once it has a state, until they know it.
    pub fn publish(&mut self, member: usize) {
        let says = self.members[member].says();
        let Member { process: Some(process), life, .. } = &mut self.members[member] else { return };
        let known = process.state.members.read().get(&says.id).cloned();
        if known.is_some_and(|known| {
            (known.name, known.client_urls) == (says.name.clone(), says.client_urls.clone())
        }) {
            return;
        }
        let waits = process
            .publishing
            .as_mut()
            .is_some_and(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
        let (life, begun) = (*life, process.state.applied() > 0);
        if begun && !waits {
            let (reply, answer) = oneshot::channel();
            process.publishing = Some(answer);
            self.send(member, Event::Propose { operation: Operation::Publish(says), reply });
        }
        self.at(500 * MILLISECOND, Action::Publish { member, life });
    }

    /// After anything that a member did: what it asks of the rest of the world.
    pub fn settle(&mut self, member: usize, result: Result<(), Stopped>) {
        let Some(process) = &self.members[member].process else { return };
        let (sent, followed) = process.outbox.take();
        for members in &followed {
            self.follow(member, members);
        }
        self.answered(member);
        self.observe(member);
        self.disk_tells(member);
        let Member { process: Some(process), disk, provoked, flips, .. } = &mut self.members[member] else {
            return;
        };
        if disk.is_blown() {
            self.fault_happened(Fault::EndedInOperation, 1);
            let loss = if self.random.percent(50) { Loss::Power } else { Loss::Process };
            return self.end(member, loss);
        }
        match result {
            Ok(()) => {}
            Err(Stopped::Removed) => return self.end_removed(member),
            Err(stopped) => {
                assert!(*provoked || !flips.is_empty(), "member {member} ended by itself: {stopped:?}");
                // After a failed fsync the system may keep or drop what it had.
                self.note(|| format!("{stopped:?}"));
                let loss = if self.random.percent(50) { Loss::Power } else { Loss::Process };
                return self.end(member, loss);
            }
        }
        if process.shared.is_leader() {
            let term = process.shared.term();
            self.leads(member, term);
        }
        self.begin_work(member);
        for sent in sent {
            match sent {
                Sent::Messages { to, messages } => self.transmit(member, to, messages),
                Sent::Snapshot { message, outgoing } => self.transmit_snapshot(member, message, *outgoing),
            }
        }
    }

    /// A member follows a membership.
    fn follow(&mut self, member: usize, members: &kube_store::membership::Members) {
        if members.configuration().voters.is_empty() {
            // It only knows whom to ask.
            return;
        }
        let place = self.members[member].place;
        let (place, change) = self.lineage.follow(place, members);
        let Member { place: known, furthest, begun, .. } = &mut self.members[member];
        (*known, *furthest) = (Some(place), place.max(*furthest));
        if !std::mem::replace(begun, true) {
            self.totals.event("joined with nothing", 1);
        }
        if let Some(change) = change {
            self.membership_changed(&change, member);
        }
    }

    /// A member leads: the only one in its term, and by a membership of which every majority meets those of the newest.
    fn leads(&mut self, member: usize, term: u64) {
        let newest = self.leaders.last_key_value().map_or(0, |(newest, _)| *newest);
        let leader = *self.leaders.entry(term).or_insert(member);
        assert_eq!(leader, member, "two members lead in term {term}");
        if term > newest {
            let place = self.members[member].place;
            assert!(
                place.is_some_and(|place| self.lineage.changes_since(place) <= 1),
                "member {member} leads in term {term} by {:#?}, which is older than the one before the last change of {:#?}",
                place.map(|place| self.lineage.at(place)),
                self.lineage.newest()
            );
        }
    }

    /// What its threads would begin now.
    fn begin_work(&mut self, member: usize) {
        let Member { process: Some(process), life, slowness, .. } = &mut self.members[member] else { return };
        let (life, slowness) = (*life, *slowness);
        let wal = !process.wal_busy && process.wal.gather();
        process.wal_busy |= wal;
        let keeper = !process.keeper_busy
            && (process.keeper.gather() || process.keeper.pause(Duration::ZERO).is_some());
        process.keeper_busy |= keeper;
        let drain = !process.drain_busy && process.state.applied() > process.state.store.values.drained();
        process.drain_busy |= drain;
        let mut due = |begins: bool, (low, high): (u64, u64), action: Action| {
            if begins {
                let delay = self.random.between(low, high) * slowness * MICROSECOND;
                self.at(delay, action);
            }
        };
        due(wal, (100, 3000), Action::Wal { member, life });
        due(keeper, (500, 50_000), Action::Keeper { member, life });
        due(drain, (200, 80_000), Action::Drain { member, life });
    }

    /// What a disk did wrong since it was asked last.
    pub fn disk_tells(&mut self, member: usize) {
        let told = self.members[member].disk.told();
        for (fault, times) in [
            (Fault::WriteFailed, told.failed_writes),
            (Fault::SyncFailed, told.failed_syncs),
            (Fault::DiskFull, told.full),
            (Fault::TornWrite, told.torn),
            (Fault::LostWrite, told.lost),
        ] {
            if times > 0 {
                self.fault_happened(fault, times);
            }
        }
    }
}

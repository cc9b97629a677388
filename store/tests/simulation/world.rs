//! The calendar: whatever happens, happens at a moment of simulated time, in an order that the seed decides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use keelson_raft::{ConfState, Message, MessageType};
use kube_store::node::{Event, Stopped};
use kube_store::snapshot::{Outgoing, Receiver, SnapshotError};
use kube_store::start::StartError;
use kube_store::wal::{Report, WalError};
use protobuf::Message as _;

use crate::clients::Clients;
use crate::disk::{Loss, SimulatedDisk};
use crate::faults::{Network, Plan};
use crate::member::{CLUSTER, Process, Sent, SimulatedClock, TICK, boot};
use crate::random::Random;
use crate::watches::Watches;

pub const MICROSECOND: u64 = 1_000;
pub const MILLISECOND: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// What is to happen. Members are meant by their place; `life` tells apart their processes.
pub enum Action {
    Tick {
        member: usize,
        life: u64,
    },
    Turn {
        member: usize,
        life: u64,
    },
    Wal {
        member: usize,
        life: u64,
    },
    Keeper {
        member: usize,
        life: u64,
    },
    Drain {
        member: usize,
        life: u64,
    },
    Deliver {
        from: usize,
        to: usize,
        messages: Vec<Message>,
    },
    Snapshot {
        from: usize,
        to: usize,
        life: u64,
        message: Box<Message>,
        pieces: Vec<Bytes>,
        whole: bool,
    },
    Start {
        member: usize,
    },
    Fault,
    /// A client begins its next call, or goes on with it.
    Client(usize),
    /// A client gives up a call.
    Abandon {
        client: usize,
        call: usize,
    },
    Watch(usize),
}

pub struct Member {
    pub id: u64,
    pub disk: SimulatedDisk,
    pub clock: SimulatedClock,
    pub process: Option<Process>,
    pub life: u64,
    pub paused_until: u64,
    /// Something was done to it that it may end of.
    pub provoked: bool,
    pub flips: Vec<(PathBuf, usize)>,
    /// Its disk takes so much longer.
    pub slowness: u64,
    /// Its clock's rate against time, in percent.
    rate: u64,
}

pub struct World {
    pub now: u64,
    pub random: Random,
    calendar: BTreeMap<(u64, u64), Action>,
    serial: u64,
    pub members: Vec<Member>,
    pub network: Network,
    pub plan: Plan,
    pub clients: Clients,
    pub watches: Watches,
    /// A hash of everything that has happened.
    pub trace: u64,
    pub steps: u64,
    /// How often what happened, to show that it did.
    pub counts: BTreeMap<&'static str, u64>,
    /// Who led in each term.
    leaders: BTreeMap<u64, usize>,
    verbose: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let clock = SimulatedClock::default();
        let mut members = Vec::new();
        // Mostly three members; a single one has nobody to ask for what it lost.
        for id in 1..=[1, 3, 3, 3, 3, 3, 5][random.index(7)] {
            let clock = SimulatedClock { time: clock.time.clone(), ..SimulatedClock::default() };
            members.push(Member {
                id,
                disk: SimulatedDisk::default(),
                clock,
                process: None,
                life: 0,
                paused_until: 0,
                provoked: false,
                flips: Vec::new(),
                slowness: 1,
                rate: random.between(95, 105),
            });
        }
        let (plan, clients) = (Plan::new(&mut random), Clients::new(random.split()));
        let watches = Watches::new(random.split(), members.len());
        let mut world = Self {
            now: 0,
            random,
            calendar: BTreeMap::new(),
            serial: 0,
            members,
            network: Network::default(),
            plan,
            clients,
            watches,
            trace: seed,
            steps: 0,
            counts: BTreeMap::new(),
            leaders: BTreeMap::new(),
            verbose: std::env::var_os("SIM_TRACE").is_some(),
        };
        for member in 0..world.members.len() {
            world.at(0, Action::Start { member });
        }
        for client in 0..world.clients.count() {
            world.at(SECOND, Action::Client(client));
        }
        for watch in 0..world.watches.count() {
            world.at(SECOND, Action::Watch(watch));
        }
        world.at(2 * SECOND, Action::Fault);
        world
    }

    pub fn at(&mut self, delay: u64, action: Action) {
        self.serial += 1;
        self.calendar.insert((self.now + delay, self.serial), action);
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>12.6} {}", self.now as f64 / SECOND as f64, what());
        }
    }

    /// Goes on until `end`.
    pub fn run(&mut self, end: u64) {
        while let Some(entry) = self.calendar.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), action) = entry.remove_entry();
            self.now = at;
            for member in &self.members {
                member.clock.time.store(at, Ordering::Relaxed);
            }
            let (name, detail) = self.describe(&action);
            for word in [at, u64::from(crc32fast::hash(name.as_bytes())), detail] {
                self.trace = (self.trace ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            }
            self.steps += 1;
            self.note(|| format!("{name} {detail:x}"));
            self.act(action);
        }
        self.now = end;
    }

    fn describe(&self, action: &Action) -> (&'static str, u64) {
        let of = |member: &usize| {
            let member = &self.members[*member];
            member.id << 56 | member.disk.operations() & 0xffff_ffff
        };
        match action {
            Action::Tick { member, .. } => ("tick", of(member)),
            Action::Turn { member, .. } => ("turn", of(member)),
            Action::Wal { member, .. } => ("wal", of(member)),
            Action::Keeper { member, .. } => ("keeper", of(member)),
            Action::Drain { member, .. } => ("drain", of(member)),
            Action::Deliver { to, messages, .. } => {
                let mut hasher = crc32fast::Hasher::new();
                for message in messages {
                    hasher.update(&message.write_to_bytes().unwrap());
                }
                ("deliver", (*to as u64) << 56 | u64::from(hasher.finalize()))
            }
            Action::Snapshot { to, pieces, .. } => ("snapshot", (*to as u64) << 56 | pieces.len() as u64),
            Action::Start { member } => ("start", of(member)),
            Action::Fault => ("fault", 0),
            Action::Client(client) => ("client", *client as u64),
            Action::Abandon { client, .. } => ("abandon", *client as u64),
            Action::Watch(watch) => ("watch", *watch as u64),
        }
    }

    fn act(&mut self, action: Action) {
        let whose = match &action {
            Action::Tick { member, life }
            | Action::Turn { member, life }
            | Action::Wal { member, life }
            | Action::Keeper { member, life }
            | Action::Drain { member, life } => Some((*member, *life)),
            Action::Snapshot { to, .. } | Action::Deliver { to, .. } => Some((*to, self.members[*to].life)),
            _ => None,
        };
        if let Some((member, life)) = whose {
            let member = &self.members[member];
            if member.life != life || member.process.is_none() {
                if let Action::Snapshot { from, to, life, .. } = action {
                    self.snapshot_sent(from, to, life, false);
                }
                return;
            }
            if member.paused_until > self.now {
                let delay = member.paused_until - self.now;
                self.at(delay, action);
                return;
            }
        }
        match action {
            Action::Tick { member, .. } => self.tick(member),
            Action::Turn { member, .. } => self.turn(member),
            Action::Wal { member, .. } => self.write_log(member),
            Action::Keeper { member, .. } => self.keep(member),
            Action::Drain { member, .. } => self.drain(member),
            Action::Deliver { from, to, messages } => {
                for message in &messages {
                    self.note(|| format!("  {message:?}"));
                }
                let from = self.members[from].id;
                self.send(to, Event::Messages { from, messages });
            }
            Action::Snapshot { from, to, life, message, pieces, whole } => {
                let ok = self.receive(to, message, pieces, whole);
                self.snapshot_sent(from, to, life, ok);
            }
            Action::Start { member } => self.start(member),
            Action::Fault => self.fault(),
            Action::Client(client) => self.client(client),
            Action::Abandon { client, call } => {
                if self.clients.abandon(client, call) {
                    self.free(vec![client]);
                }
            }
            Action::Watch(watch) => self.attach(watch),
        }
    }

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

    fn tick(&mut self, member: usize) {
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

    fn turn(&mut self, member: usize) {
        let most = self.random.between(1, 64) as usize;
        let Member { process: Some(process), .. } = &mut self.members[member] else { return };
        process.turn_due = false;
        let mut taken = 0;
        let mut result = Ok(());
        for event in process.inbox.try_iter().take(most) {
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

    fn write_log(&mut self, member: usize) {
        let Member { process: Some(process), .. } = &mut self.members[member] else { return };
        let events = process.events.clone();
        let report = |report: Report| drop(events.send(Event::Wal(report)));
        match process.wal.write(&report) {
            Ok(true) => process.wal_busy = false,
            Ok(false) => {
                let life = self.members[member].life;
                self.count("log waits for space");
                self.at(500 * MILLISECOND, Action::Wal { member, life });
            }
            Err(error) => report(Report::Failed(error)),
        }
        self.wake(member);
        self.settle(member, Ok(()));
    }

    fn keep(&mut self, member: usize) {
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
        let backend = |process: &Process| Arc::as_ptr(&process.state.store.values.backend());
        let before = backend(process);
        if shrinks {
            process.keeper.shrink();
        }
        let switched = !std::ptr::addr_eq(before, backend(process));
        process.keeper_busy = false;
        if switched {
            self.count("tree shrunk");
        }
        self.wake(member);
        self.settle(member, Ok(()));
    }

    fn drain(&mut self, member: usize) {
        let Member { process: Some(process), life, disk, .. } = &mut self.members[member] else { return };
        let life = *life;
        if kube_store::env::Disk::available(disk, Path::new("/data")).is_ok_and(|room| room < 16 << 20) {
            self.at(500 * MILLISECOND, Action::Drain { member, life });
            return;
        }
        process.drain_busy = false;
        let result = process.state.store.values.drain_step();
        self.settle(member, result.map(|_| ()).map_err(Stopped::Tree));
    }

    /// After anything that a member did: what it asks of the rest of the world.
    fn settle(&mut self, member: usize, result: Result<(), Stopped>) {
        self.observe(member);
        let Member { process: Some(process), disk, provoked, flips, .. } = &mut self.members[member] else {
            return;
        };
        if disk.is_blown() {
            self.count("ended in the middle of an operation");
            let loss = if self.random.percent(50) { Loss::Power } else { Loss::Process };
            return self.end(member, loss);
        }
        if let Err(stopped) = result {
            assert!(*provoked || !flips.is_empty(), "member {member} ended by itself: {stopped:?}");
            // After a failed fsync the system may keep or drop what it had.
            self.count("ended by an error of its disk");
            self.note(|| format!("{stopped:?}"));
            let loss = if self.random.percent(50) { Loss::Power } else { Loss::Process };
            return self.end(member, loss);
        }
        if process.shared.is_leader() {
            let term = process.shared.term();
            let leader = *self.leaders.entry(term).or_insert(member);
            assert_eq!(leader, member, "two members lead in term {term}");
        }
        let sent = process.outbox.take();
        let mut due = Vec::new();
        if !process.wal_busy && process.wal.gather() {
            process.wal_busy = true;
            due.push(0);
        }
        if !process.keeper_busy && (process.keeper.gather() || process.keeper.pause(Duration::ZERO).is_some())
        {
            process.keeper_busy = true;
            due.push(1);
        }
        if !process.drain_busy && process.state.applied() > process.state.store.values.drained() {
            process.drain_busy = true;
            due.push(2);
        }
        let (life, slowness) = (self.members[member].life, self.members[member].slowness);
        for what in due {
            let random = &mut self.random;
            let (delay, action) = match what {
                0 => (random.between(100, 3000), Action::Wal { member, life }),
                1 => (random.between(500, 50_000), Action::Keeper { member, life }),
                _ => (random.between(200, 80_000), Action::Drain { member, life }),
            };
            self.at(delay * slowness * MICROSECOND, action);
        }
        for sent in sent {
            match sent {
                Sent::Messages { to, messages } => self.transmit(member, to as usize - 1, messages),
                Sent::Snapshot { message, outgoing } => self.transmit_snapshot(member, message, *outgoing),
            }
        }
    }

    fn transmit(&mut self, from: usize, to: usize, messages: Vec<Message>) {
        let random = &mut self.random;
        if self.network.loses(from, to, random) {
            if random.percent(10) {
                let to = self.members[to].id;
                self.send(from, Event::Unreachable(to));
            }
            return;
        }
        if self.network.doubles(random) {
            let mut twice = messages.clone();
            twice.retain(|message| message.get_msg_type() != MessageType::MsgPropose);
            let delay = self.network.delay(random);
            self.at(delay, Action::Deliver { from, to, messages: twice });
        }
        let delay = self.network.delay(&mut self.random);
        self.at(delay, Action::Deliver { from, to, messages });
    }

    fn transmit_snapshot(&mut self, from: usize, message: Box<Message>, mut outgoing: Outgoing) {
        let (to, life) = (message.to as usize - 1, self.members[from].life);
        let mut pieces = Vec::new();
        let mut whole = true;
        loop {
            match outgoing.piece() {
                Ok(Some(piece)) => pieces.push(piece),
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        let random = &mut self.random;
        if self.network.loses(from, to, random) || random.percent(5) {
            whole = false;
            pieces.truncate(random.index(pieces.len() + 1));
        }
        let delay = self.network.delay(random) + random.between(1, 300) * MILLISECOND;
        self.count("snapshot sent");
        self.at(delay, Action::Snapshot { from, to, life, message, pieces, whole });
    }

    /// As the peers' service does it.
    fn receive(&mut self, to: usize, mut message: Box<Message>, pieces: Vec<Bytes>, whole: bool) -> bool {
        let serial = self.random.next();
        let Member { process: Some(process), id: member, .. } = &mut self.members[to] else { return false };
        let member = *member;
        let (snapshots, shared) = (process.snapshots.clone(), process.shared.clone());
        let receive = || -> Result<(u64, u64, ConfState), SnapshotError> {
            let mut receiver = Receiver::new(&snapshots.lock(), serial);
            for piece in pieces {
                receiver.push(piece)?;
            }
            if !whole {
                return Err(SnapshotError::Malformed("the stream broke"));
            }
            let Some(gate) = shared.begin_install() else {
                return Err(SnapshotError::Malformed("another snapshot is being installed"));
            };
            let received = receiver.finish(&mut snapshots.lock(), CLUSTER, member)?;
            gate.hand_on();
            Ok(received)
        };
        let ok = match receive() {
            Ok((index, term, conf_state)) => {
                let metadata = message.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (index, term);
                metadata.set_conf_state(conf_state);
                self.send(to, Event::SnapshotReceived { message });
                self.count("snapshot received");
                true
            }
            Err(error) => {
                self.note(|| format!("a snapshot is refused: {error}"));
                false
            }
        };
        self.settle(to, Ok(()));
        ok
    }

    fn snapshot_sent(&mut self, from: usize, to: usize, life: u64, ok: bool) {
        if self.members[from].life == life {
            let to = self.members[to].id;
            self.send(from, Event::SnapshotSent { to, ok });
        }
    }

    /// Ends a member's process; it is started again after a while.
    pub fn end(&mut self, member: usize, loss: Loss) {
        let Member { process, disk, life, provoked, paused_until, .. } = &mut self.members[member];
        if process.is_none() {
            return;
        }
        // Files that are being received are removed by the process, which is gone: its disk does nothing more.
        disk.set_faults(crate::disk::Faults { fuse: Some(0), ..Default::default() });
        *process = None;
        *life += 1;
        (*provoked, *paused_until) = (false, 0);
        disk.end(loss, &mut self.random);
        let free = self.clients.lost(member);
        self.watches.lost(member);
        self.free(free);
        self.note(|| format!("member {member} ended, {loss:?}"));
        self.flip(member);
        let longest = if self.random.one_in(3) { 50 } else { 3000 };
        let delay = self.random.between(5, longest) * MILLISECOND;
        self.at(delay, Action::Start { member });
    }

    fn start(&mut self, member: usize) {
        if self.members[member].process.is_some() {
            return;
        }
        let ids: Vec<u64> = self.members.iter().map(|member| member.id).collect();
        let seed = self.random.next();
        if self.plan.crashes_at_start(&mut self.random) {
            let fuse = Some(self.random.below(40));
            self.members[member].disk.set_faults(crate::disk::Faults { fuse, ..Default::default() });
        }
        let Member { id, disk, clock, flips, .. } = &mut self.members[member];
        match boot(*id, &ids, disk, clock, seed) {
            Ok(process) if !disk.is_blown() => {
                disk.set_faults(crate::disk::Faults::default());
                self.count("started");
                let applied = process.state.applied();
                self.note(|| format!("member {member} starts at {applied}"));
                let life = self.members[member].life;
                self.members[member].process = Some(process);
                self.watches.began(member, &self.members);
                let delay = self.random.between(0, TICK.as_nanos() as u64);
                self.at(delay, Action::Tick { member, life });
                self.settle(member, Ok(()));
            }
            Ok(_) => self.start_failed(member),
            Err(_) if disk.is_blown() => self.start_failed(member),
            Err(
                StartError::Wal(WalError::Corrupt { .. }) | StartError::Snapshot(SnapshotError::Damaged(_)),
            ) if !flips.is_empty() => {
                // Found, as it has to be; the operator brings the file back.
                for (path, place) in flips.drain(..) {
                    disk.flip_at(&path, place);
                }
                self.count("damage found");
                self.start_failed(member);
            }
            Err(error) => panic!("member {member} cannot start: {error:?}"),
        }
    }

    fn start_failed(&mut self, member: usize) {
        self.members[member].disk.end(Loss::Power, &mut self.random);
        let delay = self.random.between(10, 500) * MILLISECOND;
        self.count("ended while starting");
        self.at(delay, Action::Start { member });
    }

    /// After something happened on a member: what its clients and watchers see.
    fn observe(&mut self, member: usize) {
        if self.members[member].process.is_none() {
            return;
        }
        self.watches.poll(member, &self.members, self.now);
        let mut free = self.clients.answered(member, self.now);
        free.extend(self.clients.read_what_may(member, &self.members, self.now));
        self.free(free);
    }

    fn free(&mut self, clients: Vec<usize>) {
        for client in clients {
            let delay = self.clients.think();
            self.at(delay, Action::Client(client));
        }
    }

    fn client(&mut self, client: usize) {
        match self.clients.next(client, &self.members, self.now) {
            Some((member, Some(event), call)) => {
                self.send(member, event);
                let delay = self.random.between(500, 8000) * MILLISECOND;
                self.at(delay, Action::Abandon { client, call });
            }
            _ => self.free(vec![client]),
        }
    }

    fn attach(&mut self, watch: usize) {
        self.watches.attach(watch, &self.members);
        let delay = self.random.between(100, 2000) * MILLISECOND;
        self.at(delay, Action::Watch(watch));
    }

    /// All faults are over: everyone is started, and hears everyone.
    pub fn heal(&mut self) {
        self.plan.over = true;
        self.network = Network::default();
        for member in 0..self.members.len() {
            let Member { disk, paused_until, slowness, flips, .. } = &mut self.members[member];
            disk.set_faults(crate::disk::Faults::default());
            (*paused_until, *slowness) = (0, 1);
            for (path, place) in flips.drain(..) {
                disk.flip_at(&path, place);
            }
        }
    }

    /// Whether all members run and have applied the same.
    pub fn is_level(&self) -> bool {
        let positions: Vec<Option<(u64, u64)>> = self
            .members
            .iter()
            .map(|member| {
                let process = member.process.as_ref()?;
                (process.shared.leader() != 0).then(|| (process.state.applied(), process.shared.commit()))
            })
            .collect();
        positions.iter().all(|position| {
            position.is_some_and(|(applied, commit)| applied == commit) && *position == positions[0]
        })
    }
}

/// What ends up at every client, so that the borrow checker need not see the rest of the world.
pub type Members = [Member];

pub fn state(members: &Members, member: usize) -> Option<&Arc<kube_store::apply::State>> {
    members[member].process.as_ref().map(|process| &process.state)
}

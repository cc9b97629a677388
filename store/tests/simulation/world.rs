//! The calendar: whatever happens, happens at a moment of simulated time, in an order that the seed decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_proto::etcd::etcdserverpb;
use keelson_raft::Message;
use kube_store::membership;

use crate::clients::Clients;
use crate::disk::{Faults, Loss};
use crate::faults::{Network, Plan};
use crate::lineage::Lineage;
use crate::member::{Fate, Member, founders};
use crate::operator::Operator;
use crate::random::Random;
use crate::totals::{Circumstances, Fault, Totals};
use crate::watches::Watches;
use crate::wire::{Batch, Transfer};

pub const MICROSECOND: u64 = 1_000;
pub const MILLISECOND: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// What is to happen. Members are meant by their place, which is their id less one; `life` tells apart their processes.
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
    /// A process tells its name to the others, if they do not know it.
    Publish {
        member: usize,
        life: u64,
    },
    Deliver(Batch),
    Snapshot(Transfer),
    /// Another member tells that this one was removed.
    Removed {
        member: usize,
        life: u64,
    },
    Start {
        member: usize,
    },
    /// A process ends, to be started again elsewhere.
    Move {
        member: usize,
        life: u64,
    },
    /// Something goes wrong, and again after a while.
    Fault,
    /// Something goes wrong, in the middle of something else.
    Strike,
    Operate,
    /// A change of the membership reaches the member that leads.
    Change {
        request: usize,
        entry: usize,
        leader: usize,
    },
    /// A client begins its next call, or goes on with it.
    Client(usize),
    /// A client gives up a call.
    Abandon {
        client: usize,
        call: usize,
    },
    Watch(usize),
}

pub struct World {
    pub now: u64,
    pub time: Arc<AtomicU64>,
    pub random: Random,
    calendar: BTreeMap<(u64, u64), Action>,
    serial: u64,
    pub members: Vec<Member>,
    /// The members that begin the cluster, as they are told.
    pub founders: Vec<etcdserverpb::Member>,
    pub lineage: Lineage,
    pub operator: Operator,
    pub network: Network,
    pub plan: Plan,
    pub clients: Clients,
    pub watches: Watches,
    /// Snapshots on their way.
    pub transfers: usize,
    /// A hash of everything that has happened.
    pub trace: u64,
    pub steps: u64,
    pub totals: Totals,
    /// Who led in each term.
    pub leaders: BTreeMap<u64, usize>,
    verbose: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let time = Arc::new(AtomicU64::new(0));
        // Mostly three members; a single one has nobody to ask for what it lost.
        let count = [1, 3, 3, 3, 3, 3, 5][random.index(7)];
        let members: Vec<Member> =
            (1..=count).map(|id| Member::new(id, true, id, time.clone(), random.between(95, 105))).collect();
        let founders = founders(&members);
        let (plan, clients) = (Plan::new(&mut random), Clients::new(random.split()));
        let watches = Watches::new(random.split(), members.len());
        let operator = Operator::new(random.split());
        let mut world = Self {
            now: 0,
            time,
            random,
            calendar: BTreeMap::new(),
            serial: 0,
            members,
            lineage: Lineage::new(&membership::Members::bootstrap(founders.clone())),
            founders,
            operator,
            network: Network::default(),
            plan,
            clients,
            watches,
            transfers: 0,
            trace: seed,
            steps: 0,
            totals: Totals::default(),
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
        world.at(2 * SECOND, Action::Operate);
        world
    }

    pub fn at(&mut self, delay: u64, action: Action) {
        self.serial += 1;
        self.calendar.insert((self.now + delay, self.serial), action);
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>12.6} {}", self.now as f64 / SECOND as f64, what());
        }
    }

    pub fn fault_happened(&mut self, fault: Fault, times: u64) {
        let circumstances =
            Circumstances { membership_change: self.is_changing(), snapshot: self.transfers > 0 };
        self.totals.fault(fault, times, circumstances);
    }

    /// Whether a change of the membership is asked for, or was made and not everyone who runs follows it.
    fn is_changing(&self) -> bool {
        let follows = |member: &Member| {
            member.process.is_none() || member.place.is_some_and(|place| place == self.lineage.end())
        };
        self.operator.is_waiting() || !self.members.iter().all(follows)
    }

    /// Goes on until `end`.
    pub fn run(&mut self, end: u64) {
        while let Some(entry) = self.calendar.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), action) = entry.remove_entry();
            self.now = at;
            self.time.store(at, Ordering::Relaxed);
            let (name, detail) = self.describe(&action);
            for word in [at, u64::from(name.as_bytes()[0]), name.len() as u64, detail] {
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
            Action::Publish { member, .. } => ("publish", of(member)),
            Action::Deliver(batch) => ("deliver", fingerprint(batch.to, &batch.messages)),
            Action::Snapshot(transfer) => {
                ("snapshot", (transfer.to as u64) << 56 | transfer.pieces.len() as u64)
            }
            Action::Removed { member, .. } => ("removed", of(member)),
            Action::Start { member } => ("start", of(member)),
            Action::Move { member, .. } => ("move", of(member)),
            Action::Fault => ("fault", 0),
            Action::Strike => ("strike", 0),
            Action::Operate => ("operate", 0),
            Action::Change { request, leader, .. } => ("change", (*leader as u64) << 56 | *request as u64),
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
            | Action::Drain { member, life }
            | Action::Publish { member, life }
            | Action::Removed { member, life }
            | Action::Move { member, life } => Some((*member, *life)),
            Action::Snapshot(Transfer { to, .. }) | Action::Deliver(Batch { to, .. }) => {
                Some((*to, self.members[*to].life))
            }
            _ => None,
        };
        if let Some((member, life)) = whose {
            let member = &self.members[member];
            if member.life != life || member.process.is_none() {
                if let Action::Snapshot(Transfer { from, life, message, .. }) = action {
                    self.transfers -= 1;
                    self.snapshot_sent(from, message.to, life, false);
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
            Action::Publish { member, .. } => self.publish(member),
            Action::Deliver(batch) => self.deliver(batch),
            Action::Snapshot(transfer) => {
                self.transfers -= 1;
                self.receive(transfer);
            }
            Action::Removed { member, .. } => {
                self.send(member, kube_store::node::Event::Removed);
            }
            Action::Start { member } => self.start(member),
            Action::Move { member, .. } => self.end(member, Loss::Process),
            Action::Fault => self.fault(),
            Action::Strike => self.strike(true),
            Action::Operate => self.operate(),
            Action::Change { request, entry, leader } => self.change(request, entry, leader),
            Action::Client(client) => self.client(client),
            Action::Abandon { client, call } => {
                if self.clients.abandon(client, call) {
                    self.free(vec![client]);
                }
            }
            Action::Watch(watch) => self.attach(watch),
        }
    }

    /// After something happened on a member: what its clients and watchers see.
    pub fn observe(&mut self, member: usize) {
        if self.members[member].process.is_none() {
            return;
        }
        self.watches.poll(member, &self.members, self.now);
        let mut free = self.clients.answered(member, self.now);
        free.extend(self.clients.read_what_may(member, &self.members, self.now));
        self.free(free);
    }

    pub fn free(&mut self, clients: Vec<usize>) {
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
        for member in &mut self.members {
            member.disk.set_faults(Faults::default());
            (member.paused_until, member.slowness) = (0, 1);
            member.flips.drain(..).for_each(|flip| member.disk.flip_back(&flip));
        }
    }

    /// Those that are members in the end, by place.
    pub fn current(&self) -> impl Iterator<Item = &Member> {
        self.lineage.newest().ids().map(|id| &self.members[id as usize - 1])
    }

    /// Whether a member finds nobody where it looks: all have moved since it was removed, so nobody can tell it.
    fn is_cut_off(&self, member: &Member) -> bool {
        let Some(process) = &member.process else { return false };
        let members = process.state.members.read();
        let mut others = members.keys().filter(|id| **id != member.id);
        others.all(|id| self.route(member.id as usize - 1, *id).is_none())
    }

    /// Whoever runs the cluster stops those that were removed and cannot learn it.
    pub fn stop_others(&mut self) {
        for member in 0..self.members.len() {
            if !self.lineage.newest().contains(self.members[member].id) {
                self.end(member, Loss::Process);
            }
        }
    }

    /// Whether all members run, know each other and have applied the same, and no others run.
    pub fn is_level(&self) -> bool {
        let position = |member: &Member| {
            let process = member.process.as_ref()?;
            let told = process.state.members.read().values().all(|member| !member.name.is_empty());
            let follows = member.place == Some(self.lineage.end());
            (process.shared.leader() != 0 && told && follows)
                .then(|| (process.state.applied(), process.shared.commit()))
        };
        let positions: Vec<_> = self.current().map(position).collect();
        let ended = |member: &Member| match member.process {
            Some(_) => self.is_cut_off(member),
            None => member.fate != Fate::Lives || !member.begun,
        };
        positions.iter().all(|position| {
            position.is_some_and(|(applied, commit)| applied == commit) && *position == positions[0]
        }) && self.members.iter().all(|member| self.lineage.newest().contains(member.id) || ended(member))
            && self.lost_member().is_none()
            && !self.operator.is_waiting()
    }
}

/// Tells apart messages whose content follows from what came before.
fn fingerprint(to: usize, messages: &[Message]) -> u64 {
    let mut hash = to as u64;
    for message in messages {
        let bytes: usize = message.entries.iter().map(|entry| entry.data.len()).sum();
        let counts = (message.entries.len() << 32 | bytes) as u64;
        let kind = message.get_msg_type() as u64;
        for word in
            [kind, message.from, message.term, message.log_term, message.index, message.commit, counts]
        {
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
    }
    hash
}

/// What ends up at every client, so that the borrow checker need not see the rest of the world.
pub type Members = [Member];

pub fn state(members: &Members, member: usize) -> Option<&Arc<kube_store::apply::State>> {
    members[member].process.as_ref().map(|process| &process.state)
}

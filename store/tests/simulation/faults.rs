//! What goes wrong, when, and how badly. (Disks that are lost for good are [`crate::operator`]'s matter, which has to see to
//! it that a quorum can come about.)

use std::collections::BTreeMap;

use kube_store::node::Event;

use crate::disk::{Faults, Loss};
use crate::member::{Fate, Member};
use crate::random::Random;
use crate::totals::Fault;
use crate::world::{Action, MICROSECOND, MILLISECOND, World};

/// The longest usual delay, in microseconds.
const USUAL: u64 = 1000;

/// The links between members, by place.
#[derive(Default)]
pub struct Network {
    blocked: Vec<(usize, usize)>,
    /// When what was sent over each link arrives at the latest, as far as that is to come.
    arrivals: BTreeMap<(usize, usize), u64>,
    /// In percent.
    loss: u64,
    double: u64,
    /// The longest delay, in microseconds, beyond what is usual.
    slow: u64,
}

impl Network {
    pub fn loses(&self, from: usize, to: usize, random: &mut Random) -> bool {
        self.blocked.contains(&(from, to)) || random.percent(self.loss)
    }

    pub fn doubles(&self, random: &mut Random) -> bool {
        random.percent(self.double)
    }

    pub fn delay(&self, random: &mut Random) -> u64 {
        // Seldom much longer, so that messages overtake each other.
        let more = if self.slow > 0 && random.one_in(4) { random.below(self.slow) } else { 0 };
        (random.between(50, USUAL) + more) * MICROSECOND
    }

    /// Whether a delay is longer than usual.
    pub fn is_late(&self, delay: u64) -> bool {
        delay > USUAL * MICROSECOND
    }

    /// Something arrives at `at`; whether it overtakes what was sent before it.
    pub fn overtakes(&mut self, from: usize, to: usize, at: u64) -> bool {
        let latest = self.arrivals.entry((from, to)).or_default();
        let overtakes = at < *latest;
        *latest = at.max(*latest);
        overtakes
    }
}

/// How rough a seed is.
pub struct Plan {
    pub over: bool,
    /// The usual time between two faults, in milliseconds.
    every: u64,
    start_crashes: u64,
}

impl Plan {
    pub fn new(random: &mut Random) -> Self {
        Self { over: false, every: random.between(150, 1500), start_crashes: random.below(30) }
    }

    pub fn crashes_at_start(&self, random: &mut Random) -> bool {
        !self.over && random.percent(self.start_crashes)
    }
}

impl World {
    /// Something goes wrong, and again after a while.
    pub fn fault(&mut self) {
        if self.plan.over {
            return;
        }
        self.strike(false);
        let every = self.plan.every;
        // Now and then in the middle of what the last one set off.
        let delay = match self.random.below(4) {
            0 => self.random.between(1, 100),
            _ => self.random.between(every / 4, every * 2),
        } * MILLISECOND;
        self.at(delay, Action::Fault);
    }

    /// Something may go wrong within a time.
    pub fn strike_within(&mut self, longest: u64) {
        if self.random.one_in(2) {
            let delay = self.random.below(longest);
            self.at(delay, Action::Strike);
        }
    }

    /// Something goes wrong; `soon`, so that it is likely to do so before what it comes in the middle of is over.
    pub fn strike(&mut self, soon: bool) {
        if self.plan.over {
            return;
        }
        let count = self.members.len();
        let takes_part = |member: &Member| {
            member.fate == Fate::Lives && (member.begun || self.lineage.newest().contains(member.id))
        };
        let living: Vec<usize> = (0..count).filter(|place| takes_part(&self.members[*place])).collect();
        let member = living[self.random.index(living.len())];
        let other = (member + self.random.index(count)) % count;
        let what = match soon && self.random.percent(60) {
            true => [1, 3, 3, 3, 5, 6, 7][self.random.index(7)],
            false => self.random.below(17),
        };
        let operations = if soon { 8 } else { 60 };
        match what {
            0 => {
                self.fault_happened(Fault::Killed, 1);
                self.end(member, Loss::Process);
            }
            1 => self.lose_power(member),
            2 => {
                self.totals.event("power lost everywhere", 1);
                self.fault_happened(Fault::PowerLost, count as u64);
                (0..count).for_each(|member| self.end(member, Loss::Power));
            }
            3 | 4 => self.disk_fault(member, |random| Faults {
                fuse: Some(random.below(operations)),
                ..Faults::default()
            }),
            5 => self.disk_fault(member, |_| Faults { fail_writes: true, ..Faults::default() }),
            6 => self.disk_fault(member, |_| Faults { fail_syncs: true, ..Faults::default() }),
            7 => self.disk_fault(member, |random| Faults {
                room: Some(random.below(32 << 10)),
                ..Faults::default()
            }),
            8 => {
                self.fault_happened(Fault::Paused, 1);
                let until = self.now + self.random.between(10, 5000) * MILLISECOND;
                self.members[member].paused_until = until;
            }
            9 => {
                self.fault_happened(Fault::ClockJumped, 1);
                let jump = self.random.between(1, 20_000) * MILLISECOND;
                self.members[member].clock.ahead.fetch_add(jump, std::sync::atomic::Ordering::Relaxed);
                self.clients.clock_jumped = true;
            }
            10 => {
                self.fault_happened(Fault::Isolated, 1);
                let others = (0..count).filter(|other| *other != member);
                self.network.blocked = others.flat_map(|other| [(member, other), (other, member)]).collect();
            }
            11 => {
                self.fault_happened(Fault::CutOneWay, 1);
                self.network.blocked = match self.random.below(3) {
                    0 => vec![(member, other)],
                    1 => (0..count).map(|other| (member, other)).collect(),
                    _ => (0..count).map(|other| (other, member)).collect(),
                };
            }
            12 => {
                self.totals.event("unreliable network", 1);
                let random = &mut self.random;
                (self.network.loss, self.network.double) = (random.below(40), random.below(30));
                self.network.slow = random.below(400_000);
            }
            13 => {
                self.fault_happened(Fault::SlowDisk, 1);
                self.members[member].slowness = [1, 10, 100][self.random.index(3)];
            }
            14 => {
                self.totals.event("snapshots asked for", 1);
                let send = Box::new(drop);
                self.send(member, Event::Snapshot { send });
            }
            15 => {
                self.fault_happened(Fault::LeaderMoved, 1);
                let to = self.members[other].id;
                self.send(member, Event::MoveLeader { to });
            }
            _ => {
                // Everything but what is on disks gets well again.
                self.network = Network::default();
                for member in &mut self.members {
                    member.slowness = 1;
                    member.disk.set_faults(Faults::default());
                }
            }
        }
        self.note(|| format!("fault {what} of {member}"));
    }

    pub fn lose_power(&mut self, member: usize) {
        if !self.plan.over {
            self.fault_happened(Fault::PowerLost, 1);
            self.end(member, Loss::Power);
        }
    }

    /// What its disk does wrong is counted when it does.
    fn disk_fault(&mut self, member: usize, draw: impl FnOnce(&mut Random) -> Faults) {
        let faults = draw(&mut self.random);
        let member = &mut self.members[member];
        if member.process.is_some() {
            member.provoked = true;
            member.disk.set_faults(faults);
        }
    }

    /// Now and then a bit of a file flips while its member is down: in what must be noticed.
    pub fn flip(&mut self, member: usize) {
        if self.plan.over || !self.random.one_in(6) {
            return;
        }
        let suffix = [".wal", ".revisions", ".manifest"][self.random.index(3)];
        let member = &mut self.members[member];
        if let Some(flip) = member.disk.flip(suffix, &mut self.random) {
            member.flips.push(flip);
            self.fault_happened(Fault::BitFlipped, 1);
        }
    }
}

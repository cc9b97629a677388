//! What goes wrong, when, and how badly.
//!
//! Changes of the membership are not among it yet: they would be a fault here and, since they have answers, a request in
//! [`crate::clients`].

use kube_store::node::Event;

use crate::disk::{Faults, Loss};
use crate::random::Random;
use crate::world::{Action, MICROSECOND, MILLISECOND, World};

/// The links between members, by place.
#[derive(Default)]
pub struct Network {
    blocked: Vec<(usize, usize)>,
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
        (random.between(50, 1000) + more) * MICROSECOND
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
    pub fn fault(&mut self) {
        if self.plan.over {
            return;
        }
        let count = self.members.len();
        let member = self.random.index(count);
        let other = (member + self.random.index(count)) % count;
        let what = self.random.below(17);
        match what {
            0 => {
                self.count("killed");
                self.end(member, Loss::Process);
            }
            1 => {
                self.count("power lost");
                self.end(member, Loss::Power);
            }
            2 => {
                self.count("power lost everywhere");
                (0..count).for_each(|member| self.end(member, Loss::Power));
            }
            3 | 4 => self.disk_fault(member, "fuse", |random| Faults {
                fuse: Some(random.below(60)),
                ..Faults::default()
            }),
            5 => {
                self.disk_fault(member, "writes fail", |_| Faults { fail_writes: true, ..Faults::default() })
            }
            6 => self.disk_fault(member, "fsyncs fail", |_| Faults { fail_syncs: true, ..Faults::default() }),
            7 => self.disk_fault(member, "disk full", |random| Faults {
                room: Some(random.below(32 << 10)),
                ..Faults::default()
            }),
            8 => {
                self.count("paused");
                let until = self.now + self.random.between(10, 5000) * MILLISECOND;
                self.members[member].paused_until = until;
            }
            9 => {
                self.count("clock jumped");
                let jump = self.random.between(1, 20_000) * MILLISECOND;
                self.members[member].clock.ahead.fetch_add(jump, std::sync::atomic::Ordering::Relaxed);
                self.clients.clock_jumped = true;
            }
            10 => {
                self.count("isolated");
                let others = (0..count).filter(|other| *other != member);
                self.network.blocked = others.flat_map(|other| [(member, other), (other, member)]).collect();
            }
            11 => {
                self.count("cut one way");
                self.network.blocked = match self.random.below(3) {
                    0 => vec![(member, other)],
                    1 => (0..count).map(|other| (member, other)).collect(),
                    _ => (0..count).map(|other| (other, member)).collect(),
                };
            }
            12 => {
                self.count("unreliable network");
                let random = &mut self.random;
                (self.network.loss, self.network.double) = (random.below(40), random.below(30));
                self.network.slow = random.below(400_000);
            }
            13 => {
                self.count("slow disk");
                self.members[member].slowness = [1, 10, 100][self.random.index(3)];
            }
            14 => {
                self.count("snapshot asked for");
                let send = Box::new(drop);
                self.send(member, Event::Snapshot { send });
            }
            15 => {
                self.count("leader moved");
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
        let every = self.plan.every;
        // Now and then in the middle of what the last one set off.
        let delay = match self.random.below(4) {
            0 => self.random.between(1, 100),
            _ => self.random.between(every / 4, every * 2),
        } * MILLISECOND;
        self.at(delay, Action::Fault);
    }

    fn disk_fault(&mut self, member: usize, name: &'static str, draw: impl FnOnce(&mut Random) -> Faults) {
        self.count(name);
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
            self.count("bit flipped");
        }
    }
}

//! How often what went wrong or happened, to show that it did; and for faults, in the middle of what.

use std::collections::BTreeMap;
use std::fmt;

macro_rules! faults {
    ($($fault:ident $name:literal,)*) => {
        /// All that can go wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Fault {
            $($fault,)*
        }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

faults! {
    Killed "killed",
    PowerLost "power lost",
    EndedInOperation "ended in the middle of an operation of the disk",
    EndedAtStart "ended while starting",
    Paused "paused",
    ClockJumped "clock jumped",
    MessagesLost "messages lost",
    MessagesDelayed "messages delayed",
    MessagesDoubled "messages doubled",
    MessagesOvertaken "messages overtaken",
    Isolated "isolated",
    CutOneWay "cut one way",
    SlowDisk "slow disk",
    WriteFailed "a write failed",
    SyncFailed "an fsync failed",
    TornWrite "a write was torn",
    LostWrite "a write without an fsync was lost",
    BitFlipped "a bit flipped",
    DiskFull "a write found the disk full",
    SnapshotTorn "a snapshot's transfer broke",
    LeaderMoved "leader moved",
    DiskLost "a disk was lost for good",
}

/// What a fault came in the middle of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances {
    pub membership_change: bool,
    pub snapshot: bool,
}

#[derive(Clone, Copy, Default)]
struct Count {
    all: u64,
    in_membership_change: u64,
    in_snapshot: u64,
}

#[derive(Clone)]
pub struct Totals {
    faults: [Count; NAMES.len()],
    events: BTreeMap<&'static str, u64>,
}

impl Default for Totals {
    fn default() -> Self {
        Self { faults: [Count::default(); NAMES.len()], events: BTreeMap::new() }
    }
}

/// Besides faults, what has to have happened.
const EVENTS: &[&str] = &[
    "snapshots sent",
    "snapshots received",
    "joined with nothing",
    "voters added",
    "learners added",
    "learners promoted",
    "members removed",
    "leaders removed",
    "members removed while down",
    "members removed from two",
    "members moved",
    "lost members replaced",
    "membership changes refused",
    "ended after their removal",
    "leases that ran out",
    "unknown writes that happened",
    "trees shrunk",
    "damage found",
];

impl Totals {
    pub fn fault(&mut self, fault: Fault, times: u64, circumstances: Circumstances) {
        let count = &mut self.faults[fault as usize];
        count.all += times;
        count.in_membership_change += if circumstances.membership_change { times } else { 0 };
        count.in_snapshot += if circumstances.snapshot { times } else { 0 };
    }

    pub fn event(&mut self, name: &'static str, times: u64) {
        *self.events.entry(name).or_default() += times;
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.faults.iter_mut().zip(&other.faults) {
            count.all += more.all;
            count.in_membership_change += more.in_membership_change;
            count.in_snapshot += more.in_snapshot;
        }
        for (name, times) in &other.events {
            self.event(name, *times);
        }
    }

    /// What never happened.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, count) in NAMES.iter().zip(&self.faults) {
            let places = [
                (count.all, ""),
                (count.in_membership_change, " in the middle of a membership change"),
                (count.in_snapshot, " in the middle of a snapshot"),
            ];
            missing.extend(
                places.iter().filter(|(times, _)| *times == 0).map(|(_, place)| format!("{name}{place}")),
            );
        }
        let events = EVENTS.iter().filter(|name| !self.events.contains_key(**name));
        missing.extend(events.map(|name| (*name).to_owned()));
        missing
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, times) in &self.events {
            writeln!(out, "{times:>12} {name}")?;
        }
        writeln!(out, "faults: all, in the middle of a membership change, in the middle of a snapshot")?;
        for (name, count) in NAMES.iter().zip(&self.faults) {
            let Count { all, in_membership_change, in_snapshot } = count;
            writeln!(out, "{all:>12} {in_membership_change:>12} {in_snapshot:>12} {name}")?;
        }
        Ok(())
    }
}

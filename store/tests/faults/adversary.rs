//! What is done to the members, drawn from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::{DefragmentRequest, MoveLeaderRequest, SnapshotRequest};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep_until, timeout};

use crate::change::{Change, Step};
use crate::member::Member;
use crate::network::{Links, Network};
use crate::random::Random;
use crate::shared::Shared;

/// Small, so that segments end, snapshots are made and sent, and the log is cut all the time.
const THRESHOLDS: &str = "wal_segment=return(131072);snapshot_at=return(400000);snapshot_every=return(200000);log_keep=return(65536);log_most=return(131072);shrink_slack=return(100000)";

/// Before and after every durable step, with how often it may be passed before the process ends there.
const STEPS: [(&str, u64); 17] = [
    ("wal_before_write", 200),
    ("wal_before_sync", 200),
    ("wal_after_sync", 200),
    ("wal_before_cut", 6),
    ("wal_before_rename", 8),
    ("apply_before", 400),
    ("apply_after", 400),
    ("tree_before_write", 40),
    ("tree_after_write", 40),
    ("compaction_before_write", 8),
    ("snapshot_before_file", 6),
    ("snapshot_before_rename", 6),
    ("snapshot_after_rename", 6),
    ("rebuild_before_write", 4),
    ("rebuild_before_switch", 2),
    ("membership_before", 1),
    ("membership_after", 1),
];

/// What a slow disk does.
const SLOW: [&str; 8] = [
    "wal_before_sync=sleep(20)",
    "wal_before_sync=10%sleep(500)",
    "wal_before_sync=1%sleep(3000)",
    "wal_after_sync=5%sleep(300)",
    "apply_before=1%sleep(50)",
    "tree_before_write=20%sleep(200)",
    "snapshot_before_file=sleep(1500)",
    "snapshot_before_rename=sleep(700)",
];

/// What is to happen to a member, or to the network, at a moment.
enum Due {
    Start(usize),
    Resume(usize),
    /// Many short pauses: so many more.
    Pulse(usize, u64),
    Network,
    Fault,
}

pub struct Adversary {
    pub shared: Arc<Shared>,
    pub members: Vec<Member>,
    pub network: Network,
    random: Random,
    calendar: BTreeMap<(Instant, u64), Due>,
    serial: u64,
    /// The usual time between two faults.
    every: u64,
    over: bool,
    change: Option<Change>,
}

impl Adversary {
    pub fn new(shared: Arc<Shared>, members: Vec<Member>, network: Network, random: Random) -> Self {
        Self {
            shared,
            members,
            network,
            random,
            calendar: BTreeMap::new(),
            serial: 0,
            every: 1000,
            over: true,
            change: None,
        }
    }

    fn at(&mut self, delay: u64, due: Due) {
        self.serial += 1;
        self.calendar.insert((Instant::now() + Duration::from_millis(delay), self.serial), due);
    }

    /// Starts all members as they begin.
    pub fn begin(&mut self) {
        for member in &mut self.members {
            member.start(&self.network, THRESHOLDS);
        }
    }

    /// Does its worst until `end`.
    pub async fn rage(&mut self, end: Instant) {
        self.over = false;
        self.every = [500, 1000, 2500][self.random.index(3)];
        self.at(500, Due::Fault);
        self.run(end).await;
    }

    async fn run(&mut self, end: Instant) {
        while Instant::now() < end {
            let next = self.calendar.keys().next().map_or(end, |(at, _)| *at);
            let look = Instant::now() + Duration::from_millis(20);
            sleep_until(next.min(look).min(end)).await;
            while let Some(entry) =
                self.calendar.first_entry().filter(|entry| entry.key().0 <= Instant::now())
            {
                let due = entry.remove();
                self.act(due);
            }
            self.look();
        }
    }

    /// Ends all faults, and keeps members running until `done`.
    pub async fn heal(&mut self, done: impl Future<Output = ()>) {
        self.over = true;
        self.calendar.clear();
        self.network.set(Links::default());
        println!("{:>9.3} all faults are over", self.shared.seconds());
        for place in 0..self.members.len() {
            self.members[place].resume();
            if self.may_run(place) {
                self.start(place);
            }
        }
        tokio::pin!(done);
        loop {
            tokio::select! {
                biased;
                () = &mut done, if self.change.is_none() => return,
                () = self.run(Instant::now() + Duration::from_millis(50)) => {}
            }
        }
    }

    /// Whether a member that does not run is to be started: not while it is none.
    fn may_run(&self, place: usize) -> bool {
        self.change.as_ref().is_none_or(|change| change.place != place || change.may_run())
    }

    /// Notices what ended by itself, and takes a change of the membership further.
    fn look(&mut self) {
        for place in 0..self.members.len() {
            let armed = self.members[place].armed;
            let Some(status) = self.members[place].ended() else { continue };
            let tail = self.members[place].last_words();
            let change = self.change.as_ref().filter(|change| change.place == place);
            let explained = change.and_then(|change| change.explains(&tail));
            if let Some(explained) = explained {
                self.shared.count_fault(explained);
                if change.is_some_and(Change::may_run) {
                    self.at(300, Due::Start(place));
                }
                continue;
            }
            match tail.iter().find_map(|line| line.split("failpoint ").nth(1)?.split(" panic").next()) {
                Some(point) if armed => self.shared.count_fault(&format!("ended at {point}")),
                _ => {
                    let tail: Vec<String> = tail.into_iter().rev().collect();
                    self.shared
                        .fail(format!("member {place} ended by itself, {status}:\n{}", tail.join("\n")));
                    return;
                }
            }
            if self.may_run(place) {
                let delay = if self.over { 0 } else { self.random.below(1500) };
                self.at(delay, Due::Start(place));
            }
        }
        let Some(change) = &mut self.change else { return };
        let place = change.place;
        match change.step(&mut self.members[place]) {
            None => {}
            Some(Step::Start) => self.start(place),
            Some(Step::Done(what)) => {
                self.change = None;
                self.shared.count_fault(what);
                self.start(place);
            }
        }
    }

    fn start(&mut self, place: usize) {
        if self.members[place].runs() {
            return;
        }
        let mut failpoints = THRESHOLDS.to_owned();
        let mut armed = false;
        if !self.over {
            let slow = SLOW[self.random.index(SLOW.len())];
            let (point, most) = STEPS[self.random.index(STEPS.len())];
            let passes = self.random.below(most);
            if self.random.percent(35) {
                failpoints += &format!(";{slow}");
                self.shared.count_fault("started with a slow disk");
            }
            if self.random.percent(50) && !failpoints.contains(point) {
                failpoints += &format!(";{point}={passes}*off->panic");
                armed = true;
            }
        }
        self.members[place].start(&self.network, &failpoints);
        self.members[place].armed = armed;
    }

    fn act(&mut self, due: Due) {
        match due {
            Due::Start(place) => {
                if self.may_run(place) {
                    self.start(place);
                }
            }
            Due::Resume(place) => self.members[place].resume(),
            Due::Pulse(place, left) => {
                if self.members[place].acts() {
                    self.members[place].pause();
                    let pause = self.random.between(10, 250);
                    self.at(pause, Due::Resume(place));
                    if left > 0 {
                        let next = pause + self.random.between(10, 200);
                        self.at(next, Due::Pulse(place, left - 1));
                    }
                }
            }
            Due::Network => self.network.set(Links::default()),
            Due::Fault => {
                self.fault();
                // Now and then in the middle of what the last one set off.
                let delay = match self.random.below(4) {
                    0 => self.random.between(1, 150),
                    _ => self.random.between(self.every / 4, self.every * 2),
                };
                self.at(delay, Due::Fault);
            }
        }
    }

    /// The place of the member that leads, as far as is known.
    fn leader(&self) -> Option<usize> {
        let counts = self.shared.counts.lock();
        let (_, leader) = counts.leaders.last_key_value()?;
        Some(*leader)
    }

    fn some_member(&mut self) -> usize {
        let any = self.random.index(self.members.len());
        match self.leader() {
            Some(leader) if self.random.percent(40) => leader,
            _ => any,
        }
    }

    fn kill(&mut self, place: usize) {
        if self.members[place].runs() {
            self.members[place].kill();
            let delay = if self.random.one_in(2) { 0 } else { self.random.below(2500) };
            self.at(delay, Due::Start(place));
        }
    }

    fn fault(&mut self) {
        let count = self.members.len();
        let place = self.some_member();
        let other = (place + 1 + self.random.index(count - 1)) % count;
        let others = (0..count).filter(|other| *other != place);
        match self.random.below(20) {
            0..=2 => {
                self.shared.count_fault("killed");
                self.kill(place);
            }
            3 => {
                self.shared.count_fault("all killed");
                (0..count).for_each(|place| self.kill(place));
            }
            4 => {
                self.shared.count_fault("asked to stop");
                self.members[place].resume();
                self.stop(place);
            }
            5 | 6 => {
                self.shared.count_fault("paused");
                self.members[place].pause();
                let pause = if self.random.one_in(2) {
                    self.random.between(50, 1500)
                } else {
                    self.random.between(1500, 7000)
                };
                self.at(pause, Due::Resume(place));
            }
            7 => {
                self.shared.count_fault("halting (short pauses)");
                let pulses = self.random.between(5, 40);
                self.at(0, Due::Pulse(place, pulses));
            }
            8 | 9 => {
                let cut = others.flat_map(|other| [(place, other), (other, place)]).collect();
                self.cut("isolated", cut);
            }
            10 => self.cut("cut between two", BTreeSet::from([(place, other), (other, place)])),
            11 => {
                let cut = match self.random.below(3) {
                    0 => BTreeSet::from([(place, other)]),
                    1 => others.map(|other| (place, other)).collect(),
                    _ => others.map(|other| (other, place)).collect(),
                };
                self.cut("cut one way", cut);
            }
            12 => {
                self.shared.count_fault("packets lost");
                let loss = self.random.between(1, 40);
                self.set_network(Links { loss, ..self.network.links().clone() });
            }
            13 => {
                self.shared.count_fault("delayed by narrow links");
                let mut narrow = Vec::new();
                for place in 0..count {
                    if place == other || self.random.one_in(3) {
                        let rate = [150, 400, 1000, 3000][self.random.index(4)];
                        narrow.push((place, rate, self.random.between(30, 900)));
                    }
                }
                self.set_network(Links { narrow, ..self.network.links().clone() });
            }
            14 => {
                self.shared.count_fault("leader moved");
                self.move_leader(other);
            }
            15 => {
                self.shared.count_fault("snapshot read");
                self.read_snapshot(place);
            }
            16 => {
                self.shared.count_fault("defragmented");
                let mut maintenance = self.shared.client(place).maintenance;
                let ask = async move { maintenance.defragment(DefragmentRequest {}).await };
                tokio::spawn(timeout(Duration::from_secs(5), ask));
            }
            17 | 18 => {
                if self.change.is_none() {
                    let as_learner = self.random.one_in(2);
                    self.change = Some(Change::new(self.shared.clone(), &self.members[place], as_learner));
                    self.shared.count_fault("removed and added anew");
                }
            }
            _ => {
                self.shared.count_fault("network healed");
                self.network.set(Links::default());
            }
        }
    }

    fn stop(&mut self, place: usize) {
        let member = &mut self.members[place];
        if !member.runs() {
            return;
        }
        let drains = member.drains();
        member.signal(Signal::SIGTERM);
        let (armed, begun) = (member.armed, std::time::Instant::now());
        // Whatever else is going on waits: it is short.
        loop {
            if let Some(status) = member.ended() {
                let early = !drains && status.signal() == Some(Signal::SIGTERM as i32);
                if !status.success() && !armed && !early {
                    self.shared.fail(format!("member {place} was asked to stop and ended, {status}"));
                }
                break;
            }
            if begun.elapsed() > Duration::from_millis(1500) {
                member.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let delay = self.random.below(2000);
        self.at(delay, Due::Start(place));
    }

    fn cut(&mut self, what: &str, cut: BTreeSet<(usize, usize)>) {
        self.shared.count_fault(what);
        self.set_network(Links { cut, ..self.network.links().clone() });
    }

    fn set_network(&mut self, links: Links) {
        self.network.set(links);
        let delay = self.random.between(300, 5000);
        self.at(delay, Due::Network);
    }

    fn move_leader(&self, to: usize) {
        let shared = self.shared.clone();
        let leader = self.leader();
        tokio::spawn(timeout(Duration::from_secs(5), async move {
            let Some(leader) = leader else { return };
            let Ok(status) = shared.client(to).status().await else { return };
            let target_id = status.header.unwrap().member_id;
            // It may lead no longer, or not be obeyed.
            let _ = shared.client(leader).maintenance.move_leader(MoveLeaderRequest { target_id }).await;
        }));
    }

    /// A client reads a whole snapshot; if it gets all, its checksum is right.
    fn read_snapshot(&self, place: usize) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let asked = shared.client(place).maintenance.snapshot(SnapshotRequest {}).await;
            let Ok(mut stream) = asked.map(tonic::Response::into_inner) else { return };
            let (mut bytes, mut remaining) = (Vec::new(), 0);
            loop {
                match stream.message().await {
                    Ok(Some(piece)) => {
                        remaining = piece.remaining_bytes;
                        bytes.extend_from_slice(&piece.blob);
                    }
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            let content = bytes.split_last_chunk::<32>();
            if remaining > 0 || content.is_none_or(|(content, sum)| Sha256::digest(content)[..] != sum[..]) {
                shared.fail(format!("member {place} ended a snapshot that is not whole"));
            }
        });
    }

    /// Ends all members as they should end, and says where their data is.
    pub fn end(mut self) -> Vec<std::path::PathBuf> {
        for place in 0..self.members.len() {
            self.stop(place);
        }
        self.members.iter().map(Member::data).collect()
    }
}

//! Whoever runs the cluster: adds, promotes, moves and removes members, and puts another in the place of one whose disk is
//! lost. Each change is a request with an answer, which the network may lose, and comes in the middle of everything else.
//!
//! It asks for nothing after which a quorum could not come about any more, whatever becomes of requests that it knows
//! nothing of: that may lose data, so no store could be blamed.

use std::collections::BTreeSet;

use keelson_proto::etcd::etcdserverpb::Member as Named;
use keelson_proto::etcd::storepb::MembershipChange;
use keelson_proto::etcd::storepb::membership_change::Change;
use kube_store::apply::{Rejected, Response};
use kube_store::node::{Answer, Event, Refused};
use tokio::sync::oneshot;

use crate::disk::{Loss, SimulatedDisk};
use crate::lineage::{Lineage, Membership};
use crate::member::{Fate, Member, url};
use crate::random::Random;
use crate::totals::Fault;
use crate::world::{Action, MILLISECOND, SECOND, World};

/// Voters at most.
const VOTERS: usize = 5;
/// Members that ever were.
const MEMBERS: usize = 12;
/// Requests of which nobody knows what became.
const OPEN: usize = 3;
/// How long the operator waits for an answer.
const PATIENCE: u64 = 8 * SECOND;

#[derive(Debug)]
enum Outcome {
    /// It may have been made, or may be yet.
    Unknown,
    Made,
    /// Never, as far as this request goes.
    Refused,
}

#[derive(Debug)]
struct Request {
    change: Change,
    outcome: Outcome,
    of_leader: bool,
}

struct Waiting {
    request: usize,
    /// Which member was asked, and which of them leads.
    entry: usize,
    leader: usize,
    deadline: u64,
    answer: oneshot::Receiver<Answer>,
}

pub struct Operator {
    random: Random,
    /// The usual time between two requests, in milliseconds; none: it leaves the cluster alone.
    every: Option<u64>,
    requests: Vec<Request>,
    waiting: Vec<Waiting>,
    /// The next address that was never used.
    address: u64,
    /// Addresses of members whose disks were lost, and which were removed.
    vacant: Vec<u64>,
}

/// Whether a membership is still without what a change makes of it.
fn is_open(change: &Change, membership: &Membership) -> bool {
    match change {
        Change::Add(Named { id, .. }) => !membership.contains(*id) && !membership.has_removed(*id),
        Change::Promote(id) => membership.learners().contains(id),
        Change::Remove(id) => membership.contains(*id),
        // It costs nothing.
        Change::Update(_) => false,
    }
}

impl Operator {
    pub fn new(mut random: Random) -> Self {
        let every = match random.below(6) {
            0 => None,
            1..=3 => Some(random.between(200, 1000)),
            _ => Some(random.between(1000, 2500)),
        };
        Self { random, every, requests: Vec::new(), waiting: Vec::new(), address: 1000, vacant: Vec::new() }
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Changes that were asked for and may be made yet.
    fn open(&self, membership: &Membership) -> Vec<Change> {
        let mut open: Vec<Change> = Vec::new();
        for Request { change, outcome, .. } in &self.requests {
            if matches!(outcome, Outcome::Unknown) && is_open(change, membership) && !open.contains(change) {
                open.push(change.clone());
            }
        }
        open
    }

    /// Whether a member was to be moved, and nobody knows what came of it.
    fn may_be_moved(&self, id: u64) -> bool {
        self.requests.iter().any(|Request { change, outcome, .. }| {
            matches!((change, outcome), (Change::Update(member), Outcome::Unknown) if member.id == id)
        })
    }

    /// A change was made, for the first time: somebody has to have asked for it. Whether it removed a leader.
    fn made(&self, change: &Change) -> bool {
        let mut asked = self.requests.iter().filter(|request| request.change == *change);
        let mut possible = asked.clone().filter(|request| !matches!(request.outcome, Outcome::Refused));
        assert!(possible.next().is_some(), "nobody asked for {change:?}, or it was refused");
        asked.any(|request| request.of_leader)
    }
}

/// A member at another address.
fn moved(id: u64, address: u64) -> Named {
    Named { id, peer_urls: vec![url(address)], ..Named::default() }
}

/// Who votes after a change.
fn apply(change: &Change, voters: &mut BTreeSet<u64>) {
    match change {
        Change::Add(member) if member.is_learner => {}
        Change::Add(Named { id, .. }) | Change::Promote(id) => {
            voters.insert(*id);
        }
        Change::Remove(id) => {
            voters.remove(id);
        }
        Change::Update(_) => {}
    }
}

/// Whether a quorum can come about: now, after `change`, and whatever becomes of what is open. A voter that has made the
/// last change knows that for good, and tells the others when it asks for their votes. With nobody who does, those that have
/// not made it go by the membership before it, while a member that it removes may have ended. With `loss`, that member's
/// disk is lost; then the others have to have begun, since one that lost what it was given does not vote.
fn keeps_quorum(
    members: &[Member],
    lineage: &Lineage,
    open: &[Change],
    change: Option<&Change>,
    loss: Option<u64>,
) -> bool {
    let is_alive = |id: &&u64| {
        // One that is still to be added will be there.
        let Some(member) = members.get(**id as usize - 1) else { return true };
        member.fate != Fate::Lost && Some(**id) != loss && (loss.is_none() || member.begun)
    };
    // Voters, and those of them that take part.
    let taking_part = |voters: BTreeSet<u64>| {
        let alive: BTreeSet<u64> = voters.iter().filter(is_alive).copied().collect();
        (voters, alive)
    };
    let newest = lineage.newest();
    let mut possible = vec![taking_part(newest.voters())];
    for change in open.iter().chain(change) {
        for (mut voters, _) in possible.clone() {
            apply(change, &mut voters);
            possible.push(taking_part(voters));
        }
    }
    let knows =
        |id: &u64| members.get(*id as usize - 1).is_some_and(|member| member.furthest == lineage.end());
    if !newest.voters().iter().filter(is_alive).any(knows) {
        let mut before = taking_part(lineage.at(lineage.end().saturating_sub(1)).voters());
        before.1.retain(|id| !newest.has_removed(*id));
        possible.push(before);
    }
    possible.iter().all(|(voters, alive)| alive.len() > voters.len() / 2)
}

impl World {
    /// The operator looks at the cluster.
    pub fn operate(&mut self) {
        let now = self.now;
        self.operator.waiting.retain(|waiting| waiting.deadline > now);
        if self.plan.over {
            self.stop_cut_off();
        }
        if let Some(change) = self.wish() {
            self.ask(change);
        }
        let every = self.operator.every.filter(|_| !self.plan.over).unwrap_or(400);
        let delay = self.operator.random.between(every / 3, every * 2) * MILLISECOND;
        self.at(delay, Action::Operate);
    }

    /// A member whose disk is lost and that is still taken for one.
    pub fn lost_member(&self) -> Option<u64> {
        self.lineage.newest().ids().find(|id| self.members[*id as usize - 1].fate == Fate::Lost)
    }

    /// What the operator wants next.
    fn wish(&mut self) -> Option<Change> {
        let open = self.operator.open(self.lineage.newest());
        if let Some(lost) = self.lost_member() {
            // First of all: until then the cluster can bear less.
            return (self.operator.random.percent(70)).then_some(Change::Remove(lost));
        }
        let displaced = self.displaced();
        if let Some(displaced) = displaced
            && (self.plan.over || self.operator.random.one_in(3))
        {
            let address = self.members[displaced as usize - 1].address;
            return Some(Change::Update(moved(displaced, address)));
        }
        // Whoever is not where the others look for it may be as good as lost to them: that is mended before anything else.
        if displaced.is_some() || self.plan.over || self.operator.every.is_none() {
            return None;
        }
        let random = &mut self.operator.random;
        if !open.is_empty() && (open.len() >= OPEN || random.percent(60)) {
            return Some(open[random.index(open.len())].clone());
        }
        let (voters, learners) = (self.lineage.newest().voters(), self.lineage.newest().learners());
        let everyone: Vec<u64> = self.lineage.newest().ids().collect();
        let some = everyone[random.index(everyone.len())];
        let change = match random.below(20) {
            // So that whoever remains has nobody to ask for what it lost.
            0..3 if voters.len() == 2 => Change::Remove(some),
            0..4 if voters.len() < VOTERS => return self.newcomer(false),
            4..7 => return self.newcomer(true),
            7..10 if !learners.is_empty() => Change::Promote(*learners.first()?),
            10..12 => Change::Remove(some),
            12..14 => Change::Remove(self.leader()?),
            // Two that are not where the others look for them might never find each other, and one may not be moved back.
            14..16 if self.operator.may_be_moved(some) => return None,
            // One that is to join has to be where it is expected.
            14..16 if !self.members[some as usize - 1].begun => return None,
            14..16 => {
                self.operator.address += 1;
                let address = self.operator.address;
                let bearable = keeps_quorum(&self.members, &self.lineage, &open, None, Some(some));
                if bearable && self.operator.random.one_in(3) {
                    // It is moved before anybody knows.
                    self.members[some as usize - 1].address = address;
                    self.end(some as usize - 1, Loss::Process);
                }
                Change::Update(moved(some, address))
            }
            16..19 => {
                if open.is_empty() && keeps_quorum(&self.members, &self.lineage, &[], None, Some(some)) {
                    self.lose_disk(some as usize - 1);
                }
                return None;
            }
            _ => self.nonsense(some),
        };
        keeps_quorum(&self.members, &self.lineage, &open, Some(&change), None).then_some(change)
    }

    /// A member that is, or will be, somewhere else than its peer URL says.
    fn displaced(&self) -> Option<u64> {
        let newest = self.lineage.newest();
        newest.ids().find(|id| {
            let member = &self.members[*id as usize - 1];
            let listens = member.process.as_ref().map_or(member.address, |process| process.listens);
            [listens, member.address].iter().any(|address| newest.urls(*id) != [url(*address)])
        })
    }

    fn leader(&self) -> Option<u64> {
        let running = self.members.iter().filter_map(|member| Some((member.id, member.process.as_ref()?)));
        running.filter(|(_, process)| process.shared.is_leader()).map(|(id, _)| id).last()
    }

    /// A member that was never there, perhaps in the place of one that is no more.
    fn newcomer(&mut self, is_learner: bool) -> Option<Change> {
        let open = self.operator.open(self.lineage.newest());
        // Or one that was refused once.
        let refused = self.members.iter().find(|member| {
            let is_open = |change: &Change| matches!(change, Change::Add(named) if named.id == member.id);
            let newest = self.lineage.newest();
            let was = member.founder || newest.contains(member.id) || newest.has_removed(member.id);
            !was && !open.iter().any(is_open)
        });
        let known = refused.map(|member| (member.id, member.address));
        let (id, address) = known.unwrap_or_else(|| {
            let vacant = self.operator.vacant.last().copied();
            (self.members.len() as u64 + 1, vacant.unwrap_or(self.operator.address + 1))
        });
        let change = Change::Add(Named { id, peer_urls: vec![url(address)], is_learner, ..Named::default() });
        if id as usize > MEMBERS || !keeps_quorum(&self.members, &self.lineage, &open, Some(&change), None) {
            return None;
        }
        if known.is_some() {
            return Some(change);
        }
        if self.operator.vacant.pop().is_none() {
            self.operator.address = address;
        }
        let rate = self.random.between(95, 105);
        self.members.push(Member::new(id, false, address, self.time.clone(), rate));
        self.watches.add_tap(id as usize - 1);
        Some(change)
    }

    /// What no store may do.
    fn nonsense(&mut self, some: u64) -> Change {
        let unknown = 0xdead;
        match self.operator.random.below(4) {
            0 => Change::Promote(*self.lineage.newest().voters().first().unwrap_or(&unknown)),
            1 => Change::Remove(unknown),
            2 => Change::Update(moved(unknown, unknown)),
            // Once more.
            _ => Change::Add(Named { id: some, peer_urls: vec![url(unknown)], ..Named::default() }),
        }
    }

    fn lose_disk(&mut self, member: usize) {
        self.fault_happened(Fault::DiskLost, 1);
        self.note(|| format!("member {member} loses its disk"));
        self.end(member, Loss::Power);
        let member = &mut self.members[member];
        member.fate = Fate::Lost;
        member.disk = SimulatedDisk::default();
        member.flips.clear();
    }

    /// Asks a member, which hands it on to the one that it takes for the leader.
    fn ask(&mut self, change: Change) {
        let random = &mut self.operator.random;
        let running = self.members.iter().enumerate().filter(|(_, member)| member.process.is_some());
        let running: Vec<usize> = running.map(|(place, _)| place).collect();
        if running.is_empty() {
            return;
        }
        let entry = running[random.index(running.len())];
        let known = self.members[entry].process.as_ref().map_or(0, |process| process.shared.leader());
        let Some(leader) =
            (if known == self.members[entry].id { Some(entry) } else { self.route(entry, known) })
        else {
            return;
        };
        let request = self.operator.requests.len();
        self.note(|| format!("request {request} of {entry}, to {leader}: {change:?}"));
        let of_leader = change == Change::Remove(known);
        self.operator.requests.push(Request { change, outcome: Outcome::Unknown, of_leader });
        if entry == leader || !self.network.loses(entry, leader, &mut self.random) {
            let delay = self.network.delay(&mut self.random);
            self.at(delay, Action::Change { request, entry, leader });
        }
    }

    /// A request arrives.
    pub fn change(&mut self, request: usize, entry: usize, leader: usize) {
        let (reply, answer) = oneshot::channel();
        let change = Some(self.operator.requests[request].change.clone());
        let event =
            Event::Membership { change: MembershipChange { change, ..MembershipChange::default() }, reply };
        if self.send(leader, event) {
            self.strike_within(30 * MILLISECOND);
            let deadline = self.now + PATIENCE;
            self.operator.waiting.push(Waiting { request, entry, leader, deadline, answer });
        }
    }

    /// Takes the answers that a member has given.
    pub fn answered(&mut self, member: usize) {
        use oneshot::error::TryRecvError::Empty;
        let mut waiting = std::mem::take(&mut self.operator.waiting);
        waiting.retain_mut(|waiting| {
            if waiting.leader != member {
                return true;
            }
            let answer = match waiting.answer.try_recv() {
                Err(Empty) => return true,
                Err(_) => return false,
                Ok(answer) => answer,
            };
            let Waiting { request, entry, leader, .. } = *waiting;
            if entry == leader || !self.network.loses(leader, entry, &mut self.random) {
                self.judge(request, answer);
            }
            false
        });
        self.operator.waiting = waiting;
    }

    fn judge(&mut self, request: usize, answer: Answer) {
        self.note(|| format!("request {request} is answered: {answer:?}"));
        let Request { change, outcome, .. } = &mut self.operator.requests[request];
        match answer {
            Ok((_, Ok(Response::Membership { members, .. }))) => {
                *outcome = Outcome::Made;
                let place = self.lineage.place_of(change);
                let place =
                    place.unwrap_or_else(|| panic!("{change:?} was acknowledged, but nobody follows it"));
                // Whoever asks once more to move a member may be told of what came after.
                let last = if matches!(change, Change::Update(_)) { self.lineage.end() } else { place };
                assert!(
                    (place..=last).any(|place| self.lineage.at(place).is_listed(&members)),
                    "a wrong answer to {change:?}: {members:#?}"
                );
                self.totals.event("membership changes acknowledged", 1);
            }
            Ok((_, Err(Rejected::Membership(_)))) => {
                *outcome = Outcome::Refused;
                self.totals.event("membership changes refused", 1);
            }
            Err(Refused::NotLeader) => *outcome = Outcome::Refused,
            Err(Refused::Timeout | Refused::Stopped) => {}
            Ok(answer) => panic!("{change:?} was answered with {answer:?}"),
        }
    }

    /// A change was made: `by` is the first that follows it.
    pub fn membership_changed(&mut self, change: &Change, by: usize) {
        let of_leader = self.operator.made(change);
        self.note(|| format!("member {by} is the first to follow {change:?}"));
        match change {
            Change::Add(Named { id, is_learner, .. }) => {
                self.totals.event(if *is_learner { "learners added" } else { "voters added" }, 1);
                let member = &self.members[*id as usize - 1];
                let address = member.address;
                if self.members.iter().any(|other| other.fate == Fate::Lost && other.address == address) {
                    self.totals.event("lost members replaced", 1);
                }
                let delay = self.operator.random.below(3000) * MILLISECOND;
                self.at(delay, Action::Start { member: *id as usize - 1 });
            }
            Change::Promote(_) => self.totals.event("learners promoted", 1),
            Change::Remove(id) => {
                let Member { process, fate, address, .. } = &self.members[*id as usize - 1];
                self.totals.event("members removed", 1);
                if process.is_none() {
                    self.totals.event("members removed while down", 1);
                }
                if self.lineage.newest().voters().len() == 1 {
                    self.totals.event("members removed from two", 1);
                }
                if of_leader {
                    self.totals.event("leaders removed", 1);
                }
                if *fate == Fate::Lost {
                    self.operator.vacant.push(*address);
                }
                if self.operator.random.one_in(2) {
                    // Whoever knows it first may be the only one who does.
                    let (delay, life) = (self.operator.random.below(10) * MILLISECOND, self.members[by].life);
                    self.at(delay, Action::PowerLoss { member: by, life });
                }
            }
            Change::Update(Named { id, peer_urls, .. }) => {
                self.totals.event("members moved", 1);
                let place = *id as usize - 1;
                let address = crate::member::address(&peer_urls[0]);
                let Member { address: known, life, .. } = &mut self.members[place];
                if std::mem::replace(known, address) != address {
                    let life = *life;
                    let delay = self.operator.random.below(3000) * MILLISECOND;
                    self.at(delay, Action::Move { member: place, life });
                }
            }
        }
    }
}

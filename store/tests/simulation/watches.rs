//! Watches, and the ledger of all that was ever applied.
//!
//! Each member has a tap: a watch of everything, from as far back as its state goes, in every life. What taps see makes
//! the ledger, and no tap may ever see a revision differently from another one. Other watches see parts, and move from
//! member to member, resuming where they were.

use std::sync::Arc;

use bytes::Bytes;
use kube_store::apply::State;
use kube_store::mvcc::{KeyRange, MvccError, RangeEnd};
use kube_store::watch::{Change, Item, Stream, history};

use crate::history::{Changed, Ledger, Seen, Watched};
use crate::random::Random;
use crate::world::{Members, state};

const WATCHES: usize = 4;

struct Live {
    member: usize,
    stream: Arc<Stream>,
    synced: bool,
}

pub struct Watch {
    pub range: KeyRange,
    /// Taps belong to a member.
    tap: Option<usize>,
    live: Option<Live>,
    /// The first revision that it has not seen.
    pub next: i64,
    /// All it has seen, by revision, in the order in which it did.
    pub seen: Vec<(i64, Vec<Seen>)>,
    /// Where it could not resume: from, and the compacted revision from which it went on.
    pub gaps: Vec<(i64, i64)>,
    previous: bool,
}

pub struct Watches {
    pub watches: Vec<Watch>,
    pub ledger: Ledger,
    random: Random,
}

fn changed(change: &Change) -> Changed {
    Changed { kv: change.record.kv.clone(), deleted: change.record.tombstone }
}

impl Watches {
    pub fn new(mut random: Random, members: usize) -> Self {
        let mut watches: Vec<Watch> = (0..members).map(Watch::tap).collect();
        for number in 0..WATCHES {
            let low = random.below(6);
            let start = Bytes::from(format!("k{low}"));
            let end = match number % 3 {
                0 => RangeEnd::Single,
                1 => RangeEnd::Before(format!("k{}", low + 1 + random.below(4)).into()),
                _ => RangeEnd::Unbounded,
            };
            watches.push(Watch::new(KeyRange { start, end }, None, random.percent(70)));
        }
        Self { watches, ledger: Ledger::default(), random }
    }

    pub fn count(&self) -> usize {
        self.watches.len()
    }

    /// One more member has a tap.
    pub fn add_tap(&mut self, member: usize) {
        self.watches.push(Watch::tap(member));
    }

    fn place_of_tap(&self, member: usize) -> usize {
        let tap = self.watches.iter().position(|watch| watch.tap == Some(member));
        tap.expect("each member has one from the beginning")
    }

    /// A member has started: its tap begins with all that it still has.
    pub fn began(&mut self, member: usize, members: &Members) {
        let Some(state) = state(members, member) else { return };
        let tap = self.place_of_tap(member);
        let watch = &mut self.watches[tap];
        watch.next = state.store.compacted().max(1);
        watch.attach(member);
        watch.poll(state);
        self.ledger_takes(member, 0);
    }

    /// A watch without a member finds one; one that has one may move to another.
    pub fn attach(&mut self, number: usize, members: &Members) {
        let watch = &mut self.watches[number];
        if watch.tap.is_some() || (watch.live.is_some() && !self.random.one_in(4)) {
            return;
        }
        if let Some(live) = watch.live.take()
            && let Some(state) = state(members, live.member)
        {
            state.hub.remove(&live.stream, 1, &watch.range);
            if watch.previous {
                state.hub.unwant_previous();
            }
        }
        let member = self.random.index(members.len());
        if let Some(state) = state(members, member) {
            if watch.previous {
                state.hub.want_previous();
            }
            watch.attach(member);
        }
    }

    pub fn lost(&mut self, member: usize) {
        for watch in &mut self.watches {
            watch.live.take_if(|live| live.member == member);
        }
    }

    /// Lets the watches of a member take what there is.
    pub fn poll(&mut self, member: usize, members: &Members, now: u64) {
        let Some(state) = state(members, member) else { return };
        for watch in &mut self.watches {
            let is_here = watch.live.as_ref().is_some_and(|live| live.member == member);
            // A client does not always listen; a tap does.
            if is_here && (watch.tap.is_some() || self.random.percent(60)) {
                watch.poll(state);
            }
        }
        self.ledger_takes(member, now);
    }

    /// Lets every watch take all that there is; those that are with nobody, from a member that runs.
    pub fn finish(&mut self, members: &Members) {
        let runs = members.iter().position(|member| member.process.is_some()).unwrap_or(0);
        for watch in self.watches.iter_mut().filter(|watch| !watch.is_tap()) {
            if watch.live.is_none() {
                watch.attach(runs);
            }
            let live = watch.live.as_ref().map_or(runs, |live| live.member);
            if let Some(state) = state(members, live) {
                watch.poll(state);
                // What comes next would be behind what is published.
                watch.next = watch.next.max(state.hub.revision() + 1);
            }
        }
    }

    fn ledger_takes(&mut self, member: usize, now: u64) {
        let tap = self.place_of_tap(member);
        for (revision, seen) in self.watches[tap].seen.drain(..) {
            let changes: Vec<Changed> = seen.into_iter().map(|seen| seen.changed).collect();
            if let Err(known) = self.ledger.take(revision, changes.clone(), now) {
                panic!("member {member} has another revision {revision}: {changes:#?}, not {known:#?}");
            }
        }
    }
}

impl Watch {
    fn new(range: KeyRange, tap: Option<usize>, previous: bool) -> Self {
        Self { range, tap, live: None, next: 1, seen: Vec::new(), gaps: Vec::new(), previous }
    }

    fn tap(member: usize) -> Self {
        let everything = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
        Self::new(everything, Some(member), false)
    }

    fn attach(&mut self, member: usize) {
        self.live = Some(Live { member, stream: Arc::default(), synced: false });
    }

    fn take(&mut self, changes: &[Change], state: &State) {
        for change in changes {
            let changed = changed(change);
            let revision = changed.kv.mod_revision;
            assert!(self.range.contains(&changed.kv.key), "an event of another key");
            assert!(revision >= self.next, "an event of revision {revision} after {}", self.next - 1);
            let previous = match &change.previous {
                Some(record) => Some(record.kv.clone()),
                // As the service does: what was not asked for in time is read.
                None if self.previous => {
                    let found = state.store.at(&changed.kv.key, revision - 1).unwrap();
                    found.map(|record| record.kv.clone())
                }
                None => None,
            };
            let seen = Seen { changed, previous };
            match self.seen.last_mut().filter(|(last, _)| *last == revision) {
                Some((_, events)) => events.push(seen),
                None => self.seen.push((revision, vec![seen])),
            }
        }
    }

    /// As a stream's session does it: what is queued, then history until the hub finds it level.
    fn poll(&mut self, state: &State) {
        let Some(mut live) = self.live.take() else { return };
        loop {
            for item in live.stream.take() {
                match item {
                    Item::Changes { revision, changes, .. } => {
                        self.take(changes.list(), state);
                        self.next = revision + 1;
                    }
                    Item::Behind { from, .. } => {
                        live.synced = false;
                        self.next = self.next.max(from);
                    }
                    Item::Progress { .. } => {}
                }
            }
            if live.synced {
                break;
            }
            match state.hub.sync(&live.stream, 1, &self.range, self.next) {
                Ok(()) => live.synced = true,
                Err(through) => match history(&state.store, &self.range, self.next, through, self.previous) {
                    Ok(found) => {
                        self.take(&found.changes, state);
                        self.next = found.through + 1;
                    }
                    Err(MvccError::Compacted) => {
                        let compacted = state.store.compacted();
                        assert!(self.next < compacted, "refused though it asked for what there is");
                        self.gaps.push((self.next, compacted));
                        self.next = compacted;
                    }
                    Err(error) => panic!("history cannot be read: {error:?}"),
                },
            }
        }
        self.live = Some(live);
    }

    pub fn watched(&self) -> Watched<'_> {
        Watched {
            range: &self.range,
            previous: self.previous,
            no_put: false,
            no_delete: false,
            next: self.next,
            seen: &self.seen,
            gaps: &self.gaps,
        }
    }

    pub fn is_tap(&self) -> bool {
        self.tap.is_some()
    }
}

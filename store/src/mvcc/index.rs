//! Which revisions each key has. It answers "which revision" for every read and write; values lie elsewhere.
//!
//! Invariants: the revisions of a key ascend; nothing at or below `compacted` is visible that a compaction at that
//! revision removes, whether or not it has been removed from the tree yet. It is memory for every key of the store,
//! so it is kept small: a key with one revision takes no allocation but its name.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::record::Revision;

/// Keys from `start`: only it, all from it, or all up to but not with an end (etcd's `range_end`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: RangeEnd,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RangeEnd {
    Single,
    Unbounded,
    Before(Bytes),
}

impl KeyRange {
    pub fn new(start: Bytes, range_end: Bytes) -> Self {
        let end = match &range_end[..] {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start, end }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Unbounded => key >= &self.start[..],
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
        }
    }

    fn upper(&self) -> Bound<&[u8]> {
        match &self.end {
            RangeEnd::Single => Bound::Included(&self.start),
            RangeEnd::Unbounded => Bound::Unbounded,
            RangeEnd::Before(end) => Bound::Excluded(end),
        }
    }
}

/// A revision with its tombstone flag in one word less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    main: i64,
    sub: u32,
}

const TOMBSTONE: u32 = 1 << 31;

impl Slot {
    fn new(revision: Revision, tombstone: bool) -> Self {
        Self { main: revision.main, sub: revision.sub | if tombstone { TOMBSTONE } else { 0 } }
    }

    fn revision(self) -> Revision {
        Revision { main: self.main, sub: self.sub & !TOMBSTONE }
    }

    fn is_tombstone(self) -> bool {
        self.sub & TOMBSTONE != 0
    }
}

#[derive(Debug, Clone)]
enum Slots {
    One(Slot),
    Many(Vec<Slot>),
}

impl Slots {
    fn as_slice(&self) -> &[Slot] {
        match self {
            Slots::One(slot) => std::slice::from_ref(slot),
            Slots::Many(slots) => slots,
        }
    }

    fn push(&mut self, slot: Slot) {
        match self {
            Slots::One(first) => *self = Slots::Many(vec![*first, slot]),
            Slots::Many(slots) => slots.push(slot),
        }
    }

    fn remove_front(&mut self, count: usize) {
        if let Slots::Many(slots) = self {
            slots.drain(..count);
            match slots[..] {
                [only] => *self = Slots::One(only),
                _ => slots.shrink_to(slots.len() * 2),
            }
        }
    }
}

#[derive(Debug, Clone)]
struct History {
    slots: Slots,
    /// Of the newest version; meaningless after a tombstone.
    created: i64,
    version: i64,
}

impl History {
    fn at(&self, revision: i64) -> Option<Slot> {
        let slots = self.slots.as_slice();
        // Nearly every read is of the newest.
        if let Some(last) = slots.last().filter(|last| last.main <= revision) {
            return Some(*last);
        }
        let count = slots.partition_point(|slot| slot.main <= revision);
        count.checked_sub(1).and_then(|at| slots.get(at)).copied()
    }

    fn last(&self) -> Option<Slot> {
        self.slots.as_slice().last().copied()
    }

    /// How many of the oldest revisions a compaction at `revision` removes, if deletions behind revision `deletions`
    /// have to stay.
    fn compactable(&self, revision: i64, deletions: i64) -> usize {
        let slots = self.slots.as_slice();
        let count = slots.partition_point(|slot| slot.main <= revision);
        match count.checked_sub(1).and_then(|at| slots.get(at)) {
            None => 0,
            // A deletion at that very revision stays: a watch may still begin there.
            Some(newest) if newest.is_tombstone() && newest.main < revision && newest.main <= deletions => {
                count
            }
            Some(_) => count - 1,
        }
    }
}

/// What a put needs to know of the version before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub created: i64,
    pub version: i64,
    pub previous: Option<Revision>,
}

#[derive(Debug, Default)]
pub struct Index {
    keys: BTreeMap<Box<[u8]>, History>,
    /// The store's revision: that of the last change.
    pub revision: i64,
    /// Reads below it are refused.
    pub compacted: i64,
}

impl Index {
    pub fn new() -> Self {
        // etcd's empty store is at revision 1.
        Self { keys: BTreeMap::new(), revision: 1, compacted: -1 }
    }

    /// Keys with a revision, deleted ones included until compaction.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// The revision of a key that is visible at `revision`.
    pub fn get(&self, key: &[u8], revision: i64) -> Option<Revision> {
        let slot = self.keys.get(key)?.at(revision)?;
        (!slot.is_tombstone()).then(|| slot.revision())
    }

    pub fn put(&mut self, key: &[u8], revision: Revision) -> Placed {
        let slot = Slot::new(revision, false);
        match self.keys.get_mut(key) {
            Some(history) => {
                let previous = history.last().filter(|last| !last.is_tombstone()).map(Slot::revision);
                if previous.is_some() {
                    history.version += 1;
                } else {
                    (history.created, history.version) = (revision.main, 1);
                }
                history.slots.push(slot);
                Placed { created: history.created, version: history.version, previous }
            }
            None => {
                let history = History { slots: Slots::One(slot), created: revision.main, version: 1 };
                self.keys.insert(key.into(), history);
                Placed { created: revision.main, version: 1, previous: None }
            }
        }
    }

    /// Deletes a key; gives the version that it had, or none if there was none.
    pub fn delete(&mut self, key: &[u8], revision: Revision) -> Option<Revision> {
        let history = self.keys.get_mut(key)?;
        let last = history.last().filter(|last| !last.is_tombstone())?;
        history.slots.push(Slot::new(revision, true));
        Some(last.revision())
    }

    /// Takes a revision read from the tree; they come in order.
    pub fn restore(&mut self, key: &[u8], revision: Revision, tombstone: bool, created: i64, version: i64) {
        let slot = Slot::new(revision, tombstone);
        match self.keys.get_mut(key) {
            Some(history) => {
                history.slots.push(slot);
                (history.created, history.version) = (created, version);
            }
            None => {
                self.keys.insert(key.into(), History { slots: Slots::One(slot), created, version });
            }
        }
        self.revision = self.revision.max(revision.main);
    }

    /// Walks the keys of a range that are visible at `revision`, at most `budget` keys (visible or not) at a time.
    /// Returns where to go on, if there is more.
    pub fn walk(
        &self,
        range: &KeyRange,
        from: Bound<&[u8]>,
        revision: i64,
        budget: usize,
        mut visit: impl FnMut(&[u8], Revision),
    ) -> Option<Box<[u8]>> {
        let upper = range.upper();
        let (Bound::Included(low) | Bound::Excluded(low)) = from else { return None };
        // BTreeMap panics at a range that ends before it begins; here it is just empty.
        let empty = match upper {
            Bound::Included(high) => low > high || (low == high && matches!(from, Bound::Excluded(_))),
            Bound::Excluded(high) => low >= high,
            Bound::Unbounded => false,
        };
        if empty {
            return None;
        }
        for (count, (key, history)) in self.keys.range::<[u8], _>((from, upper)).enumerate() {
            if let Some(slot) = history.at(revision).filter(|slot| !slot.is_tombstone()) {
                visit(key, slot.revision());
            }
            if count + 1 == budget {
                return Some(key.clone());
            }
        }
        None
    }

    /// Removes what a compaction at `revision` makes unreachable, but deletions only up to revision `deletions`, of at
    /// most `budget` keys behind `after`. Returns the revisions removed and where to go on.
    pub fn compact_step(
        &mut self,
        (revision, deletions): (i64, i64),
        after: Option<&[u8]>,
        budget: usize,
        removed: &mut Vec<Revision>,
    ) -> Option<Box<[u8]>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut empty: Vec<Box<[u8]>> = Vec::new();
        let mut next = None;
        for (count, (key, history)) in self.keys.range_mut::<[u8], _>((from, Bound::Unbounded)).enumerate() {
            let remove = history.compactable(revision, deletions);
            if remove > 0 {
                let slots = history.slots.as_slice();
                removed.extend(slots.iter().take(remove).map(|slot| slot.revision()));
                if remove == slots.len() {
                    empty.push(key.clone());
                } else {
                    history.slots.remove_front(remove);
                }
            }
            if count + 1 == budget {
                next = Some(key.clone());
                break;
            }
        }
        for key in empty {
            self.keys.remove(&key);
        }
        next
    }

    /// Whether any of at most `budget` keys behind `after` is there at `revision`, or else where to go on.
    pub fn any_step(&self, revision: i64, after: Option<&[u8]>, budget: usize) -> Result<bool, Box<[u8]>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (count, (key, history)) in self.keys.range::<[u8], _>((from, Bound::Unbounded)).enumerate() {
            if history.at(revision).is_some_and(|slot| !slot.is_tombstone()) {
                return Ok(true);
            }
            if count + 1 == budget {
                return Err(key.clone());
            }
        }
        Ok(false)
    }

    /// The revisions at or below `revision` that etcd's checksum covers, of at most `budget` keys behind `after`: of
    /// what is compacted only what is visible at revision `kept`. That is the same on every member, however far each has
    /// removed things. Returns where to go on.
    pub fn hashed_step(
        &self,
        (revision, kept): (i64, i64),
        after: Option<&[u8]>,
        budget: usize,
        found: &mut Vec<Revision>,
    ) -> Option<Box<[u8]>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (count, (key, history)) in self.keys.range::<[u8], _>((from, Bound::Unbounded)).enumerate() {
            let visible = history.at(kept).filter(|slot| !slot.is_tombstone());
            let slots = history.slots.as_slice().iter().take_while(|slot| slot.main <= revision);
            let covered = slots.filter(|slot| slot.main > self.compacted || Some(**slot) == visible);
            found.extend(covered.map(|slot| slot.revision()));
            if count + 1 == budget {
                return Some(key.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(main: i64) -> Revision {
        Revision { main, sub: 0 }
    }

    /// a: 2 put, 3 put, 4 delete, 6 put; b: 5 put.
    fn index() -> Index {
        let mut index = Index::new();
        assert_eq!(index.put(b"a", revision(2)), Placed { created: 2, version: 1, previous: None });
        assert_eq!(
            index.put(b"a", revision(3)),
            Placed { created: 2, version: 2, previous: Some(revision(2)) }
        );
        assert_eq!(index.delete(b"a", revision(4)), Some(revision(3)));
        assert_eq!(index.delete(b"a", revision(4)), None);
        index.put(b"b", revision(5));
        assert_eq!(index.put(b"a", revision(6)), Placed { created: 6, version: 1, previous: None });
        index
    }

    #[test]
    fn sees_each_revision() {
        let index = index();
        let check = |at, expected: Option<i64>| {
            assert_eq!(index.get(b"a", at).map(|found| found.main), expected, "at {at}");
        };
        check(1, None);
        check(2, Some(2));
        check(3, Some(3));
        check(4, None);
        check(5, None);
        check(6, Some(6));
        check(100, Some(6));
    }

    #[test]
    fn compaction_keeps_what_is_reachable() {
        let check = |at, gone: &[i64]| {
            let mut index = index();
            let mut removed = Vec::new();
            let mut after = None;
            loop {
                after = index.compact_step((at, i64::MAX), after.as_deref(), 1, &mut removed);
                if after.is_none() {
                    break;
                }
            }
            let mut removed: Vec<_> = removed.into_iter().map(|revision| revision.main).collect();
            removed.sort_unstable();
            assert_eq!(removed, gone, "compacted at {at}");
            for later in at..8 {
                assert_eq!(index.get(b"a", later), self::index().get(b"a", later), "read at {later}");
            }
        };
        check(1, &[]);
        check(2, &[]);
        check(3, &[2]);
        check(4, &[2, 3]);
        check(5, &[2, 3, 4]);
        check(6, &[2, 3, 4]);
    }

    #[test]
    fn a_deleted_key_disappears() {
        let mut index = Index::new();
        index.put(b"a", revision(2));
        index.delete(b"a", revision(3));
        let mut removed = Vec::new();
        index.compact_step((4, i64::MAX), None, 10, &mut removed);
        assert_eq!((removed.len(), index.key_count()), (2, 0));
    }

    #[test]
    fn ranges() {
        let mut index = Index::new();
        for (main, key) in [b"a", b"b", b"c", b"d"].iter().enumerate() {
            index.put(*key, revision(2 + main as i64));
        }
        let check = |start: &'static str, end: &'static str, expected: &str| {
            let range = KeyRange::new(start.into(), end.into());
            for budget in [1, 2, 100] {
                let mut found = String::new();
                let mut from = Bound::Included(Box::<[u8]>::from(range.start.as_ref()));
                loop {
                    let bound = from.as_ref().map(Box::as_ref);
                    let next = index.walk(&range, bound, 100, budget, |key, _| {
                        assert!(range.contains(key));
                        found.push_str(std::str::from_utf8(key).unwrap());
                    });
                    match next {
                        Some(key) => from = Bound::Excluded(key),
                        None => break,
                    }
                }
                assert_eq!(found, expected, "[{start}, {end}) by {budget}");
            }
        };
        check("b", "", "b");
        check("x", "", "");
        check("b", "d", "bc");
        check("b", "\0", "bcd");
        check("\0", "\0", "abcd");
        check("d", "b", "");
        check("b", "b", "");
    }
}

//! Records in memory: those that the tree does not have yet, and of those that it has the ones written last, as far as
//! there is room. What was written lately is what is read again soonest: by whoever updates it, and for the version
//! before a change.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::record::{Record, Revision};

/// Bytes of records that the tree has too.
const RETAIN: u64 = 4 << 20;
/// What a record takes beside its bytes.
const OVERHEAD: u64 = 160;
/// Records forgotten for each that comes, and at a time when many may go: readers wait meanwhile.
const TRIM: usize = 4;

#[derive(Default)]
pub(super) struct Overlay {
    records: BTreeMap<Revision, Arc<Record>>,
    /// Bytes of those that the tree has.
    retained: u64,
    /// The tree has everything up to it, and nothing behind it.
    drained: Revision,
}

fn weight(record: &Record) -> u64 {
    record.size() + OVERHEAD
}

impl Overlay {
    pub fn get(&self, revision: Revision) -> Option<Arc<Record>> {
        self.records.get(&revision).cloned()
    }

    /// Takes a new record, and forgets the version before it if that is in the tree.
    pub fn put(&mut self, revision: Revision, record: Arc<Record>, previous: Option<Revision>) {
        self.records.insert(revision, record);
        if let Some(previous) = previous.filter(|previous| *previous <= self.drained)
            && let Some(gone) = self.records.remove(&previous)
        {
            self.retained -= weight(&gone);
        }
        self.trim();
    }

    /// All that the tree lacks of a range of revisions, in order.
    pub fn undrained(&self, first: Revision, end: Revision) -> Vec<(Revision, Arc<Record>)> {
        let first = first.max(Revision { main: self.drained.main, sub: self.drained.sub + 1 });
        if first >= end {
            return Vec::new();
        }
        self.records.range(first..end).map(|(revision, record)| (*revision, record.clone())).collect()
    }

    /// The tree has these now, which follow what it had before.
    pub fn drain<'a>(&mut self, records: impl Iterator<Item = &'a (Revision, Arc<Record>)>) {
        for (revision, record) in records {
            self.drained = *revision;
            self.retained += weight(record);
        }
        self.trim();
    }

    /// Whether there is more to forget than [`Self::put`] keeps up with.
    pub fn trim(&mut self) -> bool {
        for _ in 0..TRIM {
            if self.retained <= RETAIN {
                return false;
            }
            match self.records.first_entry() {
                Some(oldest) if *oldest.key() <= self.drained => {
                    self.retained -= weight(&oldest.remove());
                }
                _ => return false,
            }
        }
        self.retained > RETAIN
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::etcd::mvccpb::KeyValue;

    use super::*;

    fn at(main: i64) -> Revision {
        Revision { main, sub: 0 }
    }

    fn record(size: usize) -> Arc<Record> {
        let kv = KeyValue { value: vec![0; size].into(), ..KeyValue::default() };
        Arc::new(Record { kv, tombstone: false })
    }

    fn filled(count: i64, size: usize) -> (Overlay, Vec<(Revision, Arc<Record>)>) {
        let mut overlay = Overlay::default();
        let records: Vec<_> = (1..=count).map(|main| (at(main), record(size))).collect();
        for (revision, record) in &records {
            overlay.put(*revision, record.clone(), None);
        }
        (overlay, records)
    }

    #[test]
    fn what_the_tree_lacks_is_never_forgotten() {
        let (mut overlay, records) = filled(100, 100 << 10);
        while overlay.trim() {}
        assert!(records.iter().all(|(revision, _)| overlay.get(*revision).is_some()));
        overlay.drain(records[..60].iter());
        while overlay.trim() {}
        assert!(overlay.get(at(1)).is_none());
        assert!(overlay.retained <= RETAIN);
        assert!(records[60..].iter().all(|(revision, _)| overlay.get(*revision).is_some()));
    }

    #[test]
    fn undrained_is_all_that_the_tree_lacks() {
        let (mut overlay, records) = filled(5, 10);
        overlay.drain(records[..3].iter());
        let check = |first, end, expected: &[i64]| {
            let found: Vec<_> =
                overlay.undrained(at(first), at(end)).iter().map(|(revision, _)| revision.main).collect();
            assert_eq!(found, expected, "{first}..{end}");
        };
        check(1, 6, &[4, 5]);
        check(5, 6, &[5]);
        check(1, 3, &[]);
        check(9, 9, &[]);
        assert!(overlay.get(at(2)).is_some(), "the tree has it, and so has the memory");
    }

    #[test]
    fn versions_that_were_replaced_go_first() {
        let (mut overlay, records) = filled(2, 10);
        overlay.put(at(3), record(10), Some(at(1)));
        assert!(overlay.get(at(1)).is_some(), "the tree lacks it");
        overlay.drain(records.iter());
        let before = overlay.retained;
        overlay.put(at(4), record(10), Some(at(2)));
        assert!(overlay.get(at(2)).is_none());
        assert!(overlay.retained < before);
    }
}

//! The tail of the log in memory, which raft-rs reads through its `Storage` trait.
//!
//! Everything below `first_index` has been applied and is covered by the state machine: a follower that needs it gets
//! a snapshot. Durability is not this module's matter; the caller writes the same entries to the WAL.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

/// Entries `first_index..=last_index`, what came before as (index, term), and the states raft-rs starts from.
pub struct Log {
    pub(crate) hard_state: HardState,
    pub(crate) conf_state: ConfState,
    /// Index and term of the entry before the first one held.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The state machine's position: a snapshot is always of exactly this.
    applied: (u64, u64),
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + std::mem::size_of::<Entry>()
}

impl Log {
    pub(crate) fn new(hard_state: HardState, conf_state: ConfState, before: (u64, u64)) -> Self {
        Self { hard_state, conf_state, before, entries: VecDeque::new(), bytes: 0, applied: before }
    }

    fn first(&self) -> u64 {
        self.before.0 + 1
    }

    fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// Bytes held by the entries in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends entries, dropping what they overwrite: a new leader may replace what was never committed.
    pub(crate) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if entry.index < self.first() {
                continue;
            }
            while self.last() >= entry.index {
                match self.entries.pop_back() {
                    Some(replaced) => self.bytes -= size(&replaced),
                    None => break,
                }
            }
            debug_assert_eq!(entry.index, self.last() + 1, "a gap in the log");
            self.bytes += size(&entry);
            self.entries.push_back(entry);
        }
    }

    pub(crate) fn restore(&mut self, snapshot: &Snapshot) {
        let metadata = snapshot.get_metadata();
        self.entries.clear();
        self.bytes = 0;
        self.before = (metadata.index, metadata.term);
        self.applied = self.before;
        self.conf_state = metadata.get_conf_state().clone();
    }

    pub(crate) fn set_applied(&mut self, index: u64) {
        if let Ok(term) = self.term_of(index) {
            self.applied = (index, term);
        }
    }

    /// Drops applied entries from the front until at most `keep` bytes are left, or `most` of those behind `lacking`.
    pub(crate) fn shrink(&mut self, keep: usize, lacking: u64, most: usize) {
        while self.bytes > keep {
            match self.entries.front() {
                Some(entry) if entry.index > lacking && self.bytes <= most => break,
                Some(entry) if entry.index <= self.applied.0 => {}
                _ => break,
            }
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= size(&entry);
                self.before = (entry.index, entry.term);
            }
        }
        if self.entries.capacity() > 4096 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }

    fn term_of(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(StorageError::Compacted.into());
        }
        let position = usize::try_from(index - self.first()).map_err(|_| StorageError::Unavailable)?;
        Ok(self.entries.get(position).ok_or(StorageError::Unavailable)?.term)
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (from, to) = ((low - self.first()) as usize, (high - self.first()) as usize);
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut total = 0u64;
        let mut found = Vec::new();
        for entry in self.entries.range(from..to) {
            total += size(entry) as u64;
            // At least one entry, however large, or replication would stop at it.
            if total > limit && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Names the applied position; its data travels apart from the message.
    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if self.applied.0 == 0 || self.applied.0 < request_index {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.0;
        metadata.term = self.applied.1;
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, length: usize) -> Entry {
        Entry { index, term, data: vec![0; length].into(), ..Entry::default() }
    }

    fn log(entries: &[(u64, u64)]) -> Log {
        let mut log = Log::new(HardState::default(), ConfState::default(), (0, 0));
        log.append(entries.iter().map(|&(index, term)| entry(index, term, 10)));
        log
    }

    #[test]
    fn a_new_leader_replaces_the_tail() {
        let mut log = log(&[(1, 1), (2, 1), (3, 1)]);
        log.append([entry(2, 2, 10)]);
        assert_eq!((log.last(), log.term_of(2).unwrap()), (2, 2));
        assert_eq!(log.bytes(), 2 * size(&entry(1, 1, 10)));
    }

    #[test]
    fn shrink_keeps_what_is_not_applied() {
        let mut log = log(&[(1, 1), (2, 1), (3, 2), (4, 2)]);
        log.set_applied(3);
        log.shrink(0, 2, usize::MAX);
        assert_eq!(log.first(), 3);
        log.shrink(0, 0, usize::MAX);
        assert_eq!(log.first(), 3);
        log.shrink(0, 0, 0);
        assert_eq!((log.first(), log.last()), (4, 4));
        assert_eq!(log.term_of(3).unwrap(), 2);
        assert!(log.term_of(2).is_err());
        assert_eq!(log.snapshot(0, 1).unwrap().get_metadata().index, 3);
        assert!(log.snapshot(4, 1).is_err());
    }

    #[test]
    fn entries_respect_the_limit_but_give_one() {
        let log = log(&[(1, 1), (2, 1), (3, 1)]);
        let context = || GetEntriesContext::empty(false);
        assert_eq!(log.entries(1, 4, None, context()).unwrap().len(), 3);
        assert_eq!(log.entries(1, 4, 0, context()).unwrap().len(), 1);
        assert!(log.entries(0, 2, None, context()).is_err());
        assert!(log.entries(1, 5, None, context()).is_err());
    }
}

//! Changes of the configuration of which it is not durable here yet that they are committed.
//!
//! Invariant: such a change takes effect on this member, and nobody hears from it that the change is committed, only once
//! a hard state that says so is durable. Or a member that is removed could end while those that remain start again, after
//! a loss of power, by a configuration in which nothing can be decided without it. (Of other entries that need not be
//! durable: whoever has them in its log finds out again.)

use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType, Message, MessageType};

/// Everything is empty, and costs nothing, while no change is in the log behind what is durably committed.
#[derive(Default)]
pub(crate) struct Changes {
    /// Where they are in the log, ascending.
    open: VecDeque<u64>,
    /// Writes under way that make a commit index durable for one of them: number and index, both ascending.
    writes: VecDeque<(u64, u64)>,
    /// Committed entries that wait for the first of them, or are it.
    waiting: VecDeque<Entry>,
}

pub(crate) fn is_change(entry: &Entry) -> bool {
    entry.get_entry_type() != EntryType::EntryNormal
}

impl Changes {
    /// `commit` is durable.
    pub(crate) fn new(log: &[Entry], commit: u64) -> Self {
        let open = log.iter().filter(|entry| entry.index > commit && is_change(entry));
        Self { open: open.map(|entry| entry.index).collect(), ..Self::default() }
    }

    /// As nearly always.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Entries enter the log, in place of what it had from the first of them on.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        while self.open.back().is_some_and(|index| *index >= first.index) {
            self.open.pop_back();
        }
        self.open.extend(entries.iter().filter(|entry| is_change(entry)).map(|entry| entry.index));
    }

    /// A snapshot, which is durable with its configuration, takes the place of the whole log.
    pub(crate) fn restore(&mut self) {
        *self = Self::default();
    }

    /// Whether the write of a commit index has to be durable for the sake of a change.
    pub(crate) fn seals(&mut self, write: u64, commit: u64) -> bool {
        let under_way = self.writes.back().map_or(0, |(_, commit)| *commit);
        let seals = self.open.iter().any(|index| (under_way + 1..=commit).contains(index));
        if seals {
            self.writes.push_back((write, commit));
        }
        seals
    }

    /// Writes up to this one are durable; whether that lets a change take effect.
    pub(crate) fn persisted(&mut self, write: u64) -> bool {
        let before = self.open.len();
        while let Some((_, commit)) = self.writes.pop_front_if(|(number, _)| *number <= write) {
            self.open.retain(|index| *index > commit);
        }
        self.open.len() < before
    }

    /// Takes entries that are committed, and gives back what may be applied.
    pub(crate) fn admit(&mut self, committed: Vec<Entry>) -> Vec<Entry> {
        let first = self.open.front().copied().unwrap_or(u64::MAX);
        if self.waiting.is_empty() && committed.last().is_none_or(|last| last.index < first) {
            return committed;
        }
        self.waiting.extend(committed);
        let count = self.waiting.partition_point(|entry| entry.index < first);
        self.waiting.drain(..count).collect()
    }

    /// Takes out of a message what nobody may know yet; `commit` is what this member knows.
    pub(crate) fn withhold(&self, message: &mut Message, commit: u64) {
        let Some(first) = self.open.front().filter(|first| **first <= commit && message.commit >= **first)
        else {
            return;
        };
        match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => message.commit = first - 1,
            MessageType::MsgRequestVote
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => (message.commit, message.commit_term) = (0, 0),
            // Answers to a leader say it too, which takes it from nobody.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, is_change: bool) -> Entry {
        let mut entry = Entry { index, term: 1, ..Entry::default() };
        if is_change {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
        }
        entry
    }

    fn indexes(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn a_change_and_what_follows_it_wait_for_the_write() {
        let mut changes = Changes::new(&[entry(3, true), entry(4, true)], 3);
        assert!(!changes.seals(1, 3), "it begins with that");
        changes.append(&[entry(5, false), entry(6, true), entry(7, false)]);
        assert!(changes.seals(2, 4));
        assert!(!changes.seals(3, 5), "a write with that is under way");
        assert!(changes.seals(4, 7));
        let committed = [entry(2, false), entry(3, true), entry(4, true), entry(5, false)].to_vec();
        assert_eq!(indexes(&changes.admit(committed)), [2, 3]);
        assert!(!changes.persisted(1));
        assert!(changes.persisted(3));
        assert_eq!(indexes(&changes.admit(vec![entry(6, true)])), [4, 5]);
        assert!(changes.persisted(4));
        assert_eq!(indexes(&changes.admit(vec![entry(7, false)])), [6, 7]);
    }

    #[test]
    fn what_is_overwritten_is_waited_for_no_more() {
        let mut changes = Changes::new(&[entry(4, true), entry(6, true)], 3);
        changes.append(&[entry(5, false)]);
        assert!(changes.seals(1, 4));
        assert!(!changes.seals(2, 6));
        changes.restore();
        assert_eq!(indexes(&changes.admit(vec![entry(9, true)])), [9]);
    }

    #[test]
    fn messages_say_no_more_than_may_be_known() {
        let mut changes = Changes::new(&[entry(4, true)], 3);
        let says = |changes: &Changes, kind, known| {
            let mut message = Message { commit: known, commit_term: 1, ..Message::default() };
            message.set_msg_type(kind);
            changes.withhold(&mut message, known);
            message.commit
        };
        for (kind, expected) in [
            (MessageType::MsgAppend, 3),
            (MessageType::MsgHeartbeat, 3),
            (MessageType::MsgRequestPreVote, 0),
            (MessageType::MsgRequestVoteResponse, 0),
            (MessageType::MsgAppendResponse, 5),
        ] {
            assert_eq!(says(&changes, kind, 3), 3, "{kind:?}: the change is not committed");
            assert_eq!(says(&changes, kind, 5), expected, "{kind:?}");
        }
        assert!(changes.seals(1, 5) && changes.persisted(1));
        assert_eq!(says(&changes, MessageType::MsgAppend, 5), 5);
    }
}

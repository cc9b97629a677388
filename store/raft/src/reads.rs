//! Linearizable reads in batches: one ReadIndex round in flight, serving only the readers that arrived before it began.
//!
//! raft-rs drops a ReadIndex silently when there is no leader, or before the leader's first commit of its term; so a
//! round is begun again on a tick and when the leader changes, always with a context never used before, and readers
//! fail at their deadline.

use std::mem;

/// A reader with the tick at which it fails.
struct Waiting<R> {
    reader: R,
    deadline: u64,
}

struct Round<R> {
    context: u64,
    begun: u64,
    readers: Vec<Waiting<R>>,
}

pub(crate) struct Reads<R> {
    waiting: Vec<Waiting<R>>,
    round: Option<Round<R>>,
    last_context: u64,
    now: u64,
    retry: u64,
}

impl<R> Reads<R> {
    /// `retry`: ticks after which a round without an answer begins again.
    pub fn new(retry: u64) -> Self {
        Self { waiting: Vec::new(), round: None, last_context: 0, now: 0, retry }
    }

    pub fn add(&mut self, reader: R, ticks: u64) {
        self.waiting.push(Waiting { reader, deadline: self.now + ticks });
    }

    /// The context of a round to begin now, if readers wait and none is in flight.
    pub fn begin(&mut self) -> Option<u64> {
        if self.round.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.last_context += 1;
        let readers = mem::take(&mut self.waiting);
        self.round = Some(Round { context: self.last_context, begun: self.now, readers });
        Some(self.last_context)
    }

    /// The readers that a finished round serves; none if the answer is an old one.
    pub fn finish(&mut self, context: u64) -> Vec<R> {
        match self.round.take_if(|round| round.context == context) {
            Some(round) => round.readers.into_iter().map(|waiting| waiting.reader).collect(),
            None => Vec::new(),
        }
    }

    /// Gives up the round in flight, so that its readers take part in the next one.
    pub fn restart(&mut self) {
        if let Some(mut round) = self.round.take() {
            round.readers.append(&mut self.waiting);
            self.waiting = round.readers;
        }
    }

    /// Counts a tick; returns the readers whose deadline has passed.
    pub fn tick(&mut self) -> Vec<R> {
        self.now += 1;
        if self.round.as_ref().is_some_and(|round| self.now - round.begun >= self.retry) {
            self.restart();
        }
        let mut failed = Vec::new();
        let now = self.now;
        let lists = [Some(&mut self.waiting), self.round.as_mut().map(|round| &mut round.readers)];
        for list in lists.into_iter().flatten() {
            failed
                .extend(list.extract_if(.., |waiting| waiting.deadline <= now).map(|waiting| waiting.reader));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_serves_only_earlier_readers() {
        let mut reads = Reads::new(10);
        reads.add("a", 100);
        let first = reads.begin().unwrap();
        reads.add("b", 100);
        assert_eq!(reads.begin(), None, "one round in flight");
        assert_eq!(reads.finish(first), ["a"]);
        let second = reads.begin().unwrap();
        assert_ne!(first, second);
        assert_eq!(reads.finish(first), Vec::<&str>::new(), "an old answer serves nobody");
        assert_eq!(reads.finish(second), ["b"]);
    }

    #[test]
    fn a_lost_round_begins_again_and_readers_expire() {
        let mut reads = Reads::new(2);
        reads.add("a", 3);
        let first = reads.begin().unwrap();
        assert!(reads.tick().is_empty());
        assert!(reads.tick().is_empty());
        assert_ne!(reads.begin().unwrap(), first);
        assert_eq!(reads.tick(), ["a"]);
    }
}

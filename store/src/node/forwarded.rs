//! Proposals that other members forwarded to this one, which leads, and that wait until its tree of values has caught up.
//!
//! They do not count as lost here: a client of another member gets its answer late, as one of this member's does.

use std::collections::VecDeque;

use keelson_raft::Message;

/// Bytes that may wait; what comes then is dropped, and times out where it came from.
const MOST: usize = 16 << 20;

#[derive(Default)]
pub struct Forwarded {
    /// With the ticks at which whoever forwarded them has given up.
    waiting: VecDeque<(u64, Message)>,
    bytes: usize,
}

fn size(message: &Message) -> usize {
    message.entries.iter().map(|entry| entry.data.len()).sum()
}

impl Forwarded {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn add(&mut self, message: Message, deadline: u64) {
        let size = size(&message);
        if self.bytes + size <= MOST {
            self.bytes += size;
            self.waiting.push_back((deadline, message));
        }
    }

    pub fn take(&mut self) -> Option<Message> {
        let (_, message) = self.waiting.pop_front()?;
        self.bytes -= size(&message);
        Some(message)
    }

    /// Drops those that nobody waits for any more.
    pub fn expire(&mut self, now: u64) {
        while self.waiting.front().is_some_and(|(deadline, _)| *deadline <= now) {
            self.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(bytes: usize) -> Message {
        let entry = keelson_raft::Entry { data: vec![0; bytes].into(), ..Default::default() };
        Message { entries: vec![entry].into(), ..Message::default() }
    }

    #[test]
    fn what_waits_is_bounded_and_expires() {
        let mut forwarded = Forwarded::default();
        for deadline in 1..=3 {
            forwarded.add(proposal(MOST / 2), deadline);
        }
        forwarded.expire(1);
        assert_eq!(forwarded.take().as_ref().map(size), Some(MOST / 2));
        assert!(forwarded.is_empty(), "the third had no room");
        forwarded.add(proposal(MOST), 9);
        assert!(forwarded.take().is_some());
    }
}

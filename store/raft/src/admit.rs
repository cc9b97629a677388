//! What a message must be to be let near raft-rs, which takes members at their word: it panics, or its numbers overflow,
//! on much that a faulty peer could send.
//!
//! Only what no member ever sends is refused here; what is merely old or late is raft-rs's to judge.

use std::collections::BTreeSet;

use raft::eraftpb::{ConfState, Message, MessageType};

/// Indexes and terms never get there: each counts one step of what takes microseconds at least.
const MOST: u64 = 1 << 62;

/// Why a message is refused; `last_index` is that of this member's log.
pub(crate) fn refusal(message: &Message, own: u64, last_index: u64) -> Option<&'static str> {
    if message.from == 0 || message.from == own {
        return Some("it has no sender");
    }
    let snapshot = message.get_snapshot().get_metadata();
    let numbers = [
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.commit_term,
        message.reject_hint,
        snapshot.index,
        snapshot.term,
    ];
    let of_entries = message.entries.iter().flat_map(|entry| [entry.index, entry.term]);
    if numbers.into_iter().chain(of_entries).any(|number| number > MOST) {
        return Some("a number in it is out of all reason");
    }
    if message.request_snapshot != 0 {
        return Some("no member asks for snapshots");
    }
    let kind = message.get_msg_type();
    // What one that follows hands on is of no term, as raft-rs insists on; everything else is of one.
    if (message.term == 0) != matches!(kind, MessageType::MsgPropose | MessageType::MsgReadIndex) {
        return Some("it is of no term, or has no business to be of one");
    }
    match kind {
        MessageType::MsgPropose if message.entries.is_empty() => Some("it proposes nothing"),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            Some("it asks for no read")
        }
        MessageType::MsgAppend if (message.index == 0) != (message.log_term == 0) => {
            Some("what it follows on has no term")
        }
        MessageType::MsgAppend => {
            let follow = |(at, entry): (usize, &raft::eraftpb::Entry)| {
                // raft-rs takes term 0 for that of an entry which is not there.
                entry.index == message.index + 1 + at as u64 && (1..=message.term).contains(&entry.term)
            };
            (!message.entries.iter().enumerate().all(follow))
                .then_some("its entries do not follow each other")
        }
        MessageType::MsgAppendResponse
            if message.index > last_index || message.reject_hint > message.index =>
        {
            Some("it answers what was never sent")
        }
        MessageType::MsgSnapshot if snapshot.index == 0 || snapshot.term == 0 => {
            Some("its state is of no term")
        }
        MessageType::MsgSnapshot if !is_sound(snapshot.get_conf_state()) => {
            Some("its configuration contradicts itself")
        }
        _ => None,
    }
}

fn is_sound(configuration: &ConfState) -> bool {
    let ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, .. } = configuration;
    let set = |ids: &[u64]| -> Option<BTreeSet<u64>> {
        let found: BTreeSet<u64> = ids.iter().copied().collect();
        (found.len() == ids.len() && !found.contains(&0)).then_some(found)
    };
    let (Some(voters), Some(learners), Some(outgoing), Some(next)) =
        (set(voters), set(learners), set(voters_outgoing), set(learners_next))
    else {
        return false;
    };
    let joint_only = outgoing.is_empty() && (!next.is_empty() || *auto_leave);
    !voters.is_empty()
        && !joint_only
        && learners.is_disjoint(&voters)
        && learners.is_disjoint(&outgoing)
        && next.is_subset(&outgoing)
        && next.is_disjoint(&voters)
        && next.is_disjoint(&learners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let check = |voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64], expected: bool| {
            let configuration = ConfState {
                voters: voters.to_vec(),
                learners: learners.to_vec(),
                voters_outgoing: outgoing.to_vec(),
                learners_next: next.to_vec(),
                ..ConfState::default()
            };
            assert_eq!(is_sound(&configuration), expected, "{configuration:?}");
        };
        check(&[1, 2], &[3], &[], &[], true);
        check(&[1, 2], &[4], &[2, 3], &[3], true);
        check(&[], &[1], &[], &[], false);
        check(&[1, 1], &[], &[], &[], false);
        check(&[0, 1], &[], &[], &[], false);
        check(&[1], &[1], &[], &[], false);
        check(&[1], &[2], &[2], &[], false);
        check(&[1], &[], &[], &[2], false);
        check(&[1, 2], &[], &[1, 2], &[2], false);
    }
}

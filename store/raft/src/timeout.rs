//! Election timeouts as a pure function.
//!
//! raft-rs draws a new timeout from an unseeded source at every reset; [`crate::Group`] replaces it after every call
//! with the value from here, so that a simulation replays exactly. The term is part of the hash: members that tie in
//! one term part in the next.

use std::ops::Range;

use crate::group::Role;

/// The election timeout in ticks, within `range`.
pub(crate) fn election_timeout(seed: u64, member: u64, term: u64, role: Role, range: Range<usize>) -> usize {
    let mut hash = seed;
    for word in [member, term, role as u64] {
        hash = mix(hash ^ word);
    }
    let width = range.len().max(1) as u64;
    // The remainder is below `width`, which came from a usize.
    range.start + (hash % width) as usize
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit changes half of the output bits.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_and_spreads() {
        let mut seen = std::collections::BTreeSet::new();
        for term in 0..1000 {
            let timeout = election_timeout(7, 3, term, Role::Follower, 20..40);
            assert!((20..40).contains(&timeout), "{timeout}");
            seen.insert(timeout);
        }
        assert_eq!(seen.len(), 20);
    }

    #[test]
    fn depends_on_every_input() {
        let base: Vec<_> = (0..64).map(|t| election_timeout(1, 1, t, Role::Follower, 0..1000)).collect();
        for (seed, member, role) in
            [(2, 1, Role::Follower), (1, 2, Role::Follower), (1, 1, Role::PreCandidate)]
        {
            let other: Vec<_> = (0..64).map(|t| election_timeout(seed, member, t, role, 0..1000)).collect();
            assert_ne!(base, other);
        }
    }
}

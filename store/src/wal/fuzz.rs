//! Arbitrary and mutated logs: recovery never panics and never hangs, gives back what was acknowledged, repairs only a
//! tail and refuses damage before it.

use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use keelson_raft::{Entry, EntryType, HardState};

use super::frame::{self, Builder, Header};
use super::*;
use crate::env::RealDisk;
use crate::fuzz::{self, Random};

const IDENTITY: Identity = Identity { cluster: 1, member: 2 };
const SALT: u64 = 77;

fn header(first_sequence: u64) -> Header {
    Header { cluster: 1, member: 2, first_sequence, salt: SALT, state: [0; 3] }
}

fn entry(index: u64, term: u64, data: Vec<u8>) -> Entry {
    Entry { index, term, data: data.into(), ..Entry::default() }
}

/// What a member wrote, write by write: the state after each.
struct Written {
    bytes: Vec<u8>,
    /// Where each frame of the only segment ends, and what recovery gives then.
    ends: Vec<(usize, Recovered)>,
}

fn written(random: &mut Random) -> Written {
    let mut bytes = header(0).encode();
    let mut state = Recovered::default();
    let mut ends = vec![(bytes.len(), state.clone())];
    let mut term = 1;
    for serial in 1..=random.below(12) as u64 + 1 {
        let mut builder = Builder::default();
        let mut next = state.last_index() + 1;
        if next > 1 && random.percent(20) {
            // A new leader replaces what was not committed.
            next -= random.below(next as usize) as u64;
            term += 1;
        }
        let next = next.max(1);
        let entries: Vec<Entry> =
            (0..random.below(4) as u64).map(|at| entry(next + at, term, random.bytes(300))).collect();
        for entry in &entries {
            builder.entry(entry);
        }
        if !entries.is_empty() {
            state.entries.truncate(next as usize - 1);
            state.entries.extend(entries);
        }
        // Each write differs from the one before.
        state.hard_state = HardState { term, vote: 2, commit: serial, ..HardState::default() };
        builder.hard_state(&state.hard_state);
        let mut frame = Vec::new();
        builder.finish(SALT, serial - 1, &mut frame);
        bytes.extend(frame);
        ends.push((bytes.len(), state.clone()));
    }
    Written { bytes, ends }
}

fn segment(directory: &Path) -> std::path::PathBuf {
    directory.join("0000000000000000.wal")
}

fn open(directory: &Path) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(RealDisk), directory, IDENTITY, Known::default(), SALT)
}

/// A log that ends with any write, of which not all sectors reached the disk, is the one before it.
#[test]
fn torn_tails() {
    fuzz::run("wal torn tails", 150, |random| {
        let directory = tempfile::tempdir().unwrap();
        let Written { bytes: whole, ends } = written(random);
        // What was under way reached the disk in parts; zeros were reserved behind.
        let under_way = random.below(ends.len());
        let (end, before) = (ends[under_way].0, ends[under_way.saturating_sub(1)].0);
        let mut bytes = whole[..end].to_vec();
        let mut at = before;
        while at < end {
            let next = (at + 1).next_multiple_of(512).min(end);
            if random.percent(50) {
                bytes[at..next].fill(0);
            }
            at = next;
        }
        bytes.resize(end + random.below(4096), 0);
        // What is missing may be zeros anyway, or only have filled the frame up.
        let is_there = |end: usize| {
            let fill = whole[..end].iter().rev().take_while(|byte| **byte == 0xa5).count();
            bytes.get(..end - fill) == whole.get(..end - fill)
        };
        let begun = ends.iter().rev().find(|(end, _)| is_there(*end)).unwrap();
        std::fs::write(segment(directory.path()), &bytes).unwrap();
        let (mut wal, mut recovered) = open(directory.path()).unwrap();
        let torn = std::mem::take(&mut recovered.torn);
        assert_eq!(recovered, begun.1, "write {under_way}, {torn} torn");
        // And it goes on from there as if nothing had been.
        wal.append(None, None, &[entry(recovered.last_index() + 1, 99, b"next".to_vec())]);
        wal.commit().unwrap();
        drop(wal);
        let (_, again) = open(directory.path()).unwrap();
        assert_eq!(again.torn, 0);
        assert_eq!(again.entries.last().unwrap().data, b"next"[..]);
        assert_eq!(again.entries.len(), recovered.entries.len() + 1);
    });
}

/// Bytes changed anywhere: what comes back, if anything, is what the log was after one of its writes, and it is an
/// earlier one only if nothing whole lies behind the damage.
#[test]
fn damage() {
    fuzz::run("wal damage", 300, |random| {
        let directory = tempfile::tempdir().unwrap();
        let Written { bytes: whole, ends } = written(random);
        let last = whole.len();
        let mut bytes = whole.clone();
        random.mutate(&mut bytes);
        std::fs::write(segment(directory.path()), &bytes).unwrap();
        let same = whole.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
        match open(directory.path()) {
            Ok((_, mut recovered)) => {
                recovered.torn = 0;
                let intact = ends.iter().rev().find(|(end, _)| *end <= same.max(HEADER)).unwrap();
                // Doubled or removed padding may leave a frame as it was.
                let known = ends.iter().any(|(end, state)| *end >= intact.0 && *state == recovered);
                assert!(known, "changed from {same} of {last}: {recovered:?}");
                let state = ends.iter().find(|(_, state)| *state == recovered).unwrap();
                let whole_behind = ends.iter().any(|(end, _)| {
                    *end > state.0 && *end > intact.0 && {
                        let begin = ends.iter().rev().find(|(other, _)| other < end).unwrap().0;
                        begin >= same && bytes.get(begin..*end) == whole.get(begin..*end)
                    }
                });
                assert!(!whole_behind, "what lies behind the damage at {same} was acknowledged");
            }
            Err(WalError::Corrupt { .. } | WalError::DamagedEnd { .. } | WalError::Foreign { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    });
}

fn arbitrary_record(random: &mut Random, builder: &mut Builder) {
    match random.below(4) {
        0 => builder.snapshot(random.number(), random.number()),
        1 => builder.hard_state(&HardState {
            term: random.number(),
            vote: random.number(),
            commit: random.number(),
            ..HardState::default()
        }),
        _ => {
            let mut entry = entry(random.number(), random.number(), random.bytes(40));
            if random.percent(10) {
                entry.set_entry_type(EntryType::EntryConfChangeV2);
            }
            builder.entry(&entry);
        }
    }
}

/// Frames whose checksums are right and whose records are any: as of another version, or of a bug.
#[test]
fn arbitrary_records() {
    fuzz::run("wal records", 400, |random| {
        let directory = tempfile::tempdir().unwrap();
        let mut sequence = random.below(3) as u64;
        for _ in 0..=random.below(3) {
            let first = sequence;
            let mut bytes = header(first).encode();
            for _ in 0..random.below(5) {
                let mut builder = Builder::default();
                for _ in 0..=random.below(5) {
                    arbitrary_record(random, &mut builder);
                }
                let mut frame = Vec::new();
                builder.finish(SALT, sequence, &mut frame);
                bytes.extend(frame);
                sequence += if random.percent(97) { 1 } else { 2 };
            }
            std::fs::write(directory.path().join(format!("{first:016x}.wal")), &bytes).unwrap();
        }
        let floor = random.number();
        let known = Known { floor, ..Known::default() };
        match Wal::open(Arc::new(RealDisk), directory.path(), IDENTITY, known, SALT) {
            Ok((_, recovered)) => {
                for pair in recovered.entries.windows(2) {
                    assert_eq!(pair[0].index + 1, pair[1].index);
                }
                if let Some(first) = recovered.entries.first() {
                    assert_eq!(first.index, recovered.before.0 + 1);
                }
            }
            Err(WalError::Corrupt { .. } | WalError::Foreign { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    });
}

#[test]
fn arbitrary_payloads() {
    fuzz::run("wal payloads", 3000, |random| {
        let mut builder = Builder::default();
        for _ in 0..random.below(4) {
            arbitrary_record(random, &mut builder);
        }
        let mut bytes = Vec::new();
        builder.finish(SALT, 0, &mut bytes);
        random.mutate(&mut bytes);
        let bytes = Bytes::from(bytes);
        drop(frame::records(bytes.clone()));
        let _ = Header::decode(&bytes);
        drop(frame::frame_at(&bytes, random.below(bytes.len() + 9), SALT));
        frame::follows(&bytes, random.below(bytes.len() + 9), SALT);
    });
}

/// A client's value that is full of what begins a frame does not make recovery look for hours.
#[test]
fn a_torn_tail_full_of_beginnings() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = header(0).encode();
    bytes.resize(8 << 20, 0);
    for at in (HEADER + 8..bytes.len() - 24).step_by(24) {
        let mut begin = Vec::new();
        begin.put_slice(b"KWFR");
        begin.put_u32_le((bytes.len() - at - 24) as u32);
        begin.put_u64_le(1);
        bytes[at..at + begin.len()].copy_from_slice(&begin);
    }
    std::fs::write(segment(directory.path()), &bytes).unwrap();
    let begun = std::time::Instant::now();
    let outcome = open(directory.path()).map(|(_, recovered)| recovered.entries.len());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{outcome:?} after {:?}", begun.elapsed());
    assert!(
        matches!(outcome, Ok(0) | Err(WalError::Corrupt { .. } | WalError::DamagedEnd { .. })),
        "{outcome:?}"
    );
}

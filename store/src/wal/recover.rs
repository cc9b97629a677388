//! Reading the write-ahead log: a torn tail is cut off, damage is refused, and so is a log that ends before what is known
//! to have been durable.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use keelson_raft::{Entry, HardState};

use super::WalError;
use super::frame::{self, HEADER, Header, Record};
use crate::env::{self, Disk};

/// What the log says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Recovered {
    pub hard_state: HardState,
    /// Index and term of what lies before `entries`.
    pub before: (u64, u64),
    pub entries: Vec<Entry>,
    /// Bytes of an unfinished last write, or of a damaged one that is given up, that were cut off.
    pub torn: u64,
}

impl Recovered {
    pub fn last_index(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    /// The term of an entry that it has, or of the last one before those.
    pub fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.before.0)? {
            0 => Some(self.before.1),
            distance => Some(self.entries.get(usize::try_from(distance - 1).ok()?)?.term),
        }
    }

    fn apply(&mut self, record: Record, floor: u64) -> Result<(), &'static str> {
        match record {
            Record::HardState(state) => self.hard_state = state,
            Record::Snapshot(index, term) => self.cut(index, term),
            Record::Entry(entry) if entry.index <= floor => {
                self.entries.clear();
                self.before = (entry.index, entry.term);
            }
            Record::Entry(entry) => {
                if self.entries.is_empty() && self.before == (0, 0) && entry.index > 1 {
                    // The segments before this one were cut behind a snapshot, which says the term.
                    self.before = (entry.index - 1, 0);
                }
                if entry.index <= self.before.0 {
                    return Ok(());
                }
                if entry.index - 1 > self.last_index() {
                    return Err("an entry is missing before it");
                }
                self.entries.truncate((entry.index - self.before.0 - 1) as usize);
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// Begins the log behind a snapshot; what follows is kept if the log agrees with the snapshot.
    pub fn cut(&mut self, index: u64, term: u64) {
        if index < self.before.0 {
            return;
        }
        let known = self.term(index);
        if known == Some(term) || (index == self.before.0 && known == Some(0)) {
            self.entries.drain(..(index - self.before.0) as usize);
        } else {
            self.entries.clear();
        }
        self.before = (index, term);
    }
}

/// A segment that was read.
pub struct Segment {
    pub path: PathBuf,
    pub header: Header,
    /// The highest index of an entry in it.
    pub last_index: u64,
    /// Where the next frame goes.
    pub end: u64,
}

/// Cuts off what was torn: zeros again, so that it can never be taken for part of a later frame.
pub fn repair(disk: &dyn Disk, reading: &Reading) -> io::Result<()> {
    let Some(last) = reading.segments.last().filter(|_| reading.recovered.torn > 0) else { return Ok(()) };
    let file = disk.open(&last.path)?;
    // A torn write lies in memory as a whole.
    file.write_at(&vec![0; reading.recovered.torn as usize], last.end)?;
    file.sync()
}

pub struct Reading {
    pub recovered: Recovered,
    pub segments: Vec<Segment>,
    pub next_sequence: u64,
    /// The last frame is not torn but damaged: it was durable.
    pub damaged: bool,
}

impl Reading {
    /// Whether nothing that was durable is missing at its end; `durable` is an entry that is known to have been.
    ///
    /// # Errors
    /// That something is.
    pub fn check_end(&self, durable: u64) -> Result<(), WalError> {
        let (segment, offset) =
            self.segments.last().map(|last| (last.path.clone(), last.end)).unwrap_or_default();
        let last = self.recovered.last_index();
        match self.damaged {
            _ if durable > last => Err(WalError::Short { segment, offset, last, durable }),
            true => Err(WalError::DamagedEnd { segment, offset }),
            false => Ok(()),
        }
    }
}

/// Reads all segments of a directory and changes nothing: see [`repair`]. Of entries up to `floor`, which the state machine has, only the last term is kept.
pub fn read(disk: &dyn Disk, directory: &Path, floor: u64) -> Result<Reading, WalError> {
    let mut reading =
        Reading { recovered: Recovered::default(), segments: Vec::new(), next_sequence: 0, damaged: false };
    let names: Vec<_> =
        disk.list(directory)?.into_iter().filter(|name| name.ends_with(super::SUFFIX)).collect();
    for (position, name) in names.iter().enumerate() {
        let path = directory.join(name);
        let last = position + 1 == names.len();
        read_segment(disk, path, last, floor, &mut reading)?;
    }
    Ok(reading)
}

fn read_segment(
    disk: &dyn Disk,
    path: PathBuf,
    last: bool,
    floor: u64,
    reading: &mut Reading,
) -> Result<(), WalError> {
    let bytes = Bytes::from(env::read(disk, &path)?);
    let corrupt =
        |offset: usize, what| WalError::Corrupt { segment: path.clone(), offset: offset as u64, what };
    let header = Header::decode(&bytes)
        .ok_or_else(|| corrupt(0, "the segment's header is damaged or of another version"))?;
    match reading.segments.last() {
        Some(first) if (first.header.cluster, first.header.member) != (header.cluster, header.member) => {
            return Err(corrupt(0, "the segment belongs to another member or cluster"));
        }
        Some(_) if header.first_sequence != reading.next_sequence => {
            return Err(corrupt(0, "the segment before this one is missing or ends too early"));
        }
        _ => reading.next_sequence = header.first_sequence,
    }
    let [term, vote, commit] = header.state;
    reading.recovered.hard_state = HardState { term, vote, commit, ..HardState::default() };
    let (mut offset, mut last_index) = (HEADER, 0);
    while let Some(frame) = frame::frame_at(&bytes, offset, header.salt) {
        if frame.sequence != reading.next_sequence {
            return Err(corrupt(offset, "a frame is out of order"));
        }
        let records = frame::records(frame.payload).ok_or_else(|| corrupt(offset, "unknown records"))?;
        for record in records {
            match &record {
                Record::Entry(entry) => last_index = entry.index.max(last_index),
                Record::Snapshot(index, _) => last_index = (*index).max(last_index),
                Record::HardState(_) => {}
            }
            reading.recovered.apply(record, floor).map_err(|what| corrupt(offset, what))?;
        }
        reading.next_sequence += 1;
        offset = frame.end;
    }
    let rest = bytes.get(offset..).unwrap_or_default();
    let dirty = rest.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    if dirty > 0 {
        if !last || frame::follows(&bytes, offset, header.salt) {
            return Err(corrupt(offset, "a frame is damaged and valid frames follow it"));
        }
        reading.recovered.torn = dirty as u64;
        reading.damaged = !frame::is_torn(&bytes, offset, header.salt);
    }
    reading.segments.push(Segment { path, header, last_index, end: offset as u64 });
    Ok(())
}

//! The bytes of the write-ahead log.
//!
//! A segment is a header and then frames, each padded to 8 bytes, up to the zeros that were reserved for later ones.
//! One frame is what one write and one fsync make durable: all records of a group commit. So only the last frame of
//! the last segment can be torn, and a bad frame with a good one behind it is damage to what was acknowledged. A bad
//! last frame is torn only if a sector of it is still as it was reserved: what is there as a whole, and wrong, was
//! written right and has been damaged since.
//!
//! ```text
//! header  magic u32 "KWSH", version u32, cluster u64, member u64, first sequence u64, salt u64,
//!         hard state (term, vote, commit) 3 u64, crc32 u32, 0 u32
//! frame   magic u32 "KWFR", payload length u32, sequence u64, crc32 (salt, sequence, length, payload) u32,
//!         crc32 (salt, all before it) u32, payload, 1 to 8 bytes 0xa5
//! payload records: kind u8, length u32, body
//! ```
//!
//! All numbers are little-endian. The salt is random, so that no value of a client can look like a frame.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use keelson_raft::{Entry, EntryType, HardState};

pub const HEADER: usize = 72;
const FRAME_HEADER: usize = 24;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"KWSH");
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"KWFR");
const VERSION: u32 = 2;
const ALIGN: usize = 8;
/// Fills a frame up: its last bytes are never as they were reserved.
const FILL: u8 = 0xa5;
/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const SNAPSHOT: u8 = 3;

/// What a segment begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub cluster: u64,
    pub member: u64,
    pub first_sequence: u64,
    pub salt: u64,
    /// (term, vote, commit) when the segment began: the segment that held it may be cut.
    pub state: [u64; 3],
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER);
        out.put_u32_le(HEADER_MAGIC);
        out.put_u32_le(VERSION);
        for word in [self.cluster, self.member, self.first_sequence, self.salt] {
            out.put_u64_le(word);
        }
        for word in self.state {
            out.put_u64_le(word);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out.put_u32_le(0);
        out
    }

    /// None if these bytes are no header of this version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let (body, mut check) = header.split_at(HEADER - 8);
        if check.get_u32_le() != crc32fast::hash(body) {
            return None;
        }
        let mut body = body;
        if body.get_u32_le() != HEADER_MAGIC || body.get_u32_le() != VERSION {
            return None;
        }
        Some(Self {
            cluster: body.get_u64_le(),
            member: body.get_u64_le(),
            first_sequence: body.get_u64_le(),
            salt: body.get_u64_le(),
            state: [body.get_u64_le(), body.get_u64_le(), body.get_u64_le()],
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    Entry(Entry),
    HardState(HardState),
    /// Everything up to this (index, term) is in a snapshot; unless the log agrees there, it begins anew.
    Snapshot(u64, u64),
}

/// A frame under construction.
#[derive(Default)]
pub struct Builder {
    payload: Vec<u8>,
}

impl Builder {
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    fn record(&mut self, kind: u8, length: usize) {
        self.payload.put_u8(kind);
        // Entries are bounded by the request size limit, far below u32::MAX.
        self.payload.put_u32_le(length as u32);
    }

    pub fn entry(&mut self, entry: &Entry) {
        self.record(ENTRY, 8 + 8 + 1 + entry.data.len());
        self.payload.put_u64_le(entry.term);
        self.payload.put_u64_le(entry.index);
        self.payload.put_u8(entry.get_entry_type() as u8);
        self.payload.put_slice(&entry.data);
    }

    pub fn hard_state(&mut self, state: &HardState) {
        self.record(HARD_STATE, 24);
        for word in [state.term, state.vote, state.commit] {
            self.payload.put_u64_le(word);
        }
    }

    pub fn snapshot(&mut self, index: u64, term: u64) {
        self.record(SNAPSHOT, 16);
        self.payload.put_u64_le(index);
        self.payload.put_u64_le(term);
    }

    /// The frame's bytes; the builder is empty again.
    pub fn finish(&mut self, salt: u64, sequence: u64, out: &mut Vec<u8>) {
        out.clear();
        out.reserve(FRAME_HEADER + self.payload.len() + ALIGN);
        out.put_u32_le(FRAME_MAGIC);
        out.put_u32_le(self.payload.len() as u32);
        out.put_u64_le(sequence);
        out.put_u32_le(checksum(salt, sequence, &self.payload));
        out.put_u32_le(header_check(salt, out));
        out.extend_from_slice(&self.payload);
        out.resize(end_of(out.len()), FILL);
        self.payload.clear();
        // One large group must not keep its memory for good.
        self.payload.shrink_to(1 << 20);
    }
}

fn checksum(salt: u64, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Of what a frame's header says before it.
fn header_check(salt: u64, header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(header);
    hasher.finalize()
}

/// Where a frame ends whose payload ends there.
fn end_of(payload: usize) -> usize {
    (payload + 1).next_multiple_of(ALIGN)
}

/// A whole and valid frame found at an offset.
pub struct Frame {
    pub sequence: u64,
    pub payload: Bytes,
    /// Where the next frame begins.
    pub end: usize,
}

/// What has a frame's header: the checksum of its payload is yet to be looked at.
struct Candidate {
    sequence: u64,
    crc: u32,
    payload: Range<usize>,
}

impl Candidate {
    fn at(segment: &[u8], offset: usize, salt: u64) -> Option<Self> {
        let whole = segment.get(offset..offset.checked_add(FRAME_HEADER)?)?;
        let mut header = whole;
        // First, since it is looked for at many places.
        if header.get_u32_le() != FRAME_MAGIC {
            return None;
        }
        let length = header.get_u32_le() as usize;
        let (sequence, crc) = (header.get_u64_le(), header.get_u32_le());
        let start = offset + FRAME_HEADER;
        let end = start.checked_add(length).filter(|end| end_of(*end) <= segment.len())?;
        let check = header_check(salt, &whole[..FRAME_HEADER - 4]);
        (header.get_u32_le() == check).then_some(Self { sequence, crc, payload: start..end })
    }

    fn is_valid(&self, segment: &[u8], salt: u64) -> bool {
        let payload = segment.get(self.payload.clone()).unwrap_or_default();
        checksum(salt, self.sequence, payload) == self.crc
    }
}

/// The frame at `offset`, if a whole and valid one is there.
pub fn frame_at(segment: &Bytes, offset: usize, salt: u64) -> Option<Frame> {
    let found = Candidate::at(segment, offset, salt).filter(|found| found.is_valid(segment, salt))?;
    let end = end_of(found.payload.end);
    Some(Frame { sequence: found.sequence, payload: segment.slice(found.payload), end })
}

/// Whether a whole and valid frame lies at or behind `offset`. It looks at few checksums of payloads: without the salt, no
/// client can write a value that looks like headers.
pub fn follows(segment: &[u8], offset: usize, salt: u64) -> bool {
    let places = (offset.next_multiple_of(ALIGN)..segment.len()).step_by(ALIGN);
    places.filter_map(|at| Candidate::at(segment, at, salt)).any(|found| found.is_valid(segment, salt))
}

/// Whether what lies at `offset`, and is no valid frame, can have come of a write that was not finished: then a sector of
/// it is as it was reserved, and nothing lies behind it. (A value of a client may be full of zeros: that much of damage
/// passes for a torn write.)
pub fn is_torn(segment: &[u8], offset: usize, salt: u64) -> bool {
    let header = offset..offset + FRAME_HEADER;
    if has_blank_sector(segment, header) {
        return true;
    }
    // All of its header was written: so it has to be right.
    let Some(found) = Candidate::at(segment, offset, salt) else { return false };
    let end = end_of(found.payload.end);
    let behind = segment.get(end..).unwrap_or_default();
    behind.iter().all(|byte| *byte == 0) && has_blank_sector(segment, offset..end)
}

/// Whether the part that any sector has of a range is all zeros.
fn has_blank_sector(segment: &[u8], range: Range<usize>) -> bool {
    let mut at = range.start;
    while at < range.end {
        let end = (at + 1).next_multiple_of(SECTOR).min(range.end);
        if segment.get(at..end).is_some_and(|part| part.iter().all(|byte| *byte == 0)) {
            return true;
        }
        at = end;
    }
    false
}

/// The records of a payload, or none if it is malformed: its checksum was right, so it was written by another version.
pub fn records(mut payload: Bytes) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while payload.has_remaining() {
        if payload.remaining() < 5 {
            return None;
        }
        let kind = payload.get_u8();
        let length = payload.get_u32_le() as usize;
        if payload.remaining() < length {
            return None;
        }
        let mut body = payload.split_to(length);
        records.push(match kind {
            ENTRY if length >= 17 => {
                let (term, index) = (body.get_u64_le(), body.get_u64_le());
                let mut entry = Entry { term, index, ..Entry::default() };
                entry.set_entry_type(match body.get_u8() {
                    0 => EntryType::EntryNormal,
                    1 => EntryType::EntryConfChange,
                    2 => EntryType::EntryConfChangeV2,
                    _ => return None,
                });
                // A copy: a slice would keep the whole segment in memory.
                entry.data = Bytes::copy_from_slice(&body);
                Record::Entry(entry)
            }
            HARD_STATE if length == 24 => {
                let (term, vote, commit) = (body.get_u64_le(), body.get_u64_le(), body.get_u64_le());
                Record::HardState(HardState { term, vote, commit, ..HardState::default() })
            }
            SNAPSHOT if length == 16 => Record::Snapshot(body.get_u64_le(), body.get_u64_le()),
            _ => return None,
        });
    }
    Some(records)
}

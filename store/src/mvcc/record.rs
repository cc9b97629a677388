//! One version of one key, and how it lies in the tree.
//!
//! ```text
//! key    'r', main revision u64, sub revision u32, chunk u16 (big-endian: the tree's order is the revisions' order)
//! value  chunk 0: flags u8, length u32, then bytes; the bytes of all chunks together are a mvccpb.KeyValue
//! ```
//!
//! Chunks hold at most 4 KiB: sled leaks disk with larger values. That is how a record lies there by itself; small ones
//! share a value: see [`super::block`].

use bytes::{Buf, Bytes};
use keelson_proto::etcd::mvccpb::KeyValue;
use prost::Message;

/// Position of a change: the store's revision, and the place within the transaction that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    pub main: i64,
    pub sub: u32,
}

/// A version of a key, or its deletion (then `kv` has the key and the revision only).
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub kv: KeyValue,
    pub tombstone: bool,
}

pub(super) const REVISION_PREFIX: u8 = b'r';
pub(super) const CHUNK: usize = 4000;
const CHUNK_HEADER: usize = 5;
const TOMBSTONE: u8 = 1;
pub const KEY_LENGTH: usize = 15;

pub(super) fn chunk_key(revision: Revision, chunk: u16) -> [u8; KEY_LENGTH] {
    let mut key = [0; KEY_LENGTH];
    key[0] = REVISION_PREFIX;
    key[1..9].copy_from_slice(&revision.main.to_be_bytes());
    key[9..13].copy_from_slice(&revision.sub.to_be_bytes());
    key[13..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// The revision and chunk of a key of the tree.
pub(super) fn parse_chunk_key(mut key: &[u8]) -> Option<(Revision, u16)> {
    if key.len() != KEY_LENGTH || key.get_u8() != REVISION_PREFIX {
        return None;
    }
    Some((Revision { main: key.get_i64(), sub: key.get_u32() }, key.get_u16()))
}

impl Record {
    /// Bytes that it takes in the tree, about.
    pub fn size(&self) -> u64 {
        size(self.kv.encoded_len())
    }

    /// Its chunks as keys and values of the tree.
    pub fn encode(&self, revision: Revision, mut put: impl FnMut([u8; KEY_LENGTH], Vec<u8>)) {
        let length = self.kv.encoded_len();
        let mut first = Vec::with_capacity(CHUNK_HEADER + length);
        first.push(if self.tombstone { TOMBSTONE } else { 0 });
        // Requests are bounded far below u32::MAX.
        first.extend_from_slice(&(length as u32).to_be_bytes());
        self.kv.encode_raw(&mut first);
        let bytes = first;
        for (chunk, part) in bytes.chunks(CHUNK).enumerate() {
            put(chunk_key(revision, chunk as u16), part.to_vec());
        }
    }

    /// From all chunks' bytes, one after the other.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let (flags, length) = parse_header(&bytes)?;
        bytes.advance(CHUNK_HEADER);
        if bytes.len() != length {
            return None;
        }
        Some(Self { kv: KeyValue::decode(bytes).ok()?, tombstone: flags & TOMBSTONE != 0 })
    }
}

fn parse_header(bytes: &[u8]) -> Option<(u8, usize)> {
    let mut header = bytes.get(..CHUNK_HEADER)?;
    Some((header.get_u8(), header.get_u32() as usize))
}

/// The number of chunks of a record with this first chunk.
pub(super) fn chunk_count(first: &[u8]) -> Option<u16> {
    parse_header(first).and_then(|(_, length)| u16::try_from(chunks(length)).ok())
}

/// [`Record::size`] of one whose encoding has so many bytes.
pub(super) fn size(length: usize) -> u64 {
    (length + CHUNK_HEADER + KEY_LENGTH * chunks(length)) as u64
}

/// Bytes of the encoding of the record with this first chunk.
pub(super) fn encoded_length(first: &[u8]) -> Option<usize> {
    parse_header(first).map(|(_, length)| length)
}

fn chunks(length: usize) -> usize {
    (length + CHUNK_HEADER).div_ceil(CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: usize, tombstone: bool, expected_chunks: u16) {
        let kv = KeyValue {
            key: "key".into(),
            value: vec![b'v'; value].into(),
            create_revision: 3,
            mod_revision: 9,
            version: 4,
            lease: 77,
        };
        let record = Record { kv, tombstone };
        let revision = Revision { main: 9, sub: 1 };
        let mut joined = Vec::new();
        let mut count = 0;
        record.encode(revision, |key, part| {
            assert_eq!(parse_chunk_key(&key), Some((revision, count)));
            assert!(part.len() <= CHUNK);
            if count == 0 {
                assert_eq!(chunk_count(&part), Some(expected_chunks));
            }
            count += 1;
            joined.extend(part);
        });
        assert_eq!(count, expected_chunks);
        assert_eq!(Record::decode(joined.into()), Some(record));
    }

    #[test]
    fn round_trips_at_every_boundary() {
        check(0, true, 1);
        check(0, false, 1);
        check(3900, false, 1);
        check(CHUNK - CHUNK_HEADER - 16, false, 1);
        check(CHUNK, false, 2);
        check(300_000, false, 76);
    }

    #[test]
    fn keys_sort_as_revisions() {
        let revisions = [(1, 0), (1, 1), (2, 0), (255, 3), (256, 0), (1 << 40, 9)];
        let keys: Vec<_> =
            revisions.iter().map(|&(main, sub)| chunk_key(Revision { main, sub }, 0)).collect();
        assert!(keys.is_sorted());
    }
}

//! Small records lie in the tree many to a value: what a tree takes for an entry of its own is several times what a small
//! record is.
//!
//! ```text
//! key    as a record's: that of the first record with which the block was made
//! value  flags u8 (BLOCK), then for each record: main revision u64, sub revision u32, tombstone u8, length u16 (all
//!        big-endian), and so many bytes of a mvccpb.KeyValue
//! ```
//!
//! Invariant: a block holds revisions that follow each other, up to the next key of the tree. So a record that is not
//! there under its own key can only be in the block before. Compaction takes records out of a block and leaves its key.

use bytes::{Buf, BufMut, Bytes};
use keelson_proto::etcd::mvccpb::KeyValue;
use prost::Message;

use super::record::{KEY_LENGTH, Record, Revision, chunk_key};

/// The most that a block takes. Larger ones make writing cheaper and reading dearer: sled reads 16 of them at once.
const BLOCK: usize = 2000;
/// The largest record that shares a block.
const SMALL: usize = BLOCK / 2;
const ENTRY_HEADER: usize = 15;
/// Flags of a value that is a block. (A record by itself has others.)
pub(super) const BLOCK_FLAG: u8 = 2;

/// Puts records that come in the order of revisions into blocks.
#[derive(Default)]
pub struct Packer {
    block: Vec<u8>,
    first: Revision,
}

impl Packer {
    /// Takes one record; `put` gets what is complete.
    pub fn add(
        &mut self,
        revision: Revision,
        record: &Record,
        mut put: impl FnMut([u8; KEY_LENGTH], Vec<u8>),
    ) {
        let length = record.kv.encoded_len();
        if length > SMALL {
            self.finish(&mut put);
            record.encode(revision, put);
            return;
        }
        if self.block.len() + ENTRY_HEADER + length > BLOCK {
            self.finish(&mut put);
        }
        if self.block.is_empty() {
            self.first = revision;
            self.block.reserve(BLOCK);
            self.block.push(BLOCK_FLAG);
        }
        self.block.put_i64(revision.main);
        self.block.put_u32(revision.sub);
        self.block.put_u8(u8::from(record.tombstone));
        self.block.put_u16(length as u16);
        record.kv.encode_raw(&mut self.block);
    }

    /// Gives the block that was begun.
    pub fn finish(&mut self, mut put: impl FnMut([u8; KEY_LENGTH], Vec<u8>)) {
        if !self.block.is_empty() {
            put(chunk_key(self.first, 0), std::mem::take(&mut self.block));
        }
    }
}

pub(super) fn is_block(value: &[u8]) -> bool {
    value.first() == Some(&BLOCK_FLAG)
}

/// One record of a block, as it lies there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub revision: Revision,
    tombstone: bool,
    /// Header and record.
    whole: &'a [u8],
}

impl Entry<'_> {
    fn bytes(&self) -> &[u8] {
        self.whole.get(ENTRY_HEADER..).unwrap_or_default()
    }

    /// [`Record::size`] of it.
    pub fn size(&self) -> u64 {
        super::record::size(self.bytes().len())
    }

    /// None: it is damaged.
    pub fn decode(&self) -> Option<Record> {
        let bytes = Bytes::copy_from_slice(self.bytes());
        Some(Record { kv: KeyValue::decode(bytes).ok()?, tombstone: self.tombstone })
    }
}

/// The records of a block. The inner none: it is damaged, and nothing comes behind.
pub(super) fn entries(value: &[u8]) -> impl Iterator<Item = Option<Entry<'_>>> {
    let mut rest = value.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(mut header) = rest.get(..ENTRY_HEADER) else {
            rest = &[];
            return Some(None);
        };
        let revision = Revision { main: header.get_i64(), sub: header.get_u32() };
        let tombstone = header.get_u8() != 0;
        let length = ENTRY_HEADER + usize::from(header.get_u16());
        match rest.split_at_checked(length) {
            Some((whole, behind)) => {
                rest = behind;
                Some(Some(Entry { revision, tombstone, whole }))
            }
            None => {
                rest = &[];
                Some(None)
            }
        }
    })
}

/// A block without some of its records; none: nothing is left. `gone` says which, and is told each once, in order.
pub(super) fn without(value: &[u8], mut gone: impl FnMut(&Entry<'_>) -> bool) -> Option<Option<Vec<u8>>> {
    let mut left = vec![BLOCK_FLAG];
    for entry in entries(value) {
        let entry = entry?;
        if !gone(&entry) {
            left.extend_from_slice(entry.whole);
        }
    }
    Some((left.len() > 1).then_some(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(main: i64, length: usize) -> (Revision, Record) {
        let kv = KeyValue {
            key: format!("key-{main}").into(),
            value: vec![b'v'; length].into(),
            mod_revision: main,
            ..KeyValue::default()
        };
        (Revision { main, sub: 0 }, Record { kv, tombstone: main % 3 == 0 })
    }

    fn pack(records: &[(Revision, Record)]) -> Vec<([u8; KEY_LENGTH], Vec<u8>)> {
        let (mut packer, mut found) = (Packer::default(), Vec::new());
        for (revision, record) in records {
            packer.add(*revision, record, |key, value| found.push((key, value)));
        }
        packer.finish(|key, value| found.push((key, value)));
        found
    }

    #[test]
    fn large_records_stay_by_themselves_and_end_a_block() {
        let check = |lengths: &[usize], expected: &[(i64, bool)]| {
            let records: Vec<_> =
                lengths.iter().enumerate().map(|(at, length)| record(at as i64 + 1, *length)).collect();
            let packed: Vec<_> = pack(&records)
                .iter()
                .map(|(key, value)| {
                    let (revision, _) = super::super::record::parse_chunk_key(key).unwrap();
                    (revision.main, is_block(value))
                })
                .collect();
            assert_eq!(packed, expected, "{lengths:?}");
        };
        check(&[], &[]);
        check(&[1, 1, 1], &[(1, true)]);
        check(&[900, 900, 900], &[(1, true), (3, true)]);
        check(&[1, 1500, 1], &[(1, true), (2, false), (3, true)]);
        // Two chunks of one record.
        check(&[5000, 1, 1], &[(1, false), (1, false), (2, true)]);
    }

    #[test]
    fn what_was_packed_is_there_and_can_be_taken_out() {
        let records: Vec<_> = (1..=5).map(|main| record(main, 100)).collect();
        let packed = pack(&records);
        let [(_, value)] = &packed[..] else { panic!("one block") };
        let read = |value: &[u8]| -> Vec<(Revision, Record)> {
            entries(value)
                .map(|entry| {
                    let entry = entry.unwrap();
                    let record = entry.decode().unwrap();
                    assert_eq!(entry.size(), record.size());
                    (entry.revision, record)
                })
                .collect()
        };
        assert_eq!(read(value), records);
        let left = without(value, |entry| entry.revision.main % 2 == 1).unwrap().unwrap();
        assert_eq!(read(&left), [records[1].clone(), records[3].clone()]);
        assert_eq!(without(&left, |_| true), Some(None));
    }

    #[test]
    fn damage_is_noticed() {
        let records: Vec<_> = (1..=3).map(|main| record(main, 100)).collect();
        let (_, value) = &pack(&records)[0];
        for length in 2..value.len() {
            let whole = entries(&value[..length]).all(|entry| entry.is_some());
            let ends_with_an_entry = (length - 1) % (ENTRY_HEADER + records[0].1.kv.encoded_len()) == 0;
            assert_eq!(whole, ends_with_an_entry, "cut to {length}");
        }
    }
}

//! Records in a tree, whether they lie there by themselves or in blocks: read, scanned, taken out.

use bytes::Bytes;

use super::backend::{Backend, BackendError, Change};
use super::block;
use super::record::{self, Record, Revision};

/// What has to be changed in a tree for the first of these revisions to go, and those behind it that lie in the same
/// place; how many those are, and their bytes.
pub(super) fn removal(
    backend: &dyn Backend,
    revisions: &[Revision],
) -> Result<(Vec<Change>, usize, u64), BackendError> {
    let Some(first) = revisions.first() else { return Ok((Vec::new(), 0, 0)) };
    let wanted = record::chunk_key(*first, 0);
    let (mut changes, mut gone, mut bytes) = (Vec::new(), 0, 0);
    let mut damaged = false;
    backend.at_or_before(&wanted, &mut |key, value| {
        // What begins a later chunk is a client's, and may be anything.
        let Some((_, chunk)) = record::parse_chunk_key(key) else { return };
        if chunk == 0 && block::is_block(value) {
            let left = block::without(value, |entry| {
                // What is not in the block any more is passed over.
                while revisions.get(gone).is_some_and(|next| *next < entry.revision) {
                    gone += 1;
                }
                let goes = revisions.get(gone) == Some(&entry.revision);
                if goes {
                    gone += 1;
                    bytes += entry.size();
                }
                goes
            });
            match left {
                Some(left) if bytes > 0 => changes.push((key.to_vec(), left)),
                Some(_) => {}
                None => damaged = true,
            }
        } else if key == wanted {
            match record::encoded_length(value).zip(record::chunk_count(value)) {
                Some((length, count)) => {
                    bytes += record::size(length);
                    let chunks = (0..count).map(|chunk| record::chunk_key(*first, chunk));
                    changes.extend(chunks.map(|key| (key.to_vec(), None)));
                }
                None => damaged = true,
            }
        }
    })?;
    if damaged { Err(BackendError::Damaged(first.main)) } else { Ok((changes, gone, bytes)) }
}

/// Reads one record from a tree: by itself, or in the block that its place is in.
pub(super) fn read_record(backend: &dyn Backend, revision: Revision) -> Result<Option<Record>, BackendError> {
    enum Found {
        Nothing,
        Packed(Option<Record>),
        First(Vec<u8>),
    }
    let wanted = record::chunk_key(revision, 0);
    let mut found = Found::Nothing;
    backend.at_or_before(&wanted, &mut |key, value| {
        let is_first = record::parse_chunk_key(key).is_some_and(|(_, chunk)| chunk == 0);
        if is_first && block::is_block(value) {
            for entry in block::entries(value) {
                match entry {
                    Some(entry) if entry.revision < revision => {}
                    Some(entry) if entry.revision == revision => {
                        return found = Found::Packed(entry.decode());
                    }
                    Some(_) => return,
                    None => return found = Found::Packed(None),
                }
            }
        } else if key == wanted {
            found = Found::First(value.to_vec());
        }
    })?;
    let damaged = || BackendError::Damaged(revision.main);
    let mut bytes = match found {
        Found::Nothing => return Ok(None),
        Found::Packed(record) => return record.ok_or_else(damaged).map(Some),
        Found::First(bytes) => bytes,
    };
    for chunk in 1..record::chunk_count(&bytes).ok_or_else(damaged)? {
        match backend.get(&record::chunk_key(revision, chunk))? {
            Some(part) => bytes.extend(part),
            // Removed between the two reads, or lost: the caller sees which by the compacted revision.
            None => return Ok(None),
        }
    }
    Record::decode(Bytes::from(bytes)).ok_or_else(damaged).map(Some)
}

/// Reads whole records of `first..end` from a tree, in order, until `visit` says false.
pub fn scan_tree(
    backend: &dyn Backend,
    first: Revision,
    end: Revision,
    visit: &mut dyn FnMut(Revision, Record) -> bool,
) -> Result<(), BackendError> {
    let mut damaged = None;
    let mut partial: Option<(Revision, u16, Vec<u8>)> = None;
    let (mut from, to) = (record::chunk_key(first, 0), record::chunk_key(end, 0));
    // The first may be in a block that begins before it.
    backend.at_or_before(&from.clone(), &mut |key, value| {
        if block::is_block(value)
            && let Some((revision, chunk @ 0)) = record::parse_chunk_key(key)
        {
            from = record::chunk_key(revision, chunk);
        }
    })?;
    // What lies before the first is its block's, or was written behind that since it was looked up.
    let mut visit = |revision, record| revision < first || visit(revision, record);
    backend.scan(&from, &to, &mut |key, value| {
        let Some((revision, chunk)) = record::parse_chunk_key(key) else { return true };
        if block::is_block(value) && chunk == 0 {
            partial = None;
            for entry in block::entries(value) {
                match entry.and_then(|entry| Some((entry.revision, entry.decode()?))) {
                    Some((at, _)) if at >= end => return false,
                    Some((at, record)) => {
                        if !visit(at, record) {
                            return false;
                        }
                    }
                    None => {
                        damaged = Some(revision.main);
                        return false;
                    }
                }
            }
            return true;
        }
        let mut fail = || {
            damaged = Some(revision.main);
            false
        };
        let (count, bytes) = match partial.take() {
            Some((of, count, mut bytes)) if of == revision => {
                bytes.extend_from_slice(value);
                (count, bytes)
            }
            // A record whose rest is gone: a compaction is removing it right now.
            _ if chunk != 0 => return true,
            _ => match record::chunk_count(value) {
                Some(count) => (count, value.to_vec()),
                None => return fail(),
            },
        };
        if u32::from(chunk) + 1 < u32::from(count) {
            partial = Some((revision, count, bytes));
            return true;
        }
        match Record::decode(bytes.into()) {
            Some(record) => visit(revision, record),
            None => fail(),
        }
    })?;
    damaged.map_or(Ok(()), |main| Err(BackendError::Damaged(main)))
}

#[cfg(test)]
mod tests {
    use keelson_proto::etcd::mvccpb::KeyValue;

    use super::*;
    use crate::mvcc::MemoryBackend;

    /// A value whose later chunks begin as a block does.
    #[test]
    fn what_a_client_wrote_is_not_taken_for_a_block() {
        let tree = MemoryBackend::default();
        let at = |main| Revision { main, sub: 0 };
        let kv = KeyValue { key: "k".into(), value: vec![2; 9000].into(), ..KeyValue::default() };
        let record = Record { kv, tombstone: false };
        let mut batch: Vec<Change> = Vec::new();
        record.encode(at(5), |key, value| batch.push((key.to_vec(), Some(value))));
        tree.write(batch).unwrap();
        assert_eq!(read_record(&tree, at(6)).unwrap(), None);
        assert_eq!(read_record(&tree, at(5)).unwrap(), Some(record.clone()));
        assert_eq!(removal(&tree, &[at(6)]).unwrap(), (vec![], 0, 0));
        let mut found = Vec::new();
        scan_tree(&tree, at(6), at(9), &mut |revision, _| {
            found.push(revision);
            true
        })
        .unwrap();
        assert!(found.is_empty());
        let (gone, count, bytes) = removal(&tree, &[at(5), at(6)]).unwrap();
        assert_eq!((gone.len(), count, bytes), (3, 0, record.size()));
    }

    /// A tree that is written to as soon as the block before a scan's beginning is found.
    struct Overtaken(MemoryBackend, parking_lot::Mutex<Vec<Change>>);

    impl Backend for Overtaken {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
            self.0.get(key)
        }

        fn at_or_before(&self, key: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BackendError> {
            self.0.at_or_before(key, visit)?;
            self.0.write(std::mem::take(&mut *self.1.lock()))
        }

        fn scan(
            &self,
            from: &[u8],
            to: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), BackendError> {
            self.0.scan(from, to, visit)
        }

        fn write(&self, batch: Vec<Change>) -> Result<(), BackendError> {
            self.0.write(batch)
        }

        fn flush(&self) -> Result<(), BackendError> {
            self.0.flush()
        }

        fn size(&self) -> u64 {
            self.0.size()
        }
    }

    #[test]
    fn a_scan_begins_where_it_was_told_although_the_tree_is_written_to() {
        let at = |main| Revision { main, sub: 0 };
        let record = |size| Record {
            kv: KeyValue { key: "k".into(), value: vec![1; size].into(), ..KeyValue::default() },
            tombstone: false,
        };
        let (mut before, mut later): (Vec<Change>, Vec<Change>) = (Vec::new(), Vec::new());
        let mut packer = block::Packer::default();
        packer.add(at(3), &record(10), |key, value| before.push((key.to_vec(), Some(value))));
        packer.finish(|key, value| before.push((key.to_vec(), Some(value))));
        // By itself in one part, and in several: neither is asked for.
        for (revision, size) in [(5, 1500), (6, 9000), (8, 1500)] {
            record(size).encode(at(revision), |key, value| later.push((key.to_vec(), Some(value))));
        }
        let tree = Overtaken(MemoryBackend::default(), parking_lot::Mutex::new(later));
        tree.write(before).unwrap();
        let mut found = Vec::new();
        scan_tree(&tree, at(7), at(9), &mut |revision, _| {
            found.push(revision);
            true
        })
        .unwrap();
        assert_eq!(found, [at(8)]);
    }
}

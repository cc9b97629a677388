//! A checksum of the store's content that members, and tools, compare: etcd's HashKV to the bit.
//!
//! It is a function of (content, revision, compacted revision) alone. CRC-32C over the name of etcd's bucket and then
//! each revision, in order, as etcd's file would hold it: 8 bytes main, `_`, 8 bytes sub, `t` for a deletion, and the
//! `mvccpb.KeyValue`, which for a deletion has only the key.

use prost::Message;

use keelson_proto::etcd::mvccpb::KeyValue;

use super::record::{Record, Revision};
use super::{MvccError, Store, range};

/// Keys for which the index is held at a time.
const STEP: usize = 4096;
/// How often a compaction may overtake a checksum before it gives up.
const ATTEMPTS: usize = 8;
/// The bucket of etcd's file that holds keys.
const BUCKET: &[u8] = b"key";

/// A checksum with what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hash {
    pub hash: u32,
    pub revision: i64,
    pub compacted: i64,
}

/// CRC-32C (Castagnoli), eight bytes at a time.
struct Crc32c(u32);

const fn tables() -> [[u32; 256]; 8] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

static TABLES: [[u32; 256]; 8] = tables();

impl Crc32c {
    fn new() -> Self {
        Self(u32::MAX)
    }

    fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let mixed = u64::from_le_bytes(*word) ^ u64::from(self.0);
            self.0 = TABLES
                .iter()
                .rev()
                .enumerate()
                .fold(0, |crc, (place, table)| crc ^ table[((mixed >> (8 * place)) & 0xff) as usize]);
        }
        for byte in rest {
            self.0 = (self.0 >> 8) ^ TABLES[0][((self.0 ^ u32::from(*byte)) & 0xff) as usize];
        }
    }

    fn finish(&self) -> u32 {
        !self.0
    }
}

fn update(crc: &mut Crc32c, buffer: &mut Vec<u8>, revision: Revision, record: &Record) {
    buffer.clear();
    buffer.extend_from_slice(&revision.main.to_be_bytes());
    buffer.push(b'_');
    buffer.extend_from_slice(&i64::from(revision.sub).to_be_bytes());
    if record.tombstone {
        buffer.push(b't');
        KeyValue { key: record.kv.key.clone(), ..KeyValue::default() }.encode_raw(buffer);
    } else {
        record.kv.encode_raw(buffer);
    }
    crc.update(buffer);
}

impl Store {
    /// The checksum of everything at or below `revision` (0: the newest), with the newest revision.
    ///
    /// # Errors
    /// The tree's, and a revision that is compacted or in the future.
    pub fn hash(&self, revision: i64) -> Result<(Hash, i64), MvccError> {
        let mut missing = None;
        for _ in 0..ATTEMPTS {
            match self.try_hash(revision)? {
                Ok(found) => return Ok(found),
                Err(at) => missing = at,
            }
        }
        Err(missing.map_or(MvccError::Compacted, |at| super::BackendError::Damaged(at).into()))
    }

    /// The inner error: a compaction or another state overtook it, or a revision is missing that has to be there.
    fn try_hash(&self, revision: i64) -> Result<Result<(Hash, i64), Option<i64>>, MvccError> {
        let Some((at, compacted, newest, revisions)) = self.hashed(revision)? else { return Ok(Err(None)) };
        let (mut crc, mut buffer) = (Crc32c::new(), Vec::new());
        crc.update(BUCKET);
        let missing =
            self.visit(at, revisions, &mut |found, record| update(&mut crc, &mut buffer, found, record))?;
        if let Some(missing) = missing {
            return Ok(Err((self.compacted() == compacted).then_some(missing.main)));
        }
        Ok(Ok((Hash { hash: crc.finish(), revision: at, compacted }, newest)))
    }

    /// Reads records in order, up to revision `at`. Returns the first that is not there.
    fn visit(
        &self,
        at: i64,
        revisions: Vec<Revision>,
        visit: &mut dyn FnMut(Revision, &Record),
    ) -> Result<Option<Revision>, MvccError> {
        let mut wanted = revisions.into_iter().peekable();
        let first = wanted.peek().map_or(at, |first| first.main);
        self.values.scan(first, at, &mut |found, record| {
            // What is not wanted is compacted, and not removed yet.
            if wanted.next_if_eq(&found).is_some() {
                visit(found, &record);
            }
            wanted.peek().is_some()
        })?;
        Ok(wanted.next())
    }

    /// The first change in which two stores, at the same revision, differ: only one has it, or they have it differently.
    ///
    /// # Errors
    /// A tree's.
    pub fn first_difference(&self, other: &Store) -> Result<Option<(Revision, Vec<u8>)>, MvccError> {
        let list = |store: &Store| -> Result<Vec<(Revision, u32, Vec<u8>)>, MvccError> {
            let Some((at, _, _, revisions)) = store.hashed(0)? else { return Ok(Vec::new()) };
            let (mut found, mut buffer) = (Vec::new(), Vec::new());
            store.visit(at, revisions, &mut |revision, record| {
                let mut crc = Crc32c::new();
                update(&mut crc, &mut buffer, revision, record);
                found.push((revision, crc.finish(), record.kv.key.to_vec()));
            })?;
            Ok(found)
        };
        let (ours, theirs) = (list(self)?, list(other)?);
        let same = ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
        let differing = [ours.get(same), theirs.get(same)];
        Ok(differing.into_iter().flatten().min().map(|(revision, _, key)| (*revision, key.clone())))
    }

    /// The revision that is asked for, what is compacted, the newest revision, and which revisions to cover.
    #[expect(clippy::type_complexity, reason = "it is for the function above only")]
    fn hashed(&self, revision: i64) -> Result<Option<(i64, i64, i64, Vec<Revision>)>, MvccError> {
        let (mut revisions, mut after, mut fixed) = (Vec::new(), None, None);
        // As etcd does it: of what is compacted is covered what is visible at `at`, or, if no key is there, what the
        // compaction kept.
        let (mut decided, mut kept) = (false, 0);
        loop {
            let index = self.index.read();
            let (at, compacted, newest) = match fixed {
                Some(fixed) => fixed,
                None => {
                    let at = range::resolve(index.compacted, index.revision, revision)?;
                    (at, index.compacted, index.revision)
                }
            };
            if index.compacted != compacted || index.revision < at {
                return Ok(None);
            }
            fixed = Some((at, compacted, newest));
            if !decided {
                match index.any_step(at, after.as_deref(), STEP) {
                    Err(next) => {
                        after = Some(next);
                        continue;
                    }
                    Ok(found) => (decided, kept, after) = (true, if found { at } else { compacted }, None),
                }
            }
            after = index.hashed_step((at, kept), after.as_deref(), STEP, &mut revisions);
            if after.is_none() {
                drop(index);
                revisions.sort_unstable();
                return Ok(Some((at, compacted, newest, revisions)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn castagnoli() {
        let check = |bytes: &[u8], expected: u32| {
            let mut crc = Crc32c::new();
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            crc.update(head);
            crc.update(tail);
            assert_eq!(crc.finish(), expected, "{bytes:?}");
        };
        // RFC 3720, B.4.
        check(&[0; 32], 0x8a91_36aa);
        check(&[0xff; 32], 0x62a8_ab43);
        check(&(0..32).collect::<Vec<u8>>(), 0x46dd_794e);
        check(b"123456789", 0xe306_9283);
    }
}

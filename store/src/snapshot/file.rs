//! Immutable files of revisions: what snapshots are made of.
//!
//! ```text
//! magic "KREVFIL1", then for each record: length u32, crc32 u32, main revision i64, sub revision u32, flags u8, mvccpb.KeyValue
//! ```
//!
//! Little-endian. The manifest has the length and the checksum of the whole file; each record's own checksum lets a
//! reader use records while it is still reading.

use std::io;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use keelson_proto::etcd::mvccpb::KeyValue;
use prost::Message;

use crate::env::{Disk, File};
use crate::mvcc::{Record, Revision};

const MAGIC: &[u8] = b"KREVFIL1";
const RECORD_HEADER: usize = 8;
const FIXED: usize = 13;
const TOMBSTONE: u8 = 1;
const BUFFER: usize = 256 << 10;

/// Bytes that snapshots leave free on the disk: without a snapshot the log only grows, without room for the log and
/// the tree nothing goes on.
const LEAVE: u64 = 32 << 20;

/// # Errors
/// There is not enough room in `directory` for more of a snapshot.
pub fn check_room(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    // An error is not taken for a full disk.
    match disk.available(directory) {
        Ok(available) if available < LEAVE => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("it would leave less than {} MiB: free disk space", LEAVE >> 20),
        )),
        _ => Ok(()),
    }
}

pub struct Writer<'a> {
    disk: &'a dyn Disk,
    directory: &'a Path,
    file: Box<dyn File>,
    offset: u64,
    buffer: Vec<u8>,
    crc: crc32fast::Hasher,
}

impl<'a> Writer<'a> {
    pub fn create(disk: &'a dyn Disk, directory: &'a Path, name: &str) -> io::Result<Self> {
        let file = disk.create(&directory.join(name))?;
        Ok(Self { disk, directory, file, offset: 0, buffer: MAGIC.to_vec(), crc: crc32fast::Hasher::new() })
    }

    pub fn push(&mut self, revision: Revision, record: &Record) -> io::Result<()> {
        let length = FIXED + record.kv.encoded_len();
        let start = self.buffer.len();
        // Requests are bounded far below u32::MAX.
        self.buffer.put_u32_le(length as u32);
        self.buffer.put_u32_le(0);
        self.buffer.put_i64_le(revision.main);
        self.buffer.put_u32_le(revision.sub);
        self.buffer.put_u8(if record.tombstone { TOMBSTONE } else { 0 });
        record.kv.encode_raw(&mut self.buffer);
        let body = start + RECORD_HEADER;
        let crc = crc32fast::hash(self.buffer.get(body..).unwrap_or_default());
        if let Some(place) = self.buffer.get_mut(start + 4..body) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        check_room(self.disk, self.directory)?;
        self.file.write_at(&self.buffer, self.offset)?;
        self.crc.update(&self.buffer);
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Makes it durable; returns its length and checksum.
    pub fn finish(mut self) -> io::Result<(u64, u32)> {
        self.flush()?;
        self.file.sync()?;
        Ok((self.offset, self.crc.finalize()))
    }
}

/// Reads all records; `length` and `crc` are the manifest's.
pub fn read(
    disk: &dyn Disk,
    path: &Path,
    (length, crc): (u64, u32),
    visit: &mut dyn FnMut(Revision, Record) -> io::Result<()>,
) -> io::Result<()> {
    let file = disk.open(path)?;
    if file.length()? != length {
        return Err(damaged(path, "it is not as long as its manifest says"));
    }
    read_within(&*file, path, 0, (length, crc), visit)
}

pub(super) fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// As [`read`], of what begins at `start` in an open file.
pub fn read_within(
    file: &dyn File,
    path: &Path,
    start: u64,
    (length, crc): (u64, u32),
    visit: &mut dyn FnMut(Revision, Record) -> io::Result<()>,
) -> io::Result<()> {
    let damaged = |what: &str| damaged(path, what);
    let mut whole = crc32fast::Hasher::new();
    let (mut offset, mut buffer) = (0, Vec::new());
    let mut begun = false;
    while offset < length || !buffer.is_empty() {
        let more = BUFFER.min(usize::try_from(length - offset).unwrap_or(BUFFER));
        let held = buffer.len();
        buffer.resize(held + more, 0);
        let part = buffer.get_mut(held..).unwrap_or_default();
        file.read_at(part, start + offset)?;
        whole.update(part);
        offset += more as u64;
        let mut rest = &buffer[..];
        if !begun {
            rest = rest.strip_prefix(MAGIC).ok_or_else(|| damaged("it is no file of revisions"))?;
            begun = true;
        }
        while let Some(mut header) = rest.get(..RECORD_HEADER) {
            let (size, check) = (header.get_u32_le() as usize, header.get_u32_le());
            let Some(body) = rest.get(RECORD_HEADER..RECORD_HEADER + size) else { break };
            if size < FIXED || crc32fast::hash(body) != check {
                return Err(damaged("a record's checksum is wrong"));
            }
            let mut body = Bytes::copy_from_slice(body);
            let revision = Revision { main: body.get_i64_le(), sub: body.get_u32_le() };
            let tombstone = body.get_u8() & TOMBSTONE != 0;
            let kv = KeyValue::decode(body).map_err(|_| damaged("a record cannot be decoded"))?;
            visit(revision, Record { kv, tombstone })?;
            rest = rest.get(RECORD_HEADER + size..).unwrap_or_default();
        }
        let consumed = buffer.len() - rest.len();
        if consumed == 0 && more == 0 {
            return Err(damaged("it ends within a record"));
        }
        buffer.drain(..consumed);
    }
    if whole.finalize() != crc {
        return Err(damaged("its checksum is wrong"));
    }
    Ok(())
}

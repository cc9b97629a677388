//! The write-ahead log: what makes a write durable. Segmented, checksummed, group-committed.
//!
//! Invariants: a frame is durable before [`Wal::commit`] returns; segments are cut only by [`Wal::cut`], which the
//! snapshot's fsync precedes; after an error of an fsync nothing more is written (what reached the disk is unknown).
//! This module knows entries by index and term only, never what they say.

mod frame;
mod recover;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_raft::{Entry, HardState};

pub use recover::Recovered;
pub use writer::{Observer, Report, WalHandle, Writer, spawn, writer};

use crate::env::{Disk, File};
use crate::node::Chain;
use frame::{Builder, HEADER, Header};
use recover::Segment;

/// What to do about data that cannot be used and must not be repaired.
pub const REPLACE: &str = "A member of a cluster is replaced: `etcdctl member remove`, `member add`, and a start with an empty data directory and --initial-cluster-state=existing. Only what was the one member of its cluster is restored from a snapshot (kube-store snapshot restore)";

const SUFFIX: &str = ".wal";
/// Reserved per segment.
const SEGMENT: u64 = 16 << 20;

fn segment_size() -> u64 {
    // Tests need not write that much.
    fail::fail_point!("wal_segment", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(SEGMENT));
    SEGMENT
}

#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("cannot read or write the write-ahead log")]
    Io(#[from] io::Error),
    #[error(
        "fsync of the write-ahead log failed; what is on the disk is unknown, so the process has to stop"
    )]
    Sync(#[source] io::Error),
    #[error(
        "write-ahead log is corrupt: {what}: {segment} at offset {offset}. {REPLACE}", segment = .segment.display()
    )]
    Corrupt { segment: PathBuf, offset: u64, what: &'static str },
    #[error(
        "write-ahead log is corrupt: its last frame was written as a whole and has been damaged since: {segment} at \
         offset {offset}. {WAY_OUT}", segment = .segment.display()
    )]
    DamagedEnd { segment: PathBuf, offset: u64 },
    #[error(
        "write-ahead log is corrupt: it ends with entry {last}, but the tree of values has entry {durable}, which was \
         durable before: {segment} at offset {offset}. {WAY_OUT}", segment = .segment.display()
    )]
    Short { segment: PathBuf, offset: u64, last: u64, durable: u64 },
    #[error(
        "data directory belongs to member {found_member:x} of cluster {found_cluster:x}, not to member {member:x} of cluster {cluster:x}: check --name, --initial-cluster and --initial-cluster-token"
    )]
    Foreign { found_cluster: u64, found_member: u64, cluster: u64, member: u64 },
}

impl WalError {
    /// Whether the disk is full: the one error after which a write may be tried again.
    pub fn is_full(&self) -> bool {
        matches!(self, WalError::Io(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// What becomes of a member whose log has lost its end.
pub const WAY_OUT: &str = "Nothing was changed. If other members have a majority, remove this one's data directory and \
    let it join again. If it is the only one, start it with --force-new-cluster: what can still be read, of its tree of \
    values too, becomes its state";

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub cluster: u64,
    pub member: u64,
}

/// What is known of a member when its log is opened.
#[derive(Debug, Default, Clone, Copy)]
pub struct Known {
    /// Entries up to it are not given back.
    pub floor: u64,
    /// Besides those that a snapshot has, entries up to it were durable once. 0: none.
    pub durable: u64,
    /// Whatever is damaged or missing at the log's end is given up.
    pub give_up: bool,
}

/// What lies in a log's directory.
pub struct Inspected {
    pub recovered: Recovered,
    /// None: there is no log.
    pub identity: Option<Identity>,
    pub segments: usize,
    pub bytes: u64,
}

/// Reads a log and touches nothing.
///
/// # Errors
/// Damage that is no torn tail, and the disk's.
pub fn inspect(disk: &dyn Disk, directory: &Path, floor: u64) -> Result<Inspected, WalError> {
    let reading = recover::read(disk, directory, floor)?;
    reading.check_end(0)?;
    let identity = reading.segments.first().map(|first| {
        let Header { cluster, member, .. } = first.header;
        Identity { cluster, member }
    });
    let bytes = reading.segments.iter().map(|segment| segment.end).sum();
    Ok(Inspected { recovered: reading.recovered, identity, segments: reading.segments.len(), bytes })
}

/// Whose log lies in a directory; none if there is no log.
///
/// # Errors
/// A damaged header, and the disk's.
pub fn identity(disk: &dyn Disk, directory: &Path) -> Result<Option<Identity>, WalError> {
    let Some(name) = disk.list(directory)?.into_iter().find(|name| name.ends_with(SUFFIX)) else {
        return Ok(None);
    };
    let segment = directory.join(name);
    let file = disk.open(&segment)?;
    let mut bytes = [0; HEADER];
    let readable = file.length()? >= HEADER as u64;
    if readable {
        file.read_at(&mut bytes, 0)?;
    }
    match Header::decode(&bytes) {
        Some(Header { cluster, member, .. }) => Ok(Some(Identity { cluster, member })),
        None => {
            let what = "the segment's header is damaged or of another version";
            Err(WalError::Corrupt { segment, offset: 0, what })
        }
    }
}

pub struct Wal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    identity: Identity,
    salt: u64,
    /// Oldest first; the last one is written to.
    segments: Vec<Segment>,
    active: Box<dyn File>,
    /// Bytes reserved in the active segment.
    reserved: u64,
    next_sequence: u64,
    builder: Builder,
    buffer: Vec<u8>,
    /// What is durable, and what will be with the frame under construction.
    hard_state: HardState,
    pending_state: HardState,
    /// The highest index in the frame under construction.
    pending_index: u64,
    /// Bytes written since it was opened.
    written: u64,
}

impl Wal {
    /// Opens the log, repairing a torn tail, or creates an empty one.
    ///
    /// # Errors
    /// Damage that is no torn tail, an end before what was durable, another member's log, and the disk's. Nothing was
    /// changed then.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        identity: Identity,
        known: Known,
        seed: u64,
    ) -> Result<(Self, Recovered), WalError> {
        disk.create_dir(directory)?;
        for name in disk.list(directory)?.iter().filter(|name| name.ends_with(".tmp")) {
            disk.remove(&directory.join(name))?;
        }
        let reading = recover::read(&*disk, directory, known.floor)?;
        if let Some(Segment { header, .. }) = reading.segments.first()
            && (header.cluster, header.member) != (identity.cluster, identity.member)
        {
            let (found_cluster, found_member) = (header.cluster, header.member);
            let Identity { cluster, member } = identity;
            return Err(WalError::Foreign { found_cluster, found_member, cluster, member });
        }
        match reading.check_end(known.durable) {
            Err(error) if known.give_up => tracing::warn!(error = %Chain(&error), "its end is given up"),
            checked => checked?,
        }
        recover::repair(&*disk, &reading)?;
        let hard_state = reading.recovered.hard_state.clone();
        let (salt, active, reserved, segments) = match reading.segments.last() {
            Some(segment) => {
                let file = disk.open(&segment.path)?;
                // A process that was killed may have written what it did not sync: it was read, so it counts from now on,
                // and the next frame may go to another segment.
                file.sync().map_err(WalError::Sync)?;
                disk.sync_dir(directory).map_err(WalError::Sync)?;
                let reserved = file.length()?;
                (segment.header.salt, file, reserved, reading.segments)
            }
            None => {
                let Identity { cluster, member } = identity;
                let header = Header { cluster, member, first_sequence: 0, salt: seed, state: [0; 3] };
                let reserve = segment_size();
                let (file, segment) = create(&*disk, directory, header, reserve)?;
                (seed, file, reserve, vec![segment])
            }
        };
        let wal = Self {
            disk,
            directory: directory.to_owned(),
            identity,
            salt,
            segments,
            active,
            reserved,
            next_sequence: reading.next_sequence,
            builder: Builder::default(),
            buffer: Vec::new(),
            pending_state: hard_state.clone(),
            hard_state,
            pending_index: 0,
            written: 0,
        };
        Ok((wal, reading.recovered))
    }

    /// Adds to the next frame.
    pub fn append(
        &mut self,
        hard_state: Option<&HardState>,
        snapshot: Option<(u64, u64)>,
        entries: &[Entry],
    ) {
        debug_assert!(self.buffer.is_empty(), "a frame is still to be written");
        if let Some((index, term)) = snapshot {
            self.builder.snapshot(index, term);
            self.pending_index = self.pending_index.max(index);
        }
        for entry in entries {
            self.builder.entry(entry);
            self.pending_index = self.pending_index.max(entry.index);
        }
        if let Some(state) = hard_state {
            self.builder.hard_state(state);
            self.pending_state = state.clone();
        }
    }

    /// Writes the frame and makes it durable.
    ///
    /// # Errors
    /// [`WalError::is_full`]: nothing was written, and it may be called again. Anything else is final.
    pub fn commit(&mut self) -> Result<(), WalError> {
        // After a full disk the buffer holds a frame that is still to be written.
        if self.buffer.is_empty() && !self.builder.is_empty() {
            self.builder.finish(self.salt, self.next_sequence, &mut self.buffer);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let length = self.buffer.len() as u64;
        if self.end() + length > self.reserved {
            self.rotate(length)?;
        }
        fail::fail_point!("wal_before_write");
        let end = self.end();
        self.active.write_at(&self.buffer, end)?;
        fail::fail_point!("wal_before_sync");
        self.active.sync().map_err(WalError::Sync)?;
        fail::fail_point!("wal_after_sync");
        self.next_sequence += 1;
        self.written += length;
        if let Some(segment) = self.segments.last_mut() {
            segment.end += length;
            segment.last_index = segment.last_index.max(self.pending_index);
        }
        self.pending_index = 0;
        self.hard_state = self.pending_state.clone();
        self.buffer.clear();
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    fn end(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.end)
    }

    /// Begins a new segment with room for a frame of `length`.
    fn rotate(&mut self, length: u64) -> Result<(), WalError> {
        let header = Header {
            cluster: self.identity.cluster,
            member: self.identity.member,
            first_sequence: self.next_sequence,
            salt: self.salt,
            state: [self.hard_state.term, self.hard_state.vote, self.hard_state.commit],
        };
        let reserve = segment_size().max(HEADER as u64 + length);
        let (file, segment) = create(&*self.disk, &self.directory, header, reserve)?;
        // One without a frame has the same name, and was just replaced.
        self.segments.pop_if(|last| last.path == segment.path);
        self.active = file;
        self.reserved = reserve;
        self.segments.push(segment);
        Ok(())
    }

    /// Removes segments that hold nothing behind `index`; a durable snapshot covers everything up to it.
    ///
    /// # Errors
    /// The disk's, which are final as those of [`Self::commit`].
    pub fn cut(&mut self, index: u64) -> Result<(), WalError> {
        while self.segments.len() > 1 && self.segments.first().is_some_and(|first| first.last_index <= index)
        {
            fail::fail_point!("wal_before_cut");
            if let Some(first) = self.segments.first() {
                self.disk.remove(&first.path)?;
            }
            self.segments.remove(0);
            // One by one: removals may become durable in any order, and a log must have no hole.
            self.disk.sync_dir(&self.directory)?;
        }
        Ok(())
    }

    /// Where its segments lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes written since it was opened.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes in it, not cut.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }
}

/// A segment appears under its name only when its header is durable.
fn create(
    disk: &dyn Disk,
    directory: &Path,
    header: Header,
    reserve: u64,
) -> Result<(Box<dyn File>, Segment), WalError> {
    let path = directory.join(format!("{:016x}{SUFFIX}", header.first_sequence));
    let temporary = directory.join("next.tmp");
    let file = disk.create(&temporary)?;
    if let Err(error) = file.allocate(reserve).and_then(|()| file.write_at(&header.encode(), 0)) {
        // What was reserved of it may be the last space on the disk, which others wait for.
        drop(file);
        let _ = disk.remove(&temporary);
        return Err(error.into());
    }
    file.sync().map_err(WalError::Sync)?;
    fail::fail_point!("wal_before_rename");
    disk.rename(&temporary, &path)?;
    disk.sync_dir(directory).map_err(WalError::Sync)?;
    Ok((file, Segment { path, header, last_index: 0, end: HEADER as u64 }))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

//! Snapshots: a manifest and immutable, checksummed files of revision ranges, all fsynced, which the log is cut behind.
//!
//! A new snapshot writes only the revisions that are new and names the older files again; when those hold too much
//! that compaction removed, everything is written afresh. A manifest appears under its name only when all it names is
//! durable. Snapshots and physical compactions are made by one thread, in the order in which they were applied, so no
//! revision that a snapshot needs is removed under it. A deletion stays in the tree until a snapshot has it (see
//! [`Snapshots::covered`]): without it, what an older file holds of the key would come back.

mod archive;
mod file;
mod keeper;
mod transfer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut};
use keelson_proto::etcd::storepb::{Configuration, Manifest, Metadata, RevisionFile};
use keelson_raft::ConfState;
use prost::Message;

pub use archive::{Archive, has_checksum};
pub use keeper::{Job, Keeper, Report, Send, Taken, Worker, spawn, worker};
pub use transfer::{Outgoing, Receiver};

use crate::apply::metadata_changes;
use crate::env::{self, Disk};
use crate::mvcc::{
    APPLIED_KEY, Backend, BackendError, Change, KEY_LENGTH, Packer, Record, Revision, Store, encode_applied,
};
use crate::wal::REPLACE;

const MANIFEST: &str = ".manifest";
const FILE: &str = ".revisions";
const TEMPORARY: &str = ".tmp";
/// A file that a peer is still sending.
const PART: &str = ".part";
const MAGIC: &[u8] = b"KSNAPMF1";
/// A snapshot of more files than this is written afresh.
const MAX_FILES: usize = 16;
/// Garbage that is always tolerated.
const SLACK: u64 = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot read or write a snapshot")]
    Io(#[from] io::Error),
    #[error("snapshot is damaged: {0}. {REPLACE}")]
    Damaged(String),
    #[error("snapshot is of cluster {0:x}")]
    Foreign(u64),
    #[error("cannot read values for the snapshot")]
    Backend(#[from] BackendError),
    #[error("the snapshot that a peer sends is malformed: {0}")]
    Malformed(&'static str),
    #[error("{}: {what}", path.display())]
    NoArchive { path: PathBuf, what: &'static str },
}

pub struct Snapshots {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    latest: Option<Manifest>,
    /// That the latest one's name is durable is not known: its fsync failed.
    unsettled: bool,
}

/// Whether a file of this name in a directory of snapshots is one's manifest.
pub fn is_manifest(name: &str) -> bool {
    name.ends_with(MANIFEST)
}

/// The (index, term) that a manifest stands at.
pub fn position(manifest: &Manifest) -> (u64, u64) {
    manifest.metadata.as_ref().map_or((0, 0), |metadata| (metadata.applied_index, metadata.applied_term))
}

/// Raft's configuration at a manifest's position.
pub fn conf_state(manifest: &Manifest) -> ConfState {
    match manifest.metadata.as_ref().and_then(|metadata| metadata.configuration.clone()) {
        Some(Configuration { voters, learners, voters_outgoing, learners_next, auto_leave }) => {
            ConfState { voters, learners, voters_outgoing, learners_next, auto_leave, ..ConfState::default() }
        }
        None => ConfState { voters: manifest.voters.clone(), ..ConfState::default() },
    }
}

fn through(manifest: &Manifest) -> i64 {
    manifest.metadata.as_ref().map_or(0, |metadata| metadata.revision)
}

impl Snapshots {
    /// Finds the newest snapshot and removes what is left of others.
    ///
    /// # Errors
    /// A manifest that is damaged, another cluster's, and the disk's.
    pub fn open(disk: Arc<dyn Disk>, directory: &Path, cluster: u64) -> Result<Self, SnapshotError> {
        disk.create_dir(directory)?;
        let mut names = disk.list(directory)?;
        for part in names.iter().filter(|name| name.ends_with(PART)) {
            disk.remove(&directory.join(part))?;
        }
        names.retain(|name| name.ends_with(MANIFEST));
        let latest = match names.last() {
            Some(name) => Some(read_manifest(&*disk, &directory.join(name))?),
            None => None,
        };
        if let Some(manifest) = latest.as_ref().filter(|manifest| manifest.cluster_id != cluster) {
            return Err(SnapshotError::Foreign(manifest.cluster_id));
        }
        // A process that was killed may have named it so and not made that durable: from now on the log is cut behind it.
        disk.sync_dir(directory)?;
        let mut snapshots = Self { disk, directory: directory.to_owned(), latest, unsettled: false };
        snapshots.remove_unused()?;
        Ok(snapshots)
    }

    pub fn latest(&self) -> Option<&Manifest> {
        self.latest.as_ref()
    }

    /// The revision up to which deletions may be removed: those behind it are in no file yet, while older files may
    /// hold what they delete. Without a snapshot that is all of them.
    pub fn covered(&self) -> i64 {
        self.latest.as_ref().filter(|latest| !latest.files.is_empty()).map_or(i64::MAX, through)
    }

    /// Makes the state with which a group begins the first snapshot: all its members write the same one, and one that
    /// joins later never sees an entry before it.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&mut self, metadata: Metadata, cluster: u64) -> Result<(), SnapshotError> {
        let voters = metadata.configuration.iter().flat_map(|known| &known.voters).copied().collect();
        let metadata = Some(metadata);
        let manifest =
            Manifest { metadata, cluster_id: cluster, voters, learners: Vec::new(), files: Vec::new() };
        self.adopt(manifest).map(|_| ())
    }

    /// Makes a snapshot of the state whose metadata this is; the store may have gone on since.
    ///
    /// # Errors
    /// The tree's and the disk's; the snapshot before it remains.
    pub fn take(
        &mut self,
        store: &Store,
        metadata: Metadata,
        voters: Vec<u64>,
        cluster: u64,
    ) -> Result<&Manifest, SnapshotError> {
        let manifest = self.write(store, metadata, voters, cluster);
        if manifest.is_err() {
            // A file that was begun holds space, which may be what was missing.
            let _ = self.remove_unused();
        }
        self.adopt(manifest?)
    }

    /// Writes what is new to a file.
    fn write(
        &self,
        store: &Store,
        metadata: Metadata,
        voters: Vec<u64>,
        cluster: u64,
    ) -> Result<Manifest, SnapshotError> {
        let (index, revision) = (metadata.applied_index, metadata.revision);
        let mut files = self.latest.as_ref().map(|latest| latest.files.clone()).unwrap_or_default();
        let held: u64 = files.iter().map(|file| file.length).sum();
        if files.len() >= MAX_FILES || held > store.in_use() + store.in_use() / 2 + SLACK {
            files.clear();
        }
        let after = match files.is_empty() {
            true => 0,
            false => self.latest.as_ref().map_or(0, through),
        };
        if revision > after {
            let name = format!("{index:016x}-{after:x}-{revision:x}{FILE}");
            fail::fail_point!("snapshot_before_file");
            let mut writer = file::Writer::create(&*self.disk, &self.directory, &name)?;
            let mut error = None;
            store.values.scan(after + 1, revision, &mut |at, record| {
                error = writer.push(at, &record).err();
                error.is_none()
            })?;
            if let Some(error) = error {
                return Err(error.into());
            }
            let (length, crc32) = writer.finish()?;
            files.push(RevisionFile { name, after, through: revision, length, crc32 });
        }
        let metadata = Some(metadata);
        Ok(Manifest { metadata, cluster_id: cluster, voters, learners: Vec::new(), files })
    }

    /// Makes a manifest, whose files' content is durable, the latest one.
    fn adopt(&mut self, manifest: Manifest) -> Result<&Manifest, SnapshotError> {
        // Its files are durable under their names before it is: names may become so in any order.
        self.disk.sync_dir(&self.directory)?;
        let (index, _) = position(&manifest);
        let mut bytes = MAGIC.to_vec();
        let body = manifest.encode_to_vec();
        bytes.put_u32_le(crc32fast::hash(&body));
        bytes.extend(body);
        let temporary = self.directory.join(format!("manifest{TEMPORARY}"));
        let file = self.disk.create(&temporary)?;
        file.write_at(&bytes, 0)?;
        file.sync()?;
        fail::fail_point!("snapshot_before_rename");
        self.disk.rename(&temporary, &self.directory.join(format!("{index:016x}{MANIFEST}")))?;
        // Whatever comes of the fsync, it may be found after a loss of power: what it names is not written anew.
        (self.latest, self.unsettled) = (Some(manifest), true);
        self.settle()?;
        fail::fail_point!("snapshot_after_rename");
        self.remove_unused()?;
        self.latest.as_ref().ok_or(SnapshotError::Malformed("no manifest"))
    }

    /// Makes the name of the latest one durable, if that failed.
    fn settle(&mut self) -> Result<(), SnapshotError> {
        if self.unsettled {
            self.disk.sync_dir(&self.directory)?;
            self.unsettled = false;
        }
        Ok(())
    }

    fn remove_unused(&mut self) -> Result<(), SnapshotError> {
        // Or the one before it, which may be found instead, would lack its files.
        self.settle()?;
        let current = self.latest.as_ref().map(|manifest| format!("{:016x}{MANIFEST}", position(manifest).0));
        for name in self.disk.list(&self.directory)? {
            let files = self.latest.iter().flat_map(|manifest| &manifest.files);
            let used = Some(&name) == current.as_ref() || files.into_iter().any(|file| file.name == name);
            let ours = [MANIFEST, FILE, TEMPORARY].iter().any(|suffix| name.ends_with(suffix));
            if ours && !used {
                self.disk.remove(&self.directory.join(name))?;
            }
        }
        Ok(())
    }

    /// Finds the newest snapshot and touches nothing.
    ///
    /// # Errors
    /// A manifest that is damaged, and the disk's.
    pub fn inspect(disk: Arc<dyn Disk>, directory: &Path) -> Result<Self, SnapshotError> {
        let names = disk.list(directory)?;
        let newest = names.iter().rfind(|name| name.ends_with(MANIFEST));
        let latest = newest.map(|name| read_manifest(&*disk, &directory.join(name))).transpose()?;
        Ok(Self { disk, directory: directory.to_owned(), latest, unsettled: false })
    }

    /// Reads every record of the latest snapshot, in the order of revisions.
    ///
    /// # Errors
    /// A damaged file, and what `visit` says.
    pub fn visit(
        &self,
        visit: &mut dyn FnMut(Revision, Record) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let mut files: Vec<_> = self.latest.iter().flat_map(|manifest| &manifest.files).collect();
        files.sort_by_key(|file| file.after);
        for file in files {
            let path = self.directory.join(&file.name);
            file::read(&*self.disk, &path, (file.length, file.crc32), visit).map_err(from_reading)?;
        }
        Ok(())
    }

    /// Fills an empty tree with what the latest snapshot holds. The applied index comes last: a tree without one is
    /// known to be unfinished.
    ///
    /// # Errors
    /// A damaged file, and the tree's.
    pub fn restore(&self, backend: &dyn Backend) -> Result<(), SnapshotError> {
        let Some(manifest) = &self.latest else { return Ok(()) };
        let mut batch: Vec<Change> = Vec::new();
        let (mut bytes, mut packer, mut last) = (0, Packer::default(), Revision::default());
        self.visit(&mut |revision, record| {
            if revision <= last {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "revisions out of order"));
            }
            last = revision;
            let put = |key: [u8; KEY_LENGTH], value: Vec<u8>| {
                bytes += key.len() + value.len();
                batch.push((key.to_vec(), Some(value)));
            };
            packer.add(revision, &record, put);
            if bytes > 1 << 20 {
                bytes = 0;
                backend.write(std::mem::take(&mut batch)).map_err(io::Error::other)?;
            }
            Ok(())
        })?;
        packer.finish(|key, value| batch.push((key.to_vec(), Some(value))));
        if let Some(metadata) = &manifest.metadata {
            batch.extend(metadata_changes(metadata));
        }
        let (index, term) = position(manifest);
        batch.push((APPLIED_KEY.to_vec(), Some(encode_applied(index, term))));
        Ok(backend.write(batch)?)
    }
}

fn from_reading(error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::InvalidData => SnapshotError::Damaged(error.to_string()),
        _ => SnapshotError::Io(error),
    }
}

fn read_manifest(disk: &dyn Disk, path: &Path) -> Result<Manifest, SnapshotError> {
    let bytes = env::read(disk, path)?;
    let damaged = || SnapshotError::Damaged(path.display().to_string());
    let mut rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    if rest.len() < 4 || rest.get_u32_le() != crc32fast::hash(rest) {
        return Err(damaged());
    }
    Manifest::decode(rest).map_err(|_| damaged())
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

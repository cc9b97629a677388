//! A snapshot saved to one file, as the stream of Maintenance.Snapshot gives it: the manifest with its length, the files,
//! zeros up to whole sectors, and the SHA-256 of all that.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use keelson_proto::etcd::storepb::{Manifest, Metadata};
use prost::Message;
use sha2::{Digest, Sha256};

use super::transfer::MAX_MANIFEST;
use super::{Receiver, SnapshotError, Snapshots, file, from_reading};
use crate::env::{Disk, File};
use crate::etcd_data::is_bbolt;
use crate::mvcc::{Record, Revision};
use crate::wal::Identity;

const SECTOR: u64 = 512;
const SUM: u64 = 32;
const PIECE: u64 = 256 << 10;
const CUT_SHORT: &str = "it ends early: it was cut short, and is of no use";

/// Whether a file of this length ends with a checksum.
pub fn has_checksum(length: u64) -> bool {
    length % SECTOR == SUM
}

pub struct Archive {
    path: PathBuf,
    file: Box<dyn File>,
    manifest: Manifest,
    length: u64,
    /// Where the files begin, one after the other, and where they end.
    begin: u64,
    end: u64,
}

impl Archive {
    /// Opens a saved snapshot and, unless told otherwise, checks its checksum.
    ///
    /// # Errors
    /// A file that is no such snapshot or is damaged, and the disk's.
    pub fn open(disk: &dyn Disk, path: &Path, check: bool) -> Result<Self, SnapshotError> {
        let refuse = |what| SnapshotError::NoArchive { path: path.to_owned(), what };
        let file = disk.open(path)?;
        let length = file.length()?;
        if is_bbolt(&*file)? {
            return Err(refuse(
                "it is a file of etcd's own (bbolt), which kube-store does not read: restore it with etcdutl, run that \
                 etcd and copy its keys with etcdctl make-mirror",
            ));
        }
        let mut word = [0; 4];
        if length == 0 {
            return Err(refuse("it is empty"));
        }
        if check && has_checksum(length) {
            check_sum(&*file, length).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => {
                    refuse("its checksum (SHA-256) is wrong: it is damaged or was cut short")
                }
                _ => error.into(),
            })?;
        }
        if length < 4 {
            return Err(refuse("it is no snapshot"));
        }
        file.read_at(&mut word, 0)?;
        let header = u32::from_le_bytes(word) as usize;
        if header > MAX_MANIFEST || 4 + header as u64 > length {
            return Err(refuse("it is no snapshot"));
        }
        let mut bytes = vec![0; header];
        file.read_at(&mut bytes, 4)?;
        let manifest = Manifest::decode(&bytes[..]).map_err(|_| refuse("it is no snapshot"))?;
        let begin = 4 + header as u64;
        let end = manifest.files.iter().try_fold(begin, |end, file| end.checked_add(file.length));
        match end.filter(|end| *end <= length && manifest.metadata.is_some()) {
            Some(_) if check && length.is_multiple_of(SECTOR) => {
                Err(refuse("it has no checksum; --skip-hash-check does without"))
            }
            Some(_) if check && !has_checksum(length) => Err(refuse(CUT_SHORT)),
            Some(end) => Ok(Self { path: path.to_owned(), file, manifest, length, begin, end }),
            None => Err(refuse(CUT_SHORT)),
        }
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn metadata(&self) -> Metadata {
        self.manifest.metadata.clone().unwrap_or_default()
    }

    /// Reads every record, checking each file's checksum.
    ///
    /// # Errors
    /// Damage, and the disk's.
    pub fn visit(
        &self,
        visit: &mut dyn FnMut(Revision, Record) -> io::Result<()>,
    ) -> Result<(), SnapshotError> {
        let mut start = self.begin;
        for file in &self.manifest.files {
            let expected = (file.length, file.crc32);
            file::read_within(&*self.file, &self.path, start, expected, visit).map_err(from_reading)?;
            start += file.length;
        }
        Ok(())
    }

    /// A checksum of its content.
    ///
    /// # Errors
    /// The disk's.
    pub fn checksum(&self) -> io::Result<u32> {
        let mut crc = crc32fast::Hasher::new();
        pieces(&*self.file, 0, self.end, |piece| {
            crc.update(&piece);
            Ok(())
        })?;
        Ok(crc.finalize())
    }

    /// Makes it the latest snapshot of a member, whose state it then is; the cluster is another one, so is the metadata.
    ///
    /// # Errors
    /// Damage, and the disk's.
    pub fn unpack(
        &self,
        snapshots: &mut Snapshots,
        Identity { cluster, member }: Identity,
        voters: Vec<u64>,
        metadata: Metadata,
    ) -> Result<(), SnapshotError> {
        let metadata = Some(metadata);
        let files = self.manifest.files.clone();
        let manifest = Manifest { metadata, cluster_id: cluster, voters, learners: Vec::new(), files };
        let mut receiver = Receiver::new(snapshots, 0);
        // It is no peer that sends this.
        let of_file = |error| match error {
            SnapshotError::Malformed(what) => SnapshotError::NoArchive { path: self.path.clone(), what },
            other => other,
        };
        let body = manifest.encode_to_vec();
        // As long as the one before, nearly: far below u32::MAX.
        receiver
            .push(Bytes::from([&(body.len() as u32).to_le_bytes()[..], &body].concat()))
            .map_err(of_file)?;
        let mut refused = None;
        let read = pieces(&*self.file, self.begin, self.end, |piece| {
            receiver.push(piece.into()).map_err(|error| {
                refused = Some(error);
                io::Error::other("refused")
            })
        });
        if let Some(error) = refused {
            return Err(of_file(error));
        }
        read?;
        receiver.finish(snapshots, cluster, member).map_err(of_file)?;
        Ok(())
    }
}

fn pieces(
    file: &dyn File,
    begin: u64,
    end: u64,
    mut take: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> io::Result<()> {
    let mut offset = begin;
    while offset < end {
        let length = PIECE.min(end - offset);
        let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_at(&mut piece, offset)?;
        take(piece)?;
        offset += length;
    }
    Ok(())
}

/// Checks the SHA-256 that a file of this length ends with.
fn check_sum(file: &dyn File, length: u64) -> io::Result<()> {
    let content = length.saturating_sub(SUM);
    let mut hasher = Sha256::new();
    pieces(file, 0, content, |piece| {
        hasher.update(&piece);
        Ok(())
    })?;
    let mut sum = [0; SUM as usize];
    file.read_at(&mut sum, content)?;
    if hasher.finalize()[..] == sum { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

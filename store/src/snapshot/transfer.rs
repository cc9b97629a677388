//! A snapshot on its way to a member that fell behind: the manifest, then its files, as one run of bytes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use keelson_proto::etcd::storepb::Manifest;
use keelson_raft::ConfState;
use prost::Message;

use super::{FILE, PART, SnapshotError, Snapshots, conf_state, file, position};
use crate::env::{Disk, File};

/// Bytes per piece.
const PIECE: usize = 256 << 10;
pub(super) const MAX_MANIFEST: usize = 64 << 20;

/// A snapshot being read for a peer. Its files stay readable when newer snapshots have replaced it.
pub struct Outgoing {
    manifest: Manifest,
    header: Option<Bytes>,
    files: Vec<(Box<dyn File>, u64)>,
    offset: u64,
}

impl Outgoing {
    /// The latest one.
    ///
    /// # Errors
    /// That there is none, and the disk's.
    pub fn open(snapshots: &Snapshots) -> Result<Self, SnapshotError> {
        let manifest = snapshots.latest().cloned().ok_or(SnapshotError::Malformed("there is none"))?;
        let mut files = Vec::new();
        for file in manifest.files.iter().rev() {
            files.push((snapshots.disk.open(&snapshots.directory.join(&file.name))?, file.length));
        }
        let body = manifest.encode_to_vec();
        let mut header = BytesMut::with_capacity(4 + body.len());
        // Bounded by the number of leases and files, far below u32::MAX.
        header.extend_from_slice(&(body.len() as u32).to_le_bytes());
        header.extend_from_slice(&body);
        Ok(Self { manifest, header: Some(header.freeze()), files, offset: 0 })
    }

    /// The (index, term) that it stands at.
    pub fn position(&self) -> (u64, u64) {
        position(&self.manifest)
    }

    /// Raft's configuration there.
    pub fn conf_state(&self) -> ConfState {
        conf_state(&self.manifest)
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        let header = self.header.as_ref().map_or(0, |header| header.len() as u64);
        let files: u64 = self.files.iter().map(|(_, length)| length).sum();
        header + files - self.offset
    }

    /// The next piece, or none at the end.
    ///
    /// # Errors
    /// The disk's.
    pub fn piece(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        if let Some(header) = self.header.take() {
            return Ok(Some(header));
        }
        while let Some((file, length)) = self.files.last() {
            let left = usize::try_from(length - self.offset).unwrap_or(PIECE).min(PIECE);
            if left == 0 {
                self.files.pop();
                self.offset = 0;
                continue;
            }
            let mut piece = vec![0; left];
            file.read_at(&mut piece, self.offset)?;
            self.offset += left as u64;
            return Ok(Some(piece.into()));
        }
        Ok(None)
    }
}

/// A snapshot being received. Nothing of it counts, or is left, until [`Self::finish`].
pub struct Receiver {
    disk: Arc<dyn Disk>,
    directory: std::path::PathBuf,
    header: BytesMut,
    manifest: Option<Manifest>,
    /// Which file is being written, and how far.
    current: usize,
    file: Option<Box<dyn File>>,
    offset: u64,
    crc: crc32fast::Hasher,
    serial: u64,
}

impl Receiver {
    /// `serial` tells apart the files of several attempts.
    pub fn new(snapshots: &Snapshots, serial: u64) -> Self {
        Self {
            disk: snapshots.disk.clone(),
            directory: snapshots.directory.clone(),
            header: BytesMut::new(),
            manifest: None,
            current: 0,
            file: None,
            offset: 0,
            crc: crc32fast::Hasher::new(),
            serial,
        }
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// Bytes that are no snapshot, and the disk's.
    pub fn push(&mut self, mut piece: Bytes) -> Result<(), SnapshotError> {
        file::check_room(&*self.disk, &self.directory)?;
        if self.manifest.is_none() {
            self.header.extend_from_slice(&piece);
            let Some(length) =
                self.header.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
            else {
                return Ok(());
            };
            if length > MAX_MANIFEST {
                return Err(SnapshotError::Malformed("its manifest is too long"));
            }
            if self.header.len() < 4 + length {
                return Ok(());
            }
            let mut header = self.header.split().freeze();
            piece = header.split_off(4 + length);
            let mut manifest = Manifest::decode(header.slice(4..))
                .map_err(|_| SnapshotError::Malformed("its manifest cannot be decoded"))?;
            let index = position(&manifest).0;
            for (place, file) in manifest.files.iter_mut().enumerate() {
                // Never a name of the sender's choice.
                file.name = format!("{index:016x}-{:x}-{place:x}{FILE}", self.serial);
            }
            self.manifest = Some(manifest);
        }
        while !piece.is_empty() {
            let Some(wanted) = self.manifest.as_ref().and_then(|manifest| manifest.files.get(self.current))
            else {
                return Err(SnapshotError::Malformed("there is more than its manifest names"));
            };
            let left = usize::try_from(wanted.length - self.offset).unwrap_or(usize::MAX);
            let part = piece.split_to(left.min(piece.len()));
            let (length, crc) = (wanted.length, wanted.crc32);
            let path = self.directory.join(format!("{}{PART}", wanted.name));
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(self.disk.create(&path)?),
            };
            file.write_at(&part, self.offset)?;
            self.crc.update(&part);
            self.offset += part.len() as u64;
            if self.offset == length {
                file.sync()?;
                if std::mem::take(&mut self.crc).finalize() != crc {
                    return Err(SnapshotError::Malformed("a file's checksum is wrong"));
                }
                (self.file, self.offset) = (None, 0);
                self.current += 1;
            }
        }
        Ok(())
    }

    /// Everything has come: makes it this member's latest snapshot, durably, unless it has a newer one. Gives the position
    /// and the configuration of whichever is the latest then, since that is what is installed.
    ///
    /// # Errors
    /// A snapshot that is not whole, another cluster's, one in which `member` is none, and the disk's.
    pub fn finish(
        self,
        snapshots: &mut Snapshots,
        cluster: u64,
        member: u64,
    ) -> Result<(u64, u64, ConfState), SnapshotError> {
        let manifest =
            self.manifest.clone().ok_or(SnapshotError::Malformed("it ended before its manifest"))?;
        if manifest.cluster_id != cluster {
            return Err(SnapshotError::Foreign(manifest.cluster_id));
        }
        if self.current != manifest.files.len() {
            return Err(SnapshotError::Malformed("it ended early"));
        }
        let (index, term) = position(&manifest);
        let conf_state = conf_state(&manifest);
        let ConfState { voters, learners, voters_outgoing, .. } = &conf_state;
        if ![voters, learners, voters_outgoing].iter().any(|ids| ids.contains(&member)) {
            return Err(SnapshotError::Malformed("this member is not in its configuration"));
        }
        if let Some(latest) = snapshots.latest().filter(|latest| position(latest).0 >= index) {
            let ((index, term), conf_state) = (position(latest), super::conf_state(latest));
            snapshots.settle()?;
            return Ok((index, term, conf_state));
        }
        for file in &manifest.files {
            let part = self.directory.join(format!("{}{PART}", file.name));
            self.disk.rename(&part, &self.directory.join(&file.name))?;
        }
        snapshots.adopt(manifest)?;
        Ok((index, term, conf_state))
    }
}

impl Drop for Receiver {
    /// A peer tries again and again: what came of one attempt must not fill the disk.
    fn drop(&mut self) {
        let files = self.manifest.iter().flat_map(|manifest| &manifest.files);
        for file in files.take(self.current + 1) {
            // Those that were renamed are gone already.
            let _ = self.disk.remove(&self.directory.join(format!("{}{PART}", file.name)));
        }
    }
}

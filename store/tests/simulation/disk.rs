//! A disk that keeps only what was synced, and fails when told to.
//!
//! A file has what is durable and the writes since its last sync; a directory has its durable names and what was done
//! since its last sync. A loss of power keeps any of the sectors written and not synced, and of a directory's changes a
//! beginning, as most file systems do, or any of them. A process that is killed loses nothing that it wrote.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube_store::env::{Disk, File};
use kube_store::mvcc::{Backend, BackendError, Change};
use parking_lot::Mutex;

use crate::random::Random;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
/// Batches of a tree that a loss of power may take back.
const UNSURE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The process ended; the system lives on.
    Process,
    Power,
}

enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
    /// Bits that have flipped and were not written anew.
    flipped: Vec<usize>,
}

/// A bit of a file that has flipped.
pub struct Flip {
    /// It is in the write-ahead log.
    pub in_log: bool,
    inode: Shared,
    place: usize,
}

fn write(content: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Inode {
    fn flip(&mut self, place: usize) {
        for content in [&mut self.current, &mut self.durable] {
            if let Some(byte) = content.get_mut(place / 8) {
                *byte ^= 1 << (place % 8);
            }
        }
    }

    fn sync(&mut self) {
        for pending in self.pending.drain(..) {
            match pending {
                Pending::Write(offset, bytes) => write(&mut self.durable, &bytes, offset as usize),
                Pending::Length(length) => self.durable.resize(length as usize, 0),
            }
        }
    }

    /// Counts the writes that are torn, and those that are lost.
    fn lose_power(&mut self, random: &mut Random, told: &mut Told) {
        // All, nothing, or any of it.
        let keep = [100, 0, 50, 50][random.index(4)];
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Length(length) if random.percent(keep) => {
                    self.durable.resize(length as usize, 0);
                }
                Pending::Length(_) => {}
                Pending::Write(offset, bytes) => {
                    let (mut at, mut kept, mut lost) = (0, 0, 0);
                    while at < bytes.len() {
                        let start = offset as usize + at;
                        let end = (at + SECTOR - start % SECTOR).min(bytes.len());
                        if random.percent(keep) {
                            write(&mut self.durable, &bytes[at..end], start);
                            kept += 1;
                        } else {
                            lost += 1;
                        }
                        at = end;
                    }
                    told.torn += u64::from(kept > 0 && lost > 0);
                    told.lost += u64::from(kept == 0);
                }
            }
        }
        self.current = self.durable.clone();
    }
}

type Shared = Arc<Mutex<Inode>>;
type Names = BTreeMap<String, Shared>;

enum Named {
    Link(String, Shared),
    Unlink(String),
    Rename(String, String, Shared),
}

#[derive(Default)]
struct Directory {
    durable: Names,
    current: Names,
    pending: Vec<Named>,
}

impl Directory {
    fn settle(&mut self, mut keeps: impl FnMut(usize) -> bool) {
        for (place, named) in self.pending.drain(..).enumerate() {
            if !keeps(place) {
                continue;
            }
            match named {
                Named::Link(name, inode) => {
                    self.durable.insert(name, inode);
                }
                Named::Unlink(name) => {
                    self.durable.remove(&name);
                }
                Named::Rename(from, to, inode) => {
                    self.durable.remove(&from);
                    self.durable.insert(to, inode);
                }
            }
        }
    }
}

/// A tree of values: sled's place.
#[derive(Default)]
struct Tree {
    /// What no loss takes back.
    base: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Batches behind it.
    batches: Vec<Vec<Change>>,
    current: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes ever written to it: it never gives any back.
    written: u64,
}

fn change(tree: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: &[Change]) {
    for (key, value) in batch {
        match value {
            Some(value) => tree.insert(key.clone(), value.clone()),
            None => tree.remove(key),
        };
    }
}

/// What the disk does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Operations after which the machine, or the process, ends in the middle of what it does.
    pub fuse: Option<u64>,
    pub fail_writes: bool,
    pub fail_syncs: bool,
    /// Bytes left on it; None: plenty.
    pub room: Option<u64>,
}

/// What it did wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct Told {
    pub failed_writes: u64,
    pub failed_syncs: u64,
    pub full: u64,
    pub torn: u64,
    pub lost: u64,
}

#[derive(Default)]
struct State {
    directories: BTreeMap<PathBuf, Directory>,
    trees: BTreeMap<PathBuf, Arc<Mutex<Tree>>>,
    /// Trees that cannot be opened any more.
    damaged: Vec<PathBuf>,
    faults: Faults,
    blown: bool,
    operations: u64,
    told: Told,
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        if self.blown {
            return Err(io::Error::other("the process is gone"));
        }
        self.operations += 1;
        if let Some(left) = &mut self.faults.fuse {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => {
                    self.blown = true;
                    return Err(io::Error::other("the process is gone"));
                }
            }
        }
        Ok(())
    }

    fn change(&mut self) -> io::Result<()> {
        self.step()?;
        if self.faults.fail_writes {
            self.told.failed_writes += 1;
            return Err(io::Error::other("input/output error"));
        }
        Ok(())
    }

    fn check_sync(&mut self) -> io::Result<()> {
        self.step()?;
        if self.faults.fail_syncs {
            self.told.failed_syncs += 1;
            return Err(io::Error::other("input/output error"));
        }
        Ok(())
    }

    fn take_room(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.faults.room {
            Some(room) if *room < bytes => {
                self.told.full += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(room) => {
                *room -= bytes;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The disk of one member; it outlives the member's lives.
#[derive(Clone, Default)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

impl SimulatedDisk {
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// Whether the fuse has blown: the member has to be ended.
    pub fn is_blown(&self) -> bool {
        self.0.lock().blown
    }

    /// What it did wrong since it was asked last.
    pub fn told(&self) -> Told {
        std::mem::take(&mut self.0.lock().told)
    }

    /// Operations so far, for the trace.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// What is found after the end of a process; faults are over.
    pub fn end(&self, loss: Loss, random: &mut Random) {
        let mut state = self.0.lock();
        (state.faults, state.blown) = (Faults::default(), false);
        if loss == Loss::Process {
            return;
        }
        let State { directories, told, .. } = &mut *state;
        for directory in directories.values_mut() {
            let beginning = random.index(directory.pending.len() + 1);
            match random.below(3) {
                0 => directory.settle(|_| true),
                1 => directory.settle(|place| place < beginning),
                _ => directory.settle(|_| random.one_in(2)),
            }
            directory.current = directory.durable.clone();
            for inode in directory.durable.values() {
                inode.lock().lose_power(random, told);
            }
        }
        let mut damaged = Vec::new();
        for (path, tree) in &state.trees {
            let mut tree = tree.lock();
            let keep = match random.below(3) {
                0 => tree.batches.len(),
                _ => random.index(tree.batches.len() + 1),
            };
            tree.batches.truncate(keep);
            tree.current = tree.base.clone();
            let Tree { current, batches, .. } = &mut *tree;
            batches.iter().for_each(|batch| change(current, batch));
            match random.below(20) {
                0 => damaged.push(path.clone()),
                1 => *tree = Tree::default(),
                _ => {}
            }
        }
        state.damaged.extend(damaged);
    }

    /// Opens a tree as sled would.
    pub fn open_tree(&self, path: &Path) -> Result<Arc<dyn Backend>, BackendError> {
        let mut state = self.0.lock();
        if state.damaged.iter().any(|damaged| damaged == path) {
            return Err(BackendError::Damaged(0));
        }
        let tree = state.trees.entry(path.to_owned()).or_default().clone();
        Ok(Arc::new(SimulatedTree { tree, disk: self.clone() }))
    }

    /// Flips a bit of a file whose name ends so, if there is one with content.
    pub fn flip(&self, suffix: &str, random: &mut Random) -> Option<Flip> {
        let state = self.0.lock();
        let mut files = Vec::new();
        for directory in state.directories.values() {
            let named = directory.current.iter().filter(|(name, _)| name.ends_with(suffix));
            files.extend(named.map(|(_, inode)| inode.clone()));
        }
        if files.is_empty() {
            return None;
        }
        // The newest file, and the end of one, are where most happens.
        let last = files.len() - 1;
        let chosen = if random.one_in(3) { last } else { random.index(files.len()) };
        let inode = files.swap_remove(chosen);
        drop(state);
        let mut content = inode.lock();
        let length = content.current.iter().rposition(|byte| *byte != 0)? + 1;
        let within = if random.one_in(3) { length.min(SECTOR) } else { length };
        let place = (length - 1 - random.index(within)) * 8 + random.index(8);
        content.flip(place);
        content.flipped.push(place);
        drop(content);
        Some(Flip { in_log: suffix == ".wal", inode, place })
    }
}

impl Flip {
    /// The operator brings the file back, if it is still what it was: its name may be another's by now.
    pub fn mend(self) {
        let mut inode = self.inode.lock();
        if let Some(known) = inode.flipped.iter().position(|place| *place == self.place) {
            inode.flipped.swap_remove(known);
            inode.flip(self.place);
        }
    }
}

fn split(path: &Path) -> io::Result<(PathBuf, String)> {
    let parent = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
    Ok((parent.to_owned(), name.to_string_lossy().into_owned()))
}

impl State {
    fn directory(&mut self, path: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode(&self, path: &Path) -> io::Result<Shared> {
        let (parent, name) = split(path)?;
        let found = self.directories.get(&parent).and_then(|directory| directory.current.get(&name));
        found.cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for SimulatedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        // Durable, as the trait asks for.
        state.directories.entry(path.to_owned()).or_default();
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.0.lock();
        state.step()?;
        let files = state.directories.get(path).into_iter().flat_map(|directory| directory.current.keys());
        let mut names: Vec<String> = files.cloned().collect();
        let trees = state.trees.keys().filter(|tree| tree.parent() == Some(path));
        names.extend(trees.filter_map(|tree| Some(tree.file_name()?.to_string_lossy().into_owned())));
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.0.lock();
        state.step()?;
        Ok(Box::new(SimulatedFile { inode: state.inode(path)?, disk: self.clone() }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.0.lock();
        state.change()?;
        let (parent, name) = split(path)?;
        let directory = state.directory(&parent)?;
        let inode = match directory.current.get(&name) {
            Some(inode) => {
                let inode = inode.clone();
                let mut content = inode.lock();
                content.current.clear();
                content.flipped.clear();
                content.pending.push(Pending::Length(0));
                drop(content);
                inode
            }
            None => {
                let inode = Shared::default();
                directory.current.insert(name.clone(), inode.clone());
                directory.pending.push(Named::Link(name, inode.clone()));
                inode
            }
        };
        Ok(Box::new(SimulatedFile { inode, disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        let ((parent, from), (_, to)) = (split(from)?, split(to)?);
        let directory = state.directory(&parent)?;
        let inode = directory.current.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        directory.current.insert(to.clone(), inode.clone());
        directory.pending.push(Named::Rename(from, to, inode));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        let (parent, name) = split(path)?;
        let directory = state.directory(&parent)?;
        directory.current.remove(&name).ok_or(io::ErrorKind::NotFound)?;
        directory.pending.push(Named::Unlink(name));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.change()?;
        state.trees.remove(path);
        state.damaged.retain(|damaged| damaged != path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.check_sync()?;
        let directory = state.directory(path)?;
        directory.settle(|_| true);
        Ok(())
    }

    fn available(&self, _: &Path) -> io::Result<u64> {
        Ok(self.0.lock().faults.room.unwrap_or(1 << 40))
    }
}

struct SimulatedFile {
    inode: Shared,
    disk: SimulatedDisk,
}

impl File for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.inode.lock().current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.0.lock().step()?;
        let inode = self.inode.lock();
        let start = offset as usize;
        let found = inode.current.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let result = {
            let mut state = self.disk.0.lock();
            let more = (offset + bytes.len() as u64).saturating_sub(self.length()?);
            state.change().and_then(|()| state.take_room(more))
        };
        // One that fails, or in the middle of which the process ends, may have written a part: the system takes it page
        // by page.
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        let middle = ((start + end) / 2 / SECTOR * SECTOR).max((start + 1).next_multiple_of(SECTOR));
        let part = if middle < end { middle - start } else { 0 };
        let count = if result.is_ok() { bytes.len() } else { part };
        let is_gone = self.disk.is_blown();
        if is_gone && count > 0 {
            self.disk.0.lock().told.torn += 1;
        }
        if result.is_ok() || is_gone {
            let part = &bytes[..count];
            let mut inode = self.inode.lock();
            write(&mut inode.current, part, offset as usize);
            let written = offset as usize..offset as usize + count;
            inode.flipped.retain(|place| !written.contains(&(place / 8)));
            inode.pending.push(Pending::Write(offset, part.to_vec()));
        }
        result
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.change()?;
        let mut inode = self.inode.lock();
        state.take_room(length.saturating_sub(inode.current.len() as u64))?;
        if inode.current.len() < length as usize {
            inode.current.resize(length as usize, 0);
            inode.pending.push(Pending::Length(length));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check_sync()?;
        self.inode.lock().sync();
        Ok(())
    }
}

struct SimulatedTree {
    tree: Arc<Mutex<Tree>>,
    disk: SimulatedDisk,
}

impl Backend for SimulatedTree {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(self.tree.lock().current.get(key).cloned())
    }

    fn at_or_before(&self, key: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BackendError> {
        if let Some((key, value)) = self.tree.lock().current.range(..=key.to_vec()).next_back() {
            visit(key, value);
        }
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackendError> {
        let tree = self.tree.lock();
        let _ = tree.current.range(from.to_vec()..to.to_vec()).all(|(key, value)| visit(key, value));
        Ok(())
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), BackendError> {
        // sled's errors are its own type; only that there is one matters.
        self.disk.0.lock().change().map_err(|_| BackendError::Damaged(-1))?;
        let mut tree = self.tree.lock();
        change(&mut tree.current, &batch);
        let value = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        tree.written += batch.iter().map(|(key, new)| (key.len() + value(new)) as u64).sum::<u64>();
        tree.batches.push(batch);
        if tree.batches.len() > UNSURE {
            let oldest = tree.batches.remove(0);
            change(&mut tree.base, &oldest);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        // Only hands everything to the system: a loss of power may take it back.
        self.disk.0.lock().change().map_err(|_| BackendError::Damaged(-1))
    }

    fn size(&self) -> u64 {
        self.tree.lock().written
    }
}

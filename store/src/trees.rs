//! Directories of trees of values: which one is in use, which may be built beside it, and which may go.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;

use parking_lot::{Mutex, MutexGuard};

use crate::env::{Disk, Env, OpenTree};
use crate::mvcc::{Backend, BackendError, Loaded, load};
use crate::node::Chain;
use crate::snapshot::{SnapshotError, Snapshots};
use crate::start::StartError;

/// Directories of trees: while one is in use, another can be built beside it.
#[derive(Clone)]
pub struct Trees {
    disk: Arc<dyn Disk>,
    open_tree: Arc<OpenTree>,
    directory: PathBuf,
    numbers: Arc<Mutex<Numbers>>,
}

/// Which trees there are.
#[derive(Default)]
pub(crate) struct Numbers {
    /// The highest ever given.
    last: u64,
    pub(crate) in_use: u64,
    /// Being built beside it.
    building: Option<u64>,
}

impl Numbers {
    /// The tree beside is in use now, or was given up. Returns the one that is of no use any more.
    pub(crate) fn end(&mut self, number: u64, switched: bool) -> u64 {
        self.building = None;
        if switched { std::mem::replace(&mut self.in_use, number) } else { number }
    }
}

/// A tree with what it says.
pub(crate) type Tree = (Loaded, Arc<dyn Backend>);

/// Whether a tree has to be built anew for its size: sled never gives back what it once took.
fn is_bloated(size: u64, in_use: u64) -> bool {
    size > 4 * in_use + tree_slack()
}

/// Bytes that a tree may always take.
fn tree_slack() -> u64 {
    const SLACK: u64 = 512 << 20;
    // Tests need not write that much.
    fail::fail_point!("tree_slack", |bytes| bytes
        .and_then(|bytes: String| bytes.parse().ok())
        .unwrap_or(SLACK));
    SLACK
}

const TREE: &str = "tree-";
/// Bytes that have to be free on the disk for the tree to be written: some batches, which go there a little later.
pub(crate) const TREE_SPACE: u64 = 16 << 20;
/// Trees are numbered from 1.
const NO_TREE: u64 = 0;

/// The trees in a directory, ascending.
pub(crate) fn tree_numbers(disk: &dyn Disk, directory: &Path) -> io::Result<Vec<u64>> {
    let names = disk.list(directory)?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix(TREE)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(crate) fn tree_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{TREE}{number}"))
}

impl Trees {
    /// Those in a directory, which is made if it is not there.
    pub(crate) fn new(env: &Env, directory: PathBuf) -> Result<Self, StartError> {
        let (disk, open_tree) = (env.disk.clone(), env.open_tree.clone());
        disk.create_dir(&directory).map_err(|error| StartError::Directory(directory.clone(), error))?;
        Ok(Self { disk, open_tree, directory, numbers: Arc::default() })
    }

    /// A number that no tree has or had.
    fn give(&self, numbers: &mut Numbers) -> io::Result<u64> {
        let highest = self.numbers()?.last().copied().unwrap_or(NO_TREE);
        numbers.last = numbers.last.max(highest) + 1;
        Ok(numbers.last)
    }

    /// A place for a tree beside the one in use.
    pub(crate) fn begin(&self) -> io::Result<(u64, PathBuf)> {
        let mut numbers = self.numbers.lock();
        let number = self.give(&mut numbers)?;
        numbers.building = Some(number);
        Ok((number, self.path(number)))
    }

    /// Does what may put another tree in use; who the tree in use is changes only under this lock.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock()
    }

    pub(crate) fn remove(&self, path: &Path) {
        if let Err(error) = self.disk.remove_dir(path) {
            tracing::warn!(%error, "cannot remove an old tree of values");
        }
    }

    /// An error is not taken for a full disk.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.disk.available(&self.directory).map_or(true, |available| available >= bytes)
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        tree_numbers(&*self.disk, &self.directory)
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        tree_path(&self.directory, number)
    }

    /// Opens a tree, or creates an empty one.
    pub(crate) fn open_tree(&self, path: &Path) -> Result<Arc<dyn Backend>, BackendError> {
        (self.open_tree)(path)
    }

    /// Removes all trees; none may be open.
    pub(crate) fn remove_all(&self) {
        self.remove_but(NO_TREE);
    }

    /// The newest tree that is whole and at or behind `from`, which the log reaches back to; and the last entry that any
    /// tree has, of use or not. Bloated ones are of use if they are `final_use`, with which all trees go.
    pub(crate) fn open(&self, from: u64, final_use: bool) -> Result<(Option<Tree>, u64), StartError> {
        let numbers = self.numbers().map_err(|error| StartError::Directory(self.directory.clone(), error))?;
        let mut last = 0;
        for number in numbers.into_iter().rev() {
            let path = self.path(number);
            let read = read_tree(self.open_tree.clone(), path)?;
            last = read.as_ref().map_or(0, |(loaded, _)| loaded.applied.0).max(last);
            match read {
                Ok((loaded, backend)) if !final_use && is_bloated(backend.size(), loaded.in_use) => {
                    tracing::warn!(
                        size = backend.size(),
                        in_use = loaded.in_use,
                        "the tree of values takes much more than what is in it: it is built anew"
                    )
                }
                Ok((loaded, backend)) if loaded.applied.0 >= from && !loaded.unfinished => {
                    self.numbers.lock().in_use = number;
                    self.remove_but(number);
                    return Ok((Some((loaded, backend)), last));
                }
                Ok((loaded, _)) => tracing::warn!(
                    applied = loaded.applied.0,
                    needed = from,
                    "the tree of values is unfinished or older than the snapshot: it is built anew"
                ),
                Err(error) => tracing::warn!(error, "the tree of values is damaged: it is built anew"),
            }
        }
        Ok((None, last))
    }

    /// A fresh tree, filled from the snapshot.
    pub(crate) fn build(&self, snapshots: &Snapshots) -> Result<(Tree, u64), SnapshotError> {
        let number = self.give(&mut self.lock())?;
        let backend = self.open_tree(&self.path(number))?;
        snapshots.restore(&*backend)?;
        let loaded = load(&backend)?;
        Ok(((loaded, backend), number))
    }

    /// Removes all trees that are not in use and will not be; [`NO_TREE`] is none of them.
    pub(crate) fn remove_but(&self, keep: u64) {
        let numbers = self.numbers().unwrap_or_default();
        let building = self.numbers.lock().building;
        for number in numbers.into_iter().filter(|number| *number != keep && Some(*number) != building) {
            self.remove(&self.path(number));
        }
    }
}

/// Opens and reads a tree on a thread of its own: sled panics at some damages instead of telling, and what it then
/// leaves locked must not be this thread's.
pub(crate) fn read_tree(open_tree: Arc<OpenTree>, path: PathBuf) -> Result<Result<Tree, String>, StartError> {
    let (found, wait) = channel();
    let read = move || {
        let opened = open_tree(&path).and_then(|backend| Ok((load(&backend)?, backend)));
        // Its receiver waits.
        let _ = found.send(opened.map_err(|error| Chain(&error).to_string()));
    };
    std::thread::Builder::new().name("open".into()).spawn(read).map_err(StartError::Thread)?;
    Ok(wait.recv().unwrap_or_else(|_| Err("reading it panicked".to_owned())))
}

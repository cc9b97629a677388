//! `kube-store verify`: whether log, snapshot and tree of a member that does not run agree, without changing anything.
//!
//! Every checksum is checked; then the snapshot is loaded into a scratch tree, the log's entries are applied to it, and
//! the outcome is compared with the member's tree (of which a copy is read: to open it would change it).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::apply::State;
use crate::env::{Env, ReadOnlyDisk};
use crate::etcd_data;
use crate::mvcc::{Backend, Hash, MvccError, SledBackend, Store, Values, load};
use crate::node::Chain;
use crate::recovery::{RecoveryError, Replay};
use crate::snapshot::{self, SnapshotError, Snapshots};
use crate::trees::{Tree, read_tree, tree_numbers, tree_path};
use crate::wal::{self, Inspected, WAY_OUT, WalError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is in use: stop the member first", .0.display())]
    InUse(PathBuf),
    #[error("{} is no data directory of kube-store", .0.display())]
    NoData(PathBuf),
    #[error("{} is a data directory of etcd's own: {}", .0.display(), etcd_data::ADVICE)]
    Etcds(PathBuf),
    #[error("cannot make the scratch directory; --scratch-dir names another place")]
    Scratch(#[source] io::Error),
    #[error("the snapshot is damaged")]
    Snapshot(#[from] SnapshotError),
    #[error("the log is damaged")]
    Wal(#[from] WalError),
    #[error("the log cannot be applied to the snapshot")]
    Replay(#[from] RecoveryError),
    #[error("a tree cannot be read")]
    Tree(#[from] MvccError),
    #[error("inconsistent: {0}")]
    Inconsistent(String),
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// The data directory of a member that does not run
    #[arg(long)]
    data_dir: PathBuf,
    /// Where copies are made, which take about as much space as the data
    #[arg(long)]
    scratch_dir: Option<PathBuf>,
}

/// A directory that goes with it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is for the system to clean up.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Arguments {
    pub fn run(self) -> Result<(), Error> {
        let directory = &self.data_dir;
        let _lock = lock(directory)?;
        let member = directory.join("member");
        let etcds = etcd_data::is_etcds(&ReadOnlyDisk, &member);
        if etcds.map_err(|error| Error::Read(member.clone(), error))? {
            return Err(Error::Etcds(directory.clone()));
        }
        println!("data      {}", directory.display());

        let disk = Arc::new(ReadOnlyDisk);
        let snapshots = Snapshots::inspect(disk.clone(), &member.join("snap"))?;
        let position = match snapshots.latest() {
            Some(manifest) => {
                let mut records = 0u64;
                snapshots.visit(&mut |_, _| {
                    records += 1;
                    Ok(())
                })?;
                let (index, term) = snapshot::position(manifest);
                let files = manifest.files.len();
                println!("snapshot  entry {index} of term {term}; {files} files, {records} changes: ok");
                (index, term)
            }
            None => {
                println!("snapshot  none");
                (0, 0)
            }
        };
        let log = wal::inspect(&*disk, &member.join("wal"), 0)?;
        check_log(&log, position, snapshots.latest().map(|manifest| manifest.cluster_id))?;

        let scratch = self.scratch_dir.unwrap_or_else(std::env::temp_dir);
        let scratch = Scratch(scratch.join(format!("kube-store-verify-{}", std::process::id())));
        fs::create_dir_all(&scratch.0).map_err(Error::Scratch)?;
        let Some((loaded, backend)) = copied_tree(&member.join("tree"), &scratch.0, position.0)? else {
            println!("consistent");
            return Ok(());
        };
        let applied = loaded.applied;
        let last = log.recovered.last_index().max(position.0);
        if applied.0 > last {
            let what = format!(
                "the tree stands at entry {}, the log ends at {last}: it lost entries. {WAY_OUT}",
                applied.0
            );
            return Err(Error::Inconsistent(what));
        }
        let tree = state_of((loaded, backend))?;
        compare(&tree, &scratch.0, &snapshots, &log, applied.0)?;
        println!("consistent");
        Ok(())
    }
}

/// None: no process has used it yet.
fn lock(directory: &Path) -> Result<Option<fs::File>, Error> {
    let path = directory.join("lock");
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Restored, and not started since.
            return match directory.join("member").is_dir() {
                true => Ok(None),
                false => Err(Error::NoData(directory.to_owned())),
            };
        }
        other => other.map_err(|error| Error::Read(path.clone(), error))?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(Error::Read(path, error)),
    }
}

fn check_log(log: &Inspected, snapshot: (u64, u64), cluster: Option<u64>) -> Result<(), Error> {
    let Inspected { recovered, identity, segments, bytes } = log;
    let Some(identity) = identity else {
        println!("log       none");
        return Ok(());
    };
    let inconsistent = |what: String| Err(Error::Inconsistent(what));
    let (first, last) = (recovered.before.0 + 1, recovered.last_index());
    if let Some(cluster) = cluster.filter(|cluster| *cluster != identity.cluster) {
        return inconsistent(format!(
            "the snapshot is of cluster {cluster:x}, the log of {:x}",
            identity.cluster
        ));
    }
    if first > snapshot.0 + 1 {
        return inconsistent(format!(
            "the log begins at entry {first}, the snapshot ends at {}: entries between are missing",
            snapshot.0
        ));
    }
    let mut term = recovered.before.1;
    for entry in &recovered.entries {
        if entry.term < term {
            return inconsistent(format!(
                "entry {} is of term {}, one before it of {term}",
                entry.index, entry.term
            ));
        }
        term = entry.term;
    }
    if let Some(entry) = recovered.entries.iter().find(|entry| entry.index == snapshot.0)
        && entry.term != snapshot.1
    {
        return inconsistent(format!(
            "entry {} is of term {}, but in the snapshot of {}",
            entry.index, entry.term, snapshot.1
        ));
    }
    let torn = match recovered.torn {
        0 => String::new(),
        torn => format!(" (an unfinished last write of {torn} bytes, which a start cuts off)"),
    };
    println!(
        "log       member {:x} of cluster {:x}; {segments} segments, {bytes} bytes; entries {first} to {last} (of term \
         {term}), term {}, commit {}: ok{torn}",
        identity.member, identity.cluster, recovered.hard_state.term, recovered.hard_state.commit
    );
    Ok(())
}

/// The tree that a start would take, as a copy.
fn copied_tree(trees: &Path, scratch: &Path, from: u64) -> Result<Option<Tree>, Error> {
    let read = |error| Error::Read(trees.to_owned(), error);
    let Some(newest) = tree_numbers(&ReadOnlyDisk, trees).map_err(read)?.pop() else {
        println!("tree      none: a start builds it");
        return Ok(None);
    };
    let (source, copy) = (tree_path(trees, newest), scratch.join("copy"));
    copy_directory(&source, &copy).map_err(Error::Scratch)?;
    match read_tree(Env::real().open_tree, copy)
        .map_err(|error| Error::Inconsistent(Chain(&error).to_string()))?
    {
        Err(error) => Err(Error::Inconsistent(format!(
            "{} is damaged: {error}; a start builds it anew",
            source.display()
        ))),
        Ok((loaded, _)) if loaded.applied.0 < from || loaded.unfinished => {
            println!(
                "tree      {} is unfinished or older than the snapshot: a start builds it anew",
                source.display()
            );
            Ok(None)
        }
        Ok((loaded, backend)) => {
            let (index, keys) = (loaded.applied.0, loaded.index.key_count());
            println!(
                "tree      {}: entry {index}, revision {}, {keys} keys: ok",
                source.display(),
                loaded.index.revision
            );
            Ok(Some((loaded, backend)))
        }
    }
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

fn state_of((loaded, backend): Tree) -> Result<Arc<State>, Error> {
    let values = Values::new(backend, loaded.applied.0);
    let store = Store::new(loaded.index, values, loaded.in_use);
    State::new(store, loaded.leases, Default::default(), loaded.applied.0)
        .map_err(|error| Error::Tree(error.into()))
}

/// Applies the log to the snapshot, up to the entry that the tree stands at, and compares.
fn compare(
    tree: &State,
    scratch: &Path,
    snapshots: &Snapshots,
    log: &Inspected,
    through: u64,
) -> Result<(), Error> {
    let backend: Arc<dyn Backend> =
        Arc::new(SledBackend::open(&scratch.join("replay")).map_err(SnapshotError::from)?);
    snapshots.restore(&*backend)?;
    let loaded = load(&backend).map_err(SnapshotError::from)?;
    let from = loaded.applied.0;
    let replayed = state_of((loaded, backend))?;
    let replay = Replay::begin(replayed.clone())?;
    let entries = log.recovered.entries.iter().filter(|entry| entry.index > from && entry.index <= through);
    let count = replay.apply(entries)?;
    replay.end()?;
    let ((ours, _), (theirs, _)) = (tree.store.hash(0)?, replayed.store.hash(0)?);
    let leases = |state: &State| state.leases.read().iter().collect::<Vec<_>>();
    if ours == theirs && leases(tree) == leases(&replayed) && *tree.alarms.read() == *replayed.alarms.read() {
        let Hash { hash, revision, .. } = ours;
        println!(
            "replay    {count} entries of the log on the snapshot give what the tree has: ok (hash {hash}, revision {revision})"
        );
        return Ok(());
    }
    let what = match tree.store.first_difference(&replayed.store)? {
        Some((revision, key)) => format!(
            "the tree and what the log says differ, first at revision {}, key {:?}",
            revision.main,
            String::from_utf8_lossy(&key)
        ),
        None => "the tree and what the log says differ in leases, alarms or what is compacted".to_owned(),
    };
    Err(Error::Inconsistent(format!(
        "{what}. Remove the tree's directory: a start builds it from snapshot and log"
    )))
}

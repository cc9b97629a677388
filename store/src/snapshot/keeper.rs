//! The thread that makes snapshots and removes compacted revisions, one after the other, in the order in which they
//! were applied; between them it shrinks the tree.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use keelson_proto::etcd::storepb::Metadata;

use super::{Outgoing, SnapshotError, Snapshots, position};
use crate::apply::State;
use crate::mvcc::BackendError;
use crate::shrink::Shrinker;

/// Where a snapshot is to go besides the disk.
pub type Send = Box<dyn FnOnce(Result<Outgoing, SnapshotError>) + std::marker::Send>;

pub enum Job {
    /// A snapshot of the moment whose metadata this is.
    Take { metadata: Box<Metadata>, voters: Vec<u64>, send: Vec<Send> },
    /// Remove what a compaction at `revision`, applied by entry `index`, covers.
    Compact { revision: i64, index: u64 },
    /// Give disk back, even if it is not much.
    Shrink,
}

#[derive(Debug)]
pub struct Taken {
    pub index: u64,
}

#[derive(Debug)]
pub enum Report {
    Taken(Result<Taken, SnapshotError>),
    CompactionFailed(BackendError),
}

pub struct Keeper(Sender<Job>);

impl Keeper {
    pub fn submit(&self, job: Job) {
        // The thread ends only with its handle.
        let _ = self.0.send(job);
    }
}

/// Starts the thread.
///
/// # Errors
/// The system's refusal to start a thread.
pub fn spawn(
    snapshots: Arc<parking_lot::Mutex<Snapshots>>,
    state: Arc<State>,
    cluster: u64,
    shrinker: Shrinker,
    report: impl Fn(Report) + std::marker::Send + 'static,
) -> io::Result<(Keeper, thread::JoinHandle<()>)> {
    let (sender, receiver) = channel();
    let thread = thread::Builder::new().name("keeper".into()).stack_size(512 << 10).spawn(move || {
        run(&snapshots, &state, cluster, shrinker, &receiver, &report);
    })?;
    Ok((Keeper(sender), thread))
}

fn run(
    snapshots: &parking_lot::Mutex<Snapshots>,
    state: &State,
    cluster: u64,
    mut shrinker: Shrinker,
    jobs: &Receiver<Job>,
    report: &dyn Fn(Report),
) {
    let mut queue = VecDeque::new();
    let mut took = Duration::ZERO;
    loop {
        let first = match shrinker.pause(took) {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(pause) => jobs.recv_timeout(pause),
        };
        match first {
            Ok(first) => queue.push_back(first),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        while let Some(job) = queue.pop_front() {
            queue.extend(jobs.try_iter());
            match job {
                Job::Take { metadata, voters, send } => {
                    let mut snapshots = snapshots.lock();
                    let taken = take(&mut snapshots, state, *metadata, voters, cluster);
                    for send in send {
                        send(match &taken {
                            Ok(_) => Outgoing::open(&snapshots),
                            Err(error) => Err(io::Error::other(error.to_string()).into()),
                        });
                    }
                    drop(snapshots);
                    report(Report::Taken(taken));
                }
                Job::Compact { revision, index } => {
                    // A later compaction does this one's work too, unless a snapshot stands between.
                    if matches!(queue.front(), Some(Job::Compact { .. }))
                        || !state.store.values.wait_drained(index)
                    {
                        continue;
                    }
                    let deletions = snapshots.lock().covered();
                    match state.store.remove_compacted(revision, deletions) {
                        Ok(removed) => {
                            tracing::info!(revision, removed, "compacted");
                            shrinker.consider(state, false);
                        }
                        Err(error) => report(Report::CompactionFailed(error)),
                    }
                }
                Job::Shrink => shrinker.consider(state, true),
            }
        }
        let begun = Instant::now();
        shrinker.step(state);
        took = begun.elapsed();
    }
}

fn take(
    snapshots: &mut Snapshots,
    state: &State,
    metadata: Metadata,
    voters: Vec<u64>,
    cluster: u64,
) -> Result<Taken, SnapshotError> {
    let index = metadata.applied_index;
    // An installed snapshot may be newer than one that was asked for before it.
    if let Some(latest) = snapshots.latest().filter(|latest| position(latest).0 >= index) {
        return Ok(Taken { index: position(latest).0 });
    }
    snapshots.take(&state.store, metadata, voters, cluster)?;
    Ok(Taken { index })
}

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
use crate::shrink::{Occasion, Shrinker};

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

/// What the thread does, step by step.
pub struct Worker {
    snapshots: Arc<parking_lot::Mutex<Snapshots>>,
    state: Arc<State>,
    cluster: u64,
    shrinker: Shrinker,
    jobs: Receiver<Job>,
    queue: VecDeque<Job>,
}

/// A worker with its handle, and without a thread.
pub fn worker(
    snapshots: Arc<parking_lot::Mutex<Snapshots>>,
    state: Arc<State>,
    cluster: u64,
    shrinker: Shrinker,
) -> (Keeper, Worker) {
    let (sender, jobs) = channel();
    (Keeper(sender), Worker { snapshots, state, cluster, shrinker, jobs, queue: VecDeque::new() })
}

/// Starts the thread.
///
/// # Errors
/// The system's refusal to start a thread.
pub fn spawn(
    mut worker: Worker,
    report: impl Fn(Report) + std::marker::Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("keeper".into()).stack_size(512 << 10).spawn(move || {
        let mut took = Duration::ZERO;
        loop {
            let first = match worker.pause(took) {
                None => worker.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => worker.jobs.recv_timeout(pause),
            };
            match first {
                Ok(first) => worker.queue.push_back(first),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => worker.shrinker.rest(&worker.state),
            }
            while worker.gather() {
                match worker.needs() {
                    Some(index) if !worker.state.store.values.wait_drained(index) => worker.skip(),
                    _ => worker.step(&report),
                }
            }
            let begun = Instant::now();
            worker.shrink();
            took = begun.elapsed();
        }
    })
}

impl Worker {
    /// Takes what has queued up; whether there is anything to do.
    pub fn gather(&mut self) -> bool {
        self.queue.extend(self.jobs.try_iter());
        // A later compaction does this one's work too, unless a snapshot stands between.
        while matches!(
            (self.queue.front(), self.queue.get(1)),
            (Some(Job::Compact { .. }), Some(Job::Compact { .. }))
        ) {
            self.queue.pop_front();
        }
        !self.queue.is_empty()
    }

    /// What the tree must have before [`Self::step`].
    pub fn needs(&self) -> Option<u64> {
        match self.queue.front() {
            Some(Job::Compact { index, .. }) => Some(*index),
            _ => None,
        }
    }

    /// Leaves out the next job: the tree will never have what it needs.
    fn skip(&mut self) {
        self.queue.pop_front();
    }

    /// Does the next job.
    pub fn step(&mut self, report: &dyn Fn(Report)) {
        match self.queue.pop_front() {
            Some(Job::Take { metadata, voters, send }) => {
                let mut snapshots = self.snapshots.lock();
                let taken = take(&mut snapshots, &self.state, *metadata, voters, self.cluster);
                for send in send {
                    send(match &taken {
                        Ok(_) => Outgoing::open(&snapshots),
                        Err(error) => Err(io::Error::other(error.to_string()).into()),
                    });
                }
                drop(snapshots);
                report(Report::Taken(taken));
            }
            Some(Job::Compact { revision, .. }) => {
                let deletions = self.snapshots.lock().covered();
                match self.state.store.remove_compacted(revision, deletions) {
                    Ok(removed) => {
                        tracing::info!(revision, removed, "compacted");
                        self.shrinker.consider(&self.state, Occasion::Compacted);
                    }
                    Err(error) => report(Report::CompactionFailed(error)),
                }
            }
            Some(Job::Shrink) => self.shrinker.consider(&self.state, Occasion::Asked),
            None => {}
        }
    }

    /// How long until [`Self::shrink`], if the last time took so long; none: there is nothing to shrink.
    pub fn pause(&self, took: Duration) -> Option<Duration> {
        self.shrinker.pause(took)
    }

    /// Does a little of what there is to do between jobs.
    pub fn shrink(&mut self) {
        self.shrinker.step(&self.state);
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
    if index == 0 {
        // A member that joins would be taken for one that has begun.
        return Err(SnapshotError::Malformed("there is no state yet"));
    }
    // An installed snapshot may be newer than one that was asked for before it.
    if let Some(latest) = snapshots.latest().filter(|latest| position(latest).0 >= index) {
        return Ok(Taken { index: position(latest).0 });
    }
    snapshots.take(&state.store, metadata, voters, cluster)?;
    Ok(Taken { index })
}

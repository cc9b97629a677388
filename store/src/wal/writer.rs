//! Who writes the log: a thread that takes all writes which have queued up while the last fsync ran, makes them one frame
//! and one fsync, and reports. While that thread has nothing to do, the node may write by itself instead, which saves
//! handing each write there and back; the order of writes is the same, since only the node queues them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use keelson_raft::Write;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Wal, WalError};

/// What the writer tells the node.
#[derive(Debug)]
pub enum Report {
    /// Everything up to this write is durable.
    Persisted(u64),
    /// The disk is full (the writer keeps trying), or no longer.
    Full(bool),
    /// Nothing more will be written; the process has to stop.
    Failed(WalError),
}

enum Job {
    Write(Write),
    Cut(u64),
}

/// What waits for the thread.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// The thread has taken jobs that it has not finished.
    busy: bool,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    writing: Mutex<Writing>,
}

pub struct WalHandle(Arc<Shared>);

impl Drop for WalHandle {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.work.notify_one();
    }
}

impl WalHandle {
    fn queue(&self, job: Job) {
        let mut queue = self.0.queue.lock();
        queue.jobs.push_back(job);
        // A busy thread looks at the queue by itself, and a full disk is not to be tried again for each job.
        if !queue.busy {
            self.0.work.notify_one();
        }
    }

    /// Queues a write. When the writer has failed it has said so; then this does nothing.
    pub fn write(&self, write: Write) {
        self.queue(Job::Write(write));
    }

    /// Writes at once if nothing is queued, and waits until it is durable. Otherwise, and if the disk is full, the thread
    /// has it. `report` gets what a full disk would have reported.
    ///
    /// # Errors
    /// What is final.
    pub fn write_now(&self, write: Write, report: &dyn Fn(Report)) -> Result<(), WalError> {
        let queue = self.0.queue.lock();
        if queue.busy || !queue.jobs.is_empty() {
            drop(queue);
            self.write(write);
            return Ok(());
        }
        drop(queue);
        // Nobody else queues, so the thread does not come in between.
        let mut writing = self.0.writing.lock();
        writing.take(Job::Write(write));
        if !writing.write(report)? {
            drop(writing);
            self.0.queue.lock().busy = true;
            self.0.work.notify_one();
        }
        Ok(())
    }

    /// Queues the removal of what lies behind a durable snapshot.
    pub fn cut(&self, index: u64) {
        self.queue(Job::Cut(index));
    }
}

/// What the writer measures.
pub trait Observer: Send {
    fn fsync(&self, took: Duration);
    /// Bytes that it holds, and bytes written since it was opened.
    fn size(&self, bytes: u64, written: u64);
}

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The log with what makes its next frame.
struct Writing {
    wal: Wal,
    observer: Box<dyn Observer>,
    batch: Batch,
    /// The disk was found full.
    full: bool,
}

#[derive(Default)]
struct Batch {
    persisted: Option<u64>,
    must_sync: bool,
    cut: Option<u64>,
}

/// What the thread does, step by step.
pub struct Writer(Arc<Shared>);

/// A writer with its handle, and without a thread.
pub fn writer(wal: Wal, observer: impl Observer + 'static) -> (WalHandle, Writer) {
    observer.size(wal.bytes(), wal.written());
    let writing = Writing { wal, observer: Box::new(observer), batch: Batch::default(), full: false };
    let shared =
        Arc::new(Shared { queue: Mutex::default(), work: Condvar::new(), writing: Mutex::new(writing) });
    (WalHandle(shared.clone()), Writer(shared))
}

/// Starts the thread. It ends when the handle is dropped and all is written or the disk is full, or after a failure.
///
/// # Errors
/// The system's refusal to start a thread.
pub fn spawn(writer: Writer, report: impl Fn(Report) + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("wal".into()).stack_size(256 << 10).spawn(move || {
        if let Err(error) = writer.run(&report) {
            report(Report::Failed(error));
        }
    })
}

impl Writer {
    fn run(&self, report: &dyn Fn(Report)) -> Result<(), WalError> {
        loop {
            let mut queue = self.0.queue.lock();
            while queue.jobs.is_empty() && !queue.busy {
                if queue.closed {
                    return Ok(());
                }
                self.0.work.wait(&mut queue);
            }
            self.take(queue);
            while !self.write(report)? {
                let mut queue = self.0.queue.lock();
                if queue.closed {
                    // Nothing of it was acknowledged.
                    return Ok(());
                }
                self.0.work.wait_for(&mut queue, RETRY);
            }
        }
    }

    /// Takes what has queued up into the next frame; whether there is anything to do.
    pub fn gather(&self) -> bool {
        let queue = self.0.queue.lock();
        let any = queue.busy || !queue.jobs.is_empty();
        self.take(queue);
        any
    }

    fn take(&self, mut queue: MutexGuard<'_, Queue>) {
        // A frame for which there was no space is written first, and by itself.
        if queue.busy {
            return;
        }
        let jobs = std::mem::take(&mut queue.jobs);
        queue.busy = !jobs.is_empty();
        drop(queue);
        let mut writing = self.0.writing.lock();
        for job in jobs {
            writing.take(job);
        }
    }

    /// Writes what was gathered and reports. False: the disk is full, to be called again before anything is gathered.
    ///
    /// # Errors
    /// What is final.
    pub fn write(&self, report: &dyn Fn(Report)) -> Result<bool, WalError> {
        let written = self.0.writing.lock().write(report)?;
        if written {
            self.0.queue.lock().busy = false;
        }
        Ok(written)
    }
}

impl Writing {
    fn take(&mut self, job: Job) {
        match job {
            Job::Write(write) => {
                let snapshot = write.snapshot.map(|snapshot| {
                    let metadata = snapshot.get_metadata();
                    (metadata.index, metadata.term)
                });
                self.wal.append(write.hard_state.as_ref(), snapshot, &write.entries);
                self.batch.must_sync |= write.must_sync;
                self.batch.persisted = Some(write.number);
            }
            Job::Cut(index) => self.batch.cut = self.batch.cut.max(Some(index)),
        }
    }

    fn write(&mut self, report: &dyn Fn(Report)) -> Result<bool, WalError> {
        if self.batch.must_sync {
            let begun = std::time::Instant::now();
            match self.wal.commit() {
                Ok(()) => {}
                Err(error) if error.is_full() => {
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::error!(
                            directory = %self.wal.directory().display(),
                            "no space left for the write-ahead log: free disk space, writes wait until there is"
                        );
                        report(Report::Full(true));
                    }
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            if std::mem::take(&mut self.full) {
                tracing::info!("there is space for the write-ahead log again");
                report(Report::Full(false));
            }
            self.observer.fsync(begun.elapsed());
        }
        let Batch { persisted, cut, .. } = std::mem::take(&mut self.batch);
        if let Some(number) = persisted {
            report(Report::Persisted(number));
        }
        if let Some(index) = cut {
            self.wal.cut(index)?;
        }
        self.observer.size(self.wal.bytes(), self.wal.written());
        Ok(true)
    }
}

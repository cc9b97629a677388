//! The thread that writes the log: it takes all writes that have queued up while the last fsync ran, makes them one
//! frame and one fsync, and reports.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use keelson_raft::Write;

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

pub struct WalHandle {
    jobs: Sender<Job>,
    closed: Arc<AtomicBool>,
}

impl Drop for WalHandle {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl WalHandle {
    /// Queues a write. When the writer has failed it has said so; then this does nothing.
    pub fn write(&self, write: Write) {
        let _ = self.jobs.send(Job::Write(write));
    }

    /// Queues the removal of what lies behind a durable snapshot.
    pub fn cut(&self, index: u64) {
        let _ = self.jobs.send(Job::Cut(index));
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

/// What the thread does, step by step.
pub struct Writer<O> {
    wal: Wal,
    jobs: Receiver<Job>,
    closed: Arc<AtomicBool>,
    observer: O,
    batch: Batch,
    /// The disk was found full.
    full: bool,
}

/// What makes the next frame.
#[derive(Default)]
struct Batch {
    persisted: Option<u64>,
    must_sync: bool,
    cut: Option<u64>,
}

/// A writer with its handle, and without a thread.
pub fn writer<O: Observer>(wal: Wal, observer: O) -> (WalHandle, Writer<O>) {
    let (jobs, receiver) = channel();
    let closed = Arc::new(AtomicBool::new(false));
    let handle = WalHandle { jobs, closed: closed.clone() };
    observer.size(wal.bytes(), wal.written());
    (handle, Writer { wal, jobs: receiver, closed, observer, batch: Batch::default(), full: false })
}

/// Starts the thread. It ends when the handle is dropped and all is written or the disk is full, or after a failure.
///
/// # Errors
/// The system's refusal to start a thread.
pub fn spawn(
    mut writer: Writer<impl Observer + 'static>,
    report: impl Fn(Report) + Send + 'static,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("wal".into()).stack_size(256 << 10).spawn(move || {
        if let Err(error) = writer.run(&report) {
            report(Report::Failed(error));
        }
    })
}

impl<O: Observer> Writer<O> {
    fn run(&mut self, report: &dyn Fn(Report)) -> Result<(), WalError> {
        while let Ok(first) = self.jobs.recv() {
            self.take(first);
            self.gather();
            while !self.write(report)? {
                if self.closed.load(Ordering::Relaxed) {
                    // Nothing of it was acknowledged.
                    return Ok(());
                }
                thread::sleep(RETRY);
            }
        }
        Ok(())
    }

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

    /// Takes what has queued up into the next frame; whether there is anything to do.
    pub fn gather(&mut self) -> bool {
        while let Ok(job) = self.jobs.try_recv() {
            self.take(job);
        }
        self.batch.persisted.is_some() || self.batch.cut.is_some()
    }

    /// Writes what was gathered and reports. False: the disk is full, to be called again before anything is gathered.
    ///
    /// # Errors
    /// What is final.
    pub fn write(&mut self, report: &dyn Fn(Report)) -> Result<bool, WalError> {
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

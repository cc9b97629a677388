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

/// Starts the thread. It ends when the handle is dropped and all is written or the disk is full, or after a failure.
///
/// # Errors
/// The system's refusal to start a thread.
pub fn spawn(
    wal: Wal,
    observer: impl Observer + 'static,
    report: impl Fn(Report) + Send + 'static,
) -> io::Result<(WalHandle, thread::JoinHandle<()>)> {
    let (jobs, receiver) = channel();
    let closed = Arc::new(AtomicBool::new(false));
    let handle = WalHandle { jobs, closed: closed.clone() };
    let thread = thread::Builder::new().name("wal".into()).stack_size(256 << 10).spawn(move || {
        if let Err(error) = run(wal, &receiver, &observer, &report, &closed) {
            report(Report::Failed(error));
        }
    })?;
    Ok((handle, thread))
}

fn run(
    mut wal: Wal,
    jobs: &Receiver<Job>,
    observer: &dyn Observer,
    report: &dyn Fn(Report),
    closed: &AtomicBool,
) -> Result<(), WalError> {
    observer.size(wal.bytes(), wal.written());
    while let Ok(first) = jobs.recv() {
        let (mut persisted, mut must_sync, mut cut) = (None, false, None);
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            match job {
                Job::Write(write) => {
                    let snapshot = write.snapshot.map(|snapshot| {
                        let metadata = snapshot.get_metadata();
                        (metadata.index, metadata.term)
                    });
                    wal.append(write.hard_state.as_ref(), snapshot, &write.entries);
                    must_sync |= write.must_sync;
                    persisted = Some(write.number);
                }
                Job::Cut(index) => cut = cut.max(Some(index)),
            }
        }
        if must_sync {
            let begun = std::time::Instant::now();
            if !commit(&mut wal, report, closed)? {
                return Ok(());
            }
            observer.fsync(begun.elapsed());
        }
        if let Some(number) = persisted {
            report(Report::Persisted(number));
        }
        if let Some(index) = cut {
            wal.cut(index)?;
        }
        observer.size(wal.bytes(), wal.written());
    }
    Ok(())
}

/// Tries until there is space. False: the process ends before; nothing of it was acknowledged.
fn commit(wal: &mut Wal, report: &dyn Fn(Report), closed: &AtomicBool) -> Result<bool, WalError> {
    let mut full = false;
    loop {
        match wal.commit() {
            Ok(()) => break,
            Err(error) if error.is_full() => {
                if !full {
                    tracing::error!(
                        directory = %wal.directory().display(),
                        "no space left for the write-ahead log: free disk space, writes wait until there is"
                    );
                    report(Report::Full(true));
                    full = true;
                }
                if closed.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
        }
    }
    if full {
        tracing::info!("there is space for the write-ahead log again");
        report(Report::Full(false));
    }
    Ok(true)
}

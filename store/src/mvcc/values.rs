//! Values by revision: a bounded overlay of what was applied lately before the tree that a thread of its own fills.
//!
//! Apply never waits for the tree: it puts records into the overlay and seals each entry's group with its applied
//! index; the drain thread writes groups, in order and with that index in the same batch, and only then removes them
//! from the overlay. So a reader that looks into the overlay first always finds a revision that the index names.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::backend::{Backend, BackendError, Change};
use super::block::Packer;
use super::overlay::Overlay;
use super::record::{Record, Revision};
use super::tree::{read_record, removal, scan_tree};

/// Where the applied index lies in the tree.
pub const APPLIED_KEY: &[u8] = b"m/applied";
/// Above this the overlay is full, and the node accepts no proposals.
const OVERLAY_LIMIT: u64 = 16 << 20;
/// Above this nothing is appended to the log that others have and this member would have to apply.
const OVERLAY_MOST: u64 = 4 * OVERLAY_LIMIT;
/// A batch of the drain thread.
const BATCH: u64 = 1 << 20;
/// Less than this waits a little for more: a tree written in many small batches takes several times the memory and time.
const EAGER: u64 = 256 << 10;
const LINGER: Duration = Duration::from_millis(50);
/// How often a full disk is looked at again.
const RETRY: Duration = Duration::from_millis(500);

/// What one applied entry changes.
#[derive(Default)]
struct Group {
    index: u64,
    term: u64,
    records: Vec<(Revision, Arc<Record>)>,
    metadata: Vec<Change>,
    bytes: u64,
}

#[derive(Default)]
struct Queue {
    open: Group,
    sealed: VecDeque<Group>,
    sealed_bytes: u64,
    /// Threads that wait for the tree to catch up.
    waiting: usize,
    /// The index up to which the tree has everything.
    drained: u64,
    /// A group is being written.
    busy: bool,
    /// Nothing may be written.
    held: bool,
    /// Another tree that gets everything too, but the applied index: see [`super::Rebuild`].
    mirror: Option<Arc<dyn Backend>>,
    closed: bool,
    failed: Option<String>,
}

pub struct Values {
    overlay: RwLock<Overlay>,
    /// Bytes of what the tree lacks.
    overlay_bytes: AtomicU64,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Condvar,
    backend: RwLock<Arc<dyn Backend>>,
    failed: AtomicBool,
}

impl Values {
    /// `drained`: the applied index that the tree stands at.
    pub fn new(backend: Arc<dyn Backend>, drained: u64) -> Arc<Self> {
        Arc::new(Self {
            overlay: RwLock::default(),
            overlay_bytes: AtomicU64::new(0),
            queue: Mutex::new(Queue { drained, ..Queue::default() }),
            work: Condvar::new(),
            done: Condvar::new(),
            backend: RwLock::new(backend),
            failed: AtomicBool::new(false),
        })
    }

    /// Starts the drain thread. It writes only while `space` says that the disk has some, since a tree that once found
    /// none has to be opened again; meanwhile the log has everything. It measures each batch; `failed` is called once if
    /// the tree cannot be written, and then no more is; `room` is called when the overlay is full no longer.
    pub fn spawn(
        self: &Arc<Self>,
        space: impl Fn() -> bool + Send + 'static,
        measure: impl Fn(Duration) + Send + 'static,
        room: impl Fn() + Send + 'static,
        failed: impl Fn(BackendError) + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        let values = self.clone();
        thread::Builder::new().name("tree".into()).stack_size(512 << 10).spawn(move || {
            if let Err(error) = values.drain(&space, &measure, &room) {
                values.failed.store(true, Ordering::Relaxed);
                values.queue.lock().failed = Some(error.to_string());
                values.done.notify_all();
                failed(error);
            }
        })
    }

    pub fn backend(&self) -> Arc<dyn Backend> {
        self.backend.read().clone()
    }

    /// The record of a revision that the index names. None: a compaction removed it meanwhile.
    pub fn get(&self, revision: Revision) -> Result<Option<Arc<Record>>, BackendError> {
        if let Some(record) = self.overlay.read().get(revision) {
            return Ok(Some(record));
        }
        Ok(read_record(&*self.backend(), revision)?.map(Arc::new))
    }

    /// All records from revision `from` up to and with `through`, in order, until `visit` says false.
    pub fn scan(
        &self,
        from: i64,
        through: i64,
        visit: &mut dyn FnMut(Revision, Arc<Record>) -> bool,
    ) -> Result<(), BackendError> {
        let first = Revision { main: from, sub: 0 };
        let end = Revision { main: through + 1, sub: 0 };
        // Before the tree: whatever leaves the overlay from now on is found there too, and is skipped by `border`.
        let recent = self.overlay.read().undrained(first, end);
        let border = recent.first().map_or(end, |(revision, _)| *revision);
        let mut go_on = true;
        scan_tree(&*self.backend(), first, border, &mut |revision, record| {
            go_on = visit(revision, Arc::new(record));
            go_on
        })?;
        for (revision, record) in recent {
            if !go_on {
                break;
            }
            go_on = visit(revision, record);
        }
        Ok(())
    }

    /// Adds a record to the entry being applied. `previous`: the version that it replaces.
    pub fn put(&self, revision: Revision, record: Arc<Record>, previous: Option<Revision>) {
        let size = record.size();
        self.overlay_bytes.fetch_add(size, Ordering::Relaxed);
        self.overlay.write().put(revision, record.clone(), previous);
        let open = &mut self.queue.lock().open;
        open.records.push((revision, record));
        open.bytes += size;
    }

    /// Adds a change of what is not a revision (leases, members, ...) to the entry being applied.
    pub fn put_metadata(&self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.queue.lock().open.metadata.push((key, value));
    }

    /// The entry at `index` is applied: its changes may go to the tree.
    pub fn seal(&self, index: u64, term: u64) {
        let mut queue = self.queue.lock();
        let mut group = mem::take(&mut queue.open);
        (group.index, group.term) = (index, term);
        let before = queue.sealed_bytes;
        queue.sealed_bytes += group.bytes;
        let wake = queue.sealed.is_empty() || (before < EAGER && queue.sealed_bytes >= EAGER);
        queue.sealed.push_back(group);
        drop(queue);
        if wake {
            self.work.notify_one();
        }
    }

    /// Whether proposals have to wait for the tree.
    pub fn is_full(&self) -> bool {
        self.overlay_bytes.load(Ordering::Relaxed) > OVERLAY_LIMIT
    }

    /// Whether nothing more may be taken in, not even what others have committed: the tree is far behind, or stuck.
    pub fn is_overfull(&self) -> bool {
        self.overlay_bytes.load(Ordering::Relaxed) > OVERLAY_MOST
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn drained(&self) -> u64 {
        self.queue.lock().drained
    }

    /// Waits until the tree has everything up to `index`. False: it never will.
    pub fn wait_drained(&self, index: u64) -> bool {
        let mut queue = self.queue.lock();
        queue.waiting += 1;
        self.work.notify_one();
        let mut reached = true;
        while queue.drained < index {
            if queue.failed.is_some() || queue.closed {
                reached = false;
                break;
            }
            self.done.wait(&mut queue);
        }
        queue.waiting -= 1;
        reached
    }

    /// Lets the drain thread finish what is sealed and end.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.work.notify_all();
        self.done.notify_all();
    }

    /// Puts another tree in place, which stands at `drained`; what was not yet written to the old one is dropped.
    pub fn replace(&self, backend: Arc<dyn Backend>, drained: u64) {
        let mut queue = self.queue.lock();
        queue.sealed.clear();
        queue.sealed_bytes = 0;
        queue.mirror = None;
        while queue.busy {
            self.done.wait(&mut queue);
        }
        queue.open = Group::default();
        queue.drained = drained;
        let mut overlay = self.overlay.write();
        *overlay = Overlay::default();
        self.overlay_bytes.store(0, Ordering::Relaxed);
        *self.backend.write() = backend;
        drop(overlay);
        drop(queue);
        self.done.notify_all();
    }

    /// Has nothing written to the tree until [`Self::release`]; what is applied meanwhile waits in the overlay. Not for
    /// long. None: the tree is closed. Otherwise the tree, which stands still.
    pub(super) fn hold(&self) -> Option<Arc<dyn Backend>> {
        let mut queue = self.queue.lock();
        queue.held = true;
        while queue.busy {
            self.done.wait(&mut queue);
        }
        let open = !queue.closed && queue.failed.is_none();
        drop(queue);
        if !open {
            self.release();
        }
        open.then(|| self.backend())
    }

    pub(super) fn release(&self) {
        self.queue.lock().held = false;
        self.work.notify_all();
    }

    /// From now on another tree gets everything too. False: `source` is no longer the tree in use.
    pub(super) fn begin_mirror(&self, source: &Arc<dyn Backend>, mirror: &Arc<dyn Backend>) -> bool {
        let mut queue = self.queue.lock();
        let in_use = Arc::ptr_eq(&self.backend.read(), source);
        if in_use {
            queue.mirror = Some(mirror.clone());
        }
        in_use
    }

    /// That tree gets nothing any more.
    pub(super) fn end_mirror(&self, tree: &Arc<dyn Backend>) {
        self.queue.lock().mirror.take_if(|mirror| Arc::ptr_eq(mirror, tree));
    }

    /// False: it failed, another state was put in place, or the tree is closed.
    pub(super) fn is_mirror(&self, tree: &Arc<dyn Backend>) -> bool {
        let queue = self.queue.lock();
        !queue.closed && queue.mirror.as_ref().is_some_and(|mirror| Arc::ptr_eq(mirror, tree))
    }

    /// Puts the mirror in place of the tree, which is held. None: it is no longer the mirror. Otherwise the tree before.
    pub(super) fn switch(&self, tree: &Arc<dyn Backend>) -> Option<Arc<dyn Backend>> {
        let mut queue = self.queue.lock();
        let mirror = queue.mirror.take_if(|mirror| Arc::ptr_eq(mirror, tree))?;
        Some(mem::replace(&mut *self.backend.write(), mirror))
    }

    /// A copy that cannot be written is given up; the tree itself is as it was.
    fn write_mirror(&self, mirror: &Arc<dyn Backend>, batch: Vec<Change>) {
        if let Err(error) = mirror.write(batch) {
            tracing::warn!(%error, "cannot write the tree that is being built beside");
            self.end_mirror(mirror);
        }
    }

    fn drain(
        &self,
        space: &dyn Fn() -> bool,
        measure: &dyn Fn(Duration),
        room: &dyn Fn(),
    ) -> Result<(), BackendError> {
        let mut short = false;
        loop {
            let mut queue = self.queue.lock();
            loop {
                let idle = queue.sealed.is_empty();
                if !idle && !queue.held && space() {
                    break;
                }
                if queue.closed {
                    drop(queue);
                    // The next start then has less of the log to apply again.
                    return if space() { self.backend().flush() } else { Ok(()) };
                }
                if idle || queue.held {
                    self.work.wait(&mut queue);
                    continue;
                }
                if !std::mem::replace(&mut short, true) {
                    tracing::error!(
                        "no space for the tree of values: free disk space, it waits until there is"
                    );
                }
                self.work.wait_for(&mut queue, RETRY);
            }
            if std::mem::take(&mut short) {
                tracing::info!("there is space for the tree of values again");
            }
            if queue.sealed_bytes < EAGER && queue.waiting == 0 && !queue.closed {
                self.work.wait_for(&mut queue, LINGER);
                if queue.held {
                    continue;
                }
            }
            let (full, begun) = (self.is_full(), Instant::now());
            self.write_batch(queue)?;
            measure(begun.elapsed());
            if full && !self.is_full() {
                room();
            }
        }
    }

    /// Writes one batch of what is sealed to the tree: what the drain thread does, for a simulation in its place. False:
    /// there is nothing, or nothing may be written.
    ///
    /// # Errors
    /// The tree's; no more may be written then.
    pub fn drain_step(&self) -> Result<bool, BackendError> {
        let queue = self.queue.lock();
        if queue.sealed.is_empty() || queue.held {
            return Ok(false);
        }
        self.write_batch(queue).map(|()| true)
    }

    fn write_batch(&self, mut queue: MutexGuard<'_, Queue>) -> Result<(), BackendError> {
        let (mut groups, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH
            && let Some(group) = queue.sealed.pop_front()
        {
            bytes += group.bytes;
            groups.push(group);
        }
        queue.sealed_bytes -= bytes;
        queue.busy = true;
        let mirror = queue.mirror.clone();
        drop(queue);
        let result = self.write(&mut groups, mirror.as_ref());
        let mut queue = self.queue.lock();
        queue.busy = false;
        if let Some(last) = groups.last().filter(|_| result.is_ok()) {
            queue.drained = queue.drained.max(last.index);
        }
        drop(queue);
        self.done.notify_all();
        result
    }

    fn write(&self, groups: &mut [Group], mirror: Option<&Arc<dyn Backend>>) -> Result<(), BackendError> {
        let (mut batch, mut packer) = (Vec::new(), Packer::default());
        for group in groups.iter_mut() {
            for (revision, record) in &group.records {
                packer.add(*revision, record, |key, value| batch.push((key.to_vec(), Some(value))));
            }
            batch.append(&mut group.metadata);
        }
        packer.finish(|key, value| batch.push((key.to_vec(), Some(value))));
        if let Some(mirror) = mirror {
            self.write_mirror(mirror, batch.clone());
        }
        if let Some(last) = groups.last() {
            batch.push((APPLIED_KEY.to_vec(), Some(encode_applied(last.index, last.term))));
        }
        fail::fail_point!("tree_before_write");
        self.backend().write(batch)?;
        fail::fail_point!("tree_after_write");
        let records = || groups.iter().flat_map(|group| &group.records);
        self.overlay.write().drain(records());
        let freed = records().map(|(_, record)| record.size()).sum();
        self.overlay_bytes.fetch_sub(freed, Ordering::Relaxed);
        // Not all under one lock, which readers wait for.
        while self.overlay.write().trim() {}
        Ok(())
    }

    /// Removes records from the tree, whose revisions ascend. Returns how many bytes they were.
    ///
    /// # Errors
    /// The tree's.
    pub(super) fn remove_records(&self, revisions: &[Revision]) -> Result<u64, BackendError> {
        let backend = self.backend();
        let (mut batch, mut freed): (Vec<Change>, u64) = (Vec::new(), 0);
        let mut rest = revisions;
        while let Some(first) = rest.first() {
            let (change, gone, bytes) = removal(&*backend, rest)?;
            batch.extend(change);
            freed += bytes;
            // One that is not there was removed before.
            rest = rest.get(gone.max(1)..).unwrap_or_default();
            debug_assert!(rest.first().is_none_or(|next| next > first));
        }
        fail::fail_point!("compaction_before_write");
        let mirror = {
            let queue = self.queue.lock();
            if !Arc::ptr_eq(&self.backend.read(), &backend) {
                // Another state was put in place: what was read of this one is not for it.
                return Ok(0);
            }
            queue.mirror.clone()
        };
        if let Some(mirror) = mirror {
            self.write_mirror(&mirror, batch.clone());
        }
        backend.write(batch)?;
        Ok(freed)
    }
}

pub fn encode_applied(index: u64, term: u64) -> Vec<u8> {
    [index.to_be_bytes(), term.to_be_bytes()].concat()
}

/// The applied index and its term, as a tree says them.
pub fn decode_applied(bytes: &[u8]) -> Option<(u64, u64)> {
    let (index, term) = bytes.split_at_checked(8)?;
    Some((u64::from_be_bytes(index.try_into().ok()?), u64::from_be_bytes(term.try_into().ok()?)))
}

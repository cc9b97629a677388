//! The log on real files and on a disk that is full: what is written is read back, and damage is told from a torn end.

use std::path::Path;
use std::sync::Arc;

use std::sync::atomic::{AtomicBool, Ordering};

use keelson_raft::{Entry, HardState, Write};

use super::*;
use crate::env::RealDisk;
use crate::env::faulty::{Faults, FaultyDisk};

const IDENTITY: Identity = Identity { cluster: 1, member: 2 };

fn open(directory: &Path) -> Result<(Wal, Recovered), WalError> {
    open_knowing(directory, Known::default())
}

fn open_knowing(directory: &Path, known: Known) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(RealDisk), directory, IDENTITY, known, 77)
}

fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry { index, term, data: data.to_vec().into(), ..Entry::default() }
}

fn state(term: u64, commit: u64) -> HardState {
    HardState { term, vote: 2, commit, ..HardState::default() }
}

fn write(wal: &mut Wal, entries: &[Entry]) {
    wal.append(Some(&state(1, 0)), None, entries);
    wal.commit().unwrap();
}

fn segment(directory: &Path) -> std::path::PathBuf {
    directory.join("0000000000000000.wal")
}

/// The beginning of the only segment: reading all that is reserved again and again would take long.
fn head(directory: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(segment(directory)).unwrap();
    bytes.truncate(4096);
    bytes
}

#[test]
fn gives_back_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, empty) = open(directory.path()).unwrap();
    assert_eq!(empty, Recovered::default());
    write(&mut wal, &[entry(1, 1, b"a"), entry(2, 1, b"b"), entry(3, 1, b"c")]);
    wal.append(Some(&state(2, 1)), None, &[entry(2, 2, b"B")]);
    wal.commit().unwrap();
    drop(wal);
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(recovered.hard_state, state(2, 1));
    assert_eq!(recovered.entries, [entry(1, 1, b"a"), entry(2, 2, b"B")]);
    let (_, above) = open_knowing(directory.path(), Known { floor: 1, ..Known::default() }).unwrap();
    assert_eq!((above.before, above.entries.len()), ((1, 1), 1));
}

#[test]
fn another_members_log_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap();
    let other = Identity { cluster: 1, member: 3 };
    let error = Wal::open(Arc::new(RealDisk), directory.path(), other, Known::default(), 0).err().unwrap();
    assert!(matches!(error, WalError::Foreign { found_member: 2, .. }), "{error}");
}

#[test]
fn a_snapshot_begins_the_log_anew_unless_it_agrees() {
    for (term, kept) in [(1, 1), (9, 0)] {
        let directory = tempfile::tempdir().unwrap();
        let (mut wal, _) = open(directory.path()).unwrap();
        write(&mut wal, &[entry(1, 1, b"a"), entry(2, 1, b"b"), entry(3, 1, b"c")]);
        wal.append(None, Some((2, term)), &[]);
        wal.commit().unwrap();
        let (_, recovered) = open(directory.path()).unwrap();
        assert_eq!((recovered.before, recovered.entries.len()), ((2, term), kept));
    }
}

/// A disk on which no space can be reserved for the time.
#[derive(Default)]
struct Full(AtomicBool);

impl Full {
    fn set(&self, full: bool) {
        self.0.store(full, Ordering::Relaxed);
    }
}

struct FullFile(Box<dyn File>, bool);

impl File for FullFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        if self.1 { Err(io::ErrorKind::StorageFull.into()) } else { self.0.allocate(length) }
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

impl Faults for Full {
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(FullFile(RealDisk.create(path)?, self.0.load(Ordering::Relaxed))))
    }
}

struct Unmeasured;

impl Observer for Unmeasured {
    fn fsync(&self, _: std::time::Duration) {}
    fn size(&self, _: u64, _: u64) {}
}

/// Writes more than a segment has room for, on a full disk, until the writer says so.
fn write_on_full_disk(
    directory: &Path,
) -> (Arc<FaultyDisk<Full>>, WalHandle, std::thread::JoinHandle<()>, std::sync::mpsc::Receiver<Report>) {
    let disk = Arc::<FaultyDisk<Full>>::default();
    let (wal, _) = Wal::open(disk.clone(), directory, IDENTITY, Known::default(), 77).unwrap();
    disk.0.set(true);
    let (sender, reports) = std::sync::mpsc::channel();
    let (handle, writer) = writer(wal, Unmeasured);
    let thread = spawn(writer, move |report| drop(sender.send(report))).unwrap();
    for number in 1..=2 {
        let entries = vec![entry(number, 1, &vec![7; 9 << 20])];
        handle.write(Write { number, hard_state: None, snapshot: None, entries, must_sync: true });
        if number == 1 {
            assert!(matches!(reports.recv().unwrap(), Report::Persisted(1)));
        }
    }
    assert!(matches!(reports.recv().unwrap(), Report::Full(true)));
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 1, "nothing is left of the attempt");
    (disk, handle, thread, reports)
}

#[test]
fn a_full_disk_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, handle, thread, reports) = write_on_full_disk(directory.path());
    disk.0.set(false);
    assert!(matches!(reports.recv().unwrap(), Report::Full(false)));
    assert!(matches!(reports.recv().unwrap(), Report::Persisted(2)));
    drop(handle);
    thread.join().unwrap();
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(recovered.last_index(), 2);
}

/// What is queued while the disk is full is not taken for written with the frame that waits.
#[test]
fn a_frame_that_waits_for_space_is_reported_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::<FaultyDisk<Full>>::default();
    let (wal, _) = Wal::open(disk.clone(), directory.path(), IDENTITY, Known::default(), 77).unwrap();
    disk.0.set(true);
    let (handle, writer) = writer(wal, Unmeasured);
    let reports = std::cell::RefCell::new(Vec::new());
    let report = |report: Report| reports.borrow_mut().push(format!("{report:?}"));
    let write = |number, bytes| {
        let entries = vec![entry(number, 1, &vec![7; bytes])];
        Write { number, hard_state: None, snapshot: None, entries, must_sync: true }
    };
    // More than a segment has room for.
    handle.write_now(write(1, 17 << 20), &report).unwrap();
    handle.write(write(2, 10));
    assert!(writer.gather());
    assert!(!writer.write(&report).unwrap());
    disk.0.set(false);
    assert!(writer.write(&report).unwrap());
    assert_eq!(reports.take(), ["Full(true)", "Full(false)", "Persisted(1)"]);
    assert!(writer.gather());
    assert!(writer.write(&|report| assert!(matches!(report, Report::Persisted(2)))).unwrap());
    drop((handle, writer));
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(recovered.last_index(), 2);
}

#[test]
fn a_full_disk_does_not_keep_the_process_from_ending() {
    let directory = tempfile::tempdir().unwrap();
    let (_, handle, thread, reports) = write_on_full_disk(directory.path());
    drop(handle);
    thread.join().unwrap();
    assert!(reports.recv().is_err(), "nothing more was acknowledged");
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(recovered.last_index(), 1);
}

#[test]
fn segments_rotate_and_are_cut_behind_a_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(directory.path()).unwrap();
    let large = vec![7; 6 << 20];
    for index in 1..=8 {
        wal.append(Some(&state(index, index - 1)), None, &[entry(index, index, &large)]);
        wal.commit().unwrap();
    }
    let count = || std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(count(), 4, "two entries fit into a segment");
    wal.cut(5).unwrap();
    assert_eq!(count(), 2);
    drop(wal);
    let (mut wal, recovered) = open(directory.path()).unwrap();
    assert_eq!((recovered.before.0, recovered.last_index()), (4, 8));
    assert_eq!(recovered.hard_state, state(8, 7));
    wal.append(None, None, &[entry(9, 8, b"x")]);
    wal.commit().unwrap();
    wal.cut(100).unwrap();
    drop(wal);
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!(
        recovered.hard_state.term, 8,
        "the segment that said so is cut, its successor's header repeats it"
    );
}

/// A segment without a frame is replaced by one of the same name, whose file must not be cut in its stead.
#[test]
fn a_first_frame_larger_than_its_segment() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(directory.path()).unwrap();
    for index in 1..=2 {
        wal.append(Some(&state(1, index - 1)), None, &[entry(index, 1, &vec![7; 17 << 20])]);
        wal.commit().unwrap();
    }
    wal.cut(0).unwrap();
    drop(wal);
    let (_, recovered) = open(directory.path()).unwrap();
    assert_eq!((recovered.before.0, recovered.last_index()), (0, 2));
}

/// Whichever sectors of the last frame a crash leaves, everything before it is there and writing goes on.
#[test]
fn a_torn_tail_is_repaired_whatever_is_left_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(directory.path()).unwrap();
    write(&mut wal, &[entry(1, 1, b"first")]);
    let kept = wal.end() as usize;
    write(&mut wal, &[entry(2, 1, &[7; 1700])]);
    let end = wal.end() as usize;
    drop(wal);
    let whole = head(directory.path());
    let sectors: Vec<_> =
        (kept / 512..end.div_ceil(512)).map(|at| (at * 512).max(kept)..(at * 512 + 512).min(end)).collect();
    assert_eq!(sectors.len(), 4);
    for lost in 0..1 << sectors.len() {
        let mut torn = whole.clone();
        for (place, sector) in sectors.iter().enumerate().filter(|(place, _)| lost & (1 << place) != 0) {
            torn[sector.clone()].fill(0);
            assert_ne!(torn, whole, "sector {place} was blank");
        }
        std::fs::write(segment(directory.path()), &torn).unwrap();
        let (mut wal, recovered) = open(directory.path()).unwrap();
        let entries = recovered.entries.len();
        assert_eq!(entries, if lost == 0 { 2 } else { 1 }, "lost {lost:b}");
        write(&mut wal, &[entry(entries as u64 + 1, 1, b"again")]);
        let (_, recovered) = open(directory.path()).unwrap();
        assert_eq!(recovered.entries.len(), entries + 1, "lost {lost:b}");
    }
}

/// In the last frame as in those before it: what is there as a whole was acknowledged.
#[test]
fn damage_is_refused_with_its_offset() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(directory.path()).unwrap();
    write(&mut wal, &[entry(1, 1, b"first")]);
    let second = wal.end() as usize;
    write(&mut wal, &[entry(2, 1, &[7; 700])]);
    let end = wal.end() as usize;
    drop(wal);
    let whole = head(directory.path());
    let filled = |end: usize| end - whole[..end].iter().rev().take_while(|byte| **byte == 0xa5).count()..end;
    // The reserved word at the end of the header, and what fills frames up, hold no information.
    let reserved = [HEADER - 4..HEADER, filled(second), filled(end)];
    for at in 0..end {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        std::fs::write(segment(directory.path()), &damaged).unwrap();
        let (found, expected) = match open(directory.path()) {
            Err(WalError::Corrupt { offset, .. }) if at < HEADER => (offset, 0),
            Err(WalError::Corrupt { offset, .. }) if at < second => (offset, HEADER),
            Err(WalError::DamagedEnd { offset, .. }) => (offset, second),
            Err(other) => panic!("byte {at}: {other}"),
            Ok((_, recovered)) => {
                assert!(reserved.iter().any(|range| range.contains(&at)), "byte {at} was not noticed");
                assert_eq!(recovered.entries.len(), 2);
                continue;
            }
        };
        assert_eq!(found, expected as u64, "byte {at}");
        assert!(std::fs::read(segment(directory.path())).unwrap() == damaged, "byte {at}: it was changed");
    }
}

/// Whoever gives up what is lost goes on with the rest.
#[test]
fn an_end_before_what_was_durable() {
    let directory = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(directory.path()).unwrap();
    write(&mut wal, &[entry(1, 1, b"first")]);
    let second = wal.end();
    write(&mut wal, &[entry(2, 1, b"second")]);
    let end = wal.end();
    drop(wal);
    let known = |durable, give_up| Known { durable, give_up, ..Known::default() };
    let entries = |known| open_knowing(directory.path(), known).map(|(_, recovered)| recovered.entries.len());
    assert_eq!(entries(known(2, false)).unwrap(), 2);
    match entries(known(3, false)) {
        Err(WalError::Short { offset, last: 2, durable: 3, .. }) => assert_eq!(offset, end),
        other => panic!("{other:?}"),
    }
    assert_eq!(entries(known(3, true)).unwrap(), 2);
    let mut bytes = head(directory.path());
    bytes[second as usize + 30] ^= 1;
    std::fs::write(segment(directory.path()), &bytes).unwrap();
    assert!(matches!(entries(known(0, false)), Err(WalError::DamagedEnd { .. })));
    assert_eq!(entries(known(0, true)).unwrap(), 1);
    assert_eq!(entries(known(0, false)).unwrap(), 1, "it was cut off");
}

/// Arbitrary bytes are refused or repaired; they never panic and never become entries.
#[test]
fn arbitrary_bytes_behind_the_header() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap();
    let fresh = head(directory.path());
    let mut runner = proptest::test_runner::TestRunner::default();
    let bytes = proptest::collection::vec(proptest::num::u8::ANY, 0..400);
    runner
        .run(&bytes, |bytes| {
            let mut segment_bytes = fresh.clone();
            segment_bytes[HEADER..HEADER + bytes.len()].copy_from_slice(&bytes);
            std::fs::write(segment(directory.path()), &segment_bytes).unwrap();
            match open(directory.path()) {
                Ok((_, recovered)) => assert!(recovered.entries.is_empty()),
                Err(WalError::DamagedEnd { offset, .. }) => assert_eq!(offset, HEADER as u64),
                Err(other) => panic!("{other}"),
            }
            Ok(())
        })
        .unwrap();
}

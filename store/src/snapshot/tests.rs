//! Snapshots on real files: made, sent, restored, and refused when damaged.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use keelson_proto::etcd::etcdserverpb::PutRequest;
use parking_lot::Mutex;

use super::*;
use crate::env::RealDisk;
use crate::env::faulty::{Faults, FaultyDisk};
use crate::lease::Leases;
use crate::mvcc::{Index, MemoryBackend, Values, load};

fn store() -> Store {
    let values = Values::new(Arc::new(MemoryBackend::default()), 0);
    Store::new(Index::new(), values, 0)
}

fn put(store: &Store, key: &str, value: &str) {
    let request =
        PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let mut txn = store.write();
    txn.put(&request, &mut Leases::default()).unwrap();
    txn.commit();
}

fn metadata(store: &Store, index: u64) -> Metadata {
    Metadata {
        applied_index: index,
        applied_term: 3,
        revision: store.revision(),
        compact_revision: store.compacted(),
        ..Metadata::default()
    }
}

/// As the keeper does it, at the newest revision.
fn compact(store: &Store, snapshots: &Snapshots) {
    let revision = store.revision();
    store.write().compact(revision).unwrap();
    // The revision serves as the index of an entry.
    store.values.seal(revision.unsigned_abs(), 1);
    assert!(store.values.wait_drained(revision.unsigned_abs()));
    store.remove_compacted(revision, snapshots.covered()).unwrap();
}

fn open(directory: &Path) -> Result<Snapshots, SnapshotError> {
    Snapshots::open(Arc::new(RealDisk), directory, 9)
}

fn restored_hash(snapshots: &Snapshots) -> (u32, i64, (u64, u64)) {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    snapshots.restore(&*backend).unwrap();
    let loaded = load(&backend).unwrap();
    let (applied, revision) = (loaded.applied, loaded.index.revision);
    let store = Store::new(loaded.index, Values::new(backend, applied.0), loaded.in_use);
    (store.hash(0).unwrap().0.hash, revision, applied)
}

#[test]
fn a_second_snapshot_writes_only_what_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let store = store();
    let mut snapshots = open(directory.path()).unwrap();
    put(&store, "a", "1");
    snapshots.take(&store, metadata(&store, 10), vec![1], 9).unwrap();
    put(&store, "b", &"2".repeat(10_000));
    put(&store, "a", "3");
    let files = snapshots.take(&store, metadata(&store, 20), vec![1], 9).unwrap().files.clone();
    let ranges: Vec<_> = files.iter().map(|file| (file.after, file.through)).collect();
    assert_eq!(ranges, [(0, 2), (2, 4)]);
    let reopened = open(directory.path()).unwrap();
    assert_eq!(restored_hash(&reopened), (store.hash(0).unwrap().0.hash, 4, (20, 3)));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3, "one manifest, two files");
}

/// Real files; while that is asked for, a directory with two manifests cannot be synced.
#[derive(Default)]
struct Unsynced {
    fails: AtomicBool,
    created: Mutex<Vec<String>>,
}

impl Faults for Unsynced {
    fn create(&self, path: &Path) -> io::Result<Box<dyn env::File>> {
        self.created.lock().push(path.display().to_string());
        RealDisk.create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let manifests = RealDisk.list(path)?.iter().filter(|name| is_manifest(name)).count();
        match self.fails.load(Ordering::Relaxed) && manifests > 1 {
            true => Err(io::Error::other("input/output error")),
            false => RealDisk.sync_dir(path),
        }
    }
}

/// A manifest whose directory could not be synced may be found all the same, or the one before it.
#[test]
fn files_that_a_manifest_may_name_are_not_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (disk, store) = (Arc::<FaultyDisk<Unsynced>>::default(), store());
    let mut snapshots = Snapshots::open(disk.clone(), directory.path(), 9).unwrap();
    put(&store, "a", "1");
    snapshots.take(&store, metadata(&store, 10), vec![1], 9).unwrap();
    put(&store, "b", "2");
    disk.0.fails.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        snapshots.take(&store, metadata(&store, 20), vec![1], 9).unwrap_err();
        let names = disk.list(directory.path()).unwrap();
        assert_eq!(names.iter().filter(|name| is_manifest(name)).count(), 2, "{names:?}");
    }
    disk.0.fails.store(false, Ordering::Relaxed);
    snapshots.take(&store, metadata(&store, 20), vec![1], 9).unwrap();
    let mut files = disk.0.created.lock().clone();
    files.retain(|name| name.ends_with(FILE));
    assert_eq!(files.len(), 2, "one for each range of revisions: {files:?}");
    let reopened = open(directory.path()).unwrap();
    assert_eq!(restored_hash(&reopened), (store.hash(0).unwrap().0.hash, 3, (20, 3)));
}

/// Its value lies in an older file; the deletion is in none if compaction may remove it before a snapshot has it.
#[test]
fn what_was_deleted_and_compacted_between_two_snapshots_stays_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = store();
    store.values.spawn(|| true, |_| {}, || {}, |error| panic!("{error}")).unwrap();
    let mut snapshots = open(directory.path()).unwrap();
    for key in ["gone", "stays"] {
        put(&store, key, "1");
    }
    snapshots.take(&store, metadata(&store, 10), vec![1], 9).unwrap();
    let mut txn = store.write();
    txn.delete("gone".into(), &mut Leases::default());
    txn.commit();
    put(&store, "later", "1");
    compact(&store, &snapshots);
    snapshots.take(&store, metadata(&store, 20), vec![1], 9).unwrap();
    assert_eq!(restored_hash(&snapshots).0, store.hash(0).unwrap().0.hash);
    // What the snapshot has goes the next time.
    put(&store, "last", "1");
    compact(&store, &snapshots);
    assert_eq!(store.key_count(), 3);
    snapshots.take(&store, metadata(&store, 30), vec![1], 9).unwrap();
    assert_eq!(restored_hash(&snapshots).0, store.hash(0).unwrap().0.hash);
    store.values.close();
}

#[test]
fn a_transferred_snapshot_is_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = store();
    let mut snapshots = open(from.path()).unwrap();
    for index in 1..5 {
        put(&store, &format!("k{index}"), &"v".repeat(100_000 * index));
        snapshots.take(&store, metadata(&store, index as u64), vec![1], 9).unwrap();
    }
    let mut outgoing = Outgoing::open(&snapshots).unwrap();
    let mut target = open(to.path()).unwrap();
    let mut receiver = Receiver::new(&target, 1);
    while let Some(piece) = outgoing.piece().unwrap() {
        // Pieces need not arrive as they were cut.
        for byte in piece.chunks(70_000) {
            receiver.push(Bytes::copy_from_slice(byte)).unwrap();
        }
    }
    assert_eq!(receiver.finish(&mut target, 9, 1).map(|(index, term, _)| (index, term)).unwrap(), (4, 3));
    assert_eq!(restored_hash(&open(to.path()).unwrap()), restored_hash(&snapshots));
}

use bytes::Bytes;

/// A snapshot that was received before and is newer is what will be installed, with its configuration.
#[test]
fn the_newer_one_of_two_transfers_counts() {
    let directories = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let mut target = open(directories[2].path()).unwrap();
    let store = store();
    let taken = [10, 20].map(|index| {
        put(&store, "k", &index.to_string());
        let mut snapshots = open(directories[index as usize / 10 - 1].path()).unwrap();
        let configuration = Configuration { voters: vec![1, index], ..Configuration::default() };
        let metadata = Metadata { configuration: Some(configuration), ..metadata(&store, index) };
        snapshots.take(&store, metadata, vec![1, index], 9).unwrap();
        snapshots
    });
    let mut receive = |from: &Snapshots, serial| {
        let (mut outgoing, mut receiver) = (Outgoing::open(from).unwrap(), Receiver::new(&target, serial));
        while let Some(piece) = outgoing.piece().unwrap() {
            receiver.push(piece).unwrap();
        }
        let (index, term, conf_state) = receiver.finish(&mut target, 9, 1).unwrap();
        (index, term, conf_state.voters)
    };
    for (serial, from) in [1, 0, 1].into_iter().enumerate() {
        assert_eq!(receive(&taken[from], serial as u64), (20, 3, vec![1, 20]));
    }
    assert_eq!(position(target.latest().unwrap()), (20, 3));
}

#[test]
fn nothing_is_left_of_a_transfer_that_broke() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = store();
    let mut snapshots = open(from.path()).unwrap();
    for index in 1..3 {
        put(&store, &format!("k{index}"), &"v".repeat(300_000));
        snapshots.take(&store, metadata(&store, index), vec![1], 9).unwrap();
    }
    let mut outgoing = Outgoing::open(&snapshots).unwrap();
    let mut receiver = Receiver::new(&open(to.path()).unwrap(), 1);
    let count = || std::fs::read_dir(to.path()).unwrap().count();
    while count() < 2 {
        receiver.push(outgoing.piece().unwrap().unwrap()).unwrap();
    }
    drop(receiver);
    assert_eq!(count(), 0);
}

/// Every byte of manifest and files is guarded.
#[test]
fn damage_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = store();
    put(&store, "a", "1");
    open(directory.path()).unwrap().take(&store, metadata(&store, 10), vec![1], 9).unwrap();
    let paths: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(paths.len(), 2);
    for path in paths {
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let result =
                open(directory.path()).and_then(|snapshots| snapshots.restore(&MemoryBackend::default()));
            if result.is_ok() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(refused(&damaged).is_continue(), "{} byte {at}", path.display());
            assert!(refused(&whole[..at]).is_continue(), "{} cut to {at}", path.display());
        }
        std::fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_peers_bytes_never_panic() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = open(directory.path()).unwrap();
    let mut runner = proptest::test_runner::TestRunner::default();
    let pieces = proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..64), 0..4);
    runner
        .run(&pieces, |pieces| {
            let mut receiver = Receiver::new(&snapshots, 1);
            let whole = pieces.into_iter().try_for_each(|piece| receiver.push(piece.into()));
            let mut target = open(directory.path()).unwrap();
            assert!(whole.is_err() || receiver.finish(&mut target, 9, 1).is_err());
            Ok(())
        })
        .unwrap();
}

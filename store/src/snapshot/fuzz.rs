//! Damaged and arbitrary snapshots: their files, their manifests, what a peer sends and what was saved to one file. They
//! are refused, or they are what they were; nothing panics, and nothing is written outside their directory.

use std::path::PathBuf;

use keelson_proto::etcd::etcdserverpb::PutRequest;
use keelson_proto::etcd::mvccpb::KeyValue;
use sha2::{Digest, Sha256};

use super::*;
use crate::env::{ReadOnlyDisk, RealDisk};
use crate::fuzz::{self, Random};
use crate::lease::Leases;
use crate::mvcc::{Index, MemoryBackend, Values, load};
use crate::wal::Identity;

const CLUSTER: u64 = 9;
const MEMBER: u64 = 1;

/// A store with some history, with two snapshots taken of it.
fn taken(random: &mut Random) -> (tempfile::TempDir, Snapshots) {
    let directory = tempfile::tempdir().unwrap();
    let values = Values::new(Arc::new(MemoryBackend::default()), 0);
    let store = Store::new(Index::new(), values, 0);
    let mut snapshots = open(directory.path()).unwrap();
    for index in 1..=2 {
        for _ in 0..random.below(8) {
            let mut txn = store.write();
            let key = format!("k{}", random.below(5)).into();
            if random.percent(20) {
                txn.delete(key, &mut Leases::default());
            } else {
                let put = PutRequest { key, value: random.bytes(600).into(), ..PutRequest::default() };
                txn.put(&put, &mut Leases::default()).unwrap();
            }
            txn.commit();
        }
        let metadata = Metadata {
            applied_index: index,
            applied_term: 1,
            revision: store.revision(),
            configuration: Some(Configuration { voters: vec![MEMBER], ..Configuration::default() }),
            ..Metadata::default()
        };
        snapshots.take(&store, metadata, vec![MEMBER], CLUSTER).unwrap();
    }
    (directory, snapshots)
}

fn open(directory: &Path) -> Result<Snapshots, SnapshotError> {
    Snapshots::open(Arc::new(RealDisk), directory, CLUSTER)
}

type Content = Vec<(Revision, Record)>;

fn content(snapshots: &Snapshots) -> Result<Content, SnapshotError> {
    let mut found = Vec::new();
    snapshots.visit(&mut |revision, record| {
        found.push((revision, record));
        Ok(())
    })?;
    Ok(found)
}

/// Builds a state of it, as a start does.
fn build(snapshots: &Snapshots) {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
    if snapshots.restore(&*backend).is_ok()
        && let Ok(loaded) = load(&backend)
    {
        let store = Store::new(loaded.index, Values::new(backend, loaded.applied.0), loaded.in_use);
        let _ = store.hash(0);
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// The stream that a peer gets.
fn stream(snapshots: &Snapshots) -> Vec<u8> {
    let mut outgoing = Outgoing::open(snapshots).unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = outgoing.piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[test]
fn damaged_files() {
    fuzz::run("snapshot files", 200, |random| {
        let (directory, snapshots) = taken(random);
        let expected = content(&snapshots).unwrap();
        let all = files(directory.path());
        let file = random.choose(&all);
        let whole = std::fs::read(file).unwrap();
        let mut bytes = whole.clone();
        random.mutate(&mut bytes);
        std::fs::write(file, &bytes).unwrap();
        match open(directory.path()) {
            Ok(snapshots) => match content(&snapshots) {
                Ok(found) => assert!(bytes == whole && found == expected, "{file:?} is damaged"),
                Err(SnapshotError::Damaged(_) | SnapshotError::Io(_)) => assert_ne!(bytes, whole),
                Err(other) => panic!("{other:?}"),
            },
            Err(SnapshotError::Damaged(_)) => assert_ne!(bytes, whole),
            Err(other) => panic!("{other:?}"),
        }
    });
}

fn arbitrary_manifest(random: &mut Random, files: &[RevisionFile]) -> Manifest {
    let metadata = Metadata {
        applied_index: random.number(),
        applied_term: random.number(),
        revision: random.number() as i64,
        compact_revision: random.number() as i64,
        ..Metadata::default()
    };
    let mut files = files.to_vec();
    for file in &mut files {
        match random.below(6) {
            0 => file.length = random.number(),
            1 => file.crc32 = random.next() as u32,
            2 => file.name = ["", "/", "..", "../x.revisions", "a/b"][random.below(5)].to_owned(),
            _ => {}
        }
    }
    if random.percent(20) {
        files.push(RevisionFile::default());
    }
    Manifest {
        metadata: random.percent(90).then_some(metadata),
        cluster_id: CLUSTER,
        voters: vec![MEMBER],
        learners: Vec::new(),
        files,
    }
}

#[test]
fn arbitrary_manifests() {
    fuzz::run("snapshot manifests", 200, |random| {
        let (directory, snapshots) = taken(random);
        let manifest = arbitrary_manifest(random, &snapshots.latest().unwrap().files);
        let body = manifest.encode_to_vec();
        let mut bytes = MAGIC.to_vec();
        bytes.put_u32_le(crc32fast::hash(&body));
        bytes.extend(body);
        std::fs::write(directory.path().join("ffffffffffffffff.manifest"), bytes).unwrap();
        if let Ok(snapshots) = open(directory.path()) {
            build(&snapshots);
        }
    });
}

/// Records of any kind in a file whose checksums are right.
#[test]
fn arbitrary_records() {
    fuzz::run("snapshot records", 200, |random| {
        let directory = tempfile::tempdir().unwrap();
        let name = "1-0-1.revisions".to_owned();
        let mut writer = file::Writer::create(&RealDisk, directory.path(), &name).unwrap();
        for _ in 0..random.below(12) {
            let kv = KeyValue {
                key: random.bytes(4).into(),
                create_revision: random.number() as i64,
                mod_revision: random.number() as i64,
                version: random.number() as i64,
                value: random.bytes(9000).into(),
                lease: random.number() as i64,
            };
            let revision = Revision { main: random.number() as i64, sub: random.number() as u32 };
            writer.push(revision, &Record { kv, tombstone: random.percent(20) }).unwrap();
        }
        let (length, crc32) = writer.finish().unwrap();
        let file = RevisionFile { name, after: 0, through: 1, length, crc32 };
        let mut snapshots = open(directory.path()).unwrap();
        let metadata = arbitrary_manifest(random, &[]).metadata;
        let manifest = Manifest {
            metadata,
            cluster_id: CLUSTER,
            voters: vec![MEMBER],
            learners: Vec::new(),
            files: vec![file],
        };
        snapshots.adopt(manifest).unwrap();
        build(&open(directory.path()).unwrap());
    });
}

#[test]
fn what_a_peer_sends() {
    fuzz::run("snapshot streams", 200, |random| {
        let (_source, snapshots) = taken(random);
        let expected = content(&snapshots).unwrap();
        let whole = stream(&snapshots);
        let mut bytes = match random.percent(20) {
            true => {
                let body = arbitrary_manifest(random, &snapshots.latest().unwrap().files).encode_to_vec();
                let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
                bytes.extend(body);
                bytes.extend(random.bytes(2000));
                bytes
            }
            false => whole.clone(),
        };
        random.mutate(&mut bytes);
        let parent = tempfile::tempdir().unwrap();
        let place = parent.path().join("snap");
        let mut own = open(&place).unwrap();
        let mut receiver = Receiver::new(&own, 7);
        let mut rest = bytes::Bytes::from(bytes.clone());
        let pushed = loop {
            let piece = rest.split_to(random.below(700).min(rest.len()));
            if let Err(error) = receiver.push(piece) {
                break Err(error);
            }
            if rest.is_empty() {
                break Ok(());
            }
        };
        let finished = pushed.and_then(|()| receiver.finish(&mut own, CLUSTER, MEMBER));
        // The manifest itself is guarded by the stream's own checksum; what it names is guarded by it.
        assert!(finished.is_ok() || bytes != whole);
        if finished.is_ok() {
            let header = whole.len() - expected_files(&snapshots);
            if bytes[..header] == whole[..header] {
                assert_eq!(content(&own).unwrap(), expected);
            }
        } else {
            assert_eq!(files(&place), Vec::<PathBuf>::new(), "nothing is left of it");
        }
        assert_eq!(files(parent.path()), [place], "nothing is written elsewhere");
    });
}

fn expected_files(snapshots: &Snapshots) -> usize {
    snapshots.latest().unwrap().files.iter().map(|file| file.length as usize).sum()
}

#[test]
fn saved_files() {
    fuzz::run("snapshot archives", 200, |random| {
        let (_source, snapshots) = taken(random);
        let mut whole = stream(&snapshots);
        whole.resize(whole.len().next_multiple_of(512), 0);
        let sum = Sha256::digest(&whole);
        whole.extend_from_slice(&sum);
        let mut bytes = match random.percent(10) {
            true => random.bytes(3000),
            false => whole.clone(),
        };
        random.mutate(&mut bytes);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("saved");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Archive::open(&ReadOnlyDisk, &path, true).is_ok(), bytes == whole);
        let Ok(archive) = Archive::open(&ReadOnlyDisk, &path, false) else { return };
        let _ = archive.visit(&mut |_, _| Ok(()));
        archive.checksum().unwrap();
        let place = directory.path().join("snap");
        let mut own = open(&place).unwrap();
        let identity = Identity { cluster: CLUSTER, member: MEMBER };
        let metadata = Metadata {
            configuration: Some(Configuration { voters: vec![MEMBER], ..Configuration::default() }),
            ..archive.metadata()
        };
        if archive.unpack(&mut own, identity, vec![MEMBER], metadata).is_ok() {
            build(&own);
        }
    });
}

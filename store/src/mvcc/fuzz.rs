//! A tree of arbitrary content: it is read, or found to be damaged.

use std::sync::Arc;

use super::record::{Record, Revision, chunk_key};
use super::*;
use crate::fuzz;

#[test]
fn arbitrary_trees() {
    fuzz::run("trees", 800, |random| {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
        let mut batch: Vec<Change> = Vec::new();
        for _ in 0..random.below(12) {
            let revision = Revision { main: random.number() as i64, sub: random.number() as u32 };
            match random.below(4) {
                0 => {
                    let chunk = random.number() as u16;
                    batch.push((chunk_key(revision, chunk).to_vec(), Some(random.bytes(40))));
                }
                1 => {
                    let mut key = chunk_key(revision, 0).to_vec();
                    random.mutate(&mut key);
                    batch.push((key, Some(random.bytes(40))));
                }
                2 => {
                    let keys: [&[u8]; 4] = [APPLIED_KEY, COMPACTED_KEY, UNFINISHED_KEY, b"l1234567"];
                    batch.push((random.choose(&keys).to_vec(), Some(random.bytes(17))));
                }
                _ => {
                    let kv = keelson_proto::etcd::mvccpb::KeyValue {
                        key: random.bytes(3).into(),
                        value: random.bytes(9000).into(),
                        lease: random.number() as i64,
                        version: random.number() as i64,
                        create_revision: random.number() as i64,
                        mod_revision: revision.main,
                    };
                    Record { kv, tombstone: random.percent(30) }.encode(revision, |key, mut value| {
                        if random.percent(5) {
                            random.mutate(&mut value);
                        }
                        if random.percent(95) {
                            batch.push((key.to_vec(), Some(value)));
                        }
                    });
                }
            }
        }
        backend.write(batch).unwrap();
        if let Ok(loaded) = load(&backend) {
            let values = Values::new(backend, loaded.applied.0);
            let store = Store::new(loaded.index, values, loaded.in_use);
            let _ = store.hash(0);
            let everything = keelson_proto::etcd::etcdserverpb::RangeRequest {
                key: [0u8][..].to_vec().into(),
                range_end: [0u8][..].to_vec().into(),
                ..Default::default()
            };
            let _ = store.range(&everything);
        }
    });
}

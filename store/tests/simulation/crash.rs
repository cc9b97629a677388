//! What a process finds written but not synced after it was killed: once it has counted it, no loss of power takes it back.

use std::path::Path;
use std::sync::Arc;

use keelson_raft::Entry;
use kube_store::wal::{Identity, Recovered, Wal};

use crate::disk::{Faults, Loss, SimulatedDisk};
use crate::random::Random;

fn open(disk: &SimulatedDisk) -> (Wal, Recovered) {
    let identity = Identity { cluster: 1, member: 1 };
    Wal::open(Arc::new(disk.clone()), Path::new("/data/wal"), identity, 0, 7).unwrap()
}

#[test]
fn what_was_read_from_the_log_is_durable() {
    let _scenario = crate::thresholds();
    for seed in 0..50 {
        let (disk, mut random) = (SimulatedDisk::default(), Random::new(seed));
        let (mut wal, _) = open(&disk);
        wal.append(
            None,
            None,
            &[Entry { term: 1, index: 1, data: vec![7; 2000].into(), ..Entry::default() }],
        );
        // The write is done, its fsync is not.
        disk.set_faults(Faults { fuse: Some(1), ..Faults::default() });
        wal.commit().unwrap_err();
        disk.end(Loss::Process, &mut random);
        let (_, found) = open(&disk);
        assert_eq!(found.entries.len(), 1, "the system had it");
        disk.end(Loss::Power, &mut random);
        assert_eq!(open(&disk).1.entries, found.entries, "seed {seed}");
    }
}

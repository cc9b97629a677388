//! A whole cluster in one thread on simulated time, everything that can go wrong drawn from one seed.
//!
//! `SIM_SEED=n` runs one seed, `SIM_SEEDS=n` so many of them from that one on (or from 1), `SIM_TRACE=1` prints what
//! happens. A seed that fails does so each time. Seeds are spread over tests, for as many processes as there are cores.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod clients;
mod crash;
mod disk;
mod faults;
#[path = "../history/mod.rs"]
mod history;
mod lineage;
mod lives;
mod member;
mod operator;
mod random;
mod steps;
mod totals;
mod watches;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use history::check::{Start, Verdict, check};
use history::{Outcome, Watched};
use totals::Totals;
use world::{SECOND, World};

/// Seeds of a run that fits CI.
const SEEDS: u64 = 2000;
/// Tests that share them.
const SHARDS: u64 = 4;
/// So many seeds of one test have everything happen that can.
const ENOUGH: u64 = 400;
/// Seconds of simulated time with faults.
const ROUGH: u64 = 12;
/// Seconds after them in which clients go on.
const AFTER: u64 = 8;
/// Within so many seconds without faults all members have to be level.
const CALM: u64 = 60;

fn run(seed: u64) -> (World, Verdict) {
    let mut world = World::new(seed);
    world.run((2 + ROUGH) * SECOND);
    world.heal();
    // Clients go on for a while: the store has to serve them again.
    let begun = world.clients.history.len();
    world.run((2 + ROUGH + AFTER) * SECOND);
    let healed = &world.clients.history[begun..];
    assert!(
        healed.iter().any(|call| matches!(call.outcome, Outcome::Applied { .. })),
        "nothing was written in the {AFTER} seconds after all faults were over"
    );
    world.clients.quiet = true;
    let end = world.now + CALM * SECOND;
    while !(world.clients.is_idle() && world.is_level()) {
        assert!(world.now < end, "the members do not get level");
        let next = world.now + SECOND;
        world.run(next);
    }
    world.watches.finish(&world.members);
    let watches: Vec<Watched<'_>> =
        world.watches.watches.iter().filter(|watch| !watch.is_tap()).map(|watch| watch.watched()).collect();
    let verdict = check(
        &Start::default(),
        &world.clients.history,
        &world.watches.ledger,
        &watches,
        world.clients.clock_jumped,
    );
    let mut found = Vec::new();
    for member in world.current() {
        let state = &member.process.as_ref().expect("all members run").state;
        let keys: BTreeMap<_, _> = all(state);
        assert_eq!(keys, verdict.end.keys, "member {} has another state than the model", member.id);
        assert_eq!(state.store.revision(), verdict.end.revision);
        let leases: Vec<(i64, i64)> = state.leases.read().iter().collect();
        found.push((state.store.hash(0).unwrap(), leases, state.members.read().list()));
    }
    assert!(found.iter().all(|state| *state == found[0]), "members differ: {found:?}");
    (world, verdict)
}

fn all(state: &kube_store::apply::State) -> BTreeMap<bytes::Bytes, keelson_proto::etcd::mvccpb::KeyValue> {
    let request = keelson_proto::etcd::etcdserverpb::RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..Default::default()
    };
    let (response, _) = state.store.range(&request).unwrap();
    response.kvs.into_iter().map(|kv| (kv.key.clone(), kv)).collect()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Small, so that segments end, snapshots are made and the log is cut all the time. The same for all tests of this
/// process, since failpoints are the process's.
fn thresholds() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (name, value) in [
            ("wal_segment", 8 << 10),
            ("snapshot_at", 24 << 10),
            ("snapshot_every", 12 << 10),
            ("log_keep", 8 << 10),
            ("log_most", 16 << 10),
            ("shrink_slack", 4 << 10),
        ] {
            fail::cfg(name, &format!("return({value})")).unwrap();
        }
    });
}

/// Runs every seed of a shard: those from `shard` on, in steps of [`SHARDS`].
fn run_shard(shard: u64) {
    thresholds();
    let first = number("SIM_SEED").unwrap_or(1);
    let count = number("SIM_SEEDS").unwrap_or(if number("SIM_SEED").is_some() { 1 } else { SEEDS });
    let seeds: Vec<u64> = (first..first + count).filter(|seed| (seed - first) % SHARDS == shard).collect();
    let mut totals = Totals::default();
    let mut failed = Vec::new();
    for seed in &seeds {
        match catch_unwind(AssertUnwindSafe(|| run(*seed))) {
            Ok((world, verdict)) => {
                totals.add(&world.totals);
                for (name, times) in [
                    ("revisions", verdict.revisions),
                    ("acknowledged writes", verdict.acknowledged),
                    ("unknown writes that happened", verdict.unknown_applied),
                    ("unknown writes that did not", verdict.open.len()),
                    ("leases that ran out", verdict.expired),
                    ("calls", world.clients.history.len()),
                    ("steps", world.steps as usize),
                ] {
                    totals.event(name, times as u64);
                }
            }
            Err(_) => {
                println!("SIM_SEED={seed} fails");
                failed.push(*seed);
            }
        }
    }
    println!("{} of {count} seeds from {first}:\n{totals}", seeds.len());
    assert!(failed.is_empty(), "seeds that fail: {failed:?}; run one with SIM_SEED=n SIM_TRACE=1");
    if seeds.len() as u64 >= ENOUGH {
        let missing = totals.missing();
        assert!(missing.is_empty(), "{} seeds, and never: {missing:#?}", seeds.len());
    }
}

macro_rules! shards {
    ($($name:ident $shard:literal,)*) => {
        /// Processes are what a test runner has several of.
        mod seeds {
            $(
                #[test]
                fn $name() {
                    super::run_shard($shard);
                }
            )*
        }
    };
}

shards! { of_shard_0 0, of_shard_1 1, of_shard_2 2, of_shard_3 3, }

#[test]
fn a_seed_replays_exactly() {
    thresholds();
    for seed in [3, 4] {
        let (first, _) = run(seed);
        let (second, _) = run(seed);
        assert_eq!((first.trace, first.steps), (second.trace, second.steps), "seed {seed}");
    }
}

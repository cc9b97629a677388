//! A live set that is overwritten again and again while old revisions are compacted: whether readers and writers feel it,
//! and what it leaves on the disk.
//!
//! Probes of their own, one request at a time each, sample latencies beside the load; what the load itself waits for is
//! not what is asked.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, RangeRequest,
    RangeResponse, RequestOp, StatusRequest, StatusResponse, TxnRequest, TxnResponse, request_op,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::connection::{Access, Call, Connection, frame};
use super::load::{Target, counted};
use super::requests::{PREFIX, end, key, overwrites, put};
use super::{Cluster, directory};
use crate::bench::stats::Latencies;
use crate::bench::{BenchError, Row, Section, processes};

/// A key beside the live set.
const PROBE: &str = "/keelson-bench-probe";
/// From one request of a probe to the next, at least.
const SAMPLE: Duration = Duration::from_millis(1);
/// Samples of each probe while nothing else goes on, and before and after a deletion.
const IDLE: usize = 500;
const AROUND: usize = 100;
/// What a pause is.
const PAUSE: Duration = Duration::from_millis(50);
/// The store is at rest when nothing on its disk changes for so long, or nearly: a tree that is idle writes a little.
const REST: Duration = Duration::from_secs(5);
const REST_AT_MOST: Duration = Duration::from_secs(120);

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The live set.
    pub keys: usize,
    pub value_bytes: usize,
    /// How often all of it is overwritten.
    pub rounds: usize,
    /// Compactions in each round.
    pub compactions: usize,
    /// Writers at a time.
    pub clients: usize,
    /// Keys of the range that is deleted at the end, at most `keys`.
    pub deleted: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { keys: 100_000, value_bytes: 256, rounds: 10, compactions: 2, clients: 16, deleted: 100_000 }
    }
}

/// Bytes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sizes {
    /// kube-store's tree, or etcd's file.
    tree: u64,
    log: u64,
    all: u64,
}

impl Sizes {
    fn of(data: &Path) -> Self {
        let member = data.join("member");
        let tree = member.join("tree");
        let tree = if tree.is_dir() { tree } else { member.join("snap") };
        Self { tree: usage(&tree), log: usage(&member.join("wal")), all: usage(data) }
    }
}

fn usage(path: &Path) -> u64 {
    // What is being removed may be gone.
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    metadata.blocks() * 512 + entries.map(|entry| usage(&entry.path())).sum::<u64>()
}

/// Makes the live set of a store that is started for it, overwrites and compacts it, deletes it, and says what that cost.
///
/// # Errors
/// The store's refusals.
pub async fn churn(program: &Path, plan: &Plan) -> Result<Section, BenchError> {
    let directory = directory()?;
    let Cluster { members, target } = Cluster::start(program, &directory.path().join("churn"), 1).await?;
    let member = members.first().ok_or_else(|| BenchError::Unexpected("no member".to_owned()))?;
    let connection = target.access.each().await?.remove(0);
    let mut rows = Vec::new();
    write(&target, plan, 0..plan.keys).await?;
    let mut idle = Probes::start(&target.access).await?;
    idle.sample(IDLE).await;
    rows.extend(idle.stop("idle").await?);

    let probes = Probes::start(&target.access).await?;
    let begun = Instant::now();
    overwrite(&target, &connection, plan).await?;
    let rate = (plan.keys * plan.rounds) as f64 / begun.elapsed().as_secs_f64();
    compact(&connection).await?;
    let sizes = Sizes::of(&member.data);
    rows.push(Row::new(
        format!("{} × {} puts of {} B, {} clients", plan.rounds, plan.keys, plan.value_bytes, plan.clients),
        "1/s",
        rate,
    ));
    rows.extend(probes.stop("overwritten and compacted").await?);
    let probes = Probes::start(&target.access).await?;
    let rested = rest(&member.data).await;
    rows.extend(probes.stop("afterwards, until at rest").await?);
    rows.push(Row::new("until at rest", "s", rested.as_secs_f64()));

    let live = (plan.keys * (key(0).len() + plan.value_bytes)) as f64;
    rows.push(Row::new("live: keys and values", "MiB", mib(live)));
    let status: StatusResponse = connection.ask(&Call::status(), &StatusRequest {}).await?;
    rows.push(Row::new("in use, as the store says", "MiB", mib(status.db_size_in_use as f64)));
    for (when, sizes) in [("at the end", sizes), ("at rest", Sizes::of(&member.data))] {
        rows.push(Row::new(format!("tree {when}"), "MiB", mib(sizes.tree as f64)));
        rows.push(Row::new(format!("tree {when} / live"), "", sizes.tree as f64 / live));
        rows.push(Row::new(format!("log {when}"), "MiB", mib(sizes.log as f64)));
        rows.push(Row::new(format!("whole data directory {when}"), "MiB", mib(sizes.all as f64)));
        let rest = sizes.all.saturating_sub(sizes.log) as f64;
        rows.push(Row::new(format!("without the log {when} / live"), "", rest / live));
    }
    rows.push(Row::new("resident (PSS)", "MiB", processes::memory(member.pid())?.proportional));
    rows.extend(delete(&target, &connection, plan).await?);
    let title = format!("Churn and compaction: {}", program.display());
    Ok(Section { title, peer: None, rows })
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Puts of these numbers: all keys once, for as many numbers as there are keys.
async fn write(target: &Target, plan: &Plan, numbers: std::ops::Range<usize>) -> Result<(), BenchError> {
    let make = overwrites(plan.keys, plan.value_bytes);
    counted(target, &Call::put(), plan.clients, numbers, &make).await.map(drop)
}

/// Overwrites everything again and again; each time that a part of it was, what is older is compacted beside the next.
async fn overwrite(target: &Target, connection: &Connection, plan: &Plan) -> Result<(), BenchError> {
    let total = plan.keys * plan.rounds;
    let part = plan.keys.div_ceil(plan.compactions.max(1)).max(1);
    for first in (0..total).step_by(part) {
        let compacts = async {
            match first {
                0 => Ok(()),
                _ => compact(connection).await,
            }
        };
        tokio::try_join!(write(target, plan, first..total.min(first + part)), compacts)?;
    }
    Ok(())
}

async fn compact(connection: &Connection) -> Result<(), BenchError> {
    let newest = RangeRequest { key: PROBE.into(), ..RangeRequest::default() };
    let newest: RangeResponse = connection.ask(&Call::range(), &newest).await?;
    let revision = newest.header.map_or(0, |header| header.revision);
    let request = CompactionRequest { revision, physical: false };
    connection.ask::<CompactionResponse>(&Call::compact(), &request).await.map(drop)
}

async fn rest(data: &Path) -> Duration {
    let begun = Instant::now();
    let (mut last, mut since) = (Sizes::default(), begun);
    while since.elapsed() < REST && begun.elapsed() < REST_AT_MOST {
        let now = Sizes::of(data);
        if now.all.abs_diff(last.all) > now.all / 100 {
            (last, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    begun.elapsed().saturating_sub(REST)
}

/// A task that asks all the time how long a request takes.
struct Probe {
    kind: &'static str,
    samples: watch::Receiver<usize>,
    task: JoinHandle<Result<Latencies, BenchError>>,
}

struct Probes {
    stopping: Arc<AtomicBool>,
    probes: Vec<Probe>,
}

impl Probes {
    /// On connections of their own: not behind what others have queued.
    async fn start(access: &Access) -> Result<Self, BenchError> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut probes = Vec::new();
        let read = RangeRequest { key: PROBE.into(), ..RangeRequest::default() };
        for (kind, call, message) in
            [("read", Call::range(), frame(&read)), ("write", Call::put(), frame(&put(PROBE.into())))]
        {
            let (stopping, connection) = (stopping.clone(), access.connect(1).await?.remove(0));
            let (sampled, samples) = watch::channel(0);
            let task = tokio::spawn(async move {
                let mut latencies = Latencies::default();
                let mut clock = tokio::time::interval(SAMPLE);
                clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stopping.load(Ordering::Relaxed) {
                    clock.tick().await;
                    let asked = Instant::now();
                    connection.call(&call, message.clone()).await?;
                    latencies.push(asked.elapsed());
                    sampled.send_replace(latencies.len());
                }
                Ok(latencies)
            });
            probes.push(Probe { kind, samples, task });
        }
        Ok(Self { stopping, probes })
    }

    /// Waits until each has so many samples more. A probe that has failed says so when it is stopped.
    async fn sample(&mut self, count: usize) {
        for Probe { samples, .. } in &mut self.probes {
            let wanted = *samples.borrow() + count;
            let _ = samples.wait_for(|found| *found >= wanted).await;
        }
    }

    async fn stop(self, when: &str) -> Result<Vec<Row>, BenchError> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut rows = Vec::new();
        for Probe { kind, task, .. } in self.probes {
            let mut latencies = task.await??;
            let what = format!("{kind} {when}");
            rows.push(Row::new(format!("{what}, p50"), "ms", latencies.percentile(50)));
            rows.push(Row::new(format!("{what}, p99.9"), "ms", latencies.per_mille(999)));
            rows.push(Row::new(format!("{what}, max"), "ms", latencies.percentile(100)));
            let pauses = latencies.longer_than(PAUSE) as f64;
            rows.push(Row::new(
                format!("{what}, over {} ms of {}", PAUSE.as_millis(), latencies.len()),
                "",
                pauses,
            ));
        }
        Ok(rows)
    }
}

/// The first `count` of all keys in their order.
fn first(count: usize, keys: usize) -> DeleteRangeRequest {
    let mut all: Vec<Bytes> = (0..keys).map(key).collect();
    all.sort_unstable();
    let range_end = all.get(count).cloned().unwrap_or_else(|| end(PREFIX));
    DeleteRangeRequest { key: PREFIX.into(), range_end, ..DeleteRangeRequest::default() }
}

/// A range is deleted by itself and, written again, by a transaction.
async fn delete(target: &Target, connection: &Connection, plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let deleted = plan.deleted.min(plan.keys);
    let request = first(deleted, plan.keys);
    let mut rows = Vec::new();
    for by in ["DeleteRange", "Txn"] {
        write(target, plan, 0..plan.keys).await?;
        let mut probes = Probes::start(&target.access).await?;
        probes.sample(AROUND).await;
        let begun = Instant::now();
        if by == "Txn" {
            let request = Some(request_op::Request::RequestDeleteRange(request.clone()));
            let txn = TxnRequest { success: vec![RequestOp { request }], ..TxnRequest::default() };
            connection.ask::<TxnResponse>(&Call::txn(), &txn).await?;
        } else {
            let answer: DeleteRangeResponse = connection.ask(&Call::delete_range(), &request).await?;
            if answer.deleted != deleted as i64 {
                let found = answer.deleted;
                return Err(BenchError::Unexpected(format!("{found} of {deleted} keys were deleted")));
            }
        }
        let took = begun.elapsed();
        probes.sample(AROUND).await;
        rows.push(Row::new(format!("{by} of {deleted} keys"), "ms", took.as_secs_f64() * 1000.0));
        rows.extend(probes.stop(&format!("around a {by} of {deleted} keys")).await?);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let member = directory.path().join("member");
        for (name, bytes) in [("tree/tree-1/db", 40_000), ("wal/0.wal", 20_000), ("snap/1", 10_000)] {
            let path = member.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; bytes]).unwrap();
        }
        let sizes = Sizes::of(directory.path());
        assert!(sizes.tree >= 40_000 && sizes.log >= 20_000);
        assert!(sizes.all >= sizes.tree + sizes.log + 10_000);
    }

    #[test]
    fn a_range_has_as_many_keys_as_asked_for() {
        for count in [1, 7, 10] {
            let range = first(count, 10);
            let within = |key: &Bytes| (&range.key..&range.range_end).contains(&key);
            assert_eq!((0..10).map(key).filter(within).count(), count);
        }
    }
}

//! A live set that is overwritten again and again while old revisions are compacted: whether readers and writers feel it,
//! and what it leaves on the disk.
//!
//! Probes of their own, one request at a time each, sample latencies beside the load; what the load itself waits for is
//! not what is asked.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest,
    request_op,
};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use super::stats::Latencies;
use super::{BenchError, Row, Section, processes};
use crate::store::{self, channel, kv};

const PREFIX: &str = "/keelson-churn/";
const PROBE: &str = "/keelson-churn-probe";
/// Between two requests of a probe.
const SAMPLE: Duration = Duration::from_millis(1);
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

/// A store that runs: its URL for clients, its process and its data directory.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub url: &'a str,
    pub pid: u32,
    pub data: &'a Path,
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

/// Runs it on a store that is started for it.
///
/// # Errors
/// The store's refusals.
pub async fn on(program: &Path, plan: &Plan) -> Result<Section, BenchError> {
    let directory = tempfile::Builder::new().prefix("keelson-bench-churn-").tempdir_in("/tmp")?;
    let mut members = store::start(program, directory.path(), 1)?;
    let member = members.pop().ok_or_else(|| BenchError::Unexpected("no member".to_owned()))?;
    member.ready().await.map_err(BenchError::Unexpected)?;
    let subject = Subject { url: &member.url, pid: member.pid(), data: &member.data };
    let mut section = run(&subject, plan).await?;
    section.title = format!("Churn and compaction: {}", program.display());
    Ok(section)
}

/// Makes the live set, overwrites and compacts it, deletes it, and says what that cost.
///
/// # Errors
/// The store's refusals.
pub async fn run(subject: &Subject<'_>, plan: &Plan) -> Result<Section, BenchError> {
    let channel = channel(subject.url)?;
    let mut rows = Vec::new();
    write(&channel, plan, 1, None).await?;
    let idle = Probes::start(subject.url)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    rows.extend(idle.stop("idle").await?);

    let probes = Probes::start(subject.url)?;
    let begun = Instant::now();
    write(&channel, plan, plan.rounds, Some(plan.keys / plan.compactions.max(1))).await?;
    let rate = (plan.keys * plan.rounds) as f64 / begun.elapsed().as_secs_f64();
    compact(&channel).await?;
    let sizes = Sizes::of(subject.data);
    rows.push(Row::new(
        format!("{} × {} puts of {} B, {} clients", plan.rounds, plan.keys, plan.value_bytes, plan.clients),
        "1/s",
        rate,
    ));
    rows.extend(probes.stop("overwritten and compacted").await?);
    let probes = Probes::start(subject.url)?;
    let rested = rest(subject.data).await;
    rows.extend(probes.stop("afterwards, until at rest").await?);
    rows.push(Row::new("until at rest", "s", rested.as_secs_f64()));

    let live = (plan.keys * (key(0).len() + plan.value_bytes)) as f64;
    rows.push(Row::new("live: keys and values", "MiB", mib(live)));
    let status = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await?.into_inner();
    rows.push(Row::new("in use, as the store says", "MiB", mib(status.db_size_in_use as f64)));
    for (when, sizes) in [("at the end", sizes), ("at rest", Sizes::of(subject.data))] {
        rows.push(Row::new(format!("tree {when}"), "MiB", mib(sizes.tree as f64)));
        rows.push(Row::new(format!("tree {when} / live"), "", sizes.tree as f64 / live));
        rows.push(Row::new(format!("log {when}"), "MiB", mib(sizes.log as f64)));
        rows.push(Row::new(format!("whole data directory {when}"), "MiB", mib(sizes.all as f64)));
        let rest = sizes.all.saturating_sub(sizes.log) as f64;
        rows.push(Row::new(format!("without the log {when} / live"), "", rest / live));
    }
    rows.push(Row::new("resident (PSS)", "MiB", processes::memory(subject.pid)?.proportional));
    rows.extend(delete(subject.url, &channel, plan).await?);
    Ok(Section { title: "Churn and compaction".to_owned(), peer: None, rows })
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn key(number: usize) -> Bytes {
    format!("{PREFIX}{number:08}").into()
}

/// Puts every key `rounds` times; compacts at what is newest each time that so many puts were made.
async fn write(
    channel: &Channel,
    plan: &Plan,
    rounds: usize,
    compact_every: Option<usize>,
) -> Result<(), BenchError> {
    let next = Arc::new(AtomicUsize::new(0));
    let total = plan.keys * rounds;
    let (keys, bytes) = (plan.keys, plan.value_bytes);
    let tasks: Vec<JoinHandle<Result<(), tonic::Status>>> = (0..plan.clients)
        .map(|_| {
            let (next, mut client) = (Arc::clone(&next), kv(channel.clone()));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return Ok(());
                    }
                    // In no order: neighbours are not overwritten together.
                    let place = number.wrapping_mul(1_000_003) % keys;
                    let value = vec![(number / keys) as u8; bytes].into();
                    let put = PutRequest { key: key(place), value, ..PutRequest::default() };
                    let revision =
                        client.put(put).await?.into_inner().header.map_or(0, |header| header.revision);
                    if compact_every.is_some_and(|every| number % every == every - 1) {
                        let request = CompactionRequest { revision, physical: false };
                        // Another writer may have compacted further meanwhile.
                        let _ = client.compact(request).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn compact(channel: &Channel) -> Result<(), BenchError> {
    let mut client = kv(channel.clone());
    let header = client.range(RangeRequest { key: PROBE.into(), ..RangeRequest::default() }).await?;
    let revision = header.into_inner().header.map_or(0, |header| header.revision);
    match client.compact(CompactionRequest { revision, physical: false }).await {
        // A writer did so with its last put.
        Err(status) if status.code() == tonic::Code::OutOfRange => Ok(()),
        other => Ok(other.map(drop)?),
    }
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

/// Tasks that ask all the time how long a read and a write take.
struct Probes {
    stopping: Arc<AtomicBool>,
    tasks: Vec<(&'static str, JoinHandle<Result<Latencies, tonic::Status>>)>,
}

impl Probes {
    /// On connections of their own: not behind what others have queued.
    fn start(url: &str) -> Result<Self, BenchError> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for kind in ["read", "write"] {
            let (stopping, mut client) = (stopping.clone(), kv(channel(url)?));
            let task = tokio::spawn(async move {
                let mut latencies = Latencies::default();
                while !stopping.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    match kind {
                        "read" => {
                            let range = RangeRequest { key: PROBE.into(), ..RangeRequest::default() };
                            client.range(range).await.map(drop)?;
                        }
                        _ => {
                            let put =
                                PutRequest { key: PROBE.into(), value: "x".into(), ..PutRequest::default() };
                            client.put(put).await.map(drop)?;
                        }
                    }
                    latencies.push(asked.elapsed());
                    tokio::time::sleep(SAMPLE).await;
                }
                Ok(latencies)
            });
            tasks.push((kind, task));
        }
        Ok(Self { stopping, tasks })
    }

    async fn stop(self, when: &str) -> Result<Vec<Row>, BenchError> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut rows = Vec::new();
        for (kind, task) in self.tasks {
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

/// A range is deleted by itself and, written again, by a transaction.
async fn delete(url: &str, channel: &Channel, plan: &Plan) -> Result<Vec<Row>, BenchError> {
    let deleted = plan.deleted.min(plan.keys);
    let request =
        || DeleteRangeRequest { key: key(0), range_end: key(deleted), ..DeleteRangeRequest::default() };
    let mut client = kv(channel.clone());
    let mut rows = Vec::new();
    for by in ["DeleteRange", "Txn"] {
        write(channel, plan, 1, None).await?;
        let probes = Probes::start(url)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        if by == "Txn" {
            let success =
                vec![RequestOp { request: Some(request_op::Request::RequestDeleteRange(request())) }];
            client.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        } else {
            client.delete_range(request()).await?;
        }
        let took = begun.elapsed();
        tokio::time::sleep(Duration::from_millis(500)).await;
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
}

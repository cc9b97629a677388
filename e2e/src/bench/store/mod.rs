//! Measures of a store over the etcd v3 protocol, turn and turn about with a peer, so that both see the same disk and
//! the same neighbours: rates, latencies, and what the servers' CPU, memory and disk take for it.

pub mod churn;
mod connection;
mod failover;
mod keys;
mod load;
mod requests;
mod watchers;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use connection::Access;
use connection::Call;
use keelson_proto::etcd::etcdserverpb::DeleteRangeResponse;
use load::{Load, Make, Target, closed, open};
use tempfile::TempDir;

use super::stats::median;
use super::{Bar, BenchError, Row, Section};
use crate::store::{self, Member};

/// How many times measures are taken; the median counts.
const ROUNDS: usize = 3;
const WIDE_RANGE: usize = 1000;
/// The part of the peer's throughput that is offered to both for latencies at the same load.
const OFFERED: f64 = 0.5;

/// What to run and how much of it.
pub struct Plan {
    /// A store that runs, or none to start `store` on free ports.
    pub access: Option<Access>,
    pub store: PathBuf,
    /// The peer's program; it is started on free ports.
    pub peer: PathBuf,
    /// How long a single load lasts.
    pub time: Duration,
    /// Small keys for memory and restart.
    pub keys: usize,
    /// Times that a leader is killed.
    pub failovers: usize,
}

/// Members that were started for this.
struct Cluster {
    members: Vec<Member>,
    target: Target,
}

impl Cluster {
    async fn start(program: &Path, directory: &Path, count: usize) -> Result<Self, BenchError> {
        std::fs::create_dir_all(directory)?;
        let members = store::start(program, directory, count)?;
        for member in &members {
            member.ready().await.map_err(BenchError::Unexpected)?;
        }
        let target = Target {
            access: Access::plain(members.iter().map(|member| member.url.clone()).collect()),
            pids: members.iter().map(Member::pid).collect(),
        };
        Ok(Self { members, target })
    }
}

fn directory() -> Result<TempDir, BenchError> {
    Ok(tempfile::Builder::new().prefix("keelson-bench-store-").tempdir_in("/tmp")?)
}

/// The two that are compared, with what they run on.
struct Pair {
    subject: Target,
    peer: Target,
    /// Ends them.
    _clusters: Vec<Cluster>,
    _directory: TempDir,
}

impl Pair {
    async fn start(plan: &Plan, members: usize) -> Result<Self, BenchError> {
        let directory = directory()?;
        let peer = Cluster::start(&plan.peer, &directory.path().join("peer"), members).await?;
        let (mut clusters, peer) = (vec![], (peer.target.clone(), peer));
        let subject = match &plan.access {
            Some(access) => Target { access: access.clone(), pids: Vec::new() },
            None => {
                let subject = Cluster::start(&plan.store, &directory.path().join("subject"), members).await?;
                let target = subject.target.clone();
                clusters.push(subject);
                target
            }
        };
        clusters.push(peer.1);
        Ok(Self { subject, peer: peer.0, _clusters: clusters, _directory: directory })
    }
}

/// Takes one kind of measure of both in turn, and the median of each of its values.
async fn compare<F>(pair: &Pair, rows: &mut Vec<Row>, measure: F) -> Result<(), BenchError>
where
    F: AsyncFn(&Target) -> Result<Vec<Row>, BenchError>,
{
    let (mut of_subject, mut of_peer) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Who goes first changes, so that neither always finds the other's dirty pages.
        if round % 2 == 0 {
            of_subject.push(measure(&pair.subject).await?);
            of_peer.push(measure(&pair.peer).await?);
        } else {
            of_peer.push(measure(&pair.peer).await?);
            of_subject.push(measure(&pair.subject).await?);
        }
    }
    let middle =
        |rounds: &[Vec<Row>], index: usize| median(rounds.iter().map(|rows| rows[index].value).collect());
    rows.extend((0..of_subject[0].len()).map(|index| Row {
        value: middle(&of_subject, index),
        peer: Some(middle(&of_peer, index)),
        ..of_subject[0][index].clone()
    }));
    Ok(())
}

/// The rows of one load: rate, latencies, CPU.
struct Wanted {
    rate: Option<Bar>,
    cpu: Option<Bar>,
}

fn rows(what: &str, mut load: Load, wanted: &Wanted) -> Vec<Row> {
    let mut rows = vec![
        Row::new(what, "1/s", load.rate).bar(wanted.rate),
        Row::new(format!("{what}, p50"), "ms", load.latencies.percentile(50)),
        Row::new(format!("{what}, p99"), "ms", load.latencies.percentile(99)),
    ];
    // What runs elsewhere has no CPU that can be seen.
    if load.cpu > 0.0 {
        rows.push(Row::new(format!("{what}, server CPU"), "µs", load.cpu).bar(wanted.cpu));
    }
    rows
}

/// What clients do all day, of one member and without the long measures.
pub async fn everyday(plan: &Plan) -> Result<Section, BenchError> {
    let pair = Pair::start(plan, 1).await?;
    let mut found = Vec::new();
    let none = Wanted { rate: None, cpu: None };
    let (put, range, txn) = (Call::put(), Call::range(), Call::txn());
    let (puts, gets) = (requests::puts(), requests::gets());
    for (name, call, make) in [("put 256 B", &put, &puts), ("range of one key", &range, &gets)] {
        for clients in [1, 64] {
            let what = format!("{name}, {clients} clients");
            compare(&pair, &mut found, async |target| {
                Ok(rows(&what, closed(target, call, clients, plan.time, make).await?, &none))
            })
            .await?;
        }
    }
    compare(&pair, &mut found, async |target| {
        let mut wide = closed(target, &range, 1, plan.time / 3, &requests::ranges(WIDE_RANGE)).await?;
        Ok(vec![Row::new(format!("range of {WIDE_RANGE} keys, p50"), "ms", wide.latencies.percentile(50))])
    })
    .await?;
    let mut round = 0;
    let first = std::cell::RefCell::new(&mut round);
    compare(&pair, &mut found, async |target| {
        let begin = {
            let mut round = first.borrow_mut();
            **round += 1;
            **round * 10_000_000
        };
        let what = "txn (create if absent), 64 clients";
        Ok(rows(what, closed(target, &txn, 64, plan.time, &requests::creates(begin)).await?, &none))
    })
    .await?;
    compare(&pair, &mut found, watchers::latency).await?;
    if plan.access.is_none() {
        let row = Row::new("resident afterwards (PSS)", "MiB", keys::proportional(&pair.subject)?);
        found.push(Row { peer: Some(keys::proportional(&pair.peer)?), ..row });
    }
    for target in [&pair.subject, &pair.peer] {
        let connection = &target.access.each().await?[0];
        connection.ask::<DeleteRangeResponse>(&Call::delete_range(), &requests::everything()).await?;
    }
    Ok(section(plan, "one member, everyday requests", found))
}

/// Every bar of the store that needs load: one member and three, 1, 64 and 512 clients.
pub async fn throughput(plan: &Plan, members: usize) -> Result<Section, BenchError> {
    let pair = Pair::start(plan, members).await?;
    let mut found = Vec::new();
    let (put, range) = (Call::put(), Call::range());
    let loads: [(&str, &Call, Make, Wanted); 2] = [
        (
            "put",
            &put,
            requests::puts(),
            Wanted { rate: Some(Bar::AtLeast(1.5)), cpu: Some(Bar::AtMost(0.5)) },
        ),
        (
            "get",
            &range,
            requests::gets(),
            Wanted { rate: Some(Bar::AtLeast(2.0)), cpu: Some(Bar::AtMost(1.0 / 3.0)) },
        ),
    ];
    for (name, call, make, wanted) in &loads {
        let mut offered = f64::INFINITY;
        for clients in [1, 64, 512] {
            let what = format!("{name}, {clients} clients");
            compare(&pair, &mut found, async |target| {
                Ok(rows(&what, closed(target, call, clients, plan.time, make).await?, wanted))
            })
            .await?;
            if let Some(rate) = found.iter().rev().find(|row| row.what == what).and_then(|row| row.peer)
                && clients == 64
            {
                offered = rate * OFFERED;
            }
        }
        compare(&pair, &mut found, async |target| {
            let mut load = open(target, call, offered, plan.time, make).await?;
            let what = format!("{name} at {offered:.0}/s, p99");
            let p99 = Row::new(what, "ms", load.latencies.percentile(99)).bar(Some(Bar::AtMost(0.5)));
            let cpu =
                Row::new(format!("{name} at {offered:.0}/s, server CPU"), "µs", load.cpu).bar(wanted.cpu);
            Ok(vec![p99, cpu])
        })
        .await?;
    }
    let name = if members == 1 { "one member".to_owned() } else { format!("{members} members") };
    Ok(section(plan, &name, found))
}

/// The long measures: watchers, many keys, failover.
pub async fn endurance(plan: &Plan) -> Result<Section, BenchError> {
    let mut found = Vec::new();
    {
        let pair = Pair::start(plan, 1).await?;
        compare(&pair, &mut found, watchers::fan_out).await?;
    }
    keys::measure(plan, &mut found).await?;
    failover::measure(plan, &mut found).await?;
    Ok(section(plan, "watchers, many keys, failover", found))
}

fn section(plan: &Plan, what: &str, rows: Vec<Row>) -> Section {
    let subject = match &plan.access {
        Some(access) => access.endpoints.join(","),
        None => plan.store.display().to_string(),
    };
    Section { title: format!("Store, {what}: {subject}"), peer: Some(plan.peer.display().to_string()), rows }
}

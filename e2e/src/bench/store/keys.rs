//! Many small keys: the memory they take, and how soon a member with them serves again.

use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::{
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use tokio::task::JoinSet;

use super::connection::Call;
use super::load::Target;
use super::requests::PREFIX;
use super::{Cluster, Plan, directory};
use crate::bench::{Bar, BenchError, Row, processes};

/// Keys in one transaction: etcd's default limit is 128.
const BATCH: usize = 100;
const WRITERS: usize = 16;
const VALUE: &[u8] = b"a small value of 32 bytes, fixed";
/// Bars of a member's start, in seconds.
const READY: f64 = 5.0;
/// What was written last goes on to be written for a while.
const REST: Duration = Duration::from_secs(5);

pub fn proportional(target: &Target) -> Result<f64, BenchError> {
    let mut sum = 0.0;
    for pid in &target.pids {
        sum += processes::memory(*pid)?.proportional;
    }
    Ok(sum)
}

fn resident(target: &Target) -> Result<f64, BenchError> {
    let mut sum = 0.0;
    for pid in &target.pids {
        sum += processes::memory(*pid)?.resident;
    }
    Ok(sum)
}

async fn fill(target: &Target, keys: usize) -> Result<(), BenchError> {
    let connections = target.access.connect(WRITERS).await?;
    let mut tasks = JoinSet::new();
    for (writer, connection) in connections.into_iter().enumerate() {
        tasks.spawn(async move {
            for batch in (writer..keys / BATCH).step_by(WRITERS) {
                let put = |number: usize| RequestOp {
                    request: Some(Request::RequestPut(PutRequest {
                        key: format!("{PREFIX}many/{number:012}").into(),
                        value: VALUE.into(),
                        ..PutRequest::default()
                    })),
                };
                let success = (batch * BATCH..(batch + 1) * BATCH).map(put).collect();
                let txn = TxnRequest { success, ..TxnRequest::default() };
                connection.ask::<TxnResponse>(&Call::txn(), &txn).await?;
            }
            Ok::<_, BenchError>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(())
}

/// Fills a member, lets it rest, kills it and starts it again. Gives MiB before and after, and seconds.
async fn one(program: &std::path::Path, keys: usize) -> Result<[f64; 4], BenchError> {
    let directory = directory()?;
    let mut cluster = Cluster::start(program, &directory.path().join("keys"), 1).await?;
    let started = Instant::now();
    fill(&cluster.target, keys).await?;
    let filled = started.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let before = resident(&cluster.target)?;
    let member = &mut cluster.members[0];
    member.kill()?;
    let started = Instant::now();
    member.restart()?;
    let count = RangeRequest {
        key: PREFIX.into(),
        range_end: super::requests::end(PREFIX),
        count_only: true,
        ..RangeRequest::default()
    };
    // Ready is who answers a linearizable read of everything.
    let ready = loop {
        let answer = async {
            let connection = cluster.target.access.each().await?.remove(0);
            connection.ask::<RangeResponse>(&Call::range(), &count).await
        };
        match answer.await {
            Ok(found) if found.count as usize >= keys / BATCH * BATCH => {
                break started.elapsed().as_secs_f64();
            }
            Ok(found) => {
                return Err(BenchError::Unexpected(format!("{} of {keys} keys are left", found.count)));
            }
            Err(error) if started.elapsed() > Duration::from_secs(120) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    cluster.target.pids = vec![cluster.members[0].pid()];
    tokio::time::sleep(REST).await;
    Ok([filled, before, ready, resident(&cluster.target)?])
}

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<(), BenchError> {
    let keys = plan.keys;
    let (subject, peer) = (one(&plan.store, keys).await?, one(&plan.peer, keys).await?);
    let row = |what: &str, unit, index: usize, bar| {
        let row = Row::new(format!("{keys} keys, {what}"), unit, subject[index]).bar(bar);
        Row { peer: Some(peer[index]), ..row }
    };
    rows.extend([
        row("written in", "s", 0, None),
        row("resident", "MiB", 1, Some(Bar::AtMost(0.5))),
        row("killed and started again, ready after", "s", 2, Some(Bar::Within(READY))),
        row("resident after that", "MiB", 3, Some(Bar::AtMost(0.5))),
    ]);
    Ok(())
}

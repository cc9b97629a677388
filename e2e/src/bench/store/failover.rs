//! A leader is killed: how soon writes are accepted again.

use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::{PutResponse, StatusRequest, StatusResponse};

use super::connection::{Access, Call};
use super::requests::{key, put};
use super::{Cluster, Plan, directory};
use crate::bench::stats::Latencies;
use crate::bench::{Bar, BenchError, Row};

/// Bars in seconds.
const MEDIAN: f64 = 2.0;
const WORST: f64 = 3.0;
const PATIENCE: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(5);

/// The place of the leader among the members, once all of them agree on it.
async fn leader(cluster: &Cluster) -> Result<usize, BenchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut seen = Vec::new();
        for member in &cluster.members {
            let status = async {
                let connection = Access::plain(vec![member.url.clone()]).each().await?.remove(0);
                connection.ask::<StatusResponse>(&Call::status(), &StatusRequest {}).await
            };
            if let Ok(status) = tokio::time::timeout(Duration::from_secs(1), status)
                .await
                .unwrap_or_else(|_| Err(BenchError::Unexpected("no answer".to_owned())))
            {
                let id = status.header.map_or(0, |header| header.member_id);
                seen.push((id, status.leader));
            }
        }
        let agreed =
            seen.len() == cluster.members.len() && seen.iter().all(|(_, leader)| *leader == seen[0].1);
        if agreed && let Some(place) = seen.iter().position(|(id, leader)| id == leader) {
            return Ok(place);
        }
        if Instant::now() > deadline {
            return Err(BenchError::Unexpected(format!("no leader that all agree on: {seen:?}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn one(program: &std::path::Path, times: usize) -> Result<Latencies, BenchError> {
    let directory = directory()?;
    let mut cluster = Cluster::start(program, &directory.path().join("failover"), 3).await?;
    let mut found = Latencies::default();
    for number in 0..times {
        let place = leader(&cluster).await?;
        cluster.members[place].kill()?;
        let killed = Instant::now();
        let others: Vec<String> =
            (0..3).filter(|other| *other != place).map(|other| cluster.members[other].url.clone()).collect();
        let connections = Access::plain(others).each().await?;
        // Both are asked all the time; the first write that either accepts counts.
        let mut writes = tokio::task::JoinSet::new();
        for connection in connections {
            writes.spawn(async move {
                loop {
                    let call = Call::put();
                    let request = put(key(number));
                    let write = connection.ask::<PutResponse>(&call, &request);
                    if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(500), write).await {
                        return killed.elapsed();
                    }
                    tokio::time::sleep(RETRY).await;
                }
            });
        }
        let first = tokio::time::timeout(PATIENCE, writes.join_next()).await.map_err(|_| {
            BenchError::Unexpected("no write was accepted after a leader was killed".to_owned())
        })?;
        if let Some(took) = first {
            found.push(took?);
        }
        writes.abort_all();
        cluster.members[place].restart()?;
        cluster.members[place].ready().await.map_err(BenchError::Unexpected)?;
    }
    Ok(found)
}

pub async fn measure(plan: &Plan, rows: &mut Vec<Row>) -> Result<(), BenchError> {
    let times = plan.failovers;
    let (mut subject, mut peer) = (one(&plan.store, times).await?, one(&plan.peer, times).await?);
    let mut row = |what: &str, percent, bar| {
        let value = subject.percentile(percent) / 1000.0;
        let row = Row::new(format!("leader killed to first write, {what} of {times}"), "s", value);
        Row { peer: Some(peer.percentile(percent) / 1000.0), ..row.bar(Some(bar)) }
    };
    rows.extend([row("median", 50, Bar::Within(MEDIAN)), row("worst", 100, Bar::Within(WORST))]);
    Ok(())
}

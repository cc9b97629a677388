//! Watches: how soon one is told, and what telling many costs.

use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{PutResponse, WatchCreateRequest, WatchRequest, WatchResponse};
use tokio::task::JoinSet;

use super::connection::{Answers, Call, Connection, decode};
use super::load::Target;
use super::requests::{PREFIX, end, put};
use crate::bench::stats::Latencies;
use crate::bench::{Bar, BenchError, Row};

/// Puts of which one watch is told, one at a time.
const LATENCIES: usize = 500;
const WATCHERS: usize = 1000;
/// Watches on one stream.
const WATCHES_A_STREAM: usize = 100;
/// Puts of which all watchers are told.
const WRITES: usize = 300;
const PATIENCE: Duration = Duration::from_secs(60);

fn ended() -> BenchError {
    BenchError::Unexpected("the watch ended".to_owned())
}

/// A stream with so many watches on what begins with `prefix`, all of them created.
async fn watch(connection: &Connection, prefix: &str, count: usize) -> Result<Answers, BenchError> {
    let create = WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: end(prefix),
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let mut answers = connection.stream(&Call::watch(), &request).await?;
    for number in 0..count {
        if number > 0 {
            answers.send(&request)?;
        }
        let created: WatchResponse = decode(&answers.next().await?.ok_or_else(ended)?)?;
        if !created.created {
            return Err(BenchError::Unexpected("the watch was not created".to_owned()));
        }
    }
    Ok(answers)
}

/// From sending a put to receiving its event, one at a time.
pub async fn latency(target: &Target) -> Result<Vec<Row>, BenchError> {
    let prefix = format!("{PREFIX}watched/");
    let connections = target.access.connect(2).await?;
    let mut answers = watch(&connections[0], &prefix, 1).await?;
    let mut latencies = Latencies::default();
    for _ in 0..LATENCIES {
        let request = put(format!("{prefix}key").into());
        let sent = Instant::now();
        let event = async {
            let answer: WatchResponse = decode(&answers.next().await?.ok_or_else(ended)?)?;
            match answer.events.is_empty() {
                true => Err(BenchError::Unexpected("an answer without an event".to_owned())),
                false => Ok(sent.elapsed()),
            }
        };
        let call = Call::put();
        let write = connections[1].ask::<PutResponse>(&call, &request);
        let both = async { tokio::try_join!(event, write) };
        let (latency, _) = tokio::time::timeout(PATIENCE, both)
            .await
            .map_err(|_| BenchError::Unexpected("no event in time".to_owned()))??;
        latencies.push(latency);
    }
    Ok(vec![
        Row::new("put to watch event, p50", "ms", latencies.percentile(50)),
        Row::new("put to watch event, p99", "ms", latencies.percentile(99)),
    ])
}

/// Many watchers of one prefix: what an event that reaches one of them costs.
pub async fn fan_out(target: &Target) -> Result<Vec<Row>, BenchError> {
    let prefix = format!("{PREFIX}fan/");
    let connections = target.access.connect(WATCHERS / WATCHES_A_STREAM + 1).await?;
    let mut streams = Vec::new();
    for connection in connections.iter().skip(1) {
        streams.push(watch(connection, &prefix, WATCHES_A_STREAM).await?);
    }
    let (cpu, started) = (target.cpu()?, Instant::now());
    let mut tasks = JoinSet::new();
    for mut answers in streams {
        tasks.spawn(async move {
            let mut events = 0;
            while events < WATCHES_A_STREAM * WRITES {
                let answer: WatchResponse = decode(&answers.next().await?.ok_or_else(ended)?)?;
                events += answer.events.len();
            }
            Ok::<_, BenchError>(())
        });
    }
    let write = async {
        for number in 0..WRITES {
            let request = put(format!("{prefix}{:04}", number % 100).into());
            connections[0].ask::<PutResponse>(&Call::put(), &request).await?;
        }
        Ok::<_, BenchError>(())
    };
    let receive = async {
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, async { tokio::try_join!(write, receive) })
        .await
        .map_err(|_| BenchError::Unexpected("not all events came in time".to_owned()))??;
    let (events, took) = ((WATCHERS * WRITES) as f64, started.elapsed().as_secs_f64());
    Ok(vec![
        Row::new(format!("{WATCHERS} watchers of a prefix, events"), "1/s", events / took),
        Row::new(
            format!("{WATCHERS} watchers of a prefix, server CPU per event"),
            "µs",
            (target.cpu()? - cpu) * 1e6 / events,
        )
        .bar(Some(Bar::AtMost(1.0 / 3.0))),
    ])
}

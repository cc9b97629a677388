//! Writes, reads, transactions and watches of a store over the etcd v3 protocol, turn and turn about
//! with a peer, so that both see the same disk and the same neighbours.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use keelson_proto::etcd::etcdserverpb::watch_client::WatchClient;
use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest, request_op,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::stats::{Latencies, median};
use super::{BenchError, Row, Section, processes};
use crate::store::{self, kv};

/// Every key of this benchmark begins with this.
const PREFIX: &str = "/keelson-bench/";
const VALUE_BYTES: usize = 256;
/// How many times all measures are taken; the median counts.
const ROUNDS: usize = 3;
const WIDE_RANGE: usize = 1000;

/// How to reach a store that runs already.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Access {
    fn channel(&self) -> Result<Channel, BenchError> {
        let url = self.endpoints.first().ok_or_else(|| BenchError::Unexpected("no endpoint".to_owned()))?;
        let mut endpoint = Endpoint::from_shared(url.clone())?;
        if url.starts_with("https") {
            let mut tls = ClientTlsConfig::new();
            if let Some(ca) = &self.ca {
                tls = tls.ca_certificate(Certificate::from_pem(std::fs::read(ca)?));
            }
            if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
                tls = tls.identity(Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        Ok(endpoint.connect_lazy())
    }
}

/// What to run and how much of it.
pub struct Plan {
    /// A store that runs, or none to start `store` on a free port.
    pub access: Option<Access>,
    pub store: PathBuf,
    /// The peer's program; it is started on a free port.
    pub peer: PathBuf,
    /// Requests per measure of one client; measures of many clients take eight times as many.
    pub requests: usize,
}

/// Runs all measures against the subject and the peer in turn.
pub async fn run(plan: &Plan) -> Result<Section, BenchError> {
    let directory = tempfile::Builder::new().prefix("keelson-bench-store-").tempdir_in("/tmp")?;
    let start = |program: &PathBuf, name: &str| {
        let place = directory.path().join(name);
        std::fs::create_dir_all(&place)?;
        let mut members = store::start(program, &place, 1)?;
        members.pop().ok_or_else(|| std::io::Error::other("no member"))
    };
    let subject = match &plan.access {
        Some(_) => None,
        None => Some(start(&plan.store, "subject")?),
    };
    let peer = start(&plan.peer, "peer")?;
    for member in subject.iter().chain([&peer]) {
        member.ready().await.map_err(BenchError::Unexpected)?;
    }
    let subject_channel = match (&plan.access, &subject) {
        (Some(access), _) => access.channel()?,
        (None, Some(member)) => member.channel()?,
        (None, None) => unreachable!("a store is started where none is given"),
    };
    let peer_channel = peer.channel()?;

    let mut of_subject: Vec<Vec<Row>> = Vec::new();
    let mut of_peer: Vec<Vec<Row>> = Vec::new();
    for round in 0..ROUNDS {
        // Who goes first changes, so that neither always finds the other's dirty pages.
        if round % 2 == 0 {
            of_subject.push(measure(&subject_channel, plan.requests).await?);
            of_peer.push(measure(&peer_channel, plan.requests).await?);
        } else {
            of_peer.push(measure(&peer_channel, plan.requests).await?);
            of_subject.push(measure(&subject_channel, plan.requests).await?);
        }
    }
    let middle =
        |rounds: &[Vec<Row>], index: usize| median(rounds.iter().map(|rows| rows[index].value).collect());
    let mut rows: Vec<Row> = (0..of_subject[0].len())
        .map(|index| Row {
            value: middle(&of_subject, index),
            peer: Some(middle(&of_peer, index)),
            ..of_subject[0][index].clone()
        })
        .collect();
    if let Some(member) = &subject {
        let value = processes::memory(member.pid())?.proportional;
        let peer = Some(processes::memory(peer.pid())?.proportional);
        rows.push(Row { what: "resident afterwards (PSS)".into(), unit: "MiB", value, peer });
    }
    let title = match &plan.access {
        Some(access) => format!("Store at {}", access.endpoints.join(",")),
        None => format!("Store: {}", plan.store.display()),
    };
    Ok(Section { title, peer: Some(plan.peer.display().to_string()), rows })
}

/// One round of all measures.
async fn measure(channel: &Channel, requests: usize) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for (clients, requests) in [(1, requests), (64, requests * 8)] {
        let mut run = load(channel, clients, requests, |mut client, number| async move {
            client.put(put(number)).await.map(drop)
        })
        .await?;
        rows.push(Row::new(format!("put {VALUE_BYTES} B, {clients} clients"), "1/s", run.rate));
        rows.push(Row::new(
            format!("put {VALUE_BYTES} B, {clients} clients, p50"),
            "ms",
            run.latencies.percentile(50),
        ));
        rows.push(Row::new(
            format!("put {VALUE_BYTES} B, {clients} clients, p99"),
            "ms",
            run.latencies.percentile(99),
        ));
    }
    for (clients, requests) in [(1, requests), (64, requests * 8)] {
        let mut run = load(channel, clients, requests, |mut client, number| async move {
            client.range(RangeRequest { key: key(number), ..RangeRequest::default() }).await.map(drop)
        })
        .await?;
        rows.push(Row::new(format!("range of one key, {clients} clients"), "1/s", run.rate));
        rows.push(Row::new(
            format!("range of one key, {clients} clients, p99"),
            "ms",
            run.latencies.percentile(99),
        ));
    }
    let mut wide = load(channel, 1, 100, |mut client, _| async move {
        let request = RangeRequest {
            key: PREFIX.into(),
            range_end: end(),
            limit: WIDE_RANGE as i64,
            ..RangeRequest::default()
        };
        client.range(request).await.map(drop)
    })
    .await?;
    rows.push(Row::new(format!("range of {WIDE_RANGE} keys, p50"), "ms", wide.latencies.percentile(50)));
    let mut swaps = load(channel, 64, requests * 4, |mut client, number| async move {
        client.txn(create(number)).await.map(drop)
    })
    .await?;
    rows.push(Row::new("txn (create if absent), 64 clients", "1/s", swaps.rate));
    rows.push(Row::new("txn (create if absent), 64 clients, p99", "ms", swaps.latencies.percentile(99)));
    let mut watch = watch_latency(channel, requests.min(500)).await?;
    rows.push(Row::new("put to watch event, p50", "ms", watch.percentile(50)));
    rows.push(Row::new("put to watch event, p99", "ms", watch.percentile(99)));
    let everything =
        DeleteRangeRequest { key: PREFIX.into(), range_end: end(), ..DeleteRangeRequest::default() };
    kv(channel.clone()).delete_range(everything).await?;
    Ok(rows)
}

type Client = keelson_proto::etcd::etcdserverpb::kv_client::KvClient<Channel>;

/// The outcome of one measure.
struct Load {
    /// Requests per second.
    rate: f64,
    latencies: Latencies,
}

/// `clients` tasks that together make `requests` requests as fast as they are answered.
async fn load<F, Fut>(channel: &Channel, clients: usize, requests: usize, ask: F) -> Result<Load, BenchError>
where
    F: Fn(Client, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(), tonic::Status>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (next, ask, client) = (Arc::clone(&next), ask.clone(), kv(channel.clone()));
            tokio::spawn(async move {
                let mut latencies = Latencies::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return Ok::<_, tonic::Status>(latencies);
                    }
                    let asked = Instant::now();
                    ask(client.clone(), number).await?;
                    latencies.push(asked.elapsed());
                }
            })
        })
        .collect();
    let mut latencies = Latencies::default();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok(Load { rate: requests as f64 / started.elapsed().as_secs_f64(), latencies })
}

fn key(number: usize) -> Bytes {
    // Spread over the key space, as names of objects are.
    format!("{PREFIX}{:08x}", (number as u32).wrapping_mul(2_654_435_761)).into()
}

/// The end of the range of all keys with the prefix.
fn end() -> Bytes {
    let mut end = PREFIX.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

fn put(number: usize) -> PutRequest {
    PutRequest { key: key(number), value: vec![b'v'; VALUE_BYTES].into(), ..PutRequest::default() }
}

/// What an API server sends for a create: put where the key has no revision.
fn create(number: usize) -> TxnRequest {
    let key: Bytes = format!("{PREFIX}txn/{number:08}").into();
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest { key: key.clone(), ..put(number) })),
        }],
        failure: vec![RequestOp {
            request: Some(request_op::Request::RequestRange(RangeRequest { key, ..RangeRequest::default() })),
        }],
    }
}

/// From sending a put to receiving its event, one at a time.
async fn watch_latency(channel: &Channel, count: usize) -> Result<Latencies, BenchError> {
    let watched: Bytes = format!("{PREFIX}watched").into();
    let create = WatchCreateRequest { key: watched.clone(), ..WatchCreateRequest::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The request side stays open as long as the watch is wanted.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let closed = || BenchError::Unexpected("the watch ended".to_owned());
    sender.send(request).await.map_err(|_| closed())?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut events = WatchClient::new(channel.clone()).watch(requests).await?.into_inner();
    let created = events.message().await?.ok_or_else(closed)?;
    if !created.created {
        return Err(BenchError::Unexpected("the watch was not created".to_owned()));
    }
    let mut client = kv(channel.clone());
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let sent = Instant::now();
        let request = PutRequest {
            key: watched.clone(),
            value: vec![b'v'; VALUE_BYTES].into(),
            ..PutRequest::default()
        };
        let event = async {
            loop {
                let answer = events.message().await?.ok_or_else(closed)?;
                if !answer.events.is_empty() {
                    return Ok::<_, BenchError>(sent.elapsed());
                }
            }
        };
        let write = async { client.put(request).await.map(drop).map_err(BenchError::from) };
        let both = async { tokio::try_join!(event, write) };
        let (latency, ()) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .map_err(|_| BenchError::Unexpected("no event within 10 s".to_owned()))??;
        latencies.push(latency);
    }
    Ok(latencies)
}

//! Requests from many clients at once, as fast as they are answered or at a rate, and what they cost the server.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::connection::{Access, Call, Connection};
use crate::bench::stats::Latencies;
use crate::bench::{BenchError, processes};

/// Clients that share a connection, as many programs do; an API server has more connections and fewer clients on each.
const CLIENTS_A_CONNECTION: usize = 8;
const MILLISECOND: Duration = Duration::from_millis(1);

/// A store under load: how to reach it, and the processes whose CPU counts.
#[derive(Debug, Clone)]
pub struct Target {
    pub access: Access,
    pub pids: Vec<u32>,
}

impl Target {
    /// CPU that its processes have taken, in seconds.
    pub fn cpu(&self) -> Result<f64, BenchError> {
        let mut seconds = 0.0;
        for pid in &self.pids {
            seconds += processes::cpu(*pid)?;
        }
        Ok(seconds)
    }
}

/// Makes the request of a number.
pub type Make = Arc<dyn Fn(usize) -> Bytes + Send + Sync>;

/// The outcome of one measure.
#[derive(Debug)]
pub struct Load {
    /// Requests per second.
    pub rate: f64,
    pub latencies: Latencies,
    /// Microseconds of the servers' CPU per request.
    pub cpu: f64,
}

async fn connections(target: &Target, clients: usize) -> Result<Vec<Connection>, BenchError> {
    let endpoints = target.access.endpoints.len();
    target.access.connect(clients.div_ceil(CLIENTS_A_CONNECTION).max(endpoints.min(clients))).await
}

/// `clients` that each wait for an answer before they ask again, for `time`.
pub async fn closed(
    target: &Target,
    call: &Call,
    clients: usize,
    time: Duration,
    make: &Make,
) -> Result<Load, BenchError> {
    each_waits(target, call, clients, 0, move |_, started| started.elapsed() < time, make).await
}

/// As [`closed`], for the requests of these numbers.
pub async fn counted(
    target: &Target,
    call: &Call,
    clients: usize,
    numbers: Range<usize>,
    make: &Make,
) -> Result<Load, BenchError> {
    each_waits(target, call, clients, numbers.start, move |number, _| number < numbers.end, make).await
}

/// `goes_on` is asked of each number before its request, with when the load began.
async fn each_waits(
    target: &Target,
    call: &Call,
    clients: usize,
    first: usize,
    goes_on: impl Fn(usize, Instant) -> bool + Clone + Send + 'static,
    make: &Make,
) -> Result<Load, BenchError> {
    let connections = connections(target, clients).await?;
    let next = Arc::new(AtomicUsize::new(first));
    let (cpu, started) = (target.cpu()?, Instant::now());
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let (next, make, call, goes_on) = (next.clone(), make.clone(), call.clone(), goes_on.clone());
        let connection = connections[client % connections.len()].clone();
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if !goes_on(number, started) {
                    return Ok::<_, BenchError>(latencies);
                }
                let message = make(number);
                let asked = Instant::now();
                connection.call(&call, message).await?;
                latencies.push(asked.elapsed());
            }
        });
    }
    finish(target, tasks, cpu, started).await
}

/// Requests at a rate, whether or not those before are answered; latencies count from when a request was due.
pub async fn open(
    target: &Target,
    call: &Call,
    rate: f64,
    time: Duration,
    make: &Make,
) -> Result<Load, BenchError> {
    let connections = connections(target, 64).await?;
    let (cpu, started) = (target.cpu()?, Instant::now());
    let mut tasks = JoinSet::new();
    let mut clock = tokio::time::interval(MILLISECOND);
    let mut sent = 0;
    while started.elapsed() < time {
        clock.tick().await;
        let due = Instant::now();
        let wanted = (started.elapsed().as_secs_f64() * rate) as usize;
        for number in sent..wanted {
            let (call, message) = (call.clone(), make(number));
            let connection = connections[number % connections.len()].clone();
            tasks.spawn(async move {
                connection.call(&call, message).await?;
                let mut latencies = Latencies::default();
                latencies.push(due.elapsed());
                Ok::<_, BenchError>(latencies)
            });
        }
        sent = wanted.max(sent);
    }
    finish(target, tasks, cpu, started).await
}

async fn finish(
    target: &Target,
    mut tasks: JoinSet<Result<Latencies, BenchError>>,
    cpu: f64,
    started: Instant,
) -> Result<Load, BenchError> {
    let mut latencies = Latencies::default();
    while let Some(task) = tasks.join_next().await {
        latencies.extend(task??);
    }
    let elapsed = started.elapsed().as_secs_f64();
    let count = latencies.len() as f64;
    Ok(Load { rate: count / elapsed, latencies, cpu: (target.cpu()? - cpu) * 1e6 / count })
}

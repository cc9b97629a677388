//! What clients call: counted by method and by code, under the names that gRPC's Prometheus middleware gives.
//!
//! A request costs two relaxed additions; labels are formatted at a scrape. A call counts as handled when its status is
//! sent, or when its client has gone before (`Canceled`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::Histogram;
use tonic::body::Body;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

use Kind::{BidiStream, ServerStream, Unary};

/// What may be called, the most frequent first.
#[rustfmt::skip]
const METHODS: &[(&str, Kind)] = &[
    ("/etcdserverpb.KV/Range", Unary), ("/etcdserverpb.KV/Put", Unary), ("/etcdserverpb.KV/Txn", Unary),
    ("/etcdserverpb.KV/DeleteRange", Unary), ("/etcdserverpb.KV/Compact", Unary),
    ("/etcdserverpb.Watch/Watch", BidiStream),
    ("/etcdserverpb.Lease/LeaseGrant", Unary), ("/etcdserverpb.Lease/LeaseRevoke", Unary),
    ("/etcdserverpb.Lease/LeaseKeepAlive", BidiStream), ("/etcdserverpb.Lease/LeaseTimeToLive", Unary),
    ("/etcdserverpb.Lease/LeaseLeases", Unary),
    ("/etcdserverpb.Cluster/MemberAdd", Unary), ("/etcdserverpb.Cluster/MemberRemove", Unary),
    ("/etcdserverpb.Cluster/MemberUpdate", Unary), ("/etcdserverpb.Cluster/MemberList", Unary),
    ("/etcdserverpb.Cluster/MemberPromote", Unary),
    ("/etcdserverpb.Maintenance/Alarm", Unary), ("/etcdserverpb.Maintenance/Status", Unary),
    ("/etcdserverpb.Maintenance/Defragment", Unary), ("/etcdserverpb.Maintenance/Hash", Unary),
    ("/etcdserverpb.Maintenance/HashKV", Unary), ("/etcdserverpb.Maintenance/Snapshot", ServerStream),
    ("/etcdserverpb.Maintenance/MoveLeader", Unary), ("/etcdserverpb.Maintenance/Downgrade", Unary),
    ("/etcdserverpb.Auth/AuthStatus", Unary), ("/etcdserverpb.Auth/Authenticate", Unary),
    ("/v3lockpb.Lock/Lock", Unary), ("/v3lockpb.Lock/Unlock", Unary),
    ("/v3electionpb.Election/Campaign", Unary), ("/v3electionpb.Election/Proclaim", Unary),
    ("/v3electionpb.Election/Leader", Unary), ("/v3electionpb.Election/Observe", ServerStream),
    ("/v3electionpb.Election/Resign", Unary),
    ("/grpc.health.v1.Health/Check", Unary), ("/grpc.health.v1.Health/Watch", ServerStream),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", BidiStream),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", BidiStream),
];

/// gRPC's codes by number, as its Go library prints them.
#[rustfmt::skip]
const CODES: [&str; 17] = [
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
    "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
    "Internal", "Unavailable", "DataLoss", "Unauthenticated",
];
const OK: usize = 0;
const CANCELED: usize = 1;
const UNKNOWN: usize = 2;

#[derive(Debug, Default)]
struct Counts {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

#[derive(Debug)]
pub struct Calls {
    counts: Vec<Counts>,
    /// How long calls took; only if asked for.
    seconds: Option<Vec<Histogram>>,
}

impl Calls {
    pub fn new(measure: bool) -> Arc<Self> {
        // Go's default buckets.
        let histogram = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        Arc::new(Self {
            counts: METHODS.iter().map(|_| Counts::default()).collect(),
            seconds: measure.then(|| METHODS.iter().map(|_| histogram()).collect()),
        })
    }

    /// A call that begins; none if there is no such method.
    pub fn begin(self: &Arc<Self>, path: &str) -> Option<Call> {
        let method = METHODS.iter().position(|(known, _)| *known == path)?;
        if let Some(counts) = self.counts.get(method) {
            counts.started.fetch_add(1, Ordering::Relaxed);
        }
        let begun = self.seconds.is_some().then(Instant::now);
        Some(Call { calls: self.clone(), method, code: CANCELED, begun })
    }
}

/// A call under way.
pub struct Call {
    calls: Arc<Calls>,
    method: usize,
    code: usize,
    begun: Option<Instant>,
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(counts) = self.calls.counts.get(self.method)
            && let Some(handled) = counts.handled.get(self.code)
        {
            handled.fetch_add(1, Ordering::Relaxed);
        }
        if let (Some(begun), Some(seconds)) = (self.begun, &self.calls.seconds)
            && let Some(histogram) = seconds.get(self.method)
        {
            histogram.observe(begun.elapsed().as_secs_f64());
        }
    }
}

/// The code in headers or trailers, if they have one.
fn code(headers: &HeaderMap) -> Option<usize> {
    let value = headers.get("grpc-status")?;
    let code = value.to_str().ok().and_then(|text| text.parse().ok());
    Some(code.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN))
}

impl Call {
    fn set(&mut self, code: usize) {
        self.code = code;
    }

    /// Counts the call by its answer, now or when the answer's stream ends.
    pub fn end(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(code) = code(response.headers()) {
            self.code = code;
            return response;
        }
        match METHODS.get(self.method) {
            Some((_, Unary)) | None => {
                self.code = OK;
                response
            }
            Some(_) => response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(code) = frame.trailers_ref().and_then(code) {
                        self.set(code);
                    }
                    frame
                }))
            }),
        }
    }
}

/// Shows them at a scrape.
#[derive(Debug)]
pub struct CallsCollector(pub Arc<Calls>);

/// The labels that all have.
fn labels(path: &'static str, kind: Kind) -> [(&'static str, &'static str); 3] {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let kind = match kind {
        Unary => "unary",
        ServerStream => "server_stream",
        BidiStream => "bidi_stream",
    };
    [("grpc_method", method), ("grpc_service", service), ("grpc_type", kind)]
}

impl Collector for CallsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let methods = || METHODS.iter().zip(&self.0.counts);
        let counter = ConstCounter::new(0_u64).metric_type();
        let mut started = encoder.encode_descriptor(
            "grpc_server_started",
            "Total number of RPCs started on the server",
            None,
            counter,
        )?;
        for ((path, kind), counts) in methods() {
            let metric = ConstCounter::new(counts.started.load(Ordering::Relaxed));
            metric.encode(started.encode_family(&labels(path, *kind))?)?;
        }
        let mut handled = encoder.encode_descriptor(
            "grpc_server_handled",
            "Total number of RPCs completed on the server, regardless of success or failure",
            None,
            counter,
        )?;
        for ((path, kind), counts) in methods() {
            let [method, service, kind] = labels(path, *kind);
            for (name, count) in CODES.iter().zip(&counts.handled) {
                let metric = ConstCounter::new(count.load(Ordering::Relaxed));
                metric.encode(handled.encode_family(&[("grpc_code", *name), method, service, kind])?)?;
            }
        }
        let Some(seconds) = &self.0.seconds else { return Ok(()) };
        let Some(first) = seconds.first() else { return Ok(()) };
        let mut handling = encoder.encode_descriptor(
            "grpc_server_handling_seconds",
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server",
            None,
            first.metric_type(),
        )?;
        for ((path, kind), histogram) in METHODS.iter().zip(seconds) {
            histogram.encode(handling.encode_family(&labels(path, *kind))?)?;
        }
        Ok(())
    }
}

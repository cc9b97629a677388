//! The etcd v3 services over one [`Server`]: requests in, events to the node, answers with etcd's headers and errors.
//!
//! Nothing here decides or changes anything; it checks what can be checked without state, waits, and translates.

mod auth;
mod check;
mod cluster;
mod error;
mod health;
mod kv;
mod lease;
mod maintenance;
mod queue;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::{AlarmType, ResponseHeader};
use keelson_proto::etcd::storepb::command::Operation;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use error::status;

use crate::apply::{Response, State};
use crate::metrics::Metrics;
use crate::mvcc::MvccError;
use crate::node::{Event, Refused, Shared};
use crate::transport::Peers;

/// The version of etcd whose API and behaviour this is. Clients choose what to use by it.
pub const ETCD_VERSION: &str = "3.5.21";
/// As much of it as the members of a cluster have in common.
pub const CLUSTER_VERSION: &str = "3.5";
/// How much larger than a client's request a gRPC message may be.
pub const OVERHEAD: usize = 512 << 10;
/// Requests in flight that change something; more are refused.
const MAX_IN_FLIGHT: usize = 20_000;
/// Bytes of them, above which more are refused: all that may wait in memory while the disk or a quorum is away.
const MAX_IN_FLIGHT_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub request_bytes: usize,
    pub txn_ops: usize,
    /// Seconds: the least time to live of a lease, which has to outlive an election.
    pub min_lease_ttl: i64,
    pub watch_progress: Duration,
    /// Bytes that all revisions may take before writes are refused: etcd's quota, but of what is in use.
    pub quota: u64,
    /// Until a request fails.
    pub request_timeout: Duration,
}

pub struct Server {
    pub cluster: u64,
    pub member: u64,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    pub events: Sender<Event>,
    pub peers: Arc<Peers>,
    pub limits: Limits,
    /// Ends watches and keepalive streams.
    pub stopping: CancellationToken,
    in_flight: InFlight,
    lease_serial: AtomicU64,
}

/// What a [`Server`] is made of.
pub struct Parts {
    pub cluster: u64,
    pub member: u64,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    pub events: Sender<Event>,
    pub peers: Arc<Peers>,
    pub limits: Limits,
    pub stopping: CancellationToken,
    pub seed: u64,
}

/// The server where a service outlives the call: its streams hold it.
#[derive(Clone)]
pub struct Service(pub Arc<Server>);

impl std::ops::Deref for Service {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

/// Requests that change something and have no answer yet.
#[derive(Default)]
struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    /// None: there are too many. A single request may be of any size.
    fn begin(&self, size: usize) -> Option<Flight<'_>> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.bytes.fetch_add(size, Ordering::Relaxed);
        let flight = Flight { of: self, size };
        (requests < MAX_IN_FLIGHT && bytes < MAX_IN_FLIGHT_BYTES).then_some(flight)
    }
}

struct Flight<'a> {
    of: &'a InFlight,
    size: usize,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.of.requests.fetch_sub(1, Ordering::Relaxed);
        self.of.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// Runs a read whose length the client decides. The runtime has few threads, and they carry the peers' heartbeats: two
/// long lists at once would cost the leader its place.
fn long<T>(read: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(read)
}

impl Server {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { cluster, member, state, shared, metrics, events, peers, limits, stopping, seed } = parts;
        Arc::new(Self {
            cluster,
            member,
            state,
            shared,
            metrics,
            events,
            peers,
            limits,
            stopping,
            in_flight: InFlight::default(),
            lease_serial: AtomicU64::new(seed),
        })
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster,
            member_id: self.member,
            revision,
            raft_term: self.shared.term(),
        })
    }

    fn current_header(&self) -> Option<ResponseHeader> {
        self.header(self.state.store.revision())
    }

    fn send(&self, event: Event) -> Result<(), Status> {
        self.events.send(event).map_err(|_| status::stopped())
    }

    /// Puts an operation through consensus; returns the store's revision afterwards and the state machine's answer.
    pub async fn propose(&self, operation: Operation) -> Result<(i64, Response), Status> {
        let flight = self.in_flight.begin(operation.encoded_len()).ok_or_else(status::too_many_requests)?;
        let (reply, answer) = oneshot::channel();
        self.send(Event::Propose { operation, reply })?;
        let answer = answer.await;
        drop(flight);
        match answer {
            Ok(Ok((revision, Ok(response)))) => Ok((revision, response)),
            Ok(Ok((_, Err(rejected)))) => Err(error::rejected(&rejected)),
            Ok(Err(refused)) => Err(error::refused(refused)),
            Err(_) => Err(status::stopped()),
        }
    }

    /// Waits until this member has everything that was committed before the call.
    pub async fn read_barrier(&self) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Read { reply })?;
        answer.await.unwrap_or(Err(Refused::Stopped)).map_err(|refused| {
            self.metrics.failed_reads.inc();
            if matches!(refused, Refused::Timeout) {
                self.metrics.slow_reads.inc();
            }
            error::refused(refused)
        })
    }

    /// A read's refusal. A tree that cannot be read ends the process, since it is rebuilt at the next start: otherwise
    /// whoever asks for what is damaged would be refused for good.
    fn read_failed(&self, error: MvccError) -> Status {
        let status = error::mvcc(&error);
        if let MvccError::Backend(error) = error {
            // The node may be stopping already.
            let _ = self.events.send(Event::TreeFailed(error));
        }
        status
    }

    /// The answer is of another kind than the operation: only a bug in apply could do that.
    fn mismatch() -> Status {
        Status::internal("etcdserver: the state machine gave another kind of answer")
    }

    /// Refuses what takes space while this member or another one has none.
    fn check_space(&self) -> Result<(), Status> {
        if self.shared.no_space() || self.state.alarms.read().any(AlarmType::Nospace) {
            return Err(status::no_space());
        }
        Ok(())
    }

    /// Refuses to read what may be wrong. (Writes are refused by the state machine.)
    fn check_intact(&self) -> Result<(), Status> {
        if self.state.alarms.read().any(AlarmType::Corrupt) { Err(status::corrupt()) } else { Ok(()) }
    }

    fn new_lease_id(&self) -> i64 {
        // Ids are spread, so that members and restarts do not choose the same.
        let serial = self.lease_serial.fetch_add(1, Ordering::Relaxed);
        let mixed = (serial ^ self.member.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ (mixed >> 29)) >> 1).cast_signed().max(1)
    }
}

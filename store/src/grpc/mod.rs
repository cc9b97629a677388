//! The etcd v3 services over one [`Server`]: requests in, events to the node, answers with etcd's headers and errors.
//!
//! Nothing here decides or changes anything; it checks what can be checked without state, waits, and translates.

mod answer;
mod auth;
mod check;
mod cluster;
mod error;
mod flight;
#[cfg(test)]
mod fuzz;
mod health;
mod kv;
mod lease;
mod maintenance;
mod queue;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::{AlarmType, ResponseHeader};
use keelson_proto::etcd::storepb::command::Operation;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use error::status;

use flight::{InFlight, Waiting};

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
const OVERHEAD: usize = 512 << 10;

/// How much longer the node has than its own deadline.
const GRACE: Duration = Duration::from_secs(1);

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
    pub events: UnboundedSender<Event>,
    pub peers: Arc<Peers>,
    pub limits: Limits,
    /// Ends watches and keepalive streams.
    pub stopping: CancellationToken,
    /// Has the space looked at now.
    pub look_at_space: Notify,
    in_flight: Arc<InFlight>,
    lease_serial: AtomicU64,
}

/// What a [`Server`] is made of.
pub struct Parts {
    pub cluster: u64,
    pub member: u64,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Metrics>,
    pub events: UnboundedSender<Event>,
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
            look_at_space: Notify::new(),
            in_flight: Arc::default(),
            lease_serial: AtomicU64::new(seed),
        })
    }

    /// Bytes that a message to or from a client may have.
    pub fn message_limit(&self) -> usize {
        self.limits.request_bytes + OVERHEAD
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
        let mut waiting = Waiting::new(flight, answer);
        match self.answered(waiting.answer()).await {
            Ok((revision, Ok(response))) => Ok((revision, response)),
            Ok((_, Err(rejected))) => Err(error::rejected(&rejected)),
            Err(refused) => Err(error::refused(refused)),
        }
    }

    /// Waits for the node's answer. It says itself when something takes too long, but not while it waits for its disk, as
    /// that of a sole voter does.
    async fn answered<T>(
        &self,
        answer: impl Future<Output = Result<Result<T, Refused>, RecvError>>,
    ) -> Result<T, Refused> {
        let answer = async { answer.await.unwrap_or(Err(Refused::Stopped)) };
        if !self.shared.is_sole() {
            return answer.await;
        }
        let patience = self.limits.request_timeout + GRACE;
        tokio::time::timeout(patience, answer).await.unwrap_or(Err(Refused::Timeout))
    }

    /// Waits until this member has everything that was committed before the call.
    pub async fn read_barrier(&self) -> Result<(), Status> {
        if self.shared.is_sole() { Ok(()) } else { self.confirm().await }
    }

    /// Has the node confirm that this member has everything that was committed before the call: that it works shows too.
    pub async fn confirm(&self) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Read { reply })?;
        self.answered(answer).await.map_err(|refused| {
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
        if self.state.store.in_use() > self.limits.quota {
            // Not noticed yet by who looks now and then.
            self.look_at_space.notify_one();
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

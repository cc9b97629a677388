//! Metrics under etcd's names. What the state knows anyway is computed at each scrape; the rest is counted here.

use std::sync::Arc;

use keelson_component_base::metrics::{HistogramFamily, Registry, exponential_buckets};
use keelson_proto::etcd::etcdserverpb::AlarmType;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;

use crate::apply::State;
use crate::node::Shared;
use crate::wal::Observer;

pub struct Metrics {
    pub wal_fsync: Histogram,
    pub backend_commit: Histogram,
    pub leader_changes: Counter,
    pub proposals_failed: Counter,
    pub snapshots_installed: Counter,
    pub range: Counter,
    pub put: Counter,
    pub delete: Counter,
    pub txn: Counter,
    pub lease_granted: Counter,
    pub lease_revoked: Counter,
    pub lease_renewed: Counter,
    pub slow_watchers: Counter,
    pub events: Counter,
    /// Watches of clients, whether they are level or behind.
    pub watchers: Gauge,
    pub watch_streams: Gauge,
    pub client_sent: Counter,
    pub client_received: Counter,
    pub slow_applies: Counter,
    pub slow_reads: Counter,
    pub failed_reads: Counter,
    pub peers: PeerMetrics,
}

/// A label that names a peer, as each metric has it.
type PeerLabel = [(&'static str, String); 1];

/// What is counted for each peer; whoever counts keeps its own.
pub struct PeerMetrics {
    pub sent: Family<PeerLabel, Counter>,
    pub received: Family<PeerLabel, Counter>,
    pub failed: Family<PeerLabel, Counter>,
    pub round_trip: HistogramFamily<PeerLabel>,
    pub active: Family<[(&'static str, String); 2], Gauge>,
}

/// What is counted of what goes to one peer.
pub struct PeerCounters {
    pub sent: Counter,
    pub failed: Counter,
    pub round_trip: Histogram,
    pub active: Gauge,
}

impl PeerMetrics {
    fn new(registry: &Registry) -> Self {
        Self {
            sent: registry
                .counters("etcd_network_peer_sent_bytes", "The total number of bytes sent to peers"),
            received: registry.counters(
                "etcd_network_peer_received_bytes",
                "The total number of bytes received from peers",
            ),
            failed: registry
                .counters("etcd_network_peer_sent_failures", "The total number of send failures from peers"),
            round_trip: registry.histograms(
                "etcd_network_peer_round_trip_time_seconds",
                "Round-Trip-Time histogram between peers",
                || Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            ),
            active: registry
                .gauges("etcd_network_active_peers", "The current number of active peer connections"),
        }
    }

    pub fn to(&self, own: u64, peer: u64) -> PeerCounters {
        let (own, peer) = (format!("{own:x}"), format!("{peer:x}"));
        let to = [("To", peer.clone())];
        PeerCounters {
            sent: self.sent.get_or_create_owned(&to),
            failed: self.failed.get_or_create_owned(&to),
            round_trip: self.round_trip.get_or_create_owned(&to),
            active: self.active.get_or_create_owned(&[("Local", own), ("Remote", peer)]),
        }
    }

    /// Bytes received from one peer.
    pub fn from(&self, peer: u64) -> Counter {
        self.received.get_or_create_owned(&[("From", format!("{peer:x}"))])
    }
}

impl Metrics {
    pub fn new(registry: &Registry) -> Arc<Self> {
        let seconds = || exponential_buckets(0.001, 2.0, 14);
        let counter = |name, help| registry.counter(name, help);
        Arc::new(Self {
            wal_fsync: registry.histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "The latency distributions of fsync called by WAL",
                seconds(),
            ),
            backend_commit: registry.histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "The latency distributions of commit called by backend",
                seconds(),
            ),
            leader_changes: counter("etcd_server_leader_changes_seen", "The number of leader changes seen"),
            proposals_failed: counter("etcd_server_proposals_failed", "The number of failed proposals seen"),
            snapshots_installed: counter(
                "etcd_server_snapshot_apply",
                "Snapshots of a leader that were installed",
            ),
            range: {
                let help = "Total number of ranges seen by this member";
                registry.register("etcd_debugging_mvcc_range", help, counter("etcd_mvcc_range", help))
            },
            put: counter("etcd_mvcc_put", "Total number of puts seen by this member"),
            delete: counter("etcd_mvcc_delete", "Total number of deletes seen by this member"),
            txn: counter("etcd_mvcc_txn", "Total number of txns seen by this member"),
            lease_granted: counter("etcd_debugging_lease_granted", "The total number of granted leases"),
            lease_revoked: counter("etcd_debugging_lease_revoked", "The total number of revoked leases"),
            lease_renewed: counter(
                "etcd_debugging_lease_renewed",
                "The number of renewed leases seen by the leader",
            ),
            slow_watchers: counter(
                "etcd_debugging_mvcc_watchers_fallen_behind",
                "How often a synced watcher did not keep up and went on from history",
            ),
            events: counter("etcd_debugging_mvcc_events", "Total number of events sent by this member"),
            watchers: Gauge::default(),
            watch_streams: registry
                .gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams"),
            client_sent: counter(
                "etcd_network_client_grpc_sent_bytes",
                "The total number of bytes sent to grpc clients",
            ),
            client_received: counter(
                "etcd_network_client_grpc_received_bytes",
                "The total number of bytes received from grpc clients",
            ),
            slow_applies: counter(
                "etcd_server_slow_apply",
                "The total number of slow apply requests (likely overloaded from slow disk)",
            ),
            slow_reads: counter(
                "etcd_server_slow_read_indexes",
                "The total number of pending read indexes not in sync with leader's or timed out read index requests",
            ),
            failed_reads: counter(
                "etcd_server_read_indexes_failed",
                "The total number of failed read indexes seen",
            ),
            peers: PeerMetrics::new(registry),
        })
    }
}

/// The log's thread reports through it.
pub struct WalObserver {
    pub metrics: Arc<Metrics>,
    pub shared: Arc<Shared>,
}

impl Observer for WalObserver {
    fn fsync(&self, took: std::time::Duration) {
        self.metrics.wal_fsync.observe(took.as_secs_f64());
    }

    fn size(&self, bytes: u64, written: u64) {
        self.shared.set_wal_size(bytes, written);
    }
}

/// What is read off the state at each scrape.
pub struct StateCollector {
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub quota: u64,
    pub metrics: Arc<Metrics>,
    pub member: u64,
}

impl std::fmt::Debug for StateCollector {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("StateCollector")
    }
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (state, shared) = (&self.state, &self.shared);
        let store = &state.store;
        let mut gauge = |name, help, value: u64| {
            let metric = ConstGauge::new(value.cast_signed());
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let flag = u64::from;
        gauge("etcd_server_has_leader", "Whether or not a leader exists", flag(shared.leader() != 0))?;
        gauge("etcd_server_is_leader", "Whether or not this member is a leader", flag(shared.is_leader()))?;
        let learner = flag(shared.is_learner());
        gauge("etcd_server_is_learner", "Whether or not this member is a learner", learner)?;
        gauge("etcd_server_proposals_pending", "The current number of pending proposals", shared.pending())?;
        gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes", self.quota)?;
        let size = store.values.backend().size();
        gauge("etcd_mvcc_db_total_size_in_bytes", "Total size of the underlying database in bytes", size)?;
        gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Total size of the underlying database logically in use in bytes",
            store.in_use(),
        )?;
        gauge("etcd_debugging_mvcc_keys_total", "Total number of keys", store.key_count() as u64)?;
        let revision = store.revision().unsigned_abs();
        gauge("etcd_debugging_mvcc_current_revision", "The current revision of store", revision)?;
        let compacted = store.compacted().max(0).unsigned_abs();
        gauge(
            "etcd_debugging_mvcc_compact_revision",
            "The revision of the last compaction in store",
            compacted,
        )?;
        let corrupt = flag(state.alarms.read().any(AlarmType::Corrupt));
        gauge("etcd_debugging_server_alarm_corrupt", "Whether an alarm CORRUPT is raised", corrupt)?;
        let watchers = self.metrics.watchers.get().unsigned_abs();
        gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers", watchers)?;
        gauge(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Total number of unsynced slow watchers",
            watchers.saturating_sub(state.hub.watchers() as u64),
        )?;
        let installing = flag(shared.is_installing());
        gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "1 if the server is applying the incoming snapshot. 0 if none",
            installing,
        )?;
        gauge("etcd_wal_bytes", "Bytes of the write-ahead log that are not cut", shared.wal_bytes())?;
        let id = [("server_id", format!("{:x}", self.member))];
        let help = "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID";
        let one = ConstGauge::new(1_u64.cast_signed());
        let mut named = encoder.encode_descriptor("etcd_server_id", help, None, one.metric_type())?;
        one.encode(named.encode_family(&id)?)?;
        let mut counter = |name, help, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("etcd_disk_wal_write_bytes", "Total number of bytes written in WAL", shared.wal_written())?;
        counter(
            "etcd_server_proposals_committed",
            "The total number of consensus proposals committed",
            shared.commit(),
        )?;
        counter(
            "etcd_server_proposals_applied",
            "The total number of consensus proposals applied",
            state.applied(),
        )
    }
}

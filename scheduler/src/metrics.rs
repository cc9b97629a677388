//! The scheduler's metrics, under upstream's names.

use keelson_component_base::metrics::{HistogramFamily, Registry, exponential_buckets};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::queue::Pending;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    profile: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    queue: &'static str,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Scheduled,
    Unschedulable,
    Error,
}

#[derive(Clone)]
pub struct Metrics {
    profile: String,
    attempts: Family<AttemptLabels, Counter>,
    duration: HistogramFamily<AttemptLabels>,
    algorithm: Histogram,
    sli: Histogram,
    pending: Family<QueueLabels, Gauge>,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

impl Metrics {
    pub fn new(registry: &Registry, profile: &str) -> Self {
        Self {
            profile: profile.to_owned(),
            attempts: registry.counters(
                "scheduler_schedule_attempts",
                "Number of attempts to schedule pods, by the result",
            ),
            duration: registry.histograms(
                "scheduler_scheduling_attempt_duration_seconds",
                "Scheduling attempt latency in seconds (algorithm and binding)",
                seconds,
            ),
            algorithm: registry.histogram(
                "scheduler_scheduling_algorithm_duration_seconds",
                "Scheduling algorithm latency in seconds",
                exponential_buckets(0.00001, 2.0, 20),
            ),
            sli: registry.histogram(
                "scheduler_pod_scheduling_sli_duration_seconds",
                "Time from the pod being seen until it is bound, in seconds",
                exponential_buckets(0.001, 2.0, 20),
            ),
            pending: registry
                .gauges("scheduler_pending_pods", "Number of pending pods, by the queue they wait in"),
        }
    }

    pub fn decided(&self, seconds: f64) {
        self.algorithm.observe(seconds);
    }

    /// An attempt ended after `seconds`.
    pub fn attempted(&self, outcome: Outcome, seconds: f64) {
        let result = match outcome {
            Outcome::Scheduled => "scheduled",
            Outcome::Unschedulable => "unschedulable",
            Outcome::Error => "error",
        };
        let labels = AttemptLabels { profile: self.profile.clone(), result };
        self.attempts.get_or_create(&labels).inc();
        self.duration.get_or_create(&labels).observe(seconds);
    }

    /// A pod was bound this long after it was first seen.
    pub fn bound(&self, seconds: f64) {
        self.sli.observe(seconds);
    }

    pub fn pending(&self, pending: Pending) {
        for (queue, count) in [
            ("active", pending.active),
            ("backoff", pending.backoff),
            ("unschedulable", pending.unschedulable),
        ] {
            self.pending.get_or_create(&QueueLabels { queue }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

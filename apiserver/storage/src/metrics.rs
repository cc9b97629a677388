//! Metrics of the storage layer, under upstream's names.

use std::sync::Arc;
use std::time::Duration;

use keelson_component_base::metrics::{HistogramFamily, Registry};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Upstream's buckets of `etcd_request_duration_seconds`.
const DURATIONS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    operation: &'static str,
    r#type: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResourceLabels {
    resource: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConsistentReadLabels {
    resource: Arc<str>,
    success: &'static str,
    fallback: &'static str,
}

/// Handles to all metrics of this crate; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    durations: HistogramFamily<RequestLabels>,
    requests: Family<RequestLabels, Counter>,
    errors: Family<RequestLabels, Counter>,
    objects: Family<ResourceLabels, Gauge>,
    received: Family<ResourceLabels, Counter>,
    fills: Family<ResourceLabels, Counter>,
    terminated: Family<ResourceLabels, Counter>,
    capacity: Family<ResourceLabels, Gauge>,
    consistent: Family<ConsistentReadLabels, Counter>,
    pub(crate) revision: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            requests: Family::default(),
            errors: Family::default(),
            objects: Family::default(),
            received: Family::default(),
            fills: Family::default(),
            terminated: Family::default(),
            capacity: Family::default(),
            consistent: Family::default(),
            revision: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Adds the metrics to the process' registry; once per process.
    pub fn register(&self, registry: &Registry) {
        registry.register(
            "etcd_request_duration_seconds",
            "Etcd request latency in seconds for each operation and object type.",
            self.durations.clone(),
        );
        registry.register(
            "etcd_requests",
            "Etcd request counts for each operation and object type.",
            self.requests.clone(),
        );
        registry.register(
            "etcd_request_errors",
            "Etcd failed request counts for each operation and object type.",
            self.errors.clone(),
        );
        registry.register(
            "apiserver_storage_objects",
            "Number of stored objects of each resource, as the watch cache knows them.",
            self.objects.clone(),
        );
        registry.register(
            "apiserver_watch_cache_events_received",
            "Counter of events received in watch cache broken by resource type.",
            self.received.clone(),
        );
        registry.register(
            "apiserver_watch_cache_initializations",
            "Counter of watch cache initializations broken by resource type.",
            self.fills.clone(),
        );
        registry.register(
            "apiserver_terminated_watchers",
            "Counter of watchers closed due to unresponsiveness broken by resource type.",
            self.terminated.clone(),
        );
        registry.register(
            "apiserver_watch_cache_capacity",
            "Number of events in the window of the watch cache broken by resource type.",
            self.capacity.clone(),
        );
        registry.register(
            "apiserver_watch_cache_consistent_read",
            "Counter for consistent reads from cache.",
            self.consistent.clone(),
        );
        registry.register(
            "apiserver_watch_cache_resource_version",
            "Current resource version of the watch cache.",
            self.revision.clone(),
        );
    }

    pub(crate) fn request(&self, operation: &'static str, resource: &Arc<str>, took: Duration, failed: bool) {
        let labels = RequestLabels { operation, r#type: resource.clone() };
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
        self.requests.get_or_create(&labels).inc();
        if failed {
            self.errors.get_or_create(&labels).inc();
        }
    }

    pub(crate) fn consistent_read(&self, resource: &Arc<str>, from_cache: bool) {
        let labels = ConsistentReadLabels {
            resource: resource.clone(),
            success: if from_cache { "true" } else { "false" },
            fallback: if from_cache { "false" } else { "true" },
        };
        self.consistent.get_or_create(&labels).inc();
    }

    /// The handles of one resource's cache, looked up once.
    pub(crate) fn of_cache(&self, resource: &Arc<str>) -> CacheMetrics {
        let labels = ResourceLabels { resource: resource.clone() };
        CacheMetrics {
            objects: self.objects.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            fills: self.fills.get_or_create_owned(&labels),
            terminated: self.terminated.get_or_create_owned(&labels),
            capacity: self.capacity.get_or_create_owned(&labels),
        }
    }

    /// Forgets a resource that is no longer served.
    pub(crate) fn remove(&self, resource: &Arc<str>) {
        let labels = ResourceLabels { resource: resource.clone() };
        self.objects.remove(&labels);
        self.received.remove(&labels);
        self.fills.remove(&labels);
        self.terminated.remove(&labels);
        self.capacity.remove(&labels);
    }
}

/// What one resource's cache counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct CacheMetrics {
    pub(crate) objects: Gauge,
    pub(crate) received: Counter,
    pub(crate) fills: Counter,
    pub(crate) terminated: Counter,
    pub(crate) capacity: Gauge,
}

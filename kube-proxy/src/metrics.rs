//! kube-proxy's metrics, under upstream's names.

use keelson_component_base::metrics::{Registry, exponential_buckets};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::atomic::AtomicU64;

#[derive(Clone)]
pub struct Metrics {
    pub sync_duration: Histogram,
    pub sync_failures: Counter,
    pub last_sync: Gauge<f64, AtomicU64>,
    pub last_queued: Gauge<f64, AtomicU64>,
    pub service_changes: Counter,
    pub endpoint_changes: Counter,
}

impl Metrics {
    pub fn new(registry: &Registry) -> Self {
        Self {
            sync_duration: registry.histogram(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "Time that writing the rules took, in seconds",
                exponential_buckets(0.001, 2.0, 15),
            ),
            sync_failures: registry.counter(
                "kubeproxy_sync_proxy_rules_nftables_sync_failures",
                "Number of transactions that the kernel refused",
            ),
            last_sync: registry.register(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the rules were last written",
                Gauge::default(),
            ),
            last_queued: registry.register(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a change of the rules was last asked for",
                Gauge::default(),
            ),
            service_changes: registry
                .counter("kubeproxy_sync_proxy_rules_service_changes", "Number of changes of Services"),
            endpoint_changes: registry.counter(
                "kubeproxy_sync_proxy_rules_endpoint_changes",
                "Number of changes of EndpointSlices",
            ),
        }
    }
}

/// Seconds since the epoch.
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|d| d.as_secs_f64())
        .unwrap_or_default()
}

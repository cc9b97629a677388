//! The process's metrics: a shared registry over prometheus-client.
//!
//! The text is OpenMetrics 1.0 ([`CONTENT_TYPE`]): prometheus-client appends `_total` to a counter's name by itself,
//! so a counter is registered without it. Names and labels are upstream's wherever the meaning is the same.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry as Inner};

use crate::process::ProcessCollector;

/// What `/metrics` declares its text to be.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A family of histograms: `Family` needs to know how to make one, which a function of no arguments says.
pub type HistogramFamily<S> = Family<S, Histogram, fn() -> Histogram>;

/// Shared by clone; has the `process_*` metrics from the start.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Mutex<Inner>>);

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    #[must_use]
    pub fn new() -> Self {
        let mut inner = Inner::default();
        inner.register_collector(Box::new(ProcessCollector::default()));
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Registers a metric and hands back a clone that shares its values. Names must be new to the registry.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        // prometheus-client puts the full stop behind the help text itself.
        self.0.lock().register(name, help.trim_end_matches('.'), metric.clone());
        metric
    }

    /// A counter; `name` without `_total`.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// A histogram with the given upper bounds.
    pub fn histogram(&self, name: &str, help: &str, buckets: impl IntoIterator<Item = f64>) -> Histogram {
        self.register(name, help, Histogram::new(buckets))
    }

    /// Counters by labels; `name` without `_total`.
    pub fn counters<S>(&self, name: &str, help: &str) -> Family<S, Counter>
    where
        S: EncodeLabelSet + std::fmt::Debug + Clone + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// Gauges by labels.
    pub fn gauges<S>(&self, name: &str, help: &str) -> Family<S, Gauge>
    where
        S: EncodeLabelSet + std::fmt::Debug + Clone + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        self.register(name, help, Family::default())
    }

    /// Histograms by labels.
    pub fn histograms<S>(&self, name: &str, help: &str, make: fn() -> Histogram) -> HistogramFamily<S>
    where
        S: EncodeLabelSet + std::fmt::Debug + Clone + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        self.register(name, help, Family::new_with_constructor(make))
    }

    /// Figures that are computed at each scrape.
    pub fn collector(&self, collector: Box<dyn Collector>) {
        self.0.lock().register_collector(collector);
    }

    /// A gauge that is always 1 and whose labels tell what is running: `kubernetes_build_info`, `etcd_server_version`.
    pub fn build_info(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: Vec<(String, String)> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let family: Family<Vec<(String, String)>, Gauge> = Family::default();
        family.get_or_create(&labels).set(1);
        self.register(name, "A metric with a constant '1' value labeled by what was built", family);
    }

    /// The exposition text of all metrics.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        if prometheus_client::encoding::text::encode(&mut text, &self.0.lock()).is_err() {
            // Writing to a String cannot fail; a collector of ours that does is a bug worth a line, not a crash.
            tracing::error!("Could not encode the metrics");
        }
        text
    }
}

/// `count` bounds from `start`, each `factor` times the one before.
pub fn exponential_buckets(start: f64, factor: f64, count: u16) -> impl Iterator<Item = f64> {
    prometheus_client::metrics::histogram::exponential_buckets(start, factor, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_has_process_and_own_metrics() {
        let registry = Registry::new();
        registry.counter("demo_requests", "Requests.").inc_by(3);
        registry
            .gauges::<Vec<(String, String)>>("depth", "Depth")
            .get_or_create(&vec![("name".into(), "q".into())])
            .set(7);
        registry.build_info("kubernetes_build_info", &[("git_version", "v1.36.0")]);
        let text = registry.encode();
        for line in [
            "demo_requests_total 3",
            "depth{name=\"q\"} 7",
            "kubernetes_build_info{git_version=\"v1.36.0\"} 1",
            "# TYPE process_cpu_seconds counter",
            "# HELP demo_requests Requests.",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for name in [
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "process_open_fds",
            "process_start_time_seconds",
        ] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 0.0), "{name} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let start: f64 = text
            .lines()
            .find_map(|line| line.strip_prefix("process_start_time_seconds ")?.parse().ok())
            .unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((0.0..3600.0).contains(&(now - start)), "started {} s ago", now - start);
    }
}

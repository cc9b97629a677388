//! The kubelet's own metrics, with upstream's names.

use std::{sync::atomic::AtomicU64, time::Duration};

use keelson_component_base::metrics::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation_type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ContainerState {
    container_state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Node {
    node: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Probe {
    probe_type: &'static str,
    result: &'static str,
    container: String,
    pod: String,
    namespace: String,
}

const STATES: [&str; 4] = ["created", "running", "exited", "unknown"];

fn runtime_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.5, 14))
}

fn start_histogram() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0])
}

/// Every metric this daemon counts; registered once.
pub struct Metrics {
    node_name: Family<Node, Gauge>,
    running_pods: Gauge,
    running_containers: Family<ContainerState, Gauge>,
    operations: Family<Operation, Counter>,
    operation_errors: Family<Operation, Counter>,
    operation_duration: Family<Operation, Histogram, fn() -> Histogram>,
    relist_duration: Histogram,
    pod_start: Histogram,
    pod_start_sli: Histogram,
    pod_worker: Family<Operation, Histogram, fn() -> Histogram>,
    probes: Family<Probe, Counter>,
    started_pods: Counter,
    started_containers: Counter,
    evictions: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            node_name: Family::default(),
            running_pods: Gauge::default(),
            running_containers: Family::default(),
            operations: Family::default(),
            operation_errors: Family::default(),
            operation_duration: Family::new_with_constructor(runtime_histogram),
            relist_duration: runtime_histogram(),
            pod_start: start_histogram(),
            pod_start_sli: start_histogram(),
            pod_worker: Family::new_with_constructor(runtime_histogram),
            probes: Family::default(),
            started_pods: Counter::default(),
            started_containers: Counter::default(),
            evictions: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Names them all in `registry`; counters get `_total` from the encoder.
    pub fn register(&self, registry: &Registry) {
        let r = registry;
        r.register("kubelet_node_name", "The node's name", self.node_name.clone());
        r.register("kubelet_running_pods", "Pods that have a running sandbox", self.running_pods.clone());
        r.register("kubelet_running_containers", "Containers by state", self.running_containers.clone());
        r.register("kubelet_runtime_operations", "Runtime operations by type", self.operations.clone());
        r.register(
            "kubelet_runtime_operations_errors",
            "Runtime operations that failed",
            self.operation_errors.clone(),
        );
        let duration = self.operation_duration.clone();
        r.register("kubelet_runtime_operations_duration_seconds", "Duration of runtime operations", duration);
        r.register(
            "kubelet_pleg_relist_duration_seconds",
            "Duration of listing the runtime",
            self.relist_duration.clone(),
        );
        r.register(
            "kubelet_pod_start_duration_seconds",
            "From seeing a pod to its start",
            self.pod_start.clone(),
        );
        r.register(
            "kubelet_pod_start_total_duration_seconds",
            "From a pod's creation to all of its containers running",
            self.pod_start_sli.clone(),
        );
        r.register(
            "kubelet_pod_worker_duration_seconds",
            "Duration of one synchronisation of a pod",
            self.pod_worker.clone(),
        );
        r.register("prober_probe", "Probes by result", self.probes.clone());
        r.register("kubelet_started_pods", "Pods started", self.started_pods.clone());
        r.register("kubelet_started_containers", "Containers started", self.started_containers.clone());
        r.register("kubelet_evictions", "Pods evicted", self.evictions.clone());
    }

    pub fn set_node(&self, node: &str) {
        self.node_name.get_or_create(&Node { node: node.to_owned() }).set(1);
    }

    pub fn runtime_operation(&self, operation_type: &'static str, duration: Duration, succeeded: bool) {
        let label = Operation { operation_type };
        self.operations.get_or_create(&label).inc();
        self.operation_duration.get_or_create(&label).observe(duration.as_secs_f64());
        if !succeeded {
            self.operation_errors.get_or_create(&label).inc();
        }
    }

    /// After listing the runtime: `by_state` in the order of CRI's container states.
    pub fn relisted(&self, duration: Duration, running_pods: i64, by_state: [i64; 4]) {
        self.relist_duration.observe(duration.as_secs_f64());
        self.running_pods.set(running_pods);
        for (container_state, count) in STATES.into_iter().zip(by_state) {
            self.running_containers.get_or_create(&ContainerState { container_state }).set(count);
        }
    }

    pub fn pod_started(&self, since_seen: Duration, since_created: Duration) {
        self.pod_start.observe(since_seen.as_secs_f64());
        self.pod_start_sli.observe(since_created.as_secs_f64());
    }

    pub fn pod_synced(&self, operation_type: &'static str, duration: Duration) {
        self.pod_worker.get_or_create(&Operation { operation_type }).observe(duration.as_secs_f64());
    }

    pub fn sandbox_started(&self) {
        self.started_pods.inc();
    }

    pub fn container_started(&self) {
        self.started_containers.inc();
    }

    pub fn pod_evicted(&self) {
        self.evictions.inc();
    }

    pub fn probed(&self, probe_type: &'static str, result: &'static str, container: &str, pod: (&str, &str)) {
        let (namespace, pod) = (pod.0.to_owned(), pod.1.to_owned());
        let container = container.to_owned();
        self.probes.get_or_create(&Probe { probe_type, result, container, pod, namespace }).inc();
    }
}

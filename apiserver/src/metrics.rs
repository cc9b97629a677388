//! Metrics of the API server under upstream's names.

use std::time::Duration;

use keelson_component_base::metrics::{HistogramFamily, Registry};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};

use crate::{endpoints::Call, http::chain::Exchange, request::RequestInfo, served::Table};

/// The buckets of upstream's request durations, without the ones between that nobody reads.
const BUCKETS: &[f64] =
    &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0];

/// Who asked for what, without the code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub verb: String,
    pub dry_run: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub scope: String,
    pub component: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodedLabels {
    verb: String,
    dry_run: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: String,
    component: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    request_kind: &'static str,
}

fn scope(info: &RequestInfo) -> &'static str {
    match &info.resource {
        None => "",
        Some(path) if !path.name.is_empty() => "resource",
        Some(path) if !path.namespace.is_empty() => "namespace",
        Some(_) => "cluster",
    }
}

impl RequestLabels {
    /// A path that names nothing that is served is told apart by nothing: anybody can ask for any path, and each set of
    /// labels is kept for ever.
    pub fn of(exchange: &Exchange, table: &Table) -> Self {
        let info = &exchange.info;
        let verb = match info.verb.as_str() {
            "create" => "POST",
            "update" => "PUT",
            "patch"
                if exchange.header(&http::header::CONTENT_TYPE).starts_with("application/apply-patch") =>
            {
                "APPLY"
            }
            "patch" => "PATCH",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let connects = info.resource.as_ref().is_some_and(|path| {
            matches!(path.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
        });
        let path = info.resource.as_ref().filter(|path| table.serves(path)).cloned().unwrap_or_default();
        RequestLabels {
            verb: if connects { "CONNECT" } else { verb }.into(),
            dry_run: exchange.query.get("dryRun").filter(|value| *value == "All").unwrap_or_default().into(),
            group: path.group,
            version: path.version,
            resource: path.resource,
            subresource: path.subresource,
            scope: scope(info).into(),
            component: "apiserver".into(),
        }
    }
}

/// Handles to all metrics of this crate.
pub struct Metrics {
    pub registry: Registry,
    requests: Family<CodedLabels, Counter>,
    durations: HistogramFamily<RequestLabels>,
    inflight: Family<KindLabel, Gauge>,
    dropped: Family<KindLabel, Counter>,
    long_running: Family<RequestLabels, Gauge>,
}

impl Metrics {
    pub fn new(registry: Registry) -> Self {
        registry.build_info(
            "kubernetes_build_info",
            &[("git_version", crate::VERSION), ("major", "1"), ("minor", "36"), ("platform", "linux/amd64")],
        );
        Metrics {
            requests: registry.counters(
                "apiserver_request",
                "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code",
            ),
            durations: registry.histograms(
                "apiserver_request_duration_seconds",
                "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component",
                || Histogram::new(BUCKETS.iter().copied()),
            ),
            inflight: registry.gauges(
                "apiserver_current_inflight_requests",
                "Maximal number of currently used inflight request limit of this apiserver per request kind in last second",
            ),
            dropped: registry
                .counters("apiserver_dropped_requests", "Number of requests dropped with 'Try again later' response"),
            long_running: registry.gauges(
                "apiserver_longrunning_requests",
                "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component",
            ),
            registry,
        }
    }

    pub fn observe_request(&self, labels: RequestLabels, code: u16, elapsed: Option<Duration>) {
        if let Some(elapsed) = elapsed {
            self.durations.get_or_create(&labels).observe(elapsed.as_secs_f64());
        }
        let RequestLabels { verb, dry_run, group, version, resource, subresource, scope, component } = labels;
        let code = code.to_string();
        self.requests
            .get_or_create(&CodedLabels {
                verb,
                dry_run,
                group,
                version,
                resource,
                subresource,
                scope,
                component,
                code,
            })
            .inc();
    }

    pub fn dropped(&self, request_kind: &'static str) {
        self.dropped.get_or_create(&KindLabel { request_kind }).inc();
    }

    /// Counted until the guard is dropped.
    pub fn in_flight(&self, request_kind: &'static str) -> InFlight {
        let gauge = self.inflight.get_or_create_owned(&KindLabel { request_kind });
        gauge.inc();
        InFlight(gauge)
    }

    pub(crate) fn long_running(&self, call: &Call) -> LongRunning {
        self.long_running_of(RequestLabels {
            verb: "WATCH".into(),
            dry_run: String::new(),
            group: call.path.group.clone(),
            version: call.path.version.clone(),
            resource: call.path.resource.clone(),
            subresource: String::new(),
            scope: if call.path.namespace.is_empty() { "cluster" } else { "namespace" }.into(),
            component: "apiserver".into(),
        })
    }

    pub fn long_running_exchange(&self, exchange: &Exchange, table: &Table) -> LongRunning {
        self.long_running_of(RequestLabels::of(exchange, table))
    }

    fn long_running_of(&self, labels: RequestLabels) -> LongRunning {
        let gauge = self.long_running.get_or_create_owned(&labels);
        gauge.inc();
        LongRunning(gauge)
    }
}

/// One request in flight.
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One long-running request.
pub struct LongRunning(Gauge);

impl Drop for LongRunning {
    fn drop(&mut self) {
        self.0.dec();
    }
}

//! CPU and memory of containers and pods: `/stats/summary` (JSON) and `/metrics/resource` (exposition format).

use std::{collections::BTreeMap, fmt::Write as _};

use http::{Response, StatusCode};
use keelson_component_base::serve::{Body, content};
use keelson_proto::cri;
use serde_json::{Value, json};

use super::{Refusal, Server};
use crate::{
    node::capacity,
    runtime::{names, observe::timestamp},
};

/// One container's use.
struct Usage {
    name: String,
    time: i64,
    /// Nanoseconds of CPU since it started.
    cpu: u64,
    cpu_rate: Option<u64>,
    memory: u64,
    usage: u64,
    rss: u64,
    filesystem: u64,
}

/// One pod's containers.
#[derive(Default)]
struct PodUsage {
    namespace: String,
    name: String,
    uid: String,
    containers: Vec<Usage>,
}

impl PodUsage {
    fn cpu(&self) -> u64 {
        self.containers.iter().map(|container| container.cpu).sum()
    }

    fn memory(&self) -> u64 {
        self.containers.iter().map(|container| container.memory).sum()
    }

    fn time(&self) -> i64 {
        self.containers.iter().map(|container| container.time).max().unwrap_or(0)
    }
}

async fn collect(server: &Server) -> Result<Vec<PodUsage>, Refusal> {
    let request = cri::ListContainerStatsRequest::default();
    let stats = server.kubelet.runtime.list_container_stats(request).await;
    let stats =
        stats.map_err(|error| Refusal::Internal(format!("failed to list container stats: {error}")))?.stats;
    let mut pods: BTreeMap<String, PodUsage> = BTreeMap::new();
    for stats in stats {
        let Some(attributes) = stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
        let uid = label(names::POD_UID);
        if uid.is_empty() {
            continue;
        }
        // A container that has ended has records but no figures.
        if stats.cpu.as_ref().is_none_or(|cpu| cpu.timestamp == 0) {
            continue;
        }
        let number = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
        let (cpu, memory) = (stats.cpu.unwrap_or_default(), stats.memory.unwrap_or_default());
        let pod = pods.entry(uid.clone()).or_insert_with(|| PodUsage {
            namespace: label(names::POD_NAMESPACE),
            name: label(names::POD_NAME),
            uid,
            containers: Vec::new(),
        });
        pod.containers.push(Usage {
            name: label(names::CONTAINER_NAME),
            time: cpu.timestamp.max(memory.timestamp),
            cpu: number(cpu.usage_core_nano_seconds),
            cpu_rate: cpu.usage_nano_cores.map(|value| value.value),
            memory: number(memory.working_set_bytes),
            usage: number(memory.usage_bytes),
            rss: number(memory.rss_bytes),
            filesystem: number(stats.writable_layer.and_then(|layer| layer.used_bytes)),
        });
    }
    Ok(pods.into_values().collect())
}

/// CPU of the whole node in nanoseconds, from /proc/stat: everything but idle and waiting.
fn node_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .map(|line| line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect())
        .unwrap_or_default();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| fields.get(*index)).sum();
    // The kernel counts in hundredths of a second.
    busy * 10_000_000
}

fn node_memory(server: &Server) -> u64 {
    let available = capacity::memory("MemAvailable").unwrap_or(0);
    u64::try_from(server.kubelet.capacity.memory - available).unwrap_or(0)
}

/// `/metrics/resource`, with upstream's names: what metrics-server reads.
pub async fn resource(server: &Server) -> Result<Response<Body>, Refusal> {
    let pods = collect(server).await;
    let failed = u8::from(pods.is_err());
    let pods = pods.unwrap_or_default();
    let now = jiff::Timestamp::now().as_millisecond();
    let mut out = String::new();
    let mut metric = |name: &str, help: &str, kind: &str, samples: Vec<(String, f64, i64)>| {
        let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value, at) in samples {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(out, "{name}{labels} {value} {at}");
        }
    };
    let containers = |of: fn(&Usage) -> f64| {
        pods.iter()
            .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
            .map(|(pod, c)| {
                let labels =
                    format!("container={:?},namespace={:?},pod={:?}", c.name, pod.namespace, pod.name);
                (labels, of(c), c.time / 1_000_000)
            })
            .collect::<Vec<_>>()
    };
    let of_pods = |of: fn(&PodUsage) -> f64| {
        pods.iter()
            .map(|pod| {
                (format!("namespace={:?},pod={:?}", pod.namespace, pod.name), of(pod), pod.time() / 1_000_000)
            })
            .collect::<Vec<_>>()
    };
    let cpu_help = "Cumulative cpu time consumed by the";
    let memory_help = "Current working set of the";
    metric(
        "container_cpu_usage_seconds_total",
        &format!("{cpu_help} container in core-seconds"),
        "counter",
        containers(|c| seconds(c.cpu)),
    );
    metric(
        "container_memory_working_set_bytes",
        &format!("{memory_help} container in bytes"),
        "gauge",
        containers(|c| float(c.memory)),
    );
    metric(
        "node_cpu_usage_seconds_total",
        &format!("{cpu_help} node in core-seconds"),
        "counter",
        vec![(String::new(), seconds(node_cpu()), now)],
    );
    metric(
        "node_memory_working_set_bytes",
        &format!("{memory_help} node in bytes"),
        "gauge",
        vec![(String::new(), float(node_memory(server)), now)],
    );
    metric(
        "pod_cpu_usage_seconds_total",
        &format!("{cpu_help} pod in core-seconds"),
        "counter",
        of_pods(|pod| seconds(pod.cpu())),
    );
    metric(
        "pod_memory_working_set_bytes",
        &format!("{memory_help} pod in bytes"),
        "gauge",
        of_pods(|pod| float(pod.memory())),
    );
    let _ = writeln!(
        out,
        "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n\
         # TYPE resource_scrape_error gauge\nresource_scrape_error {failed}"
    );
    Ok(content(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", out))
}

#[expect(clippy::cast_precision_loss, reason = "the format's numbers are floats")]
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

fn rfc3339(nanoseconds: i64) -> Value {
    timestamp(nanoseconds).map_or(Value::Null, |time| json!(time.to_string()))
}

/// `/stats/summary`, the part of it that CRI can tell.
pub async fn summary(server: &Server) -> Result<Response<Body>, Refusal> {
    let pods = collect(server).await?;
    let now = jiff::Timestamp::now().to_string();
    let filesystem = capacity::filesystem(&server.kubelet.root).map(|(size, free)| {
        json!({"time": now, "capacityBytes": size, "availableBytes": free, "usedBytes": size - free})
    });
    let pods: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let containers: Vec<Value> = pod.containers.iter().map(container_summary).collect();
            json!({
                "podRef": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "containers": containers,
                "cpu": {"time": rfc3339(pod.time()), "usageCoreNanoSeconds": pod.cpu()},
                "memory": {"time": rfc3339(pod.time()), "workingSetBytes": pod.memory()},
            })
        })
        .collect();
    let body = json!({
        "node": {
            "nodeName": server.kubelet.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": node_cpu()},
            "memory": {
                "time": now,
                "availableBytes": capacity::memory("MemAvailable"),
                "workingSetBytes": node_memory(server),
            },
            "fs": filesystem,
        },
        "pods": pods,
    });
    Ok(content(StatusCode::OK, "application/json", body.to_string()))
}

fn container_summary(container: &Usage) -> Value {
    let time = rfc3339(container.time);
    json!({
        "name": container.name,
        "cpu": {"time": time, "usageNanoCores": container.cpu_rate, "usageCoreNanoSeconds": container.cpu},
        "memory": {
            "time": time,
            "usageBytes": container.usage,
            "workingSetBytes": container.memory,
            "rssBytes": container.rss,
        },
        "rootfs": {"time": time, "usedBytes": container.filesystem},
    })
}

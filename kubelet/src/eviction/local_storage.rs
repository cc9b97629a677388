//! Limits of local storage: an emptyDir's sizeLimit, and the ephemeral-storage of containers and of the whole pod.
//!
//! Nothing stops a pod at its limit; one that is found above it is ended, as upstream does.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};
use keelson_proto::cri;

use crate::{
    context::Kubelet,
    events::Type,
    node::capacity,
    pod::{End, reference, resources},
    pods::Pods,
    runtime::names,
    status::compute::{self, Waiting},
};

/// What a pod uses, in bytes.
#[derive(Debug, Default)]
struct Usage {
    /// By name: directories on disk only, those in memory cannot outgrow their size.
    volumes: BTreeMap<String, u64>,
    /// Writable layer and logs by container.
    containers: BTreeMap<String, u64>,
}

/// Ends pods that use more than they may.
pub async fn enforce(kubelet: &Arc<Kubelet>, pods: &Pods) {
    let mut limited: Vec<Arc<Pod>> = Vec::new();
    for (pod, status) in pods.list() {
        if !compute::is_terminal(&status) && pod.spec.as_ref().is_some_and(has_limits) {
            limited.push(pod);
        }
    }
    if limited.is_empty() {
        return;
    }
    let layers = layers(kubelet).await;
    for pod in limited {
        let (measured, volumes, logs) = (pod.clone(), kubelet.clone(), layers.clone());
        let usage = tokio::task::spawn_blocking(move || measure(&volumes, &measured, &logs)).await;
        let (Ok(usage), Some(spec)) = (usage, &pod.spec) else { continue };
        if let (Some(message), Some(uid)) = (exceeded(spec, &usage), &pod.metadata.uid) {
            kubelet.events.record(&reference(&pod, None), Type::Warning, "Evicted", &message);
            kubelet.metrics.pod_evicted();
            let why = Waiting { reason: "Evicted".to_owned(), message };
            pods.evict(uid, End { why, grace: Some(1) });
        }
    }
}

fn limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")
}

fn bytes(quantity: &Quantity) -> Option<u64> {
    resources::units(quantity).and_then(|value| u64::try_from(value).ok()).filter(|&value| value > 0)
}

/// Volumes on disk and what they may hold.
fn directories(spec: &PodSpec) -> impl Iterator<Item = (&str, Option<&Quantity>)> {
    spec.volumes.iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let on_disk = source.medium.as_deref().unwrap_or_default().is_empty();
        on_disk.then_some((volume.name.as_str(), source.size_limit.as_ref()))
    })
}

fn has_limits(spec: &PodSpec) -> bool {
    directories(spec).any(|(_, limit)| limit.is_some())
        || spec.containers.iter().any(|container| limit(container).is_some())
}

/// Bytes of the writable layers, by pod and container.
async fn layers(kubelet: &Kubelet) -> BTreeMap<(String, String), u64> {
    let stats = kubelet.runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await;
    let mut layers = BTreeMap::new();
    for stats in stats.map(|response| response.stats).unwrap_or_default() {
        let Some(attributes) = stats.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).cloned().unwrap_or_default();
        let used = stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value);
        *layers.entry((label(names::POD_UID), label(names::CONTAINER_NAME))).or_default() += used;
    }
    layers
}

fn measure(kubelet: &Kubelet, pod: &Pod, layers: &BTreeMap<(String, String), u64>) -> Usage {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (metadata, mut usage) = (&pod.metadata, Usage::default());
    let uid = text(&metadata.uid);
    let logs = kubelet.log_directory(&text(&metadata.namespace), &text(&metadata.name), &uid);
    let volumes: PathBuf = kubelet.volumes.pod_directory(&uid).join("volumes/kubernetes.io~empty-dir");
    let Some(spec) = &pod.spec else { return usage };
    for (name, _) in directories(spec) {
        usage.volumes.insert(name.to_owned(), capacity::used(&volumes.join(name)));
    }
    for container in &spec.containers {
        let name = container.name.clone();
        let layer = layers.get(&(uid.clone(), name.clone())).copied().unwrap_or(0);
        let log = capacity::used(&logs.join(&name));
        usage.containers.insert(name, layer + log);
    }
    usage
}

/// What a pod has too much of, in upstream's words.
fn exceeded(spec: &PodSpec, usage: &Usage) -> Option<String> {
    let over = |used: Option<&u64>, limit: &Quantity| used.copied() > bytes(limit) && bytes(limit).is_some();
    for (name, limit) in directories(spec) {
        if let Some(limit) = limit.filter(|limit| over(usage.volumes.get(name), limit)) {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.0));
        }
    }
    // The pod as a whole is limited if all of its containers are.
    let limits: Option<Vec<u64>> = spec.containers.iter().map(|c| limit(c).and_then(bytes)).collect();
    if let Some(limits) = limits {
        let total: u64 = limits.iter().sum();
        let used: u64 = usage.volumes.values().chain(usage.containers.values()).sum();
        if used > total {
            let total =
                keelson_objects::quantity::Quantity::from_bytes(i64::try_from(total).unwrap_or(i64::MAX));
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                total.to_api().0
            ));
        }
    }
    spec.containers.iter().find_map(|container| {
        let limit = limit(container).filter(|limit| over(usage.containers.get(&container.name), limit))?;
        let (name, limit) = (&container.name, &limit.0);
        Some(format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "volumes": [
                {"name": "v", "emptyDir": {"sizeLimit": "1Ki"}},
                {"name": "m", "emptyDir": {"sizeLimit": "1", "medium": "Memory"}}],
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "2Ki"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "1Ki"}}}]}))
        .unwrap();
        let check = |volume: u64, a: u64, b: u64, expected: Option<&str>| {
            let usage = Usage {
                volumes: BTreeMap::from([("v".to_owned(), volume)]),
                containers: BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]),
            };
            assert_eq!(exceeded(&spec, &usage).as_deref(), expected, "{volume} {a} {b}");
        };
        assert!(has_limits(&spec));
        check(1024, 1024, 1024, None);
        check(1025, 0, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\". "));
        check(
            1024,
            2048,
            1024,
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Ki. "),
        );
        check(0, 0, 1025, Some("Container b exceeded its local ephemeral storage limit \"1Ki\". "));
    }
}

//! Pressure on the node's memory and disks by the `evictionHard` thresholds, and ending pods under it.
//!
//! Signals: memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree,
//! pid.available. Under pressure one pod is ended at a time: those that use more than they asked for first.

mod local_storage;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use keelson_proto::cri;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    config::KubeletConfiguration,
    context::Kubelet,
    events::Type,
    images,
    node::capacity,
    pod::{End, reference, resources},
    pods::Pods,
    runtime::names,
    status::compute::{self, Waiting},
};

const PERIOD: Duration = Duration::from_secs(10);
/// How long an ended pod is waited for before the next one is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// A pressure that went away is reported this much longer, so that it does not flap.
const TRANSITION: Duration = Duration::from_secs(300);

/// What the node is short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

/// Upstream's defaults on Linux.
fn thresholds(config: &KubeletConfiguration) -> BTreeMap<String, String> {
    let defaults = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ];
    match &config.eviction_hard {
        Some(own) => own.clone(),
        None => defaults.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    }
}

/// Checks what a configuration says.
///
/// # Errors
/// Names the signal or value that is not known.
pub fn validate(config: &KubeletConfiguration) -> Result<(), String> {
    const SIGNALS: &[&str] = &[
        "memory.available",
        "nodefs.available",
        "nodefs.inodesFree",
        "imagefs.available",
        "imagefs.inodesFree",
        "pid.available",
    ];
    for (signal, value) in config.eviction_hard.iter().flatten() {
        if !SIGNALS.contains(&signal.as_str()) {
            return Err(format!("evictionHard: unknown signal {signal:?}"));
        }
        if amount(value, 100).is_none() {
            return Err(format!("evictionHard: {signal}: {value:?} is neither a quantity nor a percentage"));
        }
    }
    Ok(())
}

/// A quantity, or a percentage of `whole`.
fn amount(text: &str, whole: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "at most `whole`, and a threshold need not be exact to the byte"
            )]
            Some((whole as f64 * percent / 100.0) as u64)
        }
        None => {
            let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
            resources::units(&quantity).and_then(|value| u64::try_from(value).ok())
        }
    }
}

/// Memory that is kept from pods so that eviction has room to act, in bytes.
pub fn memory_threshold(config: &KubeletConfiguration, capacity: i64) -> i64 {
    let whole = u64::try_from(capacity).unwrap_or(0);
    let value = thresholds(config).get("memory.available").and_then(|text| amount(text, whole));
    value.and_then(|value| i64::try_from(value).ok()).unwrap_or(0)
}

/// Of one signal: available and whole.
type Observation = (u64, u64);

/// Which signals are below their threshold.
fn pressures(
    thresholds: &BTreeMap<String, String>,
    observed: &BTreeMap<&str, Observation>,
) -> Vec<(Pressure, String)> {
    let mut found = Vec::new();
    for (signal, text) in thresholds {
        let Some((available, whole)) = observed.get(signal.as_str()) else { continue };
        let Some(threshold) = amount(text, *whole) else { continue };
        if threshold > 0 && *available < threshold {
            let (pressure, resource) = match signal.split('.').next() {
                Some("memory") => (Pressure::Memory, "memory"),
                Some("pid") => (Pressure::Pid, "pids"),
                _ if signal.ends_with("inodesFree") => (Pressure::Disk, "inodes"),
                _ => (Pressure::Disk, "ephemeral-storage"),
            };
            let message = format!(
                "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. "
            );
            found.push((pressure, message));
        }
    }
    found
}

/// The node's pressures as its conditions tell them; shared.
#[derive(Default)]
pub struct Pressures(Mutex<BTreeMap<Pressure, Instant>>);

impl Pressures {
    pub fn has(&self, pressure: Pressure) -> bool {
        self.0.lock().get(&pressure).is_some_and(|at| at.elapsed() < TRANSITION)
    }
}

/// Runs until cancelled.
pub async fn run(
    kubelet: Arc<Kubelet>,
    pods: Arc<Pods>,
    pressures: Arc<Pressures>,
    cancel: CancellationToken,
) {
    let thresholds = thresholds(&kubelet.config);
    // The pod that was ended last: what it gives back is waited for.
    let mut last: Option<(String, Instant)> = None;
    loop {
        local_storage::enforce(&kubelet, &pods).await;
        let mut found = self::pressures(&thresholds, &observe(&kubelet).await);
        for (pressure, message) in &found {
            pressures.0.lock().insert(*pressure, Instant::now());
            tracing::warn!(?pressure, message, "the node is under pressure");
        }
        if found.iter().any(|(pressure, _)| *pressure == Pressure::Disk) {
            // Nobody misses an image that nothing uses; pods end only if that is not enough.
            match images::gc::remove_unused(&kubelet).await {
                Ok(0) => {}
                Ok(_) => found = self::pressures(&thresholds, &observe(&kubelet).await),
                Err(error) => tracing::warn!(%error, "removing unused images"),
            }
        }
        let ending = last.as_ref().is_some_and(|(uid, at)| {
            let mut known = pods.list().into_iter();
            at.elapsed() < PATIENCE
                && known.any(|(pod, status)| {
                    pod.metadata.uid.as_ref() == Some(uid) && !compute::is_terminal(&status)
                })
        });
        let worst = found.into_iter().find(|(pressure, _)| *pressure != Pressure::Pid);
        if let (false, Some((pressure, message))) = (ending, worst) {
            last = evict(&kubelet, &pods, pressure, &message).await.map(|uid| (uid, Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = cancel.cancelled() => return,
        }
    }
}

async fn observe(kubelet: &Kubelet) -> BTreeMap<&'static str, Observation> {
    let mut observed = BTreeMap::new();
    let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
    if let Some(available) = capacity::memory("MemAvailable") {
        observed.insert("memory.available", (unsigned(available), unsigned(kubelet.capacity.memory)));
    }
    if let Some((whole, available)) = capacity::filesystem(&kubelet.root) {
        observed.insert("nodefs.available", (available, whole));
    }
    if let Some((whole, available)) = capacity::inodes(&kubelet.root).filter(|(whole, _)| *whole > 0) {
        observed.insert("nodefs.inodesFree", (available, whole));
    }
    let images = kubelet.runtime.image_fs_info(cri::ImageFsInfoRequest {}).await.ok();
    let mountpoint =
        images.and_then(|info| info.image_filesystems.into_iter().next()?.fs_id).map(|id| id.mountpoint);
    if let Some(mountpoint) = mountpoint {
        let path = std::path::Path::new(&mountpoint);
        if let Some((whole, available)) = capacity::filesystem(path) {
            observed.insert("imagefs.available", (available, whole));
        }
        if let Some((whole, available)) = capacity::inodes(path).filter(|(whole, _)| *whole > 0) {
            observed.insert("imagefs.inodesFree", (available, whole));
        }
    }
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let limit = read("/proc/sys/kernel/pid_max").and_then(|text| text.trim().parse::<u64>().ok());
    let used =
        read("/proc/loadavg").and_then(|text| text.split('/').nth(1)?.split(' ').next()?.parse::<u64>().ok());
    if let (Some(limit), Some(used)) = (limit, used) {
        observed.insert("pid.available", (limit.saturating_sub(used), limit));
    }
    observed
}

/// What each pod uses of what is short, in bytes.
async fn usage(kubelet: &Arc<Kubelet>, pressure: Pressure, uids: Vec<String>) -> BTreeMap<String, i64> {
    let stats = kubelet.runtime.list_container_stats(cri::ListContainerStatsRequest::default()).await;
    let mut usage: BTreeMap<String, i64> = BTreeMap::new();
    for stats in stats.map(|response| response.stats).unwrap_or_default() {
        let uid = stats.attributes.as_ref().and_then(|a| a.labels.get(names::POD_UID)).cloned();
        let bytes = match pressure {
            Pressure::Disk => stats.writable_layer.and_then(|layer| layer.used_bytes),
            Pressure::Memory | Pressure::Pid => stats.memory.and_then(|memory| memory.working_set_bytes),
        };
        let bytes = bytes.map_or(0, |value| i64::try_from(value.value).unwrap_or(i64::MAX));
        let sum = usage.entry(uid.unwrap_or_default()).or_default();
        *sum = sum.saturating_add(bytes);
    }
    if pressure == Pressure::Disk {
        let kubelet = kubelet.clone();
        let volumes = tokio::task::spawn_blocking(move || {
            uids.into_iter()
                .map(|uid| (capacity::used(&kubelet.volumes.pod_directory(&uid).join("volumes")), uid))
                .collect()
        });
        let volumes: Vec<(u64, String)> = volumes.await.unwrap_or_default();
        for (bytes, uid) in volumes {
            let sum = usage.entry(uid).or_default();
            *sum = sum.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
    usage
}

/// Ends the pod that uses most above its request, lowest priority first; never a critical or static one.
async fn evict(kubelet: &Arc<Kubelet>, pods: &Pods, pressure: Pressure, message: &str) -> Option<String> {
    let mut candidates = pods.list();
    candidates.retain(|(pod, status)| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
        crate::mirror::hash(pod).is_none()
            && priority.is_none_or(|priority| priority < 2_000_000_000)
            && !compute::is_terminal(status)
            && pod.metadata.deletion_timestamp.is_none()
    });
    let uids = candidates.iter().filter_map(|(pod, _)| pod.metadata.uid.clone()).collect();
    let usage = usage(kubelet, pressure, uids).await;
    let (pod, _) = candidates.into_iter().max_by_key(|(pod, _)| {
        let spec = pod.spec.as_ref();
        let used = pod.metadata.uid.as_ref().and_then(|uid| usage.get(uid)).copied().unwrap_or(0);
        let requested = match pressure {
            // Requests of ephemeral storage are not kept account of.
            Pressure::Disk => 0,
            Pressure::Memory | Pressure::Pid => spec.map_or(0, |spec| resources::pod_requests(spec).memory),
        };
        let over = used.saturating_sub(requested);
        (over > 0, -i64::from(spec.and_then(|spec| spec.priority).unwrap_or(0)), over)
    })?;
    let uid = pod.metadata.uid.clone()?;
    kubelet.events.record(&reference(&pod, None), Type::Warning, "Evicted", message);
    kubelet.metrics.pod_evicted();
    let why = Waiting { reason: "Evicted".to_owned(), message: message.to_owned() };
    // A hard threshold leaves no time to be polite.
    pods.evict(&uid, End { why, grace: Some(1) });
    Some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_amounts_or_percentages() {
        let check =
            |signal: &'static str, threshold: &str, observed: Observation, expected: Option<Pressure>| {
                let thresholds = BTreeMap::from([(signal.to_owned(), threshold.to_owned())]);
                let got = pressures(&thresholds, &BTreeMap::from([(signal, observed)]));
                assert_eq!(
                    got.first().map(|(pressure, _)| *pressure),
                    expected,
                    "{signal} {threshold} {observed:?}"
                );
            };
        check("memory.available", "100Mi", (99 << 20, 1 << 30), Some(Pressure::Memory));
        check("memory.available", "100Mi", (100 << 20, 1 << 30), None);
        check("nodefs.available", "10%", (99, 1000), Some(Pressure::Disk));
        check("nodefs.inodesFree", "10%", (100, 1000), None);
        check("pid.available", "50", (10, 100), Some(Pressure::Pid));
        check("nodefs.available", "0%", (0, 1000), None);
    }
}

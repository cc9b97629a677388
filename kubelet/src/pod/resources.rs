//! What a pod's requests and limits mean to the kernel: QoS class, CPU shares and quota, memory, OOM score.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

use super::plan::is_sidecar;

pub const GUARANTEED: &str = "Guaranteed";
pub const BURSTABLE: &str = "Burstable";
pub const BEST_EFFORT: &str = "BestEffort";

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
/// Microseconds; the kernel's default period of the CPU quota.
pub const CPU_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A quantity in thousandths, rounded up; absent if it is malformed (the API server refuses those).
pub fn milli(quantity: &Quantity) -> Option<i64> {
    Some(keelson_objects::quantity::Quantity::from_api(quantity).ok()?.milli_value())
}

/// A quantity in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    Some(keelson_objects::quantity::Quantity::from_api(quantity).ok()?.value())
}

fn get(list: Option<&BTreeMap<String, Quantity>>, name: &str, by: fn(&Quantity) -> Option<i64>) -> i64 {
    list.and_then(|list| list.get(name)).and_then(by).unwrap_or(0)
}

/// CPU in milli and memory in bytes, zero where unset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
}

impl Amounts {
    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        Self { cpu: get(list, "cpu", milli), memory: get(list, "memory", units) }
    }

    pub fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }

    fn max(self, other: Self) -> Self {
        Self { cpu: self.cpu.max(other.cpu), memory: self.memory.max(other.memory) }
    }
}

/// Requests of one container; a limit stands for a request that is absent.
pub fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let requests = Amounts::of(resources.and_then(|r| r.requests.as_ref()));
    let limits = limits(resources);
    let set =
        |name: &str| resources.and_then(|r| r.requests.as_ref()).is_some_and(|list| list.contains_key(name));
    Amounts {
        cpu: if set("cpu") { requests.cpu } else { limits.cpu },
        memory: if set("memory") { requests.memory } else { limits.memory },
    }
}

/// Limits of one container.
pub fn limits(resources: Option<&ResourceRequirements>) -> Amounts {
    Amounts::of(resources.and_then(|r| r.limits.as_ref()))
}

/// What the whole pod asks for: the larger of its regular containers and each init container, sidecars added.
pub fn pod_requests(spec: &PodSpec) -> Amounts {
    total(spec, |container| requests(container.resources.as_ref())).plus(Amounts::of(spec.overhead.as_ref()))
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut init_peak) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars = sidecars.plus(of(container));
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars.plus(of(container)));
        }
    }
    let regular = spec.containers.iter().map(of).fold(sidecars, Amounts::plus);
    regular.max(init_peak)
}

/// Guaranteed, Burstable or BestEffort, as upstream's `ComputePodQOS`.
pub fn qos(spec: &PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut guaranteed = true;
    let mut any = false;
    for container in all() {
        let (requests, limits) =
            (requests(container.resources.as_ref()), limits(container.resources.as_ref()));
        any |= requests.cpu > 0 || requests.memory > 0;
        guaranteed &= limits.cpu > 0 && limits.memory > 0 && requests == limits;
    }
    match (any, guaranteed) {
        (false, _) => BEST_EFFORT,
        (true, true) => GUARANTEED,
        (true, false) => BURSTABLE,
    }
}

/// Milli-CPU that the Burstable ones of these pods ask for together.
pub fn burstable_cpu<'a>(pods: impl IntoIterator<Item = &'a PodSpec>) -> i64 {
    let burstable = pods.into_iter().filter(|spec| qos(spec) == BURSTABLE);
    burstable.fold(0, |sum, spec| sum.saturating_add(pod_requests(spec).cpu))
}

/// cgroup v1 `cpu.shares` of so many milli-CPU.
pub fn shares(milli: i64) -> u64 {
    (u64::try_from(milli).unwrap_or(0) * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota of so many milli-CPU in a [`CPU_PERIOD`]; zero is no limit.
pub fn quota(milli: i64) -> i64 {
    if milli <= 0 { 0 } else { (milli * CPU_PERIOD / 1000).max(MIN_QUOTA) }
}

/// How soon the kernel kills the container when memory runs out (upstream's `GetContainerOOMScoreAdjust`).
pub fn oom_score(spec: &PodSpec, container: &Container, node_memory: i64) -> i64 {
    if spec.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY) {
        return -997;
    }
    match qos(spec) {
        GUARANTEED => -997,
        BEST_EFFORT => 1000,
        _ => {
            let request = requests(container.resources.as_ref()).memory;
            let score = 1000
                - i64::try_from(1000 * i128::from(request) / i128::from(node_memory.max(1))).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// Limits of a pod's own cgroup; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodLimits {
    pub shares: u64,
    pub quota: i64,
    pub memory: i64,
}

impl PodLimits {
    /// What satisfies both.
    pub fn wider(self, other: Self) -> Self {
        let either = |a: i64, b: i64| if a == 0 || b == 0 { 0 } else { a.max(b) };
        Self {
            shares: self.shares.max(other.shares),
            quota: either(self.quota, other.quota),
            memory: either(self.memory, other.memory),
        }
    }
}

/// A pod is only limited where all of its containers are.
pub fn pod_limits(spec: &PodSpec, cfs_quota: bool) -> PodLimits {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let limited =
        |of: fn(Amounts) -> i64| all().all(|container| of(limits(container.resources.as_ref())) > 0);
    let overhead = Amounts::of(spec.overhead.as_ref());
    let sum = total(spec, |container| limits(container.resources.as_ref())).plus(overhead);
    let bounded = qos(spec) != BEST_EFFORT;
    PodLimits {
        shares: shares(pod_requests(spec).cpu),
        quota: if cfs_quota && bounded && limited(|a| a.cpu) { quota(sum.cpu) } else { 0 },
        memory: if bounded && limited(|a| a.memory) { sum.memory } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(resources: serde_json::Value) -> PodSpec {
        serde_json::from_value(serde_json::json!({"containers": [{"name": "c", "resources": resources}]}))
            .unwrap()
    }

    #[test]
    fn classes_and_limits() {
        let check = |resources: serde_json::Value, class: &str, expected: (u64, i64, i64)| {
            let spec = spec(resources);
            assert_eq!(qos(&spec), class);
            let limits = pod_limits(&spec, true);
            assert_eq!((limits.shares, limits.quota, limits.memory), expected);
        };
        check(serde_json::json!({}), BEST_EFFORT, (2, 0, 0));
        check(serde_json::json!({"requests": {"cpu": "100m"}}), BURSTABLE, (102, 0, 0));
        check(
            serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}}),
            GUARANTEED,
            (1024, 100_000, 1 << 20),
        );
        check(
            serde_json::json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Mi"}}),
            BURSTABLE,
            (512, 100_000, 1 << 20),
        );
        check(serde_json::json!({"limits": {"cpu": "1m"}}), BURSTABLE, (2, 1000, 0));
    }

    #[test]
    fn burstable_pods_are_weighed_together() {
        let pods = [
            spec(serde_json::json!({})),
            spec(serde_json::json!({"requests": {"cpu": "100m"}})),
            spec(serde_json::json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}})),
            spec(serde_json::json!({"limits": {"cpu": "1", "memory": "1Mi"}})),
        ];
        assert_eq!(burstable_cpu(&pods), 600);
        assert_eq!(burstable_cpu(&pods[..1]), 0);
    }

    #[test]
    fn oom_scores() {
        let check = |resources: serde_json::Value, expected: i64| {
            let spec = spec(resources);
            assert_eq!(oom_score(&spec, &spec.containers[0], 1 << 30), expected);
        };
        check(serde_json::json!({}), 1000);
        check(serde_json::json!({"requests": {"memory": "512Mi"}}), 500);
        check(serde_json::json!({"requests": {"memory": "1Gi"}}), 3);
        check(serde_json::json!({"requests": {"cpu": "1"}}), 999);
        check(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997);
    }

    #[test]
    fn init_containers_count_by_their_peak() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": "3"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}))
        .unwrap();
        assert_eq!(pod_requests(&spec).cpu, 3000);
    }
}

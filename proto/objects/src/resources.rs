//! What a pod asks of a node: requests and limits over its containers, and the quality of service that follows.
//!
//! Resizes in progress (allocated and actual resources of the status) are not looked at: the spec speaks.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pods::is_sidecar;
use crate::quantity::{Quantity, QuantityError};

/// Amounts by resource name.
pub type Resources = BTreeMap<String, Quantity>;

/// The API's map as amounts.
///
/// # Errors
/// A text is no quantity (the API server accepts none such).
pub fn parse(map: Option<&BTreeMap<String, ApiQuantity>>) -> Result<Resources, QuantityError> {
    map.into_iter()
        .flatten()
        .map(|(name, quantity)| Ok((name.clone(), Quantity::from_api(quantity)?)))
        .collect()
}

/// Adds amounts to amounts.
pub fn add(sum: &mut Resources, more: &Resources) {
    for (name, quantity) in more {
        *sum.entry(name.clone()).or_default() += *quantity;
    }
}

/// Takes the greater of each.
pub fn max(of: &mut Resources, other: &Resources) {
    for (name, quantity) in other {
        let entry = of.entry(name.clone()).or_insert(*quantity);
        *entry = (*entry).max(*quantity);
    }
}

/// What a pod needs: the sum over its containers and sidecars, or more where an init container needs more while it
/// runs (beside the sidecars started before it); pod-level requests instead of these where they are given; and the
/// overhead of its runtime class.
///
/// # Errors
/// A text is no quantity.
pub fn pod_requests(spec: &PodSpec) -> Result<Resources, QuantityError> {
    pod_requests_with_defaults(spec, &Resources::new())
}

/// As [`pod_requests`], where each container that does not ask for one of `defaults` counts as asking for it (the
/// scheduler's non-zero requests).
///
/// # Errors
/// A text is no quantity.
pub fn pod_requests_with_defaults(spec: &PodSpec, defaults: &Resources) -> Result<Resources, QuantityError> {
    let mut sum = aggregate(spec, |resources| {
        let mut requests = parse(resources.and_then(|resources| resources.requests.as_ref()))?;
        for (name, quantity) in defaults {
            requests.entry(name.clone()).or_insert(*quantity);
        }
        Ok(requests)
    })?;
    apply_pod_level(&mut sum, spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()))?;
    add(&mut sum, &parse(spec.overhead.as_ref())?);
    Ok(sum)
}

/// What a pod may use at most, by the same rule; the overhead adds to limits that exist.
///
/// # Errors
/// A text is no quantity.
pub fn pod_limits(spec: &PodSpec) -> Result<Resources, QuantityError> {
    let mut sum =
        aggregate(spec, |resources| parse(resources.and_then(|resources| resources.limits.as_ref())))?;
    apply_pod_level(&mut sum, spec.resources.as_ref().and_then(|resources| resources.limits.as_ref()))?;
    for (name, quantity) in parse(spec.overhead.as_ref())? {
        if let Some(limit) = sum.get_mut(&name)
            && !limit.is_zero()
        {
            *limit += quantity;
        }
    }
    Ok(sum)
}

fn apply_pod_level(
    sum: &mut Resources,
    level: Option<&BTreeMap<String, ApiQuantity>>,
) -> Result<(), QuantityError> {
    for (name, quantity) in parse(level)? {
        if is_pod_level_resource(&name) {
            sum.insert(name, quantity);
        }
    }
    Ok(())
}

/// Whether a resource can be asked for by the pod as a whole.
#[must_use]
pub fn is_pod_level_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

fn aggregate(
    spec: &PodSpec,
    of: impl Fn(Option<&ResourceRequirements>) -> Result<Resources, QuantityError>,
) -> Result<Resources, QuantityError> {
    let mut sum = Resources::new();
    for container in &spec.containers {
        add(&mut sum, &of(container.resources.as_ref())?);
    }
    let mut sidecars = Resources::new();
    let mut starting = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container.resources.as_ref())?;
        if is_sidecar(container) {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            max(&mut starting, &sidecars);
        } else {
            let mut needed = own;
            add(&mut needed, &sidecars);
            max(&mut starting, &needed);
        }
    }
    max(&mut sum, &starting);
    Ok(sum)
}

/// The quality of service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// The name in the pod's status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// The class of a pod, from CPU and memory: guaranteed when every container has limits for both and requests equal to
/// them, best effort when none has any.
///
/// # Errors
/// A text is no quantity.
pub fn qos_class(spec: &PodSpec) -> Result<QosClass, QuantityError> {
    let positive = |map: Option<&BTreeMap<String, ApiQuantity>>| -> Result<Resources, QuantityError> {
        let mut parsed = parse(map)?;
        parsed
            .retain(|name, quantity| matches!(name.as_str(), "cpu" | "memory") && *quantity > Quantity::ZERO);
        Ok(parsed)
    };
    let mut requests = Resources::new();
    let mut limits = Resources::new();
    let mut all_limited = true;
    let pod_level = spec.resources.as_ref().filter(|resources| {
        let names = resources.requests.iter().flatten().chain(resources.limits.iter().flatten());
        names.into_iter().any(|(name, _)| is_pod_level_resource(name))
    });
    if let Some(resources) = pod_level {
        requests = positive(resources.requests.as_ref())?;
        limits = positive(resources.limits.as_ref())?;
        all_limited = limits.len() == 2;
    } else {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for resources in containers.map(|container: &Container| container.resources.as_ref()) {
            add(&mut requests, &positive(resources.and_then(|resources| resources.requests.as_ref()))?);
            let own = positive(resources.and_then(|resources| resources.limits.as_ref()))?;
            all_limited &= own.len() == 2;
            add(&mut limits, &own);
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return Ok(QosClass::BestEffort);
    }
    let equal = requests.len() == limits.len()
        && requests.iter().all(|(name, quantity)| limits.get(name) == Some(quantity));
    Ok(if all_limited && equal { QosClass::Guaranteed } else { QosClass::Burstable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn print(resources: &Resources) -> String {
        resources.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn requests_and_limits() {
        #[track_caller]
        fn check(value: serde_json::Value, requests: &str, limits: &str) {
            let spec = spec(value);
            assert_eq!(print(&pod_requests(&spec).unwrap()), requests);
            assert_eq!(print(&pod_limits(&spec).unwrap()), limits);
        }
        let of =
            |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let sidecar = |cpu: &str| {
            let mut container = of(cpu);
            container["restartPolicy"] = json!("Always");
            container
        };
        check(json!({"containers": [{"name": "a"}]}), "", "");
        check(json!({"containers": [of("1"), of("500m")]}), "cpu=1500m", "cpu=1500m");
        check(json!({"containers": [of("1")], "initContainers": [of("2"), of("3")]}), "cpu=3", "cpu=3");
        // KEP-753: a sidecar counts beside the containers, and beside the init containers after it.
        check(json!({"containers": [of("1")], "initContainers": [sidecar("1"), of("3")]}), "cpu=4", "cpu=4");
        check(json!({"containers": [of("1")], "initContainers": [of("3"), sidecar("1")]}), "cpu=3", "cpu=3");
        check(json!({"containers": [of("3")], "initContainers": [of("3"), sidecar("1")]}), "cpu=4", "cpu=4");
        check(
            json!({"containers": [of("1")], "overhead": {"cpu": "100m", "memory": "1Mi"}}),
            "cpu=1100m,memory=1Mi",
            "cpu=1100m",
        );
        check(json!({"containers": [of("1")], "resources": {"requests": {"cpu": "2"}}}), "cpu=2", "cpu=1");
    }

    #[test]
    fn defaults_stand_in() {
        let defaults = Resources::from([("cpu".into(), Quantity::from_milli(100))]);
        let spec = spec(
            json!({"containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}),
        );
        assert_eq!(print(&pod_requests_with_defaults(&spec, &defaults).unwrap()), "cpu=1100m");
    }

    #[test]
    fn qos() {
        #[track_caller]
        fn check(containers: serde_json::Value, expected: QosClass) {
            assert_eq!(
                qos_class(&spec(json!({"containers": containers}))).unwrap(),
                expected,
                "{containers}"
            );
        }
        let both = json!({"cpu": "1", "memory": "1Gi"});
        check(json!([{"name": "a"}]), QosClass::BestEffort);
        check(
            json!([{"name": "a", "resources": {"requests": {"cpu": "0", "example.com/x": "1"}}}]),
            QosClass::BestEffort,
        );
        check(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]), QosClass::Burstable);
        check(json!([{"name": "a", "resources": {"requests": both, "limits": both}}]), QosClass::Guaranteed);
        check(
            json!([{"name": "a", "resources": {"requests": both, "limits": both}}, {"name": "b"}]),
            QosClass::Burstable,
        );
        check(
            json!([{"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": both}}]),
            QosClass::Burstable,
        );
        let pod_level =
            spec(json!({"containers": [{"name": "a"}], "resources": {"requests": both, "limits": both}}));
        assert_eq!(qos_class(&pod_level).unwrap(), QosClass::Guaranteed);
    }
}

//! What a pod asks for as a whole, and its quality-of-service class.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    fields::Fields,
    quantity::{Quantity, quantity},
};

/// Requests of the pod: containers and restartable init containers together, or what the largest moment of
/// initialisation takes, if that is more.
pub(super) fn requests(spec: &Value) -> BTreeMap<String, Quantity> {
    let mut running = BTreeMap::new();
    for container in spec.list("containers") {
        add(&mut running, container);
    }
    let mut sidecars = BTreeMap::new();
    let mut peak = BTreeMap::new();
    for container in spec.list("initContainers") {
        if container.text("restartPolicy") == "Always" {
            add(&mut running, container);
            add(&mut sidecars, container);
            take_larger(&mut peak, &sidecars);
        } else {
            let mut moment = sidecars.clone();
            add(&mut moment, container);
            take_larger(&mut peak, &moment);
        }
    }
    take_larger(&mut running, &peak);
    running
}

fn add(sum: &mut BTreeMap<String, Quantity>, container: &Value) {
    for (name, amount) in container.at("resources").entries("requests").into_iter().flatten() {
        let entry = sum.entry(name.clone()).or_default();
        *entry += quantity(amount).unwrap_or_default();
    }
}

fn take_larger(sum: &mut BTreeMap<String, Quantity>, other: &BTreeMap<String, Quantity>) {
    for (name, amount) in other {
        let entry = sum.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, decided by cpu and memory alone.
pub(super) fn quality_of_service(spec: &Value) -> &'static str {
    let pod_level = spec.at("resources");
    if ["requests", "limits"].iter().any(|kind| pod_level.entries(kind).is_some_and(|map| !map.is_empty())) {
        return classify(std::iter::once(pod_level));
    }
    classify(
        ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| spec.list(list))
            .map(|container| container.at("resources")),
    )
}

fn classify<'a>(resources: impl Iterator<Item = &'a Value>) -> &'static str {
    let mut guaranteed = true;
    let mut anything = false;
    let positive = |amount: &Value| quantity(amount).filter(|amount| !amount.is_zero());
    for resources in resources {
        for name in ["cpu", "memory"] {
            let request = positive(resources.at("requests").at(name));
            let limit = positive(resources.at("limits").at(name));
            anything |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (anything, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        fn check(resources: &[Value], expected: &str) {
            let containers: Vec<Value> = resources.iter().map(|r| json!({"resources": r})).collect();
            assert_eq!(quality_of_service(&json!({"containers": containers})), expected, "{resources:?}");
        }
        let full =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        check(&[json!({})], "BestEffort");
        check(&[json!({"requests": {"cpu": "0"}})], "BestEffort");
        check(std::slice::from_ref(&full), "Guaranteed");
        check(&[full.clone(), json!({})], "Burstable");
        check(&[json!({"limits": {"cpu": "1"}})], "Burstable");
        check(&[json!({"requests": {"cpu": "1"}})], "Burstable");
    }

    #[test]
    fn sidecars_count_with_what_runs() {
        let with = |cpu: &str, policy: &str| json!({"restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let spec =
            json!({"containers": [with("1", "")], "initContainers": [with("1", "Always"), with("3", "")]});
        assert_eq!(requests(&spec)["cpu"], "4".parse::<Quantity>().ok().unwrap());
    }
}

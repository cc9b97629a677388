//! LimitRanger: fills in the requests and limits a namespace's LimitRanges give by default, and
//! refuses pods and claims outside their bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_objects::quantity::Quantity;
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Admitted, Operation, admitted};
use crate::state::{State, items, text};
use crate::status::Status;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger {
    pub state: Arc<State>,
}

type Amounts<'a> = BTreeMap<&'a str, Quantity>;

fn amounts(list: &Value) -> Amounts<'_> {
    let list = list.as_object().into_iter().flatten();
    // What is no quantity is refused by validation, not here.
    list.filter_map(|(name, amount)| Some((name.as_str(), amount.as_str()?.parse().ok()?))).collect()
}

impl LimitRanger {
    fn fill_in(&self, request: &mut AdmissionRequest<'_>) {
        let Some(pod) = request.object.as_deref_mut().filter(|pod| pod["spec"].is_object()) else { return };
        for (_, limits) in self.state.limit_ranges(request.namespace) {
            let mut notes = Vec::new();
            let of_containers = || items(&limits).iter().filter(|limit| limit["type"] == "Container");
            for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
                let Some(containers) = pod["spec"].get_mut(field).and_then(Value::as_array_mut) else {
                    continue;
                };
                for container in containers {
                    for (kind, note, defaults) in
                        [("requests", "request", "defaultRequest"), ("limits", "limit", "default")]
                    {
                        let mut set: Vec<&str> = Vec::new();
                        for limit in of_containers() {
                            for (name, amount) in limit[defaults].as_object().into_iter().flatten() {
                                let resources = child(container, "resources");
                                let Some(amounts) = resources.and_then(|resources| child(resources, kind))
                                else {
                                    continue;
                                };
                                if amounts.get(name).is_none() {
                                    amounts[name] = amount.clone();
                                    set.push(name);
                                }
                            }
                        }
                        if !set.is_empty() {
                            set.sort_unstable();
                            notes.push(format!(
                                "{} {note} for {what} {}",
                                set.join(", "),
                                text(&container["name"])
                            ));
                        }
                    }
                }
            }
            if !notes.is_empty() {
                let note = format!("LimitRanger plugin set: {}", notes.join("; "));
                let metadata = child(pod, "metadata");
                if let Some(annotations) = metadata.and_then(|metadata| child(metadata, "annotations")) {
                    annotations[ANNOTATION] = json!(note);
                }
            }
        }
    }

    fn check(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        for (_, limits) in self.state.limit_ranges(request.namespace) {
            let mut problems = Vec::new();
            for limit in items(&limits) {
                match text(&limit["type"]) {
                    "Container" if request.resource == "pods" => {
                        for field in ["containers", "initContainers"] {
                            for container in items(&object["spec"][field]) {
                                let resources = &container["resources"];
                                let used = Used {
                                    requests: amounts(&resources["requests"]),
                                    limits: amounts(&resources["limits"]),
                                };
                                used.check(limit, "Container", &mut problems);
                            }
                        }
                    }
                    "Pod" if request.resource == "pods" => {
                        let used =
                            Used { requests: of_pod(object, "requests"), limits: of_pod(object, "limits") };
                        used.check(limit, "Pod", &mut problems);
                    }
                    "PersistentVolumeClaim" if request.resource == "persistentvolumeclaims" => {
                        check_claim(object, limit, &mut problems);
                    }
                    _ => {}
                }
            }
            match problems.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(format_args!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// The object in a field, made when absent; None where something else stands.
fn child<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let object = value.as_object_mut()?;
    let child = object.entry(field).or_insert(Value::Null);
    if child.is_null() {
        *child = json!({});
    }
    child.is_object().then_some(child)
}

struct Used<'a> {
    requests: Amounts<'a>,
    limits: Amounts<'a>,
}

impl Used<'_> {
    fn check(&self, limit: &Value, what: &str, problems: &mut Vec<String>) {
        for (name, min) in amounts(&limit["min"]) {
            let (request, limit) = (self.requests.get(name), self.limits.get(name));
            let usage = format!("minimum {name} usage per {what} is {min}");
            match (request, limit) {
                (None, _) => problems.push(format!("{usage}.  No request is specified")),
                (Some(request), _) if *request < min => {
                    problems.push(format!("{usage}, but request is {request}"));
                }
                (_, Some(limit)) if *limit < min => problems.push(format!("{usage}, but limit is {limit}")),
                _ => {}
            }
        }
        for (name, max) in amounts(&limit["max"]) {
            let (request, limit) = (self.requests.get(name), self.limits.get(name));
            let usage = format!("maximum {name} usage per {what} is {max}");
            match (request, limit) {
                (_, None) => problems.push(format!("{usage}.  No limit is specified")),
                (_, Some(limit)) if *limit > max => problems.push(format!("{usage}, but limit is {limit}")),
                (Some(request), _) if *request > max => {
                    problems.push(format!("{usage}, but request is {request}"));
                }
                _ => {}
            }
        }
        for (name, max) in amounts(&limit["maxLimitRequestRatio"]) {
            let set = |amounts: &Amounts<'_>| amounts.get(name).copied().filter(|amount| !amount.is_zero());
            let usage = format!("{name} max limit to request ratio per {what} is {max}");
            match (set(&self.requests), set(&self.limits)) {
                (None, _) => problems.push(format!("{usage}, but no request is specified or request is 0")),
                (_, None) => problems.push(format!("{usage}, but no limit is specified or limit is 0")),
                (Some(request), Some(limit)) => {
                    let ratio = limit.as_f64() / request.as_f64();
                    if ratio > max.as_f64() {
                        problems.push(format!("{usage}, but provided ratio is {ratio:.6}"));
                    }
                }
            }
        }
    }
}

/// Containers and sidecars together, or any init container with the sidecars before it.
fn of_pod<'a>(pod: &'a Value, kind: &str) -> Amounts<'a> {
    let mut total: Amounts<'a> = BTreeMap::new();
    let add = |total: &mut Amounts<'a>, container: &'a Value| {
        for (name, amount) in amounts(&container["resources"][kind]) {
            *total.entry(name).or_default() += amount;
        }
    };
    for container in items(&pod["spec"]["containers"]) {
        add(&mut total, container);
    }
    let (mut sidecars, mut peak) = (BTreeMap::new(), BTreeMap::new());
    for container in items(&pod["spec"]["initContainers"]) {
        let mut running = sidecars.clone();
        add(&mut running, container);
        if container["restartPolicy"] == "Always" {
            sidecars = running.clone();
            add(&mut total, container);
        }
        raise(&mut peak, running);
    }
    raise(&mut total, peak);
    total
}

fn raise<'a>(amounts: &mut Amounts<'a>, other: Amounts<'a>) {
    for (name, amount) in other {
        let own = amounts.entry(name).or_insert(amount);
        *own = amount.max(*own);
    }
}

fn check_claim(claim: &Value, limit: &Value, problems: &mut Vec<String>) {
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for (name, min) in amounts(&limit["min"]) {
        if let Some(request) = requests.get(name).filter(|request| **request < min) {
            problems.push(format!(
                "minimum {name} usage per PersistentVolumeClaim is {min}, but request is {request}"
            ));
        }
    }
    for (name, max) in amounts(&limit["max"]) {
        if let Some(request) = requests.get(name).filter(|request| **request > max) {
            problems.push(format!(
                "maximum {name} usage per PersistentVolumeClaim is {max}, but request is {request}"
            ));
        }
    }
}

impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("", "pods") && request.subresource.is_empty() && request.operation == Operation::Create
        {
            self.fill_in(request);
        }
        admitted()
    }

    fn validate<'a>(&'a self, request: &'a AdmissionRequest<'_>) -> Admitted<'a> {
        let checked = match (request.group, request.resource, request.subresource) {
            // A pod's resources change through its resize subresource only.
            ("", "pods", "") => request.operation == Operation::Create,
            ("", "pods", "resize") => request.operation == Operation::Update,
            ("", "persistentvolumeclaims", "") => true,
            _ => false,
        };
        let result = if checked { self.check(request) } else { Ok(()) };
        Box::pin(std::future::ready(result))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate, validate};
    use super::*;
    use crate::observed::{Event, Observer, Resource};

    fn plugin(limit: Value) -> LimitRanger {
        let state = State::default();
        let range = json!({"metadata": {"namespace": "ns", "name": "r"}, "spec": {"limits": [limit]}});
        state.observe(Resource::LimitRanges, Event::Upsert(&range));
        LimitRanger { state: Arc::new(state) }
    }

    fn pods<'a>() -> Given<'a> {
        Given { kind: "Pod", resource: "pods", namespace: "ns", name: "p", ..Given::default() }
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn fills_in_defaults() {
        let plugin = plugin(json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"}}));
        let pod = json!({"metadata": {}, "spec": {"containers": [container(json!({}), json!({"cpu": "2"}))],
            "initContainers": [{"name": "i"}]}});
        let pod = mutate(&plugin, &pods(), pod).unwrap();
        let expected = container(json!({"cpu": "100m"}), json!({"cpu": "2", "memory": "1Gi"}));
        assert_eq!(pod["spec"]["containers"][0], expected);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; memory limit for container c; cpu request for init container i; cpu, memory limit for init container i"
        );
        let untouched = json!({"metadata": {}, "spec": {"containers": [{"name": "c"}]}});
        let elsewhere = Given { namespace: "other", ..pods() };
        assert_eq!(mutate(&plugin, &elsewhere, untouched.clone()).unwrap(), untouched);
    }

    #[test]
    fn holds_containers_to_bounds() {
        let check = |limit: Value, container: Value, expected: Option<&str>| {
            let pod = json!({"spec": {"containers": [container]}});
            let message = validate(&plugin(limit), &pods(), pod).err().map(|status| status.message);
            let expected = expected.map(|text| format!("pods \"p\" is forbidden: {text}"));
            assert_eq!(message, expected);
        };
        let min = json!({"type": "Container", "min": {"cpu": "100m"}});
        let max = json!({"type": "Container", "max": {"memory": "1Gi"}});
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        let cpu = |amount: &str| json!({"cpu": amount});
        let memory = |amount: &str| json!({"memory": amount});
        check(min.clone(), container(cpu("0.1"), json!({})), None);
        check(
            min.clone(),
            container(cpu("50m"), json!({})),
            Some("minimum cpu usage per Container is 100m, but request is 50m"),
        );
        check(
            min,
            container(json!({}), json!({})),
            Some("minimum cpu usage per Container is 100m.  No request is specified"),
        );
        check(max.clone(), container(json!({}), memory("1024Mi")), None);
        check(
            max.clone(),
            container(json!({}), memory("2Gi")),
            Some("maximum memory usage per Container is 1Gi, but limit is 2Gi"),
        );
        check(
            max,
            container(json!({}), json!({})),
            Some("maximum memory usage per Container is 1Gi.  No limit is specified"),
        );
        check(ratio.clone(), container(cpu("1"), cpu("2")), None);
        check(
            ratio.clone(),
            container(cpu("1"), cpu("3")),
            Some("cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"),
        );
        check(
            ratio,
            container(json!({}), cpu("3")),
            Some(
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
        );
    }

    #[test]
    fn holds_pods_and_claims_to_bounds() {
        let pod_limit = plugin(json!({"type": "Pod", "max": {"cpu": "3"}}));
        let check_pod = |containers: &[&str], init: &[(&str, &str)], expected: bool| {
            let of = |cpu: &str| container(json!({}), json!({"cpu": cpu}));
            let init: Vec<Value> = init
                .iter()
                .map(|(cpu, policy)| {
                    let mut container = of(cpu);
                    container["restartPolicy"] = json!(policy);
                    container
                })
                .collect();
            let containers: Vec<Value> = containers.iter().map(|cpu| of(cpu)).collect();
            let pod = json!({"spec": {"containers": containers, "initContainers": init}});
            assert_eq!(validate(&pod_limit, &pods(), pod).is_ok(), expected);
        };
        check_pod(&["1", "2"], &[], true);
        check_pod(&["1", "2500m"], &[], false);
        check_pod(&["1"], &[("3", "")], true);
        check_pod(&["1"], &[("4", "")], false);
        check_pod(&["2"], &[("1", "Always")], true);
        check_pod(&["2"], &[("2", "Always")], false);
        check_pod(&["1"], &[("1", "Always"), ("2500m", "")], false);

        let claim_limit = plugin(
            json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}),
        );
        for (storage, expected) in [("1Gi", true), ("500Mi", false), ("3Gi", false)] {
            let given = Given {
                kind: "PersistentVolumeClaim",
                resource: "persistentvolumeclaims",
                namespace: "ns",
                ..Given::default()
            };
            let claim = json!({"spec": {"resources": {"requests": {"storage": storage}}}});
            assert_eq!(validate(&claim_limit, &given, claim).is_ok(), expected, "{storage}");
        }
    }
}

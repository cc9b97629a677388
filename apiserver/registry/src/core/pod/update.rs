//! What an update may change: nearly nothing of a pod's spec, on its main resource, `/status`,
//! `/ephemeralcontainers` and `/resize`.

use serde_json::Value;

use super::{resources, scheduling, validation};
use crate::{
    cause::{Causes, Path, go_quote},
    diff,
    equality::equal,
    fields::{Fields, Fill},
    names,
    quantity::quantity,
    rules,
};

const MIRROR: &str = "kubernetes.io/config.mirror";

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
     `spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// An update of the pod itself.
pub(super) fn main(new: &Value, old: &Value, causes: &mut Causes) {
    validation::pod(new, causes);
    mirror_annotation(new, old, causes);
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    for list in ["containers", "initContainers"] {
        if spec.list(list).len() != old_spec.list(list).len() {
            causes.forbidden(&path.child(list), "pod updates may not add or remove containers");
            return;
        }
    }
    if !active_deadline(spec, old_spec, &path.child("activeDeadlineSeconds"), causes) {
        return;
    }
    tolerations(spec, old_spec, &path.child("tolerations"), causes);
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !old_spec.list("schedulingGates").iter().any(|old| old.text("name") == name) {
            causes.forbidden(
                &path.child("schedulingGates").index(index).child("name"),
                &format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
    if equal(spec, old_spec) {
        return;
    }
    let mut rest = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, old) in rest.items(list).iter_mut().zip(old_spec.list(list)) {
            container.copy("image", old);
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        rest.copy(field, old_spec);
    }
    if old_spec.int("terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0)
        && rest.int("terminationGracePeriodSeconds") == Some(1)
    {
        rest.copy("terminationGracePeriodSeconds", old_spec);
    }
    if !old_spec.list("schedulingGates").is_empty() {
        gated(&mut rest, old_spec, &path, causes);
    }
    if !equal(&rest, old_spec) {
        let diff = diff::unified(old_spec, &rest);
        causes.forbidden(&path, &format!("pod updates may not change fields other than {UPDATABLE}\n{diff}"));
    }
}

fn mirror_annotation(new: &Value, old: &Value, causes: &mut Causes) {
    let annotation = |pod: &Value| pod.at("metadata").at("annotations").get(MIRROR).cloned();
    let path = Path::new("metadata");
    let path = path.child("annotations");
    match (annotation(new), annotation(old)) {
        (Some(_), None) => causes.forbidden(&path.key(MIRROR), "may not add mirror pod annotation"),
        (new, Some(old)) if new.as_ref() != Some(&old) => {
            causes.forbidden(&path.key(MIRROR), "may not remove or update mirror pod annotation");
        }
        _ => {}
    }
}

/// May be set once and then only lowered. False: so wrong that nothing further is worth saying.
fn active_deadline(spec: &Value, old: &Value, path: &Path<'_>, causes: &mut Causes) -> bool {
    match (spec.int("activeDeadlineSeconds"), old.int("activeDeadlineSeconds")) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            causes.invalid(path, new, names::range(0, i64::from(i32::MAX)));
            false
        }
        (Some(new), Some(old)) if old < new => {
            causes.invalid(path, new, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            causes.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn tolerations(spec: &Value, old: &Value, path: &Path<'_>, causes: &mut Causes) {
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|field| a.text(field) == b.text(field))
    };
    let new = spec.list("tolerations");
    if old.list("tolerations").iter().any(|old| !new.iter().any(|new| same(new, old))) {
        causes.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    scheduling::tolerations(new, path, causes);
}

/// While a pod is gated, where it may go can be narrowed.
fn gated(rest: &mut Value, old: &Value, path: &Path<'_>, causes: &mut Causes) {
    let narrowed = old.pairs("nodeSelector").all(|(key, value)| rest.at("nodeSelector").text(key) == value);
    if !narrowed {
        causes.invalid(
            &path.child("nodeSelector"),
            rest.at("nodeSelector").clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    rest.copy("nodeSelector", old);
    let required = |spec: &Value| {
        spec.at("affinity").at("nodeAffinity").at("requiredDuringSchedulingIgnoredDuringExecution").clone()
    };
    let (new_terms, old_terms) = (required(rest), required(old));
    let (new_terms, old_terms) = (new_terms.list("nodeSelectorTerms"), old_terms.list("nodeSelectorTerms"));
    let grown = |new: &Value, old: &Value| {
        ["matchExpressions", "matchFields"].iter().all(|field| {
            let (new, old) = (new.list(field), old.list(field));
            new.len() >= old.len() && new.iter().zip(old).all(|(new, old)| equal(new, old))
        })
    };
    let narrowed = old_terms.is_empty()
        || (new_terms.len() == old_terms.len()
            && new_terms.iter().zip(old_terms).all(|(new, old)| grown(new, old)));
    if !narrowed {
        causes.invalid(
            &path.child("affinity").child("nodeAffinity"),
            rest.at("affinity").at("nodeAffinity").clone(),
            "only additions are allowed (no mutations or deletions)",
        );
    }
    let had_affinity = old.has("affinity");
    if let Some(affinity) = rest.section("affinity") {
        affinity.copy("nodeAffinity", old.at("affinity"));
        if !had_affinity && affinity.as_object().is_some_and(serde_json::Map::is_empty) {
            rest.drop_field("affinity");
        }
    }
}

/// An update of `/status`.
pub(super) fn status(new: &Value, old: &Value, causes: &mut Causes) {
    mirror_annotation(new, old, causes);
    let path = Path::new("status");
    let (status, old_status) = (new.at("status"), old.at("status"));
    for (index, condition) in status.list("conditions").iter().enumerate() {
        let kind = condition.text("type");
        let path = Path::new("metadata");
        causes.syntax(
            &path.child("conditions").index(index).child("Type"),
            kind,
            names::qualified_name(kind),
        );
    }
    let nominated = status.text("nominatedNodeName");
    if nominated != old_status.text("nominatedNodeName") && !nominated.is_empty() {
        causes.syntax(&path.child("nominatedNodeName"), nominated, names::dns_subdomain(nominated));
    }
    if status.text("qosClass") != old_status.text("qosClass") {
        causes.invalid(&path.child("qosClass"), status.text("qosClass"), "field is immutable");
    }
    let policy = old.at("spec").text("restartPolicy");
    for (list, policy) in [
        ("containerStatuses", policy),
        ("initContainerStatuses", policy),
        // An ephemeral container never runs again.
        ("ephemeralContainerStatuses", "Never"),
    ] {
        state_transitions(new, old, list, policy, &path.child(list), causes);
    }
    for (list, name) in [("podIPs", "Pod"), ("hostIPs", "Host")] {
        addresses(status, list, name, &path.child(list), causes);
    }
}

/// Rules for restarting single containers make their own exceptions to the pod's policy.
fn restarts_by_own_rule(spec: &Value, name: &str) -> bool {
    ["containers", "initContainers"].iter().flat_map(|list| spec.list(list)).any(|container| {
        container.text("name") == name
            && (container.text("restartPolicy") == "Always"
                || !container.list("restartPolicyRules").is_empty())
    })
}

fn state_transitions(
    new: &Value,
    old: &Value,
    list: &str,
    policy: &str,
    path: &Path<'_>,
    causes: &mut Causes,
) {
    if policy == "Always" {
        return;
    }
    for (index, status) in old.at("status").list(list).iter().enumerate() {
        let terminated = status.at("state").at("terminated");
        let failed = terminated.int("exitCode").unwrap_or(0) != 0;
        if terminated.is_null()
            || (failed && policy == "OnFailure")
            || restarts_by_own_rule(old.at("spec"), status.text("name"))
        {
            continue;
        }
        let revived = new
            .at("status")
            .list(list)
            .iter()
            .any(|new| new.text("name") == status.text("name") && !new.at("state").has("terminated"));
        if revived {
            causes.forbidden(
                &path.index(index).child("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}

fn addresses(status: &Value, list: &str, name: &str, path: &Path<'_>, causes: &mut Causes) {
    let addresses = status.list(list);
    for (index, address) in addresses.iter().enumerate() {
        rules::ip_address(address.text("ip"), &path.index(index), causes);
        if addresses[..index].iter().any(|other| other.text("ip") == address.text("ip")) {
            causes.duplicate(&path.index(index), address.clone());
        }
    }
    if name == "Host" && addresses.first().is_some_and(|first| first.text("ip") != status.text("hostIP")) {
        causes.invalid(&path.index(0).child("ip"), addresses[0].text("ip"), "must be equal to `hostIP`");
    }
    let is_v4 = |address: &Value| rules::parse_ip(address.text("ip")).map(|ip| ip.is_ipv4());
    let dual = addresses.len() == 2 && is_v4(&addresses[0]) != is_v4(&addresses[1]);
    if addresses.len() > 1 && !dual {
        causes.invalid(path, status.at(list).clone(), "may specify no more than one IP for each IP family");
    }
}

/// An update of `/ephemeralcontainers`: they may only be added.
pub(super) fn ephemeral_containers(new: &Value, old: &Value, causes: &mut Causes) {
    if old.at("metadata").at("annotations").has(MIRROR) {
        causes.forbidden(&Path::new(""), "static pods do not support ephemeral containers");
        return;
    }
    validation::pod(new, causes);
    let path = Path::new("spec");
    let path = path.child("ephemeralContainers");
    for old in old.at("spec").list("ephemeralContainers") {
        let name = old.text("name");
        match new.at("spec").list("ephemeralContainers").iter().find(|new| new.text("name") == name) {
            None => causes.forbidden(
                &path,
                &format!("existing ephemeral containers {} may not be removed\n", go_quote(name)),
            ),
            Some(new) if !equal(new, old) => causes.forbidden(
                &path,
                &format!(
                    "existing ephemeral containers {} may not be changed\n{}",
                    go_quote(name),
                    diff::unified(old, new)
                ),
            ),
            Some(_) => {}
        }
    }
}

/// An update of `/resize`: cpu and memory of containers, within the quality-of-service class.
pub(super) fn resize(new: &Value, old: &Value, causes: &mut Causes) {
    if old.at("metadata").at("annotations").has(MIRROR) {
        causes.forbidden(&Path::new(""), "static pods cannot be resized");
        return;
    }
    if old.at("spec").at("os").text("name") == "windows" {
        causes.forbidden(&Path::new(""), "windows pods cannot be resized");
        return;
    }
    validation::pod(new, causes);
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    if resources::quality_of_service(spec) != resources::quality_of_service(old_spec) {
        causes.invalid(
            &path,
            new.at("status").text("qosClass"),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let running = old.at("status").list("containerStatuses").iter().find(|c| c.at("state").has("running"));
    if running.is_some_and(|container| !container.has("resources")) {
        causes.forbidden(&path, "Pod running on node without support for resize");
    }
    for list in ["initContainers", "containers"] {
        for (index, (container, old)) in spec.list(list).iter().zip(old_spec.list(list)).enumerate() {
            if list == "initContainers" && container.text("restartPolicy") != "Always" {
                if !equal(container, old) {
                    causes.forbidden(&path, "resources for non-sidecar init containers are immutable");
                }
                continue;
            }
            let path = path.child(list);
            let path = path.index(index);
            container_resize(container, old, &path.child("resources"), causes);
        }
    }
    if !causes.is_empty() {
        return;
    }
    let mut rest = spec.clone();
    for list in ["initContainers", "containers"] {
        for (container, old) in rest.items(list).iter_mut().zip(old_spec.list(list)) {
            restore_cpu_and_memory(container, old);
        }
    }
    if !equal(&rest, old_spec) {
        causes.forbidden(&path, "only cpu and memory resources are mutable");
    }
}

fn container_resize(container: &Value, old: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (new_resources, old_resources) = (container.at("resources"), old.at("resources"));
    for (kind, message) in
        [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")]
    {
        let removed = old_resources
            .entries(kind)
            .into_iter()
            .flatten()
            .any(|(name, _)| !new_resources.at(kind).has(name));
        if removed {
            causes.forbidden(&path.child(kind), message);
        }
    }
    let in_place = !container.list("resizePolicy").iter().any(|policy| {
        policy.text("resourceName") == "memory" && policy.text("restartPolicy") == "RestartContainer"
    });
    let limit = |resources: &Value| quantity(resources.at("limits").at("memory"));
    if in_place && limit(new_resources).is_some() && limit(old_resources).is_none() {
        causes.forbidden(
            &path.child("limits").key("memory"),
            "memory limits cannot be added unless resizePolicy is RestartContainer",
        );
    }
}

fn restore_cpu_and_memory(container: &mut Value, old: &Value) {
    for kind in ["limits", "requests"] {
        let old_amounts = old.at("resources").at(kind);
        let Some(amounts) = container.part("resources").and_then(|resources| resources.section(kind)) else {
            continue;
        };
        for name in ["cpu", "memory"] {
            amounts.copy(name, old_amounts);
        }
    }
}

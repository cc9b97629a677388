//! What a kubelet may write to its own Node: no other node's, no taints, no labels that would draw
//! workloads to it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::admission::{AdmissionRequest, Operation};
use crate::state::{items, text};
use crate::status::Status;

pub(super) fn check_node(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let object = request.object.as_deref().unwrap_or(&Value::Null);
    let requested = if request.name.is_empty() { text(&object["metadata"]["name"]) } else { request.name };
    if requested != node {
        return Err(
            request.forbidden(format_args!("node {node:?} is not allowed to modify node {requested:?}"))
        );
    }
    let new_labels = &object["metadata"]["labels"];
    match request.operation {
        Operation::Create => {
            if object["spec"]["configSource"].is_object() {
                return Err(request.forbidden(format_args!(
                    "node {node:?} is not allowed to create pods with a non-nil configSource"
                )));
            }
            let forbidden = forbidden_labels(changed_keys(&Value::Null, new_labels));
            if !forbidden.is_empty() {
                return Err(request.forbidden(format_args!(
                    "node {node:?} is not allowed to set the following labels: {forbidden}"
                )));
            }
        }
        Operation::Update => {
            let old = request.old_object.unwrap_or(&Value::Null);
            let source = &object["spec"]["configSource"];
            if source.is_object() && *source != old["spec"]["configSource"] {
                return Err(request.forbidden(format_args!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                )));
            }
            if items(&object["spec"]["taints"]) != items(&old["spec"]["taints"]) {
                return Err(request.forbidden(format_args!("node {node:?} is not allowed to modify taints")));
            }
            let forbidden = forbidden_labels(changed_keys(&old["metadata"]["labels"], new_labels));
            if !forbidden.is_empty() {
                return Err(request.forbidden(format_args!("is not allowed to modify labels: {forbidden}")));
            }
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn changed_keys<'a>(old: &'a Value, new: &'a Value) -> BTreeSet<&'a str> {
    let differing = |a: &'a Value, b: &'a Value| {
        a.as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| b.get(key.as_str()) != Some(value))
            .map(|(key, _)| key.as_str())
    };
    differing(old, new).chain(differing(new, old)).collect()
}

/// Labels a kubelet sets for itself.
const KUBELET_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];

/// Those of the keys that a node may not touch, separated by commas.
fn forbidden_labels(keys: BTreeSet<&str>) -> String {
    let within = |namespace: &str, parent: &str| {
        namespace.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let forbidden = |key: &&str| {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let kubelets = KUBELET_LABELS.contains(key)
            || within(namespace, "kubelet.kubernetes.io")
            || within(namespace, "node.kubernetes.io");
        within(namespace, "node-restriction.kubernetes.io")
            || ((within(namespace, "kubernetes.io") || within(namespace, "k8s.io")) && !kubelets)
    };
    keys.into_iter().filter(forbidden).collect::<Vec<_>>().join(", ")
}

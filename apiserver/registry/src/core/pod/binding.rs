//! Assigning a pod to a node (`pods/binding`), the scheduler's one write. Must not know where pods are stored.

use serde_json::{Value, json};

use crate::{
    Cause,
    cause::{Causes, Path},
    fields::{Fields, Fill},
};

/// Why a binding cannot be made; the API server answers 409 Conflict.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssignError {
    #[error("pod {0} is being deleted, cannot be assigned to a host")]
    Deleting(String),
    #[error("pod {pod} is already assigned to node {}", crate::cause::go_quote(.node))]
    Assigned { pod: String, node: String },
    #[error("pod {0} has non-empty .spec.schedulingGates")]
    Gated(String),
    #[error("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}")]
    OtherPod { wanted: String, found: String },
}

/// What is wrong with a Binding that a client sent.
pub fn validate(binding: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let target = Path::new("target");
    let kind = binding.at("target").text("kind");
    if !kind.is_empty() && kind != "Node" {
        causes.not_supported(&target.child("kind"), kind, &["Node", "<empty>"]);
    }
    if binding.at("target").text("name").is_empty() {
        causes.required(&target.child("name"), "");
    }
    causes.into_vec()
}

/// Puts the node into the pod, with the binding's annotations and labels and the PodScheduled condition; `now` is RFC 3339.
/// The caller has validated the binding and writes the pod under its resourceVersion.
pub fn assign(pod: &mut Value, binding: &Value, now: &str) -> Result<(), AssignError> {
    let metadata = pod.at("metadata");
    let name = metadata.text("name").to_owned();
    let (wanted, found) = (binding.at("metadata").text("uid"), metadata.text("uid"));
    if !wanted.is_empty() && wanted != found {
        return Err(AssignError::OtherPod { wanted: wanted.to_owned(), found: found.to_owned() });
    }
    if metadata.has("deletionTimestamp") {
        return Err(AssignError::Deleting(name));
    }
    let assigned = pod.at("spec").text("nodeName");
    if !assigned.is_empty() {
        return Err(AssignError::Assigned { pod: name, node: assigned.to_owned() });
    }
    if !pod.at("spec").list("schedulingGates").is_empty() {
        return Err(AssignError::Gated(name));
    }
    if let Some(spec) = pod.section("spec") {
        spec.put("nodeName", binding.at("target").text("name"));
    }
    // Labels (of the node's topology) say nothing where the pod has said something itself.
    for (field, overwrites) in [("annotations", true), ("labels", false)] {
        if let Some(entries) = binding.at("metadata").entries(field)
            && let Some(own) = pod.section("metadata").and_then(|metadata| metadata.section(field))
        {
            for (key, value) in entries {
                if overwrites || !own.has(key) {
                    own.put(key, value.clone());
                }
            }
        }
    }
    if let Some(status) = pod.section("status") {
        status.drop_field("nominatedNodeName");
        scheduled(status, now);
    }
    Ok(())
}

fn scheduled(status: &mut Value, now: &str) {
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    if !status.at("conditions").is_array() {
        status.put("conditions", json!([]));
    }
    let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) else { return };
    match conditions.iter_mut().find(|c| c.text("type") == "PodScheduled") {
        Some(existing) => *existing = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assigns_once() {
        let binding = json!({"metadata": {"annotations": {"a": "b"}, "labels": {"own": "x", "zone": "z"}}, "target": {"kind": "Node", "name": "n"}});
        assert!(validate(&binding).is_empty());
        assert_eq!(validate(&json!({"target": {"kind": "Pod"}})).len(), 2);
        let mut pod = json!({"metadata": {"name": "p", "uid": "1", "labels": {"own": "y"}}, "spec": {}});
        assert!(assign(&mut pod, &binding, "2024-01-01T00:00:00Z").is_ok());
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(pod["metadata"]["labels"], json!({"own": "y", "zone": "z"}));
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        let error = assign(&mut pod, &binding, "").unwrap_err();
        assert_eq!(error.to_string(), "pod p is already assigned to node \"n\"");
        let mut gated = json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "g"}]}});
        assert_eq!(assign(&mut gated, &binding, ""), Err(AssignError::Gated("p".into())));
        let mut other = json!({"metadata": {"name": "p", "uid": "2"}});
        let bound = json!({"metadata": {"uid": "1"}, "target": {"name": "n"}});
        assert!(matches!(assign(&mut other, &bound, ""), Err(AssignError::OtherPod { .. })));
    }
}

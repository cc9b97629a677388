//! Validation of what steers a pod to a node: affinity, tolerations, topology spread, gates.

use std::collections::HashSet;

use serde_json::Value;

use crate::{
    cause::{Causes, Path},
    fields::Fields,
    metadata, names, rules,
};

pub(super) fn scheduling(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    metadata::label_map(spec.at("nodeSelector"), &path.child("nodeSelector"), causes);
    let affinity = spec.at("affinity");
    let path_of_affinity = path.child("affinity");
    node_affinity(affinity.at("nodeAffinity"), &path_of_affinity.child("nodeAffinity"), causes);
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(affinity.at(kind), &path_of_affinity.child(kind), causes);
    }
    readiness_and_gates(spec, path, causes);
    topology_spread(spec.list("topologySpreadConstraints"), &path.child("topologySpreadConstraints"), causes);
    tolerations(spec.list("tolerations"), &path.child("tolerations"), causes);
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn node_affinity(affinity: &Value, path: &Path<'_>, causes: &mut Causes) {
    if affinity.has(REQUIRED) {
        node_selector(affinity.at(REQUIRED), &path.child(REQUIRED), causes);
    }
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = path.child(PREFERRED);
        let path = path.index(index);
        weight(term, &path, causes);
        node_selector_term(term.at("preference"), &path.child("preference"), false, causes);
    }
}

/// A `NodeSelector`: at least one term.
pub(crate) fn node_selector(selector: &Value, path: &Path<'_>, causes: &mut Causes) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector.list("nodeSelectorTerms");
    if terms.is_empty() {
        causes.required(&path, "must have at least one node selector term");
    }
    for (index, term) in terms.iter().enumerate() {
        node_selector_term(term, &path.index(index), true, causes);
    }
}

fn node_selector_term(term: &Value, path: &Path<'_>, check_values: bool, causes: &mut Causes) {
    for (index, expression) in term.list("matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions");
        let path = path.index(index);
        let values = expression.list("values").len();
        match expression.text("operator") {
            "In" | "NotIn" if values == 0 => {
                causes.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
            }
            "Exists" | "DoesNotExist" if values > 0 => causes.forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if values != 1 => causes.required(
                &path.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => causes.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        let key = expression.text("key");
        causes.syntax(&path.child("key"), key, names::qualified_name(key));
        if check_values {
            for (index, value) in expression.texts("values").enumerate() {
                causes.syntax(&path.child("values").index(index), value, names::label_value(value));
            }
        }
    }
    for (index, field) in term.list("matchFields").iter().enumerate() {
        let path = path.child("matchFields");
        let path = path.index(index);
        match field.text("operator") {
            "In" | "NotIn" => {
                if field.list("values").len() != 1 {
                    causes.required(
                        &path.child("values"),
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    );
                }
            }
            other => causes.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        if field.text("key") == "metadata.name" {
            for (index, value) in field.texts("values").enumerate() {
                causes.syntax(&path.child("values").index(index), value, names::dns_subdomain(value));
            }
        } else {
            causes.invalid(&path.child("key"), field.text("key"), "not a valid field selector key");
        }
    }
}

fn weight(term: &Value, path: &Path<'_>, causes: &mut Causes) {
    let weight = term.int("weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        causes.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn pod_affinity(affinity: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, term) in affinity.list(REQUIRED).iter().enumerate() {
        pod_affinity_term(term, &path.child(REQUIRED).index(index), causes);
    }
    for (index, term) in affinity.list(PREFERRED).iter().enumerate() {
        let path = path.child(PREFERRED);
        let path = path.index(index);
        weight(term, &path, causes);
        pod_affinity_term(term.at("podAffinityTerm"), &path.child("podAffinityTerm"), causes);
    }
}

fn pod_affinity_term(term: &Value, path: &Path<'_>, causes: &mut Causes) {
    rules::label_selector(term.at("labelSelector"), &path.child("labelSelector"), causes);
    rules::label_selector(term.at("namespaceSelector"), &path.child("namespaceSelector"), causes);
    for namespace in term.texts("namespaces") {
        causes.syntax(&path.child("namespace"), namespace, names::dns_label(namespace));
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(term, field, &path.child(field), causes);
    }
    for (index, key) in term.texts("matchLabelKeys").enumerate() {
        if term.texts("mismatchLabelKeys").any(|other| other == key) {
            causes.invalid(
                &path.child("matchLabelKeys").index(index),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            );
        }
    }
    let key = term.text("topologyKey");
    if key.is_empty() {
        causes.required(&path.child("topologyKey"), "can not be empty");
    }
    causes.syntax(&path.child("topologyKey"), key, names::qualified_name(key));
}

fn label_keys(holder: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if !holder.list(field).is_empty() && !holder.has("labelSelector") {
        causes.forbidden(path, "must not be specified when labelSelector is not set");
    }
    for (index, key) in holder.texts(field).enumerate() {
        causes.syntax(&path.index(index), key, names::qualified_name(key));
    }
}

fn readiness_and_gates(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, gate) in spec.list("readinessGates").iter().enumerate() {
        let kind = gate.text("conditionType");
        let path = path.child("readinessGates");
        causes.syntax(&path.index(index).child("conditionType"), kind, names::qualified_name(kind));
    }
    let mut seen = HashSet::new();
    for (index, gate) in spec.list("schedulingGates").iter().enumerate() {
        let path = path.child("schedulingGates");
        let name = gate.text("name");
        causes.syntax(&path.index(index), name, names::qualified_name(name));
        if !seen.insert(name) {
            causes.duplicate(&path.index(index), name);
        }
    }
}

fn topology_spread(constraints: &[Value], path: &Path<'_>, causes: &mut Causes) {
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let skew = constraint.int("maxSkew").unwrap_or(0);
        if skew <= 0 {
            causes.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
        }
        let (key, action) = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        if key.is_empty() {
            causes.required(&path.child("topologyKey"), "can not be empty");
        }
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            causes.not_supported(
                &path.child("whenUnsatisfiable"),
                action,
                &["DoNotSchedule", "ScheduleAnyway"],
            );
        }
        let repeated = constraints[index + 1..]
            .iter()
            .any(|other| other.text("topologyKey") == key && other.text("whenUnsatisfiable") == action);
        if repeated {
            causes.duplicate(&path.child("{topologyKey, whenUnsatisfiable}"), format!("{{{key}, {action}}}"));
        }
        if let Some(domains) = constraint.int("minDomains") {
            if domains <= 0 {
                causes.invalid(&path.child("minDomains"), domains, "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let message =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                causes.invalid(&path.child("minDomains"), domains, message);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if constraint.has(field) && !matches!(constraint.text(field), "Honor" | "Ignore") {
                causes.not_supported(&path.child(field), constraint.text(field), &["Honor", "Ignore"]);
            }
        }
        label_keys(constraint, "matchLabelKeys", &path.child("matchLabelKeys"), causes);
        rules::label_selector(constraint.at("labelSelector"), &path.child("labelSelector"), causes);
    }
}

pub(super) fn tolerations(tolerations: &[Value], path: &Path<'_>, causes: &mut Causes) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        let (value, effect) = (toleration.text("value"), toleration.text("effect"));
        if !key.is_empty() {
            causes.syntax(&path.child("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            causes.invalid(
                &path.child("operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.has("tolerationSeconds") && effect != "NoExecute" {
            causes.invalid(
                &path.child("effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    causes.invalid(&path.child("operator"), value, messages.join(";"));
                }
            }
            "Exists" if !value.is_empty() => causes.invalid(
                &path.child("operator"),
                value,
                "value must be empty when `operator` is 'Exists'",
            ),
            "Exists" => {}
            other => causes.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            taint_effect(effect, &path.child("effect"), causes);
        }
    }
}

/// Effects of taints; an empty one is a missing one.
pub(crate) fn taint_effect(effect: &str, path: &Path<'_>, causes: &mut Causes) {
    rules::one_of(effect, &["NoSchedule", "PreferNoSchedule", "NoExecute"], path, causes);
}

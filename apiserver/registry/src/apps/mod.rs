//! Kinds of `apps/v1`, and what workloads have in common: a selector that must match the template, and counts.

mod controllerrevision;
mod daemonset;
mod deployment;
pub(crate) mod replicaset;
mod statefulset;

use serde_json::Value;

pub(crate) use controllerrevision::KIND as CONTROLLER_REVISION;
pub(crate) use daemonset::KIND as DAEMON_SET;
pub(crate) use deployment::KIND as DEPLOYMENT;
pub(crate) use replicaset::KIND as REPLICA_SET;
pub(crate) use statefulset::KIND as STATEFUL_SET;

use crate::{
    cause::{Causes, Path},
    core::pod,
    equality::equal,
    fields::Fields,
    rules,
};

/// `spec.selector`: there, well-formed and not empty; `name` is the kind in lower case.
fn selector(spec: &Value, name: &str, path: &Path<'_>, causes: &mut Causes) {
    let selector = spec.at("selector");
    let path = path.child("selector");
    if selector.is_null() {
        causes.required(&path, "");
        return;
    }
    rules::label_selector(selector, &path, causes);
    if rules::is_empty_selector(selector) {
        causes.invalid(&path, selector.clone(), format!("empty selector is invalid for {name}"));
    }
}

/// `spec.template` of a workload whose pods run for ever.
fn template(spec: &Value, path: &Path<'_>, kind: &str, causes: &mut Causes) {
    let path = path.child("template");
    let (template, selector) = (spec.at("template"), spec.at("selector"));
    let labels = template.at("metadata").at("labels");
    // An empty selector selects everything, none at all nothing.
    let selected = if selector.is_null() {
        false
    } else {
        rules::is_empty_selector(selector) || rules::selects(selector, labels)
    };
    if !selected {
        causes.invalid(
            &path.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    pod::validate_template(template, &path, causes);
    let path = path.child("spec");
    let policy = template.at("spec").text("restartPolicy");
    if policy != "Always" {
        causes.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if template.at("spec").has("activeDeadlineSeconds") {
        causes.forbidden(
            &path.child("activeDeadlineSeconds"),
            &format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

fn immutable(new: &Value, old: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if !equal(new.at(field), old.at(field)) {
        causes.invalid(&path.child(field), new.at(field).clone(), "field is immutable");
    }
}

/// Counts in status are not negative, and none is greater than `replicas`.
pub(crate) fn counts(status: &Value, fields: &[&str], path: &Path<'_>, causes: &mut Causes) {
    for field in fields.iter().chain(&["replicas", "observedGeneration", "collisionCount"]) {
        rules::not_negative(status, field, path, causes);
    }
    let count = |field: &str| status.int(field).unwrap_or(0);
    for field in fields {
        if count(field) > count("replicas") {
            causes.invalid(&path.child(field), count(field), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") && fields.contains(&"readyReplicas") {
        causes.invalid(
            &path.child("availableReplicas"),
            count("availableReplicas"),
            "cannot be greater than readyReplicas",
        );
    }
}

fn collision_count(new: &Value, old: &Value, causes: &mut Causes) {
    let count = |object: &Value| object.at("status").int("collisionCount");
    if let Some(old) = count(old)
        && count(new).is_none_or(|new| new < old)
    {
        let path = Path::new("status");
        causes.invalid(&path.child("collisionCount"), count(new).unwrap_or(0), "cannot be decremented");
    }
}

/// The number that an absolute count or a percentage stands for, as far as validation compares it.
fn is_zero(value: &Value) -> bool {
    rules::percent(value).or(value.as_i64()).unwrap_or(0) == 0
}

/// A percentage of pods cannot be more than all of them.
fn at_most_all(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    if rules::percent(value).is_some_and(|percent| percent > 100) {
        causes.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// A workload for tests.
#[cfg(test)]
fn workload(spec: Value) -> Value {
    serde_json::json!({"metadata": {"name": "web", "namespace": "default", "uid": "1"}, "spec": spec})
}

#[cfg(test)]
fn pod_template() -> Value {
    serde_json::json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_selector_selects_no_template() {
        const LABELS: &str = "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`";
        const REQUIRED: &str = "spec.selector: Required value";
        let check = |kind: &crate::Kind, expected: &[&str]| {
            let mut object = workload(serde_json::json!({"template": pod_template()}));
            kind.default(&mut object);
            let texts: Vec<String> = kind.validate_create(&object).iter().map(ToString::to_string).collect();
            assert_eq!(texts, expected, "{}", kind.resource.kind);
        };
        check(&DEPLOYMENT.kind(), &[REQUIRED, LABELS]);
        check(&REPLICA_SET.kind(), &[REQUIRED, LABELS]);
        check(&STATEFUL_SET.kind(), &[REQUIRED, LABELS]);
        check(&DAEMON_SET.kind(), &[LABELS]);
    }
}

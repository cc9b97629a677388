//! `policy/v1` PodDisruptionBudgets.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text},
    fields::Fields,
    kind::{Column, Spec, name, status},
    rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &[name("pdb")],
    subresources: &[status("policy", "PodDisruptionBudget")],
    storage_prefix: Some("poddisruptionbudgets"),
    columns: COLUMNS,
    unconditional_update: false,
    strategy: &PodDisruptionBudget,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Min Available", "Pods that must stay available."),
    text("Max Unavailable", "Pods that may be unavailable."),
    integer("Allowed Disruptions", "Pods that may be evicted now."),
    AGE,
];

struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn prepare_for_create(&self, object: &mut Value) {
        // These counts are not optional in the schema.
        let counts = serde_json::json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        if let Some(fields) = object.as_object_mut() {
            fields.insert("status".to_owned(), counts);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        if spec.has("minAvailable") && spec.has("maxUnavailable") {
            causes.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let value = spec.at(field);
            rules::int_or_percent(value, &path.child(field), &mut causes);
            if rules::percent(value).is_some_and(|percent| percent > 100) {
                causes.invalid(&path.child(field), value.clone(), "must not be greater than 100%");
            }
        }
        rules::label_selector(spec.at("selector"), &path.child("selector"), &mut causes);
        if spec.has("unhealthyPodEvictionPolicy") {
            let policy = spec.text("unhealthyPodEvictionPolicy");
            if !matches!(policy, "AlwaysAllow" | "IfHealthyBudget") {
                causes.not_supported(
                    &path.child("unhealthyPodEvictionPolicy"),
                    policy,
                    &["AlwaysAllow", "IfHealthyBudget"],
                );
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            rules::not_negative(new.at("status"), field, &Path::new("status"), &mut causes);
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |field: &str| match object.at("spec").at(field) {
            Value::Null => "N/A".to_owned(),
            value => rules::amount_text(value),
        };
        vec![
            columns::name(object),
            count("minAvailable").into(),
            count("maxUnavailable").into(),
            object.at("status").int("disruptionsAllowed").unwrap_or(0).into(),
            columns::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn validates() {
        fn check(spec: Value, expected: &[&str]) {
            let causes = PodDisruptionBudget.validate_create(&json!({"spec": spec}));
            let fields: Vec<String> = causes.into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, expected, "{spec}");
        }
        check(json!({"minAvailable": 1}), &[]);
        check(json!({"minAvailable": "50%"}), &[]);
        check(json!({"minAvailable": -1}), &["spec.minAvailable"]);
        check(json!({"maxUnavailable": "120%"}), &["spec.maxUnavailable"]);
        check(json!({"minAvailable": 1, "maxUnavailable": 1}), &["spec"]);
    }
}

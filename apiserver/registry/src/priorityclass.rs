//! `scheduling.k8s.io/v1` PriorityClasses: a number behind a name. Only one may be the global default; that is the
//! business of admission, which sees them all.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text},
    fields::{Fields, Fill},
    kind::{Column, Spec, name},
    rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    namespaced: false,
    short_names: &[name("pc")],
    storage_prefix: Some("priorityclasses"),
    columns: COLUMNS,
    strategy: &PriorityClass,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    integer("Value", "Priority of pods of this class."),
    Column { r#type: "boolean", ..text("Global-Default", "Whether pods without a class get this one.") },
    AGE,
    text("PreemptionPolicy", "Whether its pods may take the place of others."),
];

/// What users may set; above are the system's own.
const USER_MAX: i64 = 1_000_000_000;

const SYSTEM: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        object.fill("preemptionPolicy", "PreemptLowerPriority");
    }

    fn generation_counts(&self, _new: &Value, _old: &Value) -> bool {
        // Nothing that could be wanted otherwise may change.
        false
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (name, value) = (object.at("metadata").text("name"), object.int("value").unwrap_or(0));
        if name.starts_with("system-") {
            let known = SYSTEM
                .iter()
                .any(|(system, number)| *system == name && *number == value && !object.flag("globalDefault"));
            if !known {
                let path = Path::new("metadata");
                let message = if SYSTEM.iter().any(|(system, _)| *system == name) {
                    format!(
                        "value of {name} PriorityClass must be as the system has it and globalDefault false"
                    )
                } else {
                    format!("{name} is not a known system priority class")
                };
                causes.forbidden(
                    &path.child("name"),
                    &format!("priority class names with 'system-' prefix are reserved for system use only. error: {message}"),
                );
            }
        } else if value > USER_MAX {
            causes.forbidden(
                &Path::new("value"),
                &format!("maximum allowed value of a user defined priority is {USER_MAX}"),
            );
        }
        if object.has("preemptionPolicy") {
            rules::one_of(
                object.text("preemptionPolicy"),
                &["PreemptLowerPriority", "Never"],
                &Path::new("preemptionPolicy"),
                &mut causes,
            );
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        if new.int("value").unwrap_or(0) != old.int("value").unwrap_or(0) {
            causes.forbidden(&Path::new("Value"), "may not be changed in an update.");
        }
        if new.text("preemptionPolicy") != old.text("preemptionPolicy") {
            causes.invalid(
                &Path::new("preemptionPolicy"),
                new.text("preemptionPolicy"),
                "field is immutable",
            );
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            columns::name(object),
            object.int("value").unwrap_or(0).into(),
            object.flag("globalDefault").into(),
            columns::age(object, now),
            object.text("preemptionPolicy").into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values() {
        fn check(name: &str, value: i64, expected: usize) {
            let object = json!({"metadata": {"name": name}, "value": value});
            assert_eq!(KIND.kind().validate_create(&object).len(), expected, "{name} {value}");
        }
        check("high", 1_000_000_000, 0);
        check("high", 1_000_000_001, 1);
        check("low", -5, 0);
        check("system-node-critical", 2_000_001_000, 0);
        check("system-node-critical", 5, 1);
        check("system-mine", 5, 1);
    }

    #[test]
    fn the_number_stays() {
        let old = json!({"value": 1, "preemptionPolicy": "Never"});
        assert_eq!(PriorityClass.validate_update(&old, &old), []);
        assert_eq!(
            PriorityClass.validate_update(&json!({"value": 2, "preemptionPolicy": "Never"}), &old).len(),
            1
        );
    }
}

//! `coordination.k8s.io/v1` Leases: who holds what until when.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    fields::Fields,
    kind::{Column, Spec},
    names, rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage_prefix: Some("leases"),
    columns: COLUMNS,
    create_on_update: true,
    unconditional_update: false,
    strategy: &Lease,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];

struct Lease;

impl Strategy for Lease {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        if let Some(seconds) = spec.int("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            causes.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        rules::not_negative(spec, "leaseTransitions", &path, &mut causes);
        if spec.has("strategy") {
            let strategy = spec.text("strategy");
            if strategy != "OldestEmulationVersion"
                && names::qualified_name(strategy).is_empty()
                && !strategy.contains('/')
            {
                causes.invalid(
                    &path.child("strategy"),
                    strategy,
                    "must be a fully qualified name or OldestEmulationVersion",
                );
            }
        }
        if !spec.text("preferredHolder").is_empty() && spec.text("strategy").is_empty() {
            causes
                .forbidden(&path.child("preferredHolder"), "may only be specified if `strategy` is defined");
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            columns::name(object),
            object.at("spec").text("holderIdentity").into(),
            columns::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations() {
        fn check(spec: Value, expected: usize) {
            assert_eq!(Lease.validate_create(&json!({"spec": spec})).len(), expected, "{spec}");
        }
        check(json!({}), 0);
        check(json!({"leaseDurationSeconds": 40, "leaseTransitions": 0}), 0);
        check(json!({"leaseDurationSeconds": 0, "leaseTransitions": -1}), 2);
        check(json!({"preferredHolder": "a"}), 1);
    }
}

//! LimitRanges: what each container, pod or claim of a namespace may ask for.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, CREATED_AT, NAME},
    fields::{Fields, Fill},
    kind::{Spec, name},
    names,
    quantity::{Quantity, quantity},
    rules,
};

pub(crate) const LIMIT_RANGE: Spec = Spec {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &[name("limits")],
    storage_prefix: Some("limitranges"),
    columns: &[NAME, CREATED_AT],
    create_on_update: true,
    strategy: &LimitRange,
    ..Spec::STORED
};

struct LimitRange;

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.part("spec") else { return };
        for item in spec.items("limits").iter_mut().filter(|item| item.text("type") == "Container") {
            for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                let source = item.at(from).clone();
                let Some(target) = item.section(to) else { continue };
                for (name, amount) in source.as_object().into_iter().flatten() {
                    target.fill(name, amount.clone());
                }
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let path = Path::new("spec");
        let path = path.child("limits");
        let limits = object.at("spec").list("limits");
        for (index, item) in limits.iter().enumerate() {
            let (kind, path) = (item.text("type"), path.index(index));
            kind_of_limit(kind, &path.child("type"), &mut causes);
            if limits[..index].iter().any(|other| other.text("type") == kind) {
                causes.duplicate(&path.child("type"), kind);
            }
            limit_item(item, kind, &path, &mut causes);
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        columns::name_and_created_at(object)
    }
}

fn kind_of_limit(kind: &str, path: &Path<'_>, causes: &mut Causes) {
    let messages = names::qualified_name(kind);
    if !messages.is_empty() {
        causes.syntax(path, kind, messages);
    } else if !kind.contains('/') && !matches!(kind, "Container" | "PersistentVolumeClaim" | "Pod") {
        causes.invalid(path, kind, "must be a standard limit type or fully qualified");
    }
}

fn limit_item(item: &Value, kind: &str, path: &Path<'_>, causes: &mut Causes) {
    let mut keys = BTreeSet::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let amounts = item.entries(field);
        if kind == "Pod" && matches!(field, "default" | "defaultRequest") {
            if amounts.is_some_and(|amounts| !amounts.is_empty()) {
                causes.forbidden(&path.child(field), "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (name, _) in amounts.into_iter().flatten() {
            let path = path.child(field);
            if matches!(kind, "Pod" | "Container") {
                rules::container_resource_name(name, &path.key(name), causes);
            } else {
                rules::resource_name(name, &path.key(name), causes);
            }
            keys.insert(name.as_str());
        }
    }
    let storage = |field: &str| item.at(field).has("storage");
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        causes.required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
    for name in keys {
        order(item, name, path, causes);
    }
}

/// min ≤ default request ≤ default ≤ max, and a ratio that these leave possible.
fn order(item: &Value, name: &str, path: &Path<'_>, causes: &mut Causes) {
    let amount = |field: &str| item.at(field).at(name);
    for (low, high, at, blamed, words) in [
        ("min", "max", "min", "min", ("min value", "max value")),
        ("min", "defaultRequest", "defaultRequest", "defaultRequest", ("min value", "default request value")),
        ("defaultRequest", "max", "defaultRequest", "defaultRequest", ("default request value", "max value")),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "defaultRequest",
            ("default request value", "default limit value"),
        ),
        // Of defaults, upstream shows what they are compared with as the wrong value.
        ("min", "default", "default", "min", ("min value", "default value")),
        ("default", "max", "default", "max", ("default value", "max value")),
    ] {
        if let (Some(a), Some(b)) = (quantity(amount(low)), quantity(amount(high)))
            && a > b
        {
            let (low, high) = (rules::amount_text(amount(low)), rules::amount_text(amount(high)));
            let message = format!("{} {low} is greater than {} {high}", words.0, words.1);
            causes.invalid(&path.child(at).key(name), amount(blamed).clone(), message);
        }
    }
    ratio(item, name, path, causes);
    if let (Some(default), Some(request)) = (quantity(amount("default")), quantity(amount("defaultRequest")))
        && default != request
        && !rules::overcommit_allowed(name)
    {
        let message = format!(
            "default value {} must equal to defaultRequest value {} in {name}",
            rules::amount_text(amount("default")),
            rules::amount_text(amount("defaultRequest")),
        );
        causes.invalid(&path.child("defaultRequest").key(name), amount("defaultRequest").clone(), message);
    }
}

fn ratio(item: &Value, name: &str, path: &Path<'_>, causes: &mut Causes) {
    let amount = |field: &str| quantity(item.at(field).at(name));
    let Some(ratio) = amount("maxLimitRequestRatio") else { return };
    let text = rules::amount_text(item.at("maxLimitRequestRatio").at(name));
    let path = path.child("maxLimitRequestRatio");
    if ratio < Quantity::from_milli(1000) {
        causes.invalid(&path.key(name), text.as_str(), format!("ratio {text} is less than 1"));
    }
    if let (Some(min), Some(max)) = (amount("min"), amount("max")) {
        // No minimum leaves any ratio possible; nothing of nothing compares with no number.
        let possible = max.as_f64() / min.as_f64();
        if ratio.as_f64() > possible {
            let message = format!("ratio {text} is greater than max/min = {possible:.6}");
            causes.invalid(&path.key(name), text.as_str(), message);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_come_from_what_is_known() {
        let mut object =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}}]}});
        LimitRange.default(&mut object);
        assert_eq!(object["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2"}));
        assert_eq!(LimitRange.validate_create(&object), []);
    }

    #[test]
    fn validates() {
        #[track_caller]
        fn check(limits: Value, expected: &[&str]) {
            let causes = LimitRange.validate_create(&json!({"spec": {"limits": limits}}));
            assert_eq!(causes.iter().map(Cause::to_string).collect::<Vec<_>>(), expected);
        }
        let container = |fields: Value| {
            let mut item = json!({"type": "Container"});
            item.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            json!([item])
        };
        check(
            container(
                json!({"min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "2"}}),
            ),
            &[],
        );
        check(
            json!([{"type": "Pod", "max": {"cpu": "1"}}, {"type": "Disk"}, {"type": "Pod", "default": {"cpu": "1"}},
                {"type": "PersistentVolumeClaim"}]),
            &[
                "spec.limits[1].type: Invalid value: \"Disk\": must be a standard limit type or fully qualified",
                "spec.limits[2].type: Duplicate value: \"Pod\"",
                "spec.limits[2].default: Forbidden: may not be specified when `type` is 'Pod'",
                "spec.limits[3].limits: Required value: either minimum or maximum storage value is required, but \
                 neither was provided",
            ],
        );
        check(
            container(json!({"max": {"pods": "1"}})),
            &[
                "spec.limits[0].max[pods]: Invalid value: \"pods\": must be a standard resource for containers",
            ],
        );
        check(
            container(json!({"min": {"cpu": "1"}, "max": {"cpu": "500m"}})),
            &["spec.limits[0].min[cpu]: Invalid value: \"1\": min value 1 is greater than max value 500m"],
        );
        check(
            container(
                json!({"min": {"cpu": "2"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1500m"}}),
            ),
            &[
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1500m\": min value 2 is greater than default \
                 request value 1500m",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1500m\": default request value 1500m is greater \
                 than default limit value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
            ],
        );
        check(
            container(json!({"max": {"cpu": "1"}, "default": {"cpu": "3"}, "defaultRequest": {"cpu": "2"}})),
            &[
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max \
                 value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"1\": default value 3 is greater than max value 1",
            ],
        );
        check(
            container(json!({"maxLimitRequestRatio": {"cpu": "800m"}})),
            &["spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"800m\": ratio 800m is less than 1"],
        );
        check(
            container(
                json!({"min": {"cpu": "2"}, "max": {"cpu": "3"}, "maxLimitRequestRatio": {"cpu": "10"}}),
            ),
            &[
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"10\": ratio 10 is greater than max/min = \
               1.500000",
            ],
        );
        for min in ["0", "1"] {
            let limits =
                json!({"min": {"cpu": min}, "max": {"cpu": min}, "maxLimitRequestRatio": {"cpu": "1"}});
            check(container(limits), &[]);
        }
        check(
            container(
                json!({"default": {"example.com/gpu": "2"}, "defaultRequest": {"example.com/gpu": "1"}}),
            ),
            &[
                "spec.limits[0].defaultRequest[example.com/gpu]: Invalid value: \"1\": default value 2 must equal to \
               defaultRequest value 1 in example.com/gpu",
            ],
        );
    }
}

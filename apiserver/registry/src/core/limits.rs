//! LimitRanges and ResourceQuotas.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, CREATED_AT, NAME, text},
    fields::{Fields, Fill},
    kind::{Column, Spec, name, status},
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

pub(crate) const RESOURCE_QUOTA: Spec = Spec {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &[name("quota")],
    subresources: &[status("", "ResourceQuota")],
    storage_prefix: Some("resourcequotas"),
    columns: QUOTA_COLUMNS,
    strategy: &ResourceQuota,
    ..Spec::STORED
};

const QUOTA_COLUMNS: &[Column] = &[
    NAME,
    text("Request", "Requests that are used, of those allowed."),
    text("Limit", "Limits that are used, of those allowed."),
    AGE,
];

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
            let kind = item.text("type");
            if limits[..index].iter().any(|other| other.text("type") == kind) {
                causes.duplicate(&path.index(index).child("type"), kind);
            }
            limit_item(item, kind, &path.index(index), &mut causes);
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

fn limit_item(item: &Value, kind: &str, path: &Path<'_>, causes: &mut Causes) {
    let messages = crate::names::qualified_name(kind);
    if !messages.is_empty() {
        causes.syntax(&path.child("type"), kind, messages);
    } else if !kind.contains('/') && !matches!(kind, "Container" | "PersistentVolumeClaim" | "Pod") {
        causes.invalid(&path.child("type"), kind, "must be a standard limit type or fully qualified");
    }
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

/// min ≤ default request ≤ default ≤ max.
fn order(item: &Value, name: &str, path: &Path<'_>, causes: &mut Causes) {
    for (low, high, at, words) in [
        ("min", "max", "min", ("min value", "max value")),
        ("min", "defaultRequest", "defaultRequest", ("min value", "default request value")),
        ("defaultRequest", "max", "defaultRequest", ("default request value", "max value")),
        ("defaultRequest", "default", "defaultRequest", ("default request value", "default limit value")),
        ("min", "default", "default", ("min value", "default value")),
        ("default", "max", "default", ("default value", "max value")),
    ] {
        let (low, high) = (item.at(low).at(name), item.at(high).at(name));
        if let (Some(a), Some(b)) = (quantity(low), quantity(high))
            && a > b
        {
            let (low, high) = (rules::amount_text(low), rules::amount_text(high));
            let message = format!("{} {low} is greater than {} {high}", words.0, words.1);
            causes.invalid(&path.child(at).key(name), item.at(at).at(name).clone(), message);
        }
    }
    let ratio = item.at("maxLimitRequestRatio").at(name);
    if quantity(ratio).is_some_and(|ratio| ratio < Quantity::from_milli(1000)) {
        let text = rules::amount_text(ratio);
        causes.invalid(
            &path.child("maxLimitRequestRatio").key(name),
            text.as_str(),
            format!("ratio {text} is less than 1"),
        );
    }
}

struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let spec = object.at("spec");
        amounts(spec, "hard", &Path::new("spec"), &mut causes);
        let path = Path::new("spec");
        let path = path.child("scopes");
        let scopes: Vec<&str> = spec.texts("scopes").collect();
        for scope in &scopes {
            let known = [
                "Terminating",
                "NotTerminating",
                "BestEffort",
                "NotBestEffort",
                "PriorityClass",
                "CrossNamespacePodAffinity",
                "VolumeAttributesClass",
            ];
            if !known.contains(scope) {
                causes.invalid(&path, spec.at("scopes").clone(), "unsupported scope");
            }
        }
        for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
            if pair.iter().all(|scope| scopes.contains(scope)) {
                causes.invalid(&path, spec.at("scopes").clone(), "conflicting scopes");
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        let scopes = |object: &Value| -> BTreeSet<String> {
            object.at("spec").texts("scopes").map(str::to_owned).collect()
        };
        if scopes(new) != scopes(old) {
            let path = Path::new("spec");
            causes.invalid(&path.child("scopes"), new.at("spec").at("scopes").clone(), "field is immutable");
        }
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        for field in ["hard", "used"] {
            amounts(new.at("status"), field, &Path::new("status"), &mut causes);
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let status = object.at("status");
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let mut names: Vec<&String> = status.entries("hard").into_iter().flat_map(|map| map.keys()).collect();
        names.sort_unstable();
        for name in names {
            let used = status.at("used").at(name);
            let used = if used.is_null() { "0".to_owned() } else { rules::amount_text(used) };
            let text = format!("{name}: {used}/{}", rules::amount_text(status.at("hard").at(name)));
            if name.starts_with("limits.") { &mut limits } else { &mut requests }.push(text);
        }
        vec![
            columns::name(object),
            requests.join(", ").into(),
            limits.join(", ").into(),
            columns::age(object, now),
        ]
    }
}

fn amounts(holder: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    for (name, amount) in holder.entries(field).into_iter().flatten() {
        let path = path.child(field);
        // `count/<resource>.<group>` is what quotas of any resource are called.
        rules::resource_name(name, &path.key(name), causes);
        rules::resource_amount(name, amount, &path.key(name), causes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits() {
        let mut object =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}}]}});
        LimitRange.default(&mut object);
        assert_eq!(object["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2"}));
        assert_eq!(LimitRange.validate_create(&object), []);
        object["spec"]["limits"][0]["max"]["cpu"] = json!("500m");
        assert!(
            LimitRange.validate_create(&object)[0]
                .message
                .ends_with("min value 1 is greater than max value 500m")
        );
    }

    #[test]
    fn quotas() {
        let object = json!({"spec": {"hard": {"pods": "10", "count/widgets.example.com": "5", "limits.cpu": "4"}},
            "status": {"hard": {"pods": "10", "limits.cpu": "4"}, "used": {"pods": "1"}}});
        assert_eq!(ResourceQuota.validate_create(&object), []);
        let row = ResourceQuota.row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!((&row[1], &row[2]), (&json!("pods: 1/10"), &json!("limits.cpu: 0/4")));
        let bad =
            json!({"spec": {"hard": {"pods": "1.5", "odd": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}});
        assert_eq!(ResourceQuota.validate_create(&bad).len(), 3);
    }
}

//! ResourceQuotas: what all objects of a namespace together may ask for, and how many there may be.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    fields::Fields,
    kind::{Column, Spec, name, status},
    rules,
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

struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        amounts(spec, "hard", &path, &mut causes);
        scopes(spec, &path.child("scopes"), &mut causes);
        scope_selector(spec, &path.child("scopeSelector").child("matchExpressions"), &mut causes);
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
    let path = path.child(field);
    for (name, amount) in holder.entries(field).into_iter().flatten() {
        let path = path.key(name);
        rules::resource_name(name, &path, causes);
        // `count/<resource>.<group>` is what quotas of any resource are called.
        if !name.contains('/') && !is_standard(name) {
            causes.invalid(&path, name.as_str(), "must be a standard resource for quota");
        }
        rules::resource_amount(name, amount, &path, causes);
    }
}

/// Whether quotas know the resource by this name: all standard ones but the bare `storage`.
fn is_standard(name: &str) -> bool {
    rules::is_standard_resource(name) && name != "storage"
}

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a quota of the resource can be for some of the objects only, those of the scope.
fn applies(scope: &str, resource: &str) -> bool {
    let computed = matches!(
        resource,
        "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
    );
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        scope if SCOPES.contains(&scope) => resource == "pods" || computed,
        _ => true,
    }
}

/// How many of the quota's resources the scope cannot be applied to.
fn inapplicable(spec: &Value, scope: &str) -> usize {
    let resources = spec.entries("hard").into_iter().flatten().map(|(name, _)| name);
    resources.filter(|name| is_standard(name) && !applies(scope, name)).count()
}

fn conflicting(scopes: &[&str]) -> usize {
    let pairs = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
    pairs.iter().filter(|pair| pair.iter().all(|scope| scopes.contains(scope))).count()
}

fn scopes(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let scopes: Vec<&str> = spec.texts("scopes").collect();
    let all = spec.at("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            causes.invalid(path, all.clone(), "unsupported scope");
        }
        for _ in 0..inapplicable(spec, scope) {
            causes.invalid(path, all.clone(), "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicting(&scopes) {
        causes.invalid(path, all.clone(), "conflicting scopes");
    }
}

fn scope_selector(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    const TO_BE_OR_NOT: &str = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                                ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                                ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
    let selector = spec.at("scopeSelector");
    let requirements = selector.list("matchExpressions");
    for requirement in requirements {
        let (scope, operator) = (requirement.text("scopeName"), requirement.text("operator"));
        if !SCOPES.contains(&scope) {
            causes.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in 0..inapplicable(spec, scope) {
            causes.invalid(path, selector.clone(), "unsupported scope applied to resource");
        }
        // The others have classes, which can be told apart.
        let classes = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&scope) && !classes && operator != "Exists" {
            causes.invalid(&path.child("operator"), operator, TO_BE_OR_NOT);
        }
        let values = requirement.list("values");
        match operator {
            "In" | "NotIn" => {
                if values.is_empty() {
                    causes.required(
                        &path.child("values"),
                        "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    causes.invalid(
                        &path.child("values"),
                        values,
                        "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
                    );
                }
            }
            other => causes.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
    }
    let scopes: Vec<&str> = requirements.iter().map(|requirement| requirement.text("scopeName")).collect();
    for _ in 0..conflicting(&scopes) {
        causes.invalid(path, spec.at("scopes").clone(), "conflicting scopes");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let object = json!({"status": {"hard": {"pods": "10", "limits.cpu": "4"}, "used": {"pods": "1"}}});
        let row = ResourceQuota.row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!((&row[1], &row[2]), (&json!("pods: 1/10"), &json!("limits.cpu: 0/4")));
    }

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let causes = ResourceQuota.validate_create(&json!({"spec": spec}));
        assert_eq!(causes.iter().map(Cause::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn amounts_of_known_resources() {
        #[track_caller]
        fn resource(name: &str, amount: &str, expected: &[&str]) {
            let expected: Vec<_> = expected.iter().map(|text| format!("spec.hard[{name}]: {text}")).collect();
            check(json!({"hard": {name: amount}}), &expected.iter().map(String::as_str).collect::<Vec<_>>());
        }
        for name in [
            "cpu",
            "memory",
            "ephemeral-storage",
            "requests.cpu",
            "limits.memory",
            "limits.ephemeral-storage",
            "requests.storage",
            "hugepages-2Mi",
            "requests.hugepages-2Mi",
            "requests.example.com/gpu",
        ] {
            resource(name, "1500m", &[]);
        }
        for name in [
            "pods",
            "services",
            "services.nodeports",
            "services.loadbalancers",
            "replicationcontrollers",
            "resourcequotas",
            "secrets",
            "configmaps",
            "persistentvolumeclaims",
            "count/widgets.example.com",
            "count/pods",
            "example.com/gpu",
            "fast.storageclass.storage.k8s.io/requests.storage",
        ] {
            resource(name, "3", &[]);
            resource(name, "1500m", &["Invalid value: \"1500m\": must be an integer"]);
        }
        resource("pods", "-1", &["Invalid value: \"-1\": must be greater than or equal to 0"]);
        for name in ["requests.foo", "limits.foo", "limits.storage", "limits.hugepages-2Mi", "foo"] {
            resource(
                name,
                "1",
                &[
                    &format!(
                        "Invalid value: \"{name}\": must be a standard resource type or fully qualified"
                    ),
                    &format!("Invalid value: \"{name}\": must be a standard resource for quota"),
                ],
            );
        }
        resource("storage", "1", &["Invalid value: \"storage\": must be a standard resource for quota"]);
    }

    #[test]
    fn scopes_apply_to_what_has_them() {
        let hard = |names: &[&str]| -> Value { names.iter().map(|name| (*name, json!("1"))).collect() };
        #[track_caller]
        fn scoped(hard: Value, scopes: &[&str], expected: &[&str]) {
            let expected: Vec<_> = expected
                .iter()
                .map(|text| format!("spec.scopes: Invalid value: {}: {text}", json!(scopes)))
                .collect();
            check(
                json!({"hard": hard, "scopes": scopes}),
                &expected.iter().map(String::as_str).collect::<Vec<_>>(),
            );
        }
        let inapplicable = "unsupported scope applied to resource";
        for scope in
            ["Terminating", "NotTerminating", "NotBestEffort", "PriorityClass", "CrossNamespacePodAffinity"]
        {
            scoped(hard(&["pods", "cpu", "limits.memory", "count/a.b", "requests.c.d/e"]), &[scope], &[]);
            scoped(hard(&["secrets", "requests.storage"]), &[scope], &[inapplicable; 2]);
        }
        scoped(hard(&["pods"]), &["BestEffort"], &[]);
        scoped(hard(&["cpu"]), &["BestEffort"], &[inapplicable]);
        scoped(hard(&["persistentvolumeclaims", "requests.storage"]), &["VolumeAttributesClass"], &[]);
        scoped(hard(&["pods"]), &["VolumeAttributesClass"], &[inapplicable]);
        scoped(hard(&["secrets"]), &["Odd"], &["unsupported scope"]);
        scoped(hard(&["pods"]), &["BestEffort", "NotBestEffort"], &["conflicting scopes"]);
        scoped(
            hard(&["pods"]),
            &["Terminating", "NotTerminating", "BestEffort", "NotBestEffort"],
            &["conflicting scopes"; 2],
        );
    }

    #[test]
    fn scope_selectors() {
        #[track_caller]
        fn selects(expressions: Value, expected: &[&str]) {
            let expected: Vec<_> =
                expected.iter().map(|text| format!("spec.scopeSelector.matchExpressions{text}")).collect();
            check(
                json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": expressions}}),
                &expected.iter().map(String::as_str).collect::<Vec<_>>(),
            );
        }
        let class = |operator: &str, values: &[&str]| json!([{"scopeName": "PriorityClass", "operator": operator, "values": values}]);
        selects(class("In", &["high"]), &[]);
        selects(class("DoesNotExist", &[]), &[]);
        selects(
            class("NotIn", &[]),
            &[
                ".values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ],
        );
        selects(
            class("Exists", &["high"]),
            &[
                ".values: Invalid value: [\"high\"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for \
               scope selector",
            ],
        );
        selects(class("Near", &[]), &[".operator: Invalid value: \"Near\": not a valid selector operator"]);
        selects(
            json!([{"scopeName": "Odd", "operator": "Exists"}]),
            &[".scopeName: Invalid value: \"Odd\": unsupported scope"],
        );
        selects(
            json!([{"scopeName": "BestEffort", "operator": "DoesNotExist"}]),
            &[".operator: Invalid value: \"DoesNotExist\": must be 'Exists' when scope is any of \
               ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
               ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"],
        );
        selects(
            json!([{"scopeName": "VolumeAttributesClass", "operator": "Exists"}]),
            &[
                ": Invalid value: {\"matchExpressions\":[{\"scopeName\":\"VolumeAttributesClass\",\"operator\":\"Exists\"}]}: \
               unsupported scope applied to resource",
            ],
        );
        selects(
            json!([{"scopeName": "Terminating", "operator": "Exists"}, {"scopeName": "NotTerminating",
                "operator": "Exists"}]),
            &[": Invalid value: null: conflicting scopes"],
        );
    }

    #[test]
    fn scopes_stay() {
        let quota = |scopes: &[&str]| json!({"spec": {"hard": {"pods": "1"}, "scopes": scopes}});
        let causes =
            |new: &[&str]| ResourceQuota.validate_update(&quota(new), &quota(&["BestEffort", "Terminating"]));
        assert_eq!(causes(&["Terminating", "BestEffort"]), []);
        assert_eq!(
            causes(&["BestEffort"])[0].to_string(),
            "spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"
        );
    }
}

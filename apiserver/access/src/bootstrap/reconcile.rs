//! Bringing a stored bootstrap object up to date: missing rules, subjects, labels and annotations
//! are added, nothing is taken away, and `autoupdate: "false"` protects an object.

use serde_json::{Value, json};

use crate::authz::escalation::uncovered;
use crate::authz::rules::PolicyRule;
use crate::state::items;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reconciled {
    Unchanged,
    /// Write this over the stored object.
    Update(Value),
    /// Delete the stored binding and create this one: a role reference cannot change.
    Recreate(Value),
}

/// Compares a stored role or binding with the bootstrap object of its name. Objects of other kinds
/// (namespaces, priority classes) only need to exist.
#[must_use]
pub fn reconcile(existing: &Value, desired: &Value) -> Reconciled {
    let annotations = &existing["metadata"]["annotations"];
    if annotations["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return Reconciled::Unchanged;
    }
    let mut updated = existing.clone();
    match desired["kind"].as_str() {
        Some("Role" | "ClusterRole") => role(&mut updated, desired),
        Some("RoleBinding" | "ClusterRoleBinding") => {
            if existing["roleRef"] != desired["roleRef"] {
                let mut recreated = desired.clone();
                merge_metadata(&mut recreated, existing);
                return Reconciled::Recreate(recreated);
            }
            add_missing(&mut updated, "subjects", items(&desired["subjects"]));
        }
        _ => return Reconciled::Unchanged,
    }
    merge_metadata(&mut updated, desired);
    if updated == *existing { Reconciled::Unchanged } else { Reconciled::Update(updated) }
}

fn role(updated: &mut Value, desired: &Value) {
    let selectors = items(&desired["aggregationRule"]["clusterRoleSelectors"]);
    if selectors.is_empty() {
        let has = PolicyRule::parse_all(&updated["rules"]);
        let wants = PolicyRule::parse_all(&desired["rules"]);
        let missing: Vec<Value> = uncovered(&wants, &has).iter().map(PolicyRule::to_json).collect();
        add_missing(updated, "rules", &missing);
    } else {
        // The rules are the aggregation's business.
        if !updated["aggregationRule"].is_object() {
            updated["aggregationRule"] = json!({});
        }
        add_missing(&mut updated["aggregationRule"], "clusterRoleSelectors", selectors);
    }
}

fn add_missing(object: &mut Value, field: &str, wanted: &[Value]) {
    let missing: Vec<Value> =
        wanted.iter().filter(|item| !items(&object[field]).contains(item)).cloned().collect();
    if missing.is_empty() {
        return;
    }
    match &mut object[field] {
        Value::Array(list) => list.extend(missing),
        other => *other = Value::Array(missing),
    }
}

/// Labels and annotations of `from` that `object` has not.
fn merge_metadata(object: &mut Value, from: &Value) {
    for field in ["labels", "annotations"] {
        let Some(wanted) = from["metadata"][field].as_object() else { continue };
        for (key, value) in wanted {
            if object["metadata"][field].get(key).is_none() {
                object["metadata"][field][key] = value.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], resource: &str) -> Value {
        json!({"verbs": verbs, "apiGroups": [""], "resources": [resource]})
    }

    #[test]
    fn adds_what_is_missing_and_nothing_else() {
        let role = |rules: &[Value], autoupdate: &str| {
            json!({"kind": "ClusterRole", "metadata": {"name": "r",
                "annotations": {"rbac.authorization.kubernetes.io/autoupdate": autoupdate}}, "rules": rules})
        };
        let check = |existing: Value, desired: Value, expected: Reconciled| {
            assert_eq!(reconcile(&existing, &desired), expected);
        };
        let (pods, secrets) = (rule(&["get"], "pods"), rule(&["get"], "secrets"));
        let desired = role(&[pods.clone(), secrets.clone()], "true");
        check(desired.clone(), desired.clone(), Reconciled::Unchanged);
        check(
            role(std::slice::from_ref(&pods), "true"),
            desired.clone(),
            Reconciled::Update(desired.clone()),
        );
        check(role(&[pods], "false"), desired.clone(), Reconciled::Unchanged);
        check(role(&[rule(&["*"], "*")], "true"), desired.clone(), Reconciled::Unchanged);
        let more = role(&[rule(&["get", "list"], "pods"), secrets], "true");
        check(more, desired, Reconciled::Unchanged);
    }

    #[test]
    fn keeps_own_labels_and_adds_missing_ones() {
        let existing = json!({"kind": "Role", "metadata": {"name": "r", "labels": {"a": "own"}}});
        let desired = json!({"kind": "Role", "metadata": {"name": "r", "labels": {"a": "x", "b": "y"}}});
        let expected = json!({"kind": "Role", "metadata": {"name": "r", "labels": {"a": "own", "b": "y"}}});
        match reconcile(&existing, &desired) {
            Reconciled::Update(updated) => {
                assert_eq!(updated["metadata"]["labels"], expected["metadata"]["labels"]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn adds_subjects_and_recreates_for_another_role() {
        let binding = |role: &str, subjects: &[&str]| {
            json!({"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "roleRef": {"name": role},
                "subjects": subjects})
        };
        let desired = binding("r", &["x", "y"]);
        assert_eq!(
            reconcile(&binding("r", &["y", "z"]), &desired),
            Reconciled::Update(binding("r", &["y", "z", "x"]))
        );
        assert_eq!(reconcile(&binding("old", &["x"]), &desired), Reconciled::Recreate(desired.clone()));
        assert_eq!(reconcile(&desired, &desired), Reconciled::Unchanged);
    }
}

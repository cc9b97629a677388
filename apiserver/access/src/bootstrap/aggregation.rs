//! Aggregated cluster roles: the rules of all roles that their selectors match.
//!
//! Pure; upstream's clusterrole-aggregation controller does the same with the stored objects.

use serde_json::{Map, Value};

use crate::state::{items, text, texts};

/// Which aggregated roles should have other rules than they have, by name. Roles that aggregate
/// aggregated roles are followed through.
#[must_use]
pub fn outdated(cluster_roles: &[Value]) -> Vec<(String, Value)> {
    let mut sorted: Vec<(&Value, Value)> =
        cluster_roles.iter().map(|role| (role, role["rules"].clone())).collect();
    sorted.sort_by_key(|(role, _)| text(&role["metadata"]["name"]));
    // A chain of n roles settles within n rounds; the bound also ends a cycle.
    for _round in 0..=sorted.len() {
        let mut settled = true;
        for index in 0..sorted.len() {
            let Some(selectors) = sorted[index].0["aggregationRule"]["clusterRoleSelectors"].as_array()
            else {
                continue;
            };
            let aggregated = aggregate(selectors, index, &sorted);
            if sorted[index].1 != aggregated {
                sorted[index].1 = aggregated;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    let changed = sorted.into_iter().filter(|(role, rules)| role["rules"] != *rules);
    changed
        .filter(|(role, rules)| !(role["rules"].is_null() && items(rules).is_empty()))
        .map(|(role, rules)| (text(&role["metadata"]["name"]).to_owned(), rules))
        .collect()
}

fn aggregate(selectors: &[Value], own: usize, roles: &[(&Value, Value)]) -> Value {
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        for (index, (role, role_rules)) in roles.iter().enumerate() {
            if index == own || !matches(selector, role["metadata"]["labels"].as_object()) {
                continue;
            }
            for rule in items(role_rules) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Value::Array(rules)
}

/// A `LabelSelector` over labels. An empty selector matches everything, as everywhere.
fn matches(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let equal = selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| label(key) == value.as_str()));
    equal
        && items(&selector["matchExpressions"]).iter().all(|expression| {
            let found = label(text(&expression["key"]));
            let listed =
                || found.is_some_and(|found| texts(&expression["values"]).any(|value| value == found));
            match text(&expression["operator"]) {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn role(name: &str, label: &str, selects: &str, rules: Value) -> Value {
        let mut role = json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        if !selects.is_empty() {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {selects: "true"}}]});
        }
        role
    }

    #[test]
    fn fills_chains_and_survives_cycles() {
        let check = |roles: &[Value], expected: Value| {
            let outdated: Map<String, Value> = outdated(roles).into_iter().collect();
            assert_eq!(Value::Object(outdated), expected);
        };
        check(&[role("a", "x", "", json!([1]))], json!({}));
        check(&[role("a", "x", "", json!([1])), role("b", "y", "x", json!([]))], json!({"b": [1]}));
        check(&[role("a", "x", "", json!([1])), role("b", "y", "x", json!([1]))], json!({}));
        check(
            &[
                role("c", "z", "y", json!(null)),
                role("b", "y", "x", json!(null)),
                role("a", "x", "", json!([1, 2])),
            ],
            json!({"b": [1, 2], "c": [1, 2]}),
        );
        check(&[role("a", "x", "y", json!([])), role("b", "y", "x", json!([1]))], json!({"a": [1]}));
        check(&[role("a", "x", "", json!([])), role("b", "y", "x", json!([7]))], json!({"b": []}));
    }

    #[test]
    fn selects_by_expressions() {
        let labels = json!({"a": "1"});
        let check = |expression: Value, expected: bool| {
            let selector = json!({"matchExpressions": [expression]});
            assert_eq!(matches(&selector, labels.as_object()), expected, "{selector}");
        };
        check(json!({"key": "a", "operator": "In", "values": ["1"]}), true);
        check(json!({"key": "a", "operator": "NotIn", "values": ["1"]}), false);
        check(json!({"key": "b", "operator": "NotIn", "values": ["1"]}), true);
        check(json!({"key": "a", "operator": "Exists"}), true);
        check(json!({"key": "a", "operator": "DoesNotExist"}), false);
        check(json!({"key": "a", "operator": "Near"}), false);
    }
}

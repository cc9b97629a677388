//! Node selectors: by labels and names, which nodes a pod admits or prefers.

use k8s_openapi::api::core::v1::{Affinity, NodeSelectorRequirement, NodeSelectorTerm};

/// Whether a value (`None`: it is absent) meets a requirement. An operator that does not exist is never met.
#[must_use]
pub fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether the node of this name, whose labels `label` gives, matches a term. All requirements of a term must hold;
/// an empty term matches nothing.
pub fn matches_term<'a>(
    term: &NodeSelectorTerm,
    name: &str,
    label: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| meets(requirement, label(&requirement.key)))
        && fields
            .iter()
            .all(|requirement| requirement.key == "metadata.name" && meets(requirement, Some(name)))
}

/// Whether a pod's node selector and required node affinity admit a node. Terms of the affinity are alternatives.
pub fn admits<'a, 'b>(
    selector: impl IntoIterator<Item = (&'b str, &'b str)>,
    affinity: Option<&Affinity>,
    name: &str,
    label: impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let required = affinity
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selector.into_iter().all(|(key, value)| label(key) == Some(value))
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| matches_term(term, name, &label))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn requirements() {
        #[track_caller]
        fn check(operator: &str, values: &[&str], value: Option<&str>, expected: bool) {
            let requirement = NodeSelectorRequirement {
                key: "k".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            };
            assert_eq!(meets(&requirement, value), expected, "{operator} {values:?} {value:?}");
        }
        check("In", &["a", "b"], Some("b"), true);
        check("In", &["a"], None, false);
        check("NotIn", &["a"], None, true);
        check("NotIn", &["a"], Some("a"), false);
        check("Exists", &[], Some(""), true);
        check("DoesNotExist", &[], Some(""), false);
        check("Gt", &["5"], Some("6"), true);
        check("Gt", &["5"], Some("5"), false);
        check("Lt", &["5"], Some("x"), false);
        check("Unknown", &[], Some("x"), false);
    }

    #[test]
    fn pods_admit_nodes_by_labels_and_names() {
        #[track_caller]
        fn check(selector: &[(&str, &str)], terms: Value, expected: bool) {
            let affinity = json!({"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
            let affinity: Option<Affinity> =
                (!terms.is_null()).then(|| serde_json::from_value(affinity).unwrap());
            let label = |key: &str| (key == "disk").then_some("ssd");
            assert_eq!(admits(selector.iter().copied(), affinity.as_ref(), "n1", label), expected);
        }
        let named = |name: &str| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        let disk =
            |kind: &str| json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": [kind]}]});
        check(&[], Value::Null, true);
        check(&[("disk", "ssd")], Value::Null, true);
        check(&[("disk", "hdd")], Value::Null, false);
        check(&[], json!([named("n1")]), true);
        check(&[], json!([named("n2"), disk("ssd")]), true);
        check(&[("disk", "hdd")], json!([named("n1")]), false);
        check(&[], json!([{}]), false);
        check(&[], json!([]), false);
    }
}

//! Label and field selectors of requests: compiled into a filter of cached objects, and into what authorizers see.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_access::authz::{Operator, Requirement};
use keelson_objects::{
    fields::FieldSelector,
    labels::{self, Selector},
};
use keelson_storage::{Filter, Object, Scope};
use serde_json::Value;

use crate::{served::Served, status::Status};

/// For authorization; what does not parse counts as no selector, and what authorizers have no word for is left out.
pub fn label_requirements(text: &str) -> Vec<Requirement> {
    let Ok(selector) = text.parse::<Selector>() else { return Vec::new() };
    let requirement = |one: &labels::Requirement| {
        let operator = match one.operator() {
            labels::Operator::In | labels::Operator::Equals => Operator::In,
            labels::Operator::NotIn | labels::Operator::NotEquals => Operator::NotIn,
            labels::Operator::Exists => Operator::Exists,
            labels::Operator::DoesNotExist => Operator::DoesNotExist,
            labels::Operator::GreaterThan | labels::Operator::LessThan => return None,
        };
        Some(Requirement { key: one.key().to_string(), operator, values: one.values().to_vec() })
    };
    selector.requirements().iter().filter_map(requirement).collect()
}

/// For authorization; what does not parse counts as no selector.
pub fn field_requirements(text: &str) -> Vec<Requirement> {
    let Ok(selector) = text.parse::<FieldSelector>() else { return Vec::new() };
    let terms = selector.terms.into_iter().map(|term| Requirement {
        key: term.field,
        operator: if term.equal { Operator::In } else { Operator::NotIn },
        values: vec![term.value],
    });
    terms.collect()
}

/// Whether a `metav1.LabelSelector` selects an object; one that is malformed selects nothing.
pub fn label_selector_matches(selector: &Value, object: &Object) -> bool {
    serde_json::from_value::<LabelSelector>(selector.clone())
        .ok()
        .and_then(|selector| Selector::from_label_selector(Some(&selector)).ok())
        .is_some_and(|selector| selector.matches_with(|key| object.label(key)))
}

/// Both selectors of a request, compiled for a resource.
pub struct Selection {
    pub scope: Scope,
    pub filter: Filter,
}

impl Selection {
    /// `name` is that of a request for a single object (`/watch/pods/x`), else empty.
    pub fn new(
        served: &Served,
        namespace: &str,
        name: &str,
        label_selector: &str,
        field_selector: &str,
    ) -> Result<Self, Status> {
        let labels: Selector =
            label_selector.parse().map_err(|error| Status::bad_request(format!("{error}")))?;
        let mut fields: FieldSelector =
            field_selector.parse().map_err(|error| Status::bad_request(format!("{error}")))?;
        let resource = &served.kind.resource;
        for term in &fields.terms {
            let known = term.field == "metadata.name"
                || (term.field == "metadata.namespace" && resource.namespaced)
                || served.kind.selectable.contains(&term.field.as_str());
            if !known {
                let field = &term.field;
                return Err(Status::bad_request(if served.kind.selectable.is_empty() {
                    format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
        }
        // Objects are kept, and their fields known, in the stored form.
        if let Some(conversion) = &served.kind.conversion {
            for term in &mut fields.terms {
                let renamed = conversion.fields.iter().find(|(served, _)| *served == term.field);
                if let Some((_, stored)) = renamed {
                    term.field = (*stored).to_owned();
                }
            }
        }
        let namespace = if resource.namespaced { namespace } else { "" };
        // What can be no name selects nothing; it is no key to look up.
        let possible = |name: &&str| !name.contains(['/', '%']) && !matches!(*name, "." | "..");
        let single =
            if name.is_empty() { fields.required("metadata.name").filter(possible) } else { Some(name) };
        let scope = match single {
            Some(name) if !name.is_empty() && (!namespace.is_empty() || !resource.namespaced) => {
                Scope::Object { namespace: namespace.into(), name: name.into() }
            }
            _ if namespace.is_empty() => Scope::All,
            _ => Scope::Namespace(namespace.into()),
        };
        let filter: Filter = if labels.is_everything() && fields.is_everything() {
            None
        } else {
            Some(Arc::new(move |object: &Object| {
                labels.matches_with(|key| object.label(key))
                    && fields.matches_with(|field| object.field(field))
            }))
        };
        Ok(Selection { scope, filter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorizers_see_requirements() {
        let check = |found: Vec<Requirement>, expected: &[(&str, Operator, &[&str])]| {
            let found: Vec<(&str, Operator, Vec<&str>)> = found
                .iter()
                .map(|one| (one.key.as_str(), one.operator, one.values.iter().map(String::as_str).collect()))
                .collect();
            let expected: Vec<_> =
                expected.iter().map(|(key, op, values)| (*key, *op, values.to_vec())).collect();
            assert_eq!(found, expected);
        };
        check(
            label_requirements("a=x,b notin (y),!c,d>3"),
            &[
                ("a", Operator::In, &["x"]),
                ("b", Operator::NotIn, &["y"]),
                ("c", Operator::DoesNotExist, &[]),
            ],
        );
        check(field_requirements("spec.nodeName=n"), &[("spec.nodeName", Operator::In, &["n"])]);
        check(field_requirements("nonsense"), &[]);
        check(label_requirements("a like b"), &[]);
    }
}

//! Validation of `metadata`, the same for every kind except for how names are written
//! (`apimachinery/pkg/api/validation/objectmeta.go`). resourceVersion is the server's business.

use serde_json::Value;

use crate::{
    cause::{Causes, Path},
    fields::Fields,
    kind::NameRule,
    names,
};

const ANNOTATIONS_MAX: usize = 256 << 10;
const IMMUTABLE: &str = "field is immutable";

pub(crate) fn name_messages(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    let masked = if prefix { names::mask_trailing_dash(name) } else { name.to_owned() };
    match rule {
        NameRule::DnsSubdomain => names::dns_subdomain(&masked),
        NameRule::DnsLabel => names::dns_label(&masked),
        NameRule::Dns1035Label => names::dns1035_label(&masked),
        NameRule::PathSegment => names::path_segment(name, prefix),
        NameRule::None => Vec::new(),
    }
}

pub(crate) fn validate_create(metadata: &Value, namespaced: bool, rule: NameRule, causes: &mut Causes) {
    let path = Path::new("metadata");
    let (name, generate_name) = (metadata.text("name"), metadata.text("generateName"));
    if !generate_name.is_empty() {
        causes.syntax(&path.child("generateName"), generate_name, name_messages(rule, generate_name, true));
    }
    if name.is_empty() {
        causes.required(&path.child("name"), "name or generateName is required");
    } else {
        causes.syntax(&path.child("name"), name, name_messages(rule, name, false));
    }
    let namespace = metadata.text("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => causes.required(&path.child("namespace"), ""),
        (true, false) => causes.syntax(&path.child("namespace"), namespace, names::dns_label(namespace)),
        (false, false) => causes.forbidden(&path.child("namespace"), "not allowed on this type"),
        (false, true) => {}
    }
    generation(metadata, &path, causes);
    labels(metadata, &path.child("labels"), causes);
    annotations(metadata, &path.child("annotations"), causes);
    owner_references(metadata, &path.child("ownerReferences"), causes);
    finalizers(metadata, &path.child("finalizers"), causes);
    managed_fields(metadata, &path.child("managedFields"), causes);
    standard_finalizers(metadata, &path.child("finalizers"), causes);
}

fn standard_finalizers(metadata: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, finalizer) in metadata.texts("finalizers").enumerate() {
        standard_finalizer(finalizer, &path.index(index), causes);
    }
}

/// A finalizer without a domain must be one of Kubernetes' own.
pub(crate) fn standard_finalizer(finalizer: &str, path: &Path<'_>, causes: &mut Causes) {
    if !finalizer.contains('/') && !matches!(finalizer, "kubernetes" | "orphan" | "foregroundDeletion") {
        causes.invalid(
            path,
            finalizer,
            "name is neither a standard finalizer name nor is it fully qualified",
        );
    }
}

pub(crate) fn validate_update(new: &Value, old: &Value, causes: &mut Causes) {
    let path = Path::new("metadata");
    if old.has("deletionTimestamp") {
        let mut added: Vec<&str> =
            new.texts("finalizers").filter(|name| !old.texts("finalizers").any(|old| old == *name)).collect();
        if !added.is_empty() {
            added.sort_unstable();
            let quoted: Vec<String> = added.iter().map(|name| crate::cause::go_quote(name)).collect();
            let quoted = quoted.join(", ");
            causes.forbidden(
                &path.child("finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{quoted}}}"
                ),
            );
        }
    }
    generation(new, &path, causes);
    if new.int("generation").unwrap_or(0) < old.int("generation").unwrap_or(0) {
        causes.invalid(&path.child("generation"), new.at("generation").clone(), "must not be decremented");
    }
    for key in ["name", "namespace", "uid"] {
        if new.text(key) != old.text(key) {
            causes.invalid(&path.child(key), new.text(key), IMMUTABLE);
        }
    }
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if new.at(key) != old.at(key) {
            causes.invalid(&path.child(key), new.at(key).clone(), IMMUTABLE);
        }
    }
    labels(new, &path.child("labels"), causes);
    annotations(new, &path.child("annotations"), causes);
    owner_references(new, &path.child("ownerReferences"), causes);
    managed_fields(new, &path.child("managedFields"), causes);
    standard_finalizers(new, &path.child("finalizers"), causes);
}

fn generation(metadata: &Value, path: &Path<'_>, causes: &mut Causes) {
    if let Some(generation) = metadata.int("generation").filter(|generation| *generation < 0) {
        causes.invalid(&path.child("generation"), generation, "must be greater than or equal to 0");
    }
}

/// The map under `labels` of `holder`.
pub(crate) fn labels(holder: &Value, path: &Path<'_>, causes: &mut Causes) {
    label_map(holder.at("labels"), path, causes);
}

pub(crate) fn label_map(labels: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        causes.syntax(path, key, names::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        causes.syntax(path, value, names::label_value(value));
    }
}

pub(crate) fn annotations(holder: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut size = 0;
    for (key, value) in holder.pairs("annotations") {
        size += key.len() + value.len();
        let messages = names::qualified_name(&key.to_lowercase());
        causes.syntax(path, key, messages);
    }
    if size > ANNOTATIONS_MAX {
        causes.too_long(path, ANNOTATIONS_MAX);
    }
}

fn owner_references(metadata: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut controller: Option<String> = None;
    for (index, reference) in metadata.list("ownerReferences").iter().enumerate() {
        let path = path.index(index);
        let (api_version, kind, name) =
            (reference.text("apiVersion"), reference.text("kind"), reference.text("name"));
        let mut segments = api_version.split('/');
        let well_formed = match (segments.next(), segments.next(), segments.next()) {
            (Some(version), None, _) => !version.is_empty(),
            (Some(_), Some(version), None) => !version.is_empty(),
            _ => false,
        };
        if api_version.is_empty() {
            causes.required(&path.child("apiVersion"), "must not be empty");
        } else if !well_formed {
            causes.invalid(&path.child("apiVersion"), api_version, "must be <group>/<version> or <version>");
        }
        for key in ["kind", "name", "uid"] {
            if reference.text(key).is_empty() {
                causes.required(&path.child(key), "must not be empty");
            }
        }
        if api_version == "v1" && kind == "Event" {
            causes.invalid(&path, reference.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if reference.flag("controller") {
            let this = format!("{kind}/{name}");
            match &controller {
                Some(first) => {
                    let message = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for \
                         {first} and {this}"
                    );
                    causes.invalid(
                        &Path::new("metadata").child("ownerReferences"),
                        metadata.at("ownerReferences").clone(),
                        message,
                    );
                }
                None => controller = Some(this),
            }
        }
    }
}

fn finalizers(metadata: &Value, path: &Path<'_>, causes: &mut Causes) {
    for finalizer in metadata.texts("finalizers") {
        causes.syntax(path, finalizer, names::qualified_name(finalizer));
    }
    let has = |name| metadata.texts("finalizers").any(|finalizer| finalizer == name);
    if has("orphan") && has("foregroundDeletion") {
        causes.invalid(
            path,
            metadata.at("finalizers").clone(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

fn managed_fields(metadata: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, entry) in metadata.list("managedFields").iter().enumerate() {
        let path = path.index(index);
        match entry.text("operation") {
            "Apply" | "Update" => {}
            "" => causes.required(&path.child("operation"), "must not be empty"),
            other => causes.not_supported(&path.child("operation"), other, &["Apply", "Update"]),
        }
        let fields_type = entry.text("fieldsType");
        if !fields_type.is_empty() && fields_type != "FieldsV1" {
            causes.invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`");
        }
        if entry.text("manager").len() > 128 {
            causes.too_long(&path.child("manager"), 128);
        }
        if entry.text("subresource").len() > 256 {
            causes.too_long(&path.child("subresource"), 256);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(fill: impl FnOnce(&mut Causes)) -> Vec<String> {
        let mut causes = Causes::default();
        fill(&mut causes);
        causes.into_vec().iter().map(|cause| format!("{} {}", cause.reason.as_str(), cause.field)).collect()
    }

    #[test]
    fn create() {
        fn check(metadata: Value, expected: &[&str]) {
            assert_eq!(
                causes(|c| validate_create(&metadata, true, NameRule::DnsSubdomain, c)),
                expected,
                "{metadata}"
            );
        }
        check(json!({"name": "a.b", "namespace": "x"}), &[]);
        check(json!({"name": "a", "generateName": "a-", "namespace": "x"}), &[]);
        check(json!({"namespace": "x"}), &["FieldValueRequired metadata.name"]);
        check(
            json!({"name": "A", "namespace": ""}),
            &["FieldValueInvalid metadata.name", "FieldValueRequired metadata.namespace"],
        );
        check(
            json!({"name": "a", "namespace": "x", "labels": {"a b": "-"}, "annotations": {"Ok.Key/A": "any thing"}}),
            &["FieldValueInvalid metadata.labels", "FieldValueInvalid metadata.labels"],
        );
        check(
            json!({"name": "a", "namespace": "x", "annotations": {"a": "x".repeat(ANNOTATIONS_MAX)}}),
            &["FieldValueTooLong metadata.annotations"],
        );
        check(
            json!({"name": "a", "namespace": "x", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": true},
                {"apiVersion": "a/b/c", "kind": "Pod", "name": "q", "controller": true}]}),
            &[
                "FieldValueInvalid metadata.ownerReferences[1].apiVersion",
                "FieldValueRequired metadata.ownerReferences[1].uid",
                "FieldValueInvalid metadata.ownerReferences",
            ],
        );
        check(
            json!({"name": "a", "namespace": "x", "finalizers": ["orphan", "foregroundDeletion", "a b"]}),
            &[
                "FieldValueInvalid metadata.finalizers",
                "FieldValueInvalid metadata.finalizers",
                "FieldValueInvalid metadata.finalizers[2]",
            ],
        );
    }

    #[test]
    fn update() {
        fn check(new: Value, old: Value, expected: &[&str]) {
            assert_eq!(causes(|c| validate_update(&new, &old, c)), expected, "{new}");
        }
        let old =
            json!({"name": "a", "uid": "1", "generation": 2, "creationTimestamp": "2024-01-01T00:00:00Z"});
        check(old.clone(), old.clone(), &[]);
        check(
            json!({"name": "b", "uid": "2", "generation": 1}),
            old,
            &[
                "FieldValueInvalid metadata.generation",
                "FieldValueInvalid metadata.name",
                "FieldValueInvalid metadata.uid",
                "FieldValueInvalid metadata.creationTimestamp",
            ],
        );
        check(
            json!({"finalizers": ["a/x", "a/y"], "deletionTimestamp": "t"}),
            json!({"finalizers": ["a/x"], "deletionTimestamp": "t"}),
            &["FieldValueForbidden metadata.finalizers"],
        );
    }

    #[test]
    fn odd_input_does_not_panic() {
        for odd in
            [json!(null), json!([]), json!({"labels": [1], "ownerReferences": [1, null], "finalizers": {}})]
        {
            let mut causes = Causes::default();
            validate_create(&odd, false, NameRule::DnsLabel, &mut causes);
            validate_update(&odd, &odd, &mut causes);
        }
    }
}

//! Namespaces: the label with their name, and the finalizer of their own that the namespace controller takes away
//! through `/finalize` once the namespace is empty.

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Verb};
use serde_json::{Value, json};

use crate::{
    Cause, Scope, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    fields::{Fields, Fill},
    kind::{Column, NameRule, Spec, name, status, subresource},
    metadata, names,
};

pub(crate) const KIND: Spec = Spec {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    namespaced: false,
    short_names: &[name("ns")],
    // No deletecollection: emptying all namespaces at once is never meant.
    verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
    subresources: &[
        subresource("finalize", GroupVersionKind::new("", "v1", "Namespace"), &[Verb::Update]),
        status("", "Namespace"),
    ],
    storage_prefix: Some("namespaces"),
    columns: COLUMNS,
    selectable: &["status.phase"],
    name_rule: NameRule::DnsLabel,
    strategy: &Namespace,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, text("Status", "Active, or Terminating once deleted."), AGE];

struct Namespace;

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        // A namespace with only a generateName gets its label when it has been named.
        if let Some(metadata) = object.part("metadata")
            && !metadata.text("name").is_empty()
        {
            let name = metadata.text("name").to_owned();
            if let Some(labels) = metadata.section("labels") {
                labels.put("kubernetes.io/metadata.name", name);
            }
        }
        if let Some(status) = object.section("status") {
            status.fill_text("phase", "Active");
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", json!({"phase": "Active"}));
        self.default(object);
        if let Some(spec) = object.section("spec") {
            let mut finalizers = spec.list("finalizers").to_vec();
            if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
                finalizers.push("kubernetes".into());
            }
            spec.put("finalizers", finalizers);
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if let Some(spec) = new.section("spec") {
            spec.copy("finalizers", old.at("spec"));
        }
    }

    fn prepare_for_subresource_update(&self, scope: Scope, new: &mut Value, old: &Value) {
        if scope == Scope::Finalize {
            new.copy("status", old);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        finalizers(object)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let phase = new.at("status").text("phase");
        let (wanted, message) = if new.at("metadata").has("deletionTimestamp") {
            ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
        } else {
            ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
        };
        if phase != wanted {
            causes.invalid(&Path::new("status").child("Phase"), phase, message);
        }
        causes.into_vec()
    }

    fn validate_subresource_update(&self, scope: Scope, new: &Value, _old: &Value) -> Vec<Cause> {
        if scope == Scope::Finalize { finalizers(new) } else { Vec::new() }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", object.at("status").text("phase").to_owned())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![columns::name(object), object.at("status").text("phase").into(), columns::age(object, now)]
    }

    fn mark_deleting(&self, object: &mut Value) {
        // Its end takes as long as it takes.
        if let Some(metadata) = object.part("metadata") {
            metadata.drop_field("deletionGracePeriodSeconds");
        }
        if let Some(status) = object.section("status") {
            status.put("phase", "Terminating");
        }
    }

    fn held_by_spec(&self, object: &Value) -> bool {
        !object.at("spec").list("finalizers").is_empty()
    }
}

fn finalizers(object: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = Path::new("spec");
    let path = path.child("finalizers");
    for finalizer in object.at("spec").texts("finalizers") {
        causes.syntax(&path, finalizer, names::qualified_name(finalizer));
        metadata::standard_finalizer(finalizer, &path, &mut causes);
    }
    causes.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life() {
        let kind = KIND.kind();
        let mut object = json!({"metadata": {"name": "a", "uid": "1"}});
        kind.default(&mut object);
        kind.prepare_for_create(&mut object);
        assert_eq!(object["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "a"}));
        assert_eq!(object["spec"]["finalizers"], json!(["kubernetes"]));
        assert_eq!(object["status"]["phase"], "Active");
        assert!(kind.validate_create(&object).is_empty());
        assert!(kind.has_finalizers(&object));

        let mut update = object.clone();
        update["spec"]["finalizers"] = json!([]);
        kind.prepare_for_update(Scope::Main, &mut update, &object);
        assert_eq!(update["spec"]["finalizers"], json!(["kubernetes"]));

        object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        kind.mark_deleting(&mut object);
        assert!(!object["metadata"].has("deletionGracePeriodSeconds"));
        object["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
        assert!(kind.validate_update(Scope::Status, &object, &object).is_empty());
        let mut finalized = object.clone();
        finalized["spec"]["finalizers"] = json!([]);
        finalized["status"]["phase"] = json!("Active");
        kind.prepare_for_update(Scope::Finalize, &mut finalized, &object);
        assert_eq!(finalized["status"]["phase"], "Terminating");
        assert!(!kind.has_finalizers(&finalized));
    }

    #[test]
    fn names_are_labels() {
        for bad in ["a.b", "A", "-a", ""] {
            let object = json!({"metadata": {"name": bad}, "spec": {"finalizers": ["odd"]}});
            assert_eq!(KIND.kind().validate_create(&object).len(), 2, "{bad}");
        }
    }
}

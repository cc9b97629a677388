//! `storage.k8s.io/v1` StorageClasses.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    equality::equal,
    fields::{Fields, Fill},
    kind::{Column, Spec, name},
    names,
};

pub(crate) const KIND: Spec = Spec {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    namespaced: false,
    short_names: &[name("sc")],
    storage_prefix: Some("storageclasses"),
    columns: COLUMNS,
    strategy: &StorageClass,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes its volumes."),
    text("ReclaimPolicy", "What becomes of a volume once its claim is gone."),
    text("VolumeBindingMode", "When a claim gets its volume."),
    Column { r#type: "boolean", ..text("AllowVolumeExpansion", "Whether claims may grow.") },
    AGE,
];

struct StorageClass;

impl Strategy for StorageClass {
    fn default(&self, object: &mut Value) {
        object.fill("reclaimPolicy", "Delete");
        object.fill("volumeBindingMode", "Immediate");
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let provisioner = object.text("provisioner");
        if provisioner.is_empty() {
            causes.required(&Path::new("provisioner"), "");
        } else {
            let lower = provisioner.to_lowercase();
            causes.syntax(&Path::new("provisioner"), provisioner, names::qualified_name(&lower));
        }
        let mut size = 0;
        for (key, value) in object.pairs("parameters") {
            if key.is_empty() {
                causes.invalid(&Path::new("parameters"), key, "field can not be empty.");
            }
            size += key.len() + value.len();
        }
        if object.entries("parameters").is_some_and(|parameters| parameters.len() > 512) {
            causes.too_long(&Path::new("Provisioner Parameters Length"), 512);
        }
        if size > 256 << 10 {
            causes.too_long(&Path::new("parameters"), 256 << 10);
        }
        let policy = object.text("reclaimPolicy");
        if !policy.is_empty() && !matches!(policy, "Delete" | "Retain") {
            causes.not_supported(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]);
        }
        let mode = object.text("volumeBindingMode");
        if mode.is_empty() {
            causes.required(&Path::new("volumeBindingMode"), "");
        } else if !matches!(mode, "Immediate" | "WaitForFirstConsumer") {
            causes.not_supported(
                &Path::new("volumeBindingMode"),
                mode,
                &["Immediate", "WaitForFirstConsumer"],
            );
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        if !equal(
            &serde_json::json!({"parameters": new.at("parameters")}),
            &serde_json::json!({"parameters": old.at("parameters")}),
        ) {
            causes.forbidden(&Path::new("parameters"), "updates to parameters are forbidden.");
        }
        for field in ["provisioner", "reclaimPolicy"] {
            if new.text(field) != old.text(field) {
                causes.forbidden(&Path::new(field), &format!("updates to {field} are forbidden."));
            }
        }
        if new.text("volumeBindingMode") != old.text("volumeBindingMode") {
            causes.invalid(
                &Path::new("volumeBindingMode"),
                new.text("volumeBindingMode"),
                "field is immutable",
            );
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let annotations = object.at("metadata").at("annotations");
        let default = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ]
        .iter()
        .any(|key| annotations.text(key) == "true");
        let name = object.at("metadata").text("name");
        let or = |field: &str, other: &'static str| match object.text(field) {
            "" => other.to_owned(),
            text => text.to_owned(),
        };
        vec![
            if default { format!("{name} (default)") } else { name.to_owned() }.into(),
            object.text("provisioner").into(),
            or("reclaimPolicy", "Delete").into(),
            or("volumeBindingMode", "Immediate").into(),
            object.flag("allowVolumeExpansion").into(),
            columns::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let mut object = json!({"metadata": {"name": "fast"}, "provisioner": "example.com/disk"});
        StorageClass.default(&mut object);
        assert_eq!(KIND.kind().validate_create(&object), []);
        assert_eq!(StorageClass.validate_create(&json!({})).len(), 2);
        let mut new = object.clone();
        new["provisioner"] = json!("example.com/other");
        assert_eq!(StorageClass.validate_update(&new, &object)[0].field, "provisioner");
        object["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        assert_eq!(StorageClass.row(&object, Timestamp::UNIX_EPOCH)[0], "fast (default)");
    }
}

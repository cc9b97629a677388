//! ReplicationControllers and PodTemplates.

use jiff::Timestamp;
use serde_json::Value;

use super::pod;
use crate::{
    Cause, Strategy,
    apps::replicaset,
    cause::{Causes, Path},
    columns::{self, NAME, text},
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Propagation, Spec, name, scale, status},
    rules,
    scale::{ScaleFields, SelectorForm},
};

pub(crate) const KIND: Spec = Spec {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &[name("rc")],
    categories: ALL,
    subresources: &[scale(), status("", "ReplicationController")],
    storage_prefix: Some("controllers"),
    columns: replicaset::COLUMNS,
    selectable: &["status.replicas"],
    propagation: Propagation::Orphan,
    scale: Some(ScaleFields { selector: SelectorForm::Map }),
    strategy: &ReplicationController,
    generation: true,
    ..Spec::STORED
};

pub(crate) const POD_TEMPLATE: Spec = Spec {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    storage_prefix: Some("podtemplates"),
    columns: TEMPLATE_COLUMNS,
    strategy: &PodTemplate,
    generation: true,
    ..Spec::STORED
};

const TEMPLATE_COLUMNS: &[Column] = &[
    NAME,
    text("Containers", "Names of the template's containers."),
    text("Images", "Images of the template's containers."),
    text("Pod Labels", "Labels of pods made from it."),
];

struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        spec.fill("replicas", 1);
        let Some(template) = spec.part("template") else { return };
        pod::default_template(template);
        let labels = template.at("metadata").at("labels").clone();
        let empty = |map: &Value| map.as_object().is_none_or(serde_json::Map::is_empty);
        if empty(&labels) {
            return;
        }
        if empty(spec.at("selector")) {
            spec.put("selector", labels.clone());
        }
        if let Some(metadata) = object.section("metadata")
            && empty(metadata.at("labels"))
        {
            metadata.put("labels", labels);
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", serde_json::json!({"replicas": 0}));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        rules::not_negative(spec, "minReadySeconds", &path, &mut causes);
        rules::not_negative(spec, "replicas", &path, &mut causes);
        if spec.entries("selector").is_none_or(serde_json::Map::is_empty) {
            causes.required(&path.child("selector"), "");
        }
        let template = spec.at("template");
        let path = path.child("template");
        if template.is_null() {
            causes.required(&path, "");
            return causes.into_vec();
        }
        let labels = template.at("metadata").at("labels");
        if !spec.pairs("selector").all(|(key, value)| labels.text(key) == value) {
            causes.invalid(
                &path.child("metadata").child("labels"),
                labels.clone(),
                "`selector` does not match template `labels`",
            );
        }
        pod::validate_template(template, &path, &mut causes);
        let path = path.child("spec");
        let policy = template.at("spec").text("restartPolicy");
        if policy != "Always" {
            causes.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
        }
        if template.at("spec").has("activeDeadlineSeconds") {
            causes.forbidden(
                &path.child("activeDeadlineSeconds"),
                "activeDeadlineSeconds in ReplicationController is not Supported",
            );
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        crate::apps::counts(new.at("status"), &replicaset::COUNTS, &Path::new("status"), &mut causes);
        causes.into_vec()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", object.at("status").int("replicas").unwrap_or(0).to_string())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        replicaset::row(object, columns::labels(object.at("spec"), "selector"), now)
    }
}

struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        if let Some(template) = object.section("template") {
            pod::default_template(template);
        }
    }

    fn generation_counts(&self, new: &Value, old: &Value) -> bool {
        !equal(new.at("template"), old.at("template"))
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        pod::validate_template(object.at("template"), &Path::new("template"), &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let template = object.at("template");
        let (names, images) = columns::containers_and_images(template.at("spec"));
        vec![
            columns::name(object),
            names.into(),
            images.into(),
            columns::labels(template.at("metadata"), "labels").into(),
        ]
    }
}

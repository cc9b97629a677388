//! ReplicaSets.

use jiff::Timestamp;
use serde_json::Value;

use super::{counts, immutable, selector, template};
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, wide},
    core::pod,
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Spec, name, scale, status},
    rules,
    scale::{ScaleFields, SelectorForm},
};

pub(crate) const KIND: Spec = Spec {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &[name("rs")],
    categories: ALL,
    subresources: &[scale(), status("apps", "ReplicaSet")],
    storage_prefix: Some("replicasets"),
    columns: COLUMNS,
    selectable: &["status.replicas"],
    scale: Some(ScaleFields { selector: SelectorForm::LabelSelector }),
    strategy: &ReplicaSet,
    generation: true,
    ..Spec::STORED
};

/// Replication controllers show the same.
pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", "Pods that are wanted."),
    integer("Current", "Pods that there are."),
    integer("Ready", "Pods that are ready."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
    wide("Selector", "Labels of its pods."),
];

/// Counts that status holds beside `replicas`; the same for replication controllers.
pub(crate) const COUNTS: [&str; 3] = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];

struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        if let Some(template) = spec.section("template") {
            pod::default_template(template);
        }
        spec.fill("replicas", 1);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", serde_json::json!({"replicas": 0}));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        rules::not_negative(spec, "replicas", &path, &mut causes);
        rules::not_negative(spec, "minReadySeconds", &path, &mut causes);
        selector(spec, "deployment", &path, &mut causes);
        template(spec, &path, "ReplicaSet", &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        immutable(new.at("spec"), old.at("spec"), "selector", &Path::new("spec"), &mut causes);
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        counts(new.at("status"), &COUNTS, &Path::new("status"), &mut causes);
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if equal(old.at("spec").at("template"), object.at("spec").at("template")) => Vec::new(),
            _ => pod::template_warnings(object.at("spec").at("template"), "spec.template"),
        }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.replicas", object.at("status").int("replicas").unwrap_or(0).to_string())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(object, columns::selector(object.at("spec").at("selector")), now)
    }
}

/// Cells of [`COLUMNS`].
pub(crate) fn row(object: &Value, selector: String, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (object.at("spec"), object.at("status"));
    let (names, images) = columns::containers_and_images(spec.at("template").at("spec"));
    vec![
        columns::name(object),
        spec.int("replicas").unwrap_or(0).into(),
        status.int("replicas").unwrap_or(0).into(),
        status.int("readyReplicas").unwrap_or(0).into(),
        columns::age(object, now),
        names.into(),
        images.into(),
        selector.into(),
    ]
}

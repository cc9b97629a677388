//! DaemonSets.

use jiff::Timestamp;
use serde_json::Value;

use super::{at_most_all, collision_count, immutable, is_zero, selector, template};
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text, wide},
    core::pod,
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Spec, name, status},
    rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &[name("ds")],
    categories: ALL,
    subresources: &[status("apps", "DaemonSet")],
    storage_prefix: Some("daemonsets"),
    columns: COLUMNS,
    strategy: &DaemonSet,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    integer("Desired", "Nodes that should run its pod."),
    integer("Current", "Nodes that do."),
    integer("Ready", "Nodes whose pod is ready."),
    integer("Up-to-date", "Nodes whose pod is made from the current template."),
    integer("Available", "Nodes whose pod has been ready for long enough."),
    text("Node Selector", "Nodes that it is for."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
    wide("Selector", "Labels of its pods."),
];

struct DaemonSet;

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        if let Some(template) = spec.section("template") {
            pod::default_template(template);
        }
        if let Some(strategy) = spec.section("updateStrategy") {
            strategy.fill_text("type", "RollingUpdate");
            if strategy.text("type") == "RollingUpdate"
                && let Some(rolling) = strategy.section("rollingUpdate")
            {
                rolling.fill("maxUnavailable", 1);
                rolling.fill("maxSurge", 0);
            }
        }
        spec.fill("revisionHistoryLimit", 10);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        // Three counts are required fields of the status, so that an empty one is not an object of the schema.
        object.put(
            "status",
            serde_json::json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0,
                "numberReady": 0}),
        );
        template_generation(object, 1);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        const ANNOTATION: &str = "deprecated.daemonset.template.generation";
        let current =
            old.at("metadata").at("annotations").text(ANNOTATION).parse::<i64>().unwrap_or_default();
        let changed = !equal(new.at("spec").at("template"), old.at("spec").at("template"));
        template_generation(new, current + i64::from(changed));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        // Upstream tells of a selector that is missing only by the labels of the template.
        if spec.has("selector") {
            selector(spec, "daemonset", &path, &mut causes);
        }
        template(spec, &path, "DaemonSet", &mut causes);
        rules::not_negative(spec, "minReadySeconds", &path, &mut causes);
        rules::not_negative(spec, "revisionHistoryLimit", &path, &mut causes);
        update_strategy(spec.at("updateStrategy"), &path.child("updateStrategy"), &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        immutable(new.at("spec"), old.at("spec"), "selector", &Path::new("spec"), &mut causes);
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        for field in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "observedGeneration",
            "collisionCount",
        ] {
            rules::not_negative(new.at("status"), field, &Path::new("status"), &mut causes);
        }
        collision_count(new, old, &mut causes);
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if equal(old.at("spec").at("template"), object.at("spec").at("template")) => Vec::new(),
            _ => pod::template_warnings(object.at("spec").at("template"), "spec.template"),
        }
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let pod_spec = spec.at("template").at("spec");
        let (names, images) = columns::containers_and_images(pod_spec);
        let mut row = vec![columns::name(object)];
        row.extend(
            [
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
                "numberAvailable",
            ]
            .map(|key| Value::from(status.int(key).unwrap_or(0))),
        );
        row.extend([
            columns::labels(pod_spec, "nodeSelector").into(),
            columns::age(object, now),
            names.into(),
            images.into(),
            columns::selector(spec.at("selector")).into(),
        ]);
        row
    }
}

/// A field of old API versions that lives on as an annotation.
fn template_generation(object: &mut Value, generation: i64) {
    if let Some(annotations) = object.section("metadata").and_then(|metadata| metadata.section("annotations"))
    {
        annotations.put("deprecated.daemonset.template.generation", generation.to_string());
    }
}

fn update_strategy(strategy: &Value, path: &Path<'_>, causes: &mut Causes) {
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let path = path.child("rollingUpdate");
            if rolling.is_null() {
                causes.required(&path, "");
                return;
            }
            for field in ["maxUnavailable", "maxSurge"] {
                rules::int_or_percent(rolling.at(field), &path.child(field), causes);
                at_most_all(rolling.at(field), &path.child(field), causes);
            }
            match (is_zero(rolling.at("maxUnavailable")), is_zero(rolling.at("maxSurge"))) {
                (true, true) => causes.invalid(
                    &path.child("maxUnavailable"),
                    rolling.at("maxUnavailable").clone(),
                    "cannot be 0 when maxSurge is 0",
                ),
                (false, false) => causes.invalid(
                    &path.child("maxSurge"),
                    rolling.at("maxSurge").clone(),
                    "may not be set when maxUnavailable is non-zero",
                ),
                _ => {}
            }
        }
        other => causes.not_supported(&path.child("type"), other, &["OnDelete", "RollingUpdate"]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{pod_template, workload};
    use super::*;

    #[test]
    fn whole_life() {
        let kind = KIND.kind();
        let mut object =
            workload(json!({"selector": {"matchLabels": {"app": "web"}}, "template": pod_template()}));
        kind.default(&mut object);
        assert_eq!(
            object["spec"]["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}})
        );
        kind.prepare_for_create(&mut object);
        assert_eq!(kind.validate_create(&object), []);
        assert_eq!(object["metadata"]["annotations"]["deprecated.daemonset.template.generation"], "1");
        let mut new = object.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i:2");
        kind.prepare_for_update(crate::Scope::Main, &mut new, &object);
        assert_eq!(new["metadata"]["annotations"]["deprecated.daemonset.template.generation"], "2");
        assert_eq!(kind.row(&object, Timestamp::UNIX_EPOCH).len(), kind.columns.len());
        object["spec"]["updateStrategy"]["rollingUpdate"] = json!({"maxUnavailable": "200%", "maxSurge": 1});
        let fields: Vec<String> = kind.validate_create(&object).into_iter().map(|c| c.field).collect();
        assert_eq!(
            fields,
            [
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                "spec.updateStrategy.rollingUpdate.maxSurge"
            ]
        );
    }
}

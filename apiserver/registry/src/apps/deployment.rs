//! Deployments.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{at_most_all, collision_count, counts, immutable, is_zero, selector, template};
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text, wide},
    core::pod,
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, Spec, name, scale, status},
    rules,
    scale::{ScaleFields, SelectorForm},
};

pub(crate) const KIND: Spec = Spec {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &[name("deploy")],
    categories: ALL,
    subresources: &[scale(), status("apps", "Deployment")],
    storage_prefix: Some("deployments"),
    columns: COLUMNS,
    scale: Some(ScaleFields { selector: SelectorForm::LabelSelector }),
    strategy: &Deployment,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Pods that are ready, of all that are wanted."),
    integer("Up-to-date", "Pods made from the current template."),
    integer("Available", "Pods ready for long enough."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
    wide("Selector", "Labels of the deployment's pods."),
];

struct Deployment;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        if let Some(template) = spec.section("template") {
            pod::default_template(template);
        }
        spec.fill("replicas", 1);
        if let Some(strategy) = spec.section("strategy") {
            strategy.fill_text("type", "RollingUpdate");
            if strategy.text("type") == "RollingUpdate"
                && let Some(rolling) = strategy.section("rollingUpdate")
            {
                rolling.fill("maxUnavailable", "25%");
                rolling.fill("maxSurge", "25%");
            }
        }
        spec.fill("revisionHistoryLimit", 10);
        spec.fill("progressDeadlineSeconds", 600);
    }

    fn generation_counts(&self, new: &Value, old: &Value) -> bool {
        // Annotations count too: the controller copies them to the replica sets.
        let annotations = |object: &Value| object.at("metadata").at("annotations").clone();
        let same =
            equal(&json!({"annotations": annotations(new)}), &json!({"annotations": annotations(old)}));
        !same || !equal(new.at("spec"), old.at("spec"))
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        if let Some(metadata) = new.section("metadata") {
            metadata.copy("labels", old.at("metadata"));
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        rules::not_negative(spec, "replicas", &path, &mut causes);
        selector(spec, "deployment", &path, &mut causes);
        template(spec, &path, "Deployment", &mut causes);
        rollout(spec.at("strategy"), &path.child("strategy"), &mut causes);
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            rules::not_negative(spec, field, &path, &mut causes);
        }
        if let Some(deadline) = spec.int("progressDeadlineSeconds")
            && deadline <= spec.int("minReadySeconds").unwrap_or(0)
        {
            causes.invalid(
                &path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            );
        }
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
        let path = Path::new("status");
        let fields = ["updatedReplicas", "readyReplicas", "availableReplicas"];
        counts(new.at("status"), &fields, &path, &mut causes);
        rules::not_negative(new.at("status"), "unavailableReplicas", &path, &mut causes);
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
        let count = |key| status.int(key).unwrap_or(0);
        let (names, images) = columns::containers_and_images(spec.at("template").at("spec"));
        vec![
            columns::name(object),
            format!("{}/{}", count("readyReplicas"), spec.int("replicas").unwrap_or(0)).into(),
            count("updatedReplicas").into(),
            count("availableReplicas").into(),
            columns::age(object, now),
            names.into(),
            images.into(),
            columns::selector(spec.at("selector")).into(),
        ]
    }
}

fn rollout(strategy: &Value, path: &Path<'_>, causes: &mut Causes) {
    match strategy.text("type") {
        "Recreate" => {
            if strategy.has("rollingUpdate") {
                causes.forbidden(
                    &path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let path = path.child("rollingUpdate");
            if rolling.is_null() {
                causes.required(&path, "this should be defaulted and never be nil");
                return;
            }
            for field in ["maxUnavailable", "maxSurge"] {
                rules::int_or_percent(rolling.at(field), &path.child(field), causes);
            }
            if is_zero(rolling.at("maxUnavailable")) && is_zero(rolling.at("maxSurge")) {
                causes.invalid(
                    &path.child("maxUnavailable"),
                    rolling.at("maxUnavailable").clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            at_most_all(rolling.at("maxUnavailable"), &path.child("maxUnavailable"), causes);
        }
        other => {
            let path = path.child("type");
            if other.is_empty() {
                causes.required(&path, "");
            } else {
                causes.not_supported(&path, other, &["Recreate", "RollingUpdate"]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{pod_template, workload};
    use super::*;
    use crate::Scope;

    fn whole() -> Value {
        let mut object =
            workload(json!({"selector": {"matchLabels": {"app": "web"}}, "template": pod_template()}));
        Deployment.default(&mut object);
        object
    }

    fn check(change: impl FnOnce(&mut Value), expected: &[&str]) {
        let mut object = whole();
        change(&mut object["spec"]);
        let causes = KIND.kind().validate_create(&object);
        let texts: Vec<String> = causes.iter().map(Cause::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn defaults() {
        let object = whole();
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (&spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
            (&json!(10), &json!(600))
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        let mut twice = object.clone();
        Deployment.default(&mut twice);
        assert_eq!(twice, object);
    }

    #[test]
    fn validates() {
        check(|_| {}, &[]);
        check(
            |spec| spec["template"]["spec"]["containers"][0]["image"] = json!(""),
            &["spec.template.spec.containers[0].image: Required value"],
        );
        check(
            |spec| spec["selector"]["matchLabels"]["app"] = json!("api"),
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            |spec| spec["replicas"] = json!(-1),
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        check(
            |spec| spec["strategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": "0%"}),
            &[
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        );
        check(
            |spec| spec["strategy"]["type"] = json!("Recreate"),
            &[
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        );
        check(
            |spec| spec["template"]["spec"]["restartPolicy"] = json!("Never"),
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
        check(
            |spec| spec["selector"] = json!({}),
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        );
        check(
            |spec| {
                spec.as_object_mut().unwrap().shift_remove("selector");
                spec["template"]["metadata"].as_object_mut().unwrap().shift_remove("labels");
            },
            &[
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`",
            ],
        );
        check(
            |spec| spec["progressDeadlineSeconds"] = json!(0),
            &["spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds"],
        );
    }

    #[test]
    fn generation_follows_spec() {
        let kind = KIND.kind();
        let mut old = whole();
        kind.prepare_for_create(&mut old);
        assert_eq!(old["metadata"]["generation"], 1);
        old["status"] = json!({"replicas": 1});
        let updated = |change: &dyn Fn(&mut Value), scope| {
            let mut new = old.clone();
            change(&mut new);
            kind.prepare_for_update(scope, &mut new, &old);
            new
        };
        assert_eq!(
            updated(&|new| new["spec"]["replicas"] = json!(2), Scope::Main)["metadata"]["generation"],
            2
        );
        assert_eq!(
            updated(&|new| new["metadata"]["labels"] = json!({"a": "b"}), Scope::Main)["metadata"]["generation"],
            1
        );
        let status = updated(&|new| new["status"] = json!({"replicas": 9}), Scope::Main);
        assert_eq!(status["status"]["replicas"], 1);
        let status = updated(
            &|new| {
                new["status"] = json!({"replicas": 9});
                new["spec"]["replicas"] = json!(7);
            },
            Scope::Status,
        );
        assert_eq!((&status["status"]["replicas"], &status["spec"]["replicas"]), (&json!(9), &json!(1)));
        assert_eq!(status["metadata"]["generation"], 1);
        let moved = updated(&|new| new["spec"]["selector"]["matchLabels"] = json!({"x": "y"}), Scope::Main);
        assert_eq!(
            Deployment.validate_update(&moved, &old).last().map(|c| c.field.as_str()),
            Some("spec.selector")
        );
    }

    #[test]
    fn rows() {
        let mut object = whole();
        object["status"] = json!({"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 3});
        assert_eq!(
            KIND.kind().row(&object, Timestamp::UNIX_EPOCH),
            [
                json!("web"),
                json!("1/1"),
                json!(2),
                json!(3),
                json!("<unknown>"),
                json!("c"),
                json!("i:1"),
                json!("app=web")
            ]
        );
    }
}

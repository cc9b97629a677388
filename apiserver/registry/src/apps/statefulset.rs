//! StatefulSets.

use jiff::Timestamp;
use serde_json::Value;

use super::{at_most_all, collision_count, counts, is_zero, selector, template};
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
    core::{default_claim_spec, pod},
    equality::equal,
    fields::{Fields, Fill},
    kind::{ALL, Column, NameRule, Spec, name, scale, status},
    names, rules,
    scale::{ScaleFields, SelectorForm},
};

pub(crate) const KIND: Spec = Spec {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &[name("sts")],
    categories: ALL,
    subresources: &[scale(), status("apps", "StatefulSet")],
    storage_prefix: Some("statefulsets"),
    columns: COLUMNS,
    scale: Some(ScaleFields { selector: SelectorForm::LabelSelector }),
    // Its name becomes part of pods' host names.
    name_rule: NameRule::DnsLabel,
    strategy: &StatefulSet,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Ready", "Pods that are ready, of all that are wanted."),
    AGE,
    wide("Containers", "Names of the template's containers."),
    wide("Images", "Images of the template's containers."),
];

const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

struct StatefulSet;

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        if let Some(template) = spec.section("template") {
            pod::default_template(template);
        }
        spec.fill_text("podManagementPolicy", "OrderedReady");
        if let Some(strategy) = spec.section("updateStrategy") {
            strategy.fill_text("type", "RollingUpdate");
            if strategy.text("type") == "RollingUpdate"
                && let Some(rolling) = strategy.section("rollingUpdate")
            {
                rolling.fill("partition", 0);
            }
        }
        if let Some(policy) = spec.section("persistentVolumeClaimRetentionPolicy") {
            policy.fill_text("whenDeleted", "Retain");
            policy.fill_text("whenScaled", "Retain");
        }
        spec.fill("replicas", 1);
        spec.fill("revisionHistoryLimit", 10);
        for claim in spec.items("volumeClaimTemplates") {
            claim.fill_text("apiVersion", "v1");
            claim.fill_text("kind", "PersistentVolumeClaim");
            if let Some(spec) = claim.section("spec") {
                default_claim_spec(spec);
            }
            if let Some(status) = claim.section("status") {
                status.fill_text("phase", "Pending");
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", serde_json::json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        validate(object, &mut causes);
        let service = object.at("spec").text("serviceName");
        if !service.is_empty() {
            let path = Path::new("spec");
            causes.syntax(&path.child("serviceName"), service, names::dns_subdomain(service));
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        validate(new, &mut causes);
        let mut rest = new.at("spec").clone();
        for field in MUTABLE {
            rest.copy(field, old.at("spec"));
        }
        if !equal(&rest, old.at("spec")) {
            causes.forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let fields = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
        counts(new.at("status"), &fields, &Path::new("status"), &mut causes);
        collision_count(new, old, &mut causes);
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = match old {
            Some(old) if equal(old.at("spec").at("template"), object.at("spec").at("template")) => Vec::new(),
            _ => pod::template_warnings(object.at("spec").at("template"), "spec.template"),
        };
        if object.at("spec").int("revisionHistoryLimit").is_some_and(|limit| limit < 0) {
            warnings.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
        }
        warnings
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = object.at("spec");
        let ready = object.at("status").int("readyReplicas").unwrap_or(0);
        let (names, images) = columns::containers_and_images(spec.at("template").at("spec"));
        vec![
            columns::name(object),
            format!("{ready}/{}", spec.int("replicas").unwrap_or(0)).into(),
            columns::age(object, now),
            names.into(),
            images.into(),
        ]
    }
}

fn validate(object: &Value, causes: &mut Causes) {
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    match spec.text("podManagementPolicy") {
        "OrderedReady" | "Parallel" => {}
        "" => causes.required(&path.child("podManagementPolicy"), ""),
        other => {
            causes.invalid(&path.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'")
        }
    }
    update_strategy(spec.at("updateStrategy"), &path.child("updateStrategy"), causes);
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        if !retention.is_null() && !matches!(retention.text(field), "Delete" | "Retain") {
            let path = path.child("persistentVolumeClaimRetentionPolicy");
            causes.not_supported(&path.child(field), retention.text(field), &["Delete", "Retain"]);
        }
    }
    rules::not_negative(spec, "replicas", &path, causes);
    rules::not_negative(spec, "minReadySeconds", &path, causes);
    rules::not_negative(spec.at("ordinals"), "start", &path.child("ordinals"), causes);
    selector(spec, "statefulset", &path, causes);
    // Claims of the set are volumes of its pods, under their own names.
    let mut with_claims = spec.clone();
    if let Some(pod_spec) = with_claims.part("template").and_then(|template| template.part("spec")) {
        let mut volumes = pod_spec.list("volumes").to_vec();
        for claim in spec.list("volumeClaimTemplates") {
            let name = claim.at("metadata").text("name");
            if !name.is_empty() && !volumes.iter().any(|volume| volume.text("name") == name) {
                volumes.push(serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
            }
        }
        pod_spec.put("volumes", volumes);
    }
    template(&with_claims, &path, "StatefulSet", causes);
}

fn update_strategy(strategy: &Value, path: &Path<'_>, causes: &mut Causes) {
    match strategy.text("type") {
        "" => causes.required(path, ""),
        "OnDelete" => {
            if strategy.has("rollingUpdate") {
                causes.invalid(
                    &path.child("rollingUpdate"),
                    strategy.at("rollingUpdate").clone(),
                    "only allowed for updateStrategy 'RollingUpdate'",
                );
            }
        }
        "RollingUpdate" => {
            let rolling = strategy.at("rollingUpdate");
            let path = path.child("rollingUpdate");
            rules::not_negative(rolling, "partition", &path, causes);
            if rolling.has("maxUnavailable") {
                let path = path.child("maxUnavailable");
                rules::int_or_percent(rolling.at("maxUnavailable"), &path, causes);
                if is_zero(rolling.at("maxUnavailable")) {
                    causes.invalid(&path, rolling.at("maxUnavailable").clone(), "cannot be 0");
                }
                at_most_all(rolling.at("maxUnavailable"), &path, causes);
            }
        }
        _ => causes.invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{pod_template, workload};
    use super::*;

    #[test]
    fn claims_are_volumes_and_stay() {
        let kind = KIND.kind();
        let mut template = pod_template();
        template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        let mut old = workload(json!({"serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
            "template": template, "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}));
        kind.default(&mut old);
        assert_eq!(kind.validate_create(&old), []);
        assert_eq!(old["spec"]["podManagementPolicy"], "OrderedReady");
        assert_eq!(old["spec"]["updateStrategy"]["rollingUpdate"]["partition"], 0);
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(3);
        assert_eq!(StatefulSet.validate_update(&new, &old), []);
        new["spec"]["serviceName"] = json!("other");
        assert!(StatefulSet.validate_update(&new, &old)[0].message.starts_with(
            "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template'"
        ));
    }
}

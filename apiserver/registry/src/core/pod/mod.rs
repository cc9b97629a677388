//! Pods: defaults, what is prepared on create, what may never change again, and how they are shown.

pub mod binding;
mod columns;
mod containers;
mod defaults;
mod probes;
mod resources;
mod scheduling;
mod security;
#[cfg(test)]
mod tests;
mod update;
mod validation;
mod volumes;
mod warnings;

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Subresource, Verb};
use serde_json::{Value, json};

pub(crate) use defaults::template as default_template;
pub(crate) use scheduling::{node_selector, taint_effect};
use validation::Context;
pub(crate) use validation::template as validate_template;
pub(crate) use warnings::template as template_warnings;

use crate::{
    Cause, Scope, Strategy,
    cause::Causes,
    fields::{Fields, Fill},
    kind::{ALL, Spec, name, status, subresource},
};

const UPDATE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const CONNECT: &[Verb] = &[Verb::Create, Verb::Get];
const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];

const fn core(kind: &'static str) -> GroupVersionKind {
    GroupVersionKind::new("", "v1", kind)
}

const SUBRESOURCES: &[Subresource] = &[
    subresource("attach", core("PodAttachOptions"), CONNECT),
    subresource("binding", core("Binding"), &[Verb::Create]),
    subresource("ephemeralcontainers", core("Pod"), UPDATE),
    subresource("eviction", GroupVersionKind::new("policy", "v1", "Eviction"), &[Verb::Create]),
    subresource("exec", core("PodExecOptions"), CONNECT),
    subresource("log", core("Pod"), &[Verb::Get]),
    subresource("portforward", core("PodPortForwardOptions"), CONNECT),
    subresource("proxy", core("PodProxyOptions"), PROXY),
    subresource("resize", core("Pod"), UPDATE),
    status("", "Pod"),
];

pub(crate) const KIND: Spec = Spec {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &[name("po")],
    categories: ALL,
    subresources: SUBRESOURCES,
    storage_prefix: Some("pods"),
    columns: columns::COLUMNS,
    selectable: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ],
    strategy: &Pod,
    generation: true,
    ..Spec::STORED
};

/// The legacy way to [`binding`]: the body names the pod.
pub(crate) const BINDING: Spec =
    Spec { kind: "Binding", plural: "bindings", singular: "binding", namespaced: true, ..Spec::VIRTUAL };

struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        defaults::pod(object);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        affinity_from_label_keys(object);
        let mut status = json!({
            "phase": "Pending",
            "qosClass": resources::quality_of_service(object.at("spec")),
        });
        if !object.at("spec").list("schedulingGates").is_empty() {
            status.put(
                "conditions",
                json!([{
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                }]),
            );
        }
        object.put("status", status);
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        if let Some(metadata) = new.section("metadata") {
            metadata.copy("ownerReferences", old.at("metadata"));
            metadata.copy("deletionTimestamp", old.at("metadata"));
        }
        if let Some(status) = new.section("status")
            && status.text("qosClass").is_empty()
        {
            status.copy("qosClass", old.at("status"));
        }
    }

    fn prepare_for_subresource_update(&self, scope: Scope, new: &mut Value, old: &Value) {
        match scope {
            Scope::EphemeralContainers => {
                let containers = new.at("spec").at("ephemeralContainers").clone();
                *new = keep_identity(new, old);
                if let Some(spec) = new.section("spec") {
                    spec.put("ephemeralContainers", containers);
                }
            }
            Scope::Resize => {
                let wanted = new.at("spec").clone();
                *new = keep_identity(new, old);
                let Some(spec) = new.section("spec") else { return };
                for list in ["containers", "initContainers"] {
                    for container in spec.items(list) {
                        let name = container.text("name").to_owned();
                        if let Some(wanted) = wanted.list(list).iter().find(|c| c.text("name") == name) {
                            container.copy("resources", wanted);
                            container.copy("resizePolicy", wanted);
                        }
                    }
                }
            }
            Scope::Main | Scope::Status | Scope::Finalize => {}
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        validation::creation(object, &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        update::main(new, old, &mut causes);
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        update::status(new, old, &mut causes);
        causes.into_vec()
    }

    fn validate_subresource_update(&self, scope: Scope, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        match scope {
            Scope::EphemeralContainers => update::ephemeral_containers(new, old, &mut causes),
            Scope::Resize => update::resize(new, old, &mut causes),
            Scope::Main | Scope::Status | Scope::Finalize => {}
        }
        causes.into_vec()
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        // Nothing of a running pod can be put right, so warning of it again is noise.
        if old.is_some() { Vec::new() } else { warnings::pod(object) }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let (spec, status) = (object.at("spec"), object.at("status"));
        let addresses: Vec<&str> = status.list("podIPs").iter().map(|ip| ip.text("ip")).collect();
        vec![
            ("spec.nodeName", spec.text("nodeName").to_owned()),
            ("spec.restartPolicy", spec.text("restartPolicy").to_owned()),
            ("spec.schedulerName", spec.text("schedulerName").to_owned()),
            ("spec.serviceAccountName", spec.text("serviceAccountName").to_owned()),
            ("spec.hostNetwork", spec.flag("hostNetwork").to_string()),
            ("status.phase", status.text("phase").to_owned()),
            ("status.podIP", addresses.first().copied().unwrap_or_default().to_owned()),
            ("status.podIPs", addresses.join(",")),
            ("status.nominatedNodeName", status.text("nominatedNodeName").to_owned()),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::row(object, now)
    }

    fn row_conditions(&self, object: &Value) -> Option<Value> {
        columns::row_conditions(object)
    }

    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = object.at("spec");
        let finished = matches!(object.at("status").text("phase"), "Succeeded" | "Failed");
        if spec.text("nodeName").is_empty() || finished {
            return Some(0);
        }
        let seconds = requested.or_else(|| spec.int("terminationGracePeriodSeconds")).unwrap_or(0);
        // A negative period means the shortest that is still graceful.
        Some(if seconds < 0 { 1 } else { seconds })
    }
}

/// The old pod with what of the new one says which it is, and who owns which field: who may add a container may not
/// change labels or finalizers.
fn keep_identity(new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    if let Some(metadata) = kept.section("metadata") {
        for field in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
            metadata.copy(field, new.at("metadata"));
        }
    }
    kept
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements on the values that this pod has.
fn affinity_from_label_keys(pod: &mut Value) {
    let labels = pod.at("metadata").at("labels").clone();
    let Some(spec) = pod.part("spec") else { return };
    if let Some(affinity) = spec.part("affinity") {
        for kind in ["podAffinity", "podAntiAffinity"] {
            let Some(terms) = affinity.part(kind) else { continue };
            for term in terms.items("requiredDuringSchedulingIgnoredDuringExecution") {
                require_label_keys(term, &labels);
            }
            for weighted in terms.items("preferredDuringSchedulingIgnoredDuringExecution") {
                if let Some(term) = weighted.part("podAffinityTerm") {
                    require_label_keys(term, &labels);
                }
            }
        }
    }
    for constraint in spec.items("topologySpreadConstraints") {
        require_label_keys(constraint, &labels);
    }
}

fn require_label_keys(term: &mut Value, labels: &Value) {
    let wanted = |field: &str, operator: &'static str, term: &Value| -> Vec<Value> {
        term.texts(field)
            .filter_map(|key| {
                labels.get(key).map(|value| json!({"key": key, "operator": operator, "values": [value]}))
            })
            .collect()
    };
    let mut expressions = wanted("matchLabelKeys", "In", term);
    expressions.extend(wanted("mismatchLabelKeys", "NotIn", term));
    if expressions.is_empty() {
        return;
    }
    let Some(selector) = term.part("labelSelector") else { return };
    let mut all = selector.list("matchExpressions").to_vec();
    all.extend(expressions);
    selector.put("matchExpressions", all);
}

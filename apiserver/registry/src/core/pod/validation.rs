//! Validation of a pod as a whole and of pod templates.

use std::collections::HashMap;

use serde_json::Value;

use super::{containers, scheduling, security, volumes};
use crate::{
    cause::{Causes, Path},
    fields::Fields,
    metadata, names,
    quantity::quantity,
    rules,
};

/// What containers need to know of the pod they are in.
pub(super) struct Context<'a> {
    volumes: HashMap<&'a str, &'a Value>,
    pub(super) grace_period: Option<i64>,
    pub(super) restart_policy: &'a str,
    pub(super) host_users: bool,
}

impl Context<'_> {
    pub(super) fn volume(&self, name: &str) -> Option<&Value> {
        self.volumes.get(name).copied()
    }
}

/// Whether a PodSpec is in a pod, or in a template that will become one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Pod,
    Template,
}

/// What holds for a pod at any time, created or updated.
pub(super) fn pod(pod: &Value, causes: &mut Causes) {
    let path = Path::new("spec");
    let spec = pod.at("spec");
    pod_annotations(pod.at("metadata"), spec, &Path::new("metadata").child("annotations"), causes);
    pod_spec(spec, pod.at("metadata").text("name"), Place::Pod, &path, causes);
    if spec.text("serviceAccountName").is_empty() {
        for (index, volume) in spec.list("volumes").iter().enumerate() {
            for (source, projection) in volume.at("projected").list("sources").iter().enumerate() {
                if projection.has("serviceAccountToken") {
                    let volume = path.child("volumes");
                    let volume = volume.index(index);
                    let sources = volume.child("projected");
                    let sources = sources.child("sources");
                    causes.forbidden(
                        &sources.index(source).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in spec.list(list).iter().enumerate() {
            containers::image_padding(container, &path.child(list).index(index), causes);
        }
    }
}

/// What holds only when a pod is created.
pub(super) fn creation(object: &Value, causes: &mut Causes) {
    pod(object, causes);
    let (spec, path) = (object.at("spec"), Path::new("spec"));
    if !spec.list("ephemeralContainers").is_empty() {
        causes.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        causes
            .forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// A PodTemplateSpec at `path`.
pub(crate) fn template(template: &Value, path: &Path<'_>, causes: &mut Causes) {
    let template_metadata = template.at("metadata");
    metadata::labels(template_metadata, &path.child("labels"), causes);
    metadata::annotations(template_metadata, &path.child("annotations"), causes);
    pod_annotations(template_metadata, template.at("spec"), &path.child("annotations"), causes);
    pod_spec(template.at("spec"), "", Place::Template, &path.child("spec"), causes);
    if !template.at("spec").list("ephemeralContainers").is_empty() {
        causes.forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

fn pod_annotations(metadata: &Value, spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let annotations = metadata.at("annotations");
    if annotations.has(MIRROR) && spec.text("nodeName").is_empty() {
        causes.invalid(
            &path.key(MIRROR),
            annotations.text(MIRROR),
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    let cost = annotations.text(DELETION_COST);
    // A leading plus or zeros would make two texts for one number.
    let canonical = cost.parse::<i32>().is_ok_and(|number| number.to_string() == cost);
    if annotations.has(DELETION_COST) && !canonical {
        causes.invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer");
    }
}

fn pod_spec(spec: &Value, name: &str, place: Place, path: &Path<'_>, causes: &mut Causes) {
    let grace_period = spec.int("terminationGracePeriodSeconds");
    if grace_period.is_none() {
        causes.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let context = Context {
        volumes: volumes::volumes(spec, name, &path.child("volumes"), causes),
        grace_period,
        restart_policy: spec.text("restartPolicy"),
        host_users: spec.at("hostUsers").as_bool() != Some(false),
    };
    containers::regular(spec, &path.child("containers"), &context, causes);
    containers::init(spec, &path.child("initContainers"), &context, causes);
    containers::ephemeral(spec, &path.child("ephemeralContainers"), &context, causes);
    pod_resources(spec, &path.child("resources"), causes);
    host_network(spec, place, path, causes);
    rules::one_of(
        spec.text("restartPolicy"),
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        causes,
    );
    rules::one_of(
        spec.text("dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        &path.child("dnsPolicy"),
        causes,
    );
    security::pod_security_context(spec, &path.child("securityContext"), causes);
    dns_config(spec, &path.child("dnsConfig"), causes);
    scheduling::scheduling(spec, path, causes);
    if !context.host_users {
        for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
        {
            if spec.flag(field) {
                causes.forbidden(&path.child(shown), "when `pod.Spec.HostUsers` is false");
            }
        }
    }
    for (field, rule) in [
        ("serviceAccountName", names::dns_subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ] {
        let value = spec.text(field);
        if !value.is_empty() {
            causes.syntax(&path.child(field), value, rule(value));
        }
    }
    if let Some(seconds) =
        spec.int("activeDeadlineSeconds").filter(|seconds| !(1..=i64::from(i32::MAX)).contains(seconds))
    {
        causes.invalid(&path.child("activeDeadlineSeconds"), seconds, names::range(1, i64::from(i32::MAX)));
    }
    for (index, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = path.child("hostAliases");
        let path = path.index(index);
        rules::ip_address(alias.text("ip"), &path.child("ip"), causes);
        for (index, hostname) in alias.texts("hostnames").enumerate() {
            causes.syntax(&path.child("hostnames").index(index), hostname, names::dns_subdomain(hostname));
        }
    }
    if spec.has("preemptionPolicy") {
        rules::one_of(
            spec.text("preemptionPolicy"),
            &["PreemptLowerPriority", "Never"],
            &path.child("preemptionPolicy"),
            causes,
        );
    }
    for (name, amount) in spec.entries("overhead").into_iter().flatten() {
        let path = path.child("overhead");
        let path = path.child("limits");
        rules::container_resource_name(name, &path.key(name), causes);
        rules::resource_amount(name, amount, &path.key(name), causes);
    }
    if spec.has("os") {
        match spec.at("os").text("name") {
            "" => causes.required(&path.child("os").child("name"), "cannot be empty"),
            "linux" | "windows" => {}
            other => causes.not_supported(&path.child("os"), other, &["linux", "windows"]),
        }
    }
}

/// Resources of the pod as a whole: names, amounts, and enough for its containers.
fn pod_resources(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let resources = spec.at("resources");
    if resources.is_null() {
        return;
    }
    if resources.has("claims") {
        causes.forbidden(&path.child("claims"), "claims cannot be set for Resources at pod-level");
    }
    for kind in ["limits", "requests"] {
        for name in resources.entries(kind).into_iter().flatten().map(|(name, _)| name) {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                causes.not_supported(
                    &path.child(kind).key(name),
                    name.as_str(),
                    &["cpu", "hugepages-", "memory"],
                );
            }
        }
    }
    containers::resource_requirements(resources, path, causes);
    for (name, sum) in super::resources::requests(spec) {
        let request = resources.at("requests").at(&name);
        if sum > quantity(request).unwrap_or_default() {
            let sum = sum.to_string();
            causes.invalid(
                &path.child("requests").key(&name),
                if request.is_null() { "0".to_owned() } else { rules::amount_text(request) },
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
}

fn host_network(spec: &Value, place: Place, path: &Path<'_>, causes: &mut Causes) {
    if !spec.flag("hostNetwork") {
        return;
    }
    for (index, container) in spec.list("containers").iter().enumerate() {
        let path = path.child("containers");
        let path = path.index(index);
        for (index, port) in container.list("ports").iter().enumerate() {
            let host = port.int("hostPort").unwrap_or(0);
            let differs = host != port.int("containerPort").unwrap_or(0);
            if differs && (place == Place::Pod || host != 0) {
                let path = path.child("ports");
                causes.invalid(
                    &path.index(index).child("hostPort"),
                    host,
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let config = spec.at("dnsConfig");
    if spec.text("dnsPolicy") == "None" {
        if config.is_null() {
            causes.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if config.list("nameservers").is_empty() {
            causes.required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    if config.list("nameservers").len() > 3 {
        causes.invalid(
            &path.child("nameservers"),
            config.at("nameservers").clone(),
            "must not have more than 3 nameservers",
        );
    }
    for (index, server) in config.texts("nameservers").enumerate() {
        rules::ip_address(server, &path.child("nameservers").index(index), causes);
    }
    let searches: Vec<&str> = config.texts("searches").collect();
    if searches.len() > 32 {
        causes.invalid(
            &path.child("searches"),
            config.at("searches").clone(),
            "must not have more than 32 search paths",
        );
    }
    if searches.join(" ").len() > 2048 {
        causes.invalid(
            &path.child("searches"),
            config.at("searches").clone(),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (index, search) in searches.into_iter().enumerate().filter(|(_, search)| *search != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        causes.syntax(&path.child("searches").index(index), search, names::subdomain_with_underscore(search));
    }
    for (index, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            causes.required(&path.child("options").index(index), "must not be empty");
        }
    }
}

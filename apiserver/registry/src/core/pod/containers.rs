//! Validation of containers of all three sorts: names, images, ports, environment, mounts, probes, resources.

use std::collections::HashSet;

use serde_json::Value;

use super::{Context, security::container_security_context};
use crate::{
    cause::{Causes, Path},
    fields::Fields,
    names,
    quantity::{Quantity, quantity},
    rules,
};

const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const DIVISORS: &[&str] =
    &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Regular containers: at least one, each named once, no two on one host port.
pub(super) fn regular(spec: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let containers = spec.list("containers");
    if containers.is_empty() {
        causes.required(path, "");
        return;
    }
    let mut seen = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        common(container, &path, context, causes);
        if !seen.insert(container.text("name")) {
            causes.duplicate(&path.child("name"), container.text("name"));
        }
        lifecycle_and_probes(container, &path, context, causes);
        restart_policy(container, &path, causes);
    }
    host_ports(containers, path, causes);
}

/// Init containers: names are unique among regular ones too; only sidecars have probes and hooks.
pub(super) fn init(spec: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let mut seen: HashSet<&str> = spec.list("containers").iter().map(|c| c.text("name")).collect();
    for (index, container) in spec.list("initContainers").iter().enumerate() {
        let path_of_list = path;
        let path = path.index(index);
        common(container, &path, context, causes);
        restart_policy(container, &path, causes);
        let name = container.text("name");
        if seen.contains(name) {
            causes.duplicate(&path.child("name"), name);
        } else if !name.is_empty() {
            seen.insert(name);
        }
        host_ports(std::slice::from_ref(container), path_of_list, causes);
        if container.text("restartPolicy") == "Always" {
            lifecycle_and_probes(container, &path, context, causes);
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container.has(field) {
                    causes.forbidden(
                        &path.child(field),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
        }
    }
}

/// Ephemeral containers: no ports, probes, resources or hooks; the target must exist.
pub(super) fn ephemeral(spec: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let other = || spec.list("containers").iter().chain(spec.list("initContainers")).map(|c| c.text("name"));
    let mut seen: HashSet<&str> = other().collect();
    for (index, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let path = path.index(index);
        common(container, &path, context, causes);
        image_padding(container, &path, causes);
        let name = container.text("name");
        if !seen.insert(name) {
            causes.duplicate(&path.child("name"), name);
        }
        let target = container.text("targetContainerName");
        if !target.is_empty() && !other().any(|name| name == target) {
            causes.not_found(&path.child("targetContainerName"), target);
        }
        for field in [
            "ports",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resizePolicy",
        ] {
            let set = match container.at(field) {
                Value::Object(map) => field != "resources" || !map.is_empty(),
                Value::Array(items) => !items.is_empty(),
                _ => false,
            };
            if set {
                causes.forbidden(&path.child(field), "cannot be set for an Ephemeral Container");
            }
        }
        for (index, mount) in container.list("volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.text(field).is_empty() {
                    causes.forbidden(
                        &path.child("volumeMounts").index(index).child(field),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
    }
}

/// Only checked on pods: templates may hold placeholders.
pub(super) fn image_padding(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    let image = container.text("image");
    if image.trim() != image {
        causes.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn common(container: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let name = container.text("name");
    if name.is_empty() {
        causes.required(&path.child("name"), "");
    } else {
        causes.syntax(&path.child("name"), name, names::dns_label(name));
    }
    if container.text("image").is_empty() {
        causes.required(&path.child("image"), "");
    }
    rules::one_of(
        container.text("terminationMessagePolicy"),
        &["File", "FallbackToLogsOnError"],
        &path.child("terminationMessagePolicy"),
        causes,
    );
    ports(container, &path.child("ports"), causes);
    environment(container, &path.child("env"), causes);
    environment_from(container, &path.child("envFrom"), causes);
    mounts(container, &path.child("volumeMounts"), context, causes);
    devices(container, &path.child("volumeDevices"), context, causes);
    rules::one_of(
        container.text("imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        &path.child("imagePullPolicy"),
        causes,
    );
    resource_requirements(container.at("resources"), &path.child("resources"), causes);
    resize_policy(container, &path.child("resizePolicy"), context, causes);
    container_security_context(
        container.at("securityContext"),
        &path.child("securityContext"),
        context,
        causes,
    );
}

fn restart_policy(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    let rules_list = container.list("restartPolicyRules");
    let policy = container.text("restartPolicy");
    if container.has("restartPolicy") && !["Always", "Never", "OnFailure"].contains(&policy) {
        causes.not_supported(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    if !rules_list.is_empty() && !container.has("restartPolicy") {
        causes
            .required(&path.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
    }
    if rules_list.len() > 20 {
        causes.too_long(&path.child("restartPolicyRules"), 20);
    }
    for (index, rule) in rules_list.iter().enumerate() {
        let path = path.child("restartPolicyRules");
        let path = path.index(index);
        if !matches!(rule.text("action"), "Restart" | "RestartAllContainers") {
            causes.not_supported(
                &path.child("action"),
                rule.text("action"),
                &["Restart", "RestartAllContainers"],
            );
        }
        let exit_codes = rule.at("exitCodes");
        if exit_codes.is_null() {
            causes.required(&path.child("exitCodes"), "must be specified");
        } else if !matches!(exit_codes.text("operator"), "In" | "NotIn") {
            causes.not_supported(
                &path.child("exitCodes").child("operator"),
                exit_codes.text("operator"),
                &["In", "NotIn"],
            );
        }
    }
}

fn ports(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, port) in container.list("ports").iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if !messages.is_empty() {
                causes.syntax(&path.child("name"), name, messages);
            } else if !seen.insert(name) {
                causes.duplicate(&path.child("name"), name);
            }
        }
        match port.int("containerPort").unwrap_or(0) {
            0 => causes.required(&path.child("containerPort"), ""),
            number => rules::port_number(number, &path.child("containerPort"), causes),
        }
        if let Some(number) = port.int("hostPort").filter(|number| *number != 0) {
            rules::port_number(number, &path.child("hostPort"), causes);
        }
        rules::one_of(port.text("protocol"), &["SCTP", "TCP", "UDP"], &path.child("protocol"), causes);
    }
}

fn host_ports(containers: &[Value], path: &Path<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        let path = path.child("ports");
        for (index, port) in container.list("ports").iter().enumerate() {
            let Some(number) = port.int("hostPort").filter(|number| *number != 0) else { continue };
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if !seen.insert(key.clone()) {
                causes.duplicate(&path.index(index).child("hostPort"), key);
            }
        }
    }
}

fn environment(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, variable) in container.list("env").iter().enumerate() {
        let path = path.index(index);
        let name = variable.text("name");
        if name.is_empty() {
            causes.required(&path.child("name"), "");
        } else {
            causes.syntax(&path.child("name"), name, names::environment_variable(name));
        }
        if variable.has("valueFrom") {
            value_from(variable, &path.child("valueFrom"), causes);
        }
    }
}

fn value_from(variable: &Value, path: &Path<'_>, causes: &mut Causes) {
    let source = variable.at("valueFrom");
    let mut sources = 0;
    if source.has("fieldRef") {
        sources += 1;
        field_reference(source.at("fieldRef"), DOWNWARD_FIELDS, &path.child("fieldRef"), causes);
    }
    if source.has("resourceFieldRef") {
        sources += 1;
        resource_field(source.at("resourceFieldRef"), false, &path.child("resourceFieldRef"), causes);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if source.has(field) {
            sources += 1;
            key_selector(source.at(field), &path.child(field), causes);
        }
    }
    if source.has("fileKeyRef") {
        sources += 1;
        let (reference, path) = (source.at("fileKeyRef"), path.child("fileKeyRef"));
        for field in ["key", "volumeName", "path"] {
            if reference.text(field).is_empty() {
                causes.required(&path.child(field), "");
            }
        }
        if !reference.text("path").is_empty() {
            rules::local_descending_path(reference.text("path"), &path.child("path"), causes);
        }
    }
    if sources == 0 {
        causes.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !variable.text("value").is_empty() {
        causes.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        causes.invalid(path, "", "may not have more than one field specified at a time");
    }
}

/// `fieldRef`: what a pod may learn about itself.
pub(super) fn field_reference(reference: &Value, supported: &[&str], path: &Path<'_>, causes: &mut Causes) {
    if reference.text("apiVersion").is_empty() {
        causes.required(&path.child("apiVersion"), "");
        return;
    }
    let field = reference.text("fieldPath");
    if field.is_empty() {
        causes.required(&path.child("fieldPath"), "");
        return;
    }
    let subscript =
        field.split_once("['").and_then(|(name, rest)| rest.strip_suffix("']").map(|key| (name, key)));
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            causes.syntax(path, &key, names::qualified_name(&key));
        }
        Some(("metadata.labels", key)) => causes.syntax(path, key, names::qualified_name(key)),
        Some((name, _)) if is_known_field(name) => causes.invalid(path, name, "does not support subscript"),
        None if supported.contains(&field) => {}
        None if is_known_field(field) => causes.not_supported(&path.child("fieldPath"), field, supported),
        _ => {
            let message = format!("error converting fieldPath: field label not supported: {field}");
            causes.invalid(&path.child("fieldPath"), field, message);
        }
    }
}

/// Names that convert as field labels of a pod, whether or not they are supported here.
fn is_known_field(field: &str) -> bool {
    DOWNWARD_FIELDS.contains(&field)
        || matches!(
            field,
            "metadata.annotations"
                | "metadata.labels"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.nominatedNodeName"
        )
}

/// `resourceFieldRef`: a container's own requests or limits.
pub(super) fn resource_field(reference: &Value, in_volume: bool, path: &Path<'_>, causes: &mut Causes) {
    let resource = reference.text("resource");
    let huge_pages = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && reference.text("containerName").is_empty() {
        causes.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        causes.required(&path.child("resource"), "");
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge_pages {
        causes.not_supported(&path.child("resource"), resource, RESOURCE_FIELDS);
    }
    let divisor = reference.at("divisor");
    let Some(amount) = quantity(divisor).filter(|amount| !amount.is_zero()) else { return };
    let allowed = |texts: &[&str]| texts.iter().any(|text| text.parse::<Quantity>().ok() == Some(amount));
    let what = match resource {
        "limits.cpu" | "requests.cpu" => {
            if !allowed(&["1m", "1"]) {
                causes.invalid(
                    &path.child("divisor"),
                    resource,
                    "only divisor's values 1m and 1 are supported with the cpu resource",
                );
            }
            return;
        }
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if huge_pages => "hugepages",
        _ => return,
    };
    if !allowed(DIVISORS) {
        let values = DIVISORS.join(", ");
        let message = format!("only divisor's values {values} are supported with the {what} resource");
        causes.invalid(&path.child("divisor"), resource, message);
    }
}

fn key_selector(selector: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (name, key) = (selector.text("name"), selector.text("key"));
    causes.syntax(&path.child("name"), name, names::dns_subdomain(name));
    if key.is_empty() {
        causes.required(&path.child("key"), "");
    } else {
        causes.syntax(&path.child("key"), key, names::config_key(key));
    }
}

fn environment_from(container: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (index, source) in container.list("envFrom").iter().enumerate() {
        let item = path.index(index);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            causes.syntax(&item.child("prefix"), prefix, names::environment_variable(prefix));
        }
        let mut sources = 0;
        for field in ["configMapRef", "secretRef"] {
            if source.has(field) {
                sources += 1;
                let name = source.at(field).text("name");
                if name.is_empty() {
                    causes.required(&item.child(field).child("name"), "");
                } else {
                    causes.syntax(&item.child(field).child("name"), name, names::dns_subdomain(name));
                }
            }
        }
        if sources == 0 {
            causes.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if sources > 1 {
            causes.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
}

fn mounts(container: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, mount) in container.list("volumeMounts").iter().enumerate() {
        let item = path.index(index);
        let (name, mount_path) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            causes.required(&item.child("name"), "");
        }
        let volume = context.volume(name);
        if volume.is_none() {
            causes.not_found(&item.child("name"), name);
        }
        if mount_path.is_empty() {
            causes.required(&item.child("mountPath"), "");
        }
        if !seen.insert(mount_path) {
            causes.invalid(&item.child("mountPath"), mount_path, "must be unique");
        }
        for device in container.list("volumeDevices") {
            if device.text("name") == name {
                causes.invalid(&item.child("name"), name, "must not already exist in volumeDevices");
            }
            if device.text("devicePath") == mount_path {
                causes.invalid(
                    &item.child("mountPath"),
                    mount_path,
                    "must not already exist as a path in volumeDevices",
                );
            }
        }
        let (sub_path, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub_path.is_empty() {
            rules::local_descending_path(sub_path, &path.child("subPath"), causes);
        }
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                causes.invalid(
                    &item.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            rules::local_descending_path(expression, &path.child("subPathExpr"), causes);
        }
        if mount.has("mountPropagation") {
            mount_propagation(mount, container, &path.child("mountPropagation"), causes);
        }
        recursive_read_only(mount, &path.child("recursiveReadOnly"), causes);
    }
}

fn mount_propagation(mount: &Value, container: &Value, path: &Path<'_>, causes: &mut Causes) {
    let propagation = mount.text("mountPropagation");
    if !["Bidirectional", "HostToContainer", "None"].contains(&propagation) {
        causes.not_supported(path, propagation, &["Bidirectional", "HostToContainer", "None"]);
    }
    if propagation == "Bidirectional" && !container.at("securityContext").flag("privileged") {
        causes.forbidden(path, "Bidirectional mount propagation is available only to privileged containers");
    }
}

fn recursive_read_only(mount: &Value, path: &Path<'_>, causes: &mut Causes) {
    match mount.text("recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.flag("readOnly") {
                causes.forbidden(path, "may only be specified when readOnly is true");
            }
            let propagation = mount.text("mountPropagation");
            if !propagation.is_empty() && propagation != "None" {
                causes
                    .forbidden(path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        other => causes.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(container: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let (mut seen_names, mut seen_paths) = (HashSet::new(), HashSet::new());
    for (index, device) in container.list("volumeDevices").iter().enumerate() {
        let path = path.index(index);
        let (name, device_path) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            causes.required(&path.child("name"), "");
        } else if !seen_names.insert(name) {
            causes.invalid(&path.child("name"), name, "must be unique");
        }
        match context.volume(name) {
            None => causes.not_found(&path.child("name"), name),
            Some(volume) if !volume.has("persistentVolumeClaim") && !volume.has("ephemeral") => causes
                .invalid(
                    &path.child("name"),
                    name,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
            Some(_) => {}
        }
        if device_path.is_empty() {
            causes.required(&path.child("devicePath"), "");
        }
        if !seen_paths.insert(device_path) {
            causes.invalid(&path.child("devicePath"), device_path, "must be unique");
        }
        if device_path.split('/').any(|part| part == "..") {
            causes.invalid(&path.child("devicePath"), device_path, "can not contain backsteps ('..')");
        }
    }
}

/// Names of resources, amounts, and requests within limits.
pub(super) fn resource_requirements(resources: &Value, path: &Path<'_>, causes: &mut Causes) {
    let parent = path;
    for (name, amount) in resources.entries("limits").into_iter().flatten() {
        let path = path.child("limits");
        let path = path.key(name);
        rules::container_resource_name(name, &path, causes);
        rules::resource_amount(name, amount, &path, causes);
    }
    for (name, amount) in resources.entries("requests").into_iter().flatten() {
        let path = path.child("requests");
        rules::container_resource_name(name, &path.key(name), causes);
        rules::resource_amount(name, amount, &path.key(name), causes);
        let limit = resources.at("limits").at(name);
        let (Some(request), Some(limit_amount)) = (quantity(amount), quantity(limit)) else {
            if !rules::overcommit_allowed(name) {
                let limits = parent.child("limits");
                causes.required(&limits, "Limit must be set for non overcommitable resources");
            }
            continue;
        };
        if request != limit_amount && !rules::overcommit_allowed(name) {
            let message = format!("must be equal to {name} limit of {}", rules::amount_text(limit));
            causes.invalid(&path, rules::amount_text(amount), message);
        } else if request > limit_amount {
            let message =
                format!("must be less than or equal to {name} limit of {}", rules::amount_text(limit));
            causes.invalid(&path, rules::amount_text(amount), message);
        }
    }
}

fn resize_policy(container: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, policy) in container.list("resizePolicy").iter().enumerate() {
        let resource = policy.text("resourceName");
        if !seen.insert(resource) {
            causes.duplicate(&path.index(index), resource);
        }
        rules::one_of(resource, &["cpu", "memory"], path, causes);
        let restart = policy.text("restartPolicy");
        rules::one_of(restart, &["NotRequired", "RestartContainer"], path, causes);
        if context.restart_policy == "Never" && restart != "NotRequired" {
            causes.invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'");
        }
    }
}

fn lifecycle_and_probes(container: &Value, path: &Path<'_>, context: &Context<'_>, causes: &mut Causes) {
    for hook in ["postStart", "preStop"] {
        let handler = container.at("lifecycle").at(hook);
        if !handler.is_null() {
            super::probes::handler(handler, true, context, &path.child("lifecycle").child(hook), causes);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container.has(name) {
            super::probes::probe(container.at(name), name, context, &path.child(name), causes);
        }
    }
}

//! Validation of security contexts, of the pod and of its containers.

use std::collections::HashSet;

use serde_json::Value;

use super::Context;
use crate::{
    cause::{Causes, Path},
    fields::Fields,
    names, rules,
};

fn identifier(holder: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if let Some(id) = holder.int(field).filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        causes.invalid(&path.child(field), id, names::range(0, i64::from(i32::MAX)));
    }
}

fn optional_of(holder: &Value, field: &str, supported: &[&str], path: &Path<'_>, causes: &mut Causes) {
    if holder.has(field) && !supported.contains(&holder.text(field)) {
        causes.not_supported(&path.child(field), holder.text(field), supported);
    }
}

/// `spec.securityContext`; `spec` holds the host namespaces.
pub(super) fn pod_security_context(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let context = spec.at("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        identifier(context, field, path, causes);
    }
    for (index, group) in context.list("supplementalGroups").iter().enumerate() {
        if let Some(group) = group.as_i64().filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
            causes.invalid(
                &path.child("supplementalGroups").index(index),
                group,
                names::range(0, i64::from(i32::MAX)),
            );
        }
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        causes.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(spec, context, &path.child("sysctls"), causes);
    optional_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, causes);
    profile(context.at("seccompProfile"), "seccomp", "seccompProfile", &path.child("seccompProfile"), causes);
    profile(
        context.at("appArmorProfile"),
        "AppArmor",
        "appArmorProfile",
        &path.child("appArmorProfile"),
        causes,
    );
    optional_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, causes);
    optional_of(context, "seLinuxChangePolicy", &["MountOption", "Recursive"], path, causes);
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|segment| {
            let bytes = segment.as_bytes();
            matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
                && bytes.iter().all(|&b| edge(b) || b == b'-' || b == b'_')
        })
}

fn sysctls(spec: &Value, context: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut seen = HashSet::new();
    for (index, sysctl) in context.list("sysctls").iter().enumerate() {
        let path = path.index(index);
        let path = path.child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            causes.required(&path, "");
        } else if !is_sysctl_name(name) {
            causes.invalid(
                &path,
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !seen.insert(name) {
            causes.duplicate(&path, name);
        }
        let dotted = name.replace('/', ".");
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            causes.invalid(&path, name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];
        if spec.flag("hostIPC") && ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
            causes.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

/// A seccomp or AppArmor profile: a type, and a file on the node where the type is Localhost.
fn profile(profile: &Value, what: &str, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if profile.is_null() {
        return;
    }
    let local = profile.text("localhostProfile");
    let kind = profile.text("type");
    match kind {
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        "" => causes.required(&path.child("type"), &format!("type is required when {field} is set")),
        other => {
            causes.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
    let path = path.child("localhostProfile");
    if kind == "Localhost" {
        if !profile.has("localhostProfile") || (what == "AppArmor" && local.is_empty()) {
            causes.required(&path, &format!("must be set when {what} type is Localhost"));
        } else if what == "seccomp" {
            rules::local_descending_path(local, &path, causes);
        } else if local.trim() != local {
            causes.invalid(&path, local, "must not be padded with whitespace");
        }
        if what == "AppArmor" && local.len() > 4095 {
            causes.too_long(&path, 4095);
        }
    } else if profile.has("localhostProfile") {
        let value = if what == "seccomp" { profile.clone() } else { Value::from(local) };
        causes.invalid(&path, value, format!("can only be set when {what} type is Localhost"));
    }
}

/// `securityContext` of a container.
pub(super) fn container_security_context(
    context: &Value,
    path: &Path<'_>,
    pod: &Context<'_>,
    causes: &mut Causes,
) {
    if context.is_null() {
        return;
    }
    identifier(context, "runAsUser", path, causes);
    identifier(context, "runAsGroup", path, causes);
    if context.has("procMount") {
        optional_of(context, "procMount", &["Default", "Unmasked"], path, causes);
        if pod.host_users && context.text("procMount") == "Unmasked" {
            causes.invalid(
                &path.child("procMount"),
                "Unmasked",
                "`hostUsers` must be false to use `Unmasked`",
            );
        }
    }
    profile(context.at("seccompProfile"), "seccomp", "seccompProfile", &path.child("seccompProfile"), causes);
    if context.at("allowPrivilegeEscalation").as_bool() == Some(false) {
        if context.flag("privileged") {
            causes.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if context.at("capabilities").texts("add").any(|capability| capability == "CAP_SYS_ADMIN") {
            causes.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    profile(
        context.at("appArmorProfile"),
        "AppArmor",
        "appArmorProfile",
        &path.child("appArmorProfile"),
        causes,
    );
}

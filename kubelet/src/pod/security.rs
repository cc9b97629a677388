//! Security contexts: pod and container settings merged into what CRI takes. Pure.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile,
    SecurityContext,
};
use keelson_proto::cri;

/// Paths under /proc and /sys that an ordinary container must not see, and those it must not write: the runtime
/// default of upstream.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Before the container's name, in an annotation of the pod.
pub const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// fsGroup and the supplemental groups, in upstream's order.
pub fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

pub fn groups_policy(context: Option<&PodSecurityContext>) -> cri::SupplementalGroupsPolicy {
    match context.and_then(|c| c.supplemental_groups_policy.as_deref()) {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict,
        _ => cri::SupplementalGroupsPolicy::Merge,
    }
}

/// Which namespaces are the host's, the pod's or the container's own; `target`: id of the container that an ephemeral
/// one looks into.
pub fn namespaces(spec: &PodSpec, target: Option<String>) -> cri::NamespaceOption {
    let host = |flag: Option<bool>| {
        if flag == Some(true) { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod }
    };
    let pid = if spec.host_pid == Some(true) {
        cri::NamespaceMode::Node
    } else if target.is_some() {
        cri::NamespaceMode::Target
    } else if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: host(spec.host_network) as i32,
        ipc: host(spec.host_ipc) as i32,
        pid: pid as i32,
        target_id: target.unwrap_or_default(),
        ..Default::default()
    }
}

pub fn runtime_default() -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::RuntimeDefault as i32,
        localhost_ref: String::new(),
    }
}

fn seccomp(profile: Option<&SeccompProfile>, root: &std::path::Path) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, reference) = match profile.map(|profile| (profile.type_.as_str(), profile)) {
        Some(("RuntimeDefault", _)) => (ProfileType::RuntimeDefault, String::new()),
        Some(("Localhost", profile)) => {
            let file = root.join("seccomp").join(profile.localhost_profile.as_deref().unwrap_or_default());
            (ProfileType::Localhost, file.to_string_lossy().into_owned())
        }
        _ => (ProfileType::Unconfined, String::new()),
    };
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference }
}

/// The AppArmor profile of a container: its own, that of the annotation of old, or the pod's.
pub fn apparmor_profile(pod: &Pod, container: &Container) -> Option<AppArmorProfile> {
    if let Some(own) = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()) {
        return Some(own.clone());
    }
    let annotation = format!("{APPARMOR_ANNOTATION}{}", container.name);
    let profile = |kind: &str, name: Option<&str>| AppArmorProfile {
        type_: kind.to_owned(),
        localhost_profile: name.map(str::to_owned),
    };
    match pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(&annotation)) {
        Some(value) if value == "runtime/default" => Some(profile("RuntimeDefault", None)),
        Some(value) if value == "unconfined" => Some(profile("Unconfined", None)),
        Some(value) => value.strip_prefix("localhost/").map(|name| profile("Localhost", Some(name))),
        None => pod.spec.as_ref()?.security_context.as_ref()?.app_armor_profile.clone(),
    }
}

/// AppArmor as CRI takes it, with the name in the words of runtimes before 1.7.
fn apparmor(profile: Option<AppArmorProfile>) -> (Option<cri::SecurityProfile>, String) {
    use cri::security_profile::ProfileType;
    let Some(profile) = profile else { return (None, String::new()) };
    let name = profile.localhost_profile.unwrap_or_default();
    let (kind, reference, old) = match profile.type_.as_str() {
        "RuntimeDefault" => (ProfileType::RuntimeDefault, String::new(), "runtime/default".to_owned()),
        "Localhost" => (ProfileType::Localhost, name.clone(), format!("localhost/{name}")),
        _ => (ProfileType::Unconfined, String::new(), "unconfined".to_owned()),
    };
    (Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: reference }), old)
}

/// SELinux labels as CRI takes them.
pub fn selinux(options: Option<&SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    options.map(|options| cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    })
}

/// The user of the image, as the runtime read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub username: String,
}

/// Refuses root where the pod forbids it; the sentences are upstream's.
pub fn verify_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let spec = pod.spec.as_ref();
    let pod_context = spec.and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let non_root =
        own.and_then(|c| c.run_as_non_root).or_else(|| pod_context.and_then(|c| c.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let user = own.and_then(|c| c.run_as_user).or_else(|| pod_context.and_then(|c| c.run_as_user));
    let place = format!("(pod: {:?}, container: {})", super::describe(pod), container.name);
    match (user, image.uid, image.username.as_str()) {
        (Some(0), ..) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), ..) => Ok(()),
        (None, Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Some(_), _) | (None, None, "") => Ok(()),
        (None, None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
    }
}

/// A container's security context as CRI takes it.
pub fn context(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target: Option<String>,
    root: &std::path::Path,
) -> cri::LinuxContainerSecurityContext {
    let spec = pod.spec.clone().unwrap_or_default();
    let pod_context = spec.security_context.as_ref();
    let default = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&default);
    let user = own.run_as_user.or_else(|| pod_context.and_then(|c| c.run_as_user)).or(image.uid);
    let group = own.run_as_group.or_else(|| pod_context.and_then(|c| c.run_as_group));
    let privileged = own.privileged == Some(true);
    let profile =
        own.seccomp_profile.as_ref().or_else(|| pod_context.and_then(|c| c.seccomp_profile.as_ref()));
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let (apparmor, apparmor_name) = apparmor(apparmor_profile(pod, container));
    let labels =
        own.se_linux_options.as_ref().or_else(|| pod_context.and_then(|c| c.se_linux_options.as_ref()));
    let paths = |list: &[&str]| {
        if unmasked { Vec::new() } else { list.iter().map(|&path| path.to_owned()).collect() }
    };
    cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(|capabilities| cri::Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(&spec, target)),
        run_as_user: user.map(|value| cri::Int64Value { value }),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        run_as_group: group.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: pod_context.map(groups).unwrap_or_default(),
        supplemental_groups_policy: groups_policy(pod_context) as i32,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        selinux_options: selinux(labels),
        apparmor,
        apparmor_profile: apparmor_name,
        seccomp: Some(if privileged && profile.is_none() {
            seccomp(None, root)
        } else {
            seccomp(profile, root)
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apparmor_and_selinux_reach_the_runtime() {
        let check = |annotation: Option<&str>, own: serde_json::Value, expected: (&str, &str)| {
            let mut pod = serde_json::json!({
                "metadata": {"name": "p", "annotations": {}},
                "spec": {
                    "securityContext": {
                        "appArmorProfile": {"type": "RuntimeDefault"}, "seLinuxOptions": {"level": "s0"}},
                    "containers": [{"name": "c", "securityContext": own}]}});
            if let Some(value) = annotation {
                pod["metadata"]["annotations"][format!("{APPARMOR_ANNOTATION}c")] = value.into();
            }
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let context = context(&pod, container, &ImageUser::default(), None, std::path::Path::new("/k"));
            let level = context.selinux_options.unwrap().level;
            assert_eq!((context.apparmor_profile.as_str(), level.as_str()), expected);
            let localhost = context.apparmor.unwrap().localhost_ref;
            assert_eq!(localhost, expected.0.strip_prefix("localhost/").unwrap_or_default());
        };
        check(None, serde_json::json!({}), ("runtime/default", "s0"));
        check(Some("localhost/x"), serde_json::json!({}), ("localhost/x", "s0"));
        let own = serde_json::json!({
            "appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"},
            "seLinuxOptions": {"level": "s1"}});
        check(Some("unconfined"), own, ("localhost/mine", "s1"));
    }

    #[test]
    fn root_is_refused_where_it_is_forbidden() {
        let check =
            |pod: serde_json::Value, own: serde_json::Value, image: (Option<i64>, &str), expected: &str| {
                let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}}))
                .unwrap();
                let image = ImageUser { uid: image.0, username: image.1.into() };
                let result = verify_non_root(&pod, &pod.spec.as_ref().unwrap().containers[0], &image);
                assert_eq!(result.err().unwrap_or_default(), expected);
            };
        let on = serde_json::json!({"runAsNonRoot": true});
        let none = || serde_json::json!({});
        let place = "(pod: \"p_n(u)\", container: c)";
        check(none(), none(), (Some(0), ""), "");
        let root = format!("container has runAsNonRoot and image will run as root {place}");
        check(on.clone(), none(), (Some(0), ""), &root);
        check(on.clone(), none(), (Some(7), ""), "");
        check(on.clone(), serde_json::json!({"runAsUser": 5}), (Some(0), ""), "");
        check(on.clone(), serde_json::json!({"runAsNonRoot": false}), (Some(0), ""), "");
        let policy = format!("container's runAsUser breaks non-root policy {place}");
        check(none(), serde_json::json!({"runAsNonRoot": true, "runAsUser": 0}), (None, ""), &policy);
        let named = format!(
            "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root {place}"
        );
        check(on, none(), (None, "www"), &named);
    }
}

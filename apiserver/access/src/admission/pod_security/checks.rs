//! The Pod Security Standards' checks, by level and minor version.
//!
//! Pure. Wording and order are upstream's, because people see them in refusals and warnings.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::pod_references::{containers, volumes};
use crate::state::{items, text, texts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The newest version whose rules are known here.
pub const LATEST_MINOR: u32 = 36;

/// Reason and detail.
type Violation = Option<(&'static str, String)>;
type Check = fn(&Value, u32) -> Violation;

/// Each with the minor version from which a restricted check takes its place.
const BASELINE: [(Check, u32); 12] = [
    (app_armor, u32::MAX),
    (baseline_capabilities, 22),
    (host_namespaces, u32::MAX),
    (host_path_volumes, 0),
    (host_ports, u32::MAX),
    (probe_hosts, u32::MAX),
    (privileged, u32::MAX),
    (baseline_proc_mount, 35),
    (se_linux, u32::MAX),
    (baseline_seccomp, 19),
    (sysctls, u32::MAX),
    (windows_host_process, u32::MAX),
];

/// Each with the minor version it came with.
const RESTRICTED: [(Check, u32); 7] = [
    (privilege_escalation, 8),
    (restricted_capabilities, 22),
    (proc_mount, 35),
    (restricted_volumes, 0),
    (run_as_non_root, 0),
    (run_as_user, 23),
    (restricted_seccomp, 19),
];

/// What in a pod (or pod template) violates a level; None when nothing does.
#[must_use]
pub fn violations(pod: &Value, level: Level, minor: u32) -> Option<String> {
    let minor = minor.min(LATEST_MINOR);
    let baseline = BASELINE.iter().filter(|(_, replaced)| level == Level::Baseline || minor < *replaced);
    let restricted = RESTRICTED.iter().filter(|(_, since)| level == Level::Restricted && minor >= *since);
    if level == Level::Privileged {
        return None;
    }
    let found: Vec<String> = baseline
        .chain(restricted)
        .filter_map(|(check, _)| check(pod, minor))
        .map(
            |(reason, detail)| {
                if detail.is_empty() { reason.to_owned() } else { format!("{reason} ({detail})") }
            },
        )
        .collect();
    (!found.is_empty()).then(|| found.join(", "))
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(count: usize, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`; empty for none.
fn named(containers: &[&str]) -> String {
    if containers.is_empty() {
        return String::new();
    }
    format!("{} {}", plural(containers.len(), "container", "containers"), quoted(containers.iter().copied()))
}

/// `pod`, `container "a"`, or both.
fn setters(pod: bool, containers: &[&str]) -> Option<String> {
    match (pod, containers) {
        (false, []) => None,
        (true, []) => Some("pod".into()),
        (false, containers) => Some(named(containers)),
        (true, containers) => Some(format!("pod and {}", named(containers))),
    }
}

fn offenders<'a>(pod: &'a Value, offends: impl Fn(&'a Value) -> bool) -> Vec<&'a str> {
    containers(pod).filter(|container| offends(container)).map(|container| text(&container["name"])).collect()
}

fn pod_context(pod: &Value) -> &Value {
    &pod["spec"]["securityContext"]
}

fn is_windows(pod: &Value) -> bool {
    pod["spec"]["os"]["name"] == "windows"
}

/// Root in a user namespace of its own is nobody outside.
fn has_user_namespace(pod: &Value) -> bool {
    pod["spec"]["hostUsers"] == false
}

fn app_armor(pod: &Value, _minor: u32) -> Violation {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |context: &Value| -> Option<String> {
        let profile = &context["appArmorProfile"];
        let kind = text(&profile["type"]);
        (profile.is_object() && !["RuntimeDefault", "Localhost"].contains(&kind)).then(|| kind.to_owned())
    };
    let mut values: BTreeSet<String> = bad(pod_context(pod)).into_iter().collect();
    let mut from: Vec<String> = values.iter().map(|_| "pod".to_owned()).collect();
    let containers_bad = offenders(pod, |container| bad(&container["securityContext"]).is_some());
    values.extend(containers(pod).filter_map(|container| bad(&container["securityContext"])));
    if !containers_bad.is_empty() {
        from.push(named(&containers_bad));
    }
    let annotations: BTreeSet<String> = pod["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| {
            let value = text(value);
            let allowed = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            key.starts_with(ANNOTATION) && !allowed
        })
        .map(|(key, value)| format!("{key}={:?}", text(value)))
        .collect();
    if !annotations.is_empty() {
        from.push(plural(annotations.len(), "annotation", "annotations").to_owned());
    }
    if from.is_empty() {
        return None;
    }
    let values: Vec<&str> = values.iter().chain(&annotations).map(String::as_str).collect();
    let reason = if values.len() == 1 { "forbidden AppArmor profile" } else { "forbidden AppArmor profiles" };
    let detail = format!("{} must not set AppArmor profile type to {}", from.join(" and "), quoted(values));
    Some((reason, detail))
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    texts(&container["securityContext"]["capabilities"]["add"])
}

fn baseline_capabilities(pod: &Value, _minor: u32) -> Violation {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let bad = |container| added(container).filter(|capability| !ALLOWED.contains(capability));
    let from = offenders(pod, |container| bad(container).next().is_some());
    let values: BTreeSet<&str> = containers(pod).flat_map(bad).collect();
    (!from.is_empty()).then(|| {
        let detail = format!(
            "{} must not include {} in securityContext.capabilities.add",
            named(&from),
            quoted(values)
        );
        ("non-default capabilities", detail)
    })
}

fn host_namespaces(pod: &Value, _minor: u32) -> Violation {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod["spec"][*field] == true);
    let set: Vec<String> = set.map(|field| format!("{field}=true")).collect();
    (!set.is_empty()).then(|| ("host namespaces", set.join(", ")))
}

fn host_path_volumes(pod: &Value, _minor: u32) -> Violation {
    let names: Vec<&str> = volumes(pod)
        .iter()
        .filter(|volume| volume["hostPath"].is_object())
        .map(|volume| text(&volume["name"]))
        .collect();
    (!names.is_empty()).then(|| {
        let volumes = plural(names.len(), "volume", "volumes");
        ("hostPath volumes", format!("{volumes} {}", quoted(names)))
    })
}

fn host_ports(pod: &Value, _minor: u32) -> Violation {
    let ports = |container: &Value| -> Vec<String> {
        let ports = items(&container["ports"]).iter().filter_map(|port| port["hostPort"].as_i64());
        ports.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let from = offenders(pod, |container| !ports(container).is_empty());
    let values: BTreeSet<String> = containers(pod).flat_map(ports).collect();
    (!from.is_empty()).then(|| {
        let uses = plural(from.len(), "uses", "use");
        let what = plural(values.len(), "hostPort", "hostPorts");
        let values = values.into_iter().collect::<Vec<_>>().join(", ");
        ("hostPort", format!("{} {uses} {what} {values}", named(&from)))
    })
}

fn probe_hosts(pod: &Value, minor: u32) -> Violation {
    if minor < 34 {
        return None;
    }
    let hosts = |container| -> Vec<&str> {
        let container: &Value = container;
        let lifecycle = &container["lifecycle"];
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|probe| &container[probe]);
        probes
            .into_iter()
            .chain([&lifecycle["postStart"], &lifecycle["preStop"]])
            .flat_map(|handler| [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]])
            .filter_map(Value::as_str)
            .filter(|host| !host.is_empty())
            .collect()
    };
    let from: BTreeSet<&str> = offenders(pod, |container| !hosts(container).is_empty()).into_iter().collect();
    let values: BTreeSet<&str> = containers(pod).flat_map(hosts).collect();
    (!from.is_empty()).then(|| {
        let from: Vec<&str> = from.into_iter().collect();
        let uses = plural(from.len(), "uses", "use");
        let what = plural(values.len(), "probe or lifecycle host", "probe or lifecycle hosts");
        ("probe or lifecycle host", format!("{} {uses} {what} {}", named(&from), quoted(values)))
    })
}

fn privileged(pod: &Value, _minor: u32) -> Violation {
    let from = offenders(pod, |container| container["securityContext"]["privileged"] == true);
    (!from.is_empty())
        .then(|| ("privileged", format!("{} must not set securityContext.privileged=true", named(&from))))
}

fn baseline_proc_mount(pod: &Value, minor: u32) -> Violation {
    if minor >= 35 && has_user_namespace(pod) { None } else { proc_mount(pod, minor) }
}

fn proc_mount(pod: &Value, _minor: u32) -> Violation {
    let bad = |container| -> Option<&str> {
        let container: &Value = container;
        container["securityContext"]["procMount"].as_str().filter(|kind| *kind != "Default")
    };
    let from = offenders(pod, |container| bad(container).is_some());
    let values: BTreeSet<&str> = containers(pod).filter_map(bad).collect();
    (!from.is_empty()).then(|| {
        (
            "procMount",
            format!("{} must not set securityContext.procMount to {}", named(&from), quoted(values)),
        )
    })
}

fn se_linux(pod: &Value, minor: u32) -> Violation {
    const ALLOWED: [&str; 5] =
        ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let allowed = if minor >= 31 { &ALLOWED[..] } else { &ALLOWED[..4] };
    let options = |context| -> &Value {
        let context: &Value = context;
        &context["seLinuxOptions"]
    };
    let bad = |options: &Value| {
        !allowed.contains(&text(&options["type"]))
            || !text(&options["user"]).is_empty()
            || !text(&options["role"]).is_empty()
    };
    let from = setters(
        bad(options(pod_context(pod))),
        &offenders(pod, |container| bad(options(&container["securityContext"]))),
    )?;
    let all = || {
        let contexts = containers(pod).map(|container| options(&container["securityContext"]));
        std::iter::once(options(pod_context(pod))).chain(contexts)
    };
    let types: BTreeSet<&str> =
        all().map(|options| text(&options["type"])).filter(|kind| !allowed.contains(kind)).collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(types)));
    }
    for field in ["user", "role"] {
        if all().any(|options| !text(&options[field]).is_empty()) {
            data.push(format!("{field} may not be set"));
        }
    }
    Some((
        "seLinuxOptions",
        format!("{from} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")),
    ))
}

/// A profile that is set and not allowed.
fn bad_seccomp(context: &Value) -> Option<&str> {
    let profile = &context["seccompProfile"];
    let kind = text(&profile["type"]);
    (profile.is_object() && !["Localhost", "RuntimeDefault"].contains(&kind)).then_some(kind)
}

fn baseline_seccomp(pod: &Value, minor: u32) -> Violation {
    if minor < 19 {
        return seccomp_annotations(pod);
    }
    explicit_seccomp(pod)
}

fn explicit_seccomp(pod: &Value) -> Violation {
    let own = bad_seccomp(pod_context(pod));
    let from = offenders(pod, |container| bad_seccomp(&container["securityContext"]).is_some());
    let values: BTreeSet<&str> = own
        .into_iter()
        .chain(containers(pod).filter_map(|container| bad_seccomp(&container["securityContext"])))
        .collect();
    let from = setters(own.is_some(), &from)?;
    let detail = format!("{from} must not set securityContext.seccompProfile.type to {}", quoted(values));
    Some(("seccompProfile", detail))
}

fn seccomp_annotations(pod: &Value) -> Violation {
    let of_containers = containers(pod).map(|container| {
        format!("container.seccomp.security.alpha.kubernetes.io/{}", text(&container["name"]))
    });
    let forbidden: BTreeSet<String> = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned())
        .chain(of_containers)
        .filter_map(|key| {
            let value = pod["metadata"]["annotations"][&key].as_str()?;
            let allowed =
                ["runtime/default", "docker/default"].contains(&value) || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}={value:?}"))
        })
        .collect();
    (!forbidden.is_empty()).then(|| {
        let annotations = plural(forbidden.len(), "annotation", "annotations");
        let list = forbidden.into_iter().collect::<Vec<_>>().join(", ");
        ("seccompProfile", format!("forbidden {annotations} {list}"))
    })
}

fn restricted_seccomp(pod: &Value, minor: u32) -> Violation {
    if minor >= 25 && is_windows(pod) {
        return None;
    }
    if let Some(violation) = explicit_seccomp(pod) {
        return Some(violation);
    }
    if pod_context(pod)["seccompProfile"].is_object() {
        return None;
    }
    let from = offenders(pod, |container| !container["securityContext"]["seccompProfile"].is_object());
    (!from.is_empty()).then(|| {
        let detail = format!(
            r#"pod or {} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#,
            named(&from)
        );
        ("seccompProfile", detail)
    })
}

fn sysctls(pod: &Value, minor: u32) -> Violation {
    /// Each with the minor version that allowed it.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let forbidden: Vec<&str> = items(&pod_context(pod)["sysctls"])
        .iter()
        .map(|sysctl| text(&sysctl["name"]))
        .filter(|name| !ALLOWED.iter().any(|(allowed, since)| allowed == name && minor >= *since))
        .collect();
    (!forbidden.is_empty()).then(|| ("forbidden sysctls", forbidden.join(", ")))
}

fn windows_host_process(pod: &Value, _minor: u32) -> Violation {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let from =
        setters(bad(pod_context(pod)), &offenders(pod, |container| bad(&container["securityContext"])))?;
    Some(("hostProcess", format!("{from} must not set securityContext.windowsOptions.hostProcess=true")))
}

fn privilege_escalation(pod: &Value, minor: u32) -> Violation {
    if minor >= 25 && is_windows(pod) {
        return None;
    }
    let from = offenders(pod, |container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    (!from.is_empty()).then(|| {
        let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&from));
        ("allowPrivilegeEscalation != false", detail)
    })
}

fn restricted_capabilities(pod: &Value, minor: u32) -> Violation {
    if minor >= 25 && is_windows(pod) {
        return None;
    }
    let keeping = offenders(pod, |container| {
        !texts(&container["securityContext"]["capabilities"]["drop"]).any(|capability| capability == "ALL")
    });
    let bad = |container| added(container).filter(|capability| *capability != "NET_BIND_SERVICE");
    let adding = offenders(pod, |container| bad(container).next().is_some());
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(r#"{} must set securityContext.capabilities.drop=["ALL"]"#, named(&keeping)));
    }
    if !adding.is_empty() {
        let values: BTreeSet<&str> = containers(pod).flat_map(bad).collect();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            named(&adding),
            quoted(values)
        ));
    }
    (!details.is_empty()).then(|| ("unrestricted capabilities", details.join("; ")))
}

fn restricted_volumes(pod: &Value, _minor: u32) -> Violation {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let bad: Vec<&Value> =
        volumes(pod).iter().filter(|volume| !ALLOWED.iter().any(|kind| volume[*kind].is_object())).collect();
    let kinds: BTreeSet<&str> = bad
        .iter()
        .map(|volume| {
            let mut fields = volume.as_object().into_iter().flatten();
            fields.find(|(field, _)| *field != "name").map_or("unknown", |(field, _)| field.as_str())
        })
        .collect();
    (!bad.is_empty()).then(|| {
        let detail = format!(
            "{} {} {} {} {}",
            plural(bad.len(), "volume", "volumes"),
            quoted(bad.iter().map(|volume| text(&volume["name"]))),
            plural(bad.len(), "uses", "use"),
            plural(kinds.len(), "restricted volume type", "restricted volume types"),
            quoted(kinds)
        );
        ("restricted volume types", detail)
    })
}

fn run_as_non_root(pod: &Value, minor: u32) -> Violation {
    if minor >= 35 && has_user_namespace(pod) {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    let of_pod = &pod_context(pod)["runAsNonRoot"];
    let explicit = offenders(pod, |container| container["securityContext"]["runAsNonRoot"] == false);
    if let Some(from) = setters(*of_pod == false, &explicit) {
        return Some((REASON, format!("{from} must not set securityContext.runAsNonRoot=false")));
    }
    let implicit = offenders(pod, |container| !container["securityContext"]["runAsNonRoot"].is_boolean());
    (*of_pod != true && !implicit.is_empty())
        .then(|| (REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&implicit))))
}

fn run_as_user(pod: &Value, minor: u32) -> Violation {
    if minor >= 35 && has_user_namespace(pod) {
        return None;
    }
    let from = setters(
        pod_context(pod)["runAsUser"] == 0,
        &offenders(pod, |container| container["securityContext"]["runAsUser"] == 0),
    )?;
    Some(("runAsUser=0", format!("{from} must not set runAsUser=0")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(spec: Value, level: Level, minor: u32, expected: Option<&str>) {
        let pod = json!({"spec": spec});
        assert_eq!(violations(&pod, level, minor).as_deref(), expected, "{pod}");
    }

    #[test]
    fn baseline() {
        let baseline =
            |spec: Value, expected: Option<&str>| check(spec, Level::Baseline, LATEST_MINOR, expected);
        baseline(json!({"containers": [{"name": "a"}]}), None);
        baseline(
            json!({"hostNetwork": true, "hostPID": true, "volumes": [{"name": "v", "hostPath": {}}],
                "containers": [{"name": "a", "securityContext": {"privileged": true,
                    "capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}}, "ports": [{"hostPort": 80}]}]}),
            Some(
                r#"non-default capabilities (container "a" must not include "SYS_ADMIN" in securityContext.capabilities.add), host namespaces (hostNetwork=true, hostPID=true), hostPath volumes (volume "v"), hostPort (container "a" uses hostPort 80), privileged (container "a" must not set securityContext.privileged=true)"#,
            ),
        );
        baseline(
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}],
                "seLinuxOptions": {"type": "x", "user": "u"}}}),
            Some(
                r#"seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "x"; user may not be set), forbidden sysctls (kernel.msgmax)"#,
            ),
        );
        baseline(
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "Unconfined"}},
                "containers": [{"name": "a", "securityContext": {"procMount": "Unmasked"},
                    "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]}),
            Some(
                r#"forbidden AppArmor profile (pod must not set AppArmor profile type to "Unconfined"), probe or lifecycle host (container "a" uses probe or lifecycle host "10.0.0.1"), procMount (container "a" must not set securityContext.procMount to "Unmasked"), seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            ),
        );
    }

    #[test]
    fn restricted() {
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        check(good, Level::Restricted, LATEST_MINOR, None);
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}], "volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}]}),
            Level::Restricted,
            LATEST_MINOR,
            Some(
                r#"allowPrivilegeEscalation != false (containers "a", "b" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers "a", "b" must set securityContext.capabilities.drop=["ALL"]), restricted volume types (volumes "v", "w" use restricted volume types "hostPath", "nfs"), runAsNonRoot != true (pod or containers "a", "b" must set securityContext.runAsNonRoot=true), seccompProfile (pod or containers "a", "b" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
            ),
        );
        check(
            json!({"securityContext": {"runAsUser": 0}, "containers": []}),
            Level::Restricted,
            LATEST_MINOR,
            Some("runAsUser=0 (pod must not set runAsUser=0)"),
        );
        check(json!({"hostUsers": false, "securityContext": {"runAsUser": 0}}), Level::Restricted, 35, None);
    }

    #[test]
    fn older_versions_are_laxer() {
        let probe = json!({"containers": [{"name": "a", "livenessProbe": {"tcpSocket": {"host": "x"}}}]});
        check(probe, Level::Baseline, 33, None);
        let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
        check(sysctl.clone(), Level::Baseline, 31, Some("forbidden sysctls (net.ipv4.tcp_rmem)"));
        check(sysctl, Level::Privileged, 31, None);
        check(
            json!({"containers": [{"name": "a"}]}),
            Level::Restricted,
            7,
            Some(r#"runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true)"#),
        );
    }
}

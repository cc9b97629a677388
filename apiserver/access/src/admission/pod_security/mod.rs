//! PodSecurity: holds pods to the level their namespace's labels ask for, and warns of pods and
//! workloads that would not meet the `warn` level.
//!
//! Warnings are made while mutating, where they can be attached; refusals while validating, after
//! every change. Levels without labels are privileged; exemptions are not configurable.

pub mod checks;

use std::sync::Arc;

use serde_json::Value;

use self::checks::{LATEST_MINOR, Level, violations};
use super::{Admission, AdmissionRequest, Admitted, Operation, admitted};
use crate::state::{State, items, text};
use crate::status::{Details, Status};

const PREFIX: &str = "pod-security.kubernetes.io/";

pub struct PodSecurity {
    pub state: Arc<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LevelVersion {
    level: Level,
    /// None: the latest.
    minor: Option<u32>,
}

impl LevelVersion {
    fn violations(self, pod: &Value) -> Option<String> {
        violations(pod, self.level, self.minor.unwrap_or(LATEST_MINOR))
    }
}

impl std::fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: LevelVersion,
    warn: LevelVersion,
}

/// A label that does not parse: key, value, what it must be.
type LabelError = (String, String, &'static str);

fn parse_level(level: &str) -> Option<Level> {
    match level {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(version: &str) -> Option<Option<u32>> {
    if version == "latest" {
        return Some(None);
    }
    let minor = version.strip_prefix("v1.")?;
    let canonical = minor == "0" || !minor.starts_with(['0', '+']);
    canonical.then(|| minor.parse().ok()).flatten().map(Some)
}

/// Policy of a namespace. Broken labels enforce the strictest, but do not warn.
fn policy<'a>(labels: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> (Policy, Vec<LabelError>) {
    let mut errors = Vec::new();
    let mut mode = |mode: &str| {
        let find = |key: &str| labels.clone().find(|(label, _)| *label == key).map(|(_, value)| value);
        let mut error = |key: &str, value: &str, must: &'static str| {
            errors.push((format!("{PREFIX}{key}"), value.to_owned(), must));
        };
        let level = find(mode).map(|value| {
            parse_level(value).ok_or_else(|| {
                error(mode, value, "must be one of privileged, baseline, restricted");
            })
        });
        let version_key = format!("{mode}-version");
        let version = find(&version_key).map(|value| {
            parse_version(value).unwrap_or_else(|| {
                error(&version_key, value, "must be \"latest\" or \"v1.x\"");
                None
            })
        });
        (level, version)
    };
    let (enforce_level, enforce_version) = mode("enforce");
    // Validated as the others; there is no audit log to write to.
    let _audit = mode("audit");
    let (warn_level, warn_version) = mode("warn");
    let enforce = LevelVersion {
        level: match enforce_level {
            None => Level::Privileged,
            Some(Ok(level)) => level,
            Some(Err(())) => Level::Restricted,
        },
        minor: enforce_version.flatten(),
    };
    let mut warn = LevelVersion {
        level: warn_level.and_then(Result::ok).unwrap_or(Level::Privileged),
        minor: warn_version.flatten(),
    };
    if warn_level.is_none() && enforce_level.is_some_and(|level| level.is_ok()) && enforce.level > warn.level
    {
        warn.level = enforce.level;
        if warn_version.is_none() {
            warn.minor = enforce.minor;
        }
    }
    (Policy { enforce, warn }, errors)
}

impl PodSecurity {
    fn policy(&self, namespace: &str) -> Option<Policy> {
        let namespace = self.state.namespace(namespace)?;
        Some(policy(namespace.pod_security.iter().map(|(label, value)| (&**label, &**value))).0)
    }

    fn warn(&self, request: &mut AdmissionRequest<'_>) {
        let Some(object) = request.object.as_deref() else { return };
        let is_pod = request.is("", "pods");
        let template =
            if is_pod { Some(object) } else { pod_template(request.group, request.resource, object) };
        let (Some(pod), Some(policy)) = (template, self.policy(request.namespace)) else { return };
        if is_pod && !evaluates_pod(request) {
            return;
        }
        if !is_pod && !request.subresource.is_empty() {
            return;
        }
        if is_pod && policy.enforce.violations(pod).is_some() {
            return;
        }
        if let Some(found) = policy.warn.violations(pod) {
            let warning = format!("would violate PodSecurity \"{}\": {found}", policy.warn);
            request.warnings.push(warning);
        }
    }

    fn enforce(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        if !evaluates_pod(request) {
            return Ok(());
        }
        // NamespaceLifecycle has seen the namespace; if it is gone now, the strictest holds.
        let enforce = match self.policy(request.namespace) {
            Some(policy) => policy.enforce,
            None => {
                return Err(Status::internal(format!("failed to lookup namespace {:?}", request.namespace)));
            }
        };
        match enforce.violations(pod) {
            Some(found) => {
                Err(request.forbidden(format_args!("violates PodSecurity \"{enforce}\": {found}")))
            }
            None => Ok(()),
        }
    }
}

/// Whether this write of a pod changes anything the levels are about.
fn evaluates_pod(request: &AdmissionRequest<'_>) -> bool {
    const IGNORED: [&str; 8] =
        ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
    if IGNORED.contains(&request.subresource) {
        return false;
    }
    let (Some(new), Some(old)) = (request.object.as_deref(), request.old_object) else { return true };
    request.operation != Operation::Update || significant_update(new, old)
}

fn significant_update(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, field: &str| -> Vec<(String, String)> {
        let containers = items(&pod["spec"][field]).iter();
        containers.map(|one| (text(&one["name"]).to_owned(), text(&one["image"]).to_owned())).collect()
    };
    let by_place = |field: &str| {
        let (new, old) = (images(new, field), images(old, field));
        new.len() != old.len() || new.iter().zip(&old).any(|(new, old)| new.1 != old.1)
    };
    let known = images(old, "ephemeralContainers");
    by_place("containers")
        || by_place("initContainers")
        || images(new, "ephemeralContainers").iter().any(|container| !known.contains(container))
}

fn pod_template<'a>(group: &str, resource: &str, object: &'a Value) -> Option<&'a Value> {
    let template = match (group, resource) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then_some(template)
}

fn check_namespace(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let errors = |namespace: Option<&Value>| {
        let labels = namespace.and_then(|namespace| namespace["metadata"]["labels"].as_object());
        let labels = labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str()?)));
        policy(labels.collect::<Vec<_>>().into_iter()).1
    };
    let found = errors(request.object.as_deref());
    if found.is_empty() || (request.operation == Operation::Update && found == errors(request.old_object)) {
        return Ok(());
    }
    let causes: Vec<(String, String, String)> = found
        .into_iter()
        .map(|(label, value, must)| {
            let message = format!("Invalid value: {value:?}: {must}");
            ("FieldValueInvalid".to_owned(), message, format!("metadata.labels[{label}]"))
        })
        .collect();
    let list: Vec<String> = causes.iter().map(|(_, message, field)| format!("{field}: {message}")).collect();
    let list = if let [one] = list.as_slice() { one.clone() } else { format!("[{}]", list.join(", ")) };
    Err(Status {
        code: 422,
        reason: "Invalid",
        message: format!("Namespace {:?} is invalid: {list}", request.name),
        details: Some(Box::new(Details {
            name: request.name.to_owned(),
            kind: "Namespace".into(),
            causes,
            ..Details::default()
        })),
    })
}

impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        self.warn(request);
        admitted()
    }

    fn validate<'a>(&'a self, request: &'a AdmissionRequest<'_>) -> Admitted<'a> {
        let result = match (request.group, request.resource) {
            ("", "pods") => self.enforce(request),
            ("", "namespaces") if request.subresource.is_empty() => check_namespace(request),
            _ => Ok(()),
        };
        Box::pin(std::future::ready(result))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, request, validate};
    use super::*;
    use crate::observed::{Event, Observer, Resource};
    use serde_json::json;

    fn plugin(labels: Value) -> PodSecurity {
        let state = State::default();
        let namespace = json!({"metadata": {"name": "ns", "labels": labels}});
        state.observe(Resource::Namespaces, Event::Upsert(&namespace));
        PodSecurity { state: Arc::new(state) }
    }

    fn host_pod() -> Value {
        json!({"spec": {"hostNetwork": true, "containers": []}})
    }

    fn pods<'a>() -> Given<'a> {
        Given { kind: "Pod", resource: "pods", namespace: "ns", name: "p", ..Given::default() }
    }

    #[test]
    fn enforces_the_namespaces_level() {
        let check = |labels: Value, given: Given<'_>, expected: Option<&str>| {
            let result = validate(&plugin(labels), &given, host_pod());
            assert_eq!(result.err().map(|status| status.message).as_deref(), expected);
        };
        let enforce = |level: &str| json!({"pod-security.kubernetes.io/enforce": level});
        check(json!({}), pods(), None);
        check(enforce("privileged"), pods(), None);
        check(
            enforce("baseline"),
            pods(),
            Some(
                r#"pods "p" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)"#,
            ),
        );
        check(
            json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.30"}),
            pods(),
            Some(
                r#"pods "p" is forbidden: violates PodSecurity "baseline:v1.30": host namespaces (hostNetwork=true)"#,
            ),
        );
        check(
            enforce("bogus"),
            pods(),
            Some(
                r#"pods "p" is forbidden: violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)"#,
            ),
        );
        check(
            enforce("baseline"),
            Given { operation: Operation::Update, old: Some(host_pod()), ..pods() },
            None,
        );
        check(enforce("baseline"), Given { subresource: "status", ..pods() }, None);
    }

    #[test]
    fn warns_of_workloads_and_of_pods_that_pass() {
        let check = |labels: Value, given: Given<'_>, mut object: Value, expected: &[&str]| {
            let plugin = plugin(labels);
            let mut request = request(&given, &mut object);
            plugin.warn(&mut request);
            assert_eq!(request.warnings, expected);
        };
        let deployments =
            || Given { group: "apps", resource: "deployments", namespace: "ns", ..Given::default() };
        let deployment = || json!({"spec": {"template": host_pod()}});
        let warning = r#"would violate PodSecurity "baseline:latest": host namespaces (hostNetwork=true)"#;
        let warn = || json!({"pod-security.kubernetes.io/warn": "baseline"});
        let enforce = || json!({"pod-security.kubernetes.io/enforce": "baseline"});
        check(warn(), deployments(), deployment(), &[warning]);
        check(enforce(), deployments(), deployment(), &[warning]);
        check(json!({}), deployments(), deployment(), &[]);
        check(warn(), pods(), host_pod(), &[warning]);
        check(enforce(), pods(), host_pod(), &[]);
    }

    #[test]
    fn validates_labels() {
        let check = |key: &str, value: &str, expected: Option<&str>| {
            let given = Given { kind: "Namespace", resource: "namespaces", name: "ns", ..Given::default() };
            let namespace = json!({"metadata": {"labels": {key: value}}});
            let result = validate(&plugin(json!({})), &given, namespace);
            assert_eq!(result.err().map(|status| status.message).as_deref(), expected, "{key}={value}");
        };
        check("pod-security.kubernetes.io/enforce", "baseline", None);
        check("pod-security.kubernetes.io/audit-version", "v1.36", None);
        check(
            "pod-security.kubernetes.io/enforce",
            "strict",
            Some(
                r#"Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#,
            ),
        );
        check(
            "pod-security.kubernetes.io/warn-version",
            "v1.036",
            Some(
                r#"Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: "v1.036": must be "latest" or "v1.x""#,
            ),
        );
    }
}

//! Ingresses and IngressClasses.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    equality::equal,
    fields::Fields,
    kind::{Column, Spec, name, status},
    names, rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &[name("ing")],
    subresources: &[status("networking.k8s.io", "Ingress")],
    storage_prefix: Some("ingress"),
    columns: COLUMNS,
    strategy: &Ingress,
    generation: true,
    ..Spec::STORED
};

pub(crate) const CLASS: Spec = Spec {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    namespaced: false,
    storage_prefix: Some("ingressclasses"),
    columns: CLASS_COLUMNS,
    strategy: &IngressClass,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Class", "The class that takes care of it."),
    text("Hosts", "Hosts that its rules are for."),
    text("Address", "Addresses of its load balancers."),
    text("Ports", "Ports that it opens."),
    AGE,
];

const CLASS_COLUMNS: &[Column] = &[
    NAME,
    text("Controller", "The controller that takes care of its ingresses."),
    text("Parameters", "What configures the controller."),
    AGE,
];

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

struct Ingress;

impl Strategy for Ingress {
    fn prepare_for_create(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fields.insert("status".to_owned(), serde_json::json!({"loadBalancer": {}}));
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let annotation = object.at("metadata").at("annotations");
        causes.extend(self.validate_update(object, &Value::Null));
        if annotation.has(CLASS_ANNOTATION)
            && object.at("spec").has("ingressClassName")
            && annotation.text(CLASS_ANNOTATION) != object.at("spec").text("ingressClassName")
        {
            causes.invalid(
                // Without `metadata`, as upstream has it.
                &Path::new("annotations").child(CLASS_ANNOTATION),
                annotation.text(CLASS_ANNOTATION),
                "must match `ingressClassName` when both are specified",
            );
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (new.at("spec"), Path::new("spec"));
        if spec.list("rules").is_empty() && !spec.has("defaultBackend") {
            causes.invalid(
                &path,
                spec.at("rules").clone(),
                "either `defaultBackend` or `rules` must be specified",
            );
        }
        if spec.has("defaultBackend") {
            backend(spec.at("defaultBackend"), &path.child("defaultBackend"), &mut causes);
        }
        for (index, rule) in spec.list("rules").iter().enumerate() {
            let path = path.child("rules");
            rule_causes(rule, &path.index(index), &mut causes);
        }
        for (index, tls) in spec.list("tls").iter().enumerate() {
            let path = path.child("tls");
            let path = path.index(index);
            for (index, host) in tls.texts("hosts").enumerate() {
                causes.syntax(&path.child("hosts").index(index), host, host_messages(host));
            }
            let secret = tls.text("secretName");
            if !secret.is_empty() {
                causes.syntax(&path.child("secretName"), secret, names::dns_subdomain(secret));
            }
        }
        let class = spec.text("ingressClassName");
        if spec.has("ingressClassName") {
            causes.syntax(&path.child("ingressClassName"), class, names::dns_subdomain(class));
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = object.at("spec");
        let class = match spec.text("ingressClassName") {
            "" => object.at("metadata").at("annotations").text(CLASS_ANNOTATION),
            class => class,
        };
        let addresses: BTreeSet<&str> =
            object
                .at("status")
                .at("loadBalancer")
                .list("ingress")
                .iter()
                .map(|ingress| {
                    if ingress.text("ip").is_empty() { ingress.text("hostname") } else { ingress.text("ip") }
                })
                .filter(|address| !address.is_empty())
                .collect();
        vec![
            columns::name(object),
            columns::or_none(class.to_owned()).into(),
            hosts_text(spec).into(),
            addresses.into_iter().collect::<Vec<_>>().join(",").into(),
            if spec.list("tls").is_empty() { "80" } else { "80, 443" }.into(),
            columns::age(object, now),
        ]
    }
}

fn hosts_text(spec: &Value) -> String {
    const SHOWN: usize = 3;
    let hosts: Vec<&str> =
        spec.list("rules").iter().map(|rule| rule.text("host")).filter(|host| !host.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", hosts[..SHOWN].join(","), count - SHOWN),
        _ => hosts.join(","),
    }
}

fn host_messages(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns_subdomain(host) }
}

fn rule_causes(rule: &Value, path: &Path<'_>, causes: &mut Causes) {
    let host = rule.text("host");
    if !host.is_empty() {
        if rules::parse_ip(host).is_some() {
            causes.invalid(&path.child("host"), host, "must be a DNS name, not an IP address");
        } else {
            causes.syntax(&path.child("host"), host, host_messages(host));
        }
    }
    if !rule.has("http") {
        return;
    }
    let path = path.child("http");
    let path = path.child("paths");
    let paths = rule.at("http").list("paths");
    if paths.is_empty() {
        causes.required(&path, "");
    }
    for (index, item) in paths.iter().enumerate() {
        let path = path.index(index);
        let value = item.text("path");
        if !item.has("pathType") {
            causes.required(&path.child("pathType"), "pathType must be specified");
            continue;
        }
        match item.text("pathType") {
            "Exact" | "Prefix" => {
                if !value.starts_with('/') {
                    causes.invalid(&path.child("path"), value, "must be an absolute path");
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if value.contains(bad) {
                        causes.invalid(&path.child("path"), value, format!("must not contain '{bad}'"));
                    }
                }
                for bad in ["/..", "/."] {
                    if value.ends_with(bad) {
                        causes.invalid(&path.child("path"), value, format!("cannot end with '{bad}'"));
                    }
                }
            }
            "ImplementationSpecific" => {
                if !value.is_empty() && !value.starts_with('/') {
                    causes.invalid(&path.child("path"), value, "must be an absolute path");
                }
            }
            other => causes.not_supported(
                &path.child("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            ),
        }
        backend(item.at("backend"), &path.child("backend"), causes);
    }
}

fn backend(backend: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (resource, service) = (backend.has("resource"), backend.at("service"));
    match (resource, service.is_null()) {
        (true, false) => causes.invalid(path, "", "cannot set both resource and service backends"),
        (true, true) => {
            for field in ["kind", "name"] {
                if backend.at("resource").text(field).is_empty() {
                    causes.required(&path.child("resource").child(field), "");
                }
            }
        }
        (false, true) => {
            causes.invalid(path, "", "resource or service backend is required");
        }
        (false, false) => {
            let (backend, path) = (path, path.child("service"));
            let (name, port) = (service.text("name"), service.at("port"));
            if name.is_empty() {
                causes.required(&path.child("name"), "");
            } else {
                causes.syntax(&path.child("name"), name, names::dns1035_label(name));
            }
            let path = path.child("port");
            match (port.text("name"), port.int("number").unwrap_or(0)) {
                ("", 0) => causes.required(backend, "port name or number is required"),
                ("", number) => rules::port_number(number, &path.child("number"), causes),
                (name, 0) => causes.syntax(&path.child("name"), name, names::port_name(name)),
                _ => causes.invalid(backend, "", "cannot set both port name & port number"),
            }
        }
    }
}

struct IngressClass;

impl Strategy for IngressClass {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        let controller = spec.text("controller");
        if controller.len() > 250 {
            causes.too_long(&path.child("controller"), 250);
        }
        match controller.split_once('/') {
            _ if controller.is_empty() => causes.required(&path.child("controller"), ""),
            Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
                causes.syntax(&path.child("controller"), host, names::dns_subdomain(host));
            }
            _ => causes.invalid(
                &path.child("controller"),
                controller,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        }
        let parameters = spec.at("parameters");
        if !parameters.is_null() {
            let path = path.child("parameters");
            for field in ["kind", "name"] {
                if parameters.text(field).is_empty() {
                    causes.required(&path.child(field), "");
                }
            }
            match (parameters.text("scope"), parameters.has("namespace")) {
                ("" | "Cluster", true) => causes.forbidden(
                    &path.child("namespace"),
                    "parameters.scope is set to 'Cluster', namespace should not be set",
                ),
                ("Namespace", false) => {
                    causes.required(&path.child("namespace"), "parameters.scope is set to 'Namespace'");
                }
                ("" | "Cluster" | "Namespace", _) => {}
                (other, _) => causes.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        if !equal(new.at("spec").at("controller"), old.at("spec").at("controller")) {
            let path = Path::new("spec");
            causes.invalid(
                &path.child("controller"),
                new.at("spec").text("controller"),
                "field is immutable",
            );
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = object.at("spec");
        let parameters = spec.at("parameters");
        let text = match (parameters.text("kind"), parameters.text("apiGroup")) {
            ("", _) => "<none>".to_owned(),
            (kind, "") => format!("{kind}/{}", parameters.text("name")),
            (kind, group) => format!("{kind}.{group}/{}", parameters.text("name")),
        };
        vec![columns::name(object), spec.text("controller").into(), text.into(), columns::age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: Value, expected: &[&str]) {
        let fields: Vec<String> =
            Ingress.validate_create(&json!({"spec": spec})).into_iter().map(|cause| cause.field).collect();
        assert_eq!(fields, expected, "{spec}");
    }

    #[test]
    fn ingresses() {
        let service = json!({"service": {"name": "web", "port": {"number": 80}}});
        check(json!({"defaultBackend": service}), &[]);
        check(json!({}), &["spec"]);
        check(
            json!({"rules": [{"host": "*.example.com", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": service}]}}]}),
            &[],
        );
        check(
            json!({"rules": [{"host": "10.0.0.1", "http": {"paths": [{"path": "x", "pathType": "Exact", "backend": {}}]}}]}),
            &[
                "spec.rules[0].host",
                "spec.rules[0].http.paths[0].path",
                "spec.rules[0].http.paths[0].backend",
            ],
        );
        check(
            json!({"rules": [{"http": {"paths": [{"path": "/", "backend": {}}]}}]}),
            &["spec.rules[0].http.paths[0].pathType"],
        );
    }

    #[test]
    fn messages() {
        let check = |ingress: Value, expected: &str| {
            let texts: Vec<String> =
                Ingress.validate_create(&ingress).iter().map(ToString::to_string).collect();
            assert_eq!(texts, [expected], "{ingress}");
        };
        let spec = |spec: Value| json!({ "spec": spec });
        check(
            spec(json!({})),
            "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified",
        );
        check(
            spec(json!({"defaultBackend": {}})),
            "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
        );
        check(
            spec(json!({"defaultBackend": {"service": {"name": "web"}}})),
            "spec.defaultBackend: Required value: port name or number is required",
        );
        check(
            spec(json!({"defaultBackend": {"service": {"name": "web", "port": {"name": "a", "number": 1}}}})),
            "spec.defaultBackend: Invalid value: \"\": cannot set both port name & port number",
        );
        let classes = |annotation: &str| {
            json!({"metadata": {"annotations": {CLASS_ANNOTATION: annotation}}, "spec": {"ingressClassName": "a",
                "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}})
        };
        check(
            classes("b"),
            "annotations.kubernetes.io/ingress.class: Invalid value: \"b\": must match `ingressClassName` when both are specified",
        );
        assert_eq!(Ingress.validate_create(&classes("a")), []);
    }

    #[test]
    fn rows() {
        let object = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx",
            "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}], "tls": [{}]}});
        assert_eq!(
            Ingress.row(&object, Timestamp::UNIX_EPOCH),
            ["i", "nginx", "a,b,c + 1 more...", "", "80, 443", "<unknown>"].map(Value::from)
        );
    }
}

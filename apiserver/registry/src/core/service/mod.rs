//! Services. Addresses and node ports come from the allocators of the API server, which run after preparation and
//! before validation, so that validation sees the whole Service.

mod validation;

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Subresource, Verb};
use serde_json::{Value, json};

use crate::{
    Cause, Strategy,
    columns::{self, AGE, NAME, text, wide},
    fields::{Fields, Fill},
    kind::{ALL, Column, NameRule, Spec, name, status, subresource},
};

const SUBRESOURCES: &[Subresource] = &[
    subresource(
        "proxy",
        GroupVersionKind::new("", "v1", "ServiceProxyOptions"),
        &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update],
    ),
    status("", "Service"),
];

pub(crate) const KIND: Spec = Spec {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &[name("svc")],
    categories: ALL,
    subresources: SUBRESOURCES,
    storage_prefix: Some("services/specs"),
    columns: COLUMNS,
    selectable: &["spec.clusterIP", "spec.type"],
    create_on_update: true,
    name_rule: NameRule::Dns1035Label,
    strategy: &Service,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Type", "How the service is exposed."),
    text("Cluster-IP", "Address inside the cluster."),
    text("External-IP", "Addresses outside the cluster."),
    text("Port(s)", "Ports, with their node ports and protocols."),
    AGE,
    wide("Selector", "Labels of the pods behind the service."),
];

/// Has an address of its own, which `None` says it has not.
fn is_headless(spec: &Value) -> bool {
    spec.text("clusterIP") == "None" || spec.texts("clusterIPs").eq(["None"])
}

fn needs_cluster_ip(spec: &Value) -> bool {
    spec.text("type") != "ExternalName"
}

fn needs_node_port(spec: &Value) -> bool {
    match spec.text("type") {
        "NodePort" => true,
        "LoadBalancer" => spec.at("allocateLoadBalancerNodePorts").as_bool() != Some(false),
        _ => false,
    }
}

fn needs_health_check_port(spec: &Value) -> bool {
    spec.text("type") == "LoadBalancer" && spec.text("externalTrafficPolicy") == "Local"
}

/// Reached from outside: the external traffic policy applies.
fn externally_accessible(spec: &Value) -> bool {
    match spec.text("type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.list("externalIPs").is_empty(),
        _ => false,
    }
}

struct Service;

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        spec.fill_text("type", "ClusterIP");
        spec.fill_text("sessionAffinity", "None");
        match spec.text("sessionAffinity") {
            "None" => spec.drop_field("sessionAffinityConfig"),
            "ClientIP" if spec.at("sessionAffinityConfig").at("clientIP").int("timeoutSeconds").is_none() => {
                spec.put("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
            }
            _ => {}
        }
        for port in spec.items("ports") {
            port.fill_text("protocol", "TCP");
            let target = port.at("targetPort");
            if target.is_null() || target.as_i64() == Some(0) || target.as_str() == Some("") {
                let number = port.at("port").clone();
                port.put("targetPort", number);
            }
        }
        if externally_accessible(spec) {
            spec.fill_text("externalTrafficPolicy", "Cluster");
        }
        if matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
            spec.fill("internalTrafficPolicy", "Cluster");
        }
        if spec.text("type") == "LoadBalancer" {
            spec.fill("allocateLoadBalancerNodePorts", true);
            if let Some(balancer) = object.part("status").and_then(|status| status.part("loadBalancer")) {
                for ingress in balancer.items("ingress") {
                    if !ingress.text("ip").is_empty() {
                        ingress.fill("ipMode", "VIP");
                    }
                }
            }
        }
    }

    fn prepare_for_create(&self, object: &mut Value) {
        object.put("status", json!({"loadBalancer": {}}));
        if let Some(spec) = object.section("spec") {
            normalise_cluster_ips(spec, None);
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        let old = old.at("spec");
        let Some(spec) = new.section("spec") else { return };
        normalise_cluster_ips(spec, Some(old));
        keep_allocated(spec, old);
        drop_with_type(spec, old);
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        validation::service(object)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        validation::update(new, old)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        validation::status(new)
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let spec = object.at("spec");
        let mut warnings = Vec::new();
        if is_headless(spec) && !spec.text("loadBalancerIP").is_empty() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if is_headless(spec) && !spec.list("externalIPs").is_empty() {
            warnings.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if is_headless(spec) && spec.text("sessionAffinity") != "None" {
            warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
        if spec.text("type") == "ExternalName" && !spec.list("externalIPs").is_empty() {
            warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
        }
        if spec.text("type") != "ExternalName" && !spec.text("externalName").is_empty() {
            warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
        }
        warnings
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let spec = object.at("spec");
        vec![
            ("spec.clusterIP", spec.text("clusterIP").to_owned()),
            ("spec.type", spec.text("type").to_owned()),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = object.at("spec");
        let address = spec.texts("clusterIPs").next().unwrap_or(spec.text("clusterIP"));
        let ports: Vec<String> = spec.list("ports").iter().map(port_text).collect();
        vec![
            columns::name(object),
            spec.text("type").into(),
            columns::or_none(address.to_owned()).into(),
            external_address(object).into(),
            columns::or_none(ports.join(",")).into(),
            columns::age(object, now),
            columns::labels(spec, "selector").into(),
        ]
    }
}

fn port_text(port: &Value) -> String {
    let (number, protocol) = (port.int("port").unwrap_or(0), port.text("protocol"));
    match port.int("nodePort").unwrap_or(0) {
        0 => format!("{number}/{protocol}"),
        node_port => format!("{number}:{node_port}/{protocol}"),
    }
}

fn external_address(service: &Value) -> String {
    let spec = service.at("spec");
    let external: Vec<&str> = spec.texts("externalIPs").collect();
    match spec.text("type") {
        "ClusterIP" | "NodePort" => columns::or_none(external.join(",")),
        "LoadBalancer" => {
            let mut addresses: Vec<&str> = service
                .at("status")
                .at("loadBalancer")
                .list("ingress")
                .iter()
                .map(|ingress| {
                    if ingress.text("ip").is_empty() { ingress.text("hostname") } else { ingress.text("ip") }
                })
                .filter(|address| !address.is_empty())
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses.extend(external);
            if addresses.is_empty() { "<pending>".to_owned() } else { addresses.join(",") }
        }
        "ExternalName" => spec.text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// `clusterIP` is the first of `clusterIPs`; old clients know only the former.
fn normalise_cluster_ips(spec: &mut Value, old: Option<&Value>) {
    let first = spec.text("clusterIP").to_owned();
    let Some(old) = old else {
        if !first.is_empty() && spec.list("clusterIPs").is_empty() {
            spec.put("clusterIPs", json!([first]));
        }
        return;
    };
    let same_list = spec.at("clusterIPs") == old.at("clusterIPs");
    let old_first = old.text("clusterIP");
    if first == old_first || !same_list {
        return;
    }
    // Only the old field was changed, so it is what the client means.
    if first.is_empty() {
        spec.drop_field("clusterIPs");
    } else {
        spec.put("clusterIPs", json!([first]));
    }
}

/// What was allocated stays when the client leaves it out.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(spec) && needs_cluster_ip(old) {
        if spec.text("clusterIP").is_empty() {
            spec.copy("clusterIP", old);
        }
        if spec.list("clusterIPs").is_empty() && spec.text("clusterIP") == old.text("clusterIP") {
            spec.copy("clusterIPs", old);
        }
    }
    if needs_node_port(spec) && needs_node_port(old) {
        let mut used: Vec<i64> = spec.list("ports").iter().filter_map(|port| port.int("nodePort")).collect();
        for port in spec.items("ports").iter_mut().filter(|port| port.int("nodePort").unwrap_or(0) == 0) {
            let same = |other: &&Value| {
                other.int("port") == port.int("port") && other.text("protocol") == port.text("protocol")
            };
            let found = old.list("ports").iter().find(same).and_then(|port| port.int("nodePort"));
            if let Some(number) = found.filter(|number| *number != 0 && !used.contains(number)) {
                used.push(number);
                port.put("nodePort", number);
            }
        }
    }
    if needs_health_check_port(spec)
        && needs_health_check_port(old)
        && spec.int("healthCheckNodePort").unwrap_or(0) == 0
    {
        spec.copy("healthCheckNodePort", old);
    }
}

/// Fields that belong to the old type and that the client has not touched go away with it.
fn drop_with_type(spec: &mut Value, old: &Value) {
    let dropped = |needs: fn(&Value) -> bool, spec: &Value| needs(old) && !needs(spec);
    if dropped(needs_cluster_ip, spec) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if spec.at(field) == old.at(field) {
                spec.drop_field(field);
            }
        }
    }
    if dropped(needs_node_port, spec) {
        let ports = |spec: &Value| -> Vec<i64> {
            spec.list("ports").iter().filter_map(|port| port.int("nodePort")).collect()
        };
        if ports(spec).iter().all(|port| ports(old).contains(port)) {
            spec.items("ports").iter_mut().for_each(|port| port.drop_field("nodePort"));
        }
    }
    for (needs, field) in [
        (needs_health_check_port as fn(&Value) -> bool, "healthCheckNodePort"),
        (|spec: &Value| spec.text("type") == "LoadBalancer", "allocateLoadBalancerNodePorts"),
        (|spec: &Value| spec.text("type") == "LoadBalancer", "loadBalancerClass"),
        (externally_accessible, "externalTrafficPolicy"),
    ] {
        if dropped(needs, spec) && spec.at(field) == old.at(field) {
            spec.drop_field(field);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(spec: Value) -> Value {
        let mut object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        Service.default(&mut object);
        object
    }

    fn check(object: &Value, expected: &[&str]) {
        let causes = KIND.kind().validate_create(object);
        let fields: Vec<String> =
            causes.iter().map(|c| format!("{} {}", c.reason.as_str(), c.field)).collect();
        assert_eq!(fields, expected, "{object}");
    }

    #[test]
    fn defaults() {
        let object =
            whole(json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "type": "NodePort"}));
        assert_eq!(
            object["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "ClientIP",
                "type": "NodePort", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster"})
        );
    }

    #[test]
    fn validates() {
        check(&whole(json!({"ports": [{"port": 80}]})), &[]);
        check(&whole(json!({})), &["FieldValueRequired spec.ports"]);
        check(&whole(json!({"clusterIP": "None", "clusterIPs": ["None"]})), &[]);
        check(
            &whole(json!({"ports": [{"port": 0}, {"port": 70000, "name": "a"}]})),
            &[
                "FieldValueRequired spec.ports[0].name",
                "FieldValueInvalid spec.ports[0].port",
                "FieldValueInvalid spec.ports[0].targetPort",
                "FieldValueInvalid spec.ports[1].port",
                "FieldValueInvalid spec.ports[1].targetPort",
            ],
        );
        check(&whole(json!({"type": "ExternalName"})), &["FieldValueRequired spec.externalName"]);
        check(&whole(json!({"type": "Odd", "ports": [{"port": 1}]})), &["FieldValueNotSupported spec.type"]);
        check(
            &whole(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
            &["FieldValueForbidden spec.ports[0].nodePort"],
        );
    }

    #[test]
    fn addresses_stay() {
        let mut old = whole(json!({"ports": [{"port": 80, "nodePort": 30080}], "type": "NodePort"}));
        old["spec"]["clusterIP"] = json!("10.0.0.1");
        old["spec"]["clusterIPs"] = json!(["10.0.0.1"]);
        let mut new = whole(json!({"ports": [{"port": 80}], "type": "NodePort"}));
        Service.prepare_for_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], old["spec"]["clusterIPs"]);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
        new["spec"]["clusterIP"] = json!("10.0.0.2");
        new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        let causes = Service.validate_update(&new, &old);
        assert_eq!(
            causes[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"
        );
        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        Service.prepare_for_update(&mut plain, &old);
        assert!(!plain["spec"]["ports"][0].has("nodePort"));
        assert!(!plain["spec"].has("externalTrafficPolicy"));
    }

    #[test]
    fn rows() {
        let mut object = whole(json!({"ports": [{"port": 80, "nodePort": 30080}], "type": "LoadBalancer",
            "selector": {"b": "2", "a": "1"}}));
        object["spec"]["clusterIPs"] = json!(["10.0.0.1"]);
        let row = KIND.kind().row(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(
            row,
            ["web", "LoadBalancer", "10.0.0.1", "<pending>", "80:30080/TCP", "<unknown>", "a=1,b=2"]
                .map(Value::from)
        );
    }
}

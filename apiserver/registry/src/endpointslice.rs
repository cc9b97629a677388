//! `discovery.k8s.io/v1` EndpointSlices.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    equality::equal,
    fields::{Fields, Fill},
    kind::{Column, Spec},
    metadata, names, rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    storage_prefix: Some("endpointslices"),
    columns: COLUMNS,
    strategy: &EndpointSlice,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("AddressType", "What its addresses are."),
    text("Ports", "Ports of its endpoints."),
    text("Endpoints", "Addresses of its endpoints."),
    AGE,
];

const MAX_PORTS: usize = 20_000;
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_ZONE_HINTS: usize = 8;
const MAX_TOPOLOGY: usize = 16;
const SHOWN: usize = 3;

struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in object.items("ports") {
            port.fill("name", "");
            port.fill("protocol", "TCP");
        }
    }

    fn generation_counts(&self, new: &Value, old: &Value) -> bool {
        let labels = |object: &Value| serde_json::json!({"labels": object.at("metadata").at("labels")});
        !equal(&labels(new), &labels(old))
            || ["ports", "endpoints"].iter().any(|field| !equal(new.at(field), old.at(field)))
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let kind = object.text("addressType");
        rules::one_of(kind, &["FQDN", "IPv4", "IPv6"], &Path::new("addressType"), &mut causes);
        endpoints(object, kind, &Path::new("endpoints"), &mut causes);
        ports(object, &Path::new("ports"), &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        if new.text("addressType") != old.text("addressType") {
            causes.invalid(&Path::new("addressType"), new.text("addressType"), "field is immutable");
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            columns::name(object),
            object.text("addressType").into(),
            ports_text(object).into(),
            endpoints_text(object).into(),
            columns::age(object, now),
        ]
    }
}

fn endpoints(object: &Value, kind: &str, path: &Path<'_>, causes: &mut Causes) {
    let endpoints = object.list("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        causes.too_many(path, endpoints.len(), MAX_ENDPOINTS);
        return;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let path = path.index(index);
        let addresses: Vec<&str> = endpoint.texts("addresses").collect();
        if addresses.is_empty() {
            causes.required(&path.child("addresses"), "must contain at least 1 address");
        } else if addresses.len() > MAX_ADDRESSES {
            causes.too_many(&path.child("addresses"), addresses.len(), MAX_ADDRESSES);
        }
        for (index, address) in addresses.into_iter().enumerate() {
            let path = path.child("addresses");
            check_address(address, kind, &path.index(index), causes);
        }
        if endpoint.has("nodeName") {
            let node = endpoint.text("nodeName");
            causes.syntax(&path.child("nodeName"), node, names::dns_subdomain(node));
        }
        let topology = endpoint.entries("deprecatedTopology").map_or(0, serde_json::Map::len);
        if topology > MAX_TOPOLOGY {
            causes.too_many(&path.child("deprecatedTopology"), topology, MAX_TOPOLOGY);
        }
        metadata::label_map(endpoint.at("deprecatedTopology"), &path.child("deprecatedTopology"), causes);
        if endpoint.has("hostname") {
            let host = endpoint.text("hostname");
            causes.syntax(&path.child("hostname"), host, names::dns_label(host));
        }
        hints(endpoint.at("hints"), &path.child("hints"), causes);
    }
}

fn check_address(address: &str, kind: &str, path: &Path<'_>, causes: &mut Causes) {
    match kind {
        "FQDN" => {
            let messages = names::dns_subdomain(address);
            if !messages.is_empty() {
                causes.syntax(path, address, messages);
            } else if !address.contains('.') {
                causes.invalid(
                    path,
                    address,
                    "should be a domain with at least two segments separated by dots",
                );
            }
        }
        "IPv4" | "IPv6" => {
            let right = rules::parse_ip(address).is_some_and(|ip| ip.is_ipv4() == (kind == "IPv4"));
            if right {
                rules::non_special_ip(address, path, causes);
            } else if kind == "IPv4" {
                causes.invalid(path, address, "must be a valid IPv4 address");
            } else {
                causes.invalid(path, address, "must be a valid IPv6 address");
            }
        }
        _ => {}
    }
}

fn hints(hints: &Value, path: &Path<'_>, causes: &mut Causes) {
    for (field, rule) in
        [("forZones", names::qualified_name as fn(&str) -> Vec<String>), ("forNodes", names::dns_subdomain)]
    {
        let list = hints.list(field);
        let path = path.child(field);
        if list.len() > MAX_ZONE_HINTS {
            causes.too_many(&path, list.len(), MAX_ZONE_HINTS);
            continue;
        }
        let mut seen = HashSet::new();
        for (index, hint) in list.iter().enumerate() {
            let path = path.index(index);
            let name = hint.text("name");
            if !seen.insert(name) {
                causes.duplicate(&path.child("name"), name);
            }
            causes.syntax(&path.child("name"), name, rule(name));
        }
    }
}

fn ports(object: &Value, path: &Path<'_>, causes: &mut Causes) {
    let ports = object.list("ports");
    if ports.len() > MAX_PORTS {
        causes.too_many(path, ports.len(), MAX_PORTS);
        return;
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if !name.is_empty() {
            causes.syntax(&path.child("name"), name, names::dns_label(name));
        }
        if !seen.insert(name) {
            causes.duplicate(&path.child("name"), name);
        }
        rules::one_of(port.text("protocol"), &["SCTP", "TCP", "UDP"], &path.child("protocol"), causes);
        if let Some(number) = port.int("port") {
            rules::port_number(number, &path.child("port"), causes);
        }
        if port.has("appProtocol") {
            let protocol = port.text("appProtocol");
            causes.syntax(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn shorten(texts: Vec<String>, none: &str) -> String {
    match texts.len() {
        0 => none.to_owned(),
        count if count > SHOWN => format!("{} + {} more...", texts[..SHOWN].join(","), count - SHOWN),
        _ => texts.join(","),
    }
}

fn ports_text(object: &Value) -> String {
    let ports = object.list("ports").iter().map(|port| match port.int("port") {
        Some(number) => number.to_string(),
        None => "*".to_owned(),
    });
    shorten(ports.collect(), "<unset>")
}

fn endpoints_text(object: &Value) -> String {
    let addresses = object.list("endpoints").iter().flat_map(|endpoint| endpoint.texts("addresses"));
    shorten(addresses.map(str::to_owned).collect(), "<unset>")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(object: Value, expected: &[&str]) {
        let fields: Vec<String> =
            EndpointSlice.validate_create(&object).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, expected, "{object}");
    }

    #[test]
    fn validates() {
        let mut good = json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "b", "port": 81}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n"}]});
        EndpointSlice.default(&mut good);
        assert_eq!(good["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        check(good, &[]);
        check(json!({"addressType": "Odd"}), &["addressType"]);
        check(
            json!({"addressType": "IPv6", "endpoints": [{"addresses": ["10.0.0.1"]}, {}]}),
            &["endpoints[0].addresses[0]", "endpoints[1].addresses"],
        );
        check(
            json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b", "a"]}]}),
            &["endpoints[0].addresses[1]"],
        );
        check(
            json!({"addressType": "IPv4", "ports": [{"name": "a", "protocol": "TCP"}, {"name": "a", "protocol": "X"}]}),
            &["ports[1].name", "ports[1].protocol"],
        );
    }

    #[test]
    fn rows() {
        let object = json!({"ports": [{"port": 80}, {}], "endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c", "d"]}]});
        assert_eq!(
            (ports_text(&object), endpoints_text(&object)),
            ("80,*".into(), "a,b,c + 1 more...".into())
        );
        assert_eq!(endpoints_text(&json!({})), "<unset>");
    }
}

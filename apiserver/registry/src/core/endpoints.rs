//! Endpoints, the older form of EndpointSlices.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    fields::{Fields, Fill},
    kind::{Column, Spec, name},
    names, rules,
};

pub(crate) const KIND: Spec = Spec {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &[name("ep")],
    storage_prefix: Some("services/endpoints"),
    columns: COLUMNS,
    create_on_update: true,
    strategy: &Endpoints,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, text("Endpoints", "Addresses and ports that are ready."), AGE];

/// How many endpoints a row shows.
const SHOWN: usize = 3;

struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in object.items("subsets") {
            for port in subset.items("ports") {
                port.fill_text("protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let path = Path::new("subsets");
        for (index, subset) in object.list("subsets").iter().enumerate() {
            let path = path.index(index);
            if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
                causes.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for field in ["addresses", "notReadyAddresses"] {
                for (index, address) in subset.list(field).iter().enumerate() {
                    check_address(address, &path.child(field).index(index), &mut causes);
                }
            }
            let ports = subset.list("ports");
            for (index, port) in ports.iter().enumerate() {
                check_port(port, ports.len() > 1, &path.child("ports").index(index), &mut causes);
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![columns::name(object), endpoints_text(object).into(), columns::age(object, now)]
    }
}

fn check_address(address: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (ip, host) = (address.text("ip"), address.text("hostname"));
    rules::ip_address(ip, &path.child("ip"), causes);
    if !host.is_empty() {
        causes.syntax(&path.child("hostname"), host, names::dns_label(host));
    }
    if address.has("nodeName") {
        let node = address.text("nodeName");
        causes.syntax(&path.child("nodeName"), node, names::dns_subdomain(node));
    }
    rules::non_special_ip(ip, &path.child("ip"), causes);
}

fn check_port(port: &Value, needs_name: bool, path: &Path<'_>, causes: &mut Causes) {
    let name = port.text("name");
    if !name.is_empty() {
        causes.syntax(&path.child("name"), name, names::dns_label(name));
    } else if needs_name {
        causes.required(&path.child("name"), "");
    }
    rules::port_number(port.int("port").unwrap_or(0), &path.child("port"), causes);
    rules::one_of(port.text("protocol"), &["SCTP", "TCP", "UDP"], &path.child("protocol"), causes);
    if port.has("appProtocol") {
        let protocol = port.text("appProtocol");
        causes.syntax(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
    }
}

fn endpoints_text(object: &Value) -> String {
    let subsets = object.list("subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let (mut shown, mut count) = (Vec::new(), 0);
    for subset in subsets {
        let addresses = || subset.list("addresses").iter().map(|address| address.text("ip"));
        let ports = subset.list("ports");
        let mut add = |text: String| {
            count += 1;
            if shown.len() < SHOWN {
                shown.push(text);
            }
        };
        if ports.is_empty() {
            addresses().map(str::to_owned).for_each(&mut add);
        }
        for port in ports {
            let number = port.int("port").unwrap_or(0);
            addresses()
                .map(
                    |ip| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") },
                )
                .for_each(&mut add);
        }
    }
    let text = shown.join(",");
    if count > SHOWN { format!("{text} + {} more...", count - SHOWN) } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        fn check(subsets: Value, expected: &str) {
            assert_eq!(endpoints_text(&json!({"subsets": subsets})), expected);
        }
        check(json!([]), "<none>");
        check(
            json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}, {"port": 81}]}]),
            "10.0.0.1:80,10.0.0.1:81",
        );
        check(json!([{"addresses": [{"ip": "::2"}], "ports": [{"port": 80}]}]), "[::2]:80");
        check(
            json!([{"addresses": [{"ip": "a"}, {"ip": "b"}, {"ip": "c"}, {"ip": "d"}, {"ip": "e"}]}]),
            "a,b,c + 2 more...",
        );
    }

    #[test]
    fn validates() {
        fn check(subset: Value, expected: &[&str]) {
            let causes = Endpoints.validate_create(&json!({"subsets": [subset]}));
            let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(fields, expected);
        }
        check(json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}), &[]);
        check(json!({}), &["subsets[0]"]);
        check(
            json!({"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 0}]}),
            &["subsets[0].addresses[0].ip", "subsets[0].ports[0].port", "subsets[0].ports[0].protocol"],
        );
    }
}

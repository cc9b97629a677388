//! NetworkPolicies.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text},
    fields::{Fields, Fill},
    kind::{Column, Spec, name},
    rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &[name("netpol")],
    storage_prefix: Some("networkpolicies"),
    columns: COLUMNS,
    strategy: &NetworkPolicy,
    generation: true,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, text("Pod-Selector", "Pods that the policy is for."), AGE];

struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.section("spec") else { return };
        for direction in ["ingress", "egress"] {
            for port in spec.items(direction).iter_mut().flat_map(|rule| rule.items("ports")) {
                port.fill("protocol", "TCP");
            }
        }
        if spec.list("policyTypes").is_empty() {
            let egress = !spec.list("egress").is_empty();
            spec.put("policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (spec, path) = (object.at("spec"), Path::new("spec"));
        rules::label_selector(spec.at("podSelector"), &path.child("podSelector"), &mut causes);
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in spec.list(direction).iter().enumerate() {
                let path = path.child(direction);
                let path = path.index(index);
                for (index, port) in rule.list("ports").iter().enumerate() {
                    check_port(port, &path.child("ports").index(index), &mut causes);
                }
                for (index, peer) in rule.list(peers).iter().enumerate() {
                    check_peer(peer, &path.child(peers).index(index), &mut causes);
                }
            }
        }
        let types = spec.list("policyTypes");
        if types.len() > 2 {
            causes.invalid(
                &path.child("policyTypes"),
                spec.at("policyTypes").clone(),
                "may not specify more than two policyTypes",
            );
        } else {
            for (index, kind) in spec.texts("policyTypes").enumerate() {
                if !matches!(kind, "Egress" | "Ingress") {
                    causes.not_supported(
                        &path.child("policyTypes").index(index),
                        kind,
                        &["Egress", "Ingress"],
                    );
                }
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let selector = columns::selector(object.at("spec").at("podSelector"));
        vec![columns::name(object), selector.into(), columns::age(object, now)]
    }
}

fn check_port(port: &Value, path: &Path<'_>, causes: &mut Causes) {
    let protocol = port.text("protocol");
    if !matches!(protocol, "SCTP" | "TCP" | "UDP") {
        causes.not_supported(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
    let (first, last) = (port.at("port"), port.int("endPort"));
    if first.is_null() {
        if last.is_some() {
            causes.required(&path.child("port"), "must be specified when `endPort` is specified");
        }
        return;
    }
    rules::port_number_or_name(first, &path.child("port"), causes);
    let Some(last) = last else { return };
    match first.as_i64() {
        None => {
            causes.invalid(&path.child("endPort"), last, "may not be specified when `port` is non-numeric")
        }
        Some(first) if last < first => {
            causes.invalid(&path.child("endPort"), last, "must be greater than or equal to `port`");
        }
        Some(_) => rules::port_number(last, &path.child("endPort"), causes),
    }
}

fn check_peer(peer: &Value, path: &Path<'_>, causes: &mut Causes) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer.has(field) {
            count += 1;
            rules::label_selector(peer.at(field), &path.child(field), causes);
        }
    }
    let block = peer.at("ipBlock");
    if block.is_null() {
        if count == 0 {
            causes.required(path, "must specify a peer");
        }
        return;
    }
    if count > 0 {
        causes.forbidden(path, "may not specify both ipBlock and another peer");
    }
    let path = path.child("ipBlock");
    let range = block.text("cidr");
    if range.is_empty() {
        causes.required(&path.child("cidr"), "");
        return;
    }
    rules::cidr(range, &path.child("cidr"), causes);
    let outer = range.parse::<keelson_objects::addresses::Cidr>().ok();
    for (index, except) in block.texts("except").enumerate() {
        let path = path.child("except");
        rules::cidr(except, &path.index(index), causes);
        let inner = except.parse::<keelson_objects::addresses::Cidr>().ok();
        if let (Some(outer), Some(inner)) = (&outer, &inner)
            && (!outer.contains(inner.network()) || inner.length() <= outer.length())
        {
            causes.invalid(
                &path.index(index),
                except,
                format!("must be a strict subset of `cidr` {range:?}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validates() {
        fn check(spec: Value, expected: &[&str]) {
            let mut object = json!({"spec": spec});
            NetworkPolicy.default(&mut object);
            let causes = NetworkPolicy.validate_create(&object);
            let fields: Vec<String> = causes.into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, expected, "{object}");
        }
        check(json!({"podSelector": {}}), &[]);
        check(
            json!({"ingress": [{"ports": [{"port": 80, "endPort": 90}], "from": [{"podSelector": {}}]}]}),
            &[],
        );
        check(json!({"egress": [{"to": [{}]}]}), &["spec.egress[0].to[0]"]);
        check(
            json!({"egress": [{"ports": [{"port": 80, "endPort": 70}]}]}),
            &["spec.egress[0].ports[0].endPort"],
        );
        check(
            json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "11.0.0.0/8"]}}]}]}),
            &["spec.egress[0].to[0].ipBlock.except[1]"],
        );
        check(json!({"policyTypes": ["Odd"]}), &["spec.policyTypes[0]"]);
    }
}

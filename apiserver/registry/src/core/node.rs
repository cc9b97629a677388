//! Nodes: taints, and fields that are set once.

use std::collections::HashSet;

use jiff::Timestamp;
use keelson_schema::resource::{GroupVersionKind, Verb};
use serde_json::Value;

use super::pod::taint_effect;
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
    fields::{Fields, Fill},
    kind::{Column, Spec, name, status, subresource},
    names, rules,
};

pub(crate) const KIND: Spec = Spec {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    namespaced: false,
    short_names: &[name("no")],
    subresources: &[
        subresource(
            "proxy",
            GroupVersionKind::new("", "v1", "NodeProxyOptions"),
            &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update],
        ),
        status("", "Node"),
    ],
    storage_prefix: Some("minions"),
    columns: COLUMNS,
    selectable: &["spec.unschedulable"],
    strategy: &Node,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Whether the node is ready and takes pods."),
    text("Roles", "Roles that the node's labels give it."),
    AGE,
    text("Version", "Version of its kubelet."),
    wide("Internal-IP", "Address inside the cluster."),
    wide("External-IP", "Address outside the cluster."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Kernel."),
    wide("Container-Runtime", "Container runtime and its version."),
];

struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        if let Some(status) = object.part("status")
            && status.has("capacity")
        {
            let capacity = status.at("capacity").clone();
            status.fill("allocatable", capacity);
        }
        if let Some(spec) = object.part("spec") {
            // podCIDR is the first of podCIDRs; old clients know only the former.
            let first = spec.text("podCIDR").to_owned();
            if !first.is_empty() {
                spec.fill("podCIDRs", serde_json::json!([first]));
            } else {
                let first = spec.list("podCIDRs").first().cloned();
                if let Some(first) = first {
                    spec.put("podCIDR", first);
                }
            }
        }
    }

    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let spec = object.at("spec");
        taints(spec.list("taints"), &mut causes);
        amounts(object, &mut causes);
        let path = Path::new("spec");
        let path = path.child("podCIDRs");
        let ranges: Vec<&str> = spec.texts("podCIDRs").collect();
        for (index, range) in ranges.iter().enumerate() {
            rules::cidr(range, &path.index(index), &mut causes);
            if ranges[..index].contains(range) {
                causes.duplicate(&path.index(index), *range);
            }
        }
        let is_v4 = |range: &str| rules::parse_cidr(range).map(|(address, _)| address.is_ipv4());
        let dual = ranges.len() == 2 && is_v4(ranges[0]) != is_v4(ranges[1]);
        if ranges.len() > 1 && !dual {
            causes.invalid(
                &path,
                spec.at("podCIDRs").clone(),
                "may specify no more than one CIDR for each IP family",
            );
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        amounts(new, &mut causes);
        let (spec, old_spec) = (new.at("spec"), old.at("spec"));
        let path = Path::new("spec");
        let addresses = new.at("status").list("addresses");
        for (index, address) in addresses.iter().enumerate() {
            if addresses[..index].contains(address) {
                let path = Path::new("status");
                causes.duplicate(&path.child("addresses").index(index), address.clone());
            }
        }
        if !old_spec.list("podCIDRs").is_empty() && !spec.texts("podCIDRs").eq(old_spec.texts("podCIDRs")) {
            causes.forbidden(
                &path.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
        let provider = old_spec.text("providerID");
        if !provider.is_empty() && provider != spec.text("providerID") {
            causes.forbidden(
                &path.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            );
        }
        taints(spec.list("taints"), &mut causes);
        if spec.text("externalID") != old_spec.text("externalID") {
            causes.forbidden(&path.child("externalID"), "may not be updated");
        }
        causes.into_vec()
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        self.validate_update(new, old)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", object.at("spec").flag("unschedulable").to_string())]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let info = object.at("status").at("nodeInfo");
        let known = |key: &str| match info.text(key) {
            "" => "<unknown>".to_owned(),
            text => text.to_owned(),
        };
        let mut row = vec![
            columns::name(object),
            standing(object).into(),
            columns::or_none(roles(object)).into(),
            columns::age(object, now),
            info.text("kubeletVersion").into(),
            address(object, "InternalIP").into(),
            address(object, "ExternalIP").into(),
        ];
        row.extend(["osImage", "kernelVersion", "containerRuntimeVersion"].map(|key| known(key).into()));
        row
    }
}

fn standing(node: &Value) -> String {
    let ready = node.at("status").list("conditions").iter().find(|c| c.text("type") == "Ready");
    let word = match ready.map(|condition| condition.text("status") == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node.at("spec").flag("unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{word}{cordoned}")
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = node
        .at("metadata")
        .pairs("labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address(node: &Value, kind: &str) -> String {
    let addresses = node.at("status").list("addresses");
    let found = addresses.iter().find(|address| address.text("type") == kind);
    columns::or_none(found.map_or_else(String::new, |address| address.text("address").to_owned()))
}

fn amounts(node: &Value, causes: &mut Causes) {
    for field in ["capacity", "allocatable"] {
        for (name, amount) in node.at("status").entries(field).into_iter().flatten() {
            let path = Path::new("status");
            rules::resource_amount(name, amount, &path.child(field).child(name), causes);
        }
    }
}

fn taints(taints: &[Value], causes: &mut Causes) {
    let path = Path::new("metadata");
    let path = path.child("taints");
    let mut seen = HashSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        causes.syntax(&path.child("key"), key, names::qualified_name(key));
        let messages = names::label_value(value);
        if !messages.is_empty() {
            causes.invalid(&path.child("value"), value, messages.join(";"));
        }
        taint_effect(effect, &path.child("effect"), causes);
        if !seen.insert((key, effect)) {
            causes.duplicate_because(&path, taint.clone(), "taints must be unique by key and effect pair");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn taints_and_ranges() {
        fn check(spec: Value, expected: &[&str]) {
            let causes = Node.validate_create(&json!({"spec": spec}));
            let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
            assert_eq!(fields, expected, "{spec}");
        }
        check(
            json!({"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]}),
            &[],
        );
        check(
            json!({"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}]}),
            &["metadata.taints[1]"],
        );
        check(
            json!({"taints": [{"key": "a b", "value": "-", "effect": ""}]}),
            &["metadata.taints[0].key", "metadata.taints[0].value", "metadata.taints[0].effect"],
        );
        check(json!({"podCIDRs": ["10.0.0.0/24", "fd00::/64"]}), &[]);
        check(json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}), &["spec.podCIDRs"]);
        check(json!({"podCIDRs": ["x"]}), &["spec.podCIDRs[0]"]);
    }

    #[test]
    fn a_node_registers_whole() {
        let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "2"}}});
        KIND.kind().prepare_for_create(&mut node);
        assert_eq!(node["status"]["capacity"]["cpu"], "2");
        let mut bare = json!({"metadata": {"name": "n"}});
        KIND.kind().prepare_for_create(&mut bare);
        assert_eq!(bare["status"], json!({}));
    }

    #[test]
    fn set_once() {
        let old = json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "a"}});
        assert!(Node.validate_update(&old, &old).is_empty());
        assert_eq!(Node.validate_update(&json!({"spec": {"podCIDRs": ["10.0.1.0/24"]}}), &old).len(), 2);
        assert!(Node.validate_update(&old, &json!({})).is_empty());
    }

    #[test]
    fn rows() {
        let node = json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/worker": "",
            "node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0"}}});
        assert_eq!(
            KIND.kind().row(&node, Timestamp::UNIX_EPOCH),
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,worker",
                "<unknown>",
                "v1.36.0",
                "10.0.0.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>"
            ]
            .map(Value::from)
        );
    }
}

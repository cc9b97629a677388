//! The Node authorizer: a kubelet may do what every node may, and read what its own pods need.
//!
//! Never denies, only has no opinion, so that RBAC can grant more. Lists and watches of pods must
//! select `spec.nodeName`, and a node reads no other Node than itself.

use parking_lot::RwLock;

use super::node_graph::{Graph, Referenced};
use super::rules::PolicyRule;
use super::{Attributes, Authorizer, Decision, Operator, Reason, Rules};
use crate::bootstrap::NODE_RULES;
use crate::observed::{Event, Observer, Resource};
use crate::user::{NODE_PREFIX, NODES, UserInfo};

pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<PolicyRule>,
}

impl Default for NodeAuthorizer {
    fn default() -> Self {
        let rules = NODE_RULES.iter().map(crate::bootstrap::Rule::compile).collect();
        Self { graph: RwLock::default(), rules }
    }
}

impl Observer for NodeAuthorizer {
    fn observe(&self, resource: Resource, event: Event<'_>) {
        self.graph.write().observe(resource, event);
    }
}

const ALLOW: Decision = Decision::Allow(Reason::NONE);

fn no(reason: &'static str) -> Decision {
    Decision::NoOpinion(Reason::Static(reason))
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        // The group makes a node; the name says which.
        if !attributes.user.in_group(NODES) {
            return no("");
        }
        let Some(node) = attributes.user.name.strip_prefix(NODE_PREFIX) else { return no("") };
        if node.is_empty() {
            let reason = format!("unknown node for user {:?}", attributes.user.name);
            return Decision::NoOpinion(Reason::Shared(reason.into()));
        }
        if !attributes.resource_request {
            return self.by_rules(attributes);
        }
        match (attributes.api_group, attributes.resource) {
            ("", "secrets") => self.read_namespaced(node, Referenced::Secret, attributes),
            ("", "configmaps") => self.read_namespaced(node, Referenced::ConfigMap, attributes),
            ("", "persistentvolumeclaims") if attributes.subresource == "status" => match attributes.verb {
                "update" | "patch" => self.related(node, Referenced::Claim, attributes),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.get(node, Referenced::Claim, attributes),
            ("resource.k8s.io", "resourceclaims") => self.get(node, Referenced::ResourceClaim, attributes),
            ("", "persistentvolumes") => get_only(attributes).unwrap_or_else(|| {
                self.decide(node, attributes, |graph| graph.mounts(node, attributes.name))
            }),
            ("storage.k8s.io", "volumeattachments") => get_only(attributes).unwrap_or_else(|| {
                self.decide(node, attributes, |graph| graph.attachment_is_on(node, attributes.name))
            }),
            ("", "serviceaccounts") => self.service_account(node, attributes),
            ("coordination.k8s.io", "leases") => lease(node, attributes),
            ("storage.k8s.io", "csinodes") => csi_node(node, attributes),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, attributes),
            ("", "nodes") => own_node(node, attributes),
            ("", "pods") => self.pod(node, attributes),
            _ => self.by_rules(attributes),
        }
    }

    fn rules(&self, user: &UserInfo, _namespace: &str, rules: &mut Rules) {
        if user.node_name().is_some() {
            rules.incomplete = true;
            rules.errors.push("node authorizer does not support user rule resolution".into());
        }
    }
}

impl NodeAuthorizer {
    fn by_rules(&self, attributes: &Attributes<'_>) -> Decision {
        if self.rules.iter().any(|rule| rule.allows(attributes)) { ALLOW } else { no("") }
    }

    fn decide(&self, node: &str, attributes: &Attributes<'_>, related: impl Fn(&Graph) -> bool) -> Decision {
        if attributes.name.is_empty() {
            return no("No Object name found");
        }
        if related(&self.graph.read()) {
            return ALLOW;
        }
        let reason = format!("no relationship found between node '{node}' and this object");
        Decision::NoOpinion(Reason::Shared(reason.into()))
    }

    fn related(&self, node: &str, kind: Referenced, attributes: &Attributes<'_>) -> Decision {
        self.decide(node, attributes, |graph| graph.reads(node, kind, attributes.namespace, attributes.name))
    }

    fn get(&self, node: &str, kind: Referenced, attributes: &Attributes<'_>) -> Decision {
        get_only(attributes).unwrap_or_else(|| self.related(node, kind, attributes))
    }

    fn read_namespaced(&self, node: &str, kind: Referenced, attributes: &Attributes<'_>) -> Decision {
        if !attributes.is_read_only() {
            return no("can only read resources of this type");
        }
        if !attributes.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if attributes.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, kind, attributes)
    }

    fn service_account(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        match (attributes.verb, attributes.subresource) {
            // Image credential providers act for the pod's account.
            ("get", "") | ("create", "token") if !attributes.name.is_empty() => {
                self.related(node, Referenced::ServiceAccount, attributes)
            }
            ("create", "token") => no("can only create tokens for individual service accounts"),
            ("create", _) => no("can only create token subresource of serviceaccount"),
            _ => no("can only create tokens for individual service accounts"),
        }
    }

    fn resource_slice(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        if !attributes.subresource.is_empty() {
            return no("cannot authorize ResourceSlice subresources");
        }
        match attributes.verb {
            // NodeRestriction looks into the new object.
            "create" => ALLOW,
            "get" | "update" | "patch" | "delete" => {
                self.decide(node, attributes, |graph| graph.slice_is_on(node, attributes.name))
            }
            "watch" | "list" | "deletecollection" if selects(attributes, "spec.nodeName", node) => ALLOW,
            "watch" | "list" | "deletecollection" => {
                no("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, attributes: &Attributes<'_>) -> Decision {
        let own = || {
            self.decide(node, attributes, |graph| {
                graph.pod_is_on(node, attributes.namespace, attributes.name)
            })
        };
        match (attributes.subresource, attributes.verb) {
            ("", "get") => own(),
            ("", "list" | "watch") if selects(attributes, "spec.nodeName", node) => ALLOW,
            ("", "list" | "watch") if !attributes.name.is_empty() => own(),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // NodeRestriction limits these to the node's own pods.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => ALLOW,
            _ => no(""),
        }
    }
}

/// None: a plain get, go on.
fn get_only(attributes: &Attributes<'_>) -> Option<Decision> {
    if attributes.verb != "get" {
        return Some(no("can only get individual resources of this type"));
    }
    (!attributes.subresource.is_empty()).then(|| no("cannot get subresource"))
}

fn selects(attributes: &Attributes<'_>, field: &str, value: &str) -> bool {
    attributes.field_selector.iter().any(|requirement| {
        requirement.key == field && requirement.operator == Operator::In && requirement.values == [value]
    })
}

fn own_node(node: &str, attributes: &Attributes<'_>) -> Decision {
    match (attributes.subresource, attributes.verb) {
        // NodeRestriction limits these to the node itself.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => ALLOW,
        ("", "get" | "list" | "watch") if attributes.name == node => ALLOW,
        ("", "get" | "list" | "watch") => Decision::NoOpinion(Reason::Shared(
            match attributes.name {
                "" => format!("node '{node}' cannot read all nodes, only its own Node object"),
                other => format!("node '{node}' cannot read '{other}', only its own Node object"),
            }
            .into(),
        )),
        _ => no(""),
    }
}

fn lease(node: &str, attributes: &Attributes<'_>) -> Decision {
    if !matches!(attributes.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if attributes.namespace != "kube-node-lease" {
        return no("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if attributes.verb != "create" && attributes.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    ALLOW
}

fn csi_node(node: &str, attributes: &Attributes<'_>) -> Decision {
    if !matches!(attributes.verb, "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a CSINode");
    }
    if !attributes.subresource.is_empty() {
        return no("cannot authorize CSINode subresources");
    }
    if attributes.verb != "create" && attributes.name != node {
        return no("can only access CSINode with the same name as the requesting node");
    }
    ALLOW
}

#[cfg(test)]
mod tests {
    use super::super::Requirement;
    use super::*;
    use serde_json::json;

    fn authorizer() -> NodeAuthorizer {
        let authorizer = NodeAuthorizer::default();
        for (resource, object) in [
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": {"nodeName": "a",
                "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}], "volumes": [
                    {"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}},
                    {"persistentVolumeClaim": {"claimName": "data"}}]}}),
            ),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "m",
                "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": "a",
                "volumes": [{"secret": {"secretName": "stolen"}}]}}),
            ),
            (
                Resource::PersistentVolumes,
                json!({"metadata": {"name": "pv"}, "spec": {
                "claimRef": {"namespace": "ns", "name": "data"}, "csi": {
                    "nodeStageSecretRef": {"namespace": "csi", "name": "stage"},
                    "controllerPublishSecretRef": {"namespace": "csi", "name": "controller"}}}}),
            ),
            (Resource::VolumeAttachments, json!({"metadata": {"name": "va"}, "spec": {"nodeName": "a"}})),
            (Resource::ResourceSlices, json!({"metadata": {"name": "slice"}, "spec": {"nodeName": "a"}})),
        ] {
            authorizer.observe(resource, Event::Upsert(&object));
        }
        authorizer
    }

    fn ask(
        authorizer: &NodeAuthorizer,
        node: &str,
        verb: &str,
        thing: &str,
        (namespace, name): (&str, &str),
    ) -> Decision {
        let user = UserInfo::new(format!("system:node:{node}"), &[NODES]);
        let (group, resource) = thing.split_once(':').unwrap_or(("", thing));
        let (resource, selected) = resource.split_once('?').unwrap_or((resource, ""));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let selector: Vec<Requirement> = selected
            .split_once('=')
            .map(|(key, value)| Requirement {
                key: key.into(),
                operator: Operator::In,
                values: vec![value.into()],
            })
            .into_iter()
            .collect();
        authorizer.authorize(&Attributes {
            verb,
            api_group: group,
            resource,
            subresource,
            namespace,
            name,
            resource_request: true,
            field_selector: &selector,
            ..Attributes::of(&user)
        })
    }

    #[test]
    fn nodes_do_what_their_pods_need() {
        let authorizer = authorizer();
        // What node a may do and node b may not.
        let only_own = [
            ("get", "secrets", ("ns", "s")),
            ("watch", "secrets", ("ns", "s")),
            ("get", "secrets", ("ns", "pull")),
            ("get", "secrets", ("csi", "stage")),
            ("get", "configmaps", ("ns", "c")),
            ("get", "persistentvolumeclaims", ("ns", "data")),
            ("patch", "persistentvolumeclaims/status", ("ns", "data")),
            ("get", "persistentvolumes", ("", "pv")),
            ("get", "storage.k8s.io:volumeattachments", ("", "va")),
            ("get", "resource.k8s.io:resourceslices", ("", "slice")),
            ("create", "serviceaccounts/token", ("ns", "sa")),
            ("get", "serviceaccounts", ("ns", "sa")),
            ("get", "pods", ("ns", "p")),
            ("get", "pods", ("ns", "m")),
            ("list", "pods?spec.nodeName=a", ("", "")),
            ("watch", "pods?spec.nodeName=a", ("", "")),
            ("get", "nodes", ("", "a")),
            ("watch", "nodes", ("", "a")),
            ("update", "coordination.k8s.io:leases", ("kube-node-lease", "a")),
            ("get", "storage.k8s.io:csinodes", ("", "a")),
        ];
        for (verb, thing, object) in only_own {
            assert!(ask(&authorizer, "a", verb, thing, object).is_allowed(), "{verb} {thing} {object:?}");
            assert!(!ask(&authorizer, "b", verb, thing, object).is_allowed(), "{verb} {thing} {object:?}");
        }
        let every = [
            ("create", "nodes", ("", "")),
            ("patch", "nodes/status", ("", "a")),
            ("update", "pods/status", ("ns", "p")),
            ("create", "pods/eviction", ("ns", "p")),
            ("create", "coordination.k8s.io:leases", ("kube-node-lease", "")),
            ("watch", "services", ("", "")),
            ("create", "events", ("ns", "")),
            ("create", "authentication.k8s.io:tokenreviews", ("", "")),
            ("watch", "node.k8s.io:runtimeclasses", ("", "")),
            ("watch", "storage.k8s.io:csidrivers", ("", "")),
        ];
        for (verb, thing, object) in every {
            assert!(ask(&authorizer, "a", verb, thing, object).is_allowed(), "{verb} {thing} {object:?}");
        }
    }

    #[test]
    fn refuses_with_upstreams_reasons() {
        let authorizer = authorizer();
        let check = |verb: &str, thing: &str, object: (&str, &str), reason: &str| {
            let decision = ask(&authorizer, "a", verb, thing, object);
            assert_eq!((decision.is_allowed(), decision.reason()), (false, reason), "{verb} {thing}");
        };
        let unrelated = "no relationship found between node 'a' and this object";
        check("get", "secrets", ("ns", "stolen"), unrelated);
        check("get", "secrets", ("csi", "controller"), unrelated);
        check("get", "secrets", ("other", "s"), unrelated);
        check("list", "secrets", ("ns", ""), "No Object name found");
        check("update", "secrets", ("ns", "s"), "can only read resources of this type");
        check("get", "secrets", ("", "s"), "can only read namespaced object of this type");
        check("list", "persistentvolumes", ("", ""), "can only get individual resources of this type");
        check("list", "pods", ("", ""), "can only list/watch pods with spec.nodeName field selector");
        check(
            "list",
            "pods?spec.nodeName=b",
            ("", ""),
            "can only list/watch pods with spec.nodeName field selector",
        );
        check("list", "nodes", ("", ""), "node 'a' cannot read all nodes, only its own Node object");
        check("get", "nodes", ("", "b"), "node 'a' cannot read 'b', only its own Node object");
        check("delete", "nodes", ("", "a"), "");
        check("patch", "pods", ("ns", "p"), "");
        check(
            "get",
            "coordination.k8s.io:leases",
            ("kube-system", "a"),
            "can only access leases in the \"kube-node-lease\" system namespace",
        );
        check(
            "get",
            "coordination.k8s.io:leases",
            ("kube-node-lease", "b"),
            "can only access node lease with the same name as the requesting node",
        );
        check("list", "apps:deployments", ("", ""), "");
        let stranger = UserInfo::new("system:node:a", &[]);
        let attributes = Attributes {
            verb: "get",
            resource: "services",
            resource_request: true,
            ..Attributes::of(&stranger)
        };
        assert_eq!(authorizer.authorize(&attributes), no(""));
    }

    #[test]
    fn forgets_with_the_last_pod() {
        let authorizer = authorizer();
        let reads = || ask(&authorizer, "a", "get", "secrets", ("ns", "s")).is_allowed();
        let second = json!({"metadata": {"namespace": "ns", "name": "q"}, "spec": {"nodeName": "a",
            "volumes": [{"secret": {"secretName": "s"}}]}});
        authorizer.observe(Resource::Pods, Event::Upsert(&second));
        authorizer.observe(Resource::Pods, Event::Delete { namespace: "ns", name: "p" });
        assert!(reads());
        assert!(!ask(&authorizer, "a", "get", "persistentvolumes", ("", "pv")).is_allowed());
        authorizer.observe(Resource::Pods, Event::Upsert(&second));
        authorizer.observe(Resource::Pods, Event::Delete { namespace: "ns", name: "q" });
        assert!(!reads());
        authorizer.observe(Resource::VolumeAttachments, Event::Delete { namespace: "", name: "va" });
        assert!(!ask(&authorizer, "a", "get", "storage.k8s.io:volumeattachments", ("", "va")).is_allowed());
    }
}

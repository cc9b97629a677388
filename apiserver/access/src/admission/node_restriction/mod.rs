//! NodeRestriction: a kubelet writes only its own node and the pods bound to it, and gives itself
//! no labels or taints that would draw other workloads.
//!
//! Complements the Node authorizer, which does not see what is written.

mod own_node;

use std::sync::Arc;

use serde_json::Value;

use self::own_node::{changed_keys, check_node};
use super::{Admission, AdmissionRequest, Admitted, Operation, admitted};
use crate::authz::{Attributes, Authorizer};
use crate::observed::{Freshness, Resource};
use crate::pod_references::{MIRROR_ANNOTATION, config_maps, is_mirror, secrets, volumes};
use crate::state::{Pod, State, items, text, texts};
use crate::status::Status;
use crate::user::{NODE_PREFIX, NODES};

pub struct NodeRestriction {
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
    /// Asked whether a node may request tokens for audiences its pods do not name.
    pub authorizer: Arc<dyn Authorizer>,
}

impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.user.in_group(NODES) && request.user.name.starts_with(NODE_PREFIX) {
            return Box::pin(self.check(request));
        }
        admitted()
    }
}

impl NodeRestriction {
    async fn check(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let node = request.user.name.strip_prefix(NODE_PREFIX).unwrap_or_default();
        if node.is_empty() {
            return Err(
                request.forbidden(format_args!("could not determine node from user {:?}", request.user.name))
            );
        }
        match (request.group, request.resource) {
            ("", "pods") => match request.subresource {
                "" => self.pod(node, request).await,
                "status" => pod_status(node, request),
                "eviction" => self.eviction(node, request).await,
                other => Err(request.forbidden(format_args!(
                    "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                ))),
            },
            ("", "nodes") => check_node(node, request),
            ("", "persistentvolumeclaims") => claim_status(node, request),
            ("", "serviceaccounts") => self.token(node, request).await,
            ("coordination.k8s.io", "leases") => {
                if request.namespace != "kube-node-lease" {
                    return Err(request
                        .forbidden("can only access leases in the \"kube-node-lease\" system namespace"));
                }
                own_name(node, request, "node lease")
            }
            ("storage.k8s.io", "csinodes") => own_name(node, request, "CSINode"),
            ("resource.k8s.io", "resourceslices") => resource_slice(node, request),
            _ => Ok(()),
        }
    }

    async fn existing_pod(&self, request: &AdmissionRequest<'_>, name: &str) -> Result<Pod, Status> {
        if let Some(pod) = self.state.pod(request.namespace, name) {
            return Ok(pod);
        }
        self.freshness.catch_up(Resource::Pods).await;
        self.state.pod(request.namespace, name).ok_or_else(|| Status::not_found("", "pods", name))
    }

    async fn pod(&self, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        match request.operation {
            Operation::Create => self.mirror_pod(node, request).await,
            Operation::Delete => {
                if *self.existing_pod(request, request.name).await?.node == *node {
                    return Ok(());
                }
                Err(request.forbidden(format_args!(
                    "node {node:?} can only delete pods with spec.nodeName set to itself"
                )))
            }
            operation => Err(request.forbidden(format_args!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation.as_str()
            ))),
        }
    }

    async fn mirror_pod(&self, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let pod = request.object.as_deref().unwrap_or(&Value::Null);
        let refuse = |what: &str| Err(request.forbidden(format_args!("node {node:?} can {what}")));
        if !is_mirror(pod) {
            return Err(request.forbidden(format_args!(
                "pod does not have {MIRROR_ANNOTATION:?} annotation, node {node:?} can only create mirror pods"
            )));
        }
        if pod["spec"]["nodeName"] != node {
            return refuse("only create pods with spec.nodeName set to itself");
        }
        let owner = match items(&pod["metadata"]["ownerReferences"]) {
            [owner] => owner,
            [] => return refuse("only create pods with an owner reference set to itself"),
            _ => return refuse("only create pods with a single owner reference set to itself"),
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return refuse("only create pods with an owner reference set to itself");
        }
        if owner["controller"] != true {
            return refuse("only create pods with a controller owner reference set to itself");
        }
        if owner["blockOwnerDeletion"] == true {
            return Err(request.forbidden(format_args!(
                "node {node:?} must not set blockOwnerDeletion on an owner reference"
            )));
        }
        let uid = match self.state.node_uid(node) {
            Some(uid) => uid,
            None => {
                self.freshness.catch_up(Resource::Nodes).await;
                self.state.node_uid(node).ok_or_else(|| Status::not_found("", "nodes", node))?
            }
        };
        let claimed = text(&owner["uid"]);
        if *uid != *claimed {
            return Err(
                request.forbidden(format_args!("node {node} UID mismatch: expected {claimed} got {uid}"))
            );
        }
        if !text(&pod["spec"]["serviceAccountName"]).is_empty() {
            return refuse("not create pods that reference a service account");
        }
        let mut referenced = false;
        secrets(pod, |_| referenced = true);
        if referenced {
            return refuse("not create pods that reference secrets");
        }
        config_maps(pod, |_| referenced = true);
        if referenced {
            return refuse("not create pods that reference configmaps");
        }
        for volume in volumes(pod) {
            let projected = items(&volume["projected"]["sources"]);
            if projected.iter().any(|source| source["clusterTrustBundle"].is_object()) {
                return refuse("not create pods that reference clustertrustbundles");
            }
            if volume["persistentVolumeClaim"].is_object() {
                return refuse("not create pods that reference persistentvolumeclaims");
            }
        }
        if !items(&pod["spec"]["resourceClaims"]).is_empty() {
            return refuse("not create pods that reference resourceclaims");
        }
        Ok(())
    }

    async fn eviction(&self, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create {
            return Err(
                request.forbidden(format_args!("unexpected operation {}", request.operation.as_str()))
            );
        }
        let name = match request.name {
            "" => request.object.as_deref().map(|eviction| text(&eviction["metadata"]["name"])),
            name => Some(name),
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Err(request.forbidden("could not determine pod from request data"));
        };
        if *self.existing_pod(request, name).await?.node == *node {
            return Ok(());
        }
        Err(request
            .forbidden(format_args!("node {node} can only evict pods with spec.nodeName set to itself")))
    }

    async fn token(&self, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if request.operation != Operation::Create || request.subresource != "token" {
            return Ok(());
        }
        let spec = request.object.as_deref().map_or(&Value::Null, |object| &object["spec"]);
        let reference = &spec["boundObjectRef"];
        let name = text(&reference["name"]);
        if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" || name.is_empty() {
            return Err(request.forbidden("node requested token not bound to a pod"));
        }
        let uid = text(&reference["uid"]);
        if uid.is_empty() {
            return Err(request.forbidden("node requested token with a pod binding without a uid"));
        }
        let pod = self.existing_pod(request, name).await?;
        if *pod.uid != *uid {
            return Err(request.forbidden(format_args!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            )));
        }
        if *pod.node != *node {
            return Err(
                request.forbidden("node requested token bound to a pod scheduled on a different node")
            );
        }
        self.audience(request, spec, &pod)
    }

    /// A node asks only for audiences that the pod asks for, unless it has been granted others.
    fn audience(&self, request: &AdmissionRequest<'_>, spec: &Value, pod: &Pod) -> Result<(), Status> {
        let mut audiences = texts(&spec["audiences"]);
        let audience = audiences.next().unwrap_or_default();
        if audiences.next().is_some() {
            return Err(request.forbidden("node may only request 0 or 1 audiences"));
        }
        if audience.is_empty() || pod.token_audiences.iter().any(|own| **own == *audience) {
            return Ok(());
        }
        let decision = self.authorizer.authorize(&Attributes {
            verb: "request-serviceaccounts-token-audience",
            resource: audience,
            api_version: "v1",
            namespace: request.namespace,
            name: request.name,
            resource_request: true,
            ..Attributes::of(request.user)
        });
        if decision.is_allowed() {
            return Ok(());
        }
        Err(request.forbidden(format_args!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            request.user.name
        )))
    }
}

fn pod_status(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    if request.operation != Operation::Update {
        return Err(request.forbidden(format_args!("unexpected operation {:?}", request.operation.as_str())));
    }
    let old = request.old_object.unwrap_or(&Value::Null);
    let new = request.object.as_deref().unwrap_or(&Value::Null);
    if old["spec"]["nodeName"] != node {
        return Err(request.forbidden(format_args!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        )));
    }
    if !changed_keys(&old["metadata"]["labels"], &new["metadata"]["labels"]).is_empty() {
        return Err(request.forbidden(format_args!("node {node:?} cannot update labels through pod status")));
    }
    let claims = |pod: &Value| {
        let statuses = items(&pod["status"]["resourceClaimStatuses"]).iter();
        statuses.map(|claim| (claim["name"].clone(), claim["resourceClaimName"].clone())).collect::<Vec<_>>()
    };
    let extended = |pod: &Value| pod["status"]["extendedResourceClaimStatus"].clone();
    if claims(old) != claims(new) {
        return Err(request.forbidden(format_args!("node {node:?} cannot update resource claim statues")));
    }
    if extended(old) != extended(new) {
        return Err(
            request.forbidden(format_args!("node {node:?} cannot update extended resource claim statuses"))
        );
    }
    Ok(())
}

fn claim_status(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    if request.subresource != "status" {
        return Err(request.forbidden("may only update PVC status"));
    }
    if request.operation != Operation::Update {
        return Err(request.forbidden(format_args!("unexpected operation {:?}", request.operation.as_str())));
    }
    let rest = |object: Option<&Value>| {
        let mut object = object.cloned().unwrap_or_default();
        for (part, fields) in [
            ("metadata", &["resourceVersion", "managedFields"][..]),
            ("status", &["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"][..]),
        ] {
            if let Some(part) = object.get_mut(part).and_then(Value::as_object_mut) {
                part.retain(|field, _| !fields.contains(&field.as_str()));
            }
        }
        object
    };
    if rest(request.old_object) == rest(request.object.as_deref()) {
        return Ok(());
    }
    Err(request.forbidden(format_args!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    )))
}

fn own_name(node: &str, request: &AdmissionRequest<'_>, what: &str) -> Result<(), Status> {
    // The URL of a create has no name.
    let name = match (request.operation, request.object.as_deref()) {
        (Operation::Create, Some(object)) => text(&object["metadata"]["name"]),
        _ => request.name,
    };
    if name == node {
        return Ok(());
    }
    Err(request.forbidden(format_args!("can only access {what} with the same name as the requesting node")))
}

fn resource_slice(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let (object, verb) = match request.operation {
        Operation::Create => (request.object.as_deref(), "create"),
        Operation::Delete => (request.old_object, "delete"),
        // The node name is immutable, and the authorizer has looked at it.
        _ => return Ok(()),
    };
    if object.is_some_and(|slice| slice["spec"]["nodeName"] == node) {
        return Ok(());
    }
    Err(request.forbidden(format_args!(
        "can only {verb} ResourceSlice with the same NodeName as the requesting node"
    )))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate};
    use super::*;
    use crate::authz::union::Always;
    use crate::observed::{AlwaysFresh, Event, Observer};
    use crate::user::UserInfo;
    use serde_json::json;

    fn plugin() -> NodeRestriction {
        let state = State::default();
        for (resource, object) in [
            (Resource::Nodes, json!({"metadata": {"name": "a", "uid": "na"}})),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "mine", "uid": "pm"}, "spec": {"nodeName": "a",
                    "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}}]}}),
            ),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "other", "uid": "po"}, "spec": {"nodeName": "b"}}),
            ),
        ] {
            state.observe(resource, Event::Upsert(&object));
        }
        NodeRestriction {
            state: Arc::new(state),
            freshness: Arc::new(AlwaysFresh),
            authorizer: Arc::new(Always(false)),
        }
    }

    fn check(
        operation: Operation,
        thing: &str,
        (namespace, name): (&str, &str),
        objects: (Value, Value),
        expected: Result<(), &str>,
    ) {
        let (group, resource) = thing.split_once(':').unwrap_or(("", thing));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (old, new) = objects;
        let given = Given {
            user: UserInfo::new("system:node:a", &[NODES]),
            operation,
            group,
            resource,
            subresource,
            namespace,
            name,
            old: Some(old),
            ..Given::default()
        };
        match (mutate(&plugin(), &given, new.clone()), expected) {
            (Ok(left), Ok(())) => assert_eq!(left, new),
            (Err(status), Err(text)) => assert!(status.message.contains(text), "{}", status.message),
            (result, expected) => panic!("{operation:?} {thing} {name}: {result:?}, expected {expected:?}"),
        }
    }

    use Operation::{Create, Delete, Update};

    #[test]
    fn pods() {
        let mirror = |change: Value| {
            let mut pod = json!({"metadata": {"name": "m", "annotations": {MIRROR_ANNOTATION: "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "na", "controller": true}]},
                "spec": {"nodeName": "a"}});
            for (part, fields) in change.as_object().unwrap() {
                for (field, value) in fields.as_object().unwrap() {
                    pod[part][field] = value.clone();
                }
            }
            (Value::Null, pod)
        };
        let m = ("ns", "m");
        check(Create, "pods", m, mirror(json!({})), Ok(()));
        for (change, text) in [
            (json!({"metadata": {"annotations": {}}}), "can only create mirror pods"),
            (json!({"spec": {"nodeName": "b"}}), "spec.nodeName set to itself"),
            (json!({"metadata": {"ownerReferences": []}}), "with an owner reference set to itself"),
            (
                json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "old", "controller": true}]}}),
                "node a UID mismatch: expected old got na",
            ),
            (
                json!({"spec": {"serviceAccountName": "x"}}),
                "can not create pods that reference a service account",
            ),
            (
                json!({"spec": {"imagePullSecrets": [{"name": "x"}]}}),
                "can not create pods that reference secrets",
            ),
            (
                json!({"spec": {"volumes": [{"configMap": {"name": "x"}}]}}),
                "can not create pods that reference configmaps",
            ),
            (
                json!({"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "x"}}]}}),
                "can not create pods that reference persistentvolumeclaims",
            ),
        ] {
            check(Create, "pods", m, mirror(change), Err(text));
        }
        let none = || (Value::Null, json!({}));
        check(Delete, "pods", ("ns", "mine"), none(), Ok(()));
        check(
            Delete,
            "pods",
            ("ns", "other"),
            none(),
            Err(r#"node "a" can only delete pods with spec.nodeName set to itself"#),
        );
        check(Delete, "pods", ("ns", "gone"), none(), Err(r#"pods "gone" not found"#));
        check(Update, "pods", ("ns", "mine"), none(), Err("can only create and delete mirror pods"));
        check(Create, "pods/eviction", ("ns", "mine"), none(), Ok(()));
        check(Create, "pods/eviction", ("ns", "other"), none(), Err("can only evict pods"));
        check(Create, "pods/exec", ("ns", "mine"), none(), Err("unexpected pod subresource \"exec\""));
        let status = |node: &str, label: &str| {
            let pod = json!({"metadata": {"labels": {"a": label}}, "spec": {"nodeName": node}});
            let old = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": node}});
            (old, pod)
        };
        check(Update, "pods/status", ("ns", "p"), status("a", "1"), Ok(()));
        check(Update, "pods/status", ("ns", "p"), status("b", "1"), Err("can only update pod status"));
        check(
            Update,
            "pods/status",
            ("ns", "p"),
            status("a", "2"),
            Err("cannot update labels through pod status"),
        );
    }

    #[test]
    fn nodes() {
        let labelled = |label: &str| json!({"metadata": {"name": "a", "labels": {label: "x"}}});
        let plain = || json!({"metadata": {"name": "a"}});
        check(Create, "nodes", ("", ""), (Value::Null, plain()), Ok(()));
        check(
            Create,
            "nodes",
            ("", "b"),
            (Value::Null, plain()),
            Err(r#"node "a" is not allowed to modify node "b""#),
        );
        for (label, allowed) in [
            ("kubernetes.io/hostname", true),
            ("example.com/x", true),
            ("plain", true),
            ("kubelet.kubernetes.io/x", true),
            ("sub.node.kubernetes.io/x", true),
            ("node-restriction.kubernetes.io/x", false),
            ("sub.node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("x.k8s.io/y", false),
            ("notkubernetes.io/y", true),
        ] {
            let created = if allowed { Ok(()) } else { Err("is not allowed to set the following labels") };
            check(Create, "nodes", ("", "a"), (Value::Null, labelled(label)), created);
            let updated = if allowed { Ok(()) } else { Err("is not allowed to modify labels") };
            check(Update, "nodes", ("", "a"), (labelled(label), plain()), updated);
            check(Update, "nodes/status", ("", "a"), (labelled(label), labelled(label)), Ok(()));
        }
        let tainted = json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "k"}]}});
        check(Update, "nodes", ("", "a"), (tainted, plain()), Err("is not allowed to modify taints"));
        let null_taints = json!({"metadata": {"name": "a"}, "spec": {"taints": []}});
        check(Update, "nodes", ("", "a"), (null_taints, plain()), Ok(()));
    }

    #[test]
    fn tokens() {
        let request = |name: &str, uid: &str, audiences: &[&str]| {
            (
                Value::Null,
                json!({"spec": {"audiences": audiences,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}}),
            )
        };
        let token =
            |objects, expected| check(Create, "serviceaccounts/token", ("ns", "sa"), objects, expected);
        token(request("mine", "pm", &[]), Ok(()));
        token(request("mine", "pm", &["vault"]), Ok(()));
        token(request("mine", "pm", &["other"]), Err(r#"audience "other" not found in pod spec volume"#));
        token(request("mine", "pm", &["vault", "other"]), Err("node may only request 0 or 1 audiences"));
        token(request("mine", "", &[]), Err("pod binding without a uid"));
        token(request("mine", "old", &[]), Err("does not match the UID in record"));
        token(request("other", "po", &[]), Err("scheduled on a different node"));
        token((Value::Null, json!({"spec": {}})), Err("not bound to a pod"));
    }

    #[test]
    fn own_objects() {
        let named = |name: &str| (Value::Null, json!({"metadata": {"name": name}}));
        check(Create, "coordination.k8s.io:leases", ("kube-node-lease", ""), named("a"), Ok(()));
        check(
            Create,
            "coordination.k8s.io:leases",
            ("kube-node-lease", ""),
            named("b"),
            Err("with the same name as the requesting node"),
        );
        check(
            Update,
            "coordination.k8s.io:leases",
            ("kube-system", "a"),
            named("a"),
            Err("system namespace"),
        );
        check(Update, "storage.k8s.io:csinodes", ("", "b"), named("b"), Err("can only access CSINode"));
        let slice = |node: &str| (Value::Null, json!({"spec": {"nodeName": node}}));
        check(Create, "resource.k8s.io:resourceslices", ("", "s"), slice("a"), Ok(()));
        check(Create, "resource.k8s.io:resourceslices", ("", "s"), slice("b"), Err("same NodeName"));
        let claim = |capacity: &str, volume: &str| json!({"metadata": {"resourceVersion": capacity}, "spec": {"volumeName": volume}, "status": {"capacity": capacity}});
        let update = |old, new, expected| {
            check(Update, "persistentvolumeclaims/status", ("ns", "c"), (old, new), expected)
        };
        update(claim("1", "v"), claim("2", "v"), Ok(()));
        update(
            claim("1", "v"),
            claim("1", "w"),
            Err("not allowed to update fields other than status.capacity"),
        );
    }

    #[test]
    fn others_are_not_its_business() {
        let given = Given { resource: "nodes", name: "b", ..Given::default() };
        assert!(mutate(&plugin(), &given, json!({"metadata": {"name": "b"}})).is_ok());
    }
}

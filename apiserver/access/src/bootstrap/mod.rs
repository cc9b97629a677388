//! What a cluster has before anybody writes to it: upstream's RBAC policy, system priority classes
//! and system namespaces, as data.
//!
//! The server creates what is missing of [`objects`] at each start and applies [`reconcile()`] to
//! what is there; then [`aggregation::outdated`] tells which aggregated cluster roles to fill.
//! Pure: nothing here reads or writes a cluster.

pub mod aggregation;
mod cluster_roles;
mod controller_roles;
mod namespace_roles;
pub mod reconcile;

use serde_json::{Value, json};

pub(crate) use cluster_roles::NODE_RULES;
pub use reconcile::{Reconciled, reconcile};

use crate::authz::rules::PolicyRule;

const READ: &str = "get,list,watch";
const READ_UPDATE: &str = "get,list,watch,update,patch";
const WRITE: &str = "create,update,patch,delete,deletecollection";
const READ_WRITE: &str = "get,list,watch,create,update,patch,delete,deletecollection";

/// One policy rule; each part is a list separated by commas. The core group is the empty string.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    verbs: &'static str,
    /// None: a rule of URLs.
    groups: Option<&'static str>,
    /// Resources, or URLs.
    things: &'static str,
    names: &'static str,
}

const fn on(verbs: &'static str, groups: &'static str, resources: &'static str) -> Rule {
    Rule { verbs, groups: Some(groups), things: resources, names: "" }
}

const fn named(
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
) -> Rule {
    Rule { verbs, groups: Some(groups), things: resources, names }
}

const fn urls(urls: &'static str) -> Rule {
    // Only cluster-admin may do more than read: its URLs are all.
    let verbs = if urls.len() == 1 { "*" } else { "get" };
    Rule { verbs, groups: None, things: urls, names: "" }
}

struct ClusterRole {
    name: &'static str,
    /// Label `rbac.authorization.k8s.io/aggregate-to-…`, or empty.
    aggregates_to: &'static str,
    /// Collects roles with that label, or empty.
    aggregates: &'static str,
    rules: &'static [Rule],
}

impl Rule {
    /// As upstream stores it: every list sorted.
    pub(crate) fn compile(&self) -> PolicyRule {
        let list = |text: &str| -> Vec<Box<str>> {
            let mut list: Vec<Box<str>> = text.split(',').map(Into::into).collect();
            list.sort_unstable();
            list
        };
        let mut rule = PolicyRule { verbs: list(self.verbs), ..PolicyRule::default() };
        match self.groups {
            Some(groups) => {
                rule.api_groups = list(groups);
                rule.resources = list(self.things);
            }
            None => rule.non_resource_urls = list(self.things),
        }
        if !self.names.is_empty() {
            rule.resource_names = list(self.names);
        }
        rule
    }
}

fn rules(rules: &[Rule]) -> Value {
    rules.iter().map(|rule| rule.compile().to_json()).collect()
}

fn policy_object(kind: &str, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name},
    });
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object["metadata"]["labels"] = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    object["metadata"]["annotations"] = json!({"rbac.authorization.kubernetes.io/autoupdate": "true"});
    object
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &str) -> Value {
    let (kind, role_kind) =
        if namespace.is_empty() { ("ClusterRoleBinding", "ClusterRole") } else { ("RoleBinding", "Role") };
    let mut object = policy_object(kind, namespace, name);
    object["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role});
    let subjects: Vec<Value> = subjects.split(',').filter_map(subject).collect();
    if !subjects.is_empty() {
        object["subjects"] = json!(subjects);
    }
    object
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    Some(match kind {
        "S" => json!({"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}),
        _ => {
            let kind = if kind == "G" { "Group" } else { "User" };
            json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name})
        }
    })
}

fn cluster_role(role: &ClusterRole) -> Value {
    let label = |to: &str| format!("rbac.authorization.k8s.io/aggregate-to-{to}");
    let mut object = policy_object("ClusterRole", "", role.name);
    if !role.aggregates_to.is_empty() {
        object["metadata"]["labels"][label(role.aggregates_to)] = json!("true");
    }
    if role.aggregates.is_empty() {
        object["rules"] = rules(role.rules);
    } else {
        object["rules"] = json!([]);
        object["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchLabels": {label(role.aggregates): "true"}}]});
    }
    object
}

/// Cluster roles, cluster role bindings, roles, role bindings: in the order to create them. The
/// aggregated roles are filled.
#[must_use]
pub fn policy() -> Vec<Value> {
    let mut roles: Vec<Value> = cluster_roles::CLUSTER_ROLES.iter().map(cluster_role).collect();
    let mut bindings: Vec<Value> = cluster_roles::CLUSTER_ROLE_BINDINGS
        .iter()
        .map(|(name, subjects)| binding("", name, name, subjects))
        .collect();
    for (controller, role_rules) in controller_roles::CONTROLLER_ROLES {
        let name = format!("system:controller:{controller}");
        let mut role = policy_object("ClusterRole", "", &name);
        role["rules"] = rules(role_rules);
        roles.push(role);
        bindings.push(binding("", &name, &name, &format!("S:{controller}")));
    }
    for (name, filled) in aggregation::outdated(&roles) {
        if let Some(role) = roles.iter_mut().find(|role| role["metadata"]["name"] == name) {
            role["rules"] = filled;
        }
    }
    let mut objects = roles;
    objects.extend(bindings);
    objects.extend(namespace_roles::ROLES.iter().map(|(namespace, name, role_rules)| {
        let mut role = policy_object("Role", namespace, name);
        role["rules"] = rules(role_rules);
        role
    }));
    objects.extend(
        namespace_roles::ROLE_BINDINGS
            .iter()
            .map(|(namespace, name, role, subjects)| binding(namespace, name, role, subjects)),
    );
    objects
}

/// `default`, `kube-node-lease`, `kube-public` and `kube-system`.
#[must_use]
pub fn namespaces() -> Vec<Value> {
    ["kube-system", "kube-public", "kube-node-lease", "default"]
        .into_iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .collect()
}

/// `system-node-critical` and `system-cluster-critical`.
#[must_use]
pub fn priority_classes() -> Vec<Value> {
    SYSTEM_PRIORITY_CLASSES
        .iter()
        .map(|(name, value, description)| {
            json!({
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
                "description": description,
                "preemptionPolicy": "PreemptLowerPriority",
            })
        })
        .collect()
}

pub(crate) const SYSTEM_PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// Everything, in the order to create it: namespaces, priority classes, policy.
#[must_use]
pub fn objects() -> Vec<Value> {
    let mut objects = namespaces();
    objects.extend(priority_classes());
    objects.extend(policy());
    objects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::rbac::Rbac;
    use crate::authz::{Attributes, Authorizer};
    use crate::observed::{Event, Observer, Resource};
    use crate::user::UserInfo;
    use std::collections::HashSet;

    fn bootstrapped() -> Rbac {
        let rbac = Rbac::default();
        for object in policy() {
            let resource = match object["kind"].as_str().unwrap() {
                "ClusterRole" => Resource::ClusterRoles,
                "ClusterRoleBinding" => Resource::ClusterRoleBindings,
                "Role" => Resource::Roles,
                _ => Resource::RoleBindings,
            };
            rbac.observe(resource, Event::Upsert(&object));
        }
        rbac
    }

    #[test]
    fn names_are_unique_and_bindings_find_their_roles() {
        let objects = objects();
        let key = |object: &Value| {
            let metadata = &object["metadata"];
            format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"])
        };
        let keys: HashSet<String> = objects.iter().map(key).collect();
        assert_eq!(keys.len(), objects.len());
        for object in objects.iter().filter(|object| object["roleRef"].is_object()) {
            let role = &object["roleRef"];
            let wanted = format!("{} {} {}", role["kind"], object["metadata"]["namespace"], role["name"]);
            assert!(keys.contains(&wanted), "{wanted}");
        }
    }

    #[test]
    fn daemons_and_people_may_do_what_upstream_lets_them() {
        let rbac = bootstrapped();
        let check = |user: &UserInfo, verb: &str, namespace: &str, thing: &str, expected: bool| {
            let (group, resource) = thing.split_once(':').unwrap_or(("", thing));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = Attributes {
                verb,
                namespace,
                api_group: group,
                resource,
                subresource,
                resource_request: true,
                ..Attributes::of(user)
            };
            assert_eq!(rbac.authorize(&attributes).is_allowed(), expected, "{user:?} {verb} {thing}");
        };
        let scheduler = UserInfo::new("system:kube-scheduler", &["system:authenticated"]);
        check(&scheduler, "create", "x", "pods/binding", true);
        check(&scheduler, "watch", "", "pods", true);
        check(&scheduler, "create", "x", "pods", false);
        check(&scheduler, "get", "kube-system", "configmaps", false);
        let manager = UserInfo::new("system:kube-controller-manager", &["system:authenticated"]);
        check(&manager, "watch", "", "apps:deployments", true);
        check(&manager, "create", "kube-system", "serviceaccounts/token", true);
        check(&manager, "delete", "x", "pods", false);
        let jobs = UserInfo::new("system:serviceaccount:kube-system:job-controller", &[]);
        check(&jobs, "create", "x", "pods", true);
        check(&jobs, "create", "x", "secrets", false);
        let proxy = UserInfo::new("system:kube-proxy", &[]);
        check(&proxy, "watch", "", "discovery.k8s.io:endpointslices", true);
        check(&proxy, "list", "", "pods", false);
        let dns = UserInfo::new("system:serviceaccount:kube-system:kube-dns", &[]);
        check(&dns, "watch", "", "services", true);
        let someone = UserInfo::new("jane", &["system:authenticated"]);
        check(&someone, "create", "", "authorization.k8s.io:selfsubjectaccessreviews", true);
        check(&someone, "list", "default", "pods", false);
        let admin = UserInfo::new("root", &["system:masters"]);
        check(&admin, "escalate", "", "rbac.authorization.k8s.io:clusterroles", true);
        check(&UserInfo::new("system:node:a", &["system:nodes"]), "get", "", "nodes", false);
    }

    #[test]
    fn strangers_see_health_and_version_only() {
        let rbac = bootstrapped();
        let anonymous = UserInfo::anonymous();
        for (path, expected) in
            [("/healthz", true), ("/version", true), ("/api", false), ("/metrics", false), ("/livez", true)]
        {
            let attributes = Attributes { verb: "get", path, ..Attributes::of(&anonymous) };
            assert_eq!(rbac.authorize(&attributes).is_allowed(), expected, "{path}");
        }
    }

    #[test]
    fn aggregated_roles_hold_what_they_aggregate() {
        let policy = policy();
        let rules = |name: &str| {
            let role =
                policy.iter().find(|role| role["kind"] == "ClusterRole" && role["metadata"]["name"] == name);
            PolicyRule::parse_all(&role.unwrap()["rules"])
        };
        let includes = |outer: &str, inner: &str| {
            let outer = rules(outer);
            rules(inner).iter().all(|rule| outer.contains(rule))
        };
        assert!(includes("view", "system:aggregate-to-view"));
        assert!(includes("edit", "view") && includes("edit", "system:aggregate-to-edit"));
        assert!(includes("admin", "edit") && includes("admin", "system:aggregate-to-admin"));
        assert!(
            !includes("view", "system:aggregate-to-edit") && !includes("edit", "system:aggregate-to-admin")
        );
    }
}

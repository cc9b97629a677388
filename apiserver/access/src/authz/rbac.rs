//! The RBAC authorizer: roles and bindings, indexed by subject.
//!
//! Invariants: a request looks only at bindings of its user and groups, in the cluster and in its
//! namespace; reasons are written when a binding is observed; a binding whose role is missing
//! grants nothing.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use super::rules::PolicyRule;
use super::{Attributes, Authorizer, Decision, NonResourceRule, Reason, ResourceRule, Rules};
use crate::observed::{Event, Observer, Resource};
use crate::state::{Namespaced, items, key, text};
use crate::user::{UserInfo, service_account_user};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    Role,
    ClusterRole,
}

impl RoleKind {
    #[must_use]
    pub fn parse(kind: &str) -> Option<Self> {
        match kind {
            "Role" => Some(Self::Role),
            "ClusterRole" => Some(Self::ClusterRole),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Binding {
    role_kind: RoleKind,
    role_name: Box<str>,
    /// Subject → why a request of that subject is allowed.
    subjects: Vec<(Subject, Arc<str>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(Box<str>),
    Group(Box<str>),
}

#[derive(Debug)]
struct Grant {
    binding_name: Box<str>,
    role_kind: RoleKind,
    role_name: Box<str>,
    reason: Arc<str>,
}

/// Who is granted what by the bindings of one namespace, or of the cluster.
#[derive(Debug, Default)]
struct Grants {
    users: HashMap<Box<str>, Vec<Grant>>,
    groups: HashMap<Box<str>, Vec<Grant>>,
}

impl Grants {
    fn add(&mut self, binding_name: &str, binding: &Binding) {
        for (subject, reason) in &binding.subjects {
            let (map, name) = match subject {
                Subject::User(name) => (&mut self.users, name),
                Subject::Group(name) => (&mut self.groups, name),
            };
            map.entry(name.clone()).or_default().push(Grant {
                binding_name: binding_name.into(),
                role_kind: binding.role_kind,
                role_name: binding.role_name.clone(),
                reason: reason.clone(),
            });
        }
    }

    fn remove(&mut self, binding_name: &str, binding: &Binding) {
        for (subject, _) in &binding.subjects {
            let (map, name) = match subject {
                Subject::User(name) => (&mut self.users, name),
                Subject::Group(name) => (&mut self.groups, name),
            };
            if let Some(grants) = map.get_mut(name) {
                grants.retain(|grant| *grant.binding_name != *binding_name);
                if grants.is_empty() {
                    map.remove(name);
                }
            }
        }
    }

    fn of<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(user.name.as_str()).into_iter();
        let groups = user.groups.iter().filter_map(|group| self.groups.get(group.as_str()));
        own.chain(groups).flatten()
    }
}

#[derive(Default)]
struct Policy {
    cluster_roles: HashMap<Box<str>, Arc<[PolicyRule]>>,
    roles: Namespaced<Arc<[PolicyRule]>>,
    cluster_bindings: HashMap<Box<str>, Binding>,
    bindings: Namespaced<Binding>,
    cluster_grants: Grants,
    grants: HashMap<Box<str>, Grants>,
}

impl Policy {
    fn role(&self, kind: RoleKind, namespace: &str, name: &str) -> Option<&Arc<[PolicyRule]>> {
        match kind {
            RoleKind::ClusterRole => self.cluster_roles.get(name),
            RoleKind::Role => self.roles.get(namespace, name),
        }
    }

    /// The user's grants: the cluster's, then those of the namespace (with it).
    fn grants_of<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Grant)> {
        let cluster = self.cluster_grants.of(user).map(|grant| ("", grant));
        let local = self.grants.get(namespace).filter(|_| !namespace.is_empty());
        cluster
            .chain(local.into_iter().flat_map(|grants| grants.of(user)).map(move |grant| (namespace, grant)))
    }
}

/// RBAC over everything observed so far.
#[derive(Default)]
pub struct Rbac(RwLock<Policy>);

impl Rbac {
    /// The rules of a role; None when it is not there.
    #[must_use]
    pub fn role_rules(&self, kind: RoleKind, namespace: &str, name: &str) -> Option<Arc<[PolicyRule]>> {
        self.0.read().role(kind, namespace, name).cloned()
    }

    /// All rules that apply to a user in a namespace, and what could not be resolved.
    #[must_use]
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let policy = self.0.read();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for (namespace, grant) in policy.grants_of(user, namespace) {
            match policy.role(grant.role_kind, namespace, &grant.role_name) {
                Some(role) => rules.extend_from_slice(role),
                None => errors.push(missing_role(grant)),
            }
        }
        (rules, errors)
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let policy = self.0.read();
        let mut missing = Vec::new();
        for (namespace, grant) in policy.grants_of(attributes.user, attributes.namespace) {
            match policy.role(grant.role_kind, namespace, &grant.role_name) {
                Some(role) if role.iter().any(|rule| rule.allows(attributes)) => {
                    return Decision::Allow(Reason::Shared(grant.reason.clone()));
                }
                Some(_) => {}
                None => missing.push(grant),
            }
        }
        // Only refusals over dangling bindings are worth words made on the spot.
        Decision::NoOpinion(match missing.as_slice() {
            [] => Reason::NONE,
            [grant] => Reason::Shared(format!("RBAC: {}", missing_role(grant)).into()),
            grants => {
                let all: Vec<String> = grants.iter().map(|grant| missing_role(grant)).collect();
                Reason::Shared(format!("RBAC: [{}]", all.join(", ")).into())
            }
        })
    }

    fn rules(&self, user: &UserInfo, namespace: &str, rules: &mut Rules) {
        let (found, errors) = self.rules_for(user, namespace);
        let strings = |list: Vec<Box<str>>| list.into_iter().map(Into::into).collect::<Vec<String>>();
        for rule in found {
            if !rule.resources.is_empty() {
                rules.resource.push(ResourceRule {
                    verbs: strings(rule.verbs.clone()),
                    api_groups: strings(rule.api_groups),
                    resources: strings(rule.resources),
                    resource_names: strings(rule.resource_names),
                });
            }
            if !rule.non_resource_urls.is_empty() {
                rules.non_resource.push(NonResourceRule {
                    verbs: strings(rule.verbs),
                    non_resource_urls: strings(rule.non_resource_urls),
                });
            }
        }
        rules.errors.extend(errors);
    }
}

fn missing_role(grant: &Grant) -> String {
    let kind = match grant.role_kind {
        RoleKind::ClusterRole => "clusterrole",
        RoleKind::Role => "role",
    };
    format!("{kind}.rbac.authorization.k8s.io {:?} not found", grant.role_name)
}

impl Observer for Rbac {
    fn observe(&self, resource: Resource, event: Event<'_>) {
        // Compiled before the lock is taken.
        match (resource, event) {
            (Resource::ClusterRoles, Event::Upsert(object)) => {
                let rules = PolicyRule::parse_all(&object["rules"]).into();
                self.0.write().cluster_roles.insert(key(object).1.into(), rules);
            }
            (Resource::ClusterRoles, Event::Delete { name, .. }) => {
                self.0.write().cluster_roles.remove(name);
            }
            (Resource::Roles, Event::Upsert(object)) => {
                let (namespace, name) = key(object);
                let rules = PolicyRule::parse_all(&object["rules"]).into();
                self.0.write().roles.insert(namespace, name, rules);
            }
            (Resource::Roles, Event::Delete { namespace, name }) => {
                self.0.write().roles.remove(namespace, name);
            }
            (Resource::ClusterRoleBindings, Event::Upsert(object)) => {
                let (_, name) = key(object);
                let binding = parse_binding(object, "");
                let policy = &mut *self.0.write();
                if let Some(old) = policy.cluster_bindings.remove(name) {
                    policy.cluster_grants.remove(name, &old);
                }
                if let Some(binding) = binding {
                    policy.cluster_grants.add(name, &binding);
                    policy.cluster_bindings.insert(name.into(), binding);
                }
            }
            (Resource::ClusterRoleBindings, Event::Delete { name, .. }) => {
                let policy = &mut *self.0.write();
                if let Some(old) = policy.cluster_bindings.remove(name) {
                    policy.cluster_grants.remove(name, &old);
                }
            }
            (Resource::RoleBindings, Event::Upsert(object)) => {
                let (namespace, name) = key(object);
                let binding = parse_binding(object, namespace);
                let policy = &mut *self.0.write();
                let grants = policy.grants.entry(namespace.into()).or_default();
                if let Some(old) = policy.bindings.remove(namespace, name) {
                    grants.remove(name, &old);
                }
                if let Some(binding) = binding {
                    grants.add(name, &binding);
                    policy.bindings.insert(namespace, name, binding);
                }
            }
            (Resource::RoleBindings, Event::Delete { namespace, name }) => {
                let policy = &mut *self.0.write();
                if let (Some(old), Some(grants)) =
                    (policy.bindings.remove(namespace, name), policy.grants.get_mut(namespace))
                {
                    grants.remove(name, &old);
                    if grants.users.is_empty() && grants.groups.is_empty() {
                        policy.grants.remove(namespace);
                    }
                }
            }
            _ => {}
        }
    }
}

/// None: a role reference of an unknown kind, which grants nothing.
fn parse_binding(object: &Value, namespace: &str) -> Option<Binding> {
    let role = &object["roleRef"];
    let (kind, role_name) = (text(&role["kind"]), text(&role["name"]));
    let role_kind = RoleKind::parse(kind)?;
    let name = text(&object["metadata"]["name"]);
    let binding = if namespace.is_empty() {
        format!("ClusterRoleBinding {name:?}")
    } else {
        format!("RoleBinding {:?}", format!("{name}/{namespace}"))
    };
    let subjects = items(&object["subjects"]).iter().filter_map(|subject| {
        let subject_name = text(&subject["name"]);
        let (subject, described) = match text(&subject["kind"]) {
            "User" => (Subject::User(subject_name.into()), format!("User {subject_name:?}")),
            "Group" => (Subject::Group(subject_name.into()), format!("Group {subject_name:?}")),
            "ServiceAccount" => {
                let own = text(&subject["namespace"]);
                let own = if own.is_empty() { namespace } else { own };
                if own.is_empty() {
                    return None;
                }
                let user = service_account_user(own, subject_name);
                let described = format!("ServiceAccount {:?}", format!("{subject_name}/{own}"));
                (Subject::User(user.into()), described)
            }
            _ => return None,
        };
        let reason = format!("RBAC: allowed by {binding} of {kind} {role_name:?} to {described}");
        Some((subject, reason.into()))
    });
    Some(Binding { role_kind, role_name: role_name.into(), subjects: subjects.collect() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn role(namespace: &str, name: &str, rules: &Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name}, "rules": rules})
    }

    pub(crate) fn binding(namespace: &str, name: &str, role: (&str, &str), subject: Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name},
            "roleRef": {"kind": role.0, "name": role.1}, "subjects": [subject]})
    }

    fn rbac() -> Rbac {
        let rbac = Rbac::default();
        let pods = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]);
        let urls = json!([{"verbs": ["get"], "nonResourceURLs": ["/metrics"]}]);
        for (resource, object) in [
            (Resource::ClusterRoles, role("", "pods", &pods)),
            (Resource::ClusterRoles, role("", "urls", &urls)),
            (Resource::Roles, role("a", "pods", &pods)),
            (
                Resource::ClusterRoleBindings,
                binding("", "dev", ("ClusterRole", "pods"), json!({"kind": "Group", "name": "dev"})),
            ),
            (
                Resource::ClusterRoleBindings,
                binding(
                    "",
                    "prom",
                    ("ClusterRole", "urls"),
                    json!({"kind": "ServiceAccount", "namespace": "mon", "name": "prom"}),
                ),
            ),
            (
                Resource::ClusterRoleBindings,
                binding("", "lost", ("ClusterRole", "gone"), json!({"kind": "User", "name": "lost"})),
            ),
            (
                Resource::RoleBindings,
                binding("a", "jane", ("Role", "pods"), json!({"kind": "User", "name": "jane"})),
            ),
            (
                Resource::RoleBindings,
                binding("b", "jane", ("ClusterRole", "pods"), json!({"kind": "User", "name": "jane"})),
            ),
            (
                Resource::RoleBindings,
                binding("c", "jane", ("Role", "pods"), json!({"kind": "User", "name": "jane"})),
            ),
            (
                Resource::RoleBindings,
                binding("a", "local", ("Role", "pods"), json!({"kind": "ServiceAccount", "name": "sa"})),
            ),
        ] {
            rbac.observe(resource, Event::Upsert(&object));
        }
        rbac
    }

    fn get_pods(rbac: &Rbac, user: &UserInfo, namespace: &str) -> Decision {
        rbac.authorize(&Attributes {
            verb: "get",
            namespace,
            resource: "pods",
            resource_request: true,
            ..Attributes::of(user)
        })
    }

    #[test]
    fn allows_what_bindings_grant_where_they_grant_it() {
        let rbac = rbac();
        let check = |name: &str, groups: &[&str], namespace: &str, expected: Result<&str, &str>| {
            let user = UserInfo::new(name, groups);
            let decision = get_pods(&rbac, &user, namespace);
            let result = if decision.is_allowed() { Ok(decision.reason()) } else { Err(decision.reason()) };
            assert_eq!(result, expected, "{name} in {namespace}");
        };
        let dev = r#"RBAC: allowed by ClusterRoleBinding "dev" of ClusterRole "pods" to Group "dev""#;
        check("x", &["dev"], "", Ok(dev));
        check("x", &["dev"], "anywhere", Ok(dev));
        check("x", &[], "a", Err(""));
        check("jane", &[], "a", Ok(r#"RBAC: allowed by RoleBinding "jane/a" of Role "pods" to User "jane""#));
        check(
            "jane",
            &[],
            "b",
            Ok(r#"RBAC: allowed by RoleBinding "jane/b" of ClusterRole "pods" to User "jane""#),
        );
        check("jane", &[], "c", Err(r#"RBAC: role.rbac.authorization.k8s.io "pods" not found"#));
        check("jane", &[], "", Err(""));
        check(
            "system:serviceaccount:a:sa",
            &[],
            "a",
            Ok(r#"RBAC: allowed by RoleBinding "local/a" of Role "pods" to ServiceAccount "sa/a""#),
        );
        check("system:serviceaccount:b:sa", &[], "a", Err(""));
        check("lost", &[], "a", Err(r#"RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found"#));
    }

    #[test]
    fn follows_changes_and_deletions() {
        let rbac = rbac();
        let jane = UserInfo::new("jane", &[]);
        let allowed = |namespace: &str| get_pods(&rbac, &jane, namespace).is_allowed();
        assert!(allowed("a"));
        let changed = binding("a", "jane", ("Role", "pods"), json!({"kind": "User", "name": "joe"}));
        rbac.observe(Resource::RoleBindings, Event::Upsert(&changed));
        assert!(!allowed("a") && get_pods(&rbac, &UserInfo::new("joe", &[]), "a").is_allowed());
        assert!(allowed("b"));
        rbac.observe(Resource::ClusterRoles, Event::Delete { namespace: "", name: "pods" });
        assert!(!allowed("b"));
        rbac.observe(Resource::RoleBindings, Event::Delete { namespace: "b", name: "jane" });
        assert_eq!(get_pods(&rbac, &jane, "b").reason(), "");
    }

    #[test]
    fn lists_rules() {
        let rbac = rbac();
        let mut rules = Rules::default();
        rbac.rules(&UserInfo::new("system:serviceaccount:mon:prom", &["dev"]), "a", &mut rules);
        assert_eq!(rules.resource.len(), 1);
        assert_eq!(rules.non_resource[0].non_resource_urls, ["/metrics"]);
        let dev = UserInfo::new("x", &["dev"]);
        let metrics = Attributes { verb: "get", path: "/metrics", ..Attributes::of(&dev) };
        assert!(!rbac.authorize(&metrics).is_allowed());
    }
}

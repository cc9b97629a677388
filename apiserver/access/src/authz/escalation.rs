//! Privilege escalation: nobody may grant, through roles or bindings, what they do not hold, unless
//! they may `escalate` the role or `bind` it.
//!
//! Asked by the server before it writes roles and bindings. Cold path.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::rbac::{Rbac, RoleKind};
use super::rules::{PolicyRule, url_matches};
use super::{Attributes, Authorizer};
use crate::state::{key, text};
use crate::status::Status;
use crate::user::{MASTERS, UserInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks the write of a Role or ClusterRole; `old` is None on create.
///
/// # Errors
/// 403 with upstream's list of what the user lacks.
pub fn check_role(
    user: &UserInfo,
    kind: RoleKind,
    new: &Value,
    old: Option<&Value>,
    rbac: &Rbac,
    authorizer: &dyn Authorizer,
) -> Result<(), Status> {
    let (namespace, name) = key(new);
    let resource = match kind {
        RoleKind::Role => "roles",
        RoleKind::ClusterRole => "clusterroles",
    };
    if user.in_group(MASTERS) || may(user, "escalate", resource, namespace, name, authorizer) {
        return Ok(());
    }
    if old.is_some_and(|old| only_collectors_fields_differ(new, old)) {
        return Ok(());
    }
    let rules = PolicyRule::parse_all(&new["rules"]);
    confirm_no_escalation(user, namespace, &rules, rbac)
        .map_err(|error| Status::forbidden(GROUP, resource, name, error))?;
    // Taking a rule away would leave what it gathered so far.
    let gathers = |role: &Value| {
        role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|list| !list.is_empty())
    };
    let aggregates = kind == RoleKind::ClusterRole && (gathers(new) || old.is_some_and(gathers));
    if aggregates && confirm_no_escalation(user, namespace, &everything(), rbac).is_err() {
        let error = "must have cluster-admin privileges to use an aggregationRule";
        return Err(Status::forbidden(GROUP, resource, name, error));
    }
    Ok(())
}

/// Checks the write of a RoleBinding (with a namespace) or ClusterRoleBinding.
///
/// # Errors
/// 403 with upstream's list of what the user lacks; 404 when the role does not exist.
pub fn check_binding(
    user: &UserInfo,
    new: &Value,
    old: Option<&Value>,
    rbac: &Rbac,
    authorizer: &dyn Authorizer,
) -> Result<(), Status> {
    let (namespace, name) = key(new);
    let role = &new["roleRef"];
    let role_name = text(&role["name"]);
    if user.in_group(MASTERS) {
        return Ok(());
    }
    let Some(kind) = RoleKind::parse(text(&role["kind"])) else {
        return Err(Status::bad_request(format!(
            "unsupported role reference kind: {:?}",
            text(&role["kind"])
        )));
    };
    let role_resource = match kind {
        RoleKind::Role => "roles",
        RoleKind::ClusterRole => "clusterroles",
    };
    if old.is_some_and(|old| only_collectors_fields_differ(new, old))
        || may(user, "bind", role_resource, namespace, role_name, authorizer)
    {
        return Ok(());
    }
    let rules = rbac
        .role_rules(kind, namespace, role_name)
        .ok_or_else(|| Status::not_found(GROUP, role_resource, role_name))?;
    let resource = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    confirm_no_escalation(user, namespace, &rules, rbac)
        .map_err(|error| Status::forbidden(GROUP, resource, name, error))
}

/// The garbage collector must be able to finish deletions whatever the object grants. Labels are
/// not in this: they decide what aggregated roles take in.
fn only_collectors_fields_differ(new: &Value, old: &Value) -> bool {
    const FREE: [&str; 4] = ["ownerReferences", "finalizers", "managedFields", "resourceVersion"];
    let fields = |object: &Value| object.as_object().cloned().unwrap_or_default();
    let (mut new, mut old) = (fields(new), fields(old));
    let [new_metadata, old_metadata] = [&mut new, &mut old].map(|object| {
        let mut metadata = object.remove("metadata").as_ref().map(fields).unwrap_or_default();
        metadata.retain(|field, _| !FREE.contains(&field.as_str()));
        metadata
    });
    new == old && new_metadata == old_metadata
}

fn may(
    user: &UserInfo,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
    authorizer: &dyn Authorizer,
) -> bool {
    let attributes = Attributes {
        verb,
        api_group: GROUP,
        api_version: "*",
        resource,
        namespace,
        name,
        resource_request: true,
        ..Attributes::of(user)
    };
    authorizer.authorize(&attributes).is_allowed()
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".into()];
    [
        PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..PolicyRule::default() },
        PolicyRule { verbs: all(), non_resource_urls: all(), ..PolicyRule::default() },
    ]
}

fn confirm_no_escalation(
    user: &UserInfo,
    namespace: &str,
    wanted: &[PolicyRule],
    rbac: &Rbac,
) -> Result<(), String> {
    if wanted.iter().map(combinations).fold(0, usize::saturating_add) > MAX_COMBINATIONS {
        return Err(format!(
            "user {:?} is attempting to grant more than {MAX_COMBINATIONS} combinations of verbs and things: they cannot be checked",
            user.name
        ));
    }
    let (held, errors) = rbac.rules_for(user, namespace);
    let missing: Vec<Atom> =
        wanted.iter().flat_map(break_down).filter(|atom| !held.iter().any(|rule| atom.is_in(rule))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut message = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(user.groups.iter().map(String::as_str)),
        compact(missing).into_iter().collect::<Vec<_>>().join("\n")
    );
    match errors.as_slice() {
        [] => {}
        [error] => message.push_str(&format!("; resolution errors: [{error}]")),
        errors => message.push_str(&format!("; resolution errors: [{}]", errors.join(" "))),
    }
    Err(message)
}

/// The wanted rules that are not wholly within what is held.
#[must_use]
pub fn uncovered(wanted: &[PolicyRule], held: &[PolicyRule]) -> Vec<PolicyRule> {
    let covered =
        |rule: &&PolicyRule| break_down(rule).iter().all(|atom| held.iter().any(|held| atom.is_in(held)));
    wanted.iter().filter(|rule| !covered(rule)).cloned().collect()
}

/// One verb on one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Resource { group: Box<str>, resource: Box<str>, name: Option<Box<str>>, verb: Box<str> },
    Url { url: Box<str>, verb: Box<str> },
}

/// A few kilobytes of lists multiply to more than any memory holds.
const MAX_COMBINATIONS: usize = 200_000;

/// How many atoms [`break_down`] would make.
fn combinations(rule: &PolicyRule) -> usize {
    let resources = rule.resources.len().saturating_mul(rule.resource_names.len().max(1));
    let things = rule.api_groups.len().saturating_mul(resources).saturating_add(rule.non_resource_urls.len());
    rule.verbs.len().saturating_mul(things)
}

fn break_down(rule: &PolicyRule) -> Vec<Atom> {
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom = |name: Option<&Box<str>>| Atom::Resource {
                    group: group.clone(),
                    resource: resource.clone(),
                    name: name.cloned(),
                    verb: verb.clone(),
                };
                if rule.resource_names.is_empty() {
                    atoms.push(atom(None));
                }
                atoms.extend(rule.resource_names.iter().map(|name| atom(Some(name))));
            }
        }
        atoms.extend(
            rule.non_resource_urls.iter().map(|url| Atom::Url { url: url.clone(), verb: verb.clone() }),
        );
    }
    atoms
}

impl Atom {
    fn is_in(&self, held: &PolicyRule) -> bool {
        let has = |list: &[Box<str>], item: &str| list.iter().any(|own| **own == *"*" || **own == *item);
        match self {
            Self::Resource { group, resource, name, verb } => {
                has(&held.verbs, verb)
                    && has(&held.api_groups, group)
                    && (has(&held.resources, resource) || covers_subresource(&held.resources, resource))
                    && (held.resource_names.is_empty()
                        || name.as_ref().is_some_and(|name| held.resource_names.contains(name)))
            }
            Self::Url { url, verb } => {
                has(&held.verbs, verb) && held.non_resource_urls.iter().any(|own| url_matches(own, url))
            }
        }
    }
}

fn covers_subresource(held: &[Box<str>], resource: &str) -> bool {
    let Some((_, subresource)) = resource.split_once('/') else { return false };
    held.iter().any(|own| own.strip_prefix("*/") == Some(subresource))
}

/// Missing rights, one line for each thing with all its verbs, sorted.
fn compact(missing: Vec<Atom>) -> BTreeSet<String> {
    let mut things: BTreeMap<Atom, Vec<Box<str>>> = BTreeMap::new();
    for atom in missing {
        let (thing, verb) = match atom {
            Atom::Resource { group, resource, name, verb } => {
                (Atom::Resource { group, resource, name, verb: "".into() }, verb)
            }
            Atom::Url { url, verb } => (Atom::Url { url, verb: "".into() }, verb),
        };
        let verbs = things.entry(thing).or_default();
        if !verbs.contains(&verb) {
            verbs.push(verb);
        }
    }
    let line = |(thing, verbs): (Atom, Vec<Box<str>>)| {
        let verbs = quoted(verbs.iter().map(|verb| &**verb));
        match thing {
            Atom::Resource { group, resource, name, .. } => {
                let names = name.map(|name| format!(", ResourceNames:[{name:?}]")).unwrap_or_default();
                format!("{{APIGroups:[{group:?}], Resources:[{resource:?}]{names}, Verbs:{verbs}}}")
            }
            Atom::Url { url, .. } => format!("{{NonResourceURLs:[{url:?}], Verbs:{verbs}}}"),
        }
    };
    things.into_iter().map(line).collect()
}

/// A list as Go's `%q` prints it.
fn quoted<'a>(list: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = list.map(|item| format!("{item:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::super::rbac::tests::{binding, role};
    use super::*;
    use crate::observed::{Event, Observer, Resource};
    use serde_json::json;

    fn rbac() -> Rbac {
        let rbac = Rbac::default();
        let subject = |name: &str| json!({"kind": "User", "name": name});
        let rule = |verbs: &[&str], group: &str, resource: &str| json!([{"verbs": verbs, "apiGroups": [group], "resources": [resource]}]);
        for (resource, object) in [
            (Resource::ClusterRoles, role("", "read", &rule(&["get", "list"], "", "pods"))),
            (Resource::ClusterRoles, role("", "write", &rule(&["create"], "", "pods"))),
            (Resource::ClusterRoles, role("", "root", &rule(&["*"], "*", "*"))),
            (Resource::ClusterRoles, role("", "granter", &rule(&["escalate", "bind"], "*", "*"))),
            (
                Resource::ClusterRoleBindings,
                binding("", "reader", ("ClusterRole", "read"), subject("reader")),
            ),
            (
                Resource::ClusterRoleBindings,
                binding("", "granter", ("ClusterRole", "granter"), subject("granter")),
            ),
            (Resource::ClusterRoleBindings, binding("", "root", ("ClusterRole", "root"), subject("root"))),
        ] {
            rbac.observe(resource, Event::Upsert(&object));
        }
        rbac
    }

    fn outcome(result: Result<(), Status>) -> Option<String> {
        result.err().map(|status| status.message)
    }

    #[test]
    fn roles_grant_only_what_their_writer_holds() {
        let rbac = rbac();
        let check = |user: &str, new: Value, old: Option<Value>, expected: Option<&str>| {
            let user = UserInfo::new(user, &["g", "h"]);
            let result = check_role(&user, RoleKind::Role, &new, old.as_ref(), &rbac, &rbac);
            assert_eq!(outcome(result).as_deref(), expected);
        };
        let pods = |verbs: &[&str]| {
            role("ns", "r", &json!([{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]))
        };
        check("reader", pods(&["get"]), None, None);
        check("reader", pods(&["list", "get"]), None, None);
        let refusal = "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"reader\" (groups=[\"g\" \"h\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\" \"delete\"]}";
        check("reader", pods(&["get", "create", "delete"]), None, Some(refusal));
        check("reader", pods(&["create"]), Some(pods(&["create"])), None);
        let mut collected = pods(&["create"]);
        collected["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
        check("reader", collected, Some(pods(&["create"])), None);
        let mut labelled = pods(&["create"]);
        labelled["metadata"]["labels"] = json!({"a": "b"});
        let refusal = refusal.replace(r#""create" "delete""#, r#""create""#);
        check("reader", labelled, Some(pods(&["create"])), Some(&refusal));
        check("granter", pods(&["create"]), None, None);
        check("root", pods(&["create"]), None, None);

        let many: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let bomb = role("ns", "r", &json!([{"verbs": many, "apiGroups": many, "resources": many}]));
        let reader = UserInfo::new("reader", &[]);
        let refused = outcome(check_role(&reader, RoleKind::Role, &bomb, None, &rbac, &rbac)).unwrap();
        assert!(refused.ends_with("they cannot be checked"), "{refused}");
    }

    #[test]
    fn a_cluster_role_that_aggregates_needs_everything() {
        let rbac = rbac();
        let mut aggregate = role("", "a", &json!([]));
        aggregate["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
        let check = |user: UserInfo, expected: Option<&str>| {
            let result = check_role(&user, RoleKind::ClusterRole, &aggregate, None, &rbac, &rbac);
            assert_eq!(outcome(result).as_deref(), expected);
        };
        let refusal = r#"clusterroles.rbac.authorization.k8s.io "a" is forbidden: must have cluster-admin privileges to use an aggregationRule"#;
        check(UserInfo::new("reader", &[]), Some(refusal));
        check(UserInfo::new("reader", &[MASTERS]), None);
    }

    #[test]
    fn bindings_grant_only_what_their_writer_holds() {
        let rbac = rbac();
        let check = |user: &str, role: &str, expected: Option<&str>| {
            let object = binding("ns", "b", ("ClusterRole", role), json!({"kind": "User", "name": "x"}));
            let result = check_binding(&UserInfo::new(user, &[]), &object, None, &rbac, &rbac);
            assert_eq!(outcome(result).as_deref(), expected);
        };
        check("reader", "read", None);
        check(
            "reader",
            "write",
            Some(
                "rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: user \"reader\" (groups=[]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"create\"]}",
            ),
        );
        check("reader", "gone", Some(r#"clusterroles.rbac.authorization.k8s.io "gone" not found"#));
        check("granter", "root", None);
    }
}

//! `rbac.authorization.k8s.io/v1`: roles and their bindings. Whether a user may grant what a role holds is not
//! decided here (the API server's access package knows who asks).

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, text, wide},
    equality::equal,
    fields::{Fields, Fill},
    kind::{Column, NameRule, Spec},
    names, rules,
};

const GROUP: &str = "rbac.authorization.k8s.io";

const RBAC: Spec =
    Spec { group: GROUP, create_on_update: true, name_rule: NameRule::PathSegment, ..Spec::STORED };

pub(crate) const ROLE: Spec = Spec {
    kind: "Role",
    plural: "roles",
    singular: "role",
    storage_prefix: Some("roles"),
    columns: columns::NAME_AND_CREATED_AT,
    strategy: &Role { namespaced: true },
    ..RBAC
};

pub(crate) const CLUSTER_ROLE: Spec = Spec {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    storage_prefix: Some("clusterroles"),
    columns: columns::NAME_AND_CREATED_AT,
    strategy: &Role { namespaced: false },
    ..RBAC
};

pub(crate) const ROLE_BINDING: Spec = Spec {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    storage_prefix: Some("rolebindings"),
    columns: BINDING_COLUMNS,
    strategy: &Binding { namespaced: true },
    ..RBAC
};

pub(crate) const CLUSTER_ROLE_BINDING: Spec = Spec {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    storage_prefix: Some("clusterrolebindings"),
    columns: BINDING_COLUMNS,
    strategy: &Binding { namespaced: false },
    ..RBAC
};

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    text("Role", "The role that is granted."),
    AGE,
    wide("Users", "Users that it is granted to."),
    wide("Groups", "Groups that it is granted to."),
    wide("ServiceAccounts", "Service accounts that it is granted to."),
];

struct Role {
    namespaced: bool,
}

impl Strategy for Role {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let path = Path::new("rules");
        for (index, rule) in object.list("rules").iter().enumerate() {
            policy_rule(rule, self.namespaced, &path.index(index), &mut causes);
        }
        let aggregation = object.at("aggregationRule");
        if !self.namespaced && !aggregation.is_null() {
            let selectors = aggregation.list("clusterRoleSelectors");
            let path = Path::new("aggregationRule");
            let path = path.child("clusterRoleSelectors");
            if selectors.is_empty() {
                causes.required(
                    &path,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                );
            }
            for (index, selector) in selectors.iter().enumerate() {
                rules::label_selector(selector, &path.index(index), &mut causes);
            }
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        columns::name_and_created_at(object)
    }
}

fn policy_rule(rule: &Value, namespaced: bool, path: &Path<'_>, causes: &mut Causes) {
    let empty = |field: &str| rule.list(field).is_empty();
    if empty("verbs") {
        causes.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    if !empty("nonResourceURLs") {
        let value = rule.at("nonResourceURLs").clone();
        if namespaced {
            causes.invalid(
                &path.child("nonResourceURLs"),
                value.clone(),
                "namespaced rules cannot apply to non-resource URLs",
            );
        }
        if !empty("apiGroups") || !empty("resources") || !empty("resourceNames") {
            causes.invalid(
                &path.child("nonResourceURLs"),
                value,
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if empty("apiGroups") {
        causes.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if empty("resources") {
        causes.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
}

struct Binding {
    namespaced: bool,
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        if let Some(role) = object.part("roleRef") {
            role.fill_text("apiGroup", GROUP);
        }
        for subject in object.items("subjects") {
            if matches!(subject.text("kind"), "User" | "Group") {
                subject.fill_text("apiGroup", GROUP);
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (role, path) = (object.at("roleRef"), Path::new("roleRef"));
        if role.text("apiGroup") != GROUP {
            causes.not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
        if !kinds.contains(&role.text("kind")) {
            causes.not_supported(&path.child("kind"), role.text("kind"), kinds);
        }
        match role.text("name") {
            "" => causes.required(&path.child("name"), ""),
            name => causes.syntax(&path.child("name"), name, names::path_segment(name, false)),
        }
        let path = Path::new("subjects");
        for (index, subject) in object.list("subjects").iter().enumerate() {
            subject_causes(subject, self.namespaced, &path.index(index), &mut causes);
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        if !equal(new.at("roleRef"), old.at("roleRef")) {
            causes.invalid(&Path::new("roleRef"), new.at("roleRef").clone(), "cannot change roleRef");
        }
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let role = object.at("roleRef");
        let of = |kind: &str| {
            let names: Vec<String> = object
                .list("subjects")
                .iter()
                .filter(|subject| subject.text("kind") == kind)
                .map(|subject| match kind {
                    "ServiceAccount" => format!("{}/{}", subject.text("namespace"), subject.text("name")),
                    _ => subject.text("name").to_owned(),
                })
                .collect();
            names.join(", ")
        };
        vec![
            columns::name(object),
            format!("{}/{}", role.text("kind"), role.text("name")).into(),
            columns::age(object, now),
            of("User").into(),
            of("Group").into(),
            of("ServiceAccount").into(),
        ]
    }
}

fn subject_causes(subject: &Value, namespaced: bool, path: &Path<'_>, causes: &mut Causes) {
    let (name, group) = (subject.text("name"), subject.text("apiGroup"));
    if name.is_empty() {
        causes.required(&path.child("name"), "");
    }
    match subject.text("kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                causes.syntax(&path.child("name"), name, names::dns_subdomain(name));
            }
            if !group.is_empty() {
                causes.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced && subject.text("namespace").is_empty() {
                causes.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                causes.not_supported(&path.child("apiGroup"), group, &[GROUP]);
            }
        }
        other => {
            causes.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn roles() {
        fn check(namespaced: bool, rule: Value, expected: &[&str]) {
            let causes = Role { namespaced }.validate_create(&json!({"rules": [rule]}));
            let fields: Vec<String> = causes.into_iter().map(|c| c.field).collect();
            assert_eq!(fields, expected);
        }
        check(true, json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), &[]);
        check(true, json!({}), &["rules[0].verbs", "rules[0].apiGroups", "rules[0].resources"]);
        check(false, json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}), &[]);
        check(
            true,
            json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
            &["rules[0].nonResourceURLs"],
        );
        check(
            false,
            json!({"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["a"]}),
            &["rules[0].nonResourceURLs"],
        );
    }

    #[test]
    fn bindings() {
        let kind = ROLE_BINDING.kind();
        let mut object = json!({"metadata": {"name": "system:a:b", "namespace": "x"},
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "x"}]});
        kind.default(&mut object);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(kind.validate_create(&object), []);
        assert_eq!(
            kind.row(&object, Timestamp::UNIX_EPOCH),
            ["system:a:b", "Role/r", "<unknown>", "u", "", "x/s"].map(Value::from)
        );
        let mut new = object.clone();
        new["roleRef"]["name"] = json!("other");
        assert_eq!(
            Binding { namespaced: true }.validate_update(&new, &object)[0].message,
            "Invalid value: {\"kind\":\"Role\",\"name\":\"other\",\"apiGroup\":\"rbac.authorization.k8s.io\"}: cannot change roleRef"
        );
        assert_eq!(Binding { namespaced: false }.validate_create(&object)[0].field, "roleRef.kind");
        new["subjects"] = json!([{"kind": "Robot"}]);
        let fields: Vec<String> = kind.validate_create(&new).into_iter().map(|c| c.field).collect();
        assert_eq!(fields, ["subjects[0].name", "subjects[0].kind"]);
    }
}

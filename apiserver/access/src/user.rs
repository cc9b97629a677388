//! The identity of a requester and upstream's well-known names.
//!
//! Invariant: a [`UserInfo`] that left an authenticator carries exactly one of the groups
//! `system:authenticated` and `system:unauthenticated`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub const ANONYMOUS: &str = "system:anonymous";
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
pub const MASTERS: &str = "system:masters";
pub const NODES: &str = "system:nodes";
pub const NODE_PREFIX: &str = "system:node:";
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
pub const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
pub const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";
pub const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
pub const EXTRA_NODE_UID: &str = "authentication.kubernetes.io/node-uid";
pub const EXTRA_CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who makes a request, as `authentication.k8s.io/v1 UserInfo` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    #[must_use]
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The API server acting for itself on its own loopback.
    #[must_use]
    pub fn apiserver() -> Self {
        Self::new("system:apiserver", &[MASTERS, ALL_AUTHENTICATED])
    }

    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[ALL_UNAUTHENTICATED])
    }

    #[must_use]
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node this user is, when it is a kubelet: name `system:node:<node>`, group `system:nodes`.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.in_group(NODES))
    }

    /// Namespace and name, when the user is a service account.
    #[must_use]
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.name.strip_prefix(SERVICE_ACCOUNT_PREFIX)?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
    }

    /// The JSON of `authentication.k8s.io/v1 UserInfo`, empty fields left out.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut user = json!({});
        if !self.name.is_empty() {
            user["username"] = json!(self.name);
        }
        if !self.uid.is_empty() {
            user["uid"] = json!(self.uid);
        }
        if !self.groups.is_empty() {
            user["groups"] = json!(self.groups);
        }
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// `system:serviceaccount:<namespace>:<name>`
#[must_use]
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_nodes_and_service_accounts() {
        fn check(name: &str, groups: &[&str], node: Option<&str>, account: Option<(&str, &str)>) {
            let user = UserInfo::new(name, groups);
            assert_eq!(user.node_name(), node, "{name}");
            assert_eq!(user.service_account(), account, "{name}");
        }
        check("system:node:a", &[NODES], Some("a"), None);
        check("system:node:a", &[], None, None);
        check("system:serviceaccount:ns:sa", &[], None, Some(("ns", "sa")));
        check("system:serviceaccount:ns", &[], None, None);
        check("system:serviceaccount:ns:a:b", &[], None, None);
    }
}

//! The little this package remembers of the objects it was shown: enough for token checks and
//! admission, never whole objects.
//!
//! Invariants: lookups allocate nothing; a fact is dropped with its object; times are Unix seconds.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::observed::{Event, Observer, Resource};
use crate::pod_references::token_audiences;

/// Facts by namespace and name.
#[derive(Debug)]
pub struct Namespaced<T>(HashMap<Box<str>, HashMap<Box<str>, T>>);

impl<T> Default for Namespaced<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Namespaced<T> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.0.get(namespace)?.get(name)
    }

    pub fn get_mut(&mut self, namespace: &str, name: &str) -> Option<&mut T> {
        self.0.get_mut(namespace)?.get_mut(name)
    }

    pub fn entry(&mut self, namespace: &str, name: &str) -> &mut T
    where
        T: Default,
    {
        self.0.entry(namespace.into()).or_default().entry(name.into()).or_default()
    }

    pub fn insert(&mut self, namespace: &str, name: &str, fact: T) -> Option<T> {
        match self.0.get_mut(namespace) {
            Some(names) => names.insert(name.into(), fact),
            None => self.0.entry(namespace.into()).or_default().insert(name.into(), fact),
        }
    }

    pub fn remove(&mut self, namespace: &str, name: &str) -> Option<T> {
        let names = self.0.get_mut(namespace)?;
        let fact = names.remove(name);
        if names.is_empty() {
            self.0.remove(namespace);
        }
        fact
    }

    pub fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&str, &T)> {
        self.0.get(namespace).into_iter().flatten().map(|(name, fact)| (&**name, fact))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub terminating: bool,
    /// Labels of PodSecurity only, without their prefix.
    pub pod_security: Vec<(Box<str>, Box<str>)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub uid: Box<str>,
    pub node: Box<str>,
    pub service_account: Box<str>,
    pub deleted_at: Option<i64>,
    /// Of its projected tokens, without the API server's.
    pub token_audiences: Vec<Box<str>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    pub uid: Box<str>,
    pub deleted_at: Option<i64>,
    /// SHA-256 of the token, of secrets of type `kubernetes.io/service-account-token`.
    pub token: Option<[u8; 32]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    pub uid: Box<str>,
    pub deleted_at: Option<i64>,
    pub automount: Option<bool>,
    pub image_pull_secrets: Vec<Box<str>>,
    /// The secrets pods may mount, when `kubernetes.io/enforce-mountable-secrets` says so.
    pub mountable_secrets: Option<Vec<Box<str>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityClass {
    pub name: Box<str>,
    pub value: i64,
    pub global_default: bool,
    pub preemption_policy: Option<Box<str>>,
}

#[derive(Debug, Default)]
struct Facts {
    namespaces: HashMap<Box<str>, Namespace>,
    nodes: HashMap<Box<str>, Box<str>>,
    pods: Namespaced<Pod>,
    secrets: Namespaced<Secret>,
    service_accounts: Namespaced<Arc<ServiceAccount>>,
    priority_classes: HashMap<Box<str>, PriorityClass>,
    limit_ranges: Namespaced<Arc<Value>>,
}

/// What exists, as far as it has been observed.
#[derive(Debug, Default)]
pub struct State {
    facts: RwLock<Facts>,
    service_account_seen: Notify,
}

impl State {
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<Namespace> {
        self.facts.read().namespaces.get(name).cloned()
    }

    /// The node's UID.
    #[must_use]
    pub fn node_uid(&self, name: &str) -> Option<Box<str>> {
        self.facts.read().nodes.get(name).cloned()
    }

    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        self.facts.read().pods.get(namespace, name).cloned()
    }

    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Secret> {
        self.facts.read().secrets.get(namespace, name).cloned()
    }

    #[must_use]
    pub fn service_account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>> {
        self.facts.read().service_accounts.get(namespace, name).cloned()
    }

    /// Resolves when the account has been observed; the caller bounds the wait.
    pub async fn service_account_appears(&self, namespace: &str, name: &str) -> Arc<ServiceAccount> {
        loop {
            // Registered before the look, so that nothing between the two is missed.
            let mut seen = std::pin::pin!(self.service_account_seen.notified());
            seen.as_mut().enable();
            if let Some(account) = self.service_account(namespace, name) {
                return account;
            }
            seen.await;
        }
    }

    #[must_use]
    pub fn priority_class(&self, name: &str) -> Option<PriorityClass> {
        self.facts.read().priority_classes.get(name).cloned()
    }

    /// The class of pods that name none: the global default of the lowest value.
    #[must_use]
    pub fn default_priority_class(&self) -> Option<PriorityClass> {
        let facts = self.facts.read();
        facts
            .priority_classes
            .values()
            .filter(|class| class.global_default)
            .min_by_key(|class| class.value)
            .cloned()
    }

    /// The `spec.limits` of each LimitRange of a namespace.
    #[must_use]
    pub fn limit_ranges(&self, namespace: &str) -> Vec<(String, Arc<Value>)> {
        let facts = self.facts.read();
        let mut ranges: Vec<_> = facts
            .limit_ranges
            .in_namespace(namespace)
            .map(|(name, limits)| (name.to_owned(), limits.clone()))
            .collect();
        ranges.sort_by(|a, b| a.0.cmp(&b.0));
        ranges
    }
}

impl Observer for State {
    fn observe(&self, resource: Resource, event: Event<'_>) {
        match event {
            Event::Upsert(object) => self.upsert(resource, object),
            Event::Delete { namespace, name } => self.delete(resource, namespace, name),
        }
    }
}

impl State {
    fn upsert(&self, resource: Resource, object: &Value) {
        let (namespace, name) = key(object);
        let mut facts = self.facts.write();
        match resource {
            Resource::Namespaces => {
                facts.namespaces.insert(name.into(), namespace_facts(object));
            }
            Resource::Nodes => {
                facts.nodes.insert(name.into(), uid(object));
            }
            Resource::Pods => {
                let spec = &object["spec"];
                let pod = Pod {
                    uid: uid(object),
                    node: text(&spec["nodeName"]).into(),
                    service_account: text(&spec["serviceAccountName"]).into(),
                    deleted_at: deleted_at(object),
                    token_audiences: token_audiences(object)
                        .filter(|audience| !audience.is_empty())
                        .map(Into::into)
                        .collect(),
                };
                facts.pods.insert(namespace, name, pod);
            }
            Resource::Secrets => {
                let secret =
                    Secret { uid: uid(object), deleted_at: deleted_at(object), token: token_hash(object) };
                facts.secrets.insert(namespace, name, secret);
            }
            Resource::ServiceAccounts => {
                facts.service_accounts.insert(namespace, name, Arc::new(service_account_facts(object)));
                self.service_account_seen.notify_waiters();
            }
            Resource::PriorityClasses => {
                let class = PriorityClass {
                    name: name.into(),
                    value: object["value"].as_i64().unwrap_or_default(),
                    global_default: object["globalDefault"].as_bool().unwrap_or_default(),
                    preemption_policy: object["preemptionPolicy"].as_str().map(Into::into),
                };
                facts.priority_classes.insert(name.into(), class);
            }
            Resource::LimitRanges => {
                facts.limit_ranges.insert(namespace, name, Arc::new(object["spec"]["limits"].clone()));
            }
            _ => {}
        }
    }

    fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        let mut facts = self.facts.write();
        match resource {
            Resource::Namespaces => drop(facts.namespaces.remove(name)),
            Resource::Nodes => drop(facts.nodes.remove(name)),
            Resource::Pods => drop(facts.pods.remove(namespace, name)),
            Resource::Secrets => drop(facts.secrets.remove(namespace, name)),
            Resource::ServiceAccounts => drop(facts.service_accounts.remove(namespace, name)),
            Resource::PriorityClasses => drop(facts.priority_classes.remove(name)),
            Resource::LimitRanges => drop(facts.limit_ranges.remove(namespace, name)),
            _ => {}
        }
    }
}

/// Namespace (empty when there is none) and name.
pub(crate) fn key(object: &Value) -> (&str, &str) {
    let metadata = &object["metadata"];
    (text(&metadata["namespace"]), text(&metadata["name"]))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn texts(value: &Value) -> impl Iterator<Item = &str> {
    items(value).iter().filter_map(Value::as_str)
}

fn uid(object: &Value) -> Box<str> {
    text(&object["metadata"]["uid"]).into()
}

fn deleted_at(object: &Value) -> Option<i64> {
    let timestamp: jiff::Timestamp = object["metadata"]["deletionTimestamp"].as_str()?.parse().ok()?;
    Some(timestamp.as_second())
}

const POD_SECURITY_PREFIX: &str = "pod-security.kubernetes.io/";

fn namespace_facts(object: &Value) -> Namespace {
    let labels = object["metadata"]["labels"].as_object();
    Namespace {
        terminating: object["metadata"]["deletionTimestamp"].is_string()
            || object["status"]["phase"] == "Terminating",
        pod_security: labels
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| {
                Some((key.strip_prefix(POD_SECURITY_PREFIX)?.into(), value.as_str()?.into()))
            })
            .collect(),
    }
}

fn token_hash(secret: &Value) -> Option<[u8; 32]> {
    use base64::Engine as _;
    if secret["type"] != "kubernetes.io/service-account-token" {
        return None;
    }
    let token = base64::engine::general_purpose::STANDARD.decode(secret["data"]["token"].as_str()?).ok()?;
    Some(Sha256::digest(token).into())
}

fn service_account_facts(object: &Value) -> ServiceAccount {
    let names = |list: &Value| -> Vec<Box<str>> {
        items(list).iter().filter_map(|reference| reference["name"].as_str()).map(Into::into).collect()
    };
    let enforce = &object["metadata"]["annotations"]["kubernetes.io/enforce-mountable-secrets"];
    let enforced = matches!(text(enforce), "1" | "t" | "T" | "true" | "TRUE" | "True");
    ServiceAccount {
        uid: uid(object),
        deleted_at: deleted_at(object),
        automount: object["automountServiceAccountToken"].as_bool(),
        image_pull_secrets: names(&object["imagePullSecrets"]),
        mountable_secrets: enforced.then(|| names(&object["secrets"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn forgets_what_is_deleted() {
        let state = State::default();
        let pod = json!({"metadata": {"namespace": "a", "name": "p", "uid": "1",
            "deletionTimestamp": "1970-01-01T00:01:00Z"}, "spec": {"nodeName": "n"}});
        state.observe(Resource::Pods, Event::Upsert(&pod));
        let expected = Pod { uid: "1".into(), node: "n".into(), deleted_at: Some(60), ..Pod::default() };
        assert_eq!(state.pod("a", "p"), Some(expected));
        assert_eq!(state.pod("b", "p"), None);
        state.observe(Resource::Pods, Event::Delete { namespace: "a", name: "p" });
        assert_eq!(state.pod("a", "p"), None);
    }

    #[test]
    fn the_lowest_global_default_wins() {
        let state = State::default();
        for (name, value, default) in [("a", 10, true), ("b", 5, true), ("c", 1, false)] {
            let class = json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
            state.observe(Resource::PriorityClasses, Event::Upsert(&class));
        }
        assert_eq!(state.default_priority_class().map(|class| class.value), Some(5));
    }

    #[test]
    fn reads_the_token_of_a_secret() {
        let secret = json!({"type": "kubernetes.io/service-account-token", "data": {"token": "YWJj"}});
        assert_eq!(token_hash(&secret), Some(Sha256::digest("abc").into()));
        assert_eq!(token_hash(&json!({"type": "Opaque", "data": {"token": "YWJj"}})), None);
    }
}

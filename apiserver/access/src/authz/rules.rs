//! RBAC policy rules in compiled form, and what they match.
//!
//! Matching allocates nothing: resources with a subresource are compared in two parts.

use serde_json::{Value, json};

use super::Attributes;
use crate::state::{items, texts};

/// One `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRule {
    pub verbs: Vec<Box<str>>,
    pub api_groups: Vec<Box<str>>,
    pub resources: Vec<Box<str>>,
    pub resource_names: Vec<Box<str>>,
    pub non_resource_urls: Vec<Box<str>>,
}

impl PolicyRule {
    /// The rules of a role, as its JSON has them.
    #[must_use]
    pub fn parse_all(rules: &Value) -> Vec<Self> {
        items(rules).iter().map(Self::parse).collect()
    }

    fn parse(rule: &Value) -> Self {
        let list = |field: &str| texts(&rule[field]).map(Into::into).collect();
        Self {
            verbs: list("verbs"),
            api_groups: list("apiGroups"),
            resources: list("resources"),
            resource_names: list("resourceNames"),
            non_resource_urls: list("nonResourceURLs"),
        }
    }

    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut rule = json!({"verbs": self.verbs});
        for (field, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                rule[field] = json!(list);
            }
        }
        rule
    }

    #[must_use]
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        if attributes.resource_request {
            has(&self.api_groups, attributes.api_group)
                && self.has_resource(attributes.resource, attributes.subresource)
                && (self.resource_names.is_empty()
                    || self.resource_names.iter().any(|name| **name == *attributes.name))
        } else {
            self.non_resource_urls.iter().any(|url| url_matches(url, attributes.path))
        }
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if **rule == *"*" {
                return true;
            }
            if subresource.is_empty() {
                return **rule == *resource;
            }
            match rule.split_once('/') {
                Some((parent, child)) => child == subresource && (parent == resource || parent == "*"),
                None => false,
            }
        })
    }
}

/// Whether the list has `item` or the wildcard.
fn has(list: &[Box<str>], item: &str) -> bool {
    list.iter().any(|candidate| **candidate == *"*" || **candidate == *item)
}

/// A rule's URL is exact, or a prefix when it ends in `*`.
pub(super) fn url_matches(rule: &str, path: &str) -> bool {
    rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user::UserInfo;

    #[test]
    fn matches_resources() {
        let user = UserInfo::default();
        let check = |rule: Value, (verb, group, resource, name): (&str, &str, &str, &str), expected: bool| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let attributes = Attributes {
                verb,
                api_group: group,
                resource,
                subresource,
                name,
                resource_request: true,
                ..Attributes::of(&user)
            };
            assert_eq!(PolicyRule::parse(&rule).allows(&attributes), expected, "{rule} {attributes:?}");
        };
        let rule = |verb: &str, group: &str, resource: &str| json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]});
        check(rule("get", "", "pods"), ("get", "", "pods", "x"), true);
        check(rule("get", "", "pods"), ("list", "", "pods", ""), false);
        check(rule("get", "", "pods"), ("get", "apps", "pods", ""), false);
        check(rule("get", "", "pods"), ("get", "", "pods/log", ""), false);
        check(rule("get", "", "pods/log"), ("get", "", "pods/log", ""), true);
        check(rule("get", "", "pods/log"), ("get", "", "pods", ""), false);
        check(rule("get", "*", "*/scale"), ("get", "apps", "deployments/scale", ""), true);
        check(rule("get", "*", "*/scale"), ("get", "apps", "deployments", ""), false);
        check(rule("get", "*", "*/scale"), ("get", "apps", "deployments/status", ""), false);
        check(rule("*", "*", "*"), ("escalate", "x", "y/z", ""), true);
        check(rule("get", "", "pods/*"), ("get", "", "pods/log", ""), false);
        let named =
            json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]});
        check(named.clone(), ("get", "", "pods", "a"), true);
        check(named.clone(), ("get", "", "pods", "b"), false);
        check(named, ("get", "", "pods", ""), false);
        check(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}), ("get", "", "pods", ""), false);
    }

    #[test]
    fn matches_urls() {
        for (rule, path, expected) in [
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz/etcd", false),
            ("/healthz/*", "/healthz/etcd", true),
            ("/healthz/*", "/healthz", false),
            ("*", "/anything", true),
            ("/api*", "/apis", true),
        ] {
            assert_eq!(url_matches(rule, path), expected, "{rule} {path}");
        }
    }
}

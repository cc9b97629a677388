//! Discovery documents: `/api`, `/apis` and below, plain and aggregated, from the table of kinds.
//!
//! Built once; every answer is a finished body with an ETag of its content.

use std::{collections::HashMap, fmt::Write as _};

use base64::Engine;
use bytes::Bytes;
use keelson_registry::Kind;
use keelson_schema::resource::{GroupVersionKind, Verb};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

/// A finished document.
#[derive(Debug, Clone)]
pub struct Document {
    pub bytes: Bytes,
    /// As the `ETag` header carries it, quotes included.
    pub etag: String,
}

impl Document {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let mut etag = String::from("\"");
        for byte in Sha512::digest(&bytes) {
            let _ = write!(etag, "{byte:02X}");
        }
        etag.push('"');
        Document { bytes, etag }
    }
}

/// All documents of the built-in kinds.
pub struct Discovery {
    plain: HashMap<String, Document>,
    /// `(path, version of the aggregated form)`.
    aggregated: HashMap<(&'static str, &'static str), Document>,
}

pub const AGGREGATED_VERSIONS: &[&str] = &["v2", "v2beta1"];

impl Discovery {
    /// `server_address` is what `/api` names, `host:port`.
    pub fn new(kinds: &[&'static Kind], server_address: &str) -> Self {
        let mut plain = HashMap::new();
        let mut put = |path: &str, value: Value| {
            plain.insert(path.to_string(), Document::new(value.to_string()));
        };
        put(
            "/api",
            json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server_address }],
            }),
        );
        let groups = groups(kinds);
        put(
            "/apis",
            json!({
                "kind": "APIGroupList", "apiVersion": "v1",
                "groups": groups.iter().filter(|(name, _)| !name.is_empty())
                    .map(|(name, versions)| group(name, versions)).collect::<Value>(),
            }),
        );
        for (name, versions) in &groups {
            if !name.is_empty() {
                let mut object = json!({ "kind": "APIGroup", "apiVersion": "v1" });
                merge(&mut object, group(name, versions));
                put(&format!("/apis/{name}"), object);
            }
            for version in versions {
                let path = if name.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{name}/{version}")
                };
                put(&path, resource_list(kinds, name, version));
            }
        }
        let mut aggregated = HashMap::new();
        for form in AGGREGATED_VERSIONS {
            for (path, core) in [("/api", true), ("/apis", false)] {
                let items: Value = groups
                    .iter()
                    .filter(|(name, _)| name.is_empty() == core)
                    .map(|(name, versions)| aggregated_group(kinds, name, versions))
                    .collect();
                let value = json!({
                    "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{form}"),
                    "metadata": {}, "items": items,
                });
                aggregated.insert((path, *form), Document::new(value.to_string()));
            }
        }
        Discovery { plain, aggregated }
    }

    pub fn plain(&self, path: &str) -> Option<&Document> {
        self.plain.get(path)
    }

    pub fn aggregated(&self, path: &str, form: &str) -> Option<&Document> {
        self.aggregated.iter().find(|((p, f), _)| *p == path && *f == form).map(|(_, document)| document)
    }

    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.plain.keys().map(String::as_str)
    }
}

fn merge(object: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
        object.extend(more);
    }
}

/// Groups in the order of the table, versions by preference (stable before beta before alpha, newer first).
fn groups(kinds: &[&'static Kind]) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for kind in kinds {
        let resource = &kind.resource;
        let index = match groups.iter().position(|(name, _)| *name == resource.group) {
            Some(index) => index,
            None => {
                groups.push((resource.group.to_string(), Vec::new()));
                groups.len() - 1
            }
        };
        let versions = &mut groups[index].1;
        if !versions.iter().any(|version| *version == resource.version) {
            versions.push(resource.version.to_string());
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
    }
    groups
}

/// (stability, major, minor) of `v1`, `v2beta1`, `v1alpha3`; anything else is lowest.
fn rank(version: &str) -> (u8, u32, u32) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let tail = &rest[digits..];
    match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
        _ if tail.is_empty() => (3, major, 0),
        (Some(minor), _) => (2, major, minor.parse().unwrap_or(0)),
        (_, Some(minor)) => (1, major, minor.parse().unwrap_or(0)),
        _ => (0, 0, 0),
    }
}

fn group(name: &str, versions: &[String]) -> Value {
    let version =
        |version: &String| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Value>(),
        "preferredVersion": versions.first().map(version),
    })
}

fn verbs(verbs: &[Verb]) -> Value {
    verbs.iter().map(|verb| verb.as_str()).collect()
}

fn members<'a>(
    kinds: &'a [&'static Kind],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'static Kind> + use<'a> {
    kinds.iter().copied().filter(move |kind| kind.resource.group == group && kind.resource.version == version)
}

fn resource_list(kinds: &[&'static Kind], group: &str, version: &str) -> Value {
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let mut resources = Vec::new();
    for kind in members(kinds, group, version) {
        let resource = &kind.resource;
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": verbs(&resource.verbs),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if kind.storage_prefix.is_some() {
            entry["storageVersionHash"] =
                storage_version_hash(&crate::served::stored(kind).resource.gvk()).into();
        }
        resources.push(entry);
        for subresource in resource.subresources.iter() {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, subresource.name), "singularName": "",
                "namespaced": resource.namespaced,
            });
            if subresource.kind.group != group || subresource.kind.version != version {
                entry["group"] = subresource.kind.group.as_ref().into();
                entry["version"] = subresource.kind.version.as_ref().into();
            }
            entry["kind"] = subresource.kind.kind.as_ref().into();
            entry["verbs"] = verbs(&subresource.verbs);
            resources.push(entry);
        }
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
    })
}

/// Upstream's: base64 of the first eight bytes of SHA-256 over `group/version/kind`.
fn storage_version_hash(gvk: &GroupVersionKind) -> String {
    let digest = Sha256::digest(format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn response_kind(gvk: &GroupVersionKind, group: &str, version: &str) -> Value {
    // Empty where it is that of the document.
    if gvk.group == group && gvk.version == version {
        json!({ "group": "", "version": "", "kind": gvk.kind })
    } else {
        json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind })
    }
}

fn aggregated_group(kinds: &[&'static Kind], name: &str, versions: &[String]) -> Value {
    let version = |version: &String| {
        let mut resources: Vec<Value> = members(kinds, name, version)
            .map(|kind| {
                let resource = &kind.resource;
                let mut entry = json!({
                    "resource": resource.plural,
                    "responseKind": response_kind(&resource.gvk(), name, version),
                    "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                    "singularResource": resource.singular,
                    "verbs": verbs(&resource.verbs),
                });
                if !resource.short_names.is_empty() {
                    entry["shortNames"] = json!(resource.short_names);
                }
                if !resource.categories.is_empty() {
                    entry["categories"] = json!(resource.categories);
                }
                if !resource.subresources.is_empty() {
                    entry["subresources"] = resource
                        .subresources
                        .iter()
                        .map(|subresource| {
                            json!({
                                "subresource": subresource.name,
                                "responseKind": response_kind(&subresource.kind, name, version),
                                "verbs": verbs(&subresource.verbs),
                            })
                        })
                        .collect();
                }
                entry
            })
            .collect();
        resources.sort_by(|a, b| a["resource"].as_str().cmp(&b["resource"].as_str()));
        json!({ "version": version, "resources": resources, "freshness": "Current" })
    };
    let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
    json!({ "metadata": metadata, "versions": versions.iter().map(version).collect::<Value>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked() {
        let mut versions = ["v1beta1", "v1", "v1alpha1", "v2", "v1beta2", "x"];
        versions.sort_by_key(|version| std::cmp::Reverse(rank(version)));
        assert_eq!(versions, ["v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "x"]);
    }

    #[test]
    fn the_hash_is_upstreams() {
        let hash = |group, version, kind| storage_version_hash(&GroupVersionKind::new(group, version, kind));
        assert_eq!(hash("", "v1", "ConfigMap"), "qFsyl6wFWjQ=");
        assert_eq!(hash("", "v1", "Endpoints"), "fWeeMqaN/OA=");
    }

    #[test]
    fn documents_name_config_maps() {
        let kinds: Vec<&'static Kind> = keelson_registry::kinds().iter().collect();
        let discovery = Discovery::new(&kinds, "10.0.0.1:6443");
        let list: Value = serde_json::from_slice(&discovery.plain("/api/v1").unwrap().bytes).unwrap();
        let entry = list["resources"].as_array().unwrap().iter().find(|r| r["name"] == "configmaps").unwrap();
        assert_eq!(entry["kind"], "ConfigMap");
        assert_eq!(entry["shortNames"], json!(["cm"]));
        assert!(discovery.aggregated("/apis", "v2").is_some());
        assert!(discovery.aggregated("/apis", "v3").is_none());
    }
}

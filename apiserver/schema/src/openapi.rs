//! OpenAPI documents of what is served: version 3 by group and version, version 2 as JSON and as protobuf.
//!
//! Made on request from the types' own JSON Schemas (with descriptions), the table of facts and the list of resources;
//! nothing is kept. A document takes several MiB while it is made: callers keep the finished, compressed bytes.

mod definitions;
mod gnostic;
mod operations;
mod parameters;

use crate::resource::ApiResource;
use definitions::{Definitions, Flavor};
use prost::Message as _;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// A custom resource version and its `openAPIV3Schema`. Its resource is not among the built-in ones.
#[derive(Clone, Copy, Debug)]
pub struct Custom<'a> {
    pub resource: &'a ApiResource,
    pub schema: Option<&'a Value>,
}

/// Changes when the documents' form changes, so that clients fetch them anew.
const FORM: &str = concat!("keelson ", env!("CARGO_PKG_VERSION"), " 1");

/// `api/v1` or `apis/apps/v1`.
fn group_version_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn group_versions<'a>(
    resources: &'a [ApiResource],
    custom: &'a [Custom<'_>],
) -> BTreeSet<(&'a str, &'a str)> {
    let all = resources.iter().chain(custom.iter().map(|c| c.resource));
    all.map(|r| (&*r.group, &*r.version)).collect()
}

/// `/openapi/v3`: every group and version with the URL of its document, `/openapi/v3/apis/apps/v1?hash=…`.
pub fn v3_index(resources: &[ApiResource], custom: &[Custom<'_>]) -> Vec<u8> {
    let mut paths = Map::new();
    for (group, version) in group_versions(resources, custom) {
        let path = group_version_path(group, version);
        if let Some(hash) = v3_hash(resources, custom, group, version) {
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths}).to_string().into_bytes()
}

/// What a document depends on, as its ETag and the hash in the index; `None` if nothing is served there.
pub fn v3_hash(
    resources: &[ApiResource],
    custom: &[Custom<'_>],
    group: &str,
    version: &str,
) -> Option<String> {
    let mut hash = Sha256::new_with_prefix(FORM);
    let mut served = false;
    for (resource, schema) in of_group_version(resources, custom, group, version) {
        served = true;
        hash.update(format!("{resource:?}{schema:?}"));
    }
    served.then(|| hash.finalize().iter().map(|byte| format!("{byte:02X}")).collect())
}

fn of_group_version<'a>(
    resources: &'a [ApiResource],
    custom: &'a [Custom<'a>],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = (&'a ApiResource, Option<&'a Custom<'a>>)> {
    let built_in = resources.iter().map(|resource| (resource, None));
    let custom = custom.iter().map(|custom| (custom.resource, Some(custom)));
    built_in.chain(custom).filter(move |(resource, _)| resource.group == group && resource.version == version)
}

/// `/openapi/v3/apis/<group>/<version>` as JSON.
pub fn v3_document(
    resources: &[ApiResource],
    custom: &[Custom<'_>],
    group: &str,
    version: &str,
) -> Option<Vec<u8>> {
    let mut definitions = Definitions::new(Flavor::V3, &group_versions(resources, custom));
    let mut paths = Map::new();
    let mut served = false;
    for (resource, custom) in of_group_version(resources, custom, group, version) {
        served = true;
        if let Some(custom) = custom {
            definitions.add_custom(custom);
        }
        for path in operations::paths(resource, custom.is_some()) {
            paths.insert(path.url.clone(), path.v3(&mut definitions));
        }
    }
    if !served {
        return None;
    }
    let discovery = operations::discovery(group, version);
    paths.insert(discovery.url.clone(), discovery.v3(&mut definitions));
    paths.sort_keys();
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {
            "schemas": definitions.finish(),
            "securitySchemes": {"BearerToken": {
                "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
            }},
        },
        "security": [{"BearerToken": []}],
    });
    Some(document.to_string().into_bytes())
}

fn v2_value(resources: &[ApiResource], custom: &[Custom<'_>]) -> Value {
    let served = group_versions(resources, custom);
    let mut definitions = Definitions::new(Flavor::V2, &served);
    let mut paths = Map::new();
    for (group, version) in &served {
        for (resource, custom) in of_group_version(resources, custom, group, version) {
            if let Some(custom) = custom {
                definitions.add_custom(custom);
            }
            for path in operations::paths(resource, custom.is_some()) {
                paths.insert(path.url.clone(), path.v2(&mut definitions));
            }
        }
        let discovery = operations::discovery(group, version);
        paths.insert(discovery.url.clone(), discovery.v2(&mut definitions));
    }
    paths.sort_keys();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "definitions": definitions.finish(),
        "parameters": parameters::shared_parameters(),
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// `/openapi/v2` as JSON.
pub fn v2_json(resources: &[ApiResource], custom: &[Custom<'_>]) -> Vec<u8> {
    v2_value(resources, custom).to_string().into_bytes()
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(resources: &[ApiResource], custom: &[Custom<'_>]) -> Vec<u8> {
    gnostic::Document::from_json(v2_value(resources, custom)).encode_to_vec()
}

/// `apps_v1`, `core_v1`, `rbacAuthorization_v1`: what operations of a group and version are tagged with.
fn tag(group: &str, version: &str) -> String {
    let words = group_words(group);
    let mut tag = String::new();
    for (index, word) in words.iter().enumerate() {
        tag.push_str(&if index == 0 { word.clone() } else { capitalised(word) });
    }
    format!("{tag}_{version}")
}

/// `AppsV1`, as in operation ids.
fn camel(group: &str, version: &str) -> String {
    group_words(group).iter().map(|word| capitalised(word)).collect::<String>() + &capitalised(version)
}

fn group_words(group: &str) -> Vec<String> {
    let own = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
    own.split(['.', '-']).map(str::to_owned).collect()
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

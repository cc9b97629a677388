//! The list of CustomResourceDefinitions, which is empty: this server has none.
//!
//! kubectl asks for it when a manifest names a kind that the OpenAPI does not, and tells of the failure of this list
//! instead of the unknown kind. It is no Kind of the registry, which would bring the group into discovery and OpenAPI
//! and promise its other verbs: nothing but this LIST is served, everything else of the group is 404.

use http::Method;
use keelson_objects::{fields::FieldSelector, labels::Selector};
use keelson_storage::ListVersion;
use serde_json::json;

use super::read;
use crate::{
    encoding::{self, accept},
    generic::errors,
    http::{body::Response, chain::Exchange},
    request::{ListOptions, ResourcePath},
    server::Server,
    status::Status,
};

/// Whether the request is the one that is served.
pub fn are_listed(exchange: &Exchange, path: &ResourcePath) -> bool {
    let collection = ResourcePath {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        resource: "customresourcedefinitions".into(),
        ..ResourcePath::default()
    };
    *exchange.request.method() == Method::GET && exchange.info.verb == "list" && *path == collection
}

pub async fn list(server: &Server, exchange: &Exchange) -> Result<Response, Status> {
    let representation = accept::negotiate(exchange.headers(), false)?;
    let options = ListOptions::from_query(&exchange.query)?;
    read::validate(&options, false)?;
    // What is malformed is refused although nothing could be selected.
    let malformed = |error: String| Status::bad_request(error);
    options.label_selector.parse::<Selector>().map_err(|error| malformed(error.to_string()))?;
    options.field_selector.parse::<FieldSelector>().map_err(|error| malformed(error.to_string()))?;
    let version = ListVersion::resolve(&options.resource_version, None, false)
        .ok_or_else(|| read::invalid_version(&options.resource_version))?;
    let current = server.storage.current_revision().await.map_err(|error| errors::store(&error))?;
    if let ListVersion::AtLeast(requested) = version
        && requested > current
    {
        return Err(Status::resource_version_too_large(requested, current));
    }
    let list = json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": { "resourceVersion": current.to_string() }, "items": [],
    });
    encoding::value_response(200, &list, representation.media)
}

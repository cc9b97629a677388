//! Paths that are no resources: health, metrics, version, discovery, OpenAPI, the index.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use keelson_access::token::{JWKS_PATH, OPENID_CONFIGURATION_PATH};
use serde_json::json;
use std::sync::Arc;

use crate::{
    discovery::{AGGREGATED_VERSIONS, Document},
    encoding::accept::{self, Media},
    http::{
        body::{self, Response},
        chain::Exchange,
    },
    server::Server,
    status::Status,
};

pub async fn serve(server: &Arc<Server>, exchange: Exchange) -> Result<Response, Status> {
    if !matches!(*exchange.request.method(), Method::GET | Method::HEAD) {
        return Ok(body::not_found());
    }
    let path = exchange.info.path.as_str();
    if let Some(answer) = server.checks.answer(path, exchange.request.uri().query()) {
        let mut response = body::text(answer.status, answer.body);
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        return Ok(response);
    }
    let headers = exchange.headers();
    match path {
        "/" => return indented(&json!({ "paths": index(server) })),
        "/metrics" => {
            return Ok(body::response(
                200,
                keelson_component_base::metrics::CONTENT_TYPE,
                server.metrics.registry.encode(),
            ));
        }
        "/version" | "/version/" => return indented(&version()),
        "/openapi/v2" => return openapi_v2(server, headers),
        "/openapi/v3" => {
            return Ok(document(headers, Media::Json.content_type(), &server.openapi.v3_index()));
        }
        JWKS_PATH => {
            let keys = server.access.tokens.jwks().to_string();
            return Ok(body::response(200, "application/jwk-set+json", keys));
        }
        OPENID_CONFIGURATION_PATH => {
            let uri = format!("https://{}{JWKS_PATH}", server.advertised());
            return match server.access.tokens.openid_configuration(&uri) {
                Some(configuration) => json_response(&configuration),
                None => Ok(body::not_found()),
            };
        }
        _ => {}
    }
    if let Some(group_version) = path.strip_prefix("/openapi/v3/") {
        return openapi_v3(server, headers, group_version, exchange.query.get("hash"));
    }
    discovery(server, headers, path.strip_suffix('/').unwrap_or(path))
}

fn json_response(value: &serde_json::Value) -> Result<Response, Status> {
    Ok(body::response(200, "application/json", value.to_string()))
}

/// What people read with curl is laid out for them, as upstream does.
fn indented(value: &serde_json::Value) -> Result<Response, Status> {
    Ok(body::response(200, "application/json", format!("{value:#}")))
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": crate::VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

/// The architecture as Go names it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn index(server: &Server) -> Vec<String> {
    let mut paths: Vec<String> = server.discovery.paths().map(str::to_string).collect();
    paths.extend(
        [
            OPENID_CONFIGURATION_PATH,
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            JWKS_PATH,
            "/readyz",
            "/version",
        ]
        .map(str::to_string),
    );
    paths.sort();
    paths
}

fn discovery(server: &Server, headers: &HeaderMap, path: &str) -> Result<Response, Status> {
    if !matches!(path, "/api" | "/apis") {
        return match server.discovery.plain(path) {
            Some(found) => {
                accept::negotiate(headers, false)?;
                Ok(document(headers, "application/json", found))
            }
            None => Ok(body::not_found()),
        };
    }
    for clause in accept::clauses(headers) {
        if accept::media(clause.media) != Some(Media::Json) {
            continue;
        }
        let found = match clause.parameter("as") {
            None | Some("") => server.discovery.plain(path).map(|found| (found, "application/json")),
            Some("APIGroupDiscoveryList") if clause.parameter("g") == Some("apidiscovery.k8s.io") => {
                clause.parameter("v").filter(|form| AGGREGATED_VERSIONS.contains(form)).and_then(|form| {
                    let content_type = match form {
                        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
                    };
                    Some((server.discovery.aggregated(path, form)?, content_type))
                })
            }
            Some(_) => None,
        };
        if let Some((found, content_type)) = found {
            let mut response = document(headers, content_type, found);
            // Caches must not answer one form with the other.
            response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
            return Ok(response);
        }
    }
    Err(Status::not_acceptable(accept::SPOKEN))
}

/// A finished document, or 304 where the client has it.
fn document(headers: &HeaderMap, content_type: &'static str, found: &Document) -> Response {
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|etag| etag.trim().trim_start_matches("W/") == found.etag);
    let mut response = if known {
        body::response(304, content_type, Bytes::new())
    } else {
        body::response(200, content_type, found.bytes.clone())
    };
    if let Ok(etag) = HeaderValue::from_str(&found.etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const V2_PROTOBUF_SERVED: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn openapi_v2(server: &Server, headers: &HeaderMap) -> Result<Response, Status> {
    for clause in accept::clauses(headers) {
        match clause.media {
            V2_PROTOBUF | V2_PROTOBUF_SERVED => {
                return Ok(document(headers, V2_PROTOBUF_SERVED, &server.openapi.v2_protobuf()));
            }
            "application/json" | "*/*" | "application/*" => {
                return Ok(document(headers, "application/json", &server.openapi.v2_json()));
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable(&["application/json", V2_PROTOBUF]))
}

fn openapi_v3(
    server: &Server,
    headers: &HeaderMap,
    group_version: &str,
    hash: Option<&str>,
) -> Result<Response, Status> {
    let Some(found) = server.openapi.v3(group_version) else { return Ok(body::not_found()) };
    if !accept::clauses(headers).iter().any(|clause| accept::media(clause.media) == Some(Media::Json)) {
        return Err(Status::not_acceptable(&["application/json"]));
    }
    let mut response = document(headers, "application/json", &found);
    if let Some(hash) = hash.filter(|hash| !hash.is_empty()) {
        let current = found.etag.trim_matches('"');
        if hash == current {
            // The hash names the content: it may be kept for ever.
            response
                .headers_mut()
                .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        } else {
            let target = format!("/openapi/v3/{group_version}?hash={current}");
            let mut moved = body::response(301, "text/plain; charset=utf-8", Bytes::new());
            if let Ok(target) = HeaderValue::from_str(&target) {
                moved.headers_mut().insert(header::LOCATION, target);
            }
            return Ok(moved);
        }
    }
    Ok(response)
}

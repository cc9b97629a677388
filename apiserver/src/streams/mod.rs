//! Requests that are passed on: log, exec, attach and port-forward to the kubelet of a pod's node, and the `proxy`
//! subresources of nodes, pods and services.
//!
//! An upgrade (SPDY/3.1 or WebSocket) becomes a tunnel of bytes: this server does not look inside. Invariants:
//! the caller's credentials never travel on; a target that refuses the upgrade has its answer passed back, which is
//! what makes kubectl fall back from WebSocket to SPDY.

mod dial;
mod location;
mod tunnel;

use std::sync::Arc;

use http::{HeaderValue, Method, header};
use http_body_util::BodyExt;
use keelson_access::{
    admission::{AdmissionRequest, Operation},
    authz::Attributes,
};
use serde_json::{Value, json};

pub use dial::{Kubelet, KubeletConfigError};

use crate::{
    authorization::decide,
    http::{
        body::{self, Response},
        chain::Exchange,
    },
    request::ResourcePath,
    served::Served,
    server::Server,
    status::Status,
};

/// Serves one of the connecting subresources.
pub async fn serve(
    server: &Arc<Server>,
    served: &Served,
    path: &ResourcePath,
    exchange: Exchange,
) -> Result<Response, Status> {
    let subresource = path.subresource.as_str();
    let method = exchange.request.method();
    let allowed = match subresource {
        "log" => matches!(*method, Method::GET | Method::HEAD),
        "exec" | "attach" | "portforward" => matches!(*method, Method::GET | Method::POST),
        _ => true,
    };
    if !allowed {
        return Err(Status::method_not_allowed());
    }
    if tunnels(subresource) && exchange.info.verb != "create" {
        // Who opens a tunnel by GET (browsers must, for WebSockets) needs more than the right to read.
        decide(
            server,
            &Attributes {
                verb: "create",
                namespace: &path.namespace,
                api_group: &path.group,
                api_version: &path.version,
                resource: &path.resource,
                subresource,
                name: &path.name,
                resource_request: true,
                path: &exchange.info.path,
                ..Attributes::of(&exchange.user)
            },
        )?;
    }
    if subresource != "log" {
        admit(server, served, path, &exchange).await?;
    }
    if subresource == "proxy"
        && let Some(moved) = with_slash(path, &exchange)
    {
        return Ok(moved);
    }
    let _running = server.metrics.long_running_exchange(&exchange, &server.table);
    let location = match (path.resource.as_str(), subresource) {
        ("pods", "log") => match location::log(server, path, &exchange.query).await? {
            Some(location) => location,
            // No node yet: no log yet.
            None => return Ok(body::text(200, "")),
        },
        ("pods", "exec" | "attach") => location::exec(server, path, &exchange.query).await?,
        ("pods", "portforward") => location::port_forward(server, path, &exchange.query).await?,
        ("pods", "proxy") => location::pod_proxy(server, path, &exchange).await?,
        ("nodes", "proxy") => location::node_proxy(server, path, &exchange).await?,
        ("services", "proxy") => location::service_proxy(server, path, &exchange).await?,
        _ => return Err(Status::method_not_allowed()),
    };
    if tunnels(subresource) && !tunnel::wants_upgrade(exchange.headers()) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let response = tunnel::forward(server, exchange, location, _running).await?;
    if subresource == "log" && !response.status().is_success() {
        return Err(refused_log(&path.name, response).await);
    }
    Ok(response)
}

/// The root of what is proxied ends in a slash, or relative links in it would lead beside it.
fn with_slash(path: &ResourcePath, exchange: &Exchange) -> Option<Response> {
    let uri = exchange.request.uri();
    let reading = matches!(*exchange.request.method(), Method::GET | Method::HEAD);
    let bare = location::behind_proxy(uri.path(), path.resource != "nodes").is_empty();
    if !reading || !bare || tunnel::wants_upgrade(exchange.headers()) {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = HeaderValue::from_str(&format!("{}/{query}", uri.path())).ok()?;
    let mut moved = body::text(301, "");
    moved.headers_mut().insert(header::LOCATION, target);
    Some(moved)
}

fn tunnels(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward")
}

/// What a kubelet says when it has no log is text; clients get it as a Status.
async fn refused_log(pod: &str, response: Response) -> Status {
    /// As much as upstream reads of it.
    const LENGTH: usize = 10_000;
    let code = response.status().as_u16();
    let mut body = response.into_body();
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await
        && read.len() < LENGTH
    {
        read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
    }
    read.truncate(LENGTH);
    let text = String::from_utf8_lossy(&read);
    let text = text.trim_end();
    match code {
        400 => Status::bad_request(text),
        404 => Status::no_such_resource()
            .with_message(format!("the server could not find the requested resource ( pods/log {pod})")),
        _ => Status::internal(text),
    }
}

/// Admission of the connection; the object is what upstream's options type would be.
async fn admit(
    server: &Server,
    served: &Served,
    path: &ResourcePath,
    exchange: &Exchange,
) -> Result<(), Status> {
    let resource = &served.kind.resource;
    let kind = match path.subresource.as_str() {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        "portforward" => "PodPortForwardOptions",
        _ => match path.resource.as_str() {
            "nodes" => "NodeProxyOptions",
            "services" => "ServiceProxyOptions",
            _ => "PodProxyOptions",
        },
    };
    let mut object = json!({ "kind": kind, "apiVersion": "v1" });
    let options = Value::Null;
    let mut request = AdmissionRequest {
        user: &exchange.user,
        operation: Operation::Connect,
        group: &resource.group,
        version: &resource.version,
        kind,
        resource: &resource.plural,
        subresource: &path.subresource,
        namespace: &path.namespace,
        name: &path.name,
        object: Some(&mut object),
        old_object: None,
        dry_run: false,
        options: &options,
        warnings: Vec::new(),
        annotations: Vec::new(),
    };
    let plugins = || server.access.admission.iter().filter(|plugin| plugin.handles(Operation::Connect));
    for plugin in plugins() {
        plugin.mutate(&mut request).await?;
    }
    for plugin in plugins() {
        plugin.validate(&request).await?;
    }
    Ok(())
}

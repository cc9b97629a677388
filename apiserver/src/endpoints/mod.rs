//! The verbs: from a request that may be served to its response.
//!
//! [`route`] is the end of the filter chain. It finds the served kind, reads the body where there is one, and calls
//! the verb's module; every `Err(Status)` becomes a response here and nowhere else.

mod binding;
mod componentstatus;
mod definitions;
mod delete;
mod eviction;
mod nonresource;
mod patch;
mod read;
mod reviews;
mod scale;
mod token;
mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};
use keelson_access::user::UserInfo;

use crate::{
    encoding::{Representation, accept, compress, table::Columns},
    generic::{Write, create::Outcome, update::Ownership},
    http::{
        body::{self, Response},
        chain::{Exchange, WarningList},
    },
    request::{Query, ResourcePath, options::WriteOptions},
    served::Served,
    server::Server,
    status::Status,
    streams,
};

/// What every use of a deprecated version warns of; Endpoints are the only one that is served.
const ENDPOINTS_DEPRECATED: &str =
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";

/// A resource request whose body has been read.
pub(crate) struct Call {
    pub server: Arc<Server>,
    pub served: Served,
    pub verb: String,
    pub path: ResourcePath,
    pub query: Query,
    pub user: UserInfo,
    pub warnings: WarningList,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Serves a request that passed all filters.
pub async fn route(server: &Arc<Server>, exchange: Exchange) -> Response {
    // What is sent while it happens (watches, logs, tunnels) must not wait in a compressor.
    let finished = matches!(exchange.info.verb.as_str(), "get" | "list") && !exchange.info.is_long_running();
    let accept_encoding = exchange.headers().get(http::header::ACCEPT_ENCODING).filter(|_| finished).cloned();
    let response = dispatch(server, exchange).await.unwrap_or_else(|status| body::failure(&status));
    match accept_encoding {
        None => response,
        Some(value) => {
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(http::header::ACCEPT_ENCODING, value);
            compress::gzip(&headers, response)
        }
    }
}

async fn dispatch(server: &Arc<Server>, exchange: Exchange) -> Result<Response, Status> {
    let Some(path) = exchange.info.resource.clone() else {
        return nonresource::serve(server, exchange).await;
    };
    let Some(served) = server.table.find(&path.group, &path.version, &path.resource).cloned() else {
        if definitions::are_listed(&exchange, &path) {
            return definitions::list(server, &exchange).await;
        }
        return Ok(body::not_found());
    };
    let resource = &served.kind.resource;
    if !path.subresource.is_empty() && resource.subresource(&path.subresource).is_none() {
        return Ok(body::not_found());
    }
    // A namespaced object is only found in its namespace; lists and watches may span all of them.
    if resource.namespaced
        && path.namespace.is_empty()
        && !path.name.is_empty()
        && exchange.info.verb != "watch"
    {
        return Ok(body::not_found());
    }
    // A Namespace is in itself and in no other: the request was authorized in the namespace of the path.
    let in_itself = served.is("", "namespaces") && path.namespace == path.name;
    if !resource.namespaced && !path.namespace.is_empty() && !in_itself {
        return Ok(body::not_found());
    }
    let verb = exchange.info.verb.as_str();
    if (!path.rest.is_empty() && path.subresource != "proxy")
        || (verb == "watch" && !path.subresource.is_empty())
    {
        return Ok(body::not_found());
    }
    // All namespaces are read at once, never written; the old watch paths are read only, too.
    let reading = matches!(verb, "get" | "list" | "watch");
    if (resource.namespaced && path.namespace.is_empty() && !reading)
        || (verb == "watch" && !matches!(*exchange.request.method(), Method::GET | Method::HEAD))
    {
        return Err(Status::method_not_allowed());
    }
    if matches!(path.subresource.as_str(), "proxy" | "exec" | "attach" | "portforward" | "log") {
        return streams::serve(server, &served, &path, exchange).await;
    }
    let (parts, incoming) = exchange.request.into_parts();
    let body = match exchange.info.verb.as_str() {
        "create" | "update" | "patch" | "delete" | "deletecollection" => body::read(incoming).await?,
        _ => Bytes::new(),
    };
    let call = Call {
        server: server.clone(),
        served,
        verb: exchange.info.verb,
        path,
        query: exchange.query,
        user: exchange.user,
        warnings: exchange.warnings,
        headers: parts.headers,
        body,
    };
    // Boxed so that the futures of the verbs do not add up in one frame.
    Box::pin(call.serve()).await
}

impl Call {
    async fn serve(self) -> Result<Response, Status> {
        if self.served.resource.is_none() {
            return match self.verb.as_str() {
                "get" | "list" if self.served.is("", "componentstatuses") => {
                    componentstatus::serve(&self).await
                }
                _ => reviews::serve(&self).await,
            };
        }
        let subresource = self.path.subresource.as_str();
        if let Some(served) = self.served.kind.resource.subresource(subresource)
            && !served.verbs.iter().any(|verb| verb.as_str() == self.verb)
        {
            return Err(Status::method_not_allowed());
        }
        match subresource {
            "" => self.main().await,
            "scale" => scale::serve(&self).await,
            "binding" => binding::serve(&self, &self.path.name).await,
            "eviction" => eviction::serve(&self).await,
            "token" => token::serve(&self).await,
            // These write the object itself, each within its own scope.
            "status" | "finalize" | "ephemeralcontainers" | "resize" => match self.verb.as_str() {
                "get" => read::get(&self).await,
                "update" => write::update(&self).await,
                "patch" => patch::serve(&self).await,
                _ => Err(Status::method_not_allowed()),
            },
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn main(&self) -> Result<Response, Status> {
        let verbs = &self.served.kind.resource.verbs;
        if !verbs.iter().any(|verb| verb.as_str() == self.verb) {
            return Err(Status::method_not_allowed());
        }
        if self.served.is("", "endpoints") {
            self.warnings.add(ENDPOINTS_DEPRECATED);
        }
        match self.verb.as_str() {
            "get" => read::get(self).await,
            "list" => read::list(self).await,
            "watch" => watch::serve(self).await,
            "create" if self.path.name.is_empty() => write::create(self).await,
            "update" | "patch" if self.path.name.is_empty() => Err(Status::method_not_allowed()),
            "update" => write::update(self).await,
            "patch" => patch::serve(self).await,
            "delete" => delete::one(self).await,
            "deletecollection" => delete::collection(self).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// What the client wants to read.
    fn representation(&self) -> Result<(Representation, Columns), Status> {
        Ok((accept::negotiate(&self.headers, true)?, Columns::from_query(&self.query)?))
    }

    /// The namespace under which the object is stored.
    fn namespace(&self) -> &str {
        if self.served.kind.resource.namespaced { &self.path.namespace } else { "" }
    }

    /// `fieldManager`, else the user agent's first word, as upstream.
    fn manager(&self, options: &WriteOptions) -> String {
        if !options.field_manager.is_empty() {
            return options.field_manager.clone();
        }
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let first = agent.unwrap_or_default().split('/').next().unwrap_or_default();
        let first = if first.is_empty() { "unknown" } else { first };
        first.chars().filter(|c| !c.is_control()).take(128).collect()
    }

    fn write<'a>(&'a self, options: &'a WriteOptions, manager: &'a str) -> Write<'a> {
        Write {
            server: &self.server,
            served: &self.served,
            user: &self.user,
            namespace: self.namespace(),
            subresource: &self.path.subresource,
            options,
            manager,
            ownership: Ownership::Track,
            warnings: &self.warnings,
        }
    }

    /// The response to a write.
    fn written(&self, code: u16, outcome: &Outcome) -> Result<Response, Status> {
        let (representation, columns) = self.representation()?;
        match outcome {
            Outcome::Stored(object) => {
                crate::encoding::object_response(code, &self.served, object, representation, columns)
            }
            Outcome::Imagined(value) => crate::encoding::value_response(code, value, representation.media),
        }
    }
}

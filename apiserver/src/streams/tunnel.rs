//! Passing a request on, and tunnelling bytes once both sides have upgraded.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;

use super::location::Location;
use crate::{
    http::{
        body::{self, BoxError, Response},
        chain::Exchange,
    },
    metrics::LongRunning,
    server::Server,
    status::Status,
};

/// Headers that belong to one connection, or to this server alone.
static NOT_PASSED_ON: [HeaderName; 9] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("audit-id"),
];

pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Sends the request to its target and its answer back.
pub async fn forward(
    server: &Arc<Server>,
    mut exchange: Exchange,
    location: Location,
    running: LongRunning,
) -> Result<Response, Status> {
    let upgrading = wants_upgrade(exchange.headers());
    let ours = upgrading.then(|| hyper::upgrade::on(&mut exchange.request));
    let (parts, incoming) = exchange.request.into_parts();
    let mut sender =
        server.kubelet.connect(location.scheme, &location.host, location.port).await.map_err(|error| {
            Status::service_unavailable(format!("error trying to reach service: {error}"))
        })?;
    let mut headers = parts.headers;
    for name in &NOT_PASSED_ON {
        headers.remove(name);
    }
    if !upgrading {
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
    }
    let authority = if location.host.contains(':') {
        format!("[{}]:{}", location.host, location.port)
    } else {
        format!("{}:{}", location.host, location.port)
    };
    if let Ok(value) = HeaderValue::from_str(&authority) {
        headers.insert(header::HOST, value);
    }
    let body = if upgrading { body::empty() } else { incoming.map_err(BoxError::from).boxed_unsync() };
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = location
        .path_and_query
        .parse()
        .map_err(|_| Status::bad_request(format!("invalid path {:?}", location.path_and_query)))?;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    let mut answer = sender
        .send_request(request)
        .await
        .map_err(|error| Status::service_unavailable(format!("error trying to reach service: {error}")))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(passed_back(answer, running));
    }
    let Some(ours) = ours else {
        return Err(Status::internal("the target upgraded a request that did not ask for it"));
    };
    let theirs = hyper::upgrade::on(&mut answer);
    let cancel = server.shutdown.clone();
    tokio::spawn(async move {
        let _running = running;
        let (ours, theirs) = match tokio::try_join!(ours, theirs) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "upgrade failed"),
        };
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        let copied = tokio::select! {
            copied = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => copied,
            () = cancel.cancelled() => return,
        };
        if let Err(error) = copied {
            tracing::debug!(%error, "tunnel ended");
        }
    });
    let mut response = http::Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

/// The target's answer with its body streamed; `running` lasts as long as the body.
fn passed_back(answer: http::Response<hyper::body::Incoming>, running: LongRunning) -> Response {
    let (mut parts, incoming) = answer.into_parts();
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
    ] {
        parts.headers.remove(name);
    }
    parts.version = Version::default();
    let body = incoming.map_err(move |error| {
        let _ = &running;
        BoxError::from(error)
    });
    http::Response::from_parts(parts, body.boxed_unsync())
}

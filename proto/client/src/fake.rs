//! A stand-in API server for this crate's tests: a function from request to answer, without a network, so that
//! clocks can be paused.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A client whose requests `handle` answers. The handler is given method, path with query, and the JSON body.
pub(crate) fn client(
    handle: impl Fn(&str, &str, Value) -> Answer + Clone + Send + Sync + 'static,
) -> kube::Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let handle = handle.clone();
        async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            Ok::<_, kube::Error>(handle(parts.method.as_str(), path, body))
        }
    });
    kube::Client::new(service, "default")
}

pub(crate) fn json(status: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

pub(crate) fn failure(status: u16, reason: &str) -> Answer {
    json(status, &status_value(status, reason))
}

pub(crate) fn status_value(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}

/// A watch whose events are what the channel brings; it ends with the channel.
pub(crate) fn watch(events: mpsc::UnboundedReceiver<Value>) -> Answer {
    let lines = futures::stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((event, events))
    });
    let frames = lines.map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
    Response::new(UnsyncBoxBody::new(StreamBody::new(frames)))
}

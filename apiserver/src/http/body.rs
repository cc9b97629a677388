//! Bodies: the one response body type, and reading a request's body within its limit.
//!
//! Invariants: a request body over [`MAX_BODY`] is refused before it is held in memory as a whole.

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame, Incoming};

use crate::status::Status;

/// 3 MiB, upstream's `MaxRequestBodyBytes`.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Response = http::Response<Body>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body of chunks that are made while it is sent.
pub fn stream(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    use futures::TryStreamExt;
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

/// A finished response; the media type is a constant of this crate or one that was negotiated from them.
pub fn response(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn text(code: u16, message: impl Into<Bytes>) -> Response {
    response(code, "text/plain; charset=utf-8", message)
}

/// The answer of a router that knows no such path.
pub fn not_found() -> Response {
    text(404, "404 page not found\n")
}

/// A failure as JSON. Upstream negotiates here too, but every client that asks for YAML reads JSON.
pub fn failure(status: &Status) -> Response {
    let mut response = response(status.code, "application/json", status.to_json().to_string());
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What is still taken in of a body that is too large: a client that is writing does not see an answer.
const MAX_DRAIN: usize = 8 * MAX_BODY;

async fn too_large(mut body: Incoming) -> Status {
    let mut drained = 0;
    while drained < MAX_DRAIN
        && let Some(Ok(frame)) = body.frame().await
    {
        drained += frame.data_ref().map_or(0, Bytes::len);
    }
    Status::entity_too_large(format!("limit is {MAX_BODY}"))
}

/// Reads a whole body.
pub async fn read(mut body: Incoming) -> Result<Bytes, Status> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large(body).await);
    }
    let mut first: Option<Bytes> = None;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("reading the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > MAX_BODY {
            return Err(too_large(body).await);
        }
        // Most bodies arrive in one frame, which then needs no copy.
        match first.take() {
            None if whole.is_empty() => first = Some(data),
            None => whole.extend_from_slice(&data),
            Some(head) => {
                whole.extend_from_slice(&head);
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

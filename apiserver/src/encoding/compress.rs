//! gzip of large responses for clients that accept it.
//!
//! Only bodies over [`THRESHOLD`] are worth it (upstream's figure); a body is compressed piece by piece, so that a
//! large list is never held twice.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, header};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::http::body::{self, BoxError, Response};

const THRESHOLD: u64 = 128 * 1024;

fn accepted(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().split(';').next() == Some("gzip"))
}

/// Compresses a response when that pays and the client reads it. A list that is streamed has no known size, and is
/// large by construction.
pub fn gzip(request: &HeaderMap, mut response: Response) -> Response {
    let size = response.body().size_hint().exact();
    if size.is_some_and(|size| size < THRESHOLD) || !accepted(request) {
        return response;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.remove(header::CONTENT_LENGTH);
    response.map(|whole| {
        let source = whole.into_data_stream();
        let encoder = GzEncoder::new(Vec::new(), Compression::fast());
        let pieces = futures::stream::unfold(Some((source, encoder)), |state| async move {
            let (mut source, mut encoder) = state?;
            loop {
                match source.next().await {
                    Some(Ok(chunk)) => {
                        if let Err(error) = encoder.write_all(&chunk) {
                            return Some((Err(BoxError::from(error)), None));
                        }
                        let ready = std::mem::take(encoder.get_mut());
                        if !ready.is_empty() {
                            return Some((Ok(Bytes::from(ready)), Some((source, encoder))));
                        }
                    }
                    Some(Err(error)) => return Some((Err(error), None)),
                    None => {
                        let last = encoder.finish().map(Bytes::from).map_err(BoxError::from);
                        return Some((last, None));
                    }
                }
            }
        });
        body::stream(pieces)
    })
}

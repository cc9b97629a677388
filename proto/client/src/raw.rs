//! Requests whose answers are bytes: logs, `/version`, proxied paths. Errors come back as the API's own `Status`.

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::client::{Body, Client};
use kube::core::Status;

/// Sends a request and hands back the answer with its body still streaming.
///
/// # Errors
/// The request failed, or the server answered with 400 or more ([`kube::Error::Api`]).
pub async fn stream(
    client: &Client,
    method: Method,
    path_and_query: &str,
    content_type: Option<&str>,
    body: impl Into<Bytes>,
) -> Result<Response<Body>, kube::Error> {
    let mut builder = Request::builder().method(method).uri(path_and_query);
    if let Some(content_type) = content_type {
        builder = builder.header(http::header::CONTENT_TYPE, content_type);
    }
    let request = builder.body(Body::from(body.into())).map_err(kube::Error::HttpError)?;
    let response = client.send(request).await?;
    let code = response.status().as_u16();
    if code < 400 {
        return Ok(response);
    }
    let text = response.into_body().collect().await?.to_bytes();
    let status = serde_json::from_slice::<Status>(&text).unwrap_or_else(|_| {
        Status::failure(String::from_utf8_lossy(&text).trim(), "Unknown").with_code(code)
    });
    Err(kube::Error::Api(status.boxed()))
}

/// Reads the whole answer to a GET.
///
/// # Errors
/// As [`stream`].
pub async fn get(client: &Client, path_and_query: &str) -> Result<Bytes, kube::Error> {
    let response = stream(client, Method::GET, path_and_query, None, Bytes::new()).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

//! Asks an HTTP/1.1 server over a given connection to switch protocols.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// What of a refusal is kept.
const BODY_LIMIT: usize = 64 << 10;

/// Why the server did not switch.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    #[error("connection")]
    Connection(#[from] hyper::Error),
    #[error("answered {}", .0.status())]
    Refused(Box<Response<Bytes>>),
}

/// A connection that has switched.
pub type Switched = TokioIo<Upgraded>;

/// Sends the request, which names the protocol in its headers, and gives the answer's headers and the connection.
///
/// # Errors
/// The server's own answer where it refuses.
pub async fn connect<S>(
    connection: S,
    request: Request<Empty<Bytes>>,
) -> Result<(HeaderMap, Switched), UpgradeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
    tokio::spawn(driver.with_upgrades());
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        let body =
            Limited::new(body, BODY_LIMIT).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(UpgradeError::Refused(Box::new(Response::from_parts(parts, body))));
    }
    let headers = response.headers().clone();
    Ok((headers, TokioIo::new(hyper::upgrade::on(response).await?)))
}

/// The protocol that a request wants to switch to, in lower case.
pub fn wanted(headers: &HeaderMap) -> Option<String> {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks =
        connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok())?;
    asks.then(|| protocol.trim().to_ascii_lowercase())
}

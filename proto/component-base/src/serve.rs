//! The HTTP server of a daemon that has no API of its own: health, metrics and a few routes.
//!
//! HTTP/1.1 and HTTP/2, with or without TLS. Connections are bounded in number and in the time they may take for
//! their headers; a drain lets requests in flight finish. Bodies of requests are the handlers' to bound.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::health::Checks;
use crate::metrics::{CONTENT_TYPE, Registry};
use crate::tls::{ServerTls, TlsError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 512;

/// The body of an answer; may stream.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A route's handler. The request's extensions hold [`Peer`].
pub type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;
/// Decides whether a request may pass; asked for every path but the health endpoints. `Err` is the answer to give.
pub type Authorize =
    Arc<dyn for<'a> Fn(&'a Parts) -> BoxFuture<'a, Result<(), Response<Body>>> + Send + Sync>;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// Verified client certificates, leaf first; empty without client authentication.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("listening on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("configuring TLS")]
    Tls(#[from] TlsError),
}

/// A path and what answers it.
#[derive(Clone)]
pub struct Route {
    /// An exact path, or a prefix when it ends in `/`.
    pub path: String,
    pub handler: Handler,
}

impl Route {
    /// A route from an async function.
    pub fn new<F, Fut>(path: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        Self { path: path.into(), handler: Arc::new(move |request| Box::pin(handler(request))) }
    }
}

/// What to serve, and where.
#[derive(Clone)]
pub struct Endpoints {
    pub address: SocketAddr,
    pub tls: Option<ServerTls>,
    pub checks: Checks,
    pub registry: Registry,
    pub routes: Vec<Route>,
    pub authorize: Option<Authorize>,
}

impl Endpoints {
    /// Health and metrics on an address, in the clear and open to all.
    #[must_use]
    pub fn new(address: SocketAddr, checks: Checks, registry: Registry) -> Self {
        Self { address, tls: None, checks, registry, routes: Vec::new(), authorize: None }
    }

    /// Binds and serves until `cancel`, then drains.
    ///
    /// # Errors
    /// The address is taken, or the TLS files do not load.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), ServeError> {
        self.bind().await?.run(cancel).await;
        Ok(())
    }

    /// Binds, so that errors show before anything else starts and port 0 can be asked for.
    ///
    /// # Errors
    /// As [`Endpoints::run`].
    pub async fn bind(self) -> Result<Bound, ServeError> {
        let tls = match &self.tls {
            Some(tls) => Some(TlsAcceptor::from(tls.server_config(&[b"h2", b"http/1.1"])?)),
            None => None,
        };
        let listen = |source| ServeError::Listen { address: self.address, source };
        let listener = TcpListener::bind(self.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Bound { listener, address, tls, endpoints: Arc::new(self) })
    }
}

/// A server that listens already.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    endpoints: Arc<Endpoints>,
}

impl Bound {
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel`, then waits at most five seconds for requests in flight.
    pub async fn run(self, cancel: CancellationToken) {
        let tracker = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tracing::info!(address = %self.address, tls = self.tls.is_some(), "Serving");
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let (stream, address, slot) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors: accepting at once again would only spin.
                    tracing::warn!(%error, "Could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (tls, endpoints, cancel) = (self.tls.clone(), self.endpoints.clone(), cancel.clone());
            tracker.spawn(async move {
                let _slot = slot;
                serve_connection(stream, address, tls, endpoints, cancel).await;
            });
        }
        tracker.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, tracker.wait()).await.is_err() {
            tracing::info!(connections = tracker.len(), "Ending with connections still open");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>)> {
    // The semaphore is never closed, so there always is a slot in the end.
    let slot = slots.clone().acquire_owned().await.ok();
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, slot))
}

/// Has the kernel ask a silent client whether it is still there, as often as Go's servers do: a stream to one that
/// vanished would stay open for ever.
fn keep_alive(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    const SECONDS: u32 = 15;
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &SECONDS);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &SECONDS);
}

async fn serve_connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    endpoints: Arc<Endpoints>,
    cancel: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let Some(tls) = tls else {
        serve_stream(stream, Peer { address, certificates: Arc::from([]) }, endpoints, cancel).await;
        return;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates =
                certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
            serve_stream(stream, Peer { address, certificates }, endpoints, cancel).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%address, "TLS handshake timed out"),
    }
}

async fn serve_stream<S>(stream: S, peer: Peer, endpoints: Arc<Endpoints>, cancel: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = service_fn(move |mut request: Request<Incoming>| {
        let endpoints = endpoints.clone();
        request.extensions_mut().insert(peer.clone());
        async move { Ok::<_, Infallible>(route(&endpoints, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "Connection ended with an error");
    }
}

async fn route(endpoints: &Endpoints, request: Request<Incoming>) -> Response<Body> {
    let readable = matches!(*request.method(), Method::GET | Method::HEAD);
    if readable && let Some(answer) = endpoints.checks.answer(request.uri().path(), request.uri().query()) {
        return text(
            StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            answer.body,
        );
    }
    let (parts, body) = request.into_parts();
    if let Some(authorize) = &endpoints.authorize
        && let Err(refusal) = authorize(&parts).await
    {
        return refusal;
    }
    let path = parts.uri.path();
    if path == "/metrics" && readable {
        let mut response = text(StatusCode::OK, endpoints.registry.encode());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        return response;
    }
    let matches =
        |route: &&Route| path == route.path || (route.path.ends_with('/') && path.starts_with(&route.path));
    match endpoints.routes.iter().find(matches) {
        Some(route) => (route.handler)(Request::from_parts(parts, body)).await,
        None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// A plain-text answer.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    content(status, "text/plain; charset=utf-8", body)
}

/// An answer of a given content type.
#[must_use]
pub fn content(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn health_metrics_routes_and_authorization() {
        let mut endpoints = Endpoints::new(([127, 0, 0, 1], 0).into(), Checks::new(), Registry::new());
        endpoints.routes.push(Route::new("/configz", |request| async move {
            let peer = request.extensions().get::<Peer>().unwrap().address.ip();
            text(StatusCode::OK, format!("for {peer}"))
        }));
        endpoints.routes.push(Route::new("/secret", |_| async { text(StatusCode::OK, "never") }));
        endpoints.authorize = Some(Arc::new(|parts: &Parts| {
            let allowed = parts.uri.path() != "/secret";
            Box::pin(
                async move { if allowed { Ok(()) } else { Err(text(StatusCode::FORBIDDEN, "Forbidden")) } },
            )
        }));
        let bound = endpoints.bind().await.unwrap();
        let address = bound.local_addr();
        let cancel = CancellationToken::new();
        let server = tokio::spawn(bound.run(cancel.clone()));
        for (path, status, part) in [
            ("/healthz", "200 OK", "ok"),
            ("/readyz?verbose", "200 OK", "[+]ping ok\nreadyz check passed\n"),
            ("/metrics", "200 OK", "process_open_fds"),
            ("/metrics", "200 OK", CONTENT_TYPE),
            ("/configz", "200 OK", "for 127.0.0.1"),
            ("/secret", "403 Forbidden", "Forbidden"),
            ("/nothing", "404 Not Found", "404 page not found"),
        ] {
            let answer = get(TcpStream::connect(address).await.unwrap(), path).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(part),
                "{path}: {answer}"
            );
        }
        cancel.cancel();
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Endpoints::new(address, Checks::new(), Registry::new()).bind().await.err().unwrap();
        assert_eq!(error.to_string(), format!("listening on {address}"));
    }

    #[tokio::test]
    async fn client_certificates_optional_and_required() {
        let dir = tempfile::tempdir().unwrap();
        let tls = tls::ensure_self_signed(dir.path(), "server", &["localhost".into()]).unwrap();
        let server_pem = std::fs::read(&tls.cert_file).unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new([]).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_file = dir.path().join("ca.crt");
        std::fs::write(&ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf =
            rcgen::CertificateParams::new(["client".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        let (leaf, key) = (leaf.pem(), key.serialize_pem());
        let known = || tls::client_config(&server_pem, Some((leaf.as_bytes(), key.as_bytes()))).unwrap();
        let anonymous = || tls::client_config(&server_pem, None).unwrap();

        for (client_auth, with, without) in [
            (tls::ClientAuth::Optional, "1 certificates", "0 certificates"),
            (tls::ClientAuth::Required, "1 certificates", ""),
        ] {
            let mut endpoints = Endpoints::new(([127, 0, 0, 1], 0).into(), Checks::new(), Registry::new());
            endpoints.tls =
                Some(ServerTls { client_ca_file: Some(ca_file.clone()), client_auth, ..tls.clone() });
            endpoints.routes.push(Route::new("/who", |request| async move {
                let peer = request.extensions().get::<Peer>().unwrap().certificates.len();
                text(StatusCode::OK, format!("{peer} certificates"))
            }));
            let bound = endpoints.bind().await.unwrap();
            let address = bound.local_addr();
            let cancel = CancellationToken::new();
            let server = tokio::spawn(bound.run(cancel.clone()));
            for (config, expected) in [(known(), with), (anonymous(), without)] {
                let stream = TcpStream::connect(address).await.unwrap();
                let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
                let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
                let answer = get(stream, "/who").await;
                assert_eq!(answer.is_empty(), expected.is_empty(), "{client_auth:?}: {answer}");
                assert!(answer.ends_with(expected), "{client_auth:?}: {answer}");
            }
            cancel.cancel();
            server.await.unwrap();
        }
    }
}

//! The one HTTP/2 connection to the API server, as a tower service that `kube::Client` is built over.
//!
//! Requests are multiplexed; pings notice a peer that has gone silent. A connection that fails, or whose
//! certificate files have changed, leaves the pool and the next request dials anew (streams on it run on until
//! they end). A second connection is opened only when the first carries [`MAX_STREAMS`] requests. Requests that
//! were never sent, and reads, are tried again; anything else is the caller's to repeat. `Upgrade` requests get an
//! HTTP/1.1 connection of their own.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use keelson_component_base::tls::TlsError;
use kube::client::Body;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::credentials::{Authorization, Trust};
use crate::kubeconfig::{ClusterConfig, KubeconfigError};

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Below the 250 streams that Go's servers allow on a connection.
const MAX_STREAMS: usize = 200;
const MAX_ATTEMPTS: usize = 3;

/// Why no request could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("loading the kubeconfig")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("server {0:?} is not a URL of the form https://host:port")]
    ServerUrl(String),
    #[error("the user agent is not a valid header")]
    UserAgent,
    #[error("the bearer token is empty or not a valid header")]
    MalformedToken,
    #[error("reading the token file {}", path.display())]
    Token { path: PathBuf, source: std::io::Error },
    #[error("configuring TLS")]
    Tls(#[from] TlsError),
    #[error("dialing {server}")]
    Dial { server: String, source: std::io::Error },
    #[error("dialing {server}: no answer within {} s", DIAL_TIMEOUT.as_secs())]
    DialTimeout { server: String },
    #[error("{server} does not speak the protocol")]
    Handshake { server: String, source: hyper::Error },
    #[error("no API server can be reached")]
    Unreachable(#[source] Arc<ConnectError>),
    #[error("the request's path is malformed")]
    Path(#[source] http::Error),
}

struct Server {
    url: String,
    scheme: Scheme,
    authority: Authority,
    host: String,
    port: u16,
    /// The path of the base URL, without a trailing slash.
    prefix: String,
}

impl Server {
    fn parse(url: &str) -> Result<Self, ConnectError> {
        let malformed = || ConnectError::ServerUrl(url.to_owned());
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let parts = with_scheme.parse::<Uri>().map_err(|_| malformed())?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(malformed());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(malformed());
        }
        let default_port = if scheme == Scheme::HTTPS { 443 } else { 80 };
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            prefix: parts
                .path_and_query
                .map_or_else(String::new, |path| path.path().trim_end_matches('/').to_owned()),
            url: with_scheme,
            scheme,
            authority,
        })
    }

    fn is_tls(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A place on a connection. The guard counts as one stream until the answer's body has ended.
struct Slot {
    sender: http2::SendRequest<Body>,
    guard: Arc<()>,
    server: usize,
}

struct Pooled {
    sender: http2::SendRequest<Body>,
    uses: Arc<()>,
    server: usize,
}

impl Pooled {
    fn slot(&self) -> Slot {
        Slot { sender: self.sender.clone(), guard: self.uses.clone(), server: self.server }
    }
}

struct Shared {
    servers: Vec<Server>,
    /// The server that answered last.
    preferred: AtomicUsize,
    user_agent: HeaderValue,
    authorization: Authorization,
    trust: Trust,
    pool: Mutex<Vec<Pooled>>,
    /// Held while dialing. A failure is shared with all who waited for it.
    dialing: tokio::sync::Mutex<Option<(Instant, Arc<ConnectError>)>>,
}

/// Cheap to clone; all clones share the connection.
#[derive(Clone)]
pub(crate) struct Service(Arc<Shared>);

impl Service {
    pub(crate) fn new(config: ClusterConfig, user_agent: &str) -> Result<Self, ConnectError> {
        let servers = config.servers.iter().map(|url| Server::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() {
            return Err(ConnectError::ServerUrl(String::new()));
        }
        let authorization = Authorization::new(&config)?;
        let trust = Trust::new(config);
        if servers.iter().any(Server::is_tls) {
            // Files that do not load are a mistake to report now, not at the first request.
            trust.client_config(b"h2")?;
        }
        Ok(Self(Arc::new(Shared {
            servers,
            preferred: AtomicUsize::new(0),
            user_agent: HeaderValue::from_str(user_agent).map_err(|_| ConnectError::UserAgent)?,
            authorization,
            trust,
            pool: Mutex::new(Vec::new()),
            dialing: tokio::sync::Mutex::new(None),
        })))
    }
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response<Counted>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let response = if request.headers().contains_key(header::UPGRADE) {
                shared.upgrade(request).await?
            } else {
                shared.send(request).await?
            };
            if response.status() == StatusCode::UNAUTHORIZED {
                shared.authorization.rejected();
            }
            Ok(response)
        })
    }
}

impl Shared {
    async fn send(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Counted>, Box<dyn std::error::Error + Send + Sync>> {
        let path = request.uri().clone();
        let mut attempt = 1;
        loop {
            let Slot { mut sender, guard, server } = self.slot().await?;
            self.decorate(&mut request, server, &path)?;
            let again = (*request.method() == Method::GET && request.body().is_end_stream()).then(|| {
                let mut copy = Request::new(Body::empty());
                *copy.headers_mut() = request.headers().clone();
                copy
            });
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| Counted { body, guard: Some(guard) })),
                Err(mut refused) => {
                    let unsent = refused.take_message();
                    if unsent.is_some() || sender.is_closed() {
                        self.pool.lock().retain(|pooled| !Arc::ptr_eq(&pooled.uses, &guard));
                    } else {
                        // The connection is sound, the server did not want this stream.
                        return Err(refused.into_error().into());
                    }
                    match unsent.or(again) {
                        Some(unsent) if attempt < MAX_ATTEMPTS => request = unsent,
                        _ => return Err(refused.into_error().into()),
                    }
                    attempt += 1;
                }
            }
        }
    }

    fn decorate(&self, request: &mut Request<Body>, server: usize, path: &Uri) -> Result<(), ConnectError> {
        let server = &self.servers[server];
        let path_and_query = path.path_and_query().map_or("/", |path| path.as_str());
        let builder = Uri::builder().scheme(server.scheme.clone()).authority(server.authority.clone());
        let builder = if server.prefix.is_empty() {
            builder.path_and_query(path_and_query)
        } else {
            builder.path_and_query(format!("{}{path_and_query}", server.prefix))
        };
        *request.uri_mut() = builder.build().map_err(ConnectError::Path)?;
        let headers = request.headers_mut();
        headers.entry(header::USER_AGENT).or_insert_with(|| self.user_agent.clone());
        if let Some(authorization) = self.authorization.header()? {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        Ok(())
    }

    fn pooled(&self) -> Option<Slot> {
        let mut pool = self.pool.lock();
        if self.trust.changed() {
            tracing::info!("Certificate files changed, dialing the API server anew");
            pool.clear();
        }
        pool.retain(|pooled| !pooled.sender.is_closed());
        pool.iter().find(|pooled| Arc::strong_count(&pooled.uses) <= MAX_STREAMS).map(Pooled::slot)
    }

    async fn slot(&self) -> Result<Slot, ConnectError> {
        if let Some(slot) = self.pooled() {
            return Ok(slot);
        }
        let began = Instant::now();
        let mut failure = self.dialing.lock().await;
        if let Some(slot) = self.pooled() {
            return Ok(slot);
        }
        if let Some((when, error)) = failure.as_ref()
            && *when > began
        {
            return Err(ConnectError::Unreachable(error.clone()));
        }
        match self.dial_any().await {
            Ok(pooled) => {
                *failure = None;
                let slot = pooled.slot();
                self.pool.lock().push(pooled);
                Ok(slot)
            }
            Err(error) => {
                let error = Arc::new(error);
                *failure = Some((Instant::now(), error.clone()));
                Err(ConnectError::Unreachable(error))
            }
        }
    }

    async fn dial_any(&self) -> Result<Pooled, ConnectError> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut result = Err(ConnectError::ServerUrl(String::new()));
        for offset in 0..self.servers.len() {
            let index = (first + offset) % self.servers.len();
            result = self.dial(index).await;
            match &result {
                Ok(_) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    break;
                }
                Err(error) => {
                    let error: &dyn std::error::Error = error;
                    tracing::debug!(server = self.servers[index].url, error, "Could not dial");
                }
            }
        }
        result
    }

    async fn dial(&self, index: usize) -> Result<Pooled, ConnectError> {
        let server = &self.servers[index];
        let handshake = async {
            let stream = self.open(server, b"h2").await?;
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|source| ConnectError::Handshake { server: server.url.clone(), source })
        };
        let (sender, connection) = tokio::time::timeout(DIAL_TIMEOUT, handshake)
            .await
            .map_err(|_| ConnectError::DialTimeout { server: server.url.clone() })??;
        let url = server.url.clone();
        tracing::debug!(server = url, "Connected");
        tokio::spawn(async move {
            match connection.await {
                Ok(()) => tracing::debug!(server = url, "Connection closed"),
                Err(error) => tracing::debug!(server = url, %error, "Connection lost"),
            }
        });
        Ok(Pooled { sender, uses: Arc::new(()), server: index })
    }

    async fn open(&self, server: &Server, alpn: &[u8]) -> Result<Box<dyn Stream>, ConnectError> {
        let failed = |source| ConnectError::Dial { server: server.url.clone(), source };
        let stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        if !server.is_tls() {
            return Ok(Box::new(stream));
        }
        let connector = TlsConnector::from(self.trust.client_config(alpn)?);
        let name = self.trust.server_name(&server.host)?;
        Ok(Box::new(connector.connect(name, stream).await.map_err(failed)?))
    }

    async fn upgrade(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Counted>, Box<dyn std::error::Error + Send + Sync>> {
        let index = self.preferred.load(Ordering::Relaxed);
        let server = &self.servers[index];
        let path = request.uri().clone();
        self.decorate(&mut request, index, &path)?;
        // HTTP/1.1 to an origin: the path alone, and the authority in Host.
        let origin_form = request.uri().path_and_query().map_or("/", |path| path.as_str()).parse()?;
        *request.uri_mut() = origin_form;
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(server.authority.as_str())?);
        let stream = tokio::time::timeout(DIAL_TIMEOUT, self.open(server, b"http/1.1"))
            .await
            .map_err(|_| ConnectError::DialTimeout { server: server.url.clone() })??;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "Upgraded connection ended with an error");
            }
        });
        let response = sender.send_request(request).await?;
        Ok(response.map(|body| Counted { body, guard: None }))
    }
}

/// An answer's body; while it lives, its stream counts against the connection.
pub(crate) struct Counted {
    body: Incoming,
    guard: Option<Arc<()>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.guard = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

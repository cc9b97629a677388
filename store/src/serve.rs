//! The listeners: gRPC for clients and for peers, and what people ask over plain HTTP (`/health`, `/metrics`,
//! `/version`), on the same ports as in etcd.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use keelson_component_base::metrics::{CONTENT_TYPE, Registry};
use keelson_component_base::tls::{ServerTls, TlsError};
use keelson_proto::etcd::DESCRIPTORS;
use keelson_proto::etcd::etcdserverpb::auth_server::AuthServer;
use keelson_proto::etcd::etcdserverpb::cluster_server::ClusterServer;
use keelson_proto::etcd::etcdserverpb::kv_server::KvServer;
use keelson_proto::etcd::etcdserverpb::lease_server::LeaseServer;
use keelson_proto::etcd::etcdserverpb::maintenance_server::MaintenanceServer;
use keelson_proto::etcd::v3electionpb::election_server::ElectionServer;
use keelson_proto::etcd::v3lockpb::lock_server::LockServer;
use keelson_proto::health::health_server::HealthServer;
use keelson_proto::peer::peer_server::PeerServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::Service as _;

use crate::calls::Calls;
use crate::config::Url;
use crate::grpc::{CLUSTER_VERSION, ETCD_VERSION, Server, Service, status, watch};
use crate::health;
use crate::seldom::Seldom;
use crate::traffic::Traffic;
use crate::transport::PeerService;

const PEER_MESSAGE: usize = 128 << 20;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long connections may take to end.
const DRAIN: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {0}")]
    Listen(Url, #[source] io::Error),
    #[error("{0}")]
    Address(String),
    #[error("cannot use the certificates for {0}")]
    Tls(Url, #[source] TlsError),
}

/// What a listener serves.
#[derive(Clone)]
pub enum Services {
    /// Shared: each request takes only the service that it is for.
    Clients(Arc<Clients>),
    Peers(PeerServer<PeerService>),
    Metrics(Plain),
}

const LEARNERS_ANSWER: [&str; 3] =
    ["/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status", "/etcdserverpb.Maintenance/Snapshot"];

/// A service whose type has no name.
type Handler = Box<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

pub struct Clients {
    kv: KvServer<Server>,
    watch: Service,
    lease: LeaseServer<Service>,
    cluster: ClusterServer<Server>,
    maintenance: MaintenanceServer<Server>,
    auth: AuthServer<Server>,
    lock: LockServer<Service>,
    election: ElectionServer<Service>,
    health: HealthServer<Service>,
    reflection: [Handler; 2],
    calls: Arc<Calls>,
    plain: Plain,
}

/// What is served without gRPC.
#[derive(Clone)]
pub struct Plain {
    server: Arc<Server>,
    registry: Registry,
}

impl Services {
    /// # Errors
    /// Never: the descriptors were made together with the services.
    pub fn clients(
        server: &Arc<Server>,
        registry: &Registry,
        calls: Arc<Calls>,
    ) -> Result<Self, tonic_reflection::server::Error> {
        let limit = server.message_limit();
        let service = Service(server.clone());
        let described = || {
            let builder = tonic_reflection::server::Builder::configure();
            builder.register_encoded_file_descriptor_set(DESCRIPTORS)
        };
        Ok(Self::Clients(Arc::new(Clients {
            kv: KvServer::from_arc(server.clone()).max_decoding_message_size(limit),
            watch: service.clone(),
            lease: LeaseServer::new(service.clone()).max_decoding_message_size(limit),
            cluster: ClusterServer::from_arc(server.clone()).max_decoding_message_size(limit),
            maintenance: MaintenanceServer::from_arc(server.clone()).max_decoding_message_size(limit),
            auth: AuthServer::from_arc(server.clone()),
            lock: LockServer::new(service.clone()).max_decoding_message_size(limit),
            election: ElectionServer::new(service.clone()).max_decoding_message_size(limit),
            health: HealthServer::new(service),
            reflection: [handler(described().build_v1()?), handler(described().build_v1alpha()?)],
            calls,
            plain: Plain { server: server.clone(), registry: registry.clone() },
        })))
    }

    pub fn peers(service: PeerService) -> Self {
        Self::Peers(PeerServer::new(service).max_decoding_message_size(PEER_MESSAGE))
    }

    pub fn metrics(server: &Arc<Server>, registry: &Registry) -> Self {
        Self::Metrics(Plain { server: server.clone(), registry: registry.clone() })
    }

    async fn call(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        match self {
            Services::Clients(clients) => clients.call(request).await,
            Services::Peers(mut peers) => match service(&request) {
                "keelson.peer.Peer" => peers.call(request).await,
                _ => Ok(unknown(&request)),
            },
            Services::Metrics(plain) => Ok(plain.call(&request).await),
        }
    }
}

fn service(request: &Request<Incoming>) -> &str {
    request.uri().path().split('/').nth(1).unwrap_or_default()
}

fn handler<S>(service: S) -> Handler
where
    S: tower::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Box::new(move |request| Box::pin(service.clone().call(request)))
}

impl Clients {
    async fn call(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let Some(call) = self.calls.begin(request.uri().path()) else {
            return Ok(match service(&request) {
                "etcdserverpb.Auth" => status::no_users().into_http(),
                _ => self.plain.call(&request).await,
            });
        };
        let response = match self.refuse(&request) {
            Some(refusal) => refusal.into_http(),
            None => self.answer(request).await?,
        };
        Ok(call.end(as_from_go(response)))
    }

    /// What is refused whatever is asked.
    fn refuse(&self, request: &Request<Incoming>) -> Option<tonic::Status> {
        let shared = &self.plain.server.shared;
        // As in etcd, one that only learns answers what it knows for sure; for reads see the service KV.
        if shared.is_learner() && !LEARNERS_ANSWER.contains(&request.uri().path()) {
            return Some(status::not_for_learner());
        }
        let asked = request.headers().get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        (asked && shared.leader() == 0).then(status::no_leader)
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        match service(&request) {
            "etcdserverpb.KV" => self.kv.clone().call(request).await,
            "etcdserverpb.Watch" => watch::serve(self.watch.clone(), request).await,
            "etcdserverpb.Lease" => self.lease.clone().call(request).await,
            "etcdserverpb.Cluster" => self.cluster.clone().call(request).await,
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request).await,
            "etcdserverpb.Auth" => self.auth.clone().call(request).await,
            "v3lockpb.Lock" => self.lock.clone().call(request).await,
            "v3electionpb.Election" => self.election.clone().call(request).await,
            "grpc.health.v1.Health" => self.health.clone().call(request).await,
            "grpc.reflection.v1.ServerReflection" => self.reflection[0](request).await,
            _ => self.reflection[1](request).await,
        }
    }
}

/// A message beyond the limit is refused by tonic with another code than by Go's gRPC, which etcd's clients know.
fn as_from_go(response: Response<Body>) -> Response<Body> {
    match tonic::Status::from_header_map(response.headers()) {
        Some(refusal) if refusal.code() == tonic::Code::OutOfRange => match too_large(refusal.message()) {
            Some((size, limit)) => {
                let message = format!("grpc: received message larger than max ({size} vs. {limit})");
                tonic::Status::resource_exhausted(message).into_http()
            }
            None => response,
        },
        _ => response,
    }
}

/// The size and the limit that tonic names.
fn too_large(message: &str) -> Option<(&str, &str)> {
    let rest = message.strip_prefix("Error, decoded message length too large: found ")?;
    rest.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    let content = request.headers().get(header::CONTENT_TYPE);
    content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"))
}

fn unknown(request: &Request<Incoming>) -> Response<Body> {
    if is_grpc(request) {
        let message = format!("unknown service {}", service(request));
        return tonic::Status::unimplemented(message).into_http();
    }
    answer(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
}

fn answer(status: StatusCode, content: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content));
    response
}

impl Plain {
    async fn call(&self, request: &Request<Incoming>) -> Response<Body> {
        const JSON: &str = "application/json";
        const TEXT: &str = "text/plain; charset=utf-8";
        if request.method() != Method::GET {
            return unknown(request);
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if let Some((status, body)) = health::answer(&self.server, path, query).await {
            return answer(status, TEXT, body);
        }
        match path {
            "/metrics" => answer(StatusCode::OK, CONTENT_TYPE, self.registry.encode()),
            "/version" => {
                let version = serde_json::json!({ "etcdserver": ETCD_VERSION, "etcdcluster": format!("{CLUSTER_VERSION}.0") });
                answer(StatusCode::OK, JSON, version.to_string())
            }
            _ => unknown(request),
        }
    }
}

/// A port that is open, and not served yet.
pub struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    pub url: Url,
}

impl Listener {
    /// # Errors
    /// A port that is taken, an address that is not this machine's, certificates that cannot be used.
    pub async fn bind(url: &Url, tls: Option<&ServerTls>) -> Result<Self, ServeError> {
        let address: SocketAddr = url.listen_address().map_err(ServeError::Address)?;
        let tls = match tls.filter(|_| url.secure) {
            Some(tls) => {
                let config = tls
                    .server_config(&[b"h2", b"http/1.1"])
                    .map_err(|error| ServeError::Tls(url.clone(), error))?;
                Some(TlsAcceptor::from(config))
            }
            None => None,
        };
        let listener =
            TcpListener::bind(address).await.map_err(|error| ServeError::Listen(url.clone(), error))?;
        Ok(Self { listener, tls, url: url.clone() })
    }

    /// Serves until cancelled, then lets requests in flight end.
    pub async fn serve(self, services: Services, cancel: CancellationToken) {
        let (connections, rejected) = (TaskTracker::new(), Arc::new(Seldom::default()));
        loop {
            let (stream, from) = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, most likely: others will close theirs.
                        tracing::warn!(%error, url = %self.url, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let tls = self.tls.clone().map(|tls| (tls, rejected.clone()));
            connections.spawn(connection((stream, from), tls, services.clone(), cancel.clone()));
        }
        drop(self.listener);
        connections.close();
        let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    }
}

async fn connection(
    (stream, from): (TcpStream, SocketAddr),
    tls: Option<(TlsAcceptor, Arc<Seldom>)>,
    services: Services,
    cancel: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, services, cancel).await,
        Some((tls, rejected)) => {
            let error = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => return http(stream, services, cancel).await,
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            match rejected.is_due() {
                true => tracing::warn!("rejected connection from {from}: {error}"),
                false => tracing::debug!("rejected connection from {from}: {error}"),
            }
        }
    }
}

async fn http<S>(stream: S, services: Services, cancel: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Clients' bytes are counted; peers count what they say to each other themselves.
    let counted = match &services {
        Services::Clients(clients) => Some(clients.plain.server.metrics.clone()),
        _ => None,
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(None)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let service = hyper::service::service_fn(move |request| services.clone().call(request));
    let connection = builder.serve_connection(TokioIo::new(Traffic::new(stream, counted)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection broke");
    }
}

//! The listener: TLS, HTTP/1.1 and HTTP/2, upgrades, connection limits and draining.
//!
//! Invariants: every request goes through [`chain::chain`]; no connection outlives [`Listener::serve`] by more
//! than the drain limit; nothing a peer sends ends the process.

pub mod body;
pub mod chain;
pub mod filters;
pub mod tls;
mod websocket;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use keelson_access::user::UserInfo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    body::Response,
    chain::{Exchange, Filter, Next, Peer, WarningList},
};
use crate::{
    request::{Query, RequestInfo},
    server::Server,
};

/// Connections beyond this wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 16 * 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests may still run after shutdown began.
const DRAIN: Duration = Duration::from_secs(60);

/// What a connection needs to serve requests.
pub struct Service {
    server: Arc<Server>,
    chain: Vec<Box<dyn Filter>>,
}

impl Service {
    pub fn new(server: &Arc<Server>) -> Arc<Self> {
        Arc::new(Service { server: server.clone(), chain: chain::chain(server) })
    }

    async fn handle(&self, peer: Arc<Peer>, request: Request<Incoming>) -> Response {
        let exchange = Exchange {
            request,
            peer,
            info: RequestInfo::default(),
            query: Query::default(),
            user: UserInfo::anonymous(),
            warnings: WarningList::default(),
        };
        Next { rest: &self.chain, server: &self.server }.run(exchange).await
    }
}

/// A bound port that serves until told to stop.
pub struct Listener {
    pub tcp: TcpListener,
    pub tls: Arc<rustls::ServerConfig>,
}

impl Listener {
    pub async fn serve(self, service: Arc<Service>, cancel: CancellationToken) {
        let acceptor = TlsAcceptor::from(self.tls);
        let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        loop {
            let permit = tokio::select! {
                permit = limit.clone().acquire_owned() => permit,
                () = cancel.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted,
                () = cancel.cancelled() => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors: give others the time to close theirs.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, service, cancel) = (acceptor.clone(), service.clone(), cancel.clone());
            connections.spawn(async move {
                let _permit = permit;
                connection(stream, address, &acceptor, service, cancel).await;
            });
        }
        drop(self.tcp);
        connections.close();
        if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
            tracing::warn!("some requests were still running when the drain limit ended");
        }
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
    service: Arc<Service>,
    cancel: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%address, %error, "TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::info!(%address, %error, "TLS handshake error"),
        Err(_) => return tracing::info!(%address, "TLS handshake took too long"),
    };
    let certificates = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|chain| chain.iter().map(|certificate| certificate.clone().into_owned()).collect())
        .unwrap_or_default();
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let peer = Arc::new(Peer { address, certificates });
    let handler = service_fn(move |request| {
        let (service, peer) = (service.clone(), peer.clone());
        async move { Ok::<_, Infallible>(service.handle(peer, request).await) }
    });
    // What TLS has agreed on, so that nobody can sit on a connection by never saying which it is.
    let mut builder = match http2 {
        true => auto::Builder::new(TokioExecutor::new()).http2_only(),
        false => auto::Builder::new(TokioExecutor::new()).http1_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(60))
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .max_header_list_size(1024 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection ended");
    }
}

//! From flags to a running server and back: bind, connect, fill the caches, ensure what every cluster has, serve,
//! drain.
//!
//! The port is bound and served from the first moment, so that probes get an answer; `/readyz` stays false until the
//! caches are filled, access has seen them and the bootstrap objects exist.

pub mod bootstrap;
pub mod identity;
pub mod kubernetes_service;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keelson_component_base::{
    health::Checks,
    metrics::Registry,
    tls::{ServerTls, TlsError},
};
use keelson_registry::Kind;
use keelson_storage::{Storage, StoreConfig, StoreError, StoreTls};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError},
    discovery::Discovery,
    http::{Listener, Service, tls::server_config},
    metrics::Metrics,
    openapi::OpenApi,
    served::{NoSchema, Table},
    server::Server,
    services::{Services, repair},
    streams::{Kubelet, KubeletConfigError},
};

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("invalid flags")]
    Config(#[from] ConfigError),
    #[error("listening on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("serving certificate")]
    Tls(#[from] TlsError),
    #[error("store")]
    Store(#[from] StoreError),
    #[error("schemas")]
    Schema(#[from] NoSchema),
    #[error("access")]
    Access(#[from] identity::AccessError),
    #[error("kubelet client")]
    Kubelet(#[from] KubeletConfigError),
    #[error("no address of this host can be advertised; give --advertise-address")]
    Advertise,
    #[error("{0}")]
    Signals(std::io::Error),
}

/// What has happened since the start, as the health checks tell it.
#[derive(Default)]
struct Progress {
    access_fed: AtomicBool,
    bootstrapped: AtomicBool,
    service_ensured: AtomicBool,
    shutting_down: AtomicBool,
}

/// How long the end waits for the store to forget this server; its lease runs out anyway.
const LEAVE: Duration = Duration::from_secs(2);

/// Runs a server until `stop`; returns when it has drained.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), StartError> {
    let started = Instant::now();
    config.validate()?;
    if config.profiling {
        tracing::warn!("--profiling has no effect: this server has no profiling endpoint");
    }
    let address = SocketAddr::new(config.bind_address, config.secure_port);
    let tcp = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
    let tls = server_config(&ServerTls {
        cert_file: config.tls_cert_file.clone(),
        key_file: config.tls_private_key_file.clone(),
        ..ServerTls::default()
    })?;

    // Ends what runs beside the requests.
    let background = CancellationToken::new();
    let (server, feed, progress) = build(config)?;
    let serving = CancellationToken::new();
    let listener = Listener { tcp, tls };
    let served = tokio::spawn(listener.serve(Service::new(&server), serving.clone()));
    tracing::info!(%address, advertised = %server.advertised(), "Serving securely");

    let mut startup =
        tokio::spawn(start(server.clone(), feed, progress.clone(), background.clone(), started));
    stop.cancelled().await;
    progress.shutting_down.store(true, Ordering::Release);
    tracing::info!("Shutting down: readyz is false from now on");
    // First of all this server leaves the endpoints of the kubernetes service: requests are served until all clients
    // know that.
    background.cancel();
    if tokio::time::timeout(LEAVE, &mut startup).await.is_err() {
        startup.abort();
    }
    if !server.config.shutdown_delay_duration.is_zero() {
        tokio::time::sleep(server.config.shutdown_delay_duration).await;
    }
    // Watches end, then connections drain.
    server.shutdown.cancel();
    serving.cancel();
    if let Err(error) = served.await {
        tracing::warn!(%error, "the listener ended badly");
    }
    Ok(())
}

/// Everything that needs no store yet.
fn build(config: Config) -> Result<(Arc<Server>, identity::Feed, Arc<Progress>), StartError> {
    let mut store = StoreConfig::new(config.etcd_servers.clone());
    store.prefix.clone_from(&config.etcd_prefix);
    if config.etcd_cafile.is_some() || config.etcd_certfile.is_some() {
        store.tls = Some(StoreTls {
            ca_file: config.etcd_cafile.clone(),
            client: config.etcd_certfile.clone().zip(config.etcd_keyfile.clone()),
        });
    }
    let shutdown = CancellationToken::new();
    let storage = Storage::connect(store, CancellationToken::new())?;
    let enabled = versions(&config);
    let table = Table::new(&storage, |kind| enabled(kind))?;
    let (access, feed) = identity::build(&config, &table)?;
    let address = advertised(&config)?;
    let services =
        Services::new(storage.raw(), config.service_cluster_ip_range.clone(), config.service_node_port_range);
    let registry = Registry::new();
    storage.metrics().register(&registry);
    let checks = Checks::new();
    let progress = Arc::new(Progress::default());
    let store = watch_store(storage.clone(), shutdown.clone());
    checks.add("etcd", move || store.borrow().clone());
    add_checks(&checks, &storage, &progress);
    let kubelet = Kubelet::new(&config)?;
    let kinds = table.kinds().to_vec();
    let secure = match address {
        IpAddr::V4(ip) => format!("{ip}:{}", config.secure_port),
        IpAddr::V6(ip) => format!("[{ip}]:{}", config.secure_port),
    };
    let server = Server {
        address,
        storage,
        table,
        access,
        services,
        kubelet,
        metrics: Metrics::new(registry),
        checks,
        discovery: Discovery::new(&kinds, &secure),
        openapi: OpenApi::new(&kinds),
        shutdown,
        config,
    };
    Ok((Arc::new(server), feed, progress))
}

/// `--runtime-config`: what is on beyond the defaults (stable versions).
fn versions(config: &Config) -> impl Fn(&Kind) -> bool + use<> {
    let settings: Vec<(String, bool)> = config
        .runtime_config
        .iter()
        .map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, "true"));
            (key.to_string(), value != "false")
        })
        .collect();
    move |kind: &Kind| {
        let resource = &kind.resource;
        let version = resource.version.as_ref();
        let stage = match (version.contains("alpha"), version.contains("beta")) {
            (true, _) => "api/alpha",
            (_, true) => "api/beta",
            _ => "api/ga",
        };
        let setting = |key: &str| settings.iter().rev().find(|(known, _)| known == key).map(|(_, on)| *on);
        setting(&resource.api_version())
            .or_else(|| setting(stage))
            .or_else(|| setting("api/all"))
            .unwrap_or(stage == "api/ga")
    }
}

/// How often the store is asked, how often while it does not answer, and how long it may take.
const STORE_CHECK: Duration = Duration::from_secs(1);
const STORE_CHECK_AGAIN: Duration = Duration::from_millis(100);
const STORE_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Keeps asking the store, so that `/readyz` and `/livez` tell what a write would meet.
fn watch_store(storage: Storage, stop: CancellationToken) -> watch::Receiver<Result<(), String>> {
    let (told, last) = watch::channel(Err("not asked yet".to_owned()));
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let answer = match tokio::time::timeout(STORE_CHECK_TIMEOUT, storage.ping()).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!("no answer within {} s", STORE_CHECK_TIMEOUT.as_secs())),
            };
            let pause = if answer.is_ok() { STORE_CHECK } else { STORE_CHECK_AGAIN };
            let _earlier = told.send_replace(answer);
            tokio::time::sleep(pause).await;
        }
    }));
    last
}

fn add_checks(checks: &Checks, storage: &Storage, progress: &Arc<Progress>) {
    let check = |flag: fn(&Progress) -> bool, why: &'static str| {
        let progress = progress.clone();
        move || if flag(&progress) { Ok(()) } else { Err(why.to_string()) }
    };
    let ready = storage.clone();
    checks.add_readiness("etcd-readiness", move || {
        if ready.ready() { Ok(()) } else { Err("the caches are not filled".into()) }
    });
    checks.add_readiness(
        "informer-sync",
        check(|p| p.access_fed.load(Ordering::Acquire), "access has not seen all objects yet"),
    );
    checks.add_readiness(
        "poststarthook/rbac/bootstrap-roles",
        check(|p| p.bootstrapped.load(Ordering::Acquire), "not finished"),
    );
    checks.add_readiness(
        "poststarthook/bootstrap-controller",
        check(|p| p.service_ensured.load(Ordering::Acquire), "not finished"),
    );
    checks.add_readiness(
        "shutdown",
        check(|p| !p.shutting_down.load(Ordering::Acquire), "process is shutting down"),
    );
}

/// Brings the server from serving to ready, then does what runs beside the requests.
async fn start(
    server: Arc<Server>,
    feed: identity::Feed,
    progress: Arc<Progress>,
    background: CancellationToken,
    started: Instant,
) {
    if background.run_until_cancelled(become_ready(&server, feed, &progress)).await != Some(true) {
        return;
    }
    tracing::info!(after = ?started.elapsed(), "Ready");
    keelson_component_base::systemd::notify_ready();
    tokio::join!(
        kubernetes_service::run(server.clone(), background.clone()),
        repair::run(server.clone(), background.clone()),
        background.run_until_cancelled(bootstrap::aggregate(server.clone())),
        forget(server.clone(), background.clone()),
    );
}

/// False: the storage ended before its state had been seen.
async fn become_ready(server: &Arc<Server>, feed: identity::Feed, progress: &Progress) -> bool {
    let mut pending = feed.start();
    wait_for_store(server).await;
    if pending.wait_for(|left| *left == 0).await.is_err() {
        return false;
    }
    progress.access_fed.store(true, Ordering::Release);
    server.access.fed.store(true, Ordering::Release);
    retry("bootstrap objects", || bootstrap::ensure(server)).await;
    progress.bootstrapped.store(true, Ordering::Release);
    if let Err(error) = kubernetes_service::ensure(server).await {
        // The periodic pass tries again; the API itself does not depend on it.
        tracing::warn!(%error, "ensuring the kubernetes service failed");
    }
    progress.service_ensured.store(true, Ordering::Release);
    true
}

/// Waits for the caches, saying why it takes long.
async fn wait_for_store(server: &Server) {
    loop {
        tokio::select! {
            () = server.storage.wait_ready() => return,
            () = tokio::time::sleep(Duration::from_secs(5)) => {
                let why = server.storage.ping().await.err().map(|error| error.to_string());
                let why = why.unwrap_or_else(|| "the caches are still being filled".into());
                tracing::warn!(
                    endpoints = ?server.config.etcd_servers,
                    why,
                    "Not ready: cannot read the store; check --etcd-servers and its certificates"
                );
            }
        }
    }
}

async fn retry<F, Fut>(what: &str, work: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), crate::status::Status>>,
{
    let mut pause = Duration::from_millis(50);
    while let Err(error) = work().await {
        tracing::warn!(%error, "ensuring {what} failed; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Drops documents that nobody has asked for lately.
async fn forget(server: Arc<Server>, background: CancellationToken) {
    loop {
        tokio::select! {
            () = background.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(120)) => server.openapi.forget_unused(),
        }
    }
}

/// `--advertise-address`, else the bind address, else the address of the default route.
fn advertised(config: &Config) -> Result<IpAddr, StartError> {
    if let Some(address) = config.advertise_address {
        return Ok(address);
    }
    if !config.bind_address.is_unspecified() {
        return Ok(config.bind_address);
    }
    // Connecting a UDP socket sends nothing; it only makes the kernel choose a route. TEST-NET-1 is never local.
    let route = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    route().ok().filter(|address| !address.is_unspecified()).ok_or(StartError::Advertise)
}

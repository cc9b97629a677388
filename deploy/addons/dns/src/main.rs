//! `keelson-dns`: the cluster's DNS server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hickory_server::Server;
use keelson_component_base::metrics::{Registry, exponential_buckets};
use keelson_component_base::serve::Endpoints;
use keelson_component_base::{exit, health, logging, memory, shutdown, tls};
use keelson_dns::handler::{Handler, Metrics};
use keelson_dns::records::Zone;
use keelson_dns::services::Caches;
use keelson_dns::upstream::Upstream;
use tokio::net::{TcpListener, UdpSocket};

/// An idle TCP connection is closed after this time.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers of one TCP connection that may wait to be sent.
const TCP_BUFFER: usize = 16;

#[derive(Parser)]
#[command(about = "The cluster's DNS server")]
struct Cli {
    /// Kubeconfig; without one, the service account of this pod is used
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    bind_address: IpAddr,
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// Names the resolvers for everything outside the cluster
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Where /livez and /readyz are served
    #[arg(long, default_value = "127.0.0.1:8080")]
    health_bind_address: SocketAddr,
    /// Where /metrics is served
    #[arg(long, default_value = "127.0.0.1:9153")]
    metrics_bind_address: SocketAddr,
    #[command(flatten)]
    log: logging::LogArgs,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    exit::code("keelson-dns", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    logging::init(&cli.log)?;
    let cancel = shutdown::signalled()?;
    let user_agent = keelson_client::user_agent("keelson-dns");
    let client = match &cli.kubeconfig {
        Some(path) => keelson_client::connect(path, &user_agent)?,
        None => keelson_client::in_cluster(&user_agent)?,
    };
    let caches = Arc::new(Caches::start(&client));

    let registry = Registry::new();
    let checks = health::Checks::new();
    let synced = caches.clone();
    checks.add_readiness("caches", move || {
        if synced.have_synced() { Ok(()) } else { Err("Services are not all known yet".to_owned()) }
    });
    tokio::spawn(
        Endpoints::new(cli.health_bind_address, checks.clone(), registry.clone())
            .bind()
            .await?
            .run(cancel.clone()),
    );
    tokio::spawn(
        Endpoints::new(cli.metrics_bind_address, checks, registry.clone()).bind().await?.run(cancel.clone()),
    );

    let address = SocketAddr::new(cli.bind_address, cli.port);
    let mut server = Server::new(Handler {
        zone: Zone::new(&cli.cluster_domain)?,
        caches: caches.clone(),
        upstream: Upstream::load(&cli.resolv_conf, cli.bind_address)?,
        metrics: Metrics {
            requests: registry.counter("coredns_dns_requests", "Number of DNS requests"),
            duration: registry.histogram(
                "coredns_dns_request_duration_seconds",
                "Time that a request took, in seconds",
                exponential_buckets(0.00025, 2.0, 16),
            ),
            forwarded: registry.counter("coredns_forward_requests", "Number of requests sent upstream"),
            failed: registry
                .counter("coredns_forward_failures", "Number of requests that no upstream answered"),
        },
    });
    server.register_socket(UdpSocket::bind(address).await?);
    server.register_listener(TcpListener::bind(address).await?, TCP_TIMEOUT, TCP_BUFFER);
    tracing::info!(%address, domain = cli.cluster_domain, "serving DNS");
    cancel.cancelled().await;
    server.shutdown_gracefully().await?;
    Ok(())
}

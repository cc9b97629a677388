//! `kube-proxy`.

use std::process::ExitCode;

use clap::Parser;
use http::StatusCode;
use keelson_component_base::metrics::Registry;
use keelson_component_base::serve::{self, Endpoints, Route};
use keelson_component_base::{exit, health, logging, memory, shutdown, systemd, tls};
use kube_proxy::config::Flags;
use kube_proxy::health::Progress;
use kube_proxy::metrics::Metrics;
use kube_proxy::server::{self, Proxy};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    exit::code("kube-proxy", run(Flags::parse()).await)
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    logging::init(&flags.log)?;
    if flags.cleanup {
        return Ok(server::remove_tables().await?);
    }
    let config = flags.complete()?;
    let cancel = shutdown::signalled()?;
    let registry = Registry::new();
    let progress = Progress::default();
    let client = keelson_client::connect(&config.kubeconfig, &keelson_client::user_agent("kube-proxy"))?;
    let proxy = Proxy {
        client,
        node: config.node,
        cluster_ranges: config.cluster_ranges,
        metrics: Metrics::new(&registry),
        progress: progress.clone(),
    };

    let checks = health::Checks::new();
    checks.add("rules", move || progress.check());
    let mut metrics = Endpoints::new(config.metrics, checks.clone(), registry.clone());
    metrics.routes.push(Route::new("/proxyMode", |_| async { serve::text(StatusCode::OK, "nftables") }));
    tokio::spawn(metrics.bind().await?.run(cancel.clone()));
    tokio::spawn(Endpoints::new(config.healthz, checks, registry).bind().await?.run(cancel.clone()));
    systemd::notify_ready();
    proxy.run(cancel).await;
    Ok(())
}

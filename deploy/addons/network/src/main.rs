//! `keelson-network`: keeps this host's part of the pod network as the cluster's nodes say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use keelson_component_base::{exit, health, logging, memory, metrics, serve, shutdown, tls};
use keelson_network::cni::{self, CniPaths};
use keelson_network::plan::{self, Desired, NodeFacts, Range};
use keelson_network::{masquerade, routes};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};

/// A failed write (a route whose link is not up yet, say) is tried again after this time even if no
/// node changes.
const RETRY: Duration = Duration::from_secs(5);
/// How often everything is seen to again: a firewall that starts flushes our table, a link that comes up anew has lost
/// its routes.
const LOOK: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "The pod network of one host")]
struct Cli {
    /// Remove what this program made on the host, then end
    #[arg(long)]
    cleanup: bool,
    #[arg(long, required_unless_present = "cleanup")]
    kubeconfig: Option<PathBuf>,
    /// Name of this host's Node
    #[arg(long, required_unless_present = "cleanup")]
    node_name: Option<String>,
    /// Range of all pods: traffic to it is never masqueraded
    #[arg(long, required_unless_present = "cleanup")]
    cluster_cidr: Option<Range>,
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    #[arg(long, default_value = "/var/lib/cni/networks")]
    cni_state_dir: PathBuf,
    #[arg(long, default_value = "/usr/lib/cni")]
    cni_bin_dir: PathBuf,
    /// Where /metrics and /healthz are served
    #[arg(long, default_value = "127.0.0.1:10254")]
    metrics_bind_address: SocketAddr,
    #[command(flatten)]
    log: logging::LogArgs,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    exit::code("keelson-network", run(Cli::parse()).await)
}

async fn run(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    logging::init(&cli.log)?;
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let (Some(kubeconfig), Some(own_name), Some(cluster_range)) =
        (cli.kubeconfig, cli.node_name, cli.cluster_cidr)
    else {
        routes::ensure(&handle, &BTreeMap::new()).await?;
        masquerade::remove().await?;
        return Ok(());
    };
    let cancel = shutdown::signalled()?;
    let client = keelson_client::connect(&kubeconfig, &keelson_client::user_agent("keelson-network"))?;
    forward_packets()?;
    masquerade::ensure(cluster_range).await?;

    let endpoints =
        serve::Endpoints::new(cli.metrics_bind_address, health::Checks::new(), metrics::Registry::new());
    let mut endpoints = tokio::spawn(endpoints.run(cancel.clone()));

    let paths =
        CniPaths { configuration: cli.cni_conf_dir, state: cli.cni_state_dir, plugins: cli.cni_bin_dir };
    let mut nodes = BTreeMap::new();
    let mut listed = BTreeMap::new();
    let mut complete = false;
    let watcher = watcher::watcher(kube::Api::<Node>::all(client), watcher::Config::default());
    let mut events = watcher.default_backoff().boxed();
    let mut pending = false;
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                pending = true;
                if let Err(error) = masquerade::ensure(cluster_range).await {
                    tracing::warn!("masquerading: {error}");
                }
            }
            () = cancel.cancelled() => return Ok(()),
            ended = &mut endpoints => { ended??; return Ok(()) }
            () = tokio::time::sleep(RETRY), if pending => {}
            event = events.next() => match event {
                // The watcher backs off and lists anew by itself.
                Some(Err(error)) => tracing::warn!("watching nodes: {error}"),
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(node))) => { note(&mut listed, &node); }
                Some(Ok(Event::InitDone)) => { nodes = std::mem::take(&mut listed); complete = true; pending = true; }
                Some(Ok(Event::Apply(node))) => pending |= note(&mut nodes, &node),
                Some(Ok(Event::Delete(node))) => {
                    let name = node.metadata.name.unwrap_or_default();
                    pending |= nodes.remove(&name).is_some();
                }
                None => return Ok(()),
            },
        }
        if complete && pending {
            let desired = plan::plan(&own_name, &nodes);
            match apply(&handle, &paths, &desired).await {
                Ok(()) => pending = false,
                Err(error) => tracing::warn!("{error}; trying again in {} s", RETRY.as_secs()),
            }
        }
    }
}

/// Notes a node's facts; returns whether they changed. Node heartbeats change nothing here.
fn note(nodes: &mut BTreeMap<String, NodeFacts>, node: &Node) -> bool {
    let Some(name) = node.metadata.name.clone() else { return false };
    let facts = NodeFacts::of(node);
    if nodes.get(&name) == Some(&facts) {
        return false;
    }
    nodes.insert(name, facts);
    true
}

async fn apply(
    handle: &rtnetlink::Handle,
    paths: &CniPaths,
    desired: &Desired,
) -> Result<(), Box<dyn std::error::Error>> {
    if !desired.pod_ranges.is_empty() && cni::ensure(paths, &desired.pod_ranges)? {
        tracing::info!("CNI configuration written to {}", paths.configuration.display());
    }
    routes::ensure(handle, &desired.routes).await?;
    Ok(())
}

/// Pods are reached through this host, so it must forward.
fn forward_packets() -> std::io::Result<()> {
    for key in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        // A kernel without IPv6 has no such key.
        if std::path::Path::new(key).exists() && std::fs::read_to_string(key)?.trim() != "1" {
            std::fs::write(key, "1")?;
        }
    }
    Ok(())
}

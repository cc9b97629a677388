//! `kube-controller-manager`.

use std::process::ExitCode;

use clap::Parser;
use keelson_client::flags::lead;
use keelson_client::{kubeconfig, queue};
use keelson_component_base::metrics::Registry;
use keelson_component_base::{exit, logging, memory, shutdown, systemd, tls};
use kube_controller_manager::config::Flags;
use kube_controller_manager::context::Context;
use kube_controller_manager::descriptors;
use kube_controller_manager::identity::Identities;

/// Upstream's port of the controller manager.
const PORT: u16 = 10257;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    exit::code("kube-controller-manager", run(Flags::parse()).await)
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    logging::init(&flags.log)?;
    let mut config = flags.complete()?;
    let cancel = shutdown::signalled()?;
    let registry = Registry::new();
    let agent = keelson_client::user_agent("kube-controller-manager");
    let cluster = kubeconfig::load(&config.kubeconfig)?;
    let client = keelson_client::connect_with(cluster.clone(), &agent)?;
    if config.settings.root_ca.is_none() {
        let ca = cluster.certificate_authority.as_ref().map(kubeconfig::Source::read).transpose()?;
        config.settings.root_ca = ca.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    }
    let identities = if flags.use_service_account_credentials {
        let anonymous =
            kubeconfig::ClusterConfig { client_certificate: None, token: None, basic: None, ..cluster };
        let transport = keelson_client::connect_with(anonymous, &agent)?;
        Identities::ServiceAccounts { root: client.clone(), transport }
    } else {
        Identities::One(client.clone())
    };

    let endpoints = flags.serving.bind("kube-controller-manager", PORT, client.clone(), &registry).await?;
    tokio::spawn(endpoints.run(cancel.clone()));
    systemd::notify_ready();

    let context =
        || Context::new(client.clone(), identities, queue::Metrics::new(&registry), config.settings);
    let work = async |stop| descriptors::run(context(), &flags.controllers, stop).await;
    Ok(lead(config.candidacy, client.clone(), &registry, cancel, work).await?)
}

//! `kube-controller-manager`.

use std::process::ExitCode;

use clap::Parser;
use keelson_client::{delegated, kubeconfig, leader, queue};
use keelson_component_base::metrics::Registry;
use keelson_component_base::serve::Endpoints;
use keelson_component_base::{health, logging, memory, shutdown, systemd, tls};
use kube_controller_manager::config::Flags;
use kube_controller_manager::context::Context;
use kube_controller_manager::descriptors;
use kube_controller_manager::identity::Identities;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    match run(Flags::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message = format!("{message}: {cause}");
                source = cause.source();
            }
            eprintln!("kube-controller-manager: {message}");
            ExitCode::FAILURE
        }
    }
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

    let address = (flags.bind_address, flags.secure_port).into();
    let mut endpoints = Endpoints::new(address, health::Checks::new(), registry.clone());
    let serving = delegated::Serving {
        cert_dir: flags.cert_dir,
        cert_file: flags.tls_cert_file,
        key_file: flags.tls_private_key_file,
        client_ca_file: flags.client_ca_file,
    };
    endpoints.tls = Some(serving.server_tls("kube-controller-manager")?);
    endpoints.authorize = Some(delegated::authorize(client.clone()));
    let endpoints = endpoints.bind().await?;
    tokio::spawn(endpoints.run(cancel.clone()));
    systemd::notify_ready();

    let context =
        || Context::new(client.clone(), identities, queue::Metrics::new(&registry), config.settings);
    if !flags.leader_elect {
        descriptors::run(context(), &flags.controllers, cancel.clone()).await;
        return if cancel.is_cancelled() { Ok(()) } else { Err("a controller failed".into()) };
    }
    let election = leader::Election {
        client: client.clone(),
        lease: leader::LeaseName {
            namespace: flags.leader_elect_resource_namespace,
            name: flags.leader_elect_resource_name,
        },
        identity: leader::identity(),
        timing: config.timing,
        metrics: leader::Metrics::new(&registry),
    };
    let lead = async |stop| descriptors::run(context(), &flags.controllers, stop).await;
    match election.run(cancel, lead).await {
        leader::Ended::Lost => Err("the leader lease was lost".into()),
        leader::Ended::Finished => Err("a controller failed".into()),
        leader::Ended::Cancelled => Ok(()),
    }
}

//! `kube-scheduler`.

use std::process::ExitCode;

use clap::Parser;
use keelson_client::events::Recorder;
use keelson_client::{delegated, leader};
use keelson_component_base::metrics::Registry;
use keelson_component_base::serve::Endpoints;
use keelson_component_base::{exit, health, logging, memory, shutdown, systemd, tls};
use kube_scheduler::bind::Binder;
use kube_scheduler::config::Flags;
use kube_scheduler::metrics::Metrics;
use kube_scheduler::plugins;
use kube_scheduler::server::Scheduler;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    exit::code("kube-scheduler", run(Flags::parse()).await)
}

async fn run(flags: Flags) -> Result<(), Box<dyn std::error::Error>> {
    logging::init(&flags.log)?;
    let config = flags.complete()?;
    let cancel = shutdown::signalled()?;
    let registry = Registry::new();
    let client = keelson_client::connect(&config.kubeconfig, &keelson_client::user_agent("kube-scheduler"))?;

    let mut endpoints = Endpoints::new(
        (flags.bind_address, flags.secure_port).into(),
        health::Checks::new(),
        registry.clone(),
    );
    let serving = delegated::Serving {
        cert_dir: flags.cert_dir,
        cert_file: flags.tls_cert_file,
        key_file: flags.tls_private_key_file,
        client_ca_file: flags.client_ca_file,
    };
    endpoints.tls = Some(serving.server_tls("kube-scheduler")?);
    endpoints.authorize = Some(delegated::authorize(client.clone()));
    let endpoints = endpoints.bind().await?;
    tokio::spawn(endpoints.run(cancel.clone()));
    systemd::notify_ready();

    let scheduler = Scheduler {
        profile: plugins::default_profile(),
        metrics: Metrics::new(&registry, &config.scheduler_name),
        binder: Binder {
            client: client.clone(),
            recorder: Recorder::new(client.clone(), &config.scheduler_name, ""),
        },
        name: config.scheduler_name,
    };
    if !config.leader_elect {
        scheduler.run(cancel).await;
        return Ok(());
    }
    let election = leader::Election {
        client,
        lease: leader::LeaseName { namespace: config.lease_namespace, name: config.lease_name },
        identity: leader::identity(),
        timing: config.timing,
        metrics: leader::Metrics::new(&registry),
    };
    match election.run(cancel, |cancel| scheduler.run(cancel)).await {
        leader::Ended::Lost => Err("the leader lease was lost".into()),
        leader::Ended::Cancelled | leader::Ended::Finished => Ok(()),
    }
}

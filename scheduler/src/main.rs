//! `kube-scheduler`.

use std::process::ExitCode;

use clap::Parser;
use keelson_client::events::Recorder;
use keelson_client::flags::lead;
use keelson_component_base::metrics::Registry;
use keelson_component_base::{exit, logging, memory, shutdown, systemd, tls};
use kube_scheduler::bind::Binder;
use kube_scheduler::config::Flags;
use kube_scheduler::metrics::Metrics;
use kube_scheduler::plugins;
use kube_scheduler::server::Scheduler;

/// Upstream's port of the scheduler.
const PORT: u16 = 10259;

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

    let endpoints = flags.serving.bind("kube-scheduler", PORT, client.clone(), &registry).await?;
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
    Ok(lead(config.candidacy, client, &registry, cancel, |cancel| scheduler.run(cancel)).await?)
}

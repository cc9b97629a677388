//! The daemon: flags → server → drain.

use std::process::ExitCode;

use clap::Parser;
use keelson_component_base::{logging, memory, shutdown, tls};
use kube_apiserver::{config::Config, startup};

fn main() -> ExitCode {
    tls::install_provider();
    memory::trim_when_idle();
    let config = Config::parse();
    if let Err(error) = logging::init(&config.log) {
        eprintln!("kube-apiserver: logging: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let stop = shutdown::signalled().map_err(startup::StartError::Signals)?;
        startup::run(config, stop).await
    });
    // Detached tasks must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "kube-apiserver could not run");
            ExitCode::FAILURE
        }
    }
}

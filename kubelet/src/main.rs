//! `kubelet`: flags → configuration → build → run until told to stop. Containers are left running.

use clap::Parser as _;
use kubelet::{config::Flags, run};

fn main() -> std::process::ExitCode {
    keelson_component_base::tls::install_provider();
    keelson_component_base::memory::trim_when_idle();
    let flags = Flags::parse();
    if let Err(error) = keelson_component_base::logging::init(&flags.log) {
        eprintln!("kubelet: {error}");
        return std::process::ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kubelet: starting the async runtime: {error}");
            return std::process::ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run::run(flags)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            tracing::error!("{text}");
            std::process::ExitCode::FAILURE
        }
    }
}

//! The ground that everything which talks to the API server stands on: kubeconfig and one HTTP/2 connection
//! ([`connect`]), indexed caches of projections ([`cache`]), the work queue ([`queue`]), events ([`events`]),
//! leader election ([`leader`]), and the flags that its daemons share ([`flags`]).
//!
//! It never keeps whole objects and never polls: state comes by watch.

pub mod cache;
mod connection;
mod credentials;
pub mod delegated;
pub mod events;
#[cfg(test)]
mod fake;
pub mod flags;
pub mod kubeconfig;
pub mod leader;
pub mod queue;
pub mod raw;

use std::path::Path;

pub use connection::ConnectError;
pub use kubeconfig::{ClusterConfig, KubeconfigError};

/// A client for the current context of a kubeconfig file. It dials on first use, keeps one HTTP/2 connection (a
/// second only when the first is full of streams), dials again after failures, and re-reads token, certificate
/// and CA files. A comma-separated list of servers is tried in turn.
///
/// Must be called inside a tokio runtime.
///
/// # Errors
/// The file cannot be read, asks for what is not supported (exec plugins, auth providers, proxies), or names
/// certificates that do not load.
pub fn connect(kubeconfig: &Path, user_agent: &str) -> Result<kube::Client, ConnectError> {
    connect_with(kubeconfig::load(kubeconfig)?, user_agent)
}

/// A client with the service account of the pod that this process runs in.
///
/// # Errors
/// The process runs in no pod.
pub fn in_cluster(user_agent: &str) -> Result<kube::Client, ConnectError> {
    connect_with(kubeconfig::in_cluster()?, user_agent)
}

/// A client for an already loaded configuration.
///
/// # Errors
/// See [`connect`].
pub fn connect_with(config: ClusterConfig, user_agent: &str) -> Result<kube::Client, ConnectError> {
    let namespace = config.namespace.clone();
    let service = connection::Service::new(config, user_agent)?;
    Ok(kube::Client::new(service, namespace))
}

/// `<component>/v1.36.0 (linux/amd64) keelson`, the shape that upstream's daemons send.
#[must_use]
pub fn user_agent(component: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{component}/v1.36.0 ({}/{arch}) keelson/{}", std::env::consts::OS, env!("CARGO_PKG_VERSION"))
}

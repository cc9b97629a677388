//! The kubelet's HTTPS server on port 10250.

pub mod rotation;
pub mod trust;
use std::sync::Arc;
use keelson_component_base::{health::Checks, metrics::Registry, serve::Endpoints, tls};
use crate::{context::Kubelet, pods::Pods, runtime::events::Events as RuntimeEvents};

/// What the server answers from.
#[derive(Clone)]
pub struct Server {
    pub kubelet: Arc<Kubelet>,
    pub pods: Arc<Pods>,
    pub runtime_events: Arc<RuntimeEvents>,
    pub registry: Registry,
    pub checks: Checks,
}

impl Server {
    pub fn endpoints(self, directory: &std::path::Path) -> Result<Endpoints, tls::TlsError> {
        let config = &self.kubelet.config;
        let mut e = Endpoints::new(std::net::SocketAddr::new(config.address, config.port), self.checks.clone(), self.registry.clone());
        e.tls = Some(tls::ensure_self_signed(directory, "kubelet", &[self.kubelet.node_name.clone()])?);
        Ok(e)
    }
}

//! What all requests share: configuration, storage, the table of kinds, access, metrics.
//!
//! Immutable after startup, but for what its parts guard themselves.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use keelson_access::{
    admission::Admission,
    authn::chain::Authentication,
    authz::{Authorizer, rbac::Rbac},
    observed::Freshness,
    state::State,
    token::Tokens,
};
use keelson_component_base::health::Checks;
use keelson_storage::Storage;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    discovery::Discovery,
    metrics::Metrics,
    openapi::OpenApi,
    served::{Served, Table},
    services::Services,
    streams::Kubelet,
};

/// Who may do what.
pub struct Access {
    pub authentication: Authentication,
    pub authorizer: Arc<dyn Authorizer>,
    pub rbac: Arc<Rbac>,
    /// In upstream's order.
    pub admission: Vec<Box<dyn Admission>>,
    pub tokens: Arc<Tokens>,
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
    /// Set once all objects that decide have been seen; a refusal before that says nothing.
    pub fed: AtomicBool,
}

/// The API server.
pub struct Server {
    pub config: Config,
    /// Where others reach this server.
    pub address: IpAddr,
    pub storage: Storage,
    pub table: Table,
    pub access: Access,
    pub services: Services,
    pub kubelet: Kubelet,
    pub metrics: Metrics,
    pub checks: Checks,
    pub discovery: Discovery,
    pub openapi: OpenApi,
    /// Cancelled when requests that last must end.
    pub shutdown: CancellationToken,
}

impl Server {
    /// How long the store keeps an object of a kind; None is for ever.
    pub fn ttl_of(&self, served: &Served) -> Option<Duration> {
        (served.kind.storage_prefix == Some("events") && !self.config.event_ttl.is_zero())
            .then_some(self.config.event_ttl)
    }

    /// `host:port` of this server, as others write it.
    pub fn advertised(&self) -> String {
        match self.address {
            IpAddr::V4(ip) => format!("{ip}:{}", self.config.secure_port),
            IpAddr::V6(ip) => format!("[{ip}]:{}", self.config.secure_port),
        }
    }
}

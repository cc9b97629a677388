//! What every part of this kubelet shares: configuration, the runtime, the API server, and what is known of the node.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::Service;
use keelson_client::cache::Cache;
use parking_lot::RwLock;

use crate::{
    cgroups::Cgroups,
    config::KubeletConfiguration,
    events::Events,
    images::Images,
    metrics::Metrics,
    node::{self, events::Told},
    pod::{dns::Resolver, env::ServiceEnv, resources::Amounts},
    runtime::Runtime,
    volumes::Volumes,
};

/// Conditions of the runtime, as its Status call says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeCondition {
    pub runtime: Result<(), String>,
    pub network: Result<(), String>,
    /// Handlers (the default one's name is empty) whose mounts can be read-only all the way down.
    pub recursive_read_only: BTreeSet<String>,
}

impl Default for RuntimeCondition {
    fn default() -> Self {
        let unknown = || Err("container runtime status check may not have completed yet".to_owned());
        Self { runtime: unknown(), network: unknown(), recursive_read_only: BTreeSet::new() }
    }
}

/// Shared by all parts; made once.
pub struct Kubelet {
    pub config: KubeletConfiguration,
    pub node_name: String,
    /// The kubelet's own directory.
    pub root: PathBuf,
    pub runtime: Runtime,
    pub images: Images,
    pub client: Option<kube::Client>,
    pub events: Events,
    pub volumes: Volumes,
    /// Absent without an API server.
    pub services: Option<Arc<Cache<Option<ServiceEnv>>>>,
    pub metrics: Arc<Metrics>,
    pub cgroups: Cgroups,
    pub capacity: Amounts,
    pub host_ips: RwLock<Vec<String>>,
    pub runtime_condition: RwLock<RuntimeCondition>,
    pub host_resolver: Resolver,
    /// What the pods of this node ask for, but for the one with that uid.
    pub requested_beside: Arc<dyn Fn(&str) -> Amounts + Send + Sync>,
}

impl Kubelet {
    pub fn host_ips(&self) -> Vec<String> {
        self.host_ips.read().clone()
    }

    /// Records an event about this node.
    pub fn record_of_node(&self, told: &Told) {
        self.events.record(&node::events::reference(&self.node_name), told.kind, told.reason, &told.message);
    }

    pub fn cluster_domain(&self) -> &str {
        &self.config.cluster_domain
    }

    pub fn log_directory(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config.pod_logs_dir.join(crate::pod::log_directory(namespace, name, uid))
    }

    /// Services as environment variables need them, once all are known.
    pub async fn service_envs(&self) -> Vec<ServiceEnv> {
        let Some(cache) = &self.services else { return Vec::new() };
        cache.wait_synced().await;
        let mut services: Vec<ServiceEnv> =
            cache.list().iter().filter_map(|service| (**service).clone()).collect();
        services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        services
    }
}

/// What is kept of a Service; headless ones have no variables.
pub fn service_env(service: Service) -> Option<ServiceEnv> {
    let spec = service.spec?;
    let cluster_ip = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None")?;
    Some(ServiceEnv {
        namespace: service.metadata.namespace?,
        name: service.metadata.name?,
        cluster_ip,
        ports: spec
            .ports
            .into_iter()
            .flatten()
            .map(|port| (port.name, port.port, port.protocol.unwrap_or_else(|| "TCP".to_owned())))
            .collect(),
    })
}

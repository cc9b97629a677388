//! What every controller is given when it is started.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use keelson_client::events::Recorder;
use keelson_client::queue::{self, Queue};
use keelson_objects::addresses::Cidr;
use kube::Client;

use crate::identity::Identities;
use crate::informers::Informers;

/// What the flags say to controllers.
#[derive(Debug, Clone)]
pub struct Settings {
    pub allocate_node_cidrs: bool,
    pub cluster_cidrs: Vec<Cidr>,
    /// Not given to any node, should a cluster CIDR contain them.
    pub service_cidrs: Vec<Cidr>,
    pub node_cidr_mask_size: u8,
    pub node_cidr_mask_size_ipv6: u8,
    /// PEM.
    pub root_ca: Option<String>,
    /// PEM of the key that signs tokens kept in secrets.
    pub service_account_key: Option<Vec<u8>>,
    pub node_monitor_period: Duration,
    pub node_monitor_grace_period: Duration,
    pub node_startup_grace_period: Duration,
    pub terminated_pod_gc_threshold: usize,
    /// `--concurrent-<what>-syncs` by `<what>`.
    pub concurrency: BTreeMap<&'static str, usize>,
}

#[derive(Clone)]
pub struct Context(Arc<Shared>);

struct Shared {
    informers: Informers,
    identities: Identities,
    queues: queue::Metrics,
    settings: Settings,
    root: Client,
}

impl Context {
    #[must_use]
    pub fn new(root: Client, identities: Identities, queues: queue::Metrics, settings: Settings) -> Self {
        let informers = Informers::new(root.clone());
        Self(Arc::new(Shared { informers, identities, queues, settings, root }))
    }

    #[must_use]
    pub fn informers(&self) -> &Informers {
        &self.0.informers
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The process's own client.
    #[must_use]
    pub fn root(&self) -> Client {
        self.0.root.clone()
    }

    /// A client that acts as kube-system's service account of this name.
    #[must_use]
    pub fn client(&self, account: &'static str) -> Client {
        self.0.identities.client(account)
    }

    /// Events reported by `component` through `client`.
    #[must_use]
    pub fn recorder(&self, client: &Client, component: &str) -> Recorder {
        Recorder::new(client.clone(), component, "")
    }

    #[must_use]
    pub fn queue<Key: Clone + Eq + Hash + Send + 'static>(&self, name: &str) -> Queue<Key> {
        Queue::new(name, &self.0.queues)
    }

    /// How many workers a controller has.
    #[must_use]
    pub fn workers(&self, what: &str) -> usize {
        self.0.settings.concurrency.get(what).copied().unwrap_or(1)
    }
}

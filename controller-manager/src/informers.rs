//! The shared caches: one watch for each kind, started by the first controller that asks for it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::cache::{self, Cache, Indexers};
use kube::api::Api;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::meta::{Compact, HasMeta, Meta, ownership_indexers};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::service::ServiceInfo;

/// Pods by the node they are on.
pub const BY_NODE: &str = "node";
/// Slices by `namespace/service`.
pub const BY_SERVICE: &str = "service";

pub struct NamespaceInfo {
    pub meta: Meta,
    pub finalizers: Vec<String>,
}

/// A service account token of the old kind.
pub struct TokenSecret {
    pub meta: Meta,
    pub account: String,
    pub account_uid: String,
    /// Its token, namespace and CA are filled in.
    pub complete: bool,
}

pub struct LeaseInfo {
    pub meta: Meta,
    pub renewed: Option<Timestamp>,
}

pub struct CaBundle {
    pub meta: Meta,
    pub data: Option<BTreeMap<String, String>>,
}

pub type Slot<P> = OnceLock<Arc<Cache<P>>>;

macro_rules! projected {
    ($($type:ident),*) => { $(impl HasMeta for $type {
        fn meta(&self) -> &Meta {
            &self.meta
        }
    })* };
}
projected!(NamespaceInfo, TokenSecret, LeaseInfo, CaBundle);

pub struct Informers {
    client: Client,
    pods: Slot<PodInfo>,
    nodes: Slot<NodeInfo>,
    leases: Slot<LeaseInfo>,
    namespaces: Slot<NamespaceInfo>,
    accounts: Slot<Meta>,
    tokens: Slot<TokenSecret>,
    bundles: Slot<CaBundle>,
    claims: Slot<Meta>,
    replica_sets: Slot<Compact<ReplicaSet>>,
    deployments: Slot<Compact<Deployment>>,
    stateful_sets: Slot<Compact<StatefulSet>>,
    daemon_sets: Slot<Compact<DaemonSet>>,
    revisions: Slot<Compact<ControllerRevision>>,
    jobs: Slot<Compact<Job>>,
    cron_jobs: Slot<Compact<CronJob>>,
    services: Slot<ServiceInfo>,
    endpoints: Slot<Compact<Endpoints>>,
    slices: Slot<Compact<EndpointSlice>>,
    budgets: Slot<Compact<PodDisruptionBudget>>,
}

impl HasMeta for Meta {
    fn meta(&self) -> &Meta {
        self
    }
}

impl Informers {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            pods: Slot::new(),
            nodes: Slot::new(),
            leases: Slot::new(),
            namespaces: Slot::new(),
            accounts: Slot::new(),
            tokens: Slot::new(),
            bundles: Slot::new(),
            claims: Slot::new(),
            replica_sets: Slot::new(),
            deployments: Slot::new(),
            stateful_sets: Slot::new(),
            daemon_sets: Slot::new(),
            revisions: Slot::new(),
            jobs: Slot::new(),
            cron_jobs: Slot::new(),
            services: Slot::new(),
            endpoints: Slot::new(),
            slices: Slot::new(),
            budgets: Slot::new(),
        }
    }

    fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    fn compact<K>(&self, slot: &Slot<Compact<K>>, indexers: Indexers<Compact<K>>) -> Arc<Cache<Compact<K>>>
    where
        K: Resource<DynamicType = ()>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        slot.get_or_init(|| cache::start(self.all(), cache::config(), Compact::of, indexers)).clone()
    }

    pub fn pods(&self) -> Arc<Cache<PodInfo>> {
        let start = || {
            let mut indexers = ownership_indexers::<PodInfo>();
            indexers.push((BY_NODE, Box::new(|pod: &PodInfo| vec![pod.node.to_string()])));
            cache::start(self.all(), cache::config(), |pod: Pod| PodInfo::of(&pod), indexers)
        };
        self.pods.get_or_init(start).clone()
    }

    pub fn nodes(&self) -> Arc<Cache<NodeInfo>> {
        let start =
            || cache::start(self.all(), cache::config(), |node: Node| NodeInfo::of(&node), Vec::new());
        self.nodes.get_or_init(start).clone()
    }

    /// The heartbeats of nodes.
    pub fn leases(&self) -> Arc<Cache<LeaseInfo>> {
        let start = || {
            let api: Api<Lease> = Api::namespaced(self.client.clone(), "kube-node-lease");
            let project = |lease: Lease| LeaseInfo {
                meta: Meta::of(&lease.metadata),
                renewed: lease.spec.and_then(|spec| spec.renew_time).map(|time| time.0),
            };
            cache::start(api, cache::config(), project, Vec::new())
        };
        self.leases.get_or_init(start).clone()
    }

    pub fn namespaces(&self) -> Arc<Cache<NamespaceInfo>> {
        let start = || {
            let project = |namespace: Namespace| NamespaceInfo {
                meta: Meta::of(&namespace.metadata),
                finalizers: namespace.spec.and_then(|spec| spec.finalizers).unwrap_or_default(),
            };
            cache::start(self.all(), cache::config(), project, Vec::new())
        };
        self.namespaces.get_or_init(start).clone()
    }

    pub fn service_accounts(&self) -> Arc<Cache<Meta>> {
        let project = |account: ServiceAccount| Meta::of(&account.metadata);
        let start = || cache::start(self.all(), cache::config(), project, Vec::new());
        self.accounts.get_or_init(start).clone()
    }

    pub fn token_secrets(&self) -> Arc<Cache<TokenSecret>> {
        let start = || {
            let project = |secret: Secret| {
                let annotation = |name: &str| {
                    secret
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|all| all.get(name))
                        .cloned()
                        .unwrap_or_default()
                };
                let has = |key: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(key));
                TokenSecret {
                    meta: Meta::of(&secret.metadata),
                    account: annotation("kubernetes.io/service-account.name"),
                    account_uid: annotation("kubernetes.io/service-account.uid"),
                    complete: has("token") && has("namespace") && has("ca.crt"),
                }
            };
            let tokens = cache::config().fields("type=kubernetes.io/service-account-token");
            cache::start(self.all(), tokens, project, Vec::new())
        };
        self.tokens.get_or_init(start).clone()
    }

    /// The config maps that publish the cluster's CA.
    pub fn ca_bundles(&self) -> Arc<Cache<CaBundle>> {
        let start = || {
            let project = |map: ConfigMap| CaBundle { meta: Meta::of(&map.metadata), data: map.data };
            let only = cache::config().fields("metadata.name=kube-root-ca.crt");
            cache::start(self.all(), only, project, Vec::new())
        };
        self.bundles.get_or_init(start).clone()
    }

    pub fn claims(&self) -> Arc<Cache<Meta>> {
        let project = |claim: PersistentVolumeClaim| Meta::of(&claim.metadata);
        let start = || cache::start(self.all(), cache::config(), project, Vec::new());
        self.claims.get_or_init(start).clone()
    }

    pub fn replica_sets(&self) -> Arc<Cache<Compact<ReplicaSet>>> {
        self.compact(&self.replica_sets, ownership_indexers())
    }

    pub fn deployments(&self) -> Arc<Cache<Compact<Deployment>>> {
        self.compact(&self.deployments, Vec::new())
    }

    pub fn stateful_sets(&self) -> Arc<Cache<Compact<StatefulSet>>> {
        self.compact(&self.stateful_sets, Vec::new())
    }

    pub fn daemon_sets(&self) -> Arc<Cache<Compact<DaemonSet>>> {
        self.compact(&self.daemon_sets, Vec::new())
    }

    pub fn revisions(&self) -> Arc<Cache<Compact<ControllerRevision>>> {
        self.compact(&self.revisions, ownership_indexers())
    }

    pub fn jobs(&self) -> Arc<Cache<Compact<Job>>> {
        self.compact(&self.jobs, ownership_indexers())
    }

    pub fn cron_jobs(&self) -> Arc<Cache<Compact<CronJob>>> {
        self.compact(&self.cron_jobs, Vec::new())
    }

    pub fn services(&self) -> Arc<Cache<ServiceInfo>> {
        let project = |service: Service| ServiceInfo::of(&service);
        self.services.get_or_init(|| cache::start(self.all(), cache::config(), project, Vec::new())).clone()
    }

    pub fn endpoints(&self) -> Arc<Cache<Compact<Endpoints>>> {
        self.compact(&self.endpoints, Vec::new())
    }

    pub fn slices(&self) -> Arc<Cache<Compact<EndpointSlice>>> {
        let by_service = |slice: &Compact<EndpointSlice>| {
            let service = slice.meta.labels.get("kubernetes.io/service-name");
            service.map(|service| format!("{}/{service}", slice.meta.namespace)).into_iter().collect()
        };
        self.compact(&self.slices, vec![(BY_SERVICE, Box::new(by_service))])
    }
    pub fn budgets(&self) -> Arc<Cache<Compact<PodDisruptionBudget>>> {
        self.compact(&self.budgets, Vec::new())
    }
}

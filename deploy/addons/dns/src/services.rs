//! What DNS needs of Services and EndpointSlices, and where it is looked up.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::cache::{self, Cache, Indexers};
use kube::Api;
use kube::core::PartialObjectMeta;

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    pub name: Box<str>,
    /// In lower case, as in `_tcp`.
    pub protocol: Box<str>,
    pub number: u16,
}

/// How a Service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// By virtual addresses.
    ClusterIps(Vec<IpAddr>),
    /// By the addresses of its endpoints.
    Headless { not_ready_too: bool },
    /// By a name elsewhere.
    External(Box<str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub reach: Reach,
    pub ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFacts {
    pub addresses: Vec<IpAddr>,
    pub hostname: Option<Box<str>>,
    pub ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFacts {
    pub namespace: Box<str>,
    pub service: Box<str>,
    pub endpoints: Vec<EndpointFacts>,
    pub ports: Vec<Port>,
}

/// Looks up what the API server has; the answers to questions are made from this alone.
pub trait Lookup {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceFacts>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<SliceFacts>>;
    fn service_with_address(&self, address: IpAddr) -> Option<Arc<ServiceFacts>>;
    fn slices_with_address(&self, address: IpAddr) -> Vec<Arc<SliceFacts>>;
    fn namespace_exists(&self, namespace: &str) -> bool;
}

fn port(name: Option<&String>, protocol: Option<&String>, number: Option<i32>) -> Option<Port> {
    Some(Port {
        name: name.map(String::as_str).unwrap_or_default().into(),
        protocol: protocol.map_or("tcp".into(), |p| p.to_lowercase().into()),
        number: u16::try_from(number?).ok()?,
    })
}

impl ServiceFacts {
    pub fn of(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let single = spec.and_then(|s| s.cluster_ip.clone());
        let addresses: Vec<String> = spec
            .and_then(|s| s.cluster_ips.clone())
            .filter(|l| !l.is_empty())
            .unwrap_or(single.into_iter().collect());
        let external = spec
            .filter(|s| s.type_.as_deref() == Some("ExternalName"))
            .and_then(|s| s.external_name.as_deref());
        let reach = match external {
            Some(name) => Reach::External(name.into()),
            None if addresses.iter().any(|a| a == "None") => Reach::Headless {
                not_ready_too: spec.and_then(|s| s.publish_not_ready_addresses).unwrap_or_default(),
            },
            None => Reach::ClusterIps(addresses.iter().filter_map(|a| a.parse().ok()).collect()),
        };
        let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
        Self {
            namespace: service.metadata.namespace.as_deref().unwrap_or_default().into(),
            name: service.metadata.name.as_deref().unwrap_or_default().into(),
            reach,
            ports: ports
                .iter()
                .filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), Some(p.port)))
                .collect(),
        }
    }
}

impl SliceFacts {
    pub fn of(slice: &EndpointSlice) -> Self {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get("kubernetes.io/service-name"));
        let endpoints = slice.endpoints.iter().flatten().map(|endpoint| EndpointFacts {
            addresses: endpoint.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
            hostname: endpoint.hostname.as_deref().map(Into::into),
            // An unknown readiness is to be taken as ready.
            ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
        });
        let ports = slice.ports.as_deref().unwrap_or_default();
        Self {
            namespace: slice.metadata.namespace.as_deref().unwrap_or_default().into(),
            service: service.map(String::as_str).unwrap_or_default().into(),
            endpoints: endpoints.collect(),
            ports: ports.iter().filter_map(|p| port(p.name.as_ref(), p.protocol.as_ref(), p.port)).collect(),
        }
    }
}

const BY_SERVICE: &str = "service";
const BY_ADDRESS: &str = "address";

/// The caches, fed by watches.
pub struct Caches {
    services: Arc<Cache<ServiceFacts>>,
    slices: Arc<Cache<SliceFacts>>,
    /// Their names are all that matters.
    namespaces: Arc<Cache<()>>,
}

impl Caches {
    /// Starts the watches.
    pub fn start(client: &kube::Client) -> Self {
        let by_address: Indexers<ServiceFacts> = vec![(
            BY_ADDRESS,
            Box::new(|service: &ServiceFacts| match &service.reach {
                Reach::ClusterIps(addresses) => addresses.iter().map(IpAddr::to_string).collect(),
                Reach::Headless { .. } | Reach::External(_) => Vec::new(),
            }),
        )];
        let slice_indexes: Indexers<SliceFacts> = vec![
            (
                BY_SERVICE,
                Box::new(|slice: &SliceFacts| vec![format!("{}/{}", slice.namespace, slice.service)]),
            ),
            (
                BY_ADDRESS,
                Box::new(|slice: &SliceFacts| {
                    slice.endpoints.iter().flat_map(|e| &e.addresses).map(IpAddr::to_string).collect()
                }),
            ),
        ];
        let project_service = |service: Service| ServiceFacts::of(&service);
        let project_slice = |slice: EndpointSlice| SliceFacts::of(&slice);
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        Self {
            namespaces: cache::start(namespaces, cache::config(), |_| (), Vec::new()),
            services: cache::start(Api::all(client.clone()), cache::config(), project_service, by_address),
            slices: cache::start(Api::all(client.clone()), cache::config(), project_slice, slice_indexes),
        }
    }

    pub fn have_synced(&self) -> bool {
        self.services.has_synced() && self.slices.has_synced() && self.namespaces.has_synced()
    }
}

impl Lookup for Caches {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceFacts>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<SliceFacts>> {
        self.slices.indexed(BY_SERVICE, format!("{namespace}/{service}"))
    }

    fn service_with_address(&self, address: IpAddr) -> Option<Arc<ServiceFacts>> {
        self.services.indexed(BY_ADDRESS, address.to_string()).into_iter().next()
    }

    fn slices_with_address(&self, address: IpAddr) -> Vec<Arc<SliceFacts>> {
        self.slices.indexed(BY_ADDRESS, address.to_string())
    }

    fn namespace_exists(&self, namespace: &str) -> bool {
        self.namespaces.get("", namespace).is_some()
    }
}

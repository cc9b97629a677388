//! What controllers keep of a Service, and which pods stand behind it. Shared by both endpoint controllers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::cache::{Cache, Event};
use keelson_client::queue::Queue;

use crate::meta::{HasMeta, Meta, ObjectKey};
use crate::pod::PodInfo;

#[derive(Debug, Clone, Default)]
pub struct ServiceInfo {
    pub meta: Meta,
    /// `None`: its endpoints are somebody else's to write.
    pub selector: Option<BTreeMap<String, String>>,
    pub headless: bool,
    pub external: bool,
    pub ports: Vec<ServicePort>,
    pub publish_not_ready: bool,
    /// `true` for IPv4, in order of preference.
    pub families: Vec<bool>,
    pub traffic_distribution: Option<String>,
}

impl HasMeta for ServiceInfo {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl ServiceInfo {
    #[must_use]
    pub fn of(service: &Service) -> Self {
        let mut info = Self { meta: Meta::of(&service.metadata), ..Self::default() };
        if let Some(spec) = &service.spec {
            info.selector = spec.selector.clone().filter(|selector| !selector.is_empty());
            info.headless = spec.cluster_ip.as_deref() == Some("None");
            info.external = spec.type_.as_deref() == Some("ExternalName");
            info.ports = spec.ports.clone().unwrap_or_default();
            info.publish_not_ready = spec.publish_not_ready_addresses == Some(true);
            info.families = spec.ip_families.iter().flatten().map(|family| family == "IPv4").collect();
            info.traffic_distribution = spec.traffic_distribution.clone();
        }
        if info.families.is_empty() {
            info.families.push(true);
        }
        info
    }

    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let selector = self.selector.as_ref();
        selector.is_some_and(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
    }

    /// Its pods that may have endpoints.
    #[must_use]
    pub fn pods(&self, pods: &Cache<PodInfo>) -> Vec<Arc<PodInfo>> {
        if self.selector.is_none() || self.external {
            return Vec::new();
        }
        let mut found = pods.list_in(&self.meta.namespace);
        found.retain(|pod| !pod.is_terminal() && !pod.addresses.is_empty() && self.selects(&pod.meta.labels));
        found.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
        found
    }

    /// The hostname by which DNS finds the pod within this Service.
    #[must_use]
    pub fn hostname(&self, pod: &PodInfo) -> Option<String> {
        let named = !pod.hostname.is_empty() && *pod.subdomain == *self.meta.name;
        named.then(|| pod.hostname.to_string())
    }
}

/// The pod's port behind a Service's; `None` where the pod has none of that name.
#[must_use]
pub fn target_port(port: &ServicePort, pod: &PodInfo) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let named = |p: &&crate::pod::NamedPort| *p.name == **name && *p.protocol == *protocol;
            pod.ports.iter().find(named).map(|port| port.number)
        }
    }
}

/// The pod's address of a family.
#[must_use]
pub fn address(pod: &PodInfo, ipv4: bool) -> Option<&str> {
    let of_family = |text: &&str| text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4() == ipv4);
    pod.addresses.iter().map(|text| &**text).find(of_family)
}

/// Whether endpoints may look different after this change.
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    old.meta.labels != new.meta.labels
        || old.addresses != new.addresses
        || old.is_ready() != new.is_ready()
        || old.is_terminal() != new.is_terminal()
        || old.meta.deleting != new.meta.deleting
        || old.meta.uid != new.meta.uid
        || old.node != new.node
        || (&old.hostname, &old.subdomain) != (&new.hostname, &new.subdomain)
}

/// Queues the Services whose endpoints a change of a pod may change.
pub fn enqueue_for_pods(pods: &Cache<PodInfo>, services: Arc<Cache<ServiceInfo>>, queue: &Queue<ObjectKey>) {
    let queue = queue.clone();
    pods.subscribe(move |event| {
        let (old, new) = match event {
            Event::Applied { old: Some(old), new } if !matters(old, new) => return,
            Event::Applied { old, new } => (old.as_ref(), new),
            Event::Deleted(last) => (None, last),
            Event::Synced => return,
        };
        for service in services.list_in(&new.meta.namespace) {
            if service.selects(&new.meta.labels) || old.is_some_and(|old| service.selects(&old.meta.labels)) {
                queue.add(service.meta.key());
            }
        }
    });
}

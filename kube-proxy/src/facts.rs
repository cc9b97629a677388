//! What proxying needs of Services and EndpointSlices.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Box<str>,
    pub name: Box<str>,
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The name that nftables and conntrack use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A CIDR whose parts are known to be numbers: it is written into rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRange {
    pub address: IpAddr,
    pub prefix: u8,
}

impl SourceRange {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }
}

impl std::fmt::Display for SourceRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    pub key: ServiceKey,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub balancer_ips: Vec<IpAddr>,
    /// Who may come through a load balancer, as CIDRs; empty for everybody.
    pub source_ranges: Vec<SourceRange>,
    pub ports: Vec<ServicePort>,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity_seconds: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
}

impl ServiceFacts {
    /// `None` for a Service that is not proxied: headless, an alias, or left to another proxy.
    pub fn of(service: &Service) -> Option<Self> {
        let metadata = &service.metadata;
        let spec = service.spec.as_ref()?;
        let labelled = |label: &str| metadata.labels.as_ref().and_then(|l| l.get(label));
        if spec.type_.as_deref() == Some("ExternalName")
            || labelled("service.kubernetes.io/service-proxy-name").is_some()
        {
            return None;
        }
        let listed = spec.cluster_ips.iter().flatten();
        let all = listed.chain(spec.cluster_ip.as_ref().filter(|_| spec.cluster_ips.is_none()));
        let cluster_ips: Vec<IpAddr> = all.filter_map(|a| a.parse().ok()).collect();
        if cluster_ips.is_empty() {
            return None;
        }
        let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_ref()).into_iter().flatten();
        let ingress = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
            config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10800)
        });
        Some(Self {
            key: ServiceKey {
                namespace: metadata.namespace.as_deref()?.into(),
                name: metadata.name.as_deref()?.into(),
            },
            cluster_ips,
            external_ips: spec.external_ips.iter().flatten().filter_map(|a| a.parse().ok()).collect(),
            balancer_ips: ingress.filter_map(|a| a.parse().ok()).collect(),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| SourceRange::parse(range))
                .collect(),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
            affinity_seconds,
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
        })
    }
}

fn service_port(port: &k8s_openapi::api::core::v1::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
    })
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub node: Option<Box<str>>,
    pub ready: bool,
    /// Still serving while it ends: used when no ready endpoint is left.
    pub serving: bool,
}

/// One EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceFacts {
    pub service: ServiceKey,
    /// By name of the Service's port.
    pub ports: Vec<(Box<str>, Protocol, u16)>,
    pub endpoints: Vec<Endpoint>,
}

impl SliceFacts {
    /// `None` for a slice of no Service, or with names for addresses.
    pub fn of(slice: &EndpointSlice) -> Option<Self> {
        let labels = slice.metadata.labels.as_ref()?;
        let service = labels.get("kubernetes.io/service-name")?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let endpoint = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            let conditions = endpoint.conditions.as_ref();
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            Some(Endpoint {
                // Consumers use the first address only.
                address: endpoint.addresses.first()?.parse().ok()?,
                node: endpoint.node_name.as_deref().map(Into::into),
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
            })
        };
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().into();
            Some((name, Protocol::parse(port.protocol.as_deref())?, u16::try_from(port.port?).ok()?))
        });
        Some(Self {
            service: ServiceKey {
                namespace: slice.metadata.namespace.as_deref()?.into(),
                name: service.as_str().into(),
            },
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().flatten().filter_map(endpoint).collect(),
        })
    }
}

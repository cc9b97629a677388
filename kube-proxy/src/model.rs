//! What each address of a Service leads to on this node. Pure, and the same for every proxy mode.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::facts::{Protocol, ServiceFacts, ServicePort, SliceFacts, SourceRange};

/// An address that a Service is reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    ClusterIp(IpAddr, Protocol, u16),
    /// From outside the cluster, at an address routed to a node.
    ExternalIp(IpAddr, Protocol, u16),
    /// At every address of the node, of this family.
    NodePort {
        ipv4: bool,
        protocol: Protocol,
        port: u16,
    },
}

impl Frontend {
    pub fn is_ipv4(&self) -> bool {
        match self {
            Self::ClusterIp(address, ..) | Self::ExternalIp(address, ..) => address.is_ipv4(),
            Self::NodePort { ipv4, .. } => *ipv4,
        }
    }

    pub fn protocol(&self) -> Protocol {
        match self {
            Self::ClusterIp(_, protocol, _)
            | Self::ExternalIp(_, protocol, _)
            | Self::NodePort { protocol, .. } => *protocol,
        }
    }

    fn is_external(&self) -> bool {
        !matches!(self, Self::ClusterIp(..))
    }
}

/// What a frontend leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One of these, at random or by client.
    Endpoints {
        endpoints: Vec<SocketAddr>,
        /// Seconds that a client stays with its endpoint.
        affinity: Option<u32>,
        /// The client's address gives way to the node's, so that answers come back through it.
        masquerade: bool,
    },
    /// Nothing answers: clients are told at once.
    Reject,
    /// Endpoints exist, but not here, and the policy says to use only those: packets are dropped, so
    /// that a load balancer tries elsewhere.
    Drop,
}

/// One frontend of a Service with its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub frontend: Frontend,
    pub target: Target,
    /// Only these may come; empty for everybody.
    pub sources: Vec<SourceRange>,
}

/// The endpoints of one port, as seen from this node.
struct Pool {
    everywhere: Vec<SocketAddr>,
    here: Vec<SocketAddr>,
}

/// All routes of a Service on node `node`.
pub fn routes(service: &ServiceFacts, slices: &[Arc<SliceFacts>], node: &str) -> Vec<Route> {
    let mut routes = Vec::new();
    for port in &service.ports {
        for ipv4 in families(service) {
            let pool = pool(port, slices, node, ipv4);
            for frontend in frontends(service, port, ipv4) {
                let target = target(service, &frontend, &pool);
                routes.push(Route { frontend, target, sources: sources(service, &frontend) });
            }
        }
    }
    routes
}

fn families(service: &ServiceFacts) -> BTreeSet<bool> {
    service.cluster_ips.iter().map(IpAddr::is_ipv4).collect()
}

/// loadBalancerSourceRanges of the frontend's family, where it is a load balancer's.
fn sources(service: &ServiceFacts, frontend: &Frontend) -> Vec<SourceRange> {
    match frontend {
        Frontend::ExternalIp(address, ..) if service.balancer_ips.contains(address) => {
            let same = |range: &&SourceRange| range.address.is_ipv4() == address.is_ipv4();
            service.source_ranges.iter().filter(same).copied().collect()
        }
        _ => Vec::new(),
    }
}

fn frontends(service: &ServiceFacts, port: &ServicePort, ipv4: bool) -> Vec<Frontend> {
    let (protocol, number) = (port.protocol, port.port);
    let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|a| a.is_ipv4() == ipv4).collect()
    };
    let mut frontends: Vec<Frontend> = of_family(&service.cluster_ips)
        .into_iter()
        .map(|a| Frontend::ClusterIp(a, protocol, number))
        .collect();
    let external: BTreeSet<IpAddr> =
        of_family(&service.external_ips).into_iter().chain(of_family(&service.balancer_ips)).collect();
    frontends.extend(external.into_iter().map(|a| Frontend::ExternalIp(a, protocol, number)));
    frontends.extend(port.node_port.map(|port| Frontend::NodePort { ipv4, protocol, port }));
    frontends
}

fn pool(port: &ServicePort, slices: &[Arc<SliceFacts>], node: &str, ipv4: bool) -> Pool {
    // Of each endpoint: where, whether it is on this node, whether it is ready.
    let mut found: Vec<(SocketAddr, bool, bool)> = Vec::new();
    for slice in slices {
        let Some((_, _, number)) =
            slice.ports.iter().find(|(n, p, _)| *n == port.name && *p == port.protocol)
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            if endpoint.address.is_ipv4() == ipv4 && (endpoint.ready || endpoint.serving) {
                let here = endpoint.node.as_deref() == Some(node);
                found.push((SocketAddr::new(endpoint.address, *number), here, endpoint.ready));
            }
        }
    }
    // Slices may tell of an endpoint twice while it moves from one to another: the better news holds.
    found.sort_by_key(|(address, here, ready)| (*address, !*ready, !*here));
    found.dedup_by_key(|(address, ..)| *address);
    let pick = |only_here: bool| -> Vec<SocketAddr> {
        let chosen = |ready: bool| -> Vec<SocketAddr> {
            let matching =
                found.iter().filter(|(_, here, is_ready)| (*here || !only_here) && *is_ready == ready);
            matching.map(|(address, ..)| *address).collect()
        };
        let ready = chosen(true);
        // Better one that is ending but still serves than none.
        if ready.is_empty() { chosen(false) } else { ready }
    };
    Pool { everywhere: pick(false), here: pick(true) }
}

fn target(service: &ServiceFacts, frontend: &Frontend, pool: &Pool) -> Target {
    let local = if frontend.is_external() { service.external_local } else { service.internal_local };
    if pool.everywhere.is_empty() {
        return Target::Reject;
    }
    let endpoints = if local { &pool.here } else { &pool.everywhere };
    if endpoints.is_empty() {
        return Target::Drop;
    }
    Target::Endpoints {
        endpoints: endpoints.clone(),
        affinity: service.affinity_seconds,
        masquerade: frontend.is_external() && !local,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::facts::{Endpoint, ServiceKey};

    pub fn service() -> ServiceFacts {
        ServiceFacts {
            key: ServiceKey { namespace: "ns".into(), name: "web".into() },
            cluster_ips: vec!["10.96.0.7".parse().unwrap()],
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
            }],
            affinity_seconds: None,
            internal_local: false,
            external_local: false,
        }
    }

    pub fn slice(endpoints: &[(&str, &str, bool, bool)]) -> Arc<SliceFacts> {
        let endpoint = |(address, node, ready, serving): &(&str, &str, bool, bool)| Endpoint {
            address: address.parse().unwrap(),
            node: Some((*node).into()),
            ready: *ready,
            serving: *serving,
        };
        Arc::new(SliceFacts {
            service: service().key,
            ports: vec![("http".into(), Protocol::Tcp, 8080)],
            endpoints: endpoints.iter().map(endpoint).collect(),
        })
    }

    /// Expects the targets of the cluster IP and of the node port.
    fn check(
        service: &ServiceFacts,
        endpoints: &[(&str, &str, bool, bool)],
        cluster_ip: &str,
        node_port: &str,
    ) {
        let text = |route: &Route| match &route.target {
            Target::Reject => "reject".to_owned(),
            Target::Drop => "drop".to_owned(),
            Target::Endpoints { endpoints, masquerade, .. } => {
                let list: Vec<String> = endpoints.iter().map(SocketAddr::to_string).collect();
                format!("{}{}", list.join(" "), if *masquerade { " masquerade" } else { "" })
            }
        };
        let routes = routes(service, &[slice(endpoints)], "here");
        assert_eq!(routes.iter().map(text).collect::<Vec<_>>(), [cluster_ip, node_port]);
    }

    #[test]
    fn ready_endpoints_then_serving_ones_then_a_refusal() {
        let web = service();
        check(&web, &[], "reject", "reject");
        check(&web, &[("10.0.0.1", "here", false, false)], "reject", "reject");
        check(
            &web,
            &[
                ("10.0.0.1", "here", true, true),
                ("10.0.0.2", "there", true, true),
                ("10.0.0.3", "here", false, true),
            ],
            "10.0.0.1:8080 10.0.0.2:8080",
            "10.0.0.1:8080 10.0.0.2:8080 masquerade",
        );
        check(&web, &[("10.0.0.3", "there", false, true)], "10.0.0.3:8080", "10.0.0.3:8080 masquerade");
    }

    #[test]
    fn source_ranges_hold_for_load_balancers_of_their_family() {
        let range = |text: &str, prefix| SourceRange { address: text.parse().unwrap(), prefix };
        let service = ServiceFacts {
            external_ips: vec!["192.0.2.1".parse().unwrap()],
            balancer_ips: vec!["192.0.2.2".parse().unwrap()],
            source_ranges: vec![range("198.51.100.0", 24), range("fd00::", 8)],
            ..service()
        };
        let routes = routes(&service, &[slice(&[("10.0.0.1", "here", true, true)])], "here");
        let sources: Vec<Vec<String>> =
            routes.iter().map(|route| route.sources.iter().map(ToString::to_string).collect()).collect();
        let none = Vec::<String>::new;
        assert_eq!(sources, [none(), none(), vec!["198.51.100.0/24".to_owned()], none()]);
    }

    #[test]
    fn an_endpoint_that_two_slices_tell_of_is_as_ready_as_the_better_one_says() {
        let slices =
            [slice(&[("10.0.0.1", "here", false, true)]), slice(&[("10.0.0.1", "here", true, true)])];
        let (other, one) = (slice(&[("10.0.0.2", "here", true, true)]), &slices);
        let routes = routes(&service(), &[one[0].clone(), one[1].clone(), other], "here");
        let Target::Endpoints { endpoints, .. } = &routes[0].target else { panic!("{routes:?}") };
        assert_eq!(endpoints.len(), 2);
    }

    #[test]
    fn local_policies_use_this_node_only() {
        let external = ServiceFacts { external_local: true, ..service() };
        let both = [("10.0.0.1", "here", true, true), ("10.0.0.2", "there", true, true)];
        check(&external, &both, "10.0.0.1:8080 10.0.0.2:8080", "10.0.0.1:8080");
        check(&external, &both[1..], "10.0.0.2:8080", "drop");
        let internal = ServiceFacts { internal_local: true, ..service() };
        check(&internal, &both, "10.0.0.1:8080", "10.0.0.1:8080 10.0.0.2:8080 masquerade");
        check(&internal, &both[1..], "drop", "10.0.0.2:8080 masquerade");
    }
}

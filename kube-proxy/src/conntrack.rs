//! Forgetting connections whose endpoint is gone.
//!
//! TCP notices by itself; a UDP client that goes on sending from one port would be sent to the old
//! endpoint for as long as it sends.

use std::net::IpAddr;

use tokio::process::Command;

use crate::facts::Protocol;
use crate::model::{Frontend, Route, Target};

/// What is to be forgotten, as arguments of `conntrack -D`.
pub type Stale = Vec<String>;

/// Compares a Service's routes before and after; pure.
pub fn stale(before: &[Route], after: &[Route]) -> Vec<Stale> {
    let udp = |route: &&Route| route.frontend.protocol() == Protocol::Udp;
    let mut stale = Vec::new();
    for old in before.iter().filter(udp) {
        let new = after.iter().find(|route| route.frontend == old.frontend);
        let kept = new.map(|route| addresses(&route.target)).unwrap_or_default();
        for address in addresses(&old.target).into_iter().filter(|a| !kept.contains(a)) {
            stale.push(arguments(&old.frontend, Some(address)));
        }
    }
    // While nothing answered, packets were tracked as going to the Service itself.
    for new in after.iter().filter(udp).filter(|route| matches!(route.target, Target::Endpoints { .. })) {
        let old = before.iter().find(|route| route.frontend == new.frontend);
        if !old.is_some_and(|route| matches!(route.target, Target::Endpoints { .. })) {
            stale.push(arguments(&new.frontend, None));
        }
    }
    stale
}

fn addresses(target: &Target) -> Vec<IpAddr> {
    match target {
        Target::Endpoints { endpoints, .. } => endpoints.iter().map(std::net::SocketAddr::ip).collect(),
        Target::Reject | Target::Drop => Vec::new(),
    }
}

fn arguments(frontend: &Frontend, endpoint: Option<IpAddr>) -> Stale {
    let mut words = vec!["-D".to_owned(), "-p".to_owned(), "udp".to_owned()];
    if !frontend.is_ipv4() {
        words.extend(["-f".to_owned(), "ipv6".to_owned()]);
    }
    match frontend {
        Frontend::ClusterIp(address, ..) | Frontend::ExternalIp(address, ..) => {
            words.extend(["--orig-dst".to_owned(), address.to_string()]);
        }
        Frontend::NodePort { port, .. } => words.extend(["--orig-port-dst".to_owned(), port.to_string()]),
    }
    if let Some(endpoint) = endpoint {
        words.extend(["--dst-nat".to_owned(), endpoint.to_string()]);
    }
    words
}

/// Runs conntrack for each. Nothing to forget is its exit status 1 and no failure.
pub async fn forget(stale: Vec<Stale>) {
    for arguments in stale {
        match Command::new("conntrack").args(&arguments).output().await {
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    "cannot run conntrack, so UDP clients may keep sending to endpoints that are gone: {error}"
                );
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(protocol: Protocol, endpoints: &[&str]) -> Route {
        let endpoints: Vec<_> = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        let target = if endpoints.is_empty() {
            Target::Reject
        } else {
            Target::Endpoints { endpoints, affinity: None, masquerade: false }
        };
        Route {
            frontend: Frontend::ClusterIp("10.96.0.10".parse().unwrap(), protocol, 53),
            target,
            sources: Vec::new(),
        }
    }

    fn check(protocol: Protocol, before: &[&str], after: &[&str], expected: &[&str]) {
        let found: Vec<String> = stale(&[route(protocol, before)], &[route(protocol, after)])
            .iter()
            .map(|words| words.join(" "))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn only_udp_endpoints_that_are_gone_are_forgotten() {
        let (one, two) = ("10.0.0.1:53", "10.0.0.2:53");
        check(Protocol::Tcp, &[one], &[], &[]);
        check(Protocol::Udp, &[one], &[one, two], &[]);
        check(Protocol::Udp, &[one, two], &[two], &["-D -p udp --orig-dst 10.96.0.10 --dst-nat 10.0.0.1"]);
        check(Protocol::Udp, &[], &[one], &["-D -p udp --orig-dst 10.96.0.10"]);
    }
}

//! What a host should have, given the nodes of the cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Node;

/// A range of addresses, such as `10.244.1.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub address: IpAddr,
    pub prefix_length: u8,
}

/// A text that is no range of addresses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no range of addresses like 10.244.0.0/16")]
pub struct RangeError(String);

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let error = || RangeError(text.to_owned());
        let (address, prefix_length) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let prefix_length: u8 = prefix_length.parse().map_err(|_| error())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix_length > longest {
            return Err(error());
        }
        Ok(Self { address, prefix_length })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// What this module needs of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub pod_ranges: Vec<Range>,
    pub addresses: Vec<IpAddr>,
}

impl NodeFacts {
    /// Ranges and internal addresses of a node; what cannot be read is left out.
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let listed = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
        let single = spec.and_then(|s| s.pod_cidr.as_ref());
        let ranges =
            if listed.is_empty() { single.into_iter().collect() } else { listed.iter().collect::<Vec<_>>() };
        let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
        Self {
            pod_ranges: ranges.into_iter().filter_map(|r| r.parse().ok()).collect(),
            addresses: addresses
                .iter()
                .filter(|a| a.type_ == "InternalIP")
                .filter_map(|a| a.address.parse().ok())
                .collect(),
        }
    }
}

/// What a host should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The ranges that pods of this host get addresses from; none until the node has one.
    pub pod_ranges: Vec<Range>,
    /// The next hop to each other host's pods.
    pub routes: BTreeMap<Range, IpAddr>,
}

/// Decides what the host of node `own_name` should have.
pub fn plan(own_name: &str, nodes: &BTreeMap<String, NodeFacts>) -> Desired {
    let pod_ranges = nodes.get(own_name).map(|own| own.pod_ranges.clone()).unwrap_or_default();
    let own_ranges: BTreeSet<Range> = pod_ranges.iter().copied().collect();
    let mut routes = BTreeMap::new();
    for node in nodes.iter().filter(|(name, _)| *name != own_name).map(|(_, facts)| facts) {
        for range in &node.pod_ranges {
            let next_hop = node.addresses.iter().find(|a| a.is_ipv4() == range.address.is_ipv4());
            // A range that this host has too is a mistake elsewhere: sending own pods away would make it worse.
            if let Some(next_hop) = next_hop.filter(|_| !own_ranges.contains(range)) {
                routes.insert(*range, *next_hop);
            }
        }
    }
    Desired { pod_ranges, routes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(ranges: &[&str], addresses: &[&str]) -> NodeFacts {
        NodeFacts {
            pod_ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn check(nodes: &[(&str, NodeFacts)], expected_ranges: &[&str], expected_routes: &[(&str, &str)]) {
        let nodes = nodes.iter().map(|(name, facts)| ((*name).to_owned(), facts.clone())).collect();
        let desired = plan("me", &nodes);
        let ranges: Vec<String> = desired.pod_ranges.iter().map(Range::to_string).collect();
        assert_eq!(ranges, expected_ranges);
        let routes: Vec<(String, String)> =
            desired.routes.iter().map(|(r, hop)| (r.to_string(), hop.to_string())).collect();
        let expected: Vec<(String, String)> =
            expected_routes.iter().map(|(r, h)| ((*r).to_owned(), (*h).to_owned())).collect();
        assert_eq!(routes, expected);
    }

    #[test]
    fn routes_lead_to_other_hosts_only() {
        check(&[], &[], &[]);
        check(&[("me", facts(&[], &["10.0.0.1"]))], &[], &[]);
        let me = ("me", facts(&["10.244.0.0/24"], &["10.0.0.1"]));
        let other = ("other", facts(&["10.244.1.0/24", "fd01::/64"], &["fd00::2", "10.0.0.2"]));
        check(
            &[me.clone(), other],
            &["10.244.0.0/24"],
            &[("10.244.1.0/24", "10.0.0.2"), ("fd01::/64", "fd00::2")],
        );
        check(&[me.clone(), ("other", facts(&["10.244.1.0/24"], &[]))], &["10.244.0.0/24"], &[]);
        check(&[me, ("twin", facts(&["10.244.0.0/24"], &["10.0.0.3"]))], &["10.244.0.0/24"], &[]);
    }

    #[test]
    fn ranges_are_parsed_strictly() {
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "x/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
        assert_eq!("fd00::/64".parse::<Range>().unwrap().to_string(), "fd00::/64");
    }
}

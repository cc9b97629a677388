//! The kernel's routes to other hosts' pods, over netlink.
//!
//! Invariant: our routes carry a protocol number of their own, and only routes with that number are
//! ever removed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder};

use crate::plan::Range;

/// Marks our routes (`ip route show proto 107`); a number that no routing daemon is assigned.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(107);

/// Why routes could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error("cannot list routes")]
    List(#[source] rtnetlink::Error),
    #[error("cannot set the route to {range} via {next_hop}")]
    Set { range: Range, next_hop: IpAddr, source: rtnetlink::Error },
    #[error("cannot remove the route to {range}")]
    Remove { range: Range, source: rtnetlink::Error },
    #[error("the route to {0} mixes IPv4 and IPv6")]
    Family(Range),
}

/// Makes our routes exactly `desired`.
pub async fn ensure(handle: &Handle, desired: &BTreeMap<Range, IpAddr>) -> Result<(), RouteError> {
    let existing = list(handle).await?;
    for (range, next_hop) in desired {
        if existing.get(range).is_some_and(|(hop, _)| *hop == Some(*next_hop)) {
            continue;
        }
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(range.address, range.prefix_length)
            .and_then(|builder| builder.gateway(*next_hop))
            .map_err(|_| RouteError::Family(*range))?
            .protocol(PROTOCOL)
            .build();
        let set = handle.route().add(message).replace().execute().await;
        set.map_err(|source| RouteError::Set { range: *range, next_hop: *next_hop, source })?;
        tracing::info!(%range, %next_hop, "route set");
    }
    for (range, (_, message)) in existing {
        if !desired.contains_key(&range) {
            let removed = handle.route().del(message).execute().await;
            removed.map_err(|source| RouteError::Remove { range, source })?;
            tracing::info!(%range, "route removed");
        }
    }
    Ok(())
}

/// Our routes, with their next hop and the message that removes them.
async fn list(handle: &Handle) -> Result<BTreeMap<Range, (Option<IpAddr>, RouteMessage)>, RouteError> {
    let mut found = BTreeMap::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let mut routes = std::pin::pin!(handle.route().get(filter).execute());
        while let Some(route) = routes.try_next().await.map_err(RouteError::List)? {
            if route.header.protocol != PROTOCOL {
                continue;
            }
            let attribute = |wanted: fn(&RouteAttribute) -> Option<&RouteAddress>| {
                route.attributes.iter().find_map(wanted).and_then(address)
            };
            let destination =
                attribute(|a| if let RouteAttribute::Destination(d) = a { Some(d) } else { None });
            let next_hop = attribute(|a| if let RouteAttribute::Gateway(g) = a { Some(g) } else { None });
            if let Some(destination) = destination {
                let range =
                    Range { address: destination, prefix_length: route.header.destination_prefix_length };
                found.insert(range, (next_hop, route));
            }
        }
    }
    Ok(found)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

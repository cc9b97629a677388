//! Cluster IPs and node ports of Services.
//!
//! An allocation is one key in the store (`ranges/serviceips/<address>`, `ranges/servicenodeports/<port>`), made
//! by a compare-and-swap against "does not exist": safe with any number of API servers, and without a bitmap that
//! all of them would fight for. [`repair`] finds what a crash left behind.

mod cidr;
pub mod repair;

use std::{collections::BTreeSet, net::IpAddr};

use keelson_storage::{RawStore, SwapError};
use rand::Rng;
use serde_json::{Value, json};

pub use cidr::{Cidr, static_band};

use crate::{
    config::PortRange,
    generic::{errors, metadata},
    status::{Cause, Qualified, Status},
};

pub const ADDRESSES: &str = "ranges/serviceips";
pub const PORTS: &str = "ranges/servicenodeports";
/// Random picks before every candidate is tried in turn.
const RANDOM_PICKS: usize = 64;

/// One thing that a Service holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allocation {
    Address(IpAddr),
    Port(u16),
}

impl Allocation {
    pub fn key(self) -> String {
        match self {
            Allocation::Address(address) => format!("{ADDRESSES}/{address}"),
            Allocation::Port(port) => format!("{PORTS}/{port}"),
        }
    }
}

/// The allocators of a server.
pub struct Services {
    store: RawStore,
    ranges: Vec<Cidr>,
    ports: PortRange,
}

const SERVICE: Qualified<'static> = Qualified { group: "", name: "Service" };

fn invalid(object: &Value, cause: Cause) -> Status {
    Status::invalid(SERVICE, metadata::name(object), vec![cause])
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["spec"][field].as_str().unwrap_or_default()
}

fn wants_ports(object: &Value) -> bool {
    match text(object, "type") {
        "NodePort" => true,
        "LoadBalancer" => object["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

/// Everything a Service holds, as its spec says.
pub fn held(object: &Value) -> BTreeSet<Allocation> {
    let mut all = BTreeSet::new();
    if text(object, "type") != "ExternalName" {
        let listed = object["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for address in listed.chain([text(object, "clusterIP")]).filter_map(|text| text.parse().ok()) {
            all.insert(Allocation::Address(address));
        }
    }
    let ports = object["spec"]["ports"].as_array().into_iter().flatten();
    let numbers = ports.map(|port| &port["nodePort"]).chain([&object["spec"]["healthCheckNodePort"]]);
    for port in numbers.filter_map(Value::as_u64).filter_map(|port| u16::try_from(port).ok()) {
        if port > 0 {
            all.insert(Allocation::Port(port));
        }
    }
    all
}

impl Services {
    pub fn new(store: RawStore, ranges: Vec<Cidr>, ports: PortRange) -> Self {
        Services { store, ranges, ports }
    }

    pub fn ranges(&self) -> &[Cidr] {
        &self.ranges
    }

    /// Fills in what a Service needs and takes it in the store; returns what was taken. A dry run takes nothing.
    /// On an error everything taken so far is given back.
    pub async fn allocate(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Vec<Allocation>, Status> {
        let mut taken = Vec::new();
        let result = self.fill(object, old, dry_run, &mut taken).await;
        match result {
            Ok(()) => Ok(taken),
            Err(status) => {
                self.release(&taken).await;
                Err(status)
            }
        }
    }

    async fn fill(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
        taken: &mut Vec<Allocation>,
    ) -> Result<(), Status> {
        let owner = json!({
            "namespace": metadata::text(object, "namespace"), "name": metadata::name(object),
        });
        let had = old.map(held).unwrap_or_default();
        if text(object, "type") == "ExternalName" {
            return Ok(());
        }
        self.families(object, old)?;
        // Addresses.
        if text(object, "clusterIP") != "None" {
            let families: Vec<String> = object["spec"]["ipFamilies"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|family| family.as_str().map(str::to_string))
                .collect();
            let mut addresses: Vec<String> = object["spec"]["clusterIPs"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|address| address.as_str().map(str::to_string))
                .collect();
            if addresses.is_empty() && !text(object, "clusterIP").is_empty() {
                addresses.push(text(object, "clusterIP").to_string());
            }
            for (index, family) in families.iter().enumerate() {
                let range = self.range(family).ok_or_else(|| {
                    Status::internal(format!("no service address range of family {family}"))
                })?;
                match addresses.get(index) {
                    Some(given) => {
                        let address = given.parse::<IpAddr>().ok().filter(|address| range.contains(*address));
                        let Some(address) = address else {
                            return Err(invalid(
                                object,
                                Cause::invalid(
                                    "spec.clusterIPs",
                                    &json!([given]),
                                    &format!(
                                        "failed to allocate IP {given}: the provided network does not match the current range"
                                    ),
                                ),
                            ));
                        };
                        let allocation = Allocation::Address(address);
                        if !had.contains(&allocation) && !dry_run {
                            if !self.take(allocation, &owner).await? {
                                let detail = format!(
                                    "failed to allocate IP {address}: provided IP is already allocated"
                                );
                                let cause = Cause::invalid("spec.clusterIPs", &json!([given]), &detail);
                                return Err(invalid(object, cause));
                            }
                            taken.push(allocation);
                        }
                    }
                    None => {
                        let address = self.pick_address(&range, &owner, dry_run).await?;
                        if !dry_run {
                            taken.push(Allocation::Address(address));
                        }
                        addresses.push(address.to_string());
                    }
                }
            }
            if let Some(first) = addresses.first() {
                object["spec"]["clusterIP"] = first.as_str().into();
                object["spec"]["clusterIPs"] = addresses.into();
            }
        }
        self.fill_ports(object, &had, &owner, dry_run, taken).await
    }

    async fn fill_ports(
        &self,
        object: &mut Value,
        had: &BTreeSet<Allocation>,
        owner: &Value,
        dry_run: bool,
        taken: &mut Vec<Allocation>,
    ) -> Result<(), Status> {
        let count = object["spec"]["ports"].as_array().map_or(0, Vec::len);
        let wanted = wants_ports(object);
        // (protocol, node port) of the ports seen so far: one number may serve TCP and UDP of the same port.
        let mut seen: Vec<(String, u64, u16)> = Vec::new();
        for index in 0..count {
            let port = &object["spec"]["ports"][index];
            let given = port["nodePort"].as_u64().unwrap_or(0);
            let number = port["port"].as_u64().unwrap_or(0);
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_string();
            let field = format!("spec.ports[{index}].nodePort");
            let node_port = if given > 0 {
                let node_port = u16::try_from(given)
                    .ok()
                    .filter(|port| (self.ports.first..=self.ports.last).contains(port))
                    .ok_or_else(|| {
                        let detail = format!(
                            "provided port is not in the valid range. The range of valid ports is {}-{}",
                            self.ports.first, self.ports.last
                        );
                        invalid(object, Cause::invalid(&field, &json!(given), &detail))
                    })?;
                let allocation = Allocation::Port(node_port);
                let shared = seen.iter().any(|(p, _, taken)| *taken == node_port && *p != protocol);
                if !had.contains(&allocation) && !shared && !dry_run {
                    if !self.take(allocation, owner).await? {
                        return Err(invalid(
                            object,
                            Cause::invalid(&field, &json!(given), "provided port is already allocated"),
                        ));
                    }
                    taken.push(allocation);
                }
                node_port
            } else if wanted {
                match seen.iter().find(|(p, n, _)| *n == number && *p != protocol) {
                    Some((_, _, shared)) => *shared,
                    None => {
                        let port = self.pick_port(owner, dry_run).await?;
                        if !dry_run {
                            taken.push(Allocation::Port(port));
                        }
                        port
                    }
                }
            } else {
                continue;
            };
            seen.push((protocol, number, node_port));
            object["spec"]["ports"][index]["nodePort"] = node_port.into();
        }
        let checks =
            text(object, "type") == "LoadBalancer" && text(object, "externalTrafficPolicy") == "Local";
        if checks && object["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0 {
            let port = self.pick_port(owner, dry_run).await?;
            if !dry_run {
                taken.push(Allocation::Port(port));
            }
            object["spec"]["healthCheckNodePort"] = port.into();
        } else if checks
            && let Some(port) =
                object["spec"]["healthCheckNodePort"].as_u64().and_then(|port| u16::try_from(port).ok())
            && !had.contains(&Allocation::Port(port))
            && !dry_run
        {
            if !self.take(Allocation::Port(port), owner).await? {
                let cause = Cause::invalid(
                    "spec.healthCheckNodePort",
                    &json!(port),
                    "provided port is already allocated",
                );
                return Err(invalid(object, cause));
            }
            taken.push(Allocation::Port(port));
        }
        Ok(())
    }

    /// Settles `ipFamilies` and `ipFamilyPolicy` from what was asked for and what this cluster has.
    fn families(&self, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let policy = match text(object, "ipFamilyPolicy") {
            "" => old.map(|old| text(old, "ipFamilyPolicy")).filter(|policy| !policy.is_empty()),
            policy => Some(policy),
        };
        let policy = policy.unwrap_or("SingleStack").to_string();
        let mut families: Vec<String> = object["spec"]["ipFamilies"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|family| family.as_str().map(str::to_string))
            .collect();
        if families.is_empty() {
            // A given address names its family.
            let given = text(object, "clusterIP").parse::<IpAddr>().ok();
            families.push(match given {
                Some(address) => family_of(address).into(),
                None => self.ranges.first().map_or("IPv4", |range| family_of(range.network())).into(),
            });
        }
        for (index, family) in families.iter().enumerate() {
            if self.range(family).is_none() {
                let field = format!("spec.ipFamilies[{index}]");
                return Err(invalid(
                    object,
                    Cause::invalid(&field, &json!(family), "not configured on this cluster"),
                ));
            }
        }
        match policy.as_str() {
            "SingleStack" => families.truncate(1),
            "RequireDualStack" | "PreferDualStack" => {
                for range in &self.ranges {
                    let family = family_of(range.network());
                    if !families.iter().any(|present| present == family) {
                        families.push(family.into());
                    }
                }
                if policy == "RequireDualStack" && families.len() < 2 {
                    return Err(invalid(
                        object,
                        Cause::invalid(
                            "spec.ipFamilyPolicy",
                            &json!(policy),
                            "this cluster is not configured for dual-stack services",
                        ),
                    ));
                }
            }
            _ => {}
        }
        object["spec"]["ipFamilies"] = families.into();
        object["spec"]["ipFamilyPolicy"] = policy.into();
        Ok(())
    }

    fn range(&self, family: &str) -> Option<Cidr> {
        self.ranges.iter().copied().find(|range| family_of(range.network()) == family)
    }

    /// True if it was free and is now ours.
    async fn take(&self, allocation: Allocation, owner: &Value) -> Result<bool, Status> {
        match self.store.swap(&allocation.key(), 0, owner.to_string().into()).await {
            Ok(_) => Ok(true),
            Err(SwapError::Conflict(_)) => Ok(false),
            Err(SwapError::Store(error)) => Err(errors::store(&error)),
        }
    }

    async fn pick_address(&self, range: &Cidr, owner: &Value, dry_run: bool) -> Result<IpAddr, Status> {
        let capacity = range.capacity();
        let band = static_band(capacity);
        let offset = self.pick(capacity, band, dry_run, |offset| {
            let allocation = Allocation::Address(range.at(offset));
            async move { self.take(allocation, owner).await }
        });
        match offset.await? {
            Some(offset) => Ok(range.at(offset)),
            None => Err(Status::internal(format!("failed to allocate a serviceIP: range is full ({range})"))),
        }
    }

    async fn pick_port(&self, owner: &Value, dry_run: bool) -> Result<u16, Status> {
        let first = self.ports.first;
        let capacity = u64::from(self.ports.last - first) + 1;
        let port = |offset: u64| first + u16::try_from(offset).unwrap_or(0);
        let band = (capacity / 32).clamp(16, 128).min(capacity.saturating_sub(1));
        let offset = self.pick(capacity, if capacity <= 16 { 0 } else { band }, dry_run, |offset| {
            let allocation = Allocation::Port(port(offset));
            async move { self.take(allocation, owner).await }
        });
        match offset.await? {
            Some(offset) => Ok(port(offset)),
            None => Err(Status::internal("failed to allocate a nodePort: range is full")),
        }
    }

    /// Random offsets above the band first, then every one above it, then the band.
    async fn pick<F, Fut>(
        &self,
        capacity: u64,
        band: u64,
        dry_run: bool,
        take: F,
    ) -> Result<Option<u64>, Status>
    where
        F: Fn(u64) -> Fut,
        Fut: Future<Output = Result<bool, Status>>,
    {
        if capacity == 0 {
            return Ok(None);
        }
        let random = |low: u64| rand::rng().random_range(low..capacity);
        if dry_run {
            return Ok(Some(random(band.min(capacity - 1))));
        }
        for _ in 0..RANDOM_PICKS {
            let offset = random(band.min(capacity - 1));
            if take(offset).await? {
                return Ok(Some(offset));
            }
        }
        let start = random(0);
        let rotated = (0..capacity).map(|step| (start + step) % capacity);
        for offset in
            rotated.clone().filter(|offset| *offset >= band).chain(rotated.filter(|offset| *offset < band))
        {
            if take(offset).await? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Gives back allocations of a write that did not happen.
    pub async fn release(&self, allocations: &[Allocation]) {
        for allocation in allocations {
            let key = allocation.key();
            let result = match self.store.get(&key).await {
                Ok(Some(entry)) => self.store.remove(&key, entry.mod_revision).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = result {
                // The repair loop will find it.
                tracing::warn!(key, %error, "releasing a service allocation failed");
            }
        }
    }

    /// Gives back what `old` held and `new` does not.
    pub async fn release_difference(&self, old: &Value, new: Option<&Value>) {
        let kept = new.map(held).unwrap_or_default();
        let gone: Vec<Allocation> = held(old).into_iter().filter(|one| !kept.contains(one)).collect();
        self.release(&gone).await;
    }
}

fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_holds_addresses_and_ports() {
        let check = |object: Value, expected: &[Allocation]| {
            assert_eq!(held(&object).into_iter().collect::<Vec<_>>(), expected);
        };
        let address = Allocation::Address("10.0.0.1".parse().unwrap());
        check(json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}}), &[address]);
        check(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}), &[]);
        check(
            json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "ports": [{"nodePort": 30001}, {"port": 1}]}}),
            &[address, Allocation::Port(30001)],
        );
        check(json!({"spec": {"type": "ExternalName", "externalName": "x"}}), &[]);
    }
}

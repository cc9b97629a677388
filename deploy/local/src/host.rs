//! The hosts of a cluster: the machine itself, or network namespaces joined by a bridge.
//!
//! Invariant: a host outside the default root is reached from the machine only over the cluster's
//! own bridge; removing the namespaces and the bridge removes every address, route and nftables
//! table that the cluster had.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::command::{CommandError, ip};
use crate::layout::Layout;

/// One host: where its processes run and under which address they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub address: IpAddr,
    /// The network namespace, where the host is not the machine itself.
    pub namespace: Option<String>,
    /// Parent of all cgroups that the host's kubelet makes.
    pub cgroup_root: String,
}

impl Host {
    /// Words to put before a command so that it runs on this host's network.
    pub fn enter(&self) -> Vec<String> {
        match &self.namespace {
            Some(name) => vec!["nsenter".into(), format!("--net={}", namespace_path(name).display())],
            None => Vec::new(),
        }
    }
}

fn namespace_path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Takes a network namespace away, with the interfaces in it; one that is not there is no error.
pub fn remove_namespace(name: &str) -> Result<(), CommandError> {
    if namespace_path(name).exists() {
        ip(&format!("netns delete {name}"))?;
    }
    Ok(())
}

/// The machine as the one host of the cluster at the default root.
pub fn machine() -> Result<Host, CommandError> {
    let name = nix::unistd::gethostname().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    Ok(Host {
        name: if name.is_empty() { "localhost".to_owned() } else { name },
        address: machine_address()?,
        namespace: None,
        cgroup_root: "/keelson".to_owned(),
    })
}

/// The address that other machines would see this one under: the source of its default route, or
/// its first global address.
fn machine_address() -> Result<IpAddr, CommandError> {
    let route = ip("-4 -o route get 192.0.2.254").unwrap_or_default();
    if let Some(address) = word_after(&route, "src") {
        return Ok(address);
    }
    let addresses = ip("-4 -o address show scope global")?;
    Ok(word_after(&addresses, "inet").unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

fn word_after(text: &str, word: &str) -> Option<IpAddr> {
    let mut words = text.split_whitespace();
    words.by_ref().find(|w| *w == word)?;
    words.next()?.split('/').next()?.parse().ok()
}

/// The private network of a cluster outside the default root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    id: String,
    /// The second and third byte of 100.x.y.0/24 (RFC 6598 space, which pods and Services never use).
    subnet: (u8, u8),
    /// Where it is kept: certificates name its addresses.
    file: PathBuf,
}

/// The subnet that a cluster's id asks for, or the next one of which this machine has no address but on the cluster's own
/// bridge: two ids may ask for the same.
fn free_subnet(number: u16, addresses: &str, bridge: &str) -> (u8, u8) {
    let is_taken = |(second, third): &(u8, u8)| {
        let address = format!(" 100.{second}.{third}.");
        addresses.lines().any(|line| line.contains(&address) && !line.contains(bridge))
    };
    let subnet = |step: u16| {
        let [high, low] = number.wrapping_add(step).to_be_bytes();
        (64 + high % 64, low)
    };
    (0..1 << 14).map(subnet).find(|subnet| !is_taken(subnet)).unwrap_or_else(|| subnet(0))
}

/// As [`Network::keep`] writes it.
fn kept_subnet(text: &str) -> Option<(u8, u8)> {
    let address: Ipv4Addr = text.trim().strip_suffix("/24")?.parse().ok()?;
    let [100, second, third, 0] = address.octets() else { return None };
    Some((second, third))
}

fn bridge(id: &str) -> String {
    format!("kl-{id}")
}

impl Network {
    /// # Errors
    /// That the machine's addresses cannot be listed.
    pub fn new(layout: &Layout) -> Result<Self, CommandError> {
        let (id, file) = (layout.id(), layout.network_file());
        let kept = fs::read_to_string(&file).ok().and_then(|text| kept_subnet(&text));
        let subnet = match kept {
            Some(subnet) => subnet,
            None => {
                let number = u32::from_str_radix(&id, 16).unwrap_or_default() as u16;
                free_subnet(number, &ip("-4 -o address show")?, &bridge(&id))
            }
        };
        Ok(Self { id, subnet, file })
    }

    /// Has later runs find the same network.
    ///
    /// # Errors
    /// The root's.
    pub fn keep(&self) -> io::Result<()> {
        fs::write(&self.file, format!("{}/24\n", self.address(0)))
    }

    fn bridge(&self) -> String {
        bridge(&self.id)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(100, self.subnet.0, self.subnet.1, last)
    }

    /// The host with this index (0 for the first), which [`Network::ensure`] makes.
    pub fn host(&self, index: u8, name: &str) -> Host {
        Host {
            name: name.to_owned(),
            address: IpAddr::V4(self.address(10 + index)),
            namespace: Some(format!("kl-{}-{index}", self.id)),
            cgroup_root: format!("/keelson-{}-{index}", self.id),
        }
    }

    /// Makes the bridge and the namespaces of `count` hosts that are not there yet.
    pub fn ensure(&self, count: u8) -> Result<(), CommandError> {
        let bridge = self.bridge();
        if ip(&format!("link show {bridge}")).is_err() {
            ip(&format!("link add {bridge} type bridge"))?;
            ip(&format!("address add {}/24 dev {bridge}", self.address(1)))?;
            ip(&format!("link set {bridge} up"))?;
        }
        for index in 0..count {
            let namespace = format!("kl-{}-{index}", self.id);
            if namespace_path(&namespace).exists() {
                continue;
            }
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("link add {namespace} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("link set {namespace} master {bridge} up"))?;
            for line in [
                "link set lo up".to_owned(),
                format!("address add {}/24 dev eth0", self.address(10 + index)),
                "link set eth0 up".to_owned(),
                format!("route add default via {}", self.address(1)),
            ] {
                ip(&format!("-n {namespace} {line}"))?;
            }
        }
        Ok(())
    }

    /// Takes the namespaces and the bridge away; what is not there is no error.
    pub fn remove(&self) -> Result<(), CommandError> {
        let prefix = format!("kl-{}-", self.id);
        for line in ip("netns list")?.lines() {
            if let Some(name) = line.split_whitespace().next().filter(|n| n.starts_with(&prefix)) {
                ip(&format!("netns delete {name}"))?;
            }
        }
        for link in ip("-o link show")?.lines() {
            // "7: kl-1234abcd-0@if2: <BROADCAST…": the name stands between the first two colons.
            let name = link.split(": ").nth(1).unwrap_or_default().split('@').next().unwrap_or_default();
            if name.starts_with(&prefix) || name == self.bridge() {
                // A veth end goes with its namespace; it may be gone between listing and deleting.
                let _ = ip(&format!("link delete {name}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ip_output() {
        let check = |text: &str, word: &str, expected: Option<&str>| {
            assert_eq!(word_after(text, word), expected.map(|e| e.parse().unwrap()), "{text}");
        };
        check("1.1.1.1 via 10.0.0.1 dev eth0 src 10.0.0.7 uid 0", "src", Some("10.0.0.7"));
        check(
            "2: eth0    inet 192.168.3.4/24 brd 192.168.3.255 scope global eth0",
            "inet",
            Some("192.168.3.4"),
        );
        check("", "inet", None);
    }

    #[test]
    fn two_clusters_share_no_subnet() {
        let addresses = "2: eth0    inet 192.168.3.4/24 scope global eth0\n\
                         9: kl-c1547155    inet 100.113.85.1/24 scope global kl-c1547155";
        let check = |number, bridge, expected| {
            assert_eq!(free_subnet(number, addresses, bridge), expected, "{number:x} {bridge}");
        };
        check(0x7155, "kl-9ee57155", (113, 86));
        check(0x7155, "kl-c1547155", (113, 85));
        check(0x7156, "kl-c1547156", (113, 86));
        check(0xffff, "kl-0000ffff", (127, 255));
        assert_eq!(kept_subnet("100.113.86.0/24\n"), Some((113, 86)));
        assert_eq!(kept_subnet("10.113.86.0/24\n"), None);
        assert_eq!(kept_subnet(""), None);
    }

    #[test]
    fn hosts_have_names_and_addresses_of_their_own() {
        let network = Network::new(&Layout::new("/tmp/one").unwrap()).unwrap();
        let (first, second) = (network.host(0, "node-1"), network.host(1, "node-2"));
        assert_ne!(first.address, second.address);
        assert_ne!(first.namespace, second.namespace);
        assert_ne!(first.cgroup_root, second.cgroup_root);
        assert!(first.namespace.unwrap().len() <= 15);
    }
}

//! Routes in nftables' words.
//!
//! There is one table `kube-proxy` per address family. A Service's frontend is an element of the
//! verdict map `service-ips` or `service-nodeports`; it goes to the chain `cluster-N` (or `node-N`,
//! `local-N`) that all Services with N endpoints share, which picks the endpoint from the map
//! `endpoints-N` (`node-endpoints-N`) by address, protocol, port and a random number below N. So a
//! packet costs the same however many Services there are, and a change touches only its own
//! elements. Only Services with session affinity have chains of their own.
//!
//! ```text
//! prerouting, output (nat) → services → cluster-N ─ dnat ─→ postrouting (masquerade if marked)
//! prerouting, output (filter) → firewall: drop what may not come through a load balancer
//! input, forward, output (filter) → refusals: reject or drop what has no endpoint
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use crate::facts::{ServiceKey, SourceRange};
use crate::model::{Frontend, Route, Target};

/// Marks packets whose source is to be translated (upstream's bit 14).
const MASQUERADE_MARK: u32 = 0x4000;

/// An address family with its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    Ip,
    Ip6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ip, Self::Ip6];

    fn of(ipv4: bool) -> Self {
        if ipv4 { Self::Ip } else { Self::Ip6 }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Self::Ip => "ipv4_addr",
            Self::Ip6 => "ipv6_addr",
        }
    }
}

/// A shared chain that picks one of N endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Picker {
    /// By the packet's destination address.
    Address(usize),
    /// At a port of the node; the source is translated.
    NodePort(usize),
    /// At a port of the node, for endpoints here: the client's address stays.
    LocalNodePort(usize),
}

impl Picker {
    fn count(self) -> usize {
        match self {
            Self::Address(n) | Self::NodePort(n) | Self::LocalNodePort(n) => n,
        }
    }

    fn chain(self) -> String {
        match self {
            Self::Address(n) => format!("cluster-{n}"),
            Self::NodePort(n) => format!("node-{n}"),
            Self::LocalNodePort(n) => format!("local-{n}"),
        }
    }

    fn map(self) -> String {
        match self {
            Self::Address(n) => format!("endpoints-{n}"),
            Self::NodePort(n) | Self::LocalNodePort(n) => format!("node-endpoints-{n}"),
        }
    }

    fn is_node_port(self) -> bool {
        !matches!(self, Self::Address(_))
    }
}

/// Name of a map or set, and a key in it.
type Element = (String, String);

/// Chains and sets that one frontend has to itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Own {
    /// Declarations, in order: `set ip kube-proxy affinity-… { … }`.
    sets: BTreeMap<String, String>,
    chains: BTreeMap<String, Vec<String>>,
}

/// Everything that one Service has in one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fragment {
    /// By (map or set, key): the value, empty in a set.
    elements: BTreeMap<Element, String>,
    pickers: BTreeSet<Picker>,
    own: Own,
}

impl Fragment {
    fn element(&mut self, map: impl Into<String>, key: String, value: impl Into<String>) {
        self.elements.insert((map.into(), key), value.into());
    }
}

/// The fragments of a Service by family.
pub fn fragments(key: &ServiceKey, routes: &[Route]) -> BTreeMap<Family, Fragment> {
    let mut fragments: BTreeMap<Family, Fragment> = BTreeMap::new();
    for route in routes {
        let family = Family::of(route.frontend.is_ipv4());
        let fragment = fragments.entry(family).or_default();
        add_route(fragment, family, key, route);
    }
    fragments
}

fn add_route(fragment: &mut Fragment, family: Family, service: &ServiceKey, route: &Route) {
    let protocol = route.frontend.protocol().name();
    let (verdicts, refusals, key) = match route.frontend {
        Frontend::ClusterIp(address, _, port) => {
            fragment.element("cluster-ips", address.to_string(), "");
            ("service-ips", "refused-ips", format!("{address} . {protocol} . {port}"))
        }
        Frontend::ExternalIp(address, _, port) => {
            ("service-ips", "refused-ips", format!("{address} . {protocol} . {port}"))
        }
        Frontend::NodePort { port, .. } => {
            ("service-nodeports", "refused-nodeports", format!("{protocol} . {port}"))
        }
    };
    if !route.sources.is_empty() {
        let chain = add_firewall(fragment, family, (service, route));
        fragment.element("firewall-ips", key.clone(), format!("goto {chain}"));
    }
    match &route.target {
        Target::Reject => fragment.element(refusals, key, "goto reject-chain"),
        Target::Drop => fragment.element(refusals, key, "drop"),
        Target::Endpoints { endpoints, affinity: Some(seconds), masquerade } => {
            let chain = add_affinity(fragment, family, (service, route), endpoints, (*seconds, *masquerade));
            fragment.element(verdicts, key, format!("goto {chain}"));
        }
        Target::Endpoints { endpoints, affinity: None, masquerade } => {
            let count = endpoints.len();
            let picker = match (&route.frontend, masquerade) {
                (Frontend::NodePort { .. }, true) => Picker::NodePort(count),
                (Frontend::NodePort { .. }, false) => Picker::LocalNodePort(count),
                (Frontend::ClusterIp(..) | Frontend::ExternalIp(..), _) => Picker::Address(count),
            };
            if *masquerade && !picker.is_node_port() {
                fragment.element("masqueraded-ips", key.clone(), "");
            }
            for (index, endpoint) in endpoints.iter().enumerate() {
                fragment.element(picker.map(), format!("{key} . {index}"), address_and_port(endpoint));
            }
            fragment.element(verdicts, key, format!("goto {}", picker.chain()));
            fragment.pickers.insert(picker);
        }
    }
    if let Target::Endpoints { endpoints, .. } = &route.target {
        for endpoint in endpoints {
            let address = endpoint.ip();
            fragment.element("hairpins", format!("{address} . {address}"), "");
        }
    }
}

fn address_and_port(endpoint: &SocketAddr) -> String {
    format!("{} . {}", endpoint.ip(), endpoint.port())
}

/// The chain that lets only some sources come to a frontend.
fn add_firewall(fragment: &mut Fragment, family: Family, (service, route): (&ServiceKey, &Route)) -> String {
    let mut hasher = DefaultHasher::new();
    (service, route.frontend).hash(&mut hasher);
    let chain = format!("firewall-{:016x}", hasher.finish());
    let word = family.word();
    let allowed = |range: &SourceRange| format!("{word} saddr {range} return");
    let rules = route.sources.iter().map(allowed).chain(["drop".to_owned()]).collect();
    fragment.own.chains.insert(chain.clone(), rules);
    chain
}

/// The chains of a frontend with session affinity: one that looks for the client's endpoint, and one
/// per endpoint that remembers the client. Names are hashes, since a name of nftables is short.
fn add_affinity(
    fragment: &mut Fragment,
    family: Family,
    (service, route): (&ServiceKey, &Route),
    endpoints: &[SocketAddr],
    (seconds, masquerade): (u32, bool),
) -> String {
    let hash = |what: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        what(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let word = family.word();
    let chain = format!("affinity-{}", hash(&|h| (service, route.frontend).hash(h)));
    let mut look = Vec::new();
    let mut choices = Vec::new();
    if masquerade {
        look.push("jump mark-for-masquerade".to_owned());
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        // The set is named by endpoint, not by place, so that clients keep theirs when others come and go.
        let own = hash(&|h| (service, route.frontend, endpoint).hash(h));
        let (set, to) = (format!("clients-{own}"), format!("endpoint-{own}"));
        look.push(format!("{word} saddr @{set} goto {to}"));
        choices.push(format!("{index} : goto {to}"));
        let declaration =
            format!("{{ type {}; flags dynamic,timeout; timeout {seconds}s; }}", family.address_type());
        fragment.own.sets.insert(set.clone(), declaration);
        let destination = match endpoint.ip() {
            IpAddr::V4(address) => format!("{address}:{}", endpoint.port()),
            IpAddr::V6(address) => format!("[{address}]:{}", endpoint.port()),
        };
        let protocol = route.frontend.protocol().name();
        fragment.own.chains.insert(
            to,
            vec![
                format!("update @{set} {{ {word} saddr }}"),
                format!("meta l4proto {protocol} dnat to {destination}"),
            ],
        );
    }
    look.push(format!("numgen random mod {} vmap {{ {} }}", endpoints.len(), choices.join(", ")));
    fragment.own.chains.insert(chain.clone(), look);
    chain
}

/// One table as it was last written to the kernel.
#[derive(Debug)]
pub struct Table {
    family: Family,
    /// Ranges of pods of this family: traffic to a cluster IP from elsewhere is translated.
    pod_ranges: Vec<String>,
    fragments: BTreeMap<ServiceKey, Fragment>,
    pickers: BTreeSet<Picker>,
    /// How many fragments have an element: several Services may share an endpoint's hairpin entry.
    uses: BTreeMap<Element, usize>,
}

impl Table {
    pub fn new(family: Family, pod_ranges: Vec<String>) -> Self {
        Self {
            family,
            pod_ranges,
            fragments: BTreeMap::new(),
            pickers: BTreeSet::new(),
            uses: BTreeMap::new(),
        }
    }

    fn prefix(&self) -> String {
        format!("{} kube-proxy", self.family.word())
    }

    /// The program that removes the table; one that is not there is no error.
    pub fn removal(family: Family) -> String {
        let word = family.word();
        format!("add table {word} kube-proxy\ndelete table {word} kube-proxy\n")
    }

    /// What nft is asked to see whether somebody has flushed the rules: it says little and fails without them.
    pub fn presence(family: Family) -> [&'static str; 5] {
        ["list", "chain", family.word(), "kube-proxy", "mark-for-masquerade"]
    }

    /// The program that puts the table in place anew, whatever was there.
    pub fn whole(&mut self) -> String {
        let mut program = Self::removal(self.family);
        program.push_str(&self.base());
        let fragments = std::mem::take(&mut self.fragments);
        self.pickers.clear();
        self.uses.clear();
        let changes = fragments.into_iter().map(|(key, fragment)| (key, Some(fragment))).collect();
        program.push_str(&self.change(changes));
        program
    }

    /// Takes in new fragments (`None`: the Service is gone) and gives the program that makes it so;
    /// empty if nothing changes. Whoever fails to apply it must apply [`Table::whole`] next.
    pub fn change(&mut self, changes: BTreeMap<ServiceKey, Option<Fragment>>) -> String {
        let prefix = self.prefix();
        // What the kernel must forget, and what it must learn. An element may be on both sides: its value
        // changed, or it passes from one Service to another; the program forgets first.
        let mut removed: BTreeSet<Element> = BTreeSet::new();
        let mut added: BTreeMap<Element, String> = BTreeMap::new();
        let (mut first, mut last) = (String::new(), String::new());
        let mut arriving = Vec::new();
        for (key, new) in changes {
            let old = self.fragments.remove(&key).unwrap_or_default();
            let new = new.unwrap_or_default();
            for (element, value) in &old.elements {
                match new.elements.get(element) {
                    Some(same) if same == value => {}
                    Some(_) => {
                        removed.insert(element.clone());
                    }
                    None => {
                        if self.release(element) {
                            removed.insert(element.clone());
                        }
                    }
                }
            }
            arriving.push((key, old, new));
        }
        for (key, old, new) in arriving {
            for picker in &new.pickers {
                if self.pickers.insert(*picker) {
                    first.push_str(&self.picker(*picker));
                }
            }
            write_own(&prefix, &old.own, &new.own, &mut first, &mut last);
            for (element, value) in &new.elements {
                let is_new = match old.elements.get(element) {
                    Some(before) => before != value,
                    None => self.acquire(element),
                };
                if is_new {
                    added.insert(element.clone(), value.clone());
                }
            }
            if new != Fragment::default() {
                self.fragments.insert(key, new);
            }
        }
        for (map, key) in &removed {
            let _ = writeln!(first, "delete element {prefix} {map} {{ {key} }}");
        }
        for ((map, key), value) in &added {
            let separator = if value.is_empty() { "" } else { " : " };
            let _ = writeln!(first, "add element {prefix} {map} {{ {key}{separator}{value} }}");
        }
        first + &last
    }

    /// Counts one more user of an element; whether it is the first.
    fn acquire(&mut self, element: &Element) -> bool {
        let uses = self.uses.entry(element.clone()).or_default();
        *uses += 1;
        *uses == 1
    }

    /// Counts one user less; whether it was the last.
    fn release(&mut self, element: &Element) -> bool {
        let Some(uses) = self.uses.get_mut(element) else { return true };
        *uses -= 1;
        let unused = *uses == 0;
        if unused {
            self.uses.remove(element);
        }
        unused
    }

    fn picker(&self, picker: Picker) -> String {
        let (prefix, word, count) = (self.prefix(), self.family.word(), picker.count());
        let (map, chain) = (picker.map(), picker.chain());
        let key = if picker.is_node_port() { String::new() } else { format!("{word} daddr . ") };
        let key = format!("{key}meta l4proto . th dport . numgen random mod {count}");
        let mut program = format!("add map {prefix} {map} {{ typeof {key} : {word} daddr . th dport; }}\n");
        let _ = writeln!(program, "add chain {prefix} {chain}");
        if matches!(picker, Picker::NodePort(_)) {
            let _ = writeln!(program, "add rule {prefix} {chain} jump mark-for-masquerade");
        }
        let _ = writeln!(program, "add rule {prefix} {chain} dnat {word} to {key} map @{map}");
        program
    }

    /// The parts that do not depend on Services.
    fn base(&self) -> String {
        let (word, address) = (self.family.word(), self.family.address_type());
        let from_elsewhere = match self.pod_ranges.as_slice() {
            [] => String::new(),
            ranges => format!(
                "    {word} daddr @cluster-ips {word} saddr != {{ {} }} jump mark-for-masquerade\n",
                ranges.join(", ")
            ),
        };
        // Ports of the loopback interface are not offered: routing would not carry the answer.
        let node_addresses = match self.family {
            Family::Ip => "fib daddr type local ip daddr != 127.0.0.0/8",
            Family::Ip6 => "fib daddr type local ip6 daddr != ::1",
        };
        let icmp = match self.family {
            Family::Ip => "icmp type port-unreachable",
            Family::Ip6 => "icmpv6 type port-unreachable",
        };
        format!(
            "add table {word} kube-proxy {{ comment \"rules for kube-proxy\"; }}
table {word} kube-proxy {{
  set cluster-ips {{ type {address}; }}
  set masqueraded-ips {{ type {address} . inet_proto . inet_service; }}
  set hairpins {{ type {address} . {address}; }}
  map firewall-ips {{ type {address} . inet_proto . inet_service : verdict; }}
  map service-ips {{ type {address} . inet_proto . inet_service : verdict; }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; }}
  map refused-ips {{ type {address} . inet_proto . inet_service : verdict; }}
  map refused-nodeports {{ type inet_proto . inet_service : verdict; }}

  chain mark-for-masquerade {{
    meta mark set meta mark or {MASQUERADE_MARK:#x}
  }}
  chain reject-chain {{
    reject with {icmp}
  }}
  chain services {{
{from_elsewhere}    {word} daddr . meta l4proto . th dport @masqueraded-ips jump mark-for-masquerade
    {word} daddr . meta l4proto . th dport vmap @service-ips
    {node_addresses} meta l4proto . th dport vmap @service-nodeports
  }}
  chain firewall {{
    {word} daddr . meta l4proto . th dport vmap @firewall-ips
  }}
  chain refusals {{
    {word} daddr . meta l4proto . th dport vmap @refused-ips
    {node_addresses} meta l4proto . th dport vmap @refused-nodeports
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark & {MASQUERADE_MARK:#x} != 0 meta mark set meta mark xor {MASQUERADE_MARK:#x} masquerade fully-random
    ct status dnat {word} saddr . {word} daddr @hairpins masquerade fully-random
  }}
  chain filter-prerouting {{
    type filter hook prerouting priority -110;
    ct state new jump firewall
  }}
  chain filter-input {{
    type filter hook input priority -110;
    ct state new jump refusals
  }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state new jump refusals
  }}
  chain filter-output {{
    type filter hook output priority -110;
    ct state new jump firewall
    ct state new jump refusals
  }}
}}
"
        )
    }
}

/// Writes sets and chains that are new or changed into `first`, and the removal of old ones into
/// `last`, when nothing refers to them any more.
fn write_own(prefix: &str, old: &Own, new: &Own, first: &mut String, last: &mut String) {
    for (set, declaration) in &new.sets {
        if !old.sets.contains_key(set) {
            let _ = writeln!(first, "add set {prefix} {set} {declaration}");
        }
    }
    // Every chain exists before any rule names it.
    for chain in new.chains.keys() {
        let _ = writeln!(first, "add chain {prefix} {chain}");
    }
    for (chain, rules) in &new.chains {
        if old.chains.get(chain) == Some(rules) {
            continue;
        }
        let _ = writeln!(first, "flush chain {prefix} {chain}");
        for rule in rules {
            let _ = writeln!(first, "add rule {prefix} {chain} {rule}");
        }
    }
    let gone: Vec<&String> = old.chains.keys().filter(|chain| !new.chains.contains_key(*chain)).collect();
    for chain in &gone {
        let _ = writeln!(last, "flush chain {prefix} {chain}");
    }
    for chain in gone {
        let _ = writeln!(last, "delete chain {prefix} {chain}");
    }
    for set in old.sets.keys().filter(|set| !new.sets.contains_key(*set)) {
        let _ = writeln!(last, "delete set {prefix} {set}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Protocol, ServiceFacts};
    use crate::model::{
        self,
        tests::{service, slice},
    };

    fn fragment(service: &ServiceFacts, endpoints: &[(&str, &str, bool, bool)]) -> Option<Fragment> {
        let routes = model::routes(service, &[slice(endpoints)], "here");
        fragments(&service.key, &routes).remove(&Family::Ip)
    }

    fn changes(service: &ServiceFacts, fragment: Option<Fragment>) -> BTreeMap<ServiceKey, Option<Fragment>> {
        [(service.key.clone(), fragment)].into()
    }

    #[test]
    fn a_change_names_only_what_changed() {
        let web = service();
        let mut table = Table::new(Family::Ip, vec!["10.244.0.0/16".into()]);
        let one = ("10.0.0.1", "here", true, true);
        let first = table.change(changes(&web, fragment(&web, &[one])));
        assert!(
            first.contains("add element ip kube-proxy service-ips { 10.96.0.7 . tcp . 80 : goto cluster-1 }"),
            "{first}"
        );
        assert!(first.contains("endpoints-1 { 10.96.0.7 . tcp . 80 . 0 : 10.0.0.1 . 8080 }"), "{first}");
        assert!(first.contains("service-nodeports { tcp . 30080 : goto node-1 }"), "{first}");
        assert_eq!(table.change(changes(&web, fragment(&web, &[one]))), "");
        let two = table.change(changes(&web, fragment(&web, &[one, ("10.0.0.2", "here", true, true)])));
        assert!(
            two.contains("delete element ip kube-proxy endpoints-1 { 10.96.0.7 . tcp . 80 . 0 }"),
            "{two}"
        );
        assert!(!two.contains("add element ip kube-proxy cluster-ips"), "{two}");
        assert!(!two.contains("10.0.0.1 . 10.0.0.1"), "{two}");
        let gone = table.change(changes(&web, None));
        assert!(gone.contains("delete element ip kube-proxy hairpins { 10.0.0.1 . 10.0.0.1 }"), "{gone}");
        assert_eq!(table.change(changes(&web, None)), "");
    }

    #[test]
    fn elements_shared_by_services_go_with_the_last() {
        let (web, mut other) = (service(), service());
        other.key.name = "other".into();
        other.cluster_ips = vec!["10.96.0.8".parse().unwrap()];
        other.ports[0].node_port = None;
        let mut table = Table::new(Family::Ip, Vec::new());
        let endpoints = [("10.0.0.1", "here", true, true)];
        table.change(changes(&web, fragment(&web, &endpoints)));
        table.change(changes(&other, fragment(&other, &endpoints)));
        assert!(!table.change(changes(&web, None)).contains("hairpins"));
        assert!(table.change(changes(&other, None)).contains("hairpins"));
    }

    #[test]
    fn an_address_can_pass_from_one_service_to_another_in_one_change() {
        let (web, mut heir) = (service(), service());
        heir.key.name = "a-comes-before-web".into();
        let mut table = Table::new(Family::Ip, Vec::new());
        table.change(changes(&web, fragment(&web, &[("10.0.0.1", "here", true, true)])));
        let mut both = changes(&web, None);
        both.extend(changes(&heir, fragment(&heir, &[])));
        let program = table.change(both);
        assert!(
            program.contains(
                "add element ip kube-proxy refused-ips { 10.96.0.7 . tcp . 80 : goto reject-chain }"
            ),
            "{program}"
        );
        assert!(
            program.contains("delete element ip kube-proxy service-ips { 10.96.0.7 . tcp . 80 }"),
            "{program}"
        );
        // The set of cluster IPs has it before and after.
        assert_eq!(program.matches("cluster-ips").count() % 2, 0, "{program}");
    }

    /// The kernel accepts every program, whole and in steps; in a namespace of its own.
    #[test]
    fn the_kernel_accepts_it() {
        let web = service();
        let sticky = ServiceFacts { affinity_seconds: Some(10), ..service() };
        let mut dns = service();
        dns.key.name = "dns".into();
        dns.cluster_ips = vec!["10.96.0.10".parse().unwrap()];
        dns.ports[0].protocol = Protocol::Udp;
        let balanced = ServiceFacts {
            balancer_ips: vec!["192.0.2.2".parse().unwrap()],
            source_ranges: vec![SourceRange { address: "198.51.100.0".parse().unwrap(), prefix: 24 }],
            ..service()
        };
        let (one, two) = (("10.0.0.1", "here", true, true), ("10.0.0.2", "there", true, true));
        let mut table = Table::new(Family::Ip, vec!["10.244.0.0/16".into()]);
        let mut programs = vec![table.whole()];
        for (service, endpoints) in [
            (&web, vec![]),
            (&web, vec![one]),
            (&dns, vec![one, two]),
            (&sticky, vec![one, two]),
            (&sticky, vec![two]),
            (&balanced, vec![one]),
            (&web, vec![one, two]),
        ] {
            programs.push(table.change(changes(service, fragment(service, &endpoints))));
        }
        programs.push(table.whole());
        programs.push(table.change(changes(&web, None)));
        programs.push(Table::new(Family::Ip6, Vec::new()).whole());
        programs.push(Table::removal(Family::Ip));
        let directory = tempfile::tempdir().unwrap();
        let mut script = String::from("set -e\n");
        for (index, program) in programs.iter().enumerate() {
            let path = directory.path().join(index.to_string());
            std::fs::write(&path, program).unwrap();
            script.push_str(&format!("nft -f {} || {{ cat {}; exit 1; }}\n", path.display(), path.display()));
        }
        let output =
            std::process::Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    }
}

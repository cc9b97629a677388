//! Answers about the cluster's zone, after the Kubernetes DNS specification 1.1.0. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::services::{EndpointFacts, Lookup, Port, Reach, ServiceFacts, SliceFacts};

/// How long answers about the cluster may be kept (upstream's CoreDNS: 30 s).
const TTL: u32 = 30;

/// What is to be said to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The records, possibly none: the name exists.
    Records(Vec<Record>),
    /// The name does not exist.
    NoSuchName,
    /// The name is not of the cluster's zone.
    NotOurs,
}

/// The cluster's zone.
#[derive(Debug, Clone)]
pub struct Zone {
    domain: Name,
}

/// What is asked: a name and the kind of record wanted.
#[derive(Clone, Copy)]
struct Question<'a> {
    name: &'a Name,
    kind: RecordType,
}

/// A host below a headless Service, or the Service itself.
struct Target {
    name: Name,
    addresses: Vec<IpAddr>,
}

impl Zone {
    /// # Errors
    /// `domain` is no DNS name.
    pub fn new(domain: &str) -> Result<Self, hickory_proto::ProtoError> {
        let mut domain = Name::from_str(&domain.to_lowercase())?;
        domain.set_fqdn(true);
        Ok(Self { domain })
    }

    /// The authority record that goes with a negative answer.
    pub fn authority(&self) -> Record {
        let under = |label: &str| self.name(&[label]).unwrap_or_else(|| self.domain.clone());
        let soa = SOA::new(under("ns.dns"), under("hostmaster"), 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// Answers a question for `name` (in lower case).
    pub fn answer(&self, lookup: &impl Lookup, name: &Name, kind: RecordType) -> Answer {
        if let Ok(range) = name.parse_arpa_name() {
            return self.reverse(lookup, name, range.addr(), kind);
        }
        if !self.domain.zone_of(name) {
            return Answer::NotOurs;
        }
        let own_labels = name.num_labels().saturating_sub(self.domain.num_labels());
        let labels: Option<Vec<&str>> =
            name.iter().take(usize::from(own_labels)).map(|label| std::str::from_utf8(label).ok()).collect();
        // Names in the cluster are ASCII; anything else exists nowhere.
        let Some(labels) = labels else { return Answer::NoSuchName };
        let question = Question { name, kind };
        let records = match labels.as_slice() {
            [] => Some(self.apex(name, kind)),
            ["dns-version"] => Some(of_kind(
                kind,
                [Record::from_rdata(name.clone(), TTL, RData::TXT(TXT::new(vec!["1.1.0".into()])))],
            )),
            ["svc" | "pod"] => Some(Vec::new()),
            [namespace, "svc" | "pod"] => lookup.namespace_exists(namespace).then(Vec::new),
            [service, namespace, "svc"] => self.service(lookup, question, namespace, service),
            [port, protocol, service, namespace, "svc"]
                if port.starts_with('_') && protocol.starts_with('_') =>
            {
                self.port(lookup, question, (namespace, service), (&port[1..], &protocol[1..]))
            }
            [host, service, namespace, "svc"] => host_of(lookup, question, (namespace, service), host),
            [address, namespace, "pod"] => pod_address(address)
                .filter(|_| lookup.namespace_exists(namespace))
                .map(|address| addresses(name, kind, &[address])),
            _ => None,
        };
        records.map_or(Answer::NoSuchName, Answer::Records)
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Vec<Record> {
        let server = self.name(&["ns.dns"]).unwrap_or_else(|| self.domain.clone());
        of_kind(kind, [self.authority(), Record::from_rdata(name.clone(), TTL, RData::NS(NS(server)))])
    }

    /// Labels (each may have dots) before the zone's domain; `None` if the name would be too long.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        let mut text = labels.join(".");
        text.push('.');
        Name::from_str(&text).ok()?.append_domain(&self.domain).ok().map(|mut n| {
            n.set_fqdn(true);
            n
        })
    }

    fn service_name(&self, service: &ServiceFacts) -> Option<Name> {
        self.name(&[&service.name, &service.namespace, "svc"])
    }

    fn service(
        &self,
        lookup: &impl Lookup,
        question: Question<'_>,
        namespace: &str,
        service: &str,
    ) -> Option<Vec<Record>> {
        let Question { name, kind } = question;
        let service = lookup.service(namespace, service)?;
        match &service.reach {
            Reach::External(target) => {
                let mut target = Name::from_str(target).ok()?;
                target.set_fqdn(true);
                // An alias answers questions of every kind.
                Some(vec![Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target)))])
            }
            Reach::ClusterIps(ips) if kind != RecordType::SRV => Some(addresses(name, kind, ips)),
            Reach::Headless { .. } if kind != RecordType::SRV => {
                let endpoints = endpoints(lookup, &service);
                let all: Vec<IpAddr> = endpoints.iter().flat_map(|(e, _)| e.addresses.clone()).collect();
                // A headless Service without endpoints is as good as none (CoreDNS does the same).
                (!all.is_empty()).then(|| addresses(name, kind, &all))
            }
            _ => Some(self.port_records(lookup, name, &service, |_| true)),
        }
    }

    fn port(
        &self,
        lookup: &impl Lookup,
        question: Question<'_>,
        (namespace, service): (&str, &str),
        (port, protocol): (&str, &str),
    ) -> Option<Vec<Record>> {
        let Question { name, kind } = question;
        let service = lookup.service(namespace, service)?;
        let records =
            self.port_records(lookup, name, &service, |p| &*p.name == port && &*p.protocol == protocol);
        if records.is_empty() { None } else { Some(of_kind(kind, records)) }
    }

    /// SRV records of the ports that `wanted` picks, each with its target's addresses behind it.
    fn port_records(
        &self,
        lookup: &impl Lookup,
        name: &Name,
        service: &ServiceFacts,
        wanted: impl Fn(&Port) -> bool,
    ) -> Vec<Record> {
        let srv = |port: &Port, target: &Name, count: usize| {
            let weight = 100 / u16::try_from(count.max(1)).unwrap_or(100).min(100);
            Record::from_rdata(
                name.clone(),
                TTL,
                RData::SRV(SRV::new(0, weight, port.number, target.clone())),
            )
        };
        let mut records = Vec::new();
        match &service.reach {
            Reach::External(_) => {}
            Reach::ClusterIps(_) => {
                let Some(target) = self.service_name(service) else { return records };
                records.extend(service.ports.iter().filter(|p| wanted(p)).map(|p| srv(p, &target, 1)));
            }
            Reach::Headless { .. } => {
                let endpoints = endpoints(lookup, service);
                let count = endpoints.len();
                for (endpoint, ports) in &endpoints {
                    for target in self.targets(service, endpoint) {
                        records
                            .extend(ports.iter().filter(|p| wanted(p)).map(|p| srv(p, &target.name, count)));
                    }
                }
            }
        }
        records
    }

    /// The names of an endpoint of a headless Service: its host name, or one made of each address.
    fn targets(&self, service: &ServiceFacts, endpoint: &EndpointFacts) -> Vec<Target> {
        let under = |host: &str| self.name(&[host, &service.name, &service.namespace, "svc"]);
        match &endpoint.hostname {
            Some(host) => under(host)
                .map(|name| Target { name, addresses: endpoint.addresses.clone() })
                .into_iter()
                .collect(),
            None => {
                let one = |address: &IpAddr| {
                    Some(Target { name: under(&dashed(*address))?, addresses: vec![*address] })
                };
                endpoint.addresses.iter().filter_map(one).collect()
            }
        }
    }

    fn reverse(&self, lookup: &impl Lookup, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let pointer = |target: Name| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)));
        if let Some(service) = lookup.service_with_address(address) {
            let records = self.service_name(&service).map(pointer);
            return Answer::Records(of_kind(kind, records));
        }
        let mut records = Vec::new();
        for slice in lookup.slices_with_address(address) {
            let Some(service) = lookup.service(&slice.namespace, &slice.service) else { continue };
            if !matches!(service.reach, Reach::Headless { .. }) {
                continue;
            }
            for endpoint in slice.endpoints.iter().filter(|e| e.addresses.contains(&address)) {
                let targets = self.targets(&service, endpoint);
                records.extend(
                    targets.into_iter().filter(|t| t.addresses.contains(&address)).map(|t| pointer(t.name)),
                );
            }
        }
        // An address that no Service has may be known upstream.
        if records.is_empty() { Answer::NotOurs } else { Answer::Records(of_kind(kind, records)) }
    }
}

/// A host below a headless Service.
fn host_of(
    lookup: &impl Lookup,
    question: Question<'_>,
    (namespace, service): (&str, &str),
    host: &str,
) -> Option<Vec<Record>> {
    let Question { name, kind } = question;
    let service = lookup.service(namespace, service)?;
    let mut found = Vec::new();
    for (endpoint, _) in endpoints(lookup, &service) {
        match &endpoint.hostname {
            Some(own) if &**own == host => found.extend(endpoint.addresses.iter().copied()),
            Some(_) => {}
            None => found.extend(endpoint.addresses.iter().copied().filter(|a| dashed(*a) == host)),
        }
    }
    (!found.is_empty()).then(|| addresses(name, kind, &found))
}

/// The endpoints of a headless Service that are to be published, with their ports.
fn endpoints(lookup: &impl Lookup, service: &ServiceFacts) -> Vec<(EndpointFacts, Vec<Port>)> {
    let Reach::Headless { not_ready_too } = service.reach else { return Vec::new() };
    let slices = lookup.slices(&service.namespace, &service.name);
    let published = |slice: &std::sync::Arc<SliceFacts>| {
        let ports = slice.ports.clone();
        let ready = slice.endpoints.iter().filter(|e| e.ready || not_ready_too);
        ready.map(|e| (e.clone(), ports.clone())).collect::<Vec<_>>()
    };
    slices.iter().flat_map(published).collect()
}

fn addresses(name: &Name, kind: RecordType, addresses: &[IpAddr]) -> Vec<Record> {
    let mut seen: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !seen.contains(address) {
            seen.push(*address);
        }
    }
    let record = |address: &IpAddr| {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(*address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
        };
        Record::from_rdata(name.clone(), TTL, data)
    };
    of_kind(kind, seen.iter().map(record))
}

fn of_kind(kind: RecordType, records: impl IntoIterator<Item = Record>) -> Vec<Record> {
    records.into_iter().filter(|r| kind == RecordType::ANY || r.record_type() == kind).collect()
}

/// `10.1.2.3` as `10-1-2-3`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address in a pod's name: the reverse of [`dashed`].
fn pod_address(label: &str) -> Option<IpAddr> {
    if let Ok(address) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(address));
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Fixture {
        services: Vec<Arc<ServiceFacts>>,
        slices: Vec<Arc<SliceFacts>>,
    }

    impl Lookup for Fixture {
        fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceFacts>> {
            self.services.iter().find(|s| &*s.namespace == namespace && &*s.name == name).cloned()
        }
        fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<SliceFacts>> {
            let of = |s: &&Arc<SliceFacts>| &*s.namespace == namespace && &*s.service == service;
            self.slices.iter().filter(of).cloned().collect()
        }
        fn service_with_address(&self, address: IpAddr) -> Option<Arc<ServiceFacts>> {
            let has =
                |s: &&Arc<ServiceFacts>| matches!(&s.reach, Reach::ClusterIps(ips) if ips.contains(&address));
            self.services.iter().find(has).cloned()
        }
        fn slices_with_address(&self, address: IpAddr) -> Vec<Arc<SliceFacts>> {
            let has = |s: &&Arc<SliceFacts>| s.endpoints.iter().any(|e| e.addresses.contains(&address));
            self.slices.iter().filter(has).cloned().collect()
        }
        fn namespace_exists(&self, namespace: &str) -> bool {
            ["ns", "empty"].contains(&namespace)
        }
    }

    fn fixture() -> Fixture {
        let port = |number| Port { name: "http".into(), protocol: "tcp".into(), number };
        let service = |name: &str, reach| {
            Arc::new(ServiceFacts { namespace: "ns".into(), name: name.into(), reach, ports: vec![port(80)] })
        };
        let endpoint = |address: &str, hostname: Option<&str>, ready| EndpointFacts {
            addresses: vec![address.parse().unwrap()],
            hostname: hostname.map(Into::into),
            ready,
        };
        Fixture {
            services: vec![
                service(
                    "web",
                    Reach::ClusterIps(vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()]),
                ),
                service("db", Reach::Headless { not_ready_too: false }),
                service("early", Reach::Headless { not_ready_too: true }),
                service("away", Reach::External("example.org".into())),
            ],
            slices: ["db", "early"]
                .map(|name| {
                    Arc::new(SliceFacts {
                        namespace: "ns".into(),
                        service: name.into(),
                        endpoints: vec![
                            endpoint("10.244.0.5", Some("db-0"), true),
                            endpoint("10.244.0.6", None, true),
                            endpoint("10.244.0.7", Some("db-2"), false),
                        ],
                        ports: vec![port(5432)],
                    })
                })
                .into(),
        }
    }

    /// Expects the data of the records as text, or `NXDOMAIN`, or `upstream`.
    fn check(name: &str, kind: RecordType, expected: &[&str]) {
        let zone = Zone::new("cluster.local").unwrap();
        let found = match zone.answer(&fixture(), &Name::from_str(name).unwrap(), kind) {
            Answer::Records(records) => records.iter().map(|r| r.data.to_string()).collect(),
            Answer::NoSuchName => vec!["NXDOMAIN".to_owned()],
            Answer::NotOurs => vec!["upstream".to_owned()],
        };
        assert_eq!(found, expected, "{name} {kind}");
    }

    #[test]
    fn services() {
        check("web.ns.svc.cluster.local.", RecordType::A, &["10.96.0.7"]);
        check("web.ns.svc.cluster.local.", RecordType::AAAA, &["fd00::7"]);
        check("web.ns.svc.cluster.local.", RecordType::MX, &[]);
        check("absent.ns.svc.cluster.local.", RecordType::A, &["NXDOMAIN"]);
        check("away.ns.svc.cluster.local.", RecordType::A, &["example.org."]);
        check(
            "_http._tcp.web.ns.svc.cluster.local.",
            RecordType::SRV,
            &["0 100 80 web.ns.svc.cluster.local."],
        );
        check("_http._udp.web.ns.svc.cluster.local.", RecordType::SRV, &["NXDOMAIN"]);
    }

    #[test]
    fn headless_services() {
        check("db.ns.svc.cluster.local.", RecordType::A, &["10.244.0.5", "10.244.0.6"]);
        check("early.ns.svc.cluster.local.", RecordType::A, &["10.244.0.5", "10.244.0.6", "10.244.0.7"]);
        check("db-0.db.ns.svc.cluster.local.", RecordType::A, &["10.244.0.5"]);
        check("10-244-0-6.db.ns.svc.cluster.local.", RecordType::A, &["10.244.0.6"]);
        check("db-2.db.ns.svc.cluster.local.", RecordType::A, &["NXDOMAIN"]);
        check(
            "_http._tcp.db.ns.svc.cluster.local.",
            RecordType::SRV,
            &["0 50 5432 db-0.db.ns.svc.cluster.local.", "0 50 5432 10-244-0-6.db.ns.svc.cluster.local."],
        );
    }

    #[test]
    fn pods_reverse_and_the_rest() {
        check("10-244-0-9.ns.pod.cluster.local.", RecordType::A, &["10.244.0.9"]);
        check("no-address.ns.pod.cluster.local.", RecordType::A, &["NXDOMAIN"]);
        check("7.0.96.10.in-addr.arpa.", RecordType::PTR, &["web.ns.svc.cluster.local."]);
        check(
            "5.0.244.10.in-addr.arpa.",
            RecordType::PTR,
            &["db-0.db.ns.svc.cluster.local.", "db-0.early.ns.svc.cluster.local."],
        );
        check("1.1.1.1.in-addr.arpa.", RecordType::PTR, &["upstream"]);
        check("example.org.", RecordType::A, &["upstream"]);
        check("dns-version.cluster.local.", RecordType::TXT, &["1.1.0"]);
        check("10-244-0-9.absent.pod.cluster.local.", RecordType::A, &["NXDOMAIN"]);
        for namespace in ["ns", "empty"] {
            check(&format!("{namespace}.svc.cluster.local."), RecordType::A, &[]);
            check(&format!("{namespace}.pod.cluster.local."), RecordType::A, &[]);
        }
        check("absent.svc.cluster.local.", RecordType::A, &["NXDOMAIN"]);
        check("a.b.c.d.e.f.svc.cluster.local.", RecordType::A, &["NXDOMAIN"]);
    }
}

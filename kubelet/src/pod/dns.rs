//! A pod's names and its resolver: hostname, domain, /etc/hosts, resolv.conf.
//!
//! Pure, apart from [`host_resolver`] which reads the host's file.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri;

/// glibc's limits; beyond them names are dropped, as upstream does.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
const HOSTNAME_LIMIT: usize = 63;

/// Hostname and, for a pod with a subdomain, its full domain.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if let Some(full) = spec.and_then(|spec| spec.hostname_override.clone()) {
        return (full, None);
    }
    let set = |value: Option<String>| value.filter(|value| !value.is_empty());
    let mut name = set(spec.and_then(|spec| spec.hostname.clone()))
        .unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    if name.len() > HOSTNAME_LIMIT {
        name.truncate(HOSTNAME_LIMIT);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = set(spec.and_then(|spec| spec.subdomain.clone()))
        .map(|subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}"));
    let fully_qualified = spec.and_then(|spec| spec.set_hostname_as_fqdn) == Some(true);
    match (&domain, fully_qualified) {
        (Some(domain), true) => (format!("{name}.{domain}"), Some(domain.clone())),
        _ => (name, domain),
    }
}

/// The pod's /etc/hosts.
pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: Option<&str>) -> String {
    let mut text = match host_file {
        Some(host) => format!("# Kubernetes-managed hosts file (host network).\n{host}"),
        None => {
            let (name, domain) = hostname(pod, cluster_domain);
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            for ip in ips {
                match &domain {
                    Some(domain) if name.ends_with(domain.as_str()) => {
                        text.push_str(&format!("{ip}\t{name}\n"))
                    }
                    Some(domain) => text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
                    None => text.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            text
        }
    };
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            text.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.as_deref().unwrap_or_default().join("\t")
            ));
        }
    }
    text
}

/// A resolver's three lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Reads a resolv.conf; an empty path is an empty resolver.
pub fn host_resolver(path: &str) -> std::io::Result<Resolver> {
    if path.is_empty() { Ok(Resolver::default()) } else { Ok(parse(&std::fs::read_to_string(path)?)) }
}

/// The lines of a resolv.conf that a pod inherits.
pub fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            // The last search line wins; a lone dot is no name.
            Some("search") => {
                resolver.searches = words
                    .filter(|word| *word != ".")
                    .map(|word| word.trim_end_matches('.').to_owned())
                    .collect();
            }
            Some("options") => resolver.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolver
}

/// The resolver of a pod by its policy, with `dnsConfig` merged in.
pub fn config(pod: &Pod, cluster_dns: &[IpAddr], cluster_domain: &str, host: &Resolver) -> cri::DnsConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" => spec.host_network != Some(true),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let none = spec.dns_policy.as_deref() == Some("None");
    let mut resolver = if none {
        Resolver::default()
    } else if cluster && !cluster_dns.is_empty() {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut searches = Vec::new();
        if !cluster_domain.is_empty() {
            searches = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
        }
        add_new(&mut searches, &host.searches);
        let servers = cluster_dns.iter().map(IpAddr::to_string).collect();
        Resolver { servers, searches, options: vec!["ndots:5".to_owned()] }
    } else {
        host.clone()
    };
    if let Some(own) = &spec.dns_config {
        add_new(&mut resolver.servers, own.nameservers.as_deref().unwrap_or_default());
        add_new(&mut resolver.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|known| known.split(':').next() != Some(name));
            let value = option.value.as_ref().filter(|value| !value.is_empty());
            resolver.options.push(value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    resolver.servers.truncate(MAX_SERVERS);
    resolver.searches.truncate(MAX_SEARCHES);
    while resolver.searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        resolver.searches.pop();
    }
    cri::DnsConfig { servers: resolver.servers, searches: resolver.searches, options: resolver.options }
}

fn add_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn resolvers_by_policy() {
        let host = parse("# x\nnameserver 1.1.1.1\nsearch old\nsearch corp. .\noptions ndots:1\n");
        let check = |spec: serde_json::Value, servers: &str, searches: &str, options: &str| {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            let got = config(&pod(spec.clone()), &["10.96.0.10".parse().unwrap()], "cluster.local", &host);
            let got = (got.servers.join(" "), got.searches.join(" "), got.options.join(" "));
            assert_eq!(got, (servers.to_owned(), searches.to_owned(), options.to_owned()), "{spec}");
        };
        let cluster = "n.svc.cluster.local svc.cluster.local cluster.local corp";
        check(serde_json::json!({}), "10.96.0.10", cluster, "ndots:5");
        check(serde_json::json!({"hostNetwork": true}), "1.1.1.1", "corp", "ndots:1");
        check(
            serde_json::json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            "10.96.0.10",
            cluster,
            "ndots:5",
        );
        check(serde_json::json!({"dnsPolicy": "Default"}), "1.1.1.1", "corp", "ndots:1");
        check(
            serde_json::json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "debug"}]}}),
            "9.9.9.9",
            "a",
            "ndots:2 debug",
        );
        check(
            serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
            "10.96.0.10",
            cluster,
            "ndots:2",
        );
    }

    #[test]
    fn hostnames_and_hosts() {
        let check = |spec: serde_json::Value, name: &str, line: &str| {
            let mut spec = spec;
            spec["containers"] = serde_json::json!([]);
            let pod = pod(spec);
            assert_eq!(hostname(&pod, "cluster.local").0, name);
            let file = hosts_file(&pod, &["10.0.0.1".to_owned()], "cluster.local", None);
            assert!(file.lines().any(|l| l == line), "{file}");
        };
        check(serde_json::json!({}), "p", "10.0.0.1\tp");
        check(
            serde_json::json!({"hostname": "h", "subdomain": "s"}),
            "h",
            "10.0.0.1\th.s.n.svc.cluster.local\th",
        );
        check(
            serde_json::json!({"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
            "p",
            "1.2.3.4\ta\tb",
        );
    }
}

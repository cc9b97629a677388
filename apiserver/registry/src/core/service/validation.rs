//! Validation of Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{externally_accessible, is_headless, needs_health_check_port};
use crate::{
    Cause,
    cause::{Causes, Path},
    fields::Fields,
    metadata, names, rules,
};

pub(super) fn service(service: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let (spec, path) = (service.at("spec"), Path::new("spec"));
    let kind = spec.text("type");
    if spec.list("ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        causes.required(&path.child("ports"), "");
    }
    by_type(spec, &path, &mut causes);
    ports(spec, &path.child("ports"), &mut causes);
    metadata::label_map(spec.at("selector"), &path.child("selector"), &mut causes);
    session_affinity(spec, &path, &mut causes);
    cluster_ips(spec, &path, &mut causes);
    for (index, address) in spec.texts("externalIPs").enumerate() {
        let path = path.child("externalIPs");
        if rules::parse_ip(address).is_none() {
            rules::ip_address(address, &path.index(index), &mut causes);
        } else {
            rules::non_special_ip(address, &path.index(index), &mut causes);
        }
    }
    rules::one_of(
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &path.child("type"),
        &mut causes,
    );
    node_ports(spec, &path.child("ports"), &mut causes);
    load_balancer(spec, &path, &mut causes);
    traffic_policies(spec, &path, &mut causes);
    causes.into_vec()
}

fn by_type(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    match spec.text("type") {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(spec) => {
            let message = format!("may not be set to 'None' for {kind} services");
            causes.invalid(&path.child("clusterIPs").index(0), "None", message);
        }
        "ExternalName" => {
            if !spec.list("clusterIPs").is_empty() {
                causes.forbidden(&path.child("clusterIPs"), "may not be set for ExternalName services");
            }
            if !spec.list("ipFamilies").is_empty() {
                causes.forbidden(&path.child("ipFamilies"), "may not be set for ExternalName services");
            }
            if spec.has("ipFamilyPolicy") {
                causes.forbidden(&path.child("ipFamilyPolicy"), "may not be set for ExternalName services");
            }
            let target = spec.text("externalName");
            let target = target.strip_suffix('.').unwrap_or(target);
            if target.is_empty() {
                causes.required(&path.child("externalName"), "");
            } else {
                causes.syntax(&path.child("externalName"), target, names::dns_subdomain(target));
            }
        }
        _ => {}
    }
}

fn ports(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let ports = spec.list("ports");
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = port.text("name");
        if name.is_empty() {
            if ports.len() > 1 {
                causes.required(&path.child("name"), "");
            }
        } else {
            causes.syntax(&path.child("name"), name, names::dns_label(name));
            if !seen.insert(name) {
                causes.duplicate(&path.child("name"), name);
            }
        }
        rules::port_number(port.int("port").unwrap_or(0), &path.child("port"), causes);
        rules::one_of(port.text("protocol"), &["SCTP", "TCP", "UDP"], &path.child("protocol"), causes);
        rules::port_number_or_name(port.at("targetPort"), &path.child("targetPort"), causes);
        if port.has("appProtocol") {
            let protocol = port.text("appProtocol");
            causes.syntax(&path.child("appProtocol"), protocol, names::qualified_name(protocol));
        }
    }
}

fn session_affinity(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let affinity = spec.text("sessionAffinity");
    rules::one_of(affinity, &["ClientIP", "None"], &path.child("sessionAffinity"), causes);
    let path = path.child("sessionAffinityConfig");
    let config = spec.at("sessionAffinityConfig");
    if affinity == "ClientIP" {
        let path = path.child("clientIP");
        match config.at("clientIP").int("timeoutSeconds") {
            None => causes.required(&path.child("timeoutSeconds"), "when session affinity type is ClientIP"),
            Some(seconds) if !(1..=86400).contains(&seconds) => causes.invalid(
                &path.child("timeoutSeconds"),
                seconds,
                "must be greater than 0 and less than 86400",
            ),
            Some(_) => {}
        }
    } else if affinity == "None" && !config.is_null() {
        causes.forbidden(&path, "must not be set when session affinity is None");
    }
}

fn family(address: &str) -> Option<&'static str> {
    rules::parse_ip(address).map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" })
}

fn cluster_ips(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    if spec.text("type") == "ExternalName" {
        return;
    }
    let first = spec.text("clusterIP");
    let addresses: Vec<&str> = spec.texts("clusterIPs").collect();
    let path_of_list = path.child("clusterIPs");
    match addresses.first() {
        None if !first.is_empty() => causes.required(&path_of_list, ""),
        Some(_) if first.is_empty() => {
            let value = spec.at("clusterIPs").clone();
            causes.invalid(&path_of_list, value, "must be empty when `clusterIP` is not specified");
        }
        Some(address) if *address != first => {
            causes.invalid(
                &path_of_list,
                spec.at("clusterIPs").clone(),
                "first value must match `clusterIP`",
            );
        }
        _ => {}
    }
    let families: Vec<&str> = spec.texts("ipFamilies").collect();
    for (index, name) in families.iter().enumerate() {
        let path = path.child("ipFamilies");
        if !matches!(*name, "IPv4" | "IPv6") {
            causes.not_supported(&path.index(index), *name, &["IPv4", "IPv6"]);
        }
        if families[..index].contains(name) {
            causes.duplicate(&path.index(index), *name);
        }
    }
    if spec.has("ipFamilyPolicy") {
        let supported = &["PreferDualStack", "RequireDualStack", "SingleStack"];
        if !supported.contains(&spec.text("ipFamilyPolicy")) {
            causes.not_supported(&path.child("ipFamilyPolicy"), spec.text("ipFamilyPolicy"), supported);
        }
    }
    if addresses.len() > 2 {
        causes.invalid(&path_of_list, spec.at("clusterIPs").clone(), "may only hold up to 2 values");
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = path_of_list.index(index);
        if *address == "None" {
            if addresses.len() > 1 {
                causes.invalid(&path, *address, "'None' must be first and only value");
            }
            continue;
        }
        match family(address) {
            None => rules::ip_address(address, &path, causes),
            Some(own) if families.get(index).is_some_and(|wanted| *wanted != own) => {
                let wanted = families[index];
                let message = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
                causes.invalid(&path, *address, message);
            }
            Some(_) => {}
        }
    }
    if let [a, b] = addresses[..]
        && family(a).is_some()
        && family(a) == family(b)
    {
        causes.invalid(
            &path_of_list,
            spec.at("clusterIPs").clone(),
            "may specify no more than one IP for each IP family",
        );
    }
}

fn node_ports(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let (mut node_ports, mut ports) = (HashSet::new(), HashSet::new());
    for (index, port) in spec.list("ports").iter().enumerate() {
        let path = path.index(index);
        let (number, protocol) = (port.int("port").unwrap_or(0), port.text("protocol"));
        let node_port = port.int("nodePort").unwrap_or(0);
        if node_port != 0 {
            if spec.text("type") == "ClusterIP" {
                causes.forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if !node_ports.insert((protocol, node_port)) {
                causes.duplicate(&path.child("nodePort"), node_port);
            }
        }
        if !ports.insert((protocol, number)) {
            causes.duplicate(&path, json!({"protocol": protocol, "port": number}));
        }
    }
}

fn load_balancer(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let balances = spec.text("type") == "LoadBalancer";
    let only = "may only be used when `type` is 'LoadBalancer'";
    let ranges: Vec<&str> = spec.texts("loadBalancerSourceRanges").collect();
    if !ranges.is_empty() {
        let path = path.child("LoadBalancerSourceRanges");
        if !balances {
            causes.forbidden(&path, only);
        }
        for (index, range) in ranges.into_iter().enumerate() {
            rules::cidr(range.trim(), &path.index(index), causes);
        }
    }
    if spec.has("allocateLoadBalancerNodePorts") && !balances {
        causes.forbidden(&path.child("allocateLoadBalancerNodePorts"), only);
    }
    if balances && !spec.has("allocateLoadBalancerNodePorts") {
        causes.required(&Path::new("allocateLoadBalancerNodePorts"), "");
    }
    if spec.has("loadBalancerClass") {
        let class = spec.text("loadBalancerClass");
        if balances {
            causes.syntax(&path.child("loadBalancerClass"), class, names::qualified_name(class));
        } else {
            causes.forbidden(&path.child("loadBalancerClass"), only);
        }
    }
}

fn traffic_policies(spec: &Value, path: &Path<'_>, causes: &mut Causes) {
    let external = spec.text("externalTrafficPolicy");
    if externally_accessible(spec) {
        rules::one_of(external, &["Cluster", "Local"], &path.child("externalTrafficPolicy"), causes);
    } else if !external.is_empty() {
        causes.invalid(
            &path.child("externalTrafficPolicy"),
            external,
            "may only be set for externally-accessible services",
        );
    }
    let health = spec.int("healthCheckNodePort").unwrap_or(0);
    match (needs_health_check_port(spec), health) {
        (true, 0) => causes.required(&path.child("healthCheckNodePort"), ""),
        (true, port) => rules::port_number(port, &path.child("healthCheckNodePort"), causes),
        (false, 0) => {}
        (false, port) => causes.invalid(
            &path.child("healthCheckNodePort"),
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
    }
    let internal = spec.text("internalTrafficPolicy");
    if spec.has("internalTrafficPolicy") && !matches!(internal, "Cluster" | "Local") {
        causes.not_supported(&path.child("internalTrafficPolicy"), internal, &["Cluster", "Local"]);
    }
    let supported = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    if spec.has("trafficDistribution") && !supported.contains(&spec.text("trafficDistribution")) {
        causes.not_supported(&path.child("trafficDistribution"), spec.text("trafficDistribution"), supported);
    }
}

pub(super) fn update(new: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = Path::new("spec");
    let (spec, old_spec) = (new.at("spec"), old.at("spec"));
    let external = |spec: &Value| spec.text("type") == "ExternalName";
    if !external(spec) && !external(old_spec) {
        for (field, unset) in [
            ("clusterIPs", "primary clusterIP can not be unset"),
            ("ipFamilies", "primary ipFamily can not be unset"),
        ] {
            let (first, old_first) = (spec.texts(field).next(), old_spec.texts(field).next());
            let message = match (first, old_first) {
                (None, Some(_)) => unset,
                (Some(new), Some(old)) if new != old => "may not change once set",
                _ => continue,
            };
            causes.invalid(&path.child(field).index(0), spec.at(field).clone(), message);
        }
        for field in ["clusterIPs", "ipFamilies"] {
            if let (Some(new), Some(old)) = (spec.list(field).get(1), old_spec.list(field).get(1))
                && new != old
            {
                causes.invalid(
                    &path.child(field).index(1),
                    spec.at(field).clone(),
                    "may not change once set",
                );
            }
        }
    }
    let balances = |spec: &Value| spec.text("type") == "LoadBalancer";
    if balances(spec)
        && balances(old_spec)
        && spec.at("loadBalancerClass") != old_spec.at("loadBalancerClass")
    {
        causes.invalid(
            &path.child("loadBalancerClass"),
            spec.at("loadBalancerClass").clone(),
            "may not change once set",
        );
    }
    if needs_health_check_port(spec)
        && needs_health_check_port(old_spec)
        && spec.at("healthCheckNodePort") != old_spec.at("healthCheckNodePort")
    {
        causes.forbidden(&path.child("healthCheckNodePort"), "field is immutable");
    }
    causes.extend(service(new));
    causes.into_vec()
}

pub(super) fn status(service: &Value) -> Vec<Cause> {
    let mut causes = Causes::default();
    let path = Path::new("status");
    let path = path.child("loadBalancer");
    let path = path.child("ingress");
    let ingresses = service.at("status").at("loadBalancer").list("ingress");
    if service.at("spec").text("type") != "LoadBalancer" && !ingresses.is_empty() {
        causes.forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'");
        return causes.into_vec();
    }
    for (index, ingress) in ingresses.iter().enumerate() {
        let path = path.index(index);
        let (address, host) = (ingress.text("ip"), ingress.text("hostname"));
        if !address.is_empty() {
            rules::ip_address(address, &path.child("ip"), &mut causes);
        }
        match (ingress.text("ipMode"), address.is_empty()) {
            ("", false) => causes.required(&path.child("ipMode"), "must be specified when `ip` is set"),
            ("", true) => {}
            (_, true) => {
                causes.forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set");
            }
            ("Proxy" | "VIP", false) => {}
            (other, false) => causes.not_supported(&path.child("ipMode"), other, &["Proxy", "VIP"]),
        }
        if !host.is_empty() {
            causes.syntax(&path.child("hostname"), host, names::dns_subdomain(host));
            if rules::parse_ip(host).is_some() {
                causes.invalid(&path.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
    causes.into_vec()
}

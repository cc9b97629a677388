//! Where a passed-on request goes: node addresses, container names, ports and endpoints.

use keelson_storage::{Error, ReadVersion};
use rand::Rng;
use serde_json::Value;

use super::dial::Scheme;
use crate::{
    generic::errors,
    http::chain::Exchange,
    request::{Query, ResourcePath},
    server::Server,
    status::Status,
};

/// A target and the path and query to ask it for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
    pub path_and_query: String,
}

async fn object(server: &Server, plural: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let served = server.table.find("", "v1", plural).ok_or_else(Status::no_such_resource)?;
    let resource = served.resource.as_ref().ok_or_else(Status::no_such_resource)?;
    match resource.get(served.key(namespace, name), ReadVersion::Latest).await {
        Ok(object) => Ok(object.value()),
        Err(error @ Error::NotFound { .. }) => Err(errors::storage(error, served.qualified(), name)),
        Err(error) => Err(errors::storage(error, served.qualified(), name)),
    }
}

/// The kubelet's address as the node tells it, in the order of `--kubelet-preferred-address-types`.
async fn kubelet(server: &Server, node: &str) -> Result<(String, u16), Status> {
    let node_object = object(server, "nodes", "", node).await?;
    let addresses = node_object["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let host = server
        .kubelet
        .preferred_addresses
        .iter()
        .find_map(|wanted| {
            addresses
                .iter()
                .find(|address| address["type"].as_str() == Some(wanted))
                .and_then(|address| address["address"].as_str())
        })
        .ok_or_else(|| {
            Status::internal(format!(
                "no preferred addresses found; known addresses: {}",
                node_object["status"]["addresses"]
            ))
        })?;
    let port = node_object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .unwrap_or(10250);
    Ok((host.to_string(), port))
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers.filter_map(|container| container["name"].as_str().map(str::to_string)).collect()
}

/// The container that is meant; only a pod with one container may leave it out.
fn container(pod: &Value, name: &str, asked: &str) -> Result<String, Status> {
    let containers = names(pod, "containers");
    let init = names(pod, "initContainers");
    let ephemeral = names(pod, "ephemeralContainers");
    if asked.is_empty() {
        return match containers.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Status::bad_request(format!("a container name must be specified for pod {name}"))),
            many => {
                let list = |names: &[String]| format!("[{}]", names.join(" "));
                let mut message = format!(
                    "a container name must be specified for pod {name}, choose one of: {}",
                    list(many)
                );
                if !init.is_empty() {
                    message.push_str(&format!(" or one of the init containers: {}", list(&init)));
                }
                if !ephemeral.is_empty() {
                    message.push_str(&format!(" or one of the ephemeral containers: {}", list(&ephemeral)));
                }
                Err(Status::bad_request(message))
            }
        };
    }
    if [containers, init, ephemeral].iter().flatten().any(|known| known == asked) {
        Ok(asked.to_string())
    } else {
        Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
    }
}

fn node_of<'a>(pod: &'a Value, name: &str) -> Result<&'a str, Status> {
    pod["spec"]["nodeName"]
        .as_str()
        .filter(|node| !node.is_empty())
        .ok_or_else(|| Status::bad_request(format!("pod {name} does not have a host assigned")))
}

fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

fn with_query(path: String, pairs: &[(&str, &str)]) -> String {
    let query: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
    if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
}

/// None: the pod has no node yet.
pub async fn log(server: &Server, path: &ResourcePath, query: &Query) -> Result<Option<Location>, Status> {
    let pod = object(server, "pods", &path.namespace, &path.name).await?;
    let container = container(&pod, &path.name, query.get("container").unwrap_or_default())?;
    let Ok(node) = node_of(&pod, &path.name) else { return Ok(None) };
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            pairs.push((flag, "true"));
        }
    }
    for number in ["sinceSeconds", "tailLines", "limitBytes"] {
        if let Some(value) = query.get(number).filter(|value| !value.is_empty()) {
            let least = if number == "tailLines" { 0 } else { 1 };
            if value.parse::<i64>().ok().is_none_or(|parsed| parsed < least) {
                return Err(Status::invalid(
                    crate::status::Qualified { group: "", name: "PodLogOptions" },
                    &path.name,
                    vec![crate::status::Cause::invalid(
                        number,
                        &value.into(),
                        if least == 0 {
                            "must be greater than or equal to 0"
                        } else {
                            "must be greater than 0"
                        },
                    )],
                ));
            }
            pairs.push((number, value));
        }
    }
    for text in ["sinceTime", "stream"] {
        if let Some(value) = query.get(text).filter(|value| !value.is_empty()) {
            pairs.push((text, value));
        }
    }
    let (host, port) = kubelet(server, node).await?;
    let target = format!("/containerLogs/{}/{}/{}", path.namespace, path.name, encode(&container));
    Ok(Some(Location { scheme: Scheme::Kubelet, host, port, path_and_query: with_query(target, &pairs) }))
}

pub async fn exec(server: &Server, path: &ResourcePath, query: &Query) -> Result<Location, Status> {
    let pod = object(server, "pods", &path.namespace, &path.name).await?;
    let container = container(&pod, &path.name, query.get("container").unwrap_or_default())?;
    let node = node_of(&pod, &path.name)?;
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for (flag, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(flag) {
            pairs.push((theirs, "1"));
        }
    }
    if pairs.iter().all(|(key, _)| *key == "tty") {
        return Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    if path.subresource == "exec" {
        pairs.extend(query.all("command").map(|command| ("command", command)));
        if !pairs.iter().any(|(key, _)| *key == "command") {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
    }
    let (host, port) = kubelet(server, node).await?;
    let target = format!("/{}/{}/{}/{}", path.subresource, path.namespace, path.name, encode(&container));
    Ok(Location { scheme: Scheme::Kubelet, host, port, path_and_query: with_query(target, &pairs) })
}

pub async fn port_forward(server: &Server, path: &ResourcePath, query: &Query) -> Result<Location, Status> {
    let pod = object(server, "pods", &path.namespace, &path.name).await?;
    let node = node_of(&pod, &path.name)?;
    let (host, port) = kubelet(server, node).await?;
    let pairs: Vec<(&str, &str)> = query.all("ports").map(|port| ("port", port)).collect();
    let target = format!("/portForward/{}/{}", path.namespace, path.name);
    Ok(Location { scheme: Scheme::Kubelet, host, port, path_and_query: with_query(target, &pairs) })
}

/// `scheme:name:port`, `name:port` or `name`.
fn split_name(text: &str) -> Result<(Scheme, &str, &str), Status> {
    let parts: Vec<&str> = text.split(':').collect();
    let scheme = |name: &str| match name {
        "" | "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        _ => Err(Status::bad_request(format!("invalid request {text:?}"))),
    };
    match parts.as_slice() {
        [name] => Ok((Scheme::Http, name, "")),
        [name, port] => Ok((Scheme::Http, name, port)),
        [prefix, name, port] => Ok((scheme(prefix)?, name, port)),
        _ => Err(Status::bad_request(format!("invalid request {text:?}"))),
    }
}

/// The request's own path behind `/proxy`, undecoded, and its query.
fn rest(exchange: &Exchange, namespaced: bool) -> String {
    let uri = exchange.request.uri();
    let after = match behind_proxy(uri.path(), namespaced) {
        "" => "/",
        after => after,
    };
    match uri.query() {
        Some(query) => format!("{after}?{query}"),
        None => after.to_string(),
    }
}

/// Names may contain `proxy`, so the place is counted: `api/v1/nodes/x/proxy`, `api/v1/namespaces/x/pods/x/proxy`.
/// Empty where not even a slash follows.
pub fn behind_proxy(path: &str, namespaced: bool) -> &str {
    let segments = if namespaced { 7 } else { 5 };
    // As in the parsing of the path, slashes before it are no segments.
    let mut rest = path.trim_start_matches('/');
    for _ in 0..segments {
        match rest.find('/') {
            Some(slash) => rest = &rest[slash + 1..],
            None => return "",
        }
    }
    &path[path.len() - rest.len() - 1..]
}

pub async fn node_proxy(
    server: &Server,
    path: &ResourcePath,
    exchange: &Exchange,
) -> Result<Location, Status> {
    let (scheme, name, given) = split_name(&path.name)?;
    let (host, port) = kubelet(server, name).await?;
    let port_given = given.parse::<u16>().ok();
    // A port other than the kubelet's is some other server on the node.
    let (scheme, host, port) = match port_given {
        Some(given) if given != port => (scheme, guarded(&host, given).await?, given),
        _ => (Scheme::Kubelet, host, port),
    };
    Ok(Location { scheme, host, port, path_and_query: rest(exchange, false) })
}

/// An address of a host that may be a name; the address, so that it is the one that was looked at.
async fn guarded(host: &str, port: u16) -> Result<String, Status> {
    let unknown = |error| Status::bad_request(format!("address not allowed: {error}"));
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(unknown)?;
    let first = addresses.next().ok_or_else(|| Status::bad_request("address not allowed"))?.ip().to_string();
    guard(&first)?;
    for other in addresses {
        guard(&other.ip().to_string())?;
    }
    Ok(first)
}

pub async fn pod_proxy(
    server: &Server,
    path: &ResourcePath,
    exchange: &Exchange,
) -> Result<Location, Status> {
    let (scheme, name, port) = split_name(&path.name)?;
    let pod = object(server, "pods", &path.namespace, name).await?;
    let host = pod["status"]["podIP"]
        .as_str()
        .filter(|ip| !ip.is_empty())
        .ok_or_else(|| Status::bad_request("address not allowed"))?;
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let port = match port.parse::<u16>() {
        Ok(number) => number,
        Err(_) if port.is_empty() => containers()
            .flat_map(|container| container["ports"].as_array().into_iter().flatten())
            .find_map(|port| port["containerPort"].as_u64())
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(80),
        Err(_) => containers()
            .flat_map(|container| container["ports"].as_array().into_iter().flatten())
            .find(|known| known["name"].as_str() == Some(port))
            .and_then(|known| known["containerPort"].as_u64())
            .and_then(|port| u16::try_from(port).ok())
            .ok_or_else(|| Status::bad_request(format!("invalid port {port:?} of pod {name}")))?,
    };
    guard(host)?;
    Ok(Location { scheme, host: host.to_string(), port, path_and_query: rest(exchange, true) })
}

/// Pods and endpoints are written by users: they must not lead this server to itself or to link-local services.
fn guard(host: &str) -> Result<(), Status> {
    let forbidden = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(ip)) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified()
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified()
        }
        Err(_) => true,
    };
    if forbidden { Err(Status::bad_request("address not allowed")) } else { Ok(()) }
}

pub async fn service_proxy(
    server: &Server,
    path: &ResourcePath,
    exchange: &Exchange,
) -> Result<Location, Status> {
    let (scheme, name, asked) = split_name(&path.name)?;
    let service = object(server, "services", &path.namespace, name).await?;
    let unavailable =
        || Status::service_unavailable(format!("no endpoints available for service {:?}", path.name));
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let port = match (asked, ports.as_slice()) {
        ("", [one]) => Some(one),
        ("", many) => many.iter().find(|port| port["name"].as_str().unwrap_or_default().is_empty()),
        (asked, all) => all.iter().find(|port| {
            port["name"].as_str() == Some(asked)
                || port["port"].as_u64().map(|number| number.to_string()).as_deref() == Some(asked)
        }),
    };
    let port_name = port.ok_or_else(|| {
        Status::service_unavailable(format!("no service port {asked:?} found for service {name:?}"))
    })?["name"]
        .as_str()
        .unwrap_or_default();
    let slices = server
        .table
        .find("discovery.k8s.io", "v1", "endpointslices")
        .and_then(|served| served.resource.as_ref())
        .ok_or_else(unavailable)?;
    let mut targets: Vec<(String, u16)> = Vec::new();
    for slice in slices.cached_list(&path.namespace) {
        if slice.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let slice = slice.value();
        let ports = slice["ports"].as_array().into_iter().flatten();
        let number = ports
            .filter(|port| port["name"].as_str().unwrap_or_default() == port_name)
            .find_map(|port| port["port"].as_u64())
            .and_then(|port| u16::try_from(port).ok());
        let Some(number) = number else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"].as_bool().unwrap_or(true)
                && let Some(address) = endpoint["addresses"][0].as_str()
            {
                targets.push((address.to_string(), number));
            }
        }
    }
    if targets.is_empty() {
        return Err(unavailable());
    }
    let (host, port) = targets.swap_remove(rand::rng().random_range(0..targets.len()));
    guard(&host)?;
    Ok(Location { scheme, host, port, path_and_query: rest(exchange, true) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_proxy_is_passed_on() {
        let check = |path: &str, namespaced: bool, expected: &str| {
            assert_eq!(behind_proxy(path, namespaced), expected, "{path}");
        };
        check("/api/v1/nodes/n/proxy", false, "");
        check("/api/v1/nodes/proxy-1/proxy/pods/", false, "/pods/");
        check("/api/v1/namespaces/proxy/services/proxy:80/proxy/a%20b", true, "/a%20b");
        check("//api/v1/namespaces/n/pods/p/proxy//x", true, "//x");
        check("/api/v1/namespaces/n/pods/p/proxy/", true, "/");
    }

    #[test]
    fn names_split() {
        let check = |text: &str, expected: Option<(Scheme, &str, &str)>| {
            assert_eq!(split_name(text).ok(), expected, "{text}");
        };
        check("x", Some((Scheme::Http, "x", "")));
        check("x:80", Some((Scheme::Http, "x", "80")));
        check("https:x:web", Some((Scheme::Https, "x", "web")));
        check("ftp:x:1", None);
        check("a:b:c:d", None);
    }

    #[test]
    fn containers_are_chosen_as_upstream_does() {
        let pod = serde_json::json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let one = serde_json::json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "p", "").unwrap(), "a");
        assert_eq!(container(&pod, "p", "i").unwrap(), "i");
        assert_eq!(container(&pod, "p", "x").unwrap_err().message, "container x is not valid for pod p");
        assert_eq!(
            container(&pod, "p", "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn users_cannot_aim_at_this_host() {
        for (host, ok) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("::1", false),
            ("x", false),
        ] {
            assert_eq!(guard(host).is_ok(), ok, "{host}");
        }
    }
}

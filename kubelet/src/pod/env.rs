//! A container's environment: literal values, references, services, and `$(VAR)` expansion.
//!
//! Pure over what was fetched: the caller hands in the config maps and secrets.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, PodSpec, ResourceFieldSelector, Secret,
};

use super::resources;

/// Why a container's configuration cannot be made: its waiting message with reason CreateContainerConfigError.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct EnvError(pub String);

/// A Service as its environment variables need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEnv {
    pub namespace: String,
    pub name: String,
    pub cluster_ip: String,
    /// Name, port, protocol.
    pub ports: Vec<(Option<String>, i32, String)>,
}

/// What the environment is made of.
pub struct Sources<'a> {
    pub pod: &'a Pod,
    pub config_maps: &'a HashMap<String, Option<std::sync::Arc<ConfigMap>>>,
    pub secrets: &'a HashMap<String, Option<std::sync::Arc<Secret>>>,
    pub services: &'a [ServiceEnv],
    pub pod_ips: &'a [String],
    pub host_ips: &'a [String],
    /// CPU in milli and memory in bytes that a container without limits is told.
    pub node: resources::Amounts,
    pub node_name: &'a str,
}

/// Names of config maps and secrets that a container's environment refers to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// The environment, in order; later names win over earlier ones.
pub fn environment(container: &Container, sources: &Sources<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let set = |variables: &mut Vec<(String, String)>, name: String, value: String| match variables
        .iter_mut()
        .find(|(known, _)| *known == name)
    {
        Some(variable) => variable.1 = value,
        None => variables.push((name, value)),
    };
    for (name, value) in env_from(container, sources)? {
        set(&mut variables, name, value);
    }
    let service_env = service_variables(sources);
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            (Some(value), _) if !value.is_empty() => expand(value, |name| {
                let own = variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
                own.or_else(|| service_env.get(name).cloned())
            }),
            (_, Some(source)) => match value_from(source, container, sources)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        set(&mut variables, env.name.clone(), value);
    }
    for (name, value) in service_env {
        if !variables.iter().any(|(known, _)| *known == name) {
            variables.push((name, value));
        }
    }
    Ok(variables)
}

fn env_from(container: &Container, sources: &Sources<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let mut found = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let pairs: Vec<(String, String)> = if let Some(reference) = &source.config_map_ref {
            match config_map(sources, &reference.name, reference.optional)? {
                Some(map) => map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
                None => continue,
            }
        } else if let Some(reference) = &source.secret_ref {
            match secret(sources, &reference.name, reference.optional)? {
                Some(secret) => secret
                    .data
                    .iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned()))
                    .collect(),
                None => continue,
            }
        } else {
            continue;
        };
        found.extend(pairs.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
    }
    Ok(found)
}

fn config_map<'a>(
    sources: &'a Sources<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a ConfigMap>, EnvError> {
    match sources.config_maps.get(name).and_then(Option::as_deref) {
        Some(map) => Ok(Some(map)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError(format!("configmap {name:?} not found"))),
    }
}

fn secret<'a>(
    sources: &'a Sources<'_>,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Secret>, EnvError> {
    match sources.secrets.get(name).and_then(Option::as_deref) {
        Some(secret) => Ok(Some(secret)),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvError(format!("secret {name:?} not found"))),
    }
}

fn value_from(
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    container: &Container,
    sources: &Sources<'_>,
) -> Result<Option<String>, EnvError> {
    let namespace = sources.pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return field_value(field, sources).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let spec = sources.pod.spec.as_ref();
        return resource_value(selector, container, spec, sources.node).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let Some(map) = config_map(sources, &reference.name, reference.optional)? else { return Ok(None) };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if reference.optional == Some(true) => Ok(None),
            None => Err(EnvError(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            ))),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let Some(secret) = secret(sources, &reference.name, reference.optional)? else { return Ok(None) };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if reference.optional == Some(true) => Ok(None),
            None => Err(EnvError(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            ))),
        };
    }
    if source.file_key_ref.is_some() {
        return Err(EnvError("fileKeyRef is not supported by this kubelet".to_owned()));
    }
    Ok(None)
}

fn field_value(field: &ObjectFieldSelector, sources: &Sources<'_>) -> Result<String, EnvError> {
    match field.field_path.as_str() {
        "spec.nodeName" => Ok(sources.node_name.to_owned()),
        "status.hostIP" => Ok(sources.host_ips.first().cloned().unwrap_or_default()),
        "status.hostIPs" => Ok(sources.host_ips.join(",")),
        "status.podIP" => Ok(sources.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Ok(sources.pod_ips.join(",")),
        path => field_path(sources.pod, path),
    }
}

/// The value of a downward API field; maps are printed a `key="value"` to a line.
pub fn field_path(pod: &Pod, path: &str) -> Result<String, EnvError> {
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| Ok(value.clone().unwrap_or_default());
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={}", quoted(v))).collect();
        Ok(lines.join("\n"))
    };
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    if let Some(key) = subscript("metadata.annotations") {
        return entry(&metadata.annotations, key);
    }
    if let Some(key) = subscript("metadata.labels") {
        return entry(&metadata.labels, key);
    }
    match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "spec.nodeName" => text(&pod.spec.as_ref().and_then(|spec| spec.node_name.clone())),
        "spec.serviceAccountName" => {
            text(&pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()))
        }
        _ => Err(EnvError(format!("unsupported fieldPath: {path}"))),
    }
}

/// Go's `%q`, as far as label and annotation values go.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len() + 2);
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// A container's request or limit, divided and rounded up; without a limit it is the node's.
pub fn resource_value(
    selector: &ResourceFieldSelector,
    container: &Container,
    spec: Option<&PodSpec>,
    node: resources::Amounts,
) -> Result<String, EnvError> {
    let other = selector.container_name.as_ref().filter(|name| **name != container.name);
    let container = match other {
        None => container,
        Some(name) => spec
            .into_iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
            .find(|container| container.name == *name)
            .ok_or_else(|| EnvError(format!("container {name} not found")))?,
    };
    let (requests, limits) =
        (resources::requests(container.resources.as_ref()), resources::limits(container.resources.as_ref()));
    let or_node = |value: i64, node: i64| if value > 0 { value } else { node };
    let storage = |list: fn(
        &k8s_openapi::api::core::v1::ResourceRequirements,
    ) -> Option<
        &BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    >| {
        container
            .resources
            .as_ref()
            .and_then(list)
            .and_then(|l| l.get("ephemeral-storage"))
            .and_then(resources::units)
            .unwrap_or(0)
    };
    let (value, cpu) = match selector.resource.as_str() {
        "limits.cpu" => (or_node(limits.cpu, node.cpu), true),
        "requests.cpu" => (requests.cpu, true),
        "limits.memory" => (or_node(limits.memory, node.memory), false),
        "requests.memory" => (requests.memory, false),
        "limits.ephemeral-storage" => (storage(|r| r.limits.as_ref()), false),
        "requests.ephemeral-storage" => (storage(|r| r.requests.as_ref()), false),
        other => return Err(EnvError(format!("unsupported container resource : {other}"))),
    };
    let divisor = selector.divisor.as_ref();
    let divisor = match divisor.and_then(if cpu { resources::milli } else { resources::units }) {
        Some(divisor) if divisor > 0 => divisor,
        _ if cpu => 1000,
        _ => 1,
    };
    Ok(value.div_euclid(divisor).saturating_add(i64::from(value.rem_euclid(divisor) > 0)).to_string())
}

/// `$(NAME)` → value, `$$` → `$`; an unknown name stays as it is written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        let (before, after) = rest.split_at(dollar);
        out.push_str(before);
        rest = if let Some(tail) = after.strip_prefix("$$") {
            out.push('$');
            tail
        } else if let Some((name, tail)) = after.strip_prefix("$(").and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            tail
        } else {
            out.push('$');
            after.get(1..).unwrap_or_default()
        };
    }
    out.push_str(rest);
    out
}

/// `FOO_SERVICE_HOST` and the Docker-links variables of the pod's namespace, and of the API server's Service.
fn service_variables(sources: &Sources<'_>) -> BTreeMap<String, String> {
    let namespace = sources.pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = sources.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let mut variables = BTreeMap::new();
    // The API server's own Service is announced in every namespace; a namesake in the pod's namespace wins.
    let master = |service: &&ServiceEnv| service.namespace == "default" && service.name == "kubernetes";
    let own = |service: &&ServiceEnv| links && service.namespace == namespace;
    for service in sources.services.iter().filter(master).chain(sources.services.iter().filter(own)) {
        let prefix = service.name.to_uppercase().replace('-', "_");
        let Some((_, first_port, _)) = service.ports.first() else { continue };
        let ip = &service.cluster_ip;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        variables.insert(format!("{prefix}_SERVICE_HOST"), ip.clone());
        variables.insert(format!("{prefix}_SERVICE_PORT"), first_port.to_string());
        for (index, (name, port, protocol)) in service.ports.iter().enumerate() {
            if let Some(name) = name.as_ref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                variables.insert(format!("{prefix}_SERVICE_PORT_{name}"), port.to_string());
            }
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{port}");
            if index == 0 {
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            let link = format!("{prefix}_PORT_{port}_{}", protocol.to_uppercase());
            variables.insert(format!("{link}_PROTO"), lower);
            variables.insert(format!("{link}_PORT"), port.to_string());
            variables.insert(format!("{link}_ADDR"), ip.clone());
            variables.insert(link, url);
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let check = |text: &str, expected: &str| {
            assert_eq!(expand(text, |name| (name == "A").then(|| "1".to_owned())), expected, "{text}");
        };
        check("x$(A)y", "x1y");
        check("$$(A)", "$(A)");
        check("$(B)", "$(B)");
        check("$(A", "$(A");
        check("$A $", "$A $");
        check("$$$(A)", "$1");
    }

    #[test]
    fn references_services_and_fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b\"c"}},
            "spec": {"containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1500m"}},
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
                "env": [
                    {"name": "X", "value": "$(P_k)-$(WEB_SERVICE_HOST)"},
                    {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}},
                    {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}]}}))
        .unwrap();
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"data": {"k": "v"}})).unwrap();
        let services = [ServiceEnv {
            namespace: "n".into(),
            name: "web".into(),
            cluster_ip: "10.0.0.9".into(),
            ports: vec![(Some("http".into()), 80, "TCP".into())],
        }];
        let mut config_maps = HashMap::from([("m".to_owned(), Some(std::sync::Arc::new(map)))]);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let run = |config_maps: &HashMap<_, _>| {
            environment(
                container,
                &Sources {
                    pod: &pod,
                    config_maps,
                    secrets: &HashMap::new(),
                    services: &services,
                    pod_ips: &[],
                    host_ips: &[],
                    node: resources::Amounts { cpu: 2000, memory: 3 << 20 },
                    node_name: "node",
                },
            )
        };
        let env: HashMap<_, _> = run(&config_maps).unwrap().into_iter().collect();
        let check = |name: &str, expected: &str| {
            assert_eq!(env.get(name).map(String::as_str), Some(expected), "{name}")
        };
        check("P_k", "v");
        check("X", "v-10.0.0.9");
        check("L", "a=\"b\\\"c\"");
        check("C", "2");
        check("M", "3");
        check("WEB_SERVICE_PORT_HTTP", "80");
        check("WEB_PORT", "tcp://10.0.0.9:80");
        check("WEB_PORT_80_TCP_ADDR", "10.0.0.9");
        config_maps.clear();
        assert_eq!(run(&config_maps), Err(EnvError("configmap \"m\" not found".into())));
    }
}

//! The EndpointSlices of a Service, with as few writes as the change allows. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use keelson_objects::owners;
use kube::api::ObjectMeta;

use crate::pod::PodInfo;
use crate::service::{ServiceInfo, address, target_port};

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MAX_ENDPOINTS: usize = 100;

#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    /// Names.
    pub delete: Vec<String>,
}

/// What tells an endpoint from others: the pod.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    (pod, endpoint.addresses.first().cloned().unwrap_or_default())
}

fn endpoint(service: &ServiceInfo, pod: &PodInfo, ip: &str, zone: Option<String>) -> Endpoint {
    let (serving, terminating) = (pod.is_ready(), pod.meta.deleting);
    let ready = service.publish_not_ready || (serving && !terminating);
    let node = Some(pod.node.to_string()).filter(|node| !node.is_empty());
    let zones = |zone: &Option<String>| zone.clone().map(|name| vec![ForZone { name }]);
    let hints = match service.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") if zone.is_some() => {
            Some(EndpointHints { for_zones: zones(&zone), for_nodes: None })
        }
        Some("PreferSameNode") if node.is_some() => Some(EndpointHints {
            for_zones: zones(&zone),
            for_nodes: node.clone().map(|name| vec![ForNode { name }]),
        }),
        _ => None,
    };
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: service.hostname(pod),
        node_name: node,
        zone,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.meta.namespace.clone()),
            name: Some(pod.meta.name.clone()),
            uid: Some(pod.meta.uid.clone()),
            ..ObjectReference::default()
        }),
        hints: hints.filter(|_| ready),
        ..Endpoint::default()
    }
}

fn ports(service: &ServiceInfo, pod: &PodInfo) -> Vec<EndpointPort> {
    let ports = service.ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(port, pod)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    ports.collect()
}

/// A form in which equal sets of ports are equal, whatever the server made of them.
fn port_key(ports: &[EndpointPort]) -> Vec<String> {
    let mut key: Vec<String> = ports
        .iter()
        .map(|port| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            format!("{}/{}/{protocol}/{}", text(&port.name), port.port.unwrap_or(0), text(&port.app_protocol))
        })
        .collect();
    key.sort();
    key
}

fn same(a: &Endpoint, b: &Endpoint) -> bool {
    let rest = |e: &Endpoint| (e.node_name.clone(), e.zone.clone(), e.hostname.clone(), e.hints.clone());
    a.addresses == b.addresses && a.conditions == b.conditions && rest(a) == rest(b)
}

fn labels(service: &ServiceInfo) -> BTreeMap<String, String> {
    let mut labels = service.meta.labels.clone();
    labels.remove(HEADLESS);
    if service.headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.meta.name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(
    service: &ServiceInfo,
    family: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let meta = &service.meta;
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(crate::pod_control::generate_name(&meta.name)),
            namespace: Some(meta.namespace.clone()),
            labels: Some(labels(service)),
            owner_references: Some(vec![owners::new_controller_ref("v1", "Service", &meta.name, &meta.uid)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(ports),
        endpoints: Some(endpoints),
    }
}

/// `zone_of` tells a node's zone; `existing` are the slices of this Service that this controller manages.
#[must_use]
pub fn plan(
    service: &ServiceInfo,
    pods: &[Arc<PodInfo>],
    existing: Vec<EndpointSlice>,
    zone_of: impl Fn(&str) -> Option<String>,
) -> Changes {
    let mut changes = Changes::default();
    let (mut current, mut foreign): (BTreeMap<&str, Vec<EndpointSlice>>, Vec<EndpointSlice>) =
        Default::default();
    let families: Vec<&str> =
        service.families.iter().map(|ipv4| if *ipv4 { "IPv4" } else { "IPv6" }).collect();
    for slice in existing {
        match families.iter().find(|family| **family == slice.address_type) {
            Some(family) => current.entry(*family).or_default().push(slice),
            None => foreign.push(slice),
        }
    }
    changes.delete.extend(foreign.into_iter().filter_map(|slice| slice.metadata.name));
    for (family, ipv4) in families.iter().zip(&service.families) {
        let mut groups: BTreeMap<Vec<String>, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for pod in pods {
            let Some(ip) = address(pod, *ipv4) else { continue };
            let ports = ports(service, pod);
            let group = groups.entry(port_key(&ports)).or_insert_with(|| (ports, Vec::new()));
            group.1.push(endpoint(service, pod, ip, zone_of(&pod.node)));
        }
        family_plan(service, family, groups, current.remove(family).unwrap_or_default(), &mut changes);
    }
    changes
}

fn family_plan(
    service: &ServiceInfo,
    family: &str,
    mut groups: BTreeMap<Vec<String>, (Vec<EndpointPort>, Vec<Endpoint>)>,
    existing: Vec<EndpointSlice>,
    changes: &mut Changes,
) {
    let mut by_ports: BTreeMap<Vec<String>, Vec<EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        by_ports.entry(port_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
    }
    let mut placeholder = None;
    let mut kept = 0;
    if groups.is_empty() {
        // A Service without endpoints has one empty slice, so that watchers know it is looked after.
        groups.insert(Vec::new(), (Vec::new(), Vec::new()));
    }
    for (key, (ports, wanted)) in groups {
        let slices = by_ports.remove(&key).unwrap_or_default();
        if wanted.is_empty() && slices.is_empty() {
            placeholder = Some(ports);
            continue;
        }
        kept += fill(service, family, ports, wanted, slices, changes);
    }
    changes.delete.extend(by_ports.into_values().flatten().filter_map(|slice| slice.metadata.name));
    if let Some(ports) = placeholder.filter(|_| kept == 0) {
        changes.create.push(new_slice(service, family, ports, Vec::new()));
    }
}

/// Distributes endpoints of equal ports over slices; gives how many slices there are afterwards.
fn fill(
    service: &ServiceInfo,
    family: &str,
    ports: Vec<EndpointPort>,
    wanted: Vec<Endpoint>,
    slices: Vec<EndpointSlice>,
    changes: &mut Changes,
) -> usize {
    let wanted_labels = labels(service);
    let empty = wanted.is_empty();
    let mut left: HashMap<(String, String), Endpoint> = HashMap::new();
    let mut order = Vec::with_capacity(wanted.len());
    for endpoint in wanted {
        let key = identity(&endpoint);
        order.push(key.clone());
        left.insert(key, endpoint);
    }
    // First what is there already.
    let mut kept: Vec<Kept> = Vec::with_capacity(slices.len());
    for mut slice in slices {
        let mut changed = slice.metadata.labels.as_ref() != Some(&wanted_labels);
        let mut endpoints = Vec::new();
        for old in slice.endpoints.take().unwrap_or_default() {
            match left.remove(&identity(&old)) {
                Some(new) if same(&old, &new) => endpoints.push(old),
                Some(new) => {
                    endpoints.push(new);
                    changed = true;
                }
                None => changed = true,
            }
        }
        slice.metadata.labels = Some(wanted_labels.clone());
        kept.push(Kept { slice, endpoints, changed });
    }
    let mut rest: Vec<Endpoint> = order.into_iter().filter_map(|key| left.remove(&key)).collect();
    // Then the new ones: into slices that are written anyway, then into the fullest with room for all that is left.
    for slice in kept.iter_mut().filter(|slice| slice.changed) {
        let room = MAX_ENDPOINTS.saturating_sub(slice.endpoints.len());
        slice.endpoints.extend(rest.drain(..room.min(rest.len())));
    }
    while rest.len() >= MAX_ENDPOINTS {
        let full = rest.drain(..MAX_ENDPOINTS).collect();
        changes.create.push(new_slice(service, family, ports.clone(), full));
    }
    if !rest.is_empty() {
        let fits = |slice: &&mut Kept| slice.endpoints.len() + rest.len() <= MAX_ENDPOINTS;
        match kept.iter_mut().filter(fits).max_by_key(|slice| slice.endpoints.len()) {
            Some(slice) => {
                slice.endpoints.append(&mut rest);
                slice.changed = true;
            }
            None => changes.create.push(new_slice(service, family, ports, rest)),
        }
    }
    // An empty slice goes, unless it is the one that says that there is nothing.
    let mut count = 0;
    let mut have_placeholder = !empty;
    for Kept { mut slice, endpoints, changed } in kept {
        if endpoints.is_empty() && have_placeholder {
            changes.delete.extend(slice.metadata.name);
            continue;
        }
        have_placeholder |= endpoints.is_empty();
        count += 1;
        if changed {
            slice.endpoints = Some(endpoints);
            changes.update.push(slice);
        }
    }
    count
}

/// A slice that is there already, as it is to be.
struct Kept {
    slice: EndpointSlice,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use serde_json::{Value, json};

    fn service(spec: Value) -> ServiceInfo {
        let metadata = json!({"name": "web", "namespace": "ns", "uid": "s", "labels": {"l": "1"}});
        ServiceInfo::of(&serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    fn pods(range: std::ops::Range<usize>) -> Vec<Arc<PodInfo>> {
        let make = |n: usize| {
            let name = format!("p{n}");
            Arc::new(PodInfo {
                meta: Meta { name: name.clone(), uid: name, ..Meta::default() },
                node: "n1".into(),
                addresses: [format!("10.0.{}.{}", n / 200, n % 200).into(), format!("fd00::{n:x}").into()]
                    .into(),
                ready: Some(jiff::Timestamp::UNIX_EPOCH),
                ..PodInfo::default()
            })
        };
        range.map(make).collect()
    }

    fn stored(changes: &Changes) -> Vec<EndpointSlice> {
        let name = |(index, slice): (usize, &EndpointSlice)| {
            let mut slice = slice.clone();
            slice.metadata.name.get_or_insert(format!("web-{index}"));
            slice
        };
        changes.create.iter().enumerate().map(name).collect()
    }

    fn text(changes: &Changes) -> String {
        let sizes = |slices: &[EndpointSlice]| {
            slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect::<Vec<_>>()
        };
        format!("+{:?} ~{:?} -{}", sizes(&changes.create), sizes(&changes.update), changes.delete.len())
    }

    #[test]
    fn slices_change_as_little_as_they_can() {
        let service = service(json!({"ports": [{"port": 80}]}));
        #[track_caller]
        fn check(service: &ServiceInfo, before: usize, after: &[Arc<PodInfo>], expected: &str) {
            let first = plan(service, &pods(0..before), Vec::new(), |_| None);
            let existing = stored(&first);
            assert_eq!(plan(service, &pods(0..before), existing.clone(), |_| None), Changes::default());
            assert_eq!(text(&plan(service, after, existing, |_| None)), expected);
        }
        check(&service, 250, &pods(0..250), "+[] ~[] -0");
        check(&service, 250, &pods(0..251), "+[] ~[51] -0");
        check(&service, 250, &pods(1..251), "+[] ~[100] -0");
        check(&service, 250, &pods(0..320), "+[70] ~[] -0");
        check(&service, 250, &pods(100..250), "+[] ~[] -1");
        check(&service, 2, &[], "+[0] ~[] -1");
        check(&service, 0, &pods(0..1), "+[1] ~[] -1");
        check(&service, 0, &[], "+[] ~[] -0");
    }

    #[test]
    fn without_endpoints_one_empty_slice_remains() {
        let service = service(json!({"ports": [{"port": 80}]}));
        let first = plan(&service, &pods(0..2), Vec::new(), |_| None);
        let gone = plan(&service, &[], stored(&first), |_| None);
        // The slice has ports that no pod has now: another takes its place.
        assert_eq!(gone.delete, ["web-0"]);
        assert_eq!(gone.create.len() + gone.update.len(), 1);
    }

    #[test]
    fn both_families_and_conditions() {
        let service = service(
            json!({"ipFamilies": ["IPv6", "IPv4"], "ports": [{"port": 80}], "trafficDistribution": "PreferClose"}),
        );
        let mut leaving = PodInfo::clone(&pods(0..1)[0]);
        leaving.meta.deleting = true;
        let changes =
            plan(&service, &[Arc::new(leaving), pods(1..2)[0].clone()], Vec::new(), |_| Some("z".into()));
        assert_eq!(text(&changes), "+[2, 2] ~[] -0");
        let slice = &changes.create[0];
        let endpoints = slice.endpoints.as_ref().unwrap();
        assert_eq!((slice.address_type.as_str(), endpoints[0].addresses[0].as_str()), ("IPv6", "fd00::0"));
        let conditions = endpoints[0].conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
        assert!(endpoints[0].hints.is_none() && endpoints[1].hints.is_some());
        assert_eq!(slice.metadata.owner_references.as_ref().unwrap()[0].kind, "Service");
        assert_eq!(slice.metadata.generate_name.as_deref(), Some("web-"));
        // No longer dual-stack.
        let single = self::service(json!({"ipFamilies": ["IPv4"], "ports": [{"port": 80}]}));
        let less = plan(&single, &pods(0..2), stored(&changes), |_| Some("z".into()));
        assert_eq!(less.delete, ["web-0"]);
    }
}

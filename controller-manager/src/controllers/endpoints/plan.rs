//! The Endpoints of a Service. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference};
use kube::api::ObjectMeta;

use crate::pod::PodInfo;
use crate::service::{ServiceInfo, address, target_port};

const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: (&str, &str) = ("endpoints.kubernetes.io/over-capacity", "truncated");
const CAPACITY: usize = 1000;

/// Ports in the order of the Service's, so that equal sets compare equal.
type Ports = Vec<(Option<String>, i32, String, Option<String>)>;

#[derive(Default)]
struct Addresses {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

fn endpoint(service: &ServiceInfo, pod: &PodInfo, ip: &str) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: service.hostname(pod),
        node_name: Some(pod.node.to_string()).filter(|node| !node.is_empty()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.meta.namespace.clone()),
            name: Some(pod.meta.name.clone()),
            uid: Some(pod.meta.uid.clone()),
            ..ObjectReference::default()
        }),
    }
}

/// The subsets, and whether addresses were left out because there are too many.
#[must_use]
pub fn subsets(service: &ServiceInfo, pods: &[Arc<PodInfo>]) -> (Vec<EndpointSubset>, bool) {
    let ipv4 = service.families.first().copied().unwrap_or(true);
    let mut groups: BTreeMap<Ports, Addresses> = BTreeMap::new();
    let mut count = 0;
    let mut truncated = false;
    // Ready ones first: they are the last to be left out.
    let ready = |pod: &PodInfo| pod.is_ready() || service.publish_not_ready;
    let (first, second): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| ready(pod));
    for pod in first.into_iter().chain(second) {
        if pod.meta.deleting && !service.publish_not_ready {
            continue;
        }
        let Some(ip) = address(pod, ipv4) else { continue };
        let ports: Ports = service
            .ports
            .iter()
            .filter_map(|port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((port.name.clone(), target_port(port, pod)?, protocol, port.app_protocol.clone()))
            })
            .collect();
        // Only a headless Service without ports has endpoints without ports.
        if ports.is_empty() && !(service.headless && service.ports.is_empty()) {
            continue;
        }
        if count == CAPACITY {
            truncated = true;
            break;
        }
        count += 1;
        let group = groups.entry(ports).or_default();
        let list = if ready(pod) { &mut group.ready } else { &mut group.not_ready };
        list.push(endpoint(service, pod, ip));
    }
    let subset = |(ports, mut addresses): (Ports, Addresses)| {
        let sorted = |list: &mut Vec<EndpointAddress>| {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
            Some(std::mem::take(list)).filter(|list| !list.is_empty())
        };
        let ports: Vec<EndpointPort> = ports
            .into_iter()
            .map(|(name, port, protocol, app_protocol)| EndpointPort {
                name,
                port,
                protocol: Some(protocol),
                app_protocol,
            })
            .collect();
        EndpointSubset {
            addresses: sorted(&mut addresses.ready),
            not_ready_addresses: sorted(&mut addresses.not_ready),
            ports: Some(ports).filter(|ports| !ports.is_empty()),
        }
    };
    (groups.into_iter().map(subset).collect(), truncated)
}

/// The Endpoints to write, unless those that exist say the same.
#[must_use]
pub fn plan(service: &ServiceInfo, pods: &[Arc<PodInfo>], existing: Option<Endpoints>) -> Option<Endpoints> {
    let (subsets, truncated) = subsets(service, pods);
    let mut labels = service.meta.labels.clone();
    labels.remove(HEADLESS);
    if service.headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let mut wanted = existing.clone().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: Some(service.meta.name.clone()),
            namespace: Some(service.meta.namespace.clone()),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    if truncated {
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.0.to_owned(), OVER_CAPACITY.1.to_owned());
    } else if let Some(annotations) = &mut wanted.metadata.annotations {
        annotations.remove(OVER_CAPACITY.0);
    }
    wanted.subsets = subsets;
    (existing.as_ref() != Some(&wanted)).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use crate::pod::NamedPort;
    use serde_json::{Value, json};

    fn service(spec: Value) -> ServiceInfo {
        let object =
            json!({"metadata": {"name": "web", "namespace": "ns", "labels": {"l": "1"}}, "spec": spec});
        ServiceInfo::of(&serde_json::from_value(object).unwrap())
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Arc<PodInfo> {
        Arc::new(PodInfo {
            meta: Meta { name: name.into(), namespace: "ns".into(), uid: name.into(), ..Meta::default() },
            node: "n1".into(),
            addresses: [ip.into()].into(),
            ready: ready.then_some(jiff::Timestamp::UNIX_EPOCH),
            hostname: "h".into(),
            subdomain: "web".into(),
            ports: [NamedPort { name: "http".into(), number: port, protocol: "TCP".into() }].into(),
            ..PodInfo::default()
        })
    }

    #[track_caller]
    fn check(spec: Value, pods: &[Arc<PodInfo>], expected: &str) {
        let service = service(spec);
        let list = |addresses: &Option<Vec<EndpointAddress>>| {
            addresses.iter().flatten().map(|address| address.ip.as_str()).collect::<Vec<_>>().join(",")
        };
        let text: Vec<String> = subsets(&service, pods)
            .0
            .iter()
            .map(|s| {
                let ports: Vec<i32> = s.ports.iter().flatten().map(|port| port.port).collect();
                format!("{}!{}{ports:?}", list(&s.addresses), list(&s.not_ready_addresses))
            })
            .collect();
        assert_eq!(text.join(" "), expected);
    }

    #[test]
    fn endpoints_of_services() {
        let pods =
            [pod("a", "10.0.0.1", true, 80), pod("b", "10.0.0.2", false, 80), pod("c", "10.0.0.3", true, 81)];
        let named = json!([{"name": "w", "port": 1, "targetPort": "http"}]);
        check(json!({"ports": named}), &pods, "10.0.0.1!10.0.0.2[80] 10.0.0.3![81]");
        check(json!({"ports": [{"port": 8080}]}), &pods, "10.0.0.1,10.0.0.3!10.0.0.2[8080]");
        check(json!({"ports": [{"port": 1, "targetPort": "none"}]}), &pods, "");
        check(json!({"clusterIP": "None"}), &pods, "10.0.0.1,10.0.0.3!10.0.0.2[]");
        check(
            json!({"ports": [{"port": 1, "targetPort": 5}], "publishNotReadyAddresses": true}),
            &pods,
            "10.0.0.1,10.0.0.2,10.0.0.3![5]",
        );
        check(json!({"ports": [{"port": 1}], "ipFamilies": ["IPv6"]}), &pods, "");
        let mut leaving = PodInfo::clone(&pods[0]);
        leaving.meta.deleting = true;
        check(json!({"ports": [{"port": 1}]}), &[Arc::new(leaving)], "");
    }

    #[test]
    fn nothing_is_written_twice() {
        let service = service(json!({"clusterIP": "None", "ports": [{"port": 80}]}));
        let pods = [pod("a", "10.0.0.1", true, 80)];
        let made = plan(&service, &pods, None).unwrap();
        let address = &made.subsets.as_ref().unwrap()[0].addresses.as_ref().unwrap()[0];
        assert_eq!((address.hostname.as_deref(), address.node_name.as_deref()), (Some("h"), Some("n1")));
        let labels = made.metadata.labels.as_ref().unwrap();
        assert!(labels.contains_key(HEADLESS) && labels["l"] == "1");
        assert!(plan(&service, &pods, Some(made.clone())).is_none());
        assert!(plan(&service, &[], Some(made)).unwrap().subsets.is_none());
    }

    #[test]
    fn too_many() {
        let service = service(json!({"ports": [{"port": 80}]}));
        let mut pods: Vec<_> = (0..1000)
            .map(|n| pod(&format!("p{n}"), &format!("10.0.{}.{}", n / 250, n % 250), true, 80))
            .collect();
        pods.insert(0, pod("x", "10.9.9.9", false, 80));
        let made = plan(&service, &pods, None).unwrap();
        assert_eq!(made.metadata.annotations.unwrap()[OVER_CAPACITY.0], OVER_CAPACITY.1);
        let subsets = made.subsets.unwrap();
        assert_eq!(
            (subsets[0].addresses.as_ref().unwrap().len(), subsets[0].not_ready_addresses.is_none()),
            (1000, true)
        );
    }
}

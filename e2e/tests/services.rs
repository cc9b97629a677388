//! Services: their addresses, their ports on nodes, their names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use e2e::kubectl::Kubectl;
use e2e::network::{UdpEcho, http_get, on_host, refused, udp_ask};
use e2e::pods::{LONG, container, shell, sleeper};
use e2e::wait::{until, until_contains};
use serde_json::{Value, json};

/// A Deployment `web` whose pods answer HTTP with their own names.
fn web(kubectl: &Kubectl, replicas: u32) {
    let script = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www";
    let mut server = container("httpd", script);
    server["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [server]},
            },
        },
    });
    kubectl.apply(&deployment.to_string());
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]);
}

/// Creates a Service and gives it as stored.
fn service(kubectl: &Kubectl, name: &str, spec: Value) -> Value {
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    kubectl.apply(&object.to_string());
    kubectl.object(&["service", name]).unwrap()
}

fn cluster_address(service: &Value, port: u16) -> SocketAddr {
    let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    SocketAddr::new(address, port)
}

fn node_port(service: &Value) -> u16 {
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port), "{port}");
    u16::try_from(port).unwrap()
}

fn pod_names(kubectl: &Kubectl) -> BTreeSet<String> {
    let names = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]);
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn tcp_over_cluster_address_and_node_port_reaches_every_pod() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("tcp");
    web(&kubectl, 3);
    let service = service(
        &kubectl,
        "web",
        json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
    );
    let names = pod_names(&kubectl);
    assert_eq!(names.len(), 3);
    let reach_all = |what: &str, ask: &dyn Fn() -> Result<String, String>| {
        let mut found = BTreeSet::new();
        until(what, LONG, || {
            found.insert(ask()?.trim().to_owned());
            if found == names { Ok(()) } else { Err(format!("{found:?} of {names:?}")) }
        });
    };
    for host in &cluster.hosts {
        let address = cluster_address(&service, 80);
        reach_all(&format!("the cluster address on {}", host.name), &|| on_host(host, || http_get(address)));
        let port = SocketAddr::new(host.address, node_port(&service));
        reach_all(&format!("the node port of {} from outside", host.name), &|| http_get(port));
    }
    let port = SocketAddr::new(cluster.hosts[1].address, node_port(&service));
    reach_all("the node port from another node", &|| on_host(&cluster.hosts[0], || http_get(port)));
    reach_all("the node port from the node itself", &|| on_host(&cluster.hosts[1], || http_get(port)));

    // A pod reaches itself through its Service too.
    kubectl.run(&["scale", "deployment/web", "--replicas=1"]);
    until("one pod is left", LONG, || match pod_names(&kubectl).len() {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
    let own = pod_names(&kubectl).into_iter().next().unwrap();
    until_contains("the pod reaches itself", LONG, &own, || {
        shell(&kubectl, &own, "timeout 3 wget -q -O - http://web/")
    });
}

#[test]
fn endpoints_come_and_go() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("endpoints");
    let service = service(
        &kubectl,
        "web",
        json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}),
    );
    let address = cluster_address(&service, 80);
    let port = SocketAddr::new(cluster.hosts[0].address, node_port(&service));
    let until_refused = || {
        for host in &cluster.hosts {
            until("nobody answers, and says so", LONG, || on_host(host, || refused(address)));
        }
        until("nobody answers on the node port, and says so", LONG, || refused(port));
    };
    until_refused();
    web(&kubectl, 1);
    for host in &cluster.hosts {
        until_contains("the first pod answers", LONG, "web-", || on_host(host, || http_get(address)));
    }
    until_contains("the first pod answers on the node port", LONG, "web-", || http_get(port));
    kubectl.run(&["scale", "deployment/web", "--replicas=0"]);
    until_refused();
    kubectl.run(&["scale", "deployment/web", "--replicas=1"]);
    until_contains("a pod answers again", LONG, "web-", || on_host(&cluster.hosts[0], || http_get(address)));
    // Without its Service the port is nobody's.
    kubectl.run(&["delete", "service", "web"]);
    until("the node port is closed", LONG, || refused(port));
}

#[test]
fn udp_follows_its_endpoints() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("udp");
    let (first, second) = (UdpEcho::start("first"), UdpEcho::start("second"));
    let spec = json!({"type": "NodePort", "ports": [{"name": "echo", "port": 7, "protocol": "UDP"}]});
    let service = service(&kubectl, "echo", spec);
    let point_to = |echo: &UdpEcho| {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "echo-1", "labels": {"kubernetes.io/service-name": "echo"}},
            "addressType": "IPv4",
            "ports": [{"name": "echo", "port": echo.address.port(), "protocol": "UDP"}],
            "endpoints": [{"addresses": [echo.address.ip()], "conditions": {"ready": true}}],
        });
        kubectl.apply(&slice.to_string());
    };
    let address = cluster_address(&service, 7);
    let port = SocketAddr::new(cluster.hosts[1].address, node_port(&service));
    // The second one takes over from the first also for who keeps asking.
    for (name, echo) in [("first", &first), ("second", &second)] {
        point_to(echo);
        for host in &cluster.hosts {
            until_contains(
                &format!("{name} answers on {}", host.name),
                LONG,
                &format!("{name}: hello"),
                || on_host(host, || udp_ask(address, "hello")),
            );
        }
        until_contains(&format!("{name} answers on the node port"), LONG, &format!("{name}: hello"), || {
            udp_ask(port, "hello")
        });
    }
    kubectl.run(&["delete", "endpointslice", "echo-1"]);
    for host in &cluster.hosts {
        until("nobody answers, and says so", LONG, || match on_host(host, || udp_ask(address, "hello")) {
            // Who sends from the node itself is told by its own kernel, before anything leaves.
            Err(error) if error.contains("refused") || error.contains("not permitted") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn what_is_no_services_traffic_is_left_alone() {
    let cluster = e2e::shared_cluster();
    // The first host is itself an endpoint, of the API server's Service.
    let host = &cluster.hosts[0];
    on_host(host, || {
        let listener = TcpListener::bind((host.address, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_, seen) = listener.accept().unwrap();
        assert_eq!(seen, client.local_addr().unwrap());
    });
    // And over the Service it still reaches itself.
    until("the API server answers on its Service's address", LONG, || {
        on_host(host, || TcpStream::connect(("10.96.0.1", 443)).map_err(|error| error.to_string()))
    });
}

#[test]
fn affinity_keeps_a_client_at_one_pod() {
    let cluster = e2e::shared_cluster();
    let kubectl = Kubectl::shared("affinity");
    web(&kubectl, 3);
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let spread = service(&kubectl, "spread", json!({"selector": {"app": "web"}, "ports": ports}));
    let sticky = service(
        &kubectl,
        "sticky",
        json!({"selector": {"app": "web"}, "ports": ports, "sessionAffinity": "ClientIP"}),
    );
    assert_eq!(sticky["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
    let host = &cluster.hosts[0];
    let ask = |service: &Value| {
        let address = cluster_address(service, 80);
        until_contains("the Service answers", LONG, "web-", || on_host(host, || http_get(address)))
    };
    let names = pod_names(&kubectl);
    let mut seen = BTreeSet::new();
    until("all pods are seen without affinity", LONG, || {
        seen.insert(ask(&spread).trim().to_owned());
        if seen == names { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    let first = ask(&sticky);
    // Were it left to chance, thirty would agree once in 3^29 runs.
    for _ in 0..30 {
        assert_eq!(ask(&sticky), first);
    }
    // The pod goes: its clients go to another one, and stay there.
    kubectl.run(&["delete", "pod", first.trim(), "--timeout=30s"]);
    let address = cluster_address(&sticky, 80);
    let next = until("another pod takes over", LONG, || {
        let name = on_host(host, || http_get(address))?;
        if name == first { Err(name) } else { Ok(name) }
    });
    for _ in 0..10 {
        assert_eq!(ask(&sticky), next);
    }
}

#[test]
fn names_of_services_and_pods() {
    let kubectl = Kubectl::shared("names");
    let namespace = kubectl.namespace.clone();
    web(&kubectl, 2);
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let plain = service(&kubectl, "plain", json!({"selector": {"app": "web"}, "ports": ports}));
    let ports = json!([{"name": "http", "port": 8080}]);
    service(&kubectl, "headless", json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}));
    service(&kubectl, "elsewhere", json!({"type": "ExternalName", "externalName": "plain.example.org"}));
    let mut named = e2e::pods::pod("named", "sleep 3600");
    named["metadata"]["labels"] = json!({"app": "web"});
    named["spec"]["hostname"] = json!("box");
    named["spec"]["subdomain"] = json!("headless");
    kubectl.apply(&named.to_string());
    e2e::pods::ready(&kubectl, "named");
    sleeper(&kubectl, "client", None);

    let lookup = |kind: &str, name: &str| {
        shell(&kubectl, "client", &format!("nslookup -type={kind} {name} 2>&1 || true"))
    };
    let check = |kind: &str, name: &str, expected: &str| {
        until_contains(&format!("{kind} of {name}"), LONG, expected, || lookup(kind, name));
    };
    let zone = format!("{namespace}.svc.cluster.local");
    let address = plain["spec"]["clusterIP"].as_str().unwrap();
    check("a", &format!("plain.{zone}"), &format!("Address: {address}"));
    let reversed: Vec<&str> = address.rsplit('.').collect();
    check("ptr", &format!("{}.in-addr.arpa", reversed.join(".")), &format!("name = plain.{zone}"));
    let srv = until_contains("the SRV record", LONG, &format!("plain.{zone}"), || {
        lookup("srv", &format!("_http._tcp.plain.{zone}"))
    });
    // Priority, weight, port, target: upstream's CoreDNS shares the weight of 100 among the targets.
    assert!(srv.contains(&format!("0 100 80 plain.{zone}")), "{srv}");

    let pods = kubectl.run(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"]);
    for pod in pods.split_whitespace() {
        check("a", &format!("headless.{zone}"), &format!("Address: {pod}"));
    }
    let box_address = kubectl.run(&["get", "pod", "named", "-o", "jsonpath={.status.podIP}"]);
    check("a", &format!("box.headless.{zone}"), &format!("Address: {box_address}"));
    check("srv", &format!("_http._tcp.headless.{zone}"), &format!("8080 box.headless.{zone}"));
    check("cname", &format!("elsewhere.{zone}"), "plain.example.org");
    check("a", &format!("nobody.{zone}"), "NXDOMAIN");

    // The short forms that people use, by the pod's search list.
    let resolv = shell(&kubectl, "client", "cat /etc/resolv.conf").unwrap();
    assert!(resolv.contains(&format!("search {zone} svc.cluster.local cluster.local")), "{resolv}");
    assert!(resolv.contains("nameserver 10.96.0.10") && resolv.contains("options ndots:5"), "{resolv}");
    for name in ["plain".to_owned(), format!("plain.{namespace}"), format!("plain.{namespace}.svc")] {
        until_contains(&format!("{name} answers"), LONG, "web-", || {
            shell(&kubectl, "client", &format!("timeout 3 wget -q -O - http://{name}/"))
        });
    }
}

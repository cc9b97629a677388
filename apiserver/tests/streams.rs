//! Logs and tunnels through the real binary to a kubelet that the test plays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod harness;

use std::sync::Arc;

use harness::{Cluster, User};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use keelson_component_base::tls::{ClientAuth, ServerTls};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::mpsc,
};

/// Answers `/containerLogs` with a line, and upgrades SPDY to an echo; WebSocket is refused. Sends each request line
/// to the test.
async fn kubelet(cluster: &Cluster) -> (u16, mpsc::UnboundedReceiver<String>) {
    let tls = ServerTls {
        cert_file: cluster.path("server.crt"),
        key_file: cluster.path("server.key"),
        client_ca_file: Some(cluster.path("ca.crt")),
        client_auth: ClientAuth::Required,
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.server_config(&[b"http/1.1"]).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, sender) = (Arc::new(acceptor.clone()), sender.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(acceptor.accept(tcp).await.unwrap());
                let (mut first, mut spdy) = (String::new(), false);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    let line = line.trim_end();
                    if line.is_empty() {
                        break;
                    }
                    assert!(!line.to_ascii_lowercase().starts_with("authorization"), "{line}");
                    spdy |= line.eq_ignore_ascii_case("upgrade: SPDY/3.1");
                    if first.is_empty() {
                        first = line.to_string();
                    }
                }
                sender.send(first.clone()).unwrap();
                if spdy {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
                    stream.write_all(head.as_bytes()).await.unwrap();
                    let mut word = [0; 4];
                    stream.read_exact(&mut word).await.unwrap();
                    stream.write_all(&word).await.unwrap();
                } else if first.contains("/containerLogs/") && !first.contains("previous") {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nline\n").await.unwrap();
                } else {
                    stream
                        .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")
                        .await
                        .unwrap();
                }
                stream.shutdown().await.unwrap();
            });
        }
    });
    (port, receiver)
}

async fn pod_on_a_node(cluster: &Cluster, port: u16) {
    cluster
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await;
    cluster.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    cluster.patch("/api/v1/nodes/n/status", "application/merge-patch+json", &status.to_string()).await.ok();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster.post("/api/v1/namespaces/default/pods", &pod).await.ok();
    assert_eq!(cluster.get("/api/v1/namespaces/default/pods/p/log").await.bytes.len(), 0);
    let unbound = cluster.get("/api/v1/namespaces/default/pods/p/exec?command=ls&stdout=1").await;
    assert_eq!((unbound.code, unbound.message().as_str()), (400, "pod p does not have a host assigned"));
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    cluster.post("/api/v1/namespaces/default/pods/p/binding", &binding).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_tunnels_reach_the_kubelet() {
    let cluster = Cluster::start().await;
    let (port, mut seen) = kubelet(&cluster).await;
    pod_on_a_node(&cluster, port).await;
    let pod = "/api/v1/namespaces/default/pods/p";

    let log = cluster.get(&format!("{pod}/log?tailLines=3&follow=true")).await;
    assert_eq!((log.code, &log.bytes[..]), (200, &b"line\n"[..]));
    assert_eq!(seen.recv().await.unwrap(), "GET /containerLogs/default/p/c?follow=true&tailLines=3 HTTP/1.1");
    let bad = cluster.get(&format!("{pod}/log?container=x")).await;
    assert_eq!((bad.code, bad.message().as_str()), (400, "container x is not valid for pod p"));
    let none = cluster.get(&format!("{pod}/log?previous=true")).await;
    assert_eq!(
        (none.code, &none.json()["reason"], none.message().as_str()),
        (400, &json!("BadRequest"), "no")
    );
    seen.recv().await.unwrap();
    let plain = cluster.get(&format!("{pod}/exec?command=ls&stdout=1")).await;
    assert_eq!((plain.code, plain.message().as_str()), (400, "Upgrade request required"));

    // WebSocket first, as kubectl does: the kubelet's refusal comes back as it is.
    let exec = format!("{pod}/exec?command=ls&command=-l&stdout=1&stderr=1");
    let upgrade = |protocol: &'static str| [("connection", "Upgrade"), ("upgrade", protocol)];
    let refused = cluster.send(User::Admin, "GET", &exec, &upgrade("websocket"), "").await;
    assert_eq!((refused.code, &refused.bytes[..]), (400, &b"no"[..]));
    seen.recv().await.unwrap();

    let response =
        cluster.stream(0, User::Admin, (http::Method::POST, &exec), &upgrade("SPDY/3.1"), "").await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    assert_eq!(
        seen.recv().await.unwrap(),
        "POST /exec/default/p/c?output=1&error=1&command=ls&command=-l HTTP/1.1"
    );
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    tunnel.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    tunnel.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"ping");

    let bare = cluster.get("/api/v1/nodes/n/proxy?x=1").await;
    assert_eq!((bare.code, bare.headers["location"].to_str().unwrap()), (301, "/api/v1/nodes/n/proxy/?x=1"));
    let proxied = cluster
        .stream(0, User::Admin, (http::Method::GET, "/api/v1/nodes/n/proxy/containerLogs/x?y=%20z"), &[], "")
        .await
        .unwrap();
    assert_eq!(proxied.into_body().collect().await.unwrap().to_bytes(), "line\n");
    assert_eq!(seen.recv().await.unwrap(), "GET /containerLogs/x?y=%20z HTTP/1.1");
}

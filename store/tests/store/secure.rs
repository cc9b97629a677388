//! TLS with client certificates for clients and peers, and what is served over plain HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::{self, Client, Member, eventually};
use crate::operate::tool;
use keelson_proto::etcd::etcdserverpb::MemberAddRequest;
use keelson_proto::peer::MembersRequest;
use keelson_proto::peer::peer_client::PeerClient;

/// A CA and one certificate that is good for everything, as PEM files in a directory.
fn certificates(directory: &Path) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    std::fs::write(directory.join("ca.crt"), ca.pem()).unwrap();
    std::fs::write(directory.join("leaf.crt"), leaf.pem()).unwrap();
    std::fs::write(directory.join("leaf.key"), key.serialize_pem()).unwrap();
}

/// All that says who may speak: a CA, and that certificates are asked for.
fn flags(directory: &Path, plain_port: u16) -> Vec<String> {
    let mut flags = flags_without_auth(directory, plain_port);
    flags.extend(["--client-cert-auth".to_owned(), "--peer-client-cert-auth".to_owned()]);
    flags
}

fn flags_without_auth(directory: &Path, plain_port: u16) -> Vec<String> {
    let file = |name: &str| directory.join(name).display().to_string();
    let mut flags = vec![format!("--listen-metrics-urls=http://127.0.0.1:{plain_port}")];
    for prefix in ["", "peer-"] {
        flags.push(format!("--{prefix}cert-file={}", file("leaf.crt")));
        flags.push(format!("--{prefix}key-file={}", file("leaf.key")));
        flags.push(format!("--{prefix}trusted-ca-file={}", file("ca.crt")));
    }
    flags
}

fn client(member: &Member, directory: &Path, with_identity: bool) -> Client {
    Client::new(channel(member.client_port, directory, with_identity))
}

fn channel(port: u16, directory: &Path, with_identity: bool) -> Channel {
    let pem = |name: &str| std::fs::read(directory.join(name)).unwrap();
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem("ca.crt")));
    if with_identity {
        tls = tls.identity(Identity::from_pem(pem("leaf.crt"), pem("leaf.key")));
    }
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).unwrap();
    endpoint.tls_config(tls).unwrap().connect_lazy()
}

pub fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_with_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let mut members = harness::secure_members(3);
    let mut plain = Vec::new();
    for member in &mut members {
        plain.push(harness::free_port());
        member.extra = flags(directory.path(), plain[plain.len() - 1]);
        member.start();
    }
    let first = client(&members[0], directory.path(), true);
    eventually("they have a leader", || async { first.put("k", "v").await.ok() }).await;
    for member in &members[1..] {
        let client = client(member, directory.path(), true);
        let read = || async { client.get("k").await.ok().flatten() };
        assert_eq!(eventually("it serves", read).await, b"v");
    }
    let stranger = client(&members[0], directory.path(), false);
    assert!(stranger.get("k").await.is_err(), "without a certificate nothing is told");
    let health = get(plain[0], "/health");
    assert!(health.contains(r#"{"health":"true","reason":""}"#), "{health}");
    let metrics = get(plain[0], "/metrics");
    for name in [
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_disk_backend_commit_duration_seconds_bucket",
        "etcd_server_has_leader 1",
        "etcd_server_leader_changes_seen_total 1",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_failed_total 0",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_put_total 1",
        "etcd_debugging_mvcc_keys_total 1",
        "process_resident_memory_bytes",
        "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 1\n",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_network_peer_sent_bytes_total{To=",
        "etcd_network_peer_received_bytes_total{From=",
        "etcd_network_peer_round_trip_time_seconds_bucket",
        "etcd_network_active_peers{Local=",
        "etcd_server_id{server_id=",
        "etcd_server_slow_apply_total 0",
        "etcd_server_read_indexes_failed_total",
        "etcd_debugging_mvcc_slow_watcher_total 0",
        "etcd_cluster_version{cluster_version=\"3.5\"} 1",
    ] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    assert!(get(plain[0], "/nothing").starts_with("HTTP/1.1 404"));

    let file = |name: &str| directory.path().join(name).display().to_string();
    let (endpoint, cacert) = (format!("--endpoints=127.0.0.1:{}", members[0].client_port), file("ca.crt"));
    let (target, cacert) = (file("saved.db"), format!("--cacert={cacert}"));
    let save = ["snapshot", "save", &target, &endpoint, &cacert];
    let (code, said) = tool(&save);
    assert_eq!(code, 1, "without a certificate nothing is told: {said}");
    assert!(said.contains("a client certificate is required"), "{said}");
    assert!(members[0].log().contains("rejected connection from 127.0.0.1:"), "{}", members[0].log());
    assert!(!std::path::Path::new(&target).exists());
    let identity = [format!("--cert={}", file("leaf.crt")), format!("--key={}", file("leaf.key"))];
    let (code, said) = tool(&[&save[..], &[&identity[0], &identity[1]]].concat());
    assert_eq!(code, 0, "{said}");
    let (code, said) = tool(&["snapshot", "status", &target]);
    assert_eq!(code, 0, "{said}");
}

/// A trusted CA says enough, for clients and for peers: `--client-cert-auth` need not be given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_ca_alone_asks_for_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let mut member = harness::secure_members(1).remove(0);
    member.extra = flags_without_auth(directory.path(), harness::free_port());
    member.start();
    let known = client(&member, directory.path(), true);
    eventually("it serves", || async { known.put("k", "v").await.ok() }).await;
    let stranger = client(&member, directory.path(), false);
    assert!(stranger.get("k").await.is_err(), "without a certificate clients are told nothing");
    let ask = async |with_identity: bool| {
        let channel = channel(member.peer_port, directory.path(), with_identity);
        PeerClient::new(channel).members(MembersRequest {}).await
    };
    assert!(ask(true).await.is_ok());
    assert!(ask(false).await.is_err(), "without a certificate peers are told nothing");
}

/// It asks who the members are with its own certificate, and is not heard without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_with_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let mut first = harness::secure_members(1).remove(0);
    first.extra = flags(directory.path(), harness::free_port());
    first.start();
    let client_of_first = client(&first, directory.path(), true);
    eventually("it leads", || async { client_of_first.put("k", "v").await.ok() }).await;
    let mut second = harness::secure_newcomer("second");
    let add = MemberAddRequest { peer_urls: vec![second.peer_url()], is_learner: false };
    client_of_first.cluster.clone().member_add(add).await.unwrap();
    second.cluster = format!("m0={},second={}", first.peer_url(), second.peer_url());

    let mut right = flags(directory.path(), harness::free_port());
    right.push("--initial-cluster-state=existing".to_owned());
    let wrong = right.iter().filter(|flag| !flag.starts_with("--peer-")).cloned();
    let own = |name: &str| directory.path().join(name).display().to_string();
    second.extra = wrong
        .chain([
            format!("--peer-cert-file={}", own("leaf.crt")),
            format!("--peer-key-file={}", own("leaf.key")),
        ])
        .collect();
    second.start();
    assert!(!second.ended().success());
    assert!(second.log().contains("cannot fetch cluster info from peer urls"), "{}", second.log());
    assert!(second.log().contains("--peer-trusted-ca-file is not given"), "{}", second.log());

    second.extra = right;
    second.start();
    let client_of_second = client(&second, directory.path(), true);
    let read = || async { client_of_second.get("k").await.ok().flatten() };
    assert_eq!(eventually("it serves", read).await, b"v");
}

/// A certificate of another CA: both sides say so, and that the peer is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_certificate_is_not_trusted_is_named() {
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path());
    certificates(wrong.path());
    let mut members = harness::secure_members(3);
    for (at, member) in members.iter_mut().enumerate() {
        let own = if at == 2 { wrong.path() } else { right.path() };
        member.extra = flags(own, harness::free_port());
        member.start();
    }
    let first = client(&members[0], right.path(), true);
    eventually("two have a leader", || async { first.put("k", "v").await.ok() }).await;
    let url = members[2].peer_url();
    let says = |member: &Member, what: &[&str]| {
        member.log().lines().any(|line| what.iter().all(|what| line.contains(what)))
    };
    eventually("it is said", || async {
        let lost = ["lost a peer", url.as_str(), "invalid peer certificate"];
        let rejected = ["rejected connection from 127.0.0.1:"];
        let said = says(&members[0], &lost) || says(&members[1], &lost);
        (said && says(&members[2], &rejected)).then_some(())
    })
    .await;
    members[2].kill();
    members[2].extra = flags(right.path(), harness::free_port());
    members[2].start();
    eventually("it is back", || async {
        let back = ["reached a peer again", url.as_str()];
        (says(&members[0], &back) || says(&members[1], &back)).then_some(())
    })
    .await;
}

//! A store and API servers of one test: real processes on free ports in a directory of their own, gone when dropped,
//! and a client that speaks to them as different users.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(30);

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One API server.
pub struct Api {
    process: Process,
    pub address: SocketAddr,
}

/// A store and one API server or more.
pub struct Cluster {
    pub apis: Vec<Api>,
    _store: Process,
    store: String,
    pub directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// Who asks.
#[derive(Clone, Copy)]
pub enum User {
    Admin,
    /// No group that any policy names.
    Jane,
    /// With a certificate of an authority that the server does not know.
    Stranger,
    Nobody,
}

/// An answer whose body has been read.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(self.code < 300, "{} {}", self.code, String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_string()
    }
}

fn kube_store() -> Option<PathBuf> {
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-apiserver")).with_file_name("kube-store");
    std::env::var_os("KEELSON_TEST_ETCD").map(PathBuf::from).or_else(|| binary.exists().then_some(binary))
}

fn start_store(directory: &Path) -> (Process, String) {
    let (client, peer) = (free_address(), free_address());
    let program = kube_store().unwrap_or_else(|| PathBuf::from("/usr/bin/etcd"));
    let child = Command::new(program)
        .arg("--data-dir")
        .arg(directory.join("store"))
        .args(["--listen-client-urls", &format!("http://{client}")])
        .args(["--advertise-client-urls", &format!("http://{client}")])
        .args(["--listen-peer-urls", &format!("http://{peer}")])
        .args(["--initial-advertise-peer-urls", &format!("http://{peer}")])
        .args(["--initial-cluster", &format!("default=http://{peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the store starts (Debian's etcd-server, or KEELSON_TEST_ETCD)");
    (Process(child), format!("http://{client}"))
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(flags: &[&str]) -> Self {
        keelson_component_base::tls::install_provider();
        let directory = tempfile::Builder::new().prefix("kube-apiserver-").tempdir().unwrap();
        let (store_process, store) = start_store(directory.path());
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "test-ca");
        std::fs::write(directory.path().join("ca.crt"), ca.self_signed(&key).unwrap().pem()).unwrap();
        let mut cluster = Cluster {
            apis: Vec::new(),
            _store: store_process,
            store,
            directory,
            issuer: Issuer::new(ca, key),
        };
        cluster.certificate("server", "kube-apiserver", &[]);
        cluster.certificate("admin", "kubernetes-admin", &["system:masters"]);
        cluster.certificate("jane", "jane", &["dev"]);
        let stranger = rcgen::generate_simple_self_signed(["admin".to_string()]).unwrap();
        std::fs::write(cluster.path("stranger.crt"), stranger.cert.pem()).unwrap();
        std::fs::write(cluster.path("stranger.key"), stranger.signing_key.serialize_pem()).unwrap();
        let account = KeyPair::generate().unwrap();
        std::fs::write(cluster.path("sa.key"), account.serialize_pem()).unwrap();
        std::fs::write(cluster.path("sa.pub"), account.public_key_pem()).unwrap();
        cluster.add_api(flags).await;
        cluster
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Writes `<file>.crt` and `<file>.key`.
    fn certificate(&self, file: &str, name: &str, groups: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_string(), "127.0.0.1".to_string()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{file}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    /// Starts one more API server on the same store and waits until it is ready.
    pub async fn add_api(&mut self, flags: &[&str]) {
        let address = free_address();
        let log = std::fs::File::create(self.path(&format!("api-{}.log", address.port()))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-apiserver"));
        command
            .args(["--etcd-servers", &self.store, "--bind-address", "127.0.0.1"])
            .args(["--secure-port", &address.port().to_string()])
            .args(["--service-account-issuer", "https://test", "--service-cluster-ip-range", "10.96.0.0/24"])
            .args(["--authorization-mode", "Node,RBAC", "--service-node-port-range", "30000-30063"])
            .args(["--kubelet-preferred-address-types", "InternalIP"]);
        if !flags.contains(&"--advertise-address") {
            command.args(["--advertise-address", "10.99.0.1"]);
        }
        for (flag, file) in [
            ("--tls-cert-file", "server.crt"),
            ("--tls-private-key-file", "server.key"),
            ("--client-ca-file", "ca.crt"),
            ("--service-account-key-file", "sa.pub"),
            ("--service-account-signing-key-file", "sa.key"),
            ("--kubelet-client-certificate", "admin.crt"),
            ("--kubelet-client-key", "admin.key"),
        ] {
            command.arg(flag).arg(self.path(file));
        }
        let child = command.args(flags).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.apis.push(Api { process: Process(child), address });
        let index = self.apis.len() - 1;
        let begun = Instant::now();
        loop {
            // A refused connection is a server that has not bound its port yet.
            if let Some(answer) = self.try_send(index, User::Admin, (Method::GET, "/readyz"), &[], "").await
                && answer.code == 200
            {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the API server did not become ready; its log is in {:?}",
                self.directory.path()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self, index: usize) -> std::process::ExitStatus {
        let mut api = self.apis.remove(index);
        let id = api.process.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        api.process.0.wait().unwrap()
    }

    pub async fn connect(&self, index: usize, user: User) -> Option<http1::SendRequest<Full<Bytes>>> {
        let tls = self.tls(index, user, &[]).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Some(sender)
    }

    /// A TLS connection that offers these protocols.
    pub async fn tls(&self, index: usize, user: User, alpn: &[&[u8]]) -> Option<TlsStream<TcpStream>> {
        let read = |file: &str| std::fs::read(self.path(file)).unwrap();
        let identity = match user {
            User::Admin => Some((read("admin.crt"), read("admin.key"))),
            User::Jane => Some((read("jane.crt"), read("jane.key"))),
            User::Stranger => Some((read("stranger.crt"), read("stranger.key"))),
            User::Nobody => None,
        };
        let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
        let mut config = keelson_component_base::tls::client_config(&read("ca.crt"), identity).unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let tcp = TcpStream::connect(self.apis[index].address).await.ok()?;
        let name = ServerName::try_from("localhost").unwrap();
        Some(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
    }

    async fn try_send(
        &self,
        index: usize,
        user: User,
        (method, path): (Method, &str),
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Answer> {
        let response = self.stream(index, user, (method, path), headers, body).await?;
        let (parts, incoming) = response.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, incoming.collect()).await.unwrap().unwrap().to_bytes();
        Some(Answer { code: parts.status.as_u16(), headers: parts.headers, bytes })
    }

    /// A response whose body is still coming.
    pub async fn stream(
        &self,
        index: usize,
        user: User,
        (method, path): (Method, &str),
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Response<Incoming>> {
        let mut sender = self.connect(index, user).await?;
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        Some(tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap())
    }

    pub async fn send(
        &self,
        user: User,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.try_send(0, user, (method.parse().unwrap(), path), headers, body)
            .await
            .expect("the server is there")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(User::Admin, "GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(User::Admin, "POST", path, &[], &body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(User::Admin, "PUT", path, &[], &body.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &str) -> Answer {
        self.send(User::Admin, "PATCH", path, &[("content-type", kind)], body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(User::Admin, "DELETE", path, &[], "").await
    }
}

/// The events of a watch, as they come.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    pub async fn open(cluster: &Cluster, path: &str) -> Self {
        Self::open_with(cluster, path, &[]).await
    }

    pub async fn open_with(cluster: &Cluster, path: &str, headers: &[(&str, &str)]) -> Self {
        let response = cluster
            .stream(0, User::Admin, (Method::GET, path), headers, "")
            .await
            .expect("the server is there");
        assert_eq!(response.status(), 200, "{path}");
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    /// None: the stream is over.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event in time")?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// `(type, name)` of the next event.
    pub async fn named(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

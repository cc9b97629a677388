//! A store process of one test: on free ports, in a directory of its own, gone when dropped.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::kv_client::KvClient;
use keelson_proto::etcd::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use tonic::transport::Channel;

/// Names the binary to test against.
pub const BINARY: &str = "KEELSON_TEST_ETCD";

pub struct Server {
    process: Child,
    directory: tempfile::TempDir,
    client: SocketAddr,
    /// Where clients reach it now.
    listening: SocketAddr,
    scheme: &'static str,
}

/// Where stores listen. Connections on the loopback interface come from ports of 127.0.0.1, so that none of them can
/// take the port of a store that is about to be started again.
pub const HOST: &str = "127.0.0.2";

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap()
}

impl Server {
    pub async fn start() -> Self {
        let server = Self::spawn(None);
        server.wait().await;
        server
    }

    /// With `ca.crt`, `server.crt` and `server.key` of a directory, for clients of the same authority.
    pub async fn start_with_tls(certificates: &Path) -> Self {
        Self::spawn(Some(certificates))
    }

    fn spawn(certificates: Option<&Path>) -> Self {
        let directory = tempfile::Builder::new().prefix("keelson-storage-").tempdir().unwrap();
        let client = free_address();
        let process = spawn(&directory, client, certificates);
        let scheme = if certificates.is_some() { "https" } else { "http" };
        Self { process, directory, client, listening: client, scheme }
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.client)
    }

    pub async fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// The same data at the same address.
    pub async fn restart(&mut self) {
        self.listening = self.client;
        self.process = spawn(&self.directory, self.client, None);
        self.wait().await;
    }

    /// The same data at an address that the storage does not know.
    pub async fn restart_elsewhere(&mut self) {
        self.listening = free_address();
        self.process = spawn(&self.directory, self.listening, None);
        self.wait().await;
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(Channel::from_shared(format!("http://{}", self.listening)).unwrap().connect_lazy())
    }

    async fn wait(&self) {
        for _ in 0..2000 {
            let request = RangeRequest { key: Bytes::from_static(b"x"), ..Default::default() };
            if self.kv().range(request).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        panic!("the store did not start:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }

    pub async fn compact(&self, revision: u64) {
        let request = CompactionRequest { revision: revision as i64, physical: true };
        self.kv().compact(request).await.unwrap();
    }

    pub async fn put(&self, key: &'static str, value: &'static str) -> u64 {
        let request = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
        self.kv().put(request).await.unwrap().into_inner().header.unwrap().revision as u64
    }

    pub async fn delete(&self, key: &'static str) {
        let request = DeleteRangeRequest { key: key.into(), ..Default::default() };
        self.kv().delete_range(request).await.unwrap();
    }
}

fn spawn(directory: &tempfile::TempDir, client: SocketAddr, certificates: Option<&Path>) -> Child {
    let binary = std::env::var(BINARY).unwrap_or_else(|_| "/usr/bin/etcd".into());
    let peer = free_address();
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.path().join("log"))
        .expect("a log file in the test's own directory");
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let mut command = Command::new(&binary);
    command
        .args(["--name", "test", "--data-dir"])
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", &format!("{scheme}://{client}")])
        .args(["--advertise-client-urls", &format!("{scheme}://{client}")])
        .args(["--listen-peer-urls", &format!("http://{peer}")])
        // Fixed, because a member's identity is derived from it.
        .args(["--initial-advertise-peer-urls", "http://127.0.0.1:1"])
        .args(["--initial-cluster", "test=http://127.0.0.1:1"])
        .stdout(Stdio::null())
        .stderr(log);
    if let Some(certificates) = certificates {
        command.arg("--client-cert-auth");
        for (flag, file) in
            [("--trusted-ca-file", "ca.crt"), ("--cert-file", "server.crt"), ("--key-file", "server.key")]
        {
            command.arg(flag).arg(certificates.join(file));
        }
    }
    command.spawn().unwrap_or_else(|error| panic!("{binary}: {error}"))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

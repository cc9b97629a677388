//! A real etcd to compare with: Debian's 3.4, or the one that `PEER_ETCD` names.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tonic::transport::Endpoint;

use crate::harness::{Client, eventually, free_port};

/// One member with nothing in it.
pub struct Etcd {
    child: Child,
    pub port: u16,
    directory: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program to compare with.
pub fn program() -> String {
    std::env::var("PEER_ETCD").unwrap_or_else(|_| "etcd".to_owned())
}

impl Etcd {
    pub async fn start(flags: &[String]) -> Self {
        let directory = tempfile::Builder::new().prefix("kube-store-test-").tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let url = |port| format!("http://127.0.0.1:{port}");
        let child = Command::new(program())
            .arg("--name=m0")
            .arg(format!("--data-dir={}", directory.path().display()))
            .arg(format!("--listen-client-urls={}", url(port)))
            .arg(format!("--advertise-client-urls={}", url(port)))
            .arg(format!("--listen-peer-urls={}", url(peer)))
            .arg(format!("--initial-advertise-peer-urls={}", url(peer)))
            .arg(format!("--initial-cluster=m0={}", url(peer)))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let etcd = Self { child, port, directory };
        let client = etcd.client();
        eventually("etcd is ready", || async { client.get("x").await.ok() }).await;
        etcd
    }

    pub fn data(&self) -> &Path {
        self.directory.path()
    }

    pub fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port));
        Client::new(endpoint.unwrap().connect_lazy())
    }
}

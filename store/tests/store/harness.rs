//! Starts, kills and asks real members.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::{PutRequest, PutResponse, RangeRequest};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Endpoint;

pub use crate::client::Client;

/// Nothing here takes that long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that nobody has, and that nobody is given before a member takes it: it is below those that the system gives to
/// connections, and each process begins at another one.
pub fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 17_000;
    const APART: u32 = 97;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(APART);
    loop {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(given < COUNT, "no port is free");
        let port = (FIRST + begin.wrapping_add(given) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub struct Member {
    pub directory: TempDir,
    pub name: String,
    scheme: &'static str,
    pub client_port: u16,
    pub peer_port: u16,
    /// `--initial-cluster`.
    pub cluster: String,
    child: Option<Child>,
    pub extra: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(&'static str, String)>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

/// Members of a group that are not started yet.
pub fn members(count: usize) -> Vec<Member> {
    members_with(count, "http")
}

/// As [`members`], with https URLs: certificates are for the caller to give.
pub fn secure_members(count: usize) -> Vec<Member> {
    members_with(count, "https")
}

fn members_with(count: usize, scheme: &'static str) -> Vec<Member> {
    let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
    let cluster: Vec<String> =
        ports.iter().enumerate().map(|(i, (_, peer))| format!("m{i}={scheme}://127.0.0.1:{peer}")).collect();
    ports
        .into_iter()
        .enumerate()
        .map(|(i, ports)| member(format!("m{i}"), scheme, ports, cluster.join(",")))
        .collect()
}

fn member(name: String, scheme: &'static str, ports: (u16, u16), cluster: String) -> Member {
    Member {
        directory: tempfile::Builder::new().prefix("kube-store-test-").tempdir().unwrap(),
        name,
        scheme,
        client_port: ports.0,
        peer_port: ports.1,
        cluster,
        child: None,
        extra: Vec::new(),
        environment: Vec::new(),
    }
}

/// A member that is not started yet, and is to join a cluster.
pub fn newcomer(name: &str) -> Member {
    newcomer_with(name, "http")
}

/// As [`newcomer`], with https URLs: certificates are for the caller to give.
pub fn secure_newcomer(name: &str) -> Member {
    newcomer_with(name, "https")
}

fn newcomer_with(name: &str, scheme: &'static str) -> Member {
    let mut newcomer = member(name.to_owned(), scheme, (free_port(), free_port()), String::new());
    newcomer.extra = vec!["--initial-cluster-state=existing".to_owned()];
    newcomer
}

/// One member that is up.
pub async fn single() -> Member {
    let mut member = members(1).remove(0);
    member.start();
    member.ready().await;
    member
}

/// A group that has a leader.
pub async fn group(count: usize) -> Vec<Member> {
    let mut members = members(count);
    for member in &mut members {
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    members
}

impl Member {
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn peer_url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.peer_port)
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn start(&mut self) {
        self.start_with("");
    }

    /// With failpoints, in the `fail` crate's syntax.
    pub fn start_with(&mut self, failpoints: &str) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let url = |port| format!("{}://127.0.0.1:{port}", self.scheme);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-store"));
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.data().display()))
            .arg(format!("--listen-client-urls={}", url(self.client_port)))
            .arg(format!("--advertise-client-urls={}", url(self.client_port)))
            .arg(format!("--listen-peer-urls={}", url(self.peer_port)))
            .arg(format!("--initial-advertise-peer-urls={}", url(self.peer_port)))
            .arg(format!("--initial-cluster={}", self.cluster))
            .args(&self.extra)
            .env("FAILPOINTS", failpoints)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// kill -9, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; it has to end by itself.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(nix::sys::signal::SIGTERM);
        self.ended()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.as_ref().unwrap().id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
    }

    /// Whether it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Waits until it answers linearizable reads, or has ended; then false.
    pub async fn ready_or_ended(&mut self) -> bool {
        let client = self.client();
        let begun = Instant::now();
        loop {
            if !self.runs() {
                self.kill();
                return false;
            }
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), client.get("x")).await {
                return true;
            }
            assert!(begun.elapsed() < PATIENCE, "it neither serves nor ends");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn client(&self) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.client_port)).unwrap();
        Client::new(endpoint.connect_lazy())
    }

    /// Waits until it answers linearizable reads.
    pub async fn ready(&self) {
        let client = self.client();
        eventually("it is ready", || async { client.get("x").await.ok() }).await;
    }

    /// The flags that say who it is, for `snapshot restore` as well.
    pub fn identity(&self) -> Vec<String> {
        let peer = format!("{}://127.0.0.1:{}", self.scheme, self.peer_port);
        vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data().display()),
            format!("--initial-cluster={}", self.cluster),
            format!("--initial-advertise-peer-urls={peer}"),
        ]
    }

    pub fn wal(&self) -> PathBuf {
        self.data().join("member/wal")
    }

    pub fn trees(&self) -> PathBuf {
        self.data().join("member/tree")
    }

    /// Those of what was written: not the one with which the cluster begins.
    pub fn snapshots(&self) -> usize {
        let manifests = files(&self.data().join("member/snap"), ".manifest");
        manifests.iter().filter(|path| !path.ends_with("0000000000000001.manifest")).count()
    }
}

/// The place of the member that leads, as all that answer agree.
pub async fn leader(members: &[Member]) -> usize {
    eventually("there is one leader", || async {
        let mut leaders = BTreeSet::new();
        let mut place = None;
        for (at, member) in members.iter().enumerate() {
            if let Ok(status) = member.client().status().await {
                leaders.insert(status.leader);
                if status.header.unwrap().member_id == status.leader {
                    place = Some(at);
                }
            }
        }
        place.filter(|_| leaders.len() == 1)
    })
    .await
}

pub fn files(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).map(|entries| entries.map(|entry| entry.unwrap().path()));
    let mut found: Vec<_> =
        entries.into_iter().flatten().filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
    found.sort();
    found
}

/// Asks again and again until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(10), ask()).await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Client {
    pub async fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<PutResponse, Status> {
        let value: Vec<u8> = value.into();
        let request = PutRequest { key: key.to_owned().into(), value: value.into(), ..PutRequest::default() };
        Ok(self.kv.clone().put(request).await?.into_inner())
    }

    /// All keys with a prefix.
    pub async fn all(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>, Status> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let request =
            RangeRequest { key: prefix.to_owned().into(), range_end: end.into(), ..RangeRequest::default() };
        let response = self.range(request).await?;
        let pair = |kv: keelson_proto::etcd::mvccpb::KeyValue| {
            (String::from_utf8(kv.key.to_vec()).unwrap(), kv.value.to_vec())
        };
        Ok(response.kvs.into_iter().map(pair).collect())
    }
}

//! Store members as processes of a test's own, and clients of the etcd v3 protocol.
//!
//! kube-store takes etcd's flags, so that the same code runs either of them.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::kv_client::KvClient;
use keelson_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::etcd::etcdserverpb::{StatusRequest, StatusResponse};
use tonic::transport::{Channel, Endpoint};

/// How long a member may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A member that runs, or ran; dropping it ends it.
pub struct Member {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    process: Child,
    /// The URL for clients.
    pub url: String,
}

/// Starts a group of `count` members of `program` below `directory`, on free ports.
pub fn start(program: &Path, directory: &Path, count: usize) -> io::Result<Vec<Member>> {
    // All listeners are open together, so that no port is given twice.
    let listeners =
        (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    let urls = listeners
        .iter()
        .map(|listener| Ok(format!("http://{}", listener.local_addr()?)))
        .collect::<io::Result<Vec<_>>>()?;
    drop(listeners);
    let (clients, peers) = urls.split_at(count);
    let members: Vec<String> = peers.iter().enumerate().map(|(i, url)| format!("m{i}={url}")).collect();
    let initial_cluster = members.join(",");
    (0..count)
        .map(|index| {
            let data = directory.join(format!("m{index}"));
            let arguments = vec![
                format!("--name=m{index}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={}", clients[index]),
                format!("--advertise-client-urls={}", clients[index]),
                format!("--listen-peer-urls={}", peers[index]),
                format!("--initial-advertise-peer-urls={}", peers[index]),
                format!("--initial-cluster={initial_cluster}"),
            ];
            let log = directory.join(format!("m{index}.log"));
            let process = spawn(program, &arguments, &log)?;
            Ok(Member {
                program: program.to_owned(),
                arguments,
                log,
                data,
                process,
                url: clients[index].clone(),
            })
        })
        .collect()
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> io::Result<Child> {
    let output = File::options().create(true).append(true).open(log)?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
}

impl Member {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop)
    }

    /// Starts it anew on its data.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process = spawn(&self.program, &self.arguments, &self.log)?;
        Ok(())
    }

    /// What it wrote last, for failures.
    pub fn last_log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A connection to this member.
    pub fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        channel(&self.url)
    }

    /// Waits until it serves and knows a leader.
    pub async fn ready(&self) -> Result<StatusResponse, String> {
        let channel = self.channel().map_err(|error| error.to_string())?;
        let deadline = std::time::Instant::now() + START_TIMEOUT;
        loop {
            let last = match MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await {
                Ok(status) if status.get_ref().leader != 0 => return Ok(status.into_inner()),
                Ok(_) => "no leader".to_owned(),
                Err(status) => status.to_string(),
            };
            if std::time::Instant::now() > deadline {
                return Err(format!("{} is not ready: {last}\n{}", self.url, self.last_log()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended already; a killed process has to be collected all the same.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A connection that is made when it is first used, and made again after failures.
pub fn channel(url: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url.to_owned())?.connect_timeout(Duration::from_secs(1)).connect_lazy())
}

/// A client of keys and values that takes answers of any size.
pub fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

//! `kube-store snapshot save|restore|status`, with the flags and the output of etcdctl and etcdutl.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use keelson_component_base::flags;
use keelson_proto::etcd::etcdserverpb::SnapshotRequest;
use keelson_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::etcd::storepb::Metadata;
use tonic::transport::{self, Certificate, ClientTlsConfig, Endpoint};

use crate::config::{Config, ConfigError, InitialCluster, Url};
use crate::env::{Disk, ReadOnlyDisk, RealDisk};
use crate::join::initial_members;
use crate::membership::Members;
use crate::node::Chain;
use crate::snapshot::{Archive, SnapshotError, Snapshots, has_checksum};
use crate::transport::reason;
use crate::wal::Identity;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not an endpoint")]
    Endpoint(String),
    #[error("snapshot must be requested to one selected node, not multiple {0:?}")]
    Endpoints(Vec<String>),
    #[error("cannot read or write {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("cannot connect to {0}")]
    Connect(String, #[source] transport::Error),
    #[error("{0}: {1}")]
    Refused(String, String),
    #[error("sha256 checksum not found [bytes: {0}]")]
    NoChecksum(u64),
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    #[error("--mark-compacted required if --bump-revision > 0, and only then")]
    MarkCompacted,
    #[error("data-dir {0:?} not empty or could not be read")]
    NotEmpty(PathBuf),
    #[error("the flags name no cluster")]
    Cluster(#[from] ConfigError),
    #[error("cannot use the snapshot")]
    Snapshot(#[from] SnapshotError),
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Save a member's state to a file
    Save(Save),
    /// Make a member's data directory of a saved snapshot: the first one of a new cluster
    Restore(Restore),
    /// Look at a saved snapshot
    Status(Status),
}

impl Command {
    pub fn run(self) -> Result<(), Error> {
        match self {
            Command::Save(save) => save.run(),
            Command::Restore(restore) => restore.run(),
            Command::Status(status) => status.run(),
        }
    }
}

#[derive(Debug, Args)]
pub struct Save {
    file: PathBuf,
    /// The member to ask
    #[arg(
        long,
        alias = "endpoint",
        env = "ETCDCTL_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Verify the member's certificate with this CA bundle
    #[arg(long, env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,
    /// Identify by this certificate
    #[arg(long, env = "ETCDCTL_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "ETCDCTL_KEY", requires = "cert")]
    key: Option<PathBuf>,
    /// How long connecting may take
    #[arg(long, env = "ETCDCTL_DIAL_TIMEOUT", value_parser = flags::duration, default_value = "5s")]
    dial_timeout: Duration,
}

impl Save {
    fn run(self) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(Error::Runtime)?.block_on(self.save())
    }

    fn endpoint(&self) -> Result<(String, Endpoint), Error> {
        let [endpoint] = &self.endpoints[..] else { return Err(Error::Endpoints(self.endpoints.clone())) };
        let secure = self.cacert.is_some() || self.cert.is_some();
        let url = match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("{}://{endpoint}", if secure { "https" } else { "http" }),
        };
        let mut dial = Endpoint::from_shared(url.clone())
            .map_err(|_| Error::Endpoint(endpoint.clone()))?
            .connect_timeout(self.dial_timeout);
        if url.starts_with("https://") {
            let read = |path: &PathBuf| fs::read(path).map_err(|error| Error::File(path.clone(), error));
            let mut tls = ClientTlsConfig::new();
            if let Some(cacert) = &self.cacert {
                tls = tls.ca_certificate(Certificate::from_pem(read(cacert)?));
            }
            if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
                tls = tls.identity(transport::Identity::from_pem(read(cert)?, read(key)?));
            }
            dial = dial.tls_config(tls).map_err(|error| Error::Connect(url.clone(), error))?;
        }
        Ok((url, dial))
    }

    async fn save(self) -> Result<(), Error> {
        let (url, endpoint) = self.endpoint()?;
        let channel = endpoint.connect().await.map_err(|error| {
            let chain = Chain(&error).to_string();
            match chain.contains(CERTIFICATE_REQUIRED) {
                true => Error::Refused(url.clone(), refusal(&chain, false)),
                false => Error::Connect(url.clone(), error),
            }
        })?;
        let mut part = self.file.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let saved = async {
            let anonymous = url.starts_with("https://") && self.cert.is_none();
            let refused = |status: tonic::Status| {
                // A member's own answer has no other cause.
                let broken = std::error::Error::source(&status).is_some();
                Error::Refused(url.clone(), refusal(&reason(&status), anonymous && broken))
            };
            let mut client = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
            let mut stream = client.snapshot(SnapshotRequest {}).await.map_err(refused)?.into_inner();
            let failed = |error| Error::File(part.clone(), error);
            let mut file = create_private(&part).map_err(failed)?;
            let mut length = 0;
            while let Some(piece) = stream.message().await.map_err(refused)? {
                file.write_all(&piece.blob).map_err(failed)?;
                length += piece.blob.len() as u64;
            }
            if !has_checksum(length) {
                return Err(Error::NoChecksum(length));
            }
            file.sync_all().map_err(failed)?;
            // What the network or the disk did to it is better known now than when it is needed.
            Archive::open(&ReadOnlyDisk, &part, true)?;
            fs::rename(&part, &self.file).map_err(failed)?;
            let directory = self.file.parent().filter(|parent| !parent.as_os_str().is_empty());
            RealDisk.sync_dir(directory.unwrap_or(Path::new("."))).map_err(failed)
        };
        let saved = saved.await;
        if saved.is_err() {
            // It may not even be there.
            let _ = fs::remove_file(&part);
        }
        saved?;
        println!("Snapshot saved at {}", self.file.display());
        Ok(())
    }
}

/// TLS's alert, as it is printed.
const CERTIFICATE_REQUIRED: &str = "CertificateRequired";

/// A refusal, with what to do if the member asked for a certificate that was not sent. TLS 1.3 says so only after the
/// connection stands, and the connection's end may be noticed before; `may_lack` is whether that is what happened.
fn refusal(reason: &str, may_lack: bool) -> String {
    if reason.contains(CERTIFICATE_REQUIRED) {
        return format!("a client certificate is required: give --cert and --key ({reason})");
    }
    match may_lack {
        true => format!("{reason}. If a client certificate is required, give --cert and --key"),
        false => reason.to_owned(),
    }
}

/// It holds every secret of the cluster.
fn create_private(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Simple,
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct Status {
    file: PathBuf,
    /// How to print
    #[arg(short = 'w', long, value_enum, default_value_t = Format::Simple)]
    write_out: Format,
}

impl Status {
    fn run(self) -> Result<(), Error> {
        let failed = |error| Error::File(self.file.clone(), error);
        let length = fs::metadata(&self.file).map_err(failed)?.len();
        let archive = Archive::open(&ReadOnlyDisk, &self.file, has_checksum(length))?;
        let mut keys = 0u64;
        archive.visit(&mut |_, _| {
            keys += 1;
            Ok(())
        })?;
        let (hash, revision) = (archive.checksum().map_err(failed)?, archive.metadata().revision);
        let row = [format!("{hash:x}"), revision.to_string(), keys.to_string(), human(archive.length())];
        match self.write_out {
            Format::Simple => println!("{}", row.join(", ")),
            Format::Table => print!("{}", table(&row)),
            Format::Json => println!(
                "{}",
                serde_json::json!({
                    "hash": hash, "revision": revision, "totalKey": keys, "totalSize": archive.length()
                })
            ),
        }
        Ok(())
    }
}

/// Bytes as people read them: two digits at least, powers of 1000.
fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1000.0 || unit == "TB" {
            let whole = unit == "B" || value >= 10.0;
            return if whole { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    bytes.to_string()
}

fn table(row: &[String; 4]) -> String {
    const TITLES: [&str; 4] = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE"];
    let widths: Vec<usize> =
        row.iter().zip(TITLES).map(|(cell, title)| cell.len().max(title.len())).collect();
    let line: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
    let mut text = format!("{line}+\n");
    for (title, width) in TITLES.iter().zip(&widths) {
        text += &format!("| {title:^width$} ");
    }
    text += &format!("|\n{line}+\n");
    for (cell, width) in row.iter().zip(&widths) {
        // Numbers to the right, as etcdctl has it.
        text += &match cell.parse::<u64>() {
            Ok(_) => format!("| {cell:>width$} "),
            Err(_) => format!("| {cell:<width$} "),
        };
    }
    text + &format!("|\n{line}+\n")
}

#[derive(Debug, Args)]
pub struct Restore {
    file: PathBuf,
    /// Where to, a directory that is empty or does not exist
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Human-readable name for this member
    #[arg(long, default_value = "default")]
    name: String,
    /// All members of the new cluster
    #[arg(long)]
    initial_cluster: Option<InitialCluster>,
    /// Token of the new cluster: give another one than before, and no old member can meddle
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// This member's peer URLs
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: Vec<Url>,
    /// Do not look for a checksum at the file's end
    #[arg(long)]
    skip_hash_check: bool,
    /// How much to increase the revision, so that watchers and caches notice
    #[arg(long, default_value_t = 0)]
    bump_revision: u32,
    /// Mark everything up to the increased revision as compacted: no watch can go on from before
    #[arg(long)]
    mark_compacted: bool,
}

impl Restore {
    fn run(self) -> Result<(), Error> {
        if self.mark_compacted != (self.bump_revision > 0) {
            return Err(Error::MarkCompacted);
        }
        let config = Config {
            name: self.name,
            data_dir: self.data_dir,
            initial_cluster: self.initial_cluster,
            initial_cluster_token: self.initial_cluster_token,
            initial_advertise_peer_urls: self.initial_advertise_peer_urls,
            ..Config::default_flags()
        };
        let (member, members) = config.members()?;
        let cluster = Config::cluster_id(&members);
        let directory = config.data_directory();
        let failed = |error| Error::File(directory.clone(), error);
        let empty = RealDisk.list(&directory).is_ok_and(|names| names.is_empty());
        if !empty {
            return Err(Error::NotEmpty(directory));
        }
        let archive = Archive::open(&ReadOnlyDisk, &self.file, !self.skip_hash_check)?;
        let saved = archive.metadata();
        let revision = saved.revision + i64::from(self.bump_revision);
        let mut metadata = Metadata {
            // As if it were what the first entry of the new cluster's log did.
            applied_index: 1,
            applied_term: 1,
            revision,
            compact_revision: if self.mark_compacted { revision } else { saved.compact_revision },
            leases: saved.leases,
            ..Metadata::default()
        };
        Members::bootstrap(initial_members(&members)).describe(&mut metadata);
        // It appears under its name when it is whole: the server must not take a part of it for an empty store.
        let (unfinished, whole) = (directory.join("member.restoring"), directory.join("member"));
        let mut snapshots = Snapshots::open(Arc::new(RealDisk), &unfinished.join("snap"), cluster)?;
        let voters = members.iter().map(|member| member.id).collect();
        archive.unpack(&mut snapshots, Identity { cluster, member }, voters, metadata)?;
        RealDisk.sync_dir(&unfinished).map_err(failed)?;
        RealDisk.rename(&unfinished, &whole).map_err(failed)?;
        RealDisk.sync_dir(&directory).map_err(failed)?;
        println!(
            "restored revision {revision} to {} as member {member:x} of cluster {cluster:x}",
            directory.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_lacks_is_named() {
        let check = |reason: &str, may_lack: bool, expected: &str| {
            assert_eq!(refusal(reason, may_lack), expected);
        };
        check("etcdserver: no leader", false, "etcdserver: no leader");
        let required = "a client certificate is required: give --cert and --key (alert: CertificateRequired)";
        check("alert: CertificateRequired", true, required);
        check("alert: CertificateRequired", false, required);
        check("closed", true, "closed. If a client certificate is required, give --cert and --key");
    }

    #[test]
    fn sizes() {
        let check = |bytes, expected: &str| assert_eq!(human(bytes), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(2_080, "2.1 kB");
        check(20_512, "21 kB");
        check(94_000_000, "94 MB");
        check(1_500_000_000, "1.5 GB");
    }

    #[test]
    fn tables_are_etcdctls() {
        let row = ["fe01cf57", "10", "7", "2.1 MB"].map(str::to_owned);
        let expected = "\
+----------+----------+------------+------------+
|   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE |
+----------+----------+------------+------------+
| fe01cf57 |       10 |          7 | 2.1 MB     |
+----------+----------+------------+------------+
";
        assert_eq!(table(&row), expected);
    }
}

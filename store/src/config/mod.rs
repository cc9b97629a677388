//! The command line: etcd's flags, under etcd's names. An unknown one is an error that names it.

mod url;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use keelson_component_base::flags;
use keelson_component_base::logging::LogArgs;
use keelson_component_base::tls::{ClientAuth, ServerTls};
use sha2::{Digest, Sha256};

pub use url::{InitialCluster, Url};

use crate::compactor::{Mode, Retention};
use crate::transport::{Credentials, MAX_MESSAGE};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClusterState {
    New,
    Existing,
}

/// How much is measured of each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricsDetail {
    Basic,
    /// Also how long calls take, by method.
    Extensive,
}

const SUBCOMMANDS: &str = "\
Instead of flags, a command (--help tells its own):
  kube-store snapshot save|restore|status   Save a member's state to a file, make data directories of it
  kube-store verify                         Check a data directory, read-only";

/// A Raft-replicated store that speaks the etcd v3 protocol.
#[derive(Debug, Clone, Parser)]
#[command(name = "kube-store", version, after_help = SUBCOMMANDS)]
pub struct Config {
    /// Human-readable name for this member
    #[arg(long, default_value = "default")]
    pub name: String,
    /// Path to the data directory
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// List of URLs to listen on for client traffic
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<Url>,
    /// List of this member's client URLs to advertise to the public
    #[arg(long, value_delimiter = ',')]
    pub advertise_client_urls: Vec<Url>,
    /// List of URLs to listen on for peer traffic
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    pub listen_peer_urls: Vec<Url>,
    /// List of this member's peer URLs to advertise to the rest of the cluster
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: Vec<Url>,
    /// Initial cluster configuration for bootstrapping
    #[arg(long)]
    pub initial_cluster: Option<InitialCluster>,
    /// Initial cluster state
    #[arg(long, value_enum, default_value_t = ClusterState::New)]
    pub initial_cluster_state: ClusterState,
    /// Initial cluster token for the cluster during bootstrap
    #[arg(long, default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// Path to the client server TLS cert file
    #[arg(long)]
    pub cert_file: Option<PathBuf>,
    /// Path to the client server TLS key file
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    /// Path to the client server TLS trusted CA cert file; given, clients have to show a certificate of it
    #[arg(long)]
    pub trusted_ca_file: Option<PathBuf>,
    /// Enable client cert authentication, which --trusted-ca-file alone does as well
    #[arg(long, value_parser = flags::boolean, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub client_cert_auth: bool,
    /// Path to the peer server TLS cert file
    #[arg(long)]
    pub peer_cert_file: Option<PathBuf>,
    /// Path to the peer server TLS key file
    #[arg(long)]
    pub peer_key_file: Option<PathBuf>,
    /// Path to the peer server TLS trusted CA file; given, peers have to show a certificate of it
    #[arg(long)]
    pub peer_trusted_ca_file: Option<PathBuf>,
    /// Enable peer client cert authentication, which --peer-trusted-ca-file alone does as well
    #[arg(long, value_parser = flags::boolean, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub peer_client_cert_auth: bool,
    /// List of URLs to listen on for the metrics and health endpoints
    #[arg(long, value_delimiter = ',')]
    pub listen_metrics_urls: Vec<Url>,
    /// Set level of detail for exported metrics; extensive adds how long calls take
    #[arg(long, value_enum, default_value_t = MetricsDetail::Basic)]
    pub metrics: MetricsDetail,
    /// Time (in milliseconds) of a heartbeat interval
    #[arg(long, default_value_t = 100)]
    pub heartbeat_interval: u64,
    /// Time (in milliseconds) for an election to timeout
    #[arg(long, default_value_t = 1000)]
    pub election_timeout: u64,
    /// Raise alarms when the backend size exceeds the given quota; 0 means the default of 2 GiB
    #[arg(long, default_value_t = 0)]
    pub quota_backend_bytes: i64,
    /// Maximum client request size in bytes the server will accept; 32 MiB at most
    #[arg(long, default_value_t = 1536 << 10)]
    pub max_request_bytes: usize,
    /// Maximum number of operations permitted in a transaction
    #[arg(long, default_value_t = 128)]
    pub max_txn_ops: usize,
    /// Duration of periodic watch progress notifications
    #[arg(long, alias = "experimental-watch-progress-notify-interval", value_parser = flags::duration, default_value = "10m")]
    pub watch_progress_notify_interval: Duration,
    /// Compact automatically: periodic (by time) or revision (by number)
    #[arg(long, value_enum, default_value_t = Mode::Periodic)]
    pub auto_compaction_mode: Mode,
    /// What automatic compaction keeps: hours or a duration, or a number of revisions; 0 disables it
    #[arg(long, default_value = "0")]
    pub auto_compaction_retention: String,
    /// Compare this member's data with its peers' before serving clients
    #[arg(long, value_parser = flags::boolean, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub experimental_initial_corrupt_check: bool,
    /// How often the leader compares the members' data; 0 disables it
    #[arg(long, alias = "experimental-corrupt-check-time", value_parser = flags::duration, default_value = "0s")]
    pub corrupt_check_time: Duration,
    /// Features to switch: InitialCorruptCheck=true; etcd's others have nothing to act on
    #[arg(long, value_parser = feature_gates, default_value = "")]
    pub feature_gates: FeatureGates,
    /// Make this member, with the data that it has, the only one of its cluster: when a majority is lost for good
    #[arg(long, value_parser = flags::boolean, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub force_new_cluster: bool,
    /// Reject reconfiguration requests that would cause quorum loss
    #[arg(long, value_parser = flags::boolean, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub strict_reconfig_check: bool,
    /// Maximum number of learners that can be in the cluster membership
    #[arg(long, alias = "experimental-max-learners", default_value_t = 1)]
    pub max_learners: u32,
    #[command(flatten)]
    pub log: LogArgs,
}

/// What `--feature-gates` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureGates {
    pub initial_corrupt_check: bool,
    pub ignored: Vec<String>,
}

fn feature_gates(text: &str) -> Result<FeatureGates, String> {
    const IGNORED: &[&str] = &[
        "AllAlpha",
        "AllBeta",
        "CompactHashCheck",
        "LeaseCheckpoint",
        "LeaseCheckpointPersist",
        "SetMemberLocalAddr",
        "StopGRPCServiceOnDefrag",
        "TxnModeWriteWithSharedBuffer",
    ];
    let mut gates = FeatureGates::default();
    for (name, value) in flags::key_values(text)? {
        let on = flags::boolean(&value)?;
        match name.as_str() {
            "InitialCorruptCheck" => gates.initial_corrupt_check = on,
            known if IGNORED.contains(&known) => gates.ignored.push(name),
            _ => return Err(format!("unrecognized feature gate: {name}")),
        }
    }
    Ok(gates)
}

/// A member as the initial cluster names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialMember {
    pub id: u64,
    pub name: String,
    pub peer_urls: Vec<Url>,
}

/// Configuration that contradicts itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("--initial-cluster does not name this member, {0:?} (--name)")]
    NotInCluster(String),
    #[error("--initial-cluster gives {0} other peer URLs than --initial-advertise-peer-urls")]
    PeerUrlsDiffer(String),
    #[error("{flag} has https URLs but {missing} is not given")]
    NoCertificate { flag: &'static str, missing: &'static str },
    #[error("{0} is given but {1} is not")]
    CaMissing(&'static str, &'static str),
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NoAdvertise,
    #[error(
        "--election-timeout ({election} ms) has to be at least five times --heartbeat-interval ({heartbeat} ms), which has to be positive"
    )]
    Timing { election: u64, heartbeat: u64 },
    #[error("--auto-compaction-retention: {0}")]
    Retention(String),
    #[error("two members of --initial-cluster have the same peer URLs")]
    SameUrls,
    #[error(
        "--max-request-bytes is {0}: a request of more than {MAX_REQUEST} bytes could not be sent to the other members"
    )]
    RequestBytes(usize),
}

/// Bytes of the largest request that may be allowed: what peers take in one message has to have room for it, or an entry
/// that was accepted would be refused by all of them for good.
const MAX_REQUEST: usize = MAX_MESSAGE / 2;

fn hash(parts: impl IntoIterator<Item = String>) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    // A digest is 32 bytes long. 0 means "nobody" to Raft.
    digest.first_chunk::<8>().map_or(1, |bytes| u64::from_be_bytes(*bytes)).max(1)
}

impl Config {
    /// What it is without any flag.
    pub fn default_flags() -> Self {
        // No flag is required.
        Self::parse_from(["kube-store"])
    }

    /// The members at bootstrap, sorted by id, and this one's id. Ids come from peer URLs and token, as in etcd.
    ///
    /// # Errors
    /// An initial cluster that does not fit this member.
    pub fn members(&self) -> Result<(u64, Vec<InitialMember>), ConfigError> {
        let cluster = match &self.initial_cluster {
            Some(InitialCluster(members)) => members.clone(),
            None => vec![(self.name.clone(), self.initial_advertise_peer_urls.clone())],
        };
        let mut members: Vec<InitialMember> = cluster
            .into_iter()
            .map(|(name, peer_urls)| {
                let mut urls: Vec<String> = peer_urls.iter().map(Url::to_string).collect();
                urls.sort();
                urls.push(self.initial_cluster_token.clone());
                InitialMember { id: hash(urls), name, peer_urls }
            })
            .collect();
        members.sort_by_key(|member| member.id);
        if members.windows(2).any(|pair| matches!(pair, [a, b] if a.id == b.id)) {
            return Err(ConfigError::SameUrls);
        }
        let own = members
            .iter()
            .find(|member| member.name == self.name)
            .ok_or_else(|| ConfigError::NotInCluster(self.name.clone()))?;
        let sorted = |urls: &[Url]| {
            let mut urls: Vec<String> = urls.iter().map(Url::to_string).collect();
            urls.sort();
            urls
        };
        if sorted(&own.peer_urls) != sorted(&self.initial_advertise_peer_urls) {
            return Err(ConfigError::PeerUrlsDiffer(self.name.clone()));
        }
        Ok((own.id, members))
    }

    /// The cluster's id, from its members' at bootstrap.
    pub fn cluster_id(members: &[InitialMember]) -> u64 {
        hash(members.iter().map(|member| format!("{:016x}", member.id)))
    }

    /// This member's certificate towards its peers.
    pub fn peer_credentials(&self) -> Credentials {
        Credentials {
            ca_file: self.peer_trusted_ca_file.clone(),
            identity: self.peer_cert_file.clone().zip(self.peer_key_file.clone()),
        }
    }

    pub fn data_directory(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name)))
    }

    pub fn advertised_client_urls(&self) -> &[Url] {
        if self.advertise_client_urls.is_empty() {
            &self.listen_client_urls
        } else {
            &self.advertise_client_urls
        }
    }

    /// Bytes of the tree above which writes are refused.
    pub fn quota(&self) -> u64 {
        match self.quota_backend_bytes {
            0 => 2 << 30,
            // etcd: a negative quota disables it.
            ..0 => u64::MAX,
            quota => quota.unsigned_abs(),
        }
    }

    /// What automatic compaction keeps, if it is on.
    ///
    /// # Errors
    /// A retention that does not fit the mode.
    pub fn retention(&self) -> Result<Option<Retention>, ConfigError> {
        Retention::parse(self.auto_compaction_mode, &self.auto_compaction_retention)
            .map_err(ConfigError::Retention)
    }

    pub fn initial_corrupt_check(&self) -> bool {
        self.experimental_initial_corrupt_check || self.feature_gates.initial_corrupt_check
    }

    /// What to say of certificates that no URL asks for.
    pub fn unused_certificates(&self) -> Vec<String> {
        let check = |urls: &[Url], files: [&Option<PathBuf>; 3], auth: (bool, &str)| {
            let given = files.iter().any(|file| file.is_some());
            let plain: Vec<&Url> = urls.iter().filter(|url| !url.secure).collect();
            let say = |what: &str| {
                let said = |url: &&Url| format!("the scheme of {url} is http while {what}");
                plain.iter().map(said).collect::<Vec<_>>()
            };
            let mut said = Vec::new();
            if given {
                said.extend(say("certificate files are given: they are not used"));
            }
            if auth.0 {
                said.extend(say(&format!("{} is given: nobody is asked for a certificate", auth.1)));
            }
            said
        };
        let mut said = check(
            &self.listen_client_urls,
            [&self.cert_file, &self.key_file, &self.trusted_ca_file],
            (self.client_cert_auth, "--client-cert-auth"),
        );
        said.extend(check(
            &self.listen_peer_urls,
            [&self.peer_cert_file, &self.peer_key_file, &self.peer_trusted_ca_file],
            (self.peer_client_cert_auth, "--peer-client-cert-auth"),
        ));
        said
    }

    /// What cannot be left to the first connection.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let (election, heartbeat) = (self.election_timeout, self.heartbeat_interval);
        if heartbeat == 0 || election < 5 * heartbeat {
            return Err(ConfigError::Timing { election, heartbeat });
        }
        if self.client_cert_auth && self.trusted_ca_file.is_none() {
            return Err(ConfigError::CaMissing("--client-cert-auth", "--trusted-ca-file"));
        }
        if self.peer_client_cert_auth && self.peer_trusted_ca_file.is_none() {
            return Err(ConfigError::CaMissing("--peer-client-cert-auth", "--peer-trusted-ca-file"));
        }
        if self.max_request_bytes > MAX_REQUEST {
            return Err(ConfigError::RequestBytes(self.max_request_bytes));
        }
        let default: Vec<Url> = "http://localhost:2379".parse().into_iter().collect();
        if self.advertise_client_urls.is_empty() && self.listen_client_urls != default {
            return Err(ConfigError::NoAdvertise);
        }
        self.client_tls()?;
        self.peer_tls()?;
        self.retention()?;
        // As in etcd, what says how the cluster begins means nothing to a member that has begun.
        let member = self.data_directory().join("member");
        if !member.join("wal").exists() && !member.join("snap").exists() {
            self.members()?;
        }
        Ok(())
    }

    /// TLS of the client URLs, if any of them is https. As in etcd, a trusted CA is enough for clients to need a certificate.
    ///
    /// # Errors
    /// An https URL without certificate and key.
    pub fn client_tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        let secure = self.listen_client_urls.iter().chain(&self.listen_metrics_urls).any(|url| url.secure);
        server_tls(
            secure,
            "--listen-client-urls or --listen-metrics-urls",
            [(&self.cert_file, "--cert-file"), (&self.key_file, "--key-file")],
            self.trusted_ca_file.as_ref(),
        )
    }

    /// TLS of the peer URLs, if any of them is https. As in etcd, a trusted CA is enough for peers to need a certificate.
    ///
    /// # Errors
    /// An https URL without certificate and key.
    pub fn peer_tls(&self) -> Result<Option<ServerTls>, ConfigError> {
        server_tls(
            self.listen_peer_urls.iter().any(|url| url.secure),
            "--listen-peer-urls",
            [(&self.peer_cert_file, "--peer-cert-file"), (&self.peer_key_file, "--peer-key-file")],
            self.peer_trusted_ca_file.as_ref(),
        )
    }
}

fn server_tls(
    secure: bool,
    flag: &'static str,
    [(cert, cert_flag), (key, key_flag)]: [(&Option<PathBuf>, &'static str); 2],
    ca: Option<&PathBuf>,
) -> Result<Option<ServerTls>, ConfigError> {
    if !secure {
        return Ok(None);
    }
    let needed =
        |file: &Option<PathBuf>, missing| file.clone().ok_or(ConfigError::NoCertificate { flag, missing });
    Ok(Some(ServerTls {
        cert_file: needed(cert, cert_flag)?,
        key_file: needed(key, key_flag)?,
        client_ca_file: ca.cloned(),
        client_auth: ClientAuth::Required,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<Config, String> {
        let flags = std::iter::once("kube-store").chain(flags.iter().copied());
        Config::try_parse_from(flags).map_err(|error| error.to_string())
    }

    #[test]
    fn kubeadms_flags_are_understood() {
        let config = parse(&[
            "--advertise-client-urls=https://10.0.0.1:2379",
            "--cert-file=/pki/server.crt",
            "--client-cert-auth=true",
            "--experimental-initial-corrupt-check=true",
            "--feature-gates=InitialCorruptCheck=true",
            "--data-dir=/var/lib/etcd",
            "--experimental-watch-progress-notify-interval=5s",
            "--initial-advertise-peer-urls=https://10.0.0.1:2380",
            "--initial-cluster=m1=https://10.0.0.1:2380",
            "--key-file=/pki/server.key",
            "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
            "--listen-metrics-urls=http://127.0.0.1:2381",
            "--listen-peer-urls=https://10.0.0.1:2380",
            "--name=m1",
            "--peer-cert-file=/pki/peer.crt",
            "--peer-client-cert-auth=true",
            "--peer-key-file=/pki/peer.key",
            "--peer-trusted-ca-file=/pki/ca.crt",
            "--trusted-ca-file=/pki/ca.crt",
        ])
        .unwrap();
        config.check().unwrap();
        assert_eq!(config.watch_progress_notify_interval, Duration::from_secs(5));
        assert_eq!(config.listen_client_urls.len(), 2);
    }

    #[test]
    fn mistakes_are_named() {
        let check = |flags: &[&str], expected: &str| {
            let error = parse(flags).and_then(|config| config.check().map_err(|error| error.to_string()));
            let error = error.unwrap_err();
            assert!(error.contains(expected), "{flags:?}: {error}");
        };
        check(&["--no-such-flag=1"], "--no-such-flag");
        check(&["--listen-client-urls=ftp://1.2.3.4:5"], "scheme");
        check(&["--listen-client-urls=http://1.2.3.4"], "http(s)://host:port");
        check(&["--listen-client-urls=http://1.2.3.4:5"], "--advertise-client-urls");
        check(&["--initial-cluster=other=http://localhost:2380"], "--name");
        check(&["--initial-cluster=default=http://localhost:2390"], "--initial-advertise-peer-urls");
        check(&["--listen-peer-urls=https://127.0.0.1:2380"], "--peer-cert-file");
        check(&["--client-cert-auth"], "--trusted-ca-file");
        check(&["--auto-compaction-retention=x"], "--auto-compaction-retention");
        check(&["--feature-gates=NoSuch=true"], "NoSuch");
        check(&["--election-timeout=100"], "--heartbeat-interval");
        check(&["--max-request-bytes=33554433"], "--max-request-bytes is 33554433");
        assert_eq!(parse(&["--max-request-bytes=33554432"]).unwrap().check(), Ok(()));
    }

    #[test]
    fn certificates_that_are_not_used_are_told_of() {
        let check = |flags: &[&str], expected: &[&str]| {
            let said = parse(flags).unwrap().unused_certificates();
            assert_eq!(said.len(), expected.len(), "{flags:?}: {said:?}");
            for (said, expected) in said.iter().zip(expected) {
                assert!(said.contains(expected), "{flags:?}: {said}");
            }
        };
        check(&[], &[]);
        check(&["--listen-client-urls=https://127.0.0.1:1", "--cert-file=a", "--key-file=b"], &[]);
        check(
            &["--cert-file=a", "--key-file=b"],
            &["the scheme of http://localhost:2379 is http while cert"],
        );
        check(&["--peer-trusted-ca-file=a"], &["http://localhost:2380 is http while certificate files"]);
        check(
            &[
                "--client-cert-auth",
                "--trusted-ca-file=a",
                "--listen-client-urls=https://[::1]:1,http://[::1]:2",
            ],
            &["http://[::1]:2 is http while certificate files", "--client-cert-auth is given"],
        );
    }

    #[test]
    fn every_member_computes_the_same_ids() {
        let cluster = "--initial-cluster=a=http://localhost:1,b=http://localhost:2,c=http://localhost:3";
        let of = |name: &str, url: &str| {
            let url = format!("--initial-advertise-peer-urls={url}");
            parse(&[&format!("--name={name}"), cluster, &url]).unwrap().members().unwrap()
        };
        let (a, members) = of("a", "http://localhost:1");
        let (b, same) = of("b", "http://localhost:2");
        assert_eq!(members, same);
        assert_ne!(a, b);
        assert_eq!(Config::cluster_id(&members), Config::cluster_id(&same));
    }
}

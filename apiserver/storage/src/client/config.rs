//! How to reach the store, and what can go wrong with it.

use std::path::PathBuf;
use std::time::Duration;

/// TLS towards the store. Files as in `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`.
#[derive(Clone, Debug, Default)]
pub struct StoreTls {
    pub ca_file: Option<PathBuf>,
    /// Certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How to reach the store (`--etcd-servers`, `--etcd-prefix`).
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `http://host:port` or `https://host:port`.
    pub endpoints: Vec<String>,
    pub tls: Option<StoreTls>,
    /// `/registry` by default.
    pub prefix: String,
    /// Bytes of superseded objects that each resource's event window may hold.
    pub window_bytes: usize,
    /// How often old versions are compacted (`--etcd-compaction-interval`); `None`: never.
    pub compaction_interval: Option<Duration>,
}

impl StoreConfig {
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            prefix: "/registry".into(),
            window_bytes: 2 << 20,
            compaction_interval: Some(Duration::from_secs(300)),
        }
    }
}

/// What the store or the way to it did.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No endpoint could be reached, or the store has no leader (503).
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The answer did not come in time; a write may or may not have happened (504).
    #[error("store timed out: {0}")]
    Timeout(String),
    /// The asked revision has been compacted.
    #[error("the requested revision has been compacted")]
    Compacted,
    /// The asked revision is ahead of the store.
    #[error("the requested revision is in the future")]
    FutureRevision,
    /// The value is larger than the store takes (413).
    #[error("request is too large")]
    TooLarge,
    /// The store's disk or quota is full (500).
    #[error("store is out of space: {0}")]
    NoSpace(String),
    /// A lease ended before it could be used.
    #[error("lease not found")]
    LeaseNotFound,
    /// The store refused the client's identity.
    #[error("store refused access: {0}")]
    Denied(String),
    /// The configuration cannot be used (files, URLs).
    #[error("store configuration: {0}")]
    Config(String),
    /// Anything else.
    #[error("store failed: {0}")]
    Other(String),
}

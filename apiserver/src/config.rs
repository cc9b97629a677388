//! Flags of `kube-apiserver`: upstream's names and defaults wherever the meaning is the same.
//!
//! Invariants: an unknown flag fails by name (clap); [`Config::validate`] refuses combinations that could not
//! serve, naming the flag, before anything is opened.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};
use keelson_component_base::logging::LogArgs;

pub use crate::services::Cidr;

#[derive(Debug, Clone, Parser)]
#[command(name = "kube-apiserver", about = "Keelson's Kubernetes API server")]
pub struct Config {
    #[command(flatten)]
    pub log: LogArgs,

    /// etcd v3 endpoints, comma separated.
    #[arg(long, required = true, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,

    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Where other members reach this server; the bind address, else this host's address, when unset.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[arg(long, required = true)]
    pub tls_cert_file: PathBuf,
    #[arg(long, required = true)]
    pub tls_private_key_file: PathBuf,
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,

    /// PEM keys that verify service account tokens; may be repeated.
    #[arg(
        long = "service-account-key-file",
        alias = "service-account-key-files",
        required = true,
        value_delimiter = ','
    )]
    pub service_account_key_files: Vec<PathBuf>,
    #[arg(long, required = true)]
    pub service_account_signing_key_file: PathBuf,
    /// The first one signs; all are accepted.
    #[arg(long, required = true)]
    pub service_account_issuer: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// Longest life of a requested token, as a Go duration; 0 leaves it unbounded.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub service_account_max_token_expiration: Duration,

    #[arg(long, default_value = "10.0.0.0/24", value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<Cidr>,
    #[arg(long, default_value = "30000-32767", value_parser = parse_port_range)]
    pub service_node_port_range: PortRange,

    #[arg(long, default_value = "AlwaysAllow", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    #[arg(long, default_value_t = 300)]
    pub default_not_ready_toleration_seconds: i64,
    #[arg(long, default_value_t = 300)]
    pub default_unreachable_toleration_seconds: i64,
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: bool,
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub allow_privileged: bool,
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,

    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP"
    )]
    pub kubelet_preferred_address_types: Vec<String>,

    #[arg(long, default_value = "1h0m0s", value_parser = parse_duration)]
    pub event_ttl: Duration,
    /// Reads in flight; 0 is no limit.
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: usize,
    /// Writes in flight; 0 is no limit.
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: usize,
    #[arg(long, default_value = "1m0s", value_parser = parse_duration)]
    pub request_timeout: Duration,
    /// Seconds that a watch lasts at least, when it names no timeout of its own.
    #[arg(long, default_value_t = 1800)]
    pub min_request_timeout: u64,
    /// Accepted because manifests carry it; there is no profiling endpoint, and `true` says so in the log.
    #[arg(long, default_value_t = false, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub profiling: bool,
    /// `group/version=true|false`, comma separated.
    #[arg(long, value_delimiter = ',')]
    pub runtime_config: Vec<String>,
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub shutdown_delay_duration: Duration,
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// A flag whose value cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: {reason}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub reason: String,
}

impl Config {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |flag, reason: &str| Err(ConfigError { flag, reason: reason.into() });
        for mode in &self.authorization_mode {
            if !matches!(mode.as_str(), "Node" | "RBAC" | "AlwaysAllow" | "AlwaysDeny") {
                return fail("authorization-mode", &format!("{mode:?} is not a mode of this server"));
            }
        }
        if self.etcd_certfile.is_some() != self.etcd_keyfile.is_some() {
            return fail("etcd-certfile", "needs --etcd-keyfile, and the other way round");
        }
        if self.kubelet_client_certificate.is_some() != self.kubelet_client_key.is_some() {
            return fail("kubelet-client-certificate", "needs --kubelet-client-key, and the other way round");
        }
        if self.service_cluster_ip_range.len() > 2 {
            return fail("service-cluster-ip-range", "takes at most one range of each IP family");
        }
        if let [first, second] = self.service_cluster_ip_range.as_slice()
            && first.network().is_ipv4() == second.network().is_ipv4()
        {
            return fail("service-cluster-ip-range", "two ranges must be of different IP families");
        }
        Ok(())
    }
}

/// Parses a Go duration such as `1h0m0s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    keelson_component_base::flags::duration(text)
}

fn parse_port_range(text: &str) -> Result<PortRange, String> {
    let bad = || format!("{text:?} is not a range of ports such as 30000-32767");
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?),
        // Upstream's `base+size` form.
        None => {
            let (first, size) = text.split_once('+').ok_or_else(bad)?;
            let first: u16 = first.parse().map_err(|_| bad())?;
            let size: u16 = size.parse().map_err(|_| bad())?;
            (first, first.checked_add(size).ok_or_else(bad)?)
        }
    };
    if first == 0 || last < first { Err(bad()) } else { Ok(PortRange { first, last }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_parse() {
        let check = |text: &str, expected: Option<(u16, u16)>| {
            assert_eq!(parse_port_range(text).ok().map(|r| (r.first, r.last)), expected, "{text}");
        };
        check("30000-32767", Some((30000, 32767)));
        check("30000+10", Some((30000, 30010)));
        check("2-1", None);
        check("x", None);
    }

    #[test]
    fn an_unknown_flag_is_named() {
        let error = Config::try_parse_from(["kube-apiserver", "--no-such-flag=1"]).unwrap_err().to_string();
        assert!(error.contains("--no-such-flag"), "{error}");
    }
}

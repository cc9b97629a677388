//! Flags, with upstream's names and defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use keelson_client::flags::{Candidacy, Election, ElectionFields, InvalidFlags, Serving};
use keelson_component_base::{flags, logging};
use keelson_objects::addresses::Cidr;

use crate::context::Settings;
use crate::descriptors;

#[derive(Parser, Debug)]
#[command(name = "kube-controller-manager", about = "Makes the cluster what its objects say")]
pub struct Flags {
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub serving: Serving,
    #[command(flatten)]
    pub election: Election,

    /// '*' all that are on by default, 'foo' that one, '-foo' not that one
    #[arg(long, default_value = "*", value_delimiter = ',', allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    /// Each controller acts as the kube-system service account of its name
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = flags::boolean)]
    pub use_service_account_credentials: bool,

    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = flags::boolean)]
    pub allocate_node_cidrs: bool,
    /// One block for each IP family
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<Cidr>,
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<Cidr>,
    /// Only for a single-stack cluster (default 24 for IPv4, 64 for IPv6)
    #[arg(long)]
    pub node_cidr_mask_size: Option<u8>,
    #[arg(long)]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    #[arg(long)]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// CA certificates that are published to pods (default: the kubeconfig's CA)
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens kept in secrets
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,

    #[arg(long, default_value = "5s", value_parser = flags::duration)]
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it counts as lost
    #[arg(long, default_value = "50s", value_parser = flags::duration)]
    pub node_monitor_grace_period: Duration,
    #[arg(long, default_value = "1m", value_parser = flags::duration)]
    pub node_startup_grace_period: Duration,
    /// Finished pods beyond this many are removed; 0 or less removes none
    #[arg(long, default_value_t = 12500, allow_negative_numbers = true)]
    pub terminated_pod_gc_threshold: i64,

    #[arg(long, default_value_t = 5)]
    pub concurrent_replicaset_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_deployment_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_statefulset_syncs: usize,
    #[arg(long, default_value_t = 2)]
    pub concurrent_daemonset_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_job_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_cron_job_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_endpoint_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_service_endpoint_syncs: usize,
    #[arg(long, default_value_t = 10)]
    pub concurrent_namespace_syncs: usize,
    #[arg(long, default_value_t = 20)]
    pub concurrent_gc_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_ttl_after_finished_syncs: usize,
    #[arg(long, default_value_t = 5)]
    pub concurrent_serviceaccount_token_syncs: usize,
    #[command(flatten)]
    pub log: logging::LogArgs,
}

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("no kubeconfig: give --kubeconfig")]
    NoKubeconfig,
    #[error(transparent)]
    Flags(#[from] InvalidFlags),
    #[error("--controllers: {0:?} is not in the list of known controllers")]
    UnknownController(String),
    #[error("--allocate-node-cidrs needs --cluster-cidr")]
    NoClusterCidr,
    #[error("--cluster-cidr: at most one block for each IP family, {0} are given")]
    ClusterCidrs(usize),
    #[error(
        "--node-cidr-mask-size is for a cluster of one IP family; use --node-cidr-mask-size-ipv4 and -ipv6"
    )]
    MaskSizeOfTwoFamilies,
    #[error("--node-cidr-mask-size-ipv{family}: {size} does not fit the cluster CIDR {cidr}")]
    MaskSize { family: u8, size: u8, cidr: Cidr },
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
}

/// What the process runs with.
#[derive(Debug)]
pub struct Config {
    pub kubeconfig: PathBuf,
    /// `None`: it works without an election.
    pub candidacy: Option<Candidacy>,
    pub settings: Settings,
}

impl Flags {
    pub fn complete(&self) -> Result<Config, InvalidConfig> {
        let kubeconfig = self.kubeconfig.clone().ok_or(InvalidConfig::NoKubeconfig)?;
        self.serving.check(&kubeconfig)?;
        let candidacy = self.election.complete(ElectionFields::default(), "kube-controller-manager")?;
        if let Some(unknown) = descriptors::unknown(&self.controllers) {
            return Err(InvalidConfig::UnknownController(unknown.to_owned()));
        }
        let (mask_ipv4, mask_ipv6) = self.mask_sizes()?;
        let read = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => std::fs::read(path)
                .map(Some)
                .map_err(|source| InvalidConfig::Read { path: path.clone(), source }),
        };
        let root_ca = read(&self.root_ca_file)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Config {
            kubeconfig,
            candidacy,
            settings: Settings {
                allocate_node_cidrs: self.allocate_node_cidrs,
                cluster_cidrs: self.cluster_cidr.clone(),
                service_cidrs: self.service_cluster_ip_range.clone(),
                node_cidr_mask_size: mask_ipv4,
                node_cidr_mask_size_ipv6: mask_ipv6,
                root_ca,
                service_account_key: read(&self.service_account_private_key_file)?,
                node_monitor_period: self.node_monitor_period,
                node_monitor_grace_period: self.node_monitor_grace_period,
                node_startup_grace_period: self.node_startup_grace_period,
                terminated_pod_gc_threshold: usize::try_from(self.terminated_pod_gc_threshold).unwrap_or(0),
                concurrency: self.concurrency(),
            },
        })
    }

    fn concurrency(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("replicaset", self.concurrent_replicaset_syncs),
            ("deployment", self.concurrent_deployment_syncs),
            ("statefulset", self.concurrent_statefulset_syncs),
            ("daemonset", self.concurrent_daemonset_syncs),
            ("job", self.concurrent_job_syncs),
            ("cron-job", self.concurrent_cron_job_syncs),
            ("endpoint", self.concurrent_endpoint_syncs),
            ("service-endpoint", self.concurrent_service_endpoint_syncs),
            ("namespace", self.concurrent_namespace_syncs),
            ("gc", self.concurrent_gc_syncs),
            ("ttl-after-finished", self.concurrent_ttl_after_finished_syncs),
            ("serviceaccount-token", self.concurrent_serviceaccount_token_syncs),
        ])
    }

    /// The lengths of nodes' blocks, for IPv4 and IPv6.
    fn mask_sizes(&self) -> Result<(u8, u8), InvalidConfig> {
        let cidrs = &self.cluster_cidr;
        let of_family = |ipv4| cidrs.iter().filter(|cidr| cidr.is_ipv4() == ipv4).count();
        if cidrs.len() > 2 || of_family(true) > 1 || of_family(false) > 1 {
            return Err(InvalidConfig::ClusterCidrs(cidrs.len()));
        }
        if self.allocate_node_cidrs && cidrs.is_empty() {
            return Err(InvalidConfig::NoClusterCidr);
        }
        if cidrs.len() == 2 && self.node_cidr_mask_size.is_some() {
            return Err(InvalidConfig::MaskSizeOfTwoFamilies);
        }
        let ipv4 = self.node_cidr_mask_size_ipv4.or(self.node_cidr_mask_size).unwrap_or(24);
        let ipv6 = self.node_cidr_mask_size_ipv6.or(self.node_cidr_mask_size).unwrap_or(64);
        for cidr in cidrs.iter().filter(|_| self.allocate_node_cidrs) {
            let (family, size, width) = if cidr.is_ipv4() { (4, ipv4, 32) } else { (6, ipv6, 128) };
            // More than 2^16 blocks is upstream's limit too.
            if size < cidr.length() || size > width || size - cidr.length() > 16 {
                return Err(InvalidConfig::MaskSize { family, size, cidr: *cidr });
            }
        }
        Ok((ipv4, ipv6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(arguments: &[&str]) -> Result<Config, String> {
        let all = ["kube-controller-manager", "--kubeconfig=/k"].iter().chain(arguments);
        let flags = Flags::try_parse_from(all).map_err(|error| error.to_string())?;
        flags.complete().map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_local_cluster_gives() {
        let config = complete(&[
            "--bind-address=0.0.0.0",
            "--allocate-node-cidrs=true",
            "--cluster-cidr=10.244.0.0/16",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--use-service-account-credentials=true",
            "--leader-elect=true",
            "--controllers=*,-deployment-controller",
            "-v=2",
        ])
        .unwrap();
        assert_eq!(config.settings.cluster_cidrs[0].to_string(), "10.244.0.0/16");
        assert_eq!((config.settings.node_cidr_mask_size, config.settings.node_cidr_mask_size_ipv6), (24, 64));
        assert_eq!(config.settings.node_monitor_grace_period, Duration::from_secs(50));
    }

    #[test]
    fn what_cannot_be() {
        let check = |arguments: &[&str], expected: &str| {
            let error = complete(arguments).err().unwrap_or_default();
            assert!(error.contains(expected), "{error:?} has no {expected:?}");
        };
        check(&["--no-such-flag"], "--no-such-flag");
        check(&["--controllers=*,wheel"], "\"wheel\"");
        check(&["--allocate-node-cidrs"], "--cluster-cidr");
        check(&["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], "at most one block");
        check(
            &["--cluster-cidr=10.0.0.0/16", "--allocate-node-cidrs", "--node-cidr-mask-size=8"],
            "10.0.0.0/16",
        );
        check(&["--cluster-cidr=10.0.0.0/16,fd00::/48", "--node-cidr-mask-size=24"], "one IP family");
        check(&["--root-ca-file=/does/not/exist"], "/does/not/exist");
        check(&["--leader-elect-lease-duration=1s"], "lease duration > renew deadline");
        check(&["--authorization-kubeconfig=/other"], "--authorization-kubeconfig must name");
    }
}

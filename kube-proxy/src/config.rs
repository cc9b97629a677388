//! Flags and the `KubeProxyConfiguration` file.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use keelson_component_base::config::{self, ConfigError};
use keelson_component_base::{flags, logging};
use serde::Deserialize;

#[derive(Parser, Debug)]
#[command(name = "kube-proxy", about = "Makes Services lead to their endpoints on this node")]
pub struct Flags {
    /// A KubeProxyConfiguration file; the other flags are then ignored, as upstream does
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Remove what this program made on the node, then end
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", value_parser = flags::boolean)]
    pub cleanup: bool,
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[arg(long)]
    pub hostname_override: Option<String>,
    #[arg(long)]
    pub cluster_cidr: Option<String>,
    #[arg(long)]
    pub proxy_mode: Option<String>,
    #[arg(long)]
    pub metrics_bind_address: Option<String>,
    #[arg(long)]
    pub healthz_bind_address: Option<String>,
    #[command(flatten)]
    pub log: logging::LogArgs,
}

/// The file, as far as its fields have a meaning here; `load_kind` refuses any other field by name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    hostname_override: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    mode: Option<String>,
    metrics_bind_address: Option<String>,
    healthz_bind_address: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: Option<PathBuf>,
}

/// What kube-proxy runs with.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    pub kubeconfig: PathBuf,
    pub node: String,
    /// Ranges of pods, each of either family.
    pub cluster_ranges: Vec<String>,
    pub metrics: SocketAddr,
    pub healthz: SocketAddr,
}

/// Why the flags and the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("cannot use the configuration file")]
    File(#[from] ConfigError),
    #[error("no kubeconfig: give --kubeconfig, or clientConnection.kubeconfig in the file")]
    NoKubeconfig,
    #[error("mode: {0:?} is not supported, only \"nftables\"")]
    Mode(String),
    #[error("{field}: {value:?} is no address with a port")]
    Address { field: &'static str, value: String },
    #[error("clusterCIDR: {0:?} is no list of address ranges")]
    ClusterRange(String),
    #[error("cannot tell this host's name: give --hostname-override")]
    NoName(#[source] nix::Error),
}

impl Flags {
    pub fn complete(&self) -> Result<Config, InvalidConfig> {
        let file = match &self.config {
            Some(path) => config::load_kind::<File>(
                path,
                "KubeProxyConfiguration",
                &["kubeproxy.config.k8s.io/v1alpha1"],
            )?,
            None => File {
                client_connection: ClientConnection { kubeconfig: self.kubeconfig.clone() },
                hostname_override: self.hostname_override.clone(),
                cluster_cidr: self.cluster_cidr.clone(),
                mode: self.proxy_mode.clone(),
                metrics_bind_address: self.metrics_bind_address.clone(),
                healthz_bind_address: self.healthz_bind_address.clone(),
            },
        };
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        if let Some(mode) = given(file.mode).filter(|mode| mode != "nftables") {
            return Err(InvalidConfig::Mode(mode));
        }
        let node = match given(file.hostname_override) {
            Some(name) => name,
            None => {
                nix::unistd::gethostname().map_err(InvalidConfig::NoName)?.to_string_lossy().to_lowercase()
            }
        };
        let kubeconfig = file.client_connection.kubeconfig.filter(|path| !path.as_os_str().is_empty());
        Ok(Config {
            kubeconfig: kubeconfig.ok_or(InvalidConfig::NoKubeconfig)?,
            node,
            cluster_ranges: ranges(&given(file.cluster_cidr).unwrap_or_default())?,
            metrics: address(
                "metricsBindAddress",
                given(file.metrics_bind_address),
                "127.0.0.1:10249",
                10249,
            )?,
            healthz: address("healthzBindAddress", given(file.healthz_bind_address), "0.0.0.0:10256", 10256)?,
        })
    }
}

/// An address, with the standard port where none is given.
fn address(
    field: &'static str,
    value: Option<String>,
    standard: &str,
    port: u16,
) -> Result<SocketAddr, InvalidConfig> {
    let text = value.unwrap_or_else(|| standard.to_owned());
    let parsed =
        text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)));
    parsed.map_err(|_| InvalidConfig::Address { field, value: text })
}

fn ranges(list: &str) -> Result<Vec<String>, InvalidConfig> {
    let valid = |range: &str| {
        let (address, length) = range.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        length.parse::<u8>().ok().filter(|l| *l <= longest)
    };
    let ranges: Vec<String> =
        list.split(',').map(|r| r.trim().to_owned()).filter(|r| !r.is_empty()).collect();
    match ranges.iter().find(|range| valid(range).is_none()) {
        Some(wrong) => Err(InvalidConfig::ClusterRange(wrong.clone())),
        None => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(file: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        std::fs::write(&path, format!("{head}{file}")).unwrap();
        let flags = Flags::try_parse_from(["kube-proxy", &format!("--config={}", path.display())]).unwrap();
        flags.complete().map_err(|error| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            text
        })
    }

    #[test]
    fn files() {
        let config = complete("clientConnection: {kubeconfig: /k}\nhostnameOverride: n\nclusterCIDR: 10.244.0.0/16,fd00::/48\nmetricsBindAddress: 0.0.0.0\n").unwrap();
        assert_eq!(config.metrics, "0.0.0.0:10249".parse().unwrap());
        assert_eq!(config.cluster_ranges, ["10.244.0.0/16", "fd00::/48"]);
        let check = |file: &str, expected: &str| {
            let error = complete(file).err().unwrap_or_default();
            assert!(error.contains(expected), "{error:?} has no {expected:?}");
        };
        let kubeconfig = "clientConnection: {kubeconfig: /k}\n";
        check("", "no kubeconfig");
        check(&format!("{kubeconfig}mode: ipvs\n"), "\"ipvs\" is not supported");
        check(&format!("{kubeconfig}iptables: {{}}\n"), "iptables");
        check(&format!("{kubeconfig}clusterCIDR: here\n"), "clusterCIDR");
    }
}

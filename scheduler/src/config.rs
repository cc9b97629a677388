//! Flags and the `KubeSchedulerConfiguration` file.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use keelson_client::leader::Timing;
use keelson_component_base::config::{self, ConfigError};
use keelson_component_base::duration::GoDuration;
use keelson_component_base::{flags, logging};
use serde::Deserialize;

#[derive(Parser, Debug)]
#[command(name = "kube-scheduler", about = "Gives each pending pod a node")]
pub struct Flags {
    /// A KubeSchedulerConfiguration file; flags that are given win over it
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig for the reviews of requests to this daemon (default: --kubeconfig)
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// As --authentication-kubeconfig; the two must name one file
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
    /// Where a self-signed certificate is kept if none is given
    #[arg(long, default_value = "/var/run/kubernetes")]
    pub cert_dir: PathBuf,
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = flags::boolean)]
    pub leader_elect: Option<bool>,
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_lease_duration: Option<Duration>,
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_renew_deadline: Option<Duration>,
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_retry_period: Option<Duration>,
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,
    #[command(flatten)]
    pub log: logging::LogArgs,
}

/// The file, as far as its fields have a meaning here; `load_kind` refuses any other field by name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    leader_election: LeaderElection,
    profiles: Vec<ProfileName>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaderElection {
    leader_elect: Option<bool>,
    lease_duration: Option<GoDuration>,
    renew_deadline: Option<GoDuration>,
    retry_period: Option<GoDuration>,
    resource_lock: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProfileName {
    scheduler_name: Option<String>,
}

/// What the scheduler runs with.
#[derive(Debug)]
pub struct Config {
    pub kubeconfig: PathBuf,
    pub scheduler_name: String,
    pub leader_elect: bool,
    pub timing: Timing,
    pub lease_name: String,
    pub lease_namespace: String,
}

/// Why the flags and the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("cannot use the configuration file")]
    File(#[from] ConfigError),
    #[error("no kubeconfig: give --kubeconfig, or clientConnection.kubeconfig in the file")]
    NoKubeconfig,
    #[error("profiles: one profile is supported, {0} are given")]
    Profiles(usize),
    #[error("leaderElection.resourceLock: {0:?} is not supported, only \"leases\"")]
    ResourceLock(String),
    #[error("leader election needs lease duration > renew deadline > retry period > 0, not {0:?}")]
    Timing(Timing),
    #[error("--{0} must name the same file as --kubeconfig")]
    SeparateKubeconfig(&'static str),
}

impl Flags {
    pub fn complete(&self) -> Result<Config, InvalidConfig> {
        let mut file = match &self.config {
            Some(path) => config::load_kind::<File>(
                path,
                "KubeSchedulerConfiguration",
                &["kubescheduler.config.k8s.io/v1"],
            )?,
            None => File::default(),
        };
        if file.profiles.len() > 1 {
            return Err(InvalidConfig::Profiles(file.profiles.len()));
        }
        let profile = file.profiles.pop().unwrap_or_default();
        let election = file.leader_election;
        if let Some(lock) = election.resource_lock.filter(|lock| lock != "leases") {
            return Err(InvalidConfig::ResourceLock(lock));
        }
        let kubeconfig = match &self.kubeconfig {
            Some(path) => path.clone(),
            None if file.client_connection.kubeconfig.as_os_str().is_empty() => {
                return Err(InvalidConfig::NoKubeconfig);
            }
            None => file.client_connection.kubeconfig,
        };
        for (name, other) in [
            ("authentication-kubeconfig", &self.authentication_kubeconfig),
            ("authorization-kubeconfig", &self.authorization_kubeconfig),
        ] {
            if other.as_ref().is_some_and(|path| *path != kubeconfig) {
                return Err(InvalidConfig::SeparateKubeconfig(name));
            }
        }
        let standard = Timing::default();
        let pick = |flag: Option<Duration>, file: Option<GoDuration>, standard: Duration| {
            flag.or(file.map(|d| d.0)).unwrap_or(standard)
        };
        let timing = Timing {
            lease_duration: pick(
                self.leader_elect_lease_duration,
                election.lease_duration,
                standard.lease_duration,
            ),
            renew_deadline: pick(
                self.leader_elect_renew_deadline,
                election.renew_deadline,
                standard.renew_deadline,
            ),
            retry_period: pick(self.leader_elect_retry_period, election.retry_period, standard.retry_period),
        };
        let ordered = timing.lease_duration > timing.renew_deadline
            && timing.renew_deadline > timing.retry_period
            && !timing.retry_period.is_zero();
        if !ordered {
            return Err(InvalidConfig::Timing(timing));
        }
        let or = |flag: &Option<String>, file: Option<String>, standard: &str| {
            flag.clone().or(file).unwrap_or_else(|| standard.to_owned())
        };
        Ok(Config {
            kubeconfig,
            scheduler_name: profile.scheduler_name.unwrap_or_else(|| "default-scheduler".to_owned()),
            leader_elect: self.leader_elect.or(election.leader_elect).unwrap_or(true),
            timing,
            lease_name: or(&self.leader_elect_resource_name, election.resource_name, "kube-scheduler"),
            lease_namespace: or(
                &self.leader_elect_resource_namespace,
                election.resource_namespace,
                "kube-system",
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(arguments: &[&str], file: Option<&str>) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let mut all = vec!["kube-scheduler".to_owned()];
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
            all.push(format!("--config={}", path.display()));
        }
        let flags = Flags::try_parse_from(all).map_err(|error| error.to_string())?;
        flags.complete().map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        })
    }

    const HEAD: &str = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    #[test]
    fn flags_win_over_the_file() {
        let file =
            format!("{HEAD}clientConnection: {{kubeconfig: /a}}\nleaderElection: {{leaderElect: true}}\n");
        let config = complete(&["--leader-elect=false"], Some(&file)).unwrap();
        assert_eq!(config.kubeconfig, PathBuf::from("/a"));
        assert!(!config.leader_elect);
        let config = complete(&["--kubeconfig=/b"], Some(&file)).unwrap();
        assert_eq!(config.kubeconfig, PathBuf::from("/b"));
        assert!(config.leader_elect);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let check = |arguments: &[&str], file: Option<&str>, expected: &str| {
            let error = complete(arguments, file).err().unwrap_or_default();
            assert!(error.contains(expected), "{error:?} has no {expected:?}");
        };
        check(&[], None, "no kubeconfig");
        check(&["--no-such-flag"], None, "--no-such-flag");
        check(&["--kubeconfig=/a"], Some(&format!("{HEAD}extenders: []\n")), "extenders");
        check(
            &["--kubeconfig=/a", "--leader-elect-lease-duration=1s"],
            None,
            "lease duration > renew deadline",
        );
        check(
            &["--kubeconfig=/a", "--authorization-kubeconfig=/b"],
            None,
            "--authorization-kubeconfig must name",
        );
    }
}

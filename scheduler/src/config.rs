//! Flags and the `KubeSchedulerConfiguration` file.

use std::path::PathBuf;

use clap::Parser;
use keelson_client::flags::{Candidacy, Election, ElectionFields, InvalidFlags, Serving};
use keelson_component_base::config::{self, ConfigError};
use keelson_component_base::logging;
use serde::Deserialize;

#[derive(Parser, Debug)]
#[command(name = "kube-scheduler", about = "Gives each pending pod a node")]
pub struct Flags {
    /// A KubeSchedulerConfiguration file; flags that are given win over it
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub serving: Serving,
    #[command(flatten)]
    pub election: Election,
    #[command(flatten)]
    pub log: logging::LogArgs,
}

/// The file, as far as its fields have a meaning here; `load_kind` refuses any other field by name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    leader_election: ElectionFields,
    profiles: Vec<ProfileName>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: PathBuf,
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
    /// `None`: it works without an election.
    pub candidacy: Option<Candidacy>,
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
    #[error(transparent)]
    Flags(#[from] InvalidFlags),
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
        let kubeconfig = match &self.kubeconfig {
            Some(path) => path.clone(),
            None if file.client_connection.kubeconfig.as_os_str().is_empty() => {
                return Err(InvalidConfig::NoKubeconfig);
            }
            None => file.client_connection.kubeconfig,
        };
        self.serving.check(&kubeconfig)?;
        Ok(Config {
            kubeconfig,
            scheduler_name: profile.scheduler_name.unwrap_or_else(|| "default-scheduler".to_owned()),
            candidacy: self.election.complete(file.leader_election, "kube-scheduler")?,
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
        assert!(config.candidacy.is_none());
        let config = complete(&["--kubeconfig=/b"], Some(&file)).unwrap();
        assert_eq!(config.kubeconfig, PathBuf::from("/b"));
        assert!(config.candidacy.is_some());
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

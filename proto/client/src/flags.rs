//! The flags that the control plane's daemons have in common, under upstream's names: how they serve, with
//! decisions delegated to the API server, and how they elect their leader. What a flag leaves open comes from a
//! configuration file, and what both leave open is upstream's default.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_component_base::duration::GoDuration;
use keelson_component_base::metrics::Registry;
use keelson_component_base::serve::{Bound, Endpoints, ServeError};
use keelson_component_base::tls::{self, ClientAuth, ServerTls, TlsError};
use keelson_component_base::{flags, health};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::delegated;
use crate::leader::{self, Ended, LeaseName, Timing};

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFlags {
    #[error("--{0} must name the same file as --kubeconfig")]
    SeparateKubeconfig(&'static str),
    #[error("leader election: the lock {0:?} is not supported, only \"leases\"")]
    ResourceLock(String),
    #[error("leader election needs lease duration > renew deadline > retry period > 0, not {0:?}")]
    Timing(Timing),
}

/// How a daemon serves its health and metrics.
#[derive(clap::Args, Debug, Clone)]
pub struct Serving {
    /// Kubeconfig for the reviews of requests to this daemon (default: --kubeconfig)
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// As --authentication-kubeconfig; the two must name one file
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,
    /// The HTTPS port (default: 10259 of the scheduler, 10257 of the controller manager)
    #[arg(long)]
    pub secure_port: Option<u16>,
    /// Where a self-signed certificate is kept if none is given
    #[arg(long, default_value = "/var/run/kubernetes")]
    pub cert_dir: PathBuf,
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
}

impl Serving {
    /// # Errors
    /// A flag asks for what there is not.
    pub fn check(&self, kubeconfig: &Path) -> Result<(), InvalidFlags> {
        for (name, other) in [
            ("authentication-kubeconfig", &self.authentication_kubeconfig),
            ("authorization-kubeconfig", &self.authorization_kubeconfig),
        ] {
            if other.as_ref().is_some_and(|path| path != kubeconfig) {
                return Err(InvalidFlags::SeparateKubeconfig(name));
            }
        }
        Ok(())
    }

    fn server_tls(&self, daemon: &str) -> Result<ServerTls, TlsError> {
        let mut made = match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(cert), Some(key)) => {
                ServerTls { cert_file: cert.clone(), key_file: key.clone(), ..ServerTls::default() }
            }
            _ => tls::ensure_self_signed(&self.cert_dir, daemon, &["localhost".to_owned()])?,
        };
        made.client_ca_file.clone_from(&self.client_ca_file);
        made.client_auth = ClientAuth::Optional;
        Ok(made)
    }

    /// Listens for `daemon`, on `port` unless a flag says otherwise.
    ///
    /// # Errors
    /// The address is taken, or there is no certificate and none can be made.
    pub async fn bind(
        &self,
        daemon: &str,
        port: u16,
        client: kube::Client,
        registry: &Registry,
    ) -> Result<Bound, ServeError> {
        let address = (self.bind_address, self.secure_port.unwrap_or(port)).into();
        let mut endpoints = Endpoints::new(address, health::Checks::new(), registry.clone());
        endpoints.tls = Some(self.server_tls(daemon)?);
        endpoints.authorize = Some(delegated::authorize(client));
        endpoints.bind().await
    }
}

/// How a daemon elects its leader.
#[derive(clap::Args, Debug, Clone)]
pub struct Election {
    /// Whether to work only while holding the lease (default true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = flags::boolean)]
    pub leader_elect: Option<bool>,
    /// How long others wait after the last renewal (default 15s)
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_lease_duration: Option<Duration>,
    /// How long the leader tries to renew before it gives up (default 10s)
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_renew_deadline: Option<Duration>,
    /// Between attempts (default 2s)
    #[arg(long, value_parser = flags::duration)]
    pub leader_elect_retry_period: Option<Duration>,
    /// Only "leases" is supported
    #[arg(long)]
    pub leader_elect_resource_lock: Option<String>,
    /// The name of the lease (default: the daemon's name)
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// The namespace of the lease (default kube-system)
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,
}

/// `leaderElection` of a configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ElectionFields {
    leader_elect: Option<bool>,
    lease_duration: Option<GoDuration>,
    renew_deadline: Option<GoDuration>,
    retry_period: Option<GoDuration>,
    resource_lock: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

/// The election that a daemon takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidacy {
    pub lease: LeaseName,
    pub timing: Timing,
}

impl Election {
    /// What flags and file say together; `None` for a daemon that works without an election.
    ///
    /// # Errors
    /// The periods do not fit together, or another kind of lock is asked for.
    pub fn complete(&self, file: ElectionFields, daemon: &str) -> Result<Option<Candidacy>, InvalidFlags> {
        let locks = self.leader_elect_resource_lock.iter().chain(&file.resource_lock);
        if let Some(lock) = locks.into_iter().find(|lock| *lock != "leases") {
            return Err(InvalidFlags::ResourceLock(lock.clone()));
        }
        let pick = |flag: Option<Duration>, file: Option<GoDuration>, standard| {
            flag.or(file.map(Duration::from)).unwrap_or(standard)
        };
        let standard = Timing::default();
        let timing = Timing {
            lease_duration: pick(
                self.leader_elect_lease_duration,
                file.lease_duration,
                standard.lease_duration,
            ),
            renew_deadline: pick(
                self.leader_elect_renew_deadline,
                file.renew_deadline,
                standard.renew_deadline,
            ),
            retry_period: pick(self.leader_elect_retry_period, file.retry_period, standard.retry_period),
        };
        let ordered = timing.lease_duration > timing.renew_deadline
            && timing.renew_deadline > timing.retry_period
            && !timing.retry_period.is_zero();
        if !ordered {
            return Err(InvalidFlags::Timing(timing));
        }
        if !self.leader_elect.or(file.leader_elect).unwrap_or(true) {
            return Ok(None);
        }
        let or = |flag: &Option<String>, file: Option<String>, standard: &str| {
            flag.clone().or(file).unwrap_or_else(|| standard.to_owned())
        };
        let lease = LeaseName {
            namespace: or(&self.leader_elect_resource_namespace, file.resource_namespace, "kube-system"),
            name: or(&self.leader_elect_resource_name, file.resource_name, daemon),
        };
        Ok(Some(Candidacy { lease, timing }))
    }
}

/// Why a daemon's work ended although nobody asked for it. The process should exit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Abandoned {
    #[error("the leader lease was lost")]
    LeaseLost,
    #[error("the work ended by itself")]
    Ended,
}

/// Does `work` until `cancel`: as leader, or at once without a candidacy.
///
/// # Errors
/// The lease was lost, or the work ended by itself.
pub async fn lead<F, Fut>(
    candidacy: Option<Candidacy>,
    client: kube::Client,
    registry: &Registry,
    cancel: CancellationToken,
    work: F,
) -> Result<(), Abandoned>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let Some(Candidacy { lease, timing }) = candidacy else {
        work(cancel.clone()).await;
        return if cancel.is_cancelled() { Ok(()) } else { Err(Abandoned::Ended) };
    };
    let metrics = leader::Metrics::new(registry);
    let election = leader::Election { client, lease, identity: leader::identity(), timing, metrics };
    match election.run(cancel, work).await {
        Ended::Cancelled => Ok(()),
        Ended::Lost => Err(Abandoned::LeaseLost),
        Ended::Finished => Err(Abandoned::Ended),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Flags {
        #[command(flatten)]
        serving: Serving,
        #[command(flatten)]
        election: Election,
    }

    fn complete(arguments: &[&str], file: &str) -> Result<Option<Candidacy>, String> {
        let all = ["daemon"].iter().chain(arguments);
        let flags = Flags::try_parse_from(all).map_err(|error| error.to_string())?;
        flags.serving.check(Path::new("/k")).map_err(|error| error.to_string())?;
        let file = serde_yaml::from_str(file).unwrap();
        flags.election.complete(file, "daemon").map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let standard = complete(&[], "{}").unwrap().unwrap();
        let lease = LeaseName { namespace: "kube-system".into(), name: "daemon".into() };
        assert_eq!(standard, Candidacy { lease, timing: Timing::default() });
        let file = "{leaderElect: false, leaseDuration: 1m, resourceName: other}";
        assert_eq!(complete(&[], file).unwrap(), None);
        let both = complete(&["--leader-elect", "--leader-elect-lease-duration=2m"], file).unwrap().unwrap();
        assert_eq!((both.lease.name.as_str(), both.timing.lease_duration.as_secs()), ("other", 120));
        assert_eq!(complete(&["--leader-elect=false"], "{leaderElect: true}").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_is_named() {
        #[track_caller]
        fn check(arguments: &[&str], file: &str, expected: &str) {
            let error = complete(arguments, file).unwrap_err();
            assert!(error.contains(expected), "{error:?} has no {expected:?}");
        }
        check(&["--leader-elect-lease-duration=1s"], "{}", "lease duration > renew deadline");
        check(&[], "{retryPeriod: 0s}", "retry period > 0");
        check(&["--leader-elect-resource-lock=endpoints"], "{}", "\"endpoints\"");
        check(&[], "{resourceLock: configmaps}", "\"configmaps\"");
        check(&["--authorization-kubeconfig=/other"], "{}", "--authorization-kubeconfig must name");
        check(&["--tls-cert-file=/c"], "{}", "--tls-private-key-file");
    }

    #[tokio::test]
    async fn work_that_ends_unasked_is_a_failure() {
        let client = crate::fake::client(|_, _, _| crate::fake::failure(503, "ServiceUnavailable"));
        let run = async |cancel: CancellationToken| {
            lead(None, client.clone(), &Registry::new(), cancel, |_| std::future::ready(())).await
        };
        assert_eq!(run(CancellationToken::new()).await, Err(Abandoned::Ended));
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert_eq!(run(cancelled).await, Ok(()));
    }
}

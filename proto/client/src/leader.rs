//! Leader election on a `coordination.k8s.io/v1` Lease, as client-go does it: a candidate takes the lease when its
//! holder has not renewed it for `lease_duration` of the candidate's own monotonic clock, so clocks need not
//! agree. A leader that cannot renew within `renew_deadline` stops leading before anyone else may start.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_component_base::metrics::Registry;
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, PostParams};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Which Lease is contended for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseName {
    pub namespace: String,
    pub name: String,
}

/// The periods of an election; `lease_duration > renew_deadline > retry_period` must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: String,
}

/// `leader_election_*`; made once per process.
#[derive(Clone)]
pub struct Metrics {
    status: Family<Name, Gauge>,
    slow: Family<Name, Counter>,
}

impl Metrics {
    #[must_use]
    pub fn new(registry: &Registry) -> Self {
        Self {
            status: registry.gauges(
                "leader_election_master_status",
                "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates master",
            ),
            slow: registry.counters(
                "leader_election_slowpath",
                "Total number of slow path exercised in renewing leader leases",
            ),
        }
    }
}

/// Why [`Election::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The caller cancelled; the lease, if held, was released.
    Cancelled,
    /// The lease could not be renewed in time. The process should exit, as upstream's daemons do.
    Lost,
    /// What runs while leading ended by itself; the lease was released.
    Finished,
}

/// One candidate.
#[derive(Clone)]
pub struct Election {
    pub client: Client,
    pub lease: LeaseName,
    /// Unique to this process; see [`identity`].
    pub identity: String,
    pub timing: Timing,
    pub metrics: Metrics,
}

/// `<hostname>_<uuid>`, the identity that upstream's daemons use.
#[must_use]
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    format!("{host}_{}", uuid::Uuid::new_v4())
}

/// The lease as last seen, and when it last changed by our clock.
struct Observed {
    lease: Lease,
    at: Instant,
}

struct Candidate<'a> {
    election: &'a Election,
    api: Api<Lease>,
    observed: Option<Observed>,
    /// When the lease was last taken or renewed: the begin of the attempt, since the server's clock for it may have
    /// started then.
    renewed: Instant,
}

impl Election {
    /// Waits for the lease, then runs `on_lead` while holding it. `on_lead` is given a token that is cancelled when
    /// it must stop; after a cancellation by the caller it is waited for (for as long as the lease lasts, but for
    /// `renew_deadline` at most) before the lease is released, after a loss it is dropped at once.
    pub async fn run<F, Fut>(self, cancel: CancellationToken, on_lead: F) -> Ended
    where
        F: FnOnce(CancellationToken) -> Fut,
        Fut: Future<Output = ()>,
    {
        let label = Name { name: self.lease.name.clone() };
        let status = self.metrics.status.get_or_create_owned(&label);
        status.set(0);
        let api = Api::namespaced(self.client.clone(), &self.lease.namespace);
        let mut candidate = Candidate { election: &self, api, observed: None, renewed: Instant::now() };
        tokio::select! {
            () = cancel.cancelled() => return Ended::Cancelled,
            () = candidate.acquire() => {}
        }
        tracing::info!(lease = self.lease.name, identity = self.identity, "Became leader");
        status.set(1);

        let stop = cancel.child_token();
        let lead = on_lead(stop.clone());
        tokio::pin!(lead);
        let (ended, running) = tokio::select! {
            () = &mut lead => (if cancel.is_cancelled() { Ended::Cancelled } else { Ended::Finished }, false),
            () = candidate.renew() => (Ended::Lost, true),
            () = cancel.cancelled() => (Ended::Cancelled, true),
        };
        stop.cancel();
        status.set(0);
        if ended == Ended::Lost {
            tracing::error!(lease = self.lease.name, "Lost the lease");
            return ended;
        }
        if running {
            // Nobody leads beside us for as long as the lease lasts without renewal.
            let lasts = candidate.renewed + self.timing.lease_duration;
            let until = lasts.min(Instant::now() + self.timing.renew_deadline);
            let _ = tokio::time::timeout_at(until, lead).await;
        }
        candidate.release().await;
        ended
    }
}

impl Candidate<'_> {
    async fn acquire(&mut self) {
        let timing = self.election.timing;
        let mut holder = None;
        loop {
            let began = Instant::now();
            match tokio::time::timeout(timing.renew_deadline, self.try_once()).await {
                Ok(Ok(true)) => {
                    self.renewed = began;
                    return;
                }
                Ok(Ok(false)) => {
                    let now = self.holder().map(str::to_owned);
                    if now != holder {
                        tracing::info!(
                            lease = self.election.lease.name,
                            leader = now,
                            "Waiting for the leader's lease"
                        );
                        holder = now;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = self.election.lease.name,
                        error = &error as &dyn std::error::Error,
                        "Could not get the lease"
                    );
                }
                Err(_) => tracing::warn!(lease = self.election.lease.name, "Getting the lease timed out"),
            }
            // Jitter keeps candidates from trying in step.
            let jitter = rand::random_range(1.0..2.2);
            tokio::time::sleep(timing.retry_period.mul_f64(jitter)).await;
        }
    }

    /// Returns when the lease is lost.
    async fn renew(&mut self) {
        let timing = self.election.timing;
        loop {
            tokio::time::sleep(timing.retry_period).await;
            let deadline = self.renewed + timing.renew_deadline;
            let began = Instant::now();
            match tokio::time::timeout_at(deadline, self.try_once()).await {
                Ok(Ok(true)) => self.renewed = began,
                // Someone else holds it: there is nothing left to wait for.
                Ok(Ok(false)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(
                        lease = self.election.lease.name,
                        error = &error as &dyn std::error::Error,
                        "Could not renew the lease"
                    );
                    if Instant::now() >= deadline {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn holder(&self) -> Option<&str> {
        self.observed.as_ref()?.lease.spec.as_ref()?.holder_identity.as_deref()
    }

    /// One attempt to take or renew the lease; whether it is ours now.
    async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let name = &self.election.lease.name;
        if let Some(ours) = self.observed.as_ref().map(|observed| &observed.lease)
            && self.holder() == Some(self.election.identity.as_str())
        {
            // What we wrote last should be what is there: no need to read it first.
            let lease = Lease { spec: Some(self.spec(ours.spec.as_ref())), ..ours.clone() };
            match self.api.replace(name, &PostParams::default(), &lease).await {
                Ok(lease) => {
                    self.observe(lease);
                    return Ok(true);
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    let label = Name { name: name.clone() };
                    self.election.metrics.slow.get_or_create(&label).inc();
                }
                Err(error) => return Err(error),
            }
        }
        let Some(live) = self.api.get_opt(name).await? else {
            let metadata = ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.election.lease.namespace.clone()),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            let made = self.api.create(&PostParams::default(), &lease).await;
            return match made {
                Ok(lease) => {
                    self.observe(lease);
                    Ok(true)
                }
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
                Err(error) => Err(error),
            };
        };
        self.observe(live.clone());
        let held_by_other =
            self.holder().is_some_and(|holder| !holder.is_empty() && holder != self.election.identity);
        if held_by_other && let Some(observed) = &self.observed {
            // The holder's own word on the duration counts, as in client-go.
            let duration = observed.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
            let duration = duration.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = duration.map_or(self.election.timing.lease_duration, Duration::from_secs);
            if observed.at.elapsed() < duration {
                return Ok(false);
            }
        }
        let lease = Lease { spec: Some(self.spec(live.spec.as_ref())), ..live };
        match self.api.replace(name, &PostParams::default(), &lease).await {
            Ok(lease) => {
                self.observe(lease);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 && held_by_other => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn observe(&mut self, lease: Lease) {
        if self.observed.as_ref().is_none_or(|observed| observed.lease.spec != lease.spec) {
            self.observed = Some(Observed { lease, at: Instant::now() });
        }
    }

    fn spec(&self, live: Option<&LeaseSpec>) -> LeaseSpec {
        let now = times::api_micro_time(Timestamp::now());
        let identity = &self.election.identity;
        let ours = live.filter(|spec| spec.holder_identity.as_ref() == Some(identity));
        let transitions = live.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(identity.clone()),
            lease_duration_seconds: Some(
                self.election.timing.lease_duration.as_secs().try_into().unwrap_or(i32::MAX),
            ),
            acquire_time: ours.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(match (live, ours) {
                (Some(_), None) => transitions.saturating_add(1),
                _ => transitions,
            }),
            ..live.cloned().unwrap_or_default()
        }
    }

    /// Gives the lease up, so that the next leader need not wait for it to expire.
    async fn release(&self) {
        let Some(observed) = &self.observed else { return };
        let now = times::api_micro_time(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..observed.lease.spec.clone().unwrap_or_default()
        };
        let name = &self.election.lease.name;
        let attempt = async {
            // A renewal that was cut short may have reached the server: write over what is there now.
            let live = self.api.get(name).await?;
            let holder = live.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            if holder == Some(self.election.identity.as_str()) {
                let lease = Lease { spec: Some(spec), ..live };
                self.api.replace(name, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(self.election.timing.renew_deadline, attempt).await {
            Ok(Ok(())) => tracing::info!(lease = name, "Released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(
                    lease = name,
                    error = &error as &dyn std::error::Error,
                    "Could not release the lease"
                );
            }
            Err(_) => tracing::warn!(lease = name, "Releasing the lease timed out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use serde_json::{Value, json};
    use std::sync::Arc;
    use tokio::sync::oneshot;

    /// An API server that holds one lease.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<parking_lot::Mutex<Option<Value>>>,
        down: Arc<std::sync::atomic::AtomicBool>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            fake::client(move |method, _, body| server.answer(method, body))
        }

        fn answer(&self, method: &str, mut body: Value) -> fake::Answer {
            if self.down.load(std::sync::atomic::Ordering::SeqCst) {
                return fake::failure(503, "ServiceUnavailable");
            }
            let mut lease = self.lease.lock();
            match (method, lease.as_ref()) {
                ("GET", Some(live)) => fake::json(200, live),
                ("GET", None) => fake::failure(404, "NotFound"),
                ("POST", Some(_)) => fake::failure(409, "AlreadyExists"),
                ("POST", None) => {
                    body["metadata"]["resourceVersion"] = json!("1");
                    *lease = Some(body.clone());
                    fake::json(201, &body)
                }
                ("PUT", Some(live))
                    if live["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] =>
                {
                    let version: u64 = live["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                    body["metadata"]["resourceVersion"] = json!((version + 1).to_string());
                    *lease = Some(body.clone());
                    fake::json(200, &body)
                }
                _ => fake::failure(409, "Conflict"),
            }
        }

        fn holder(&self) -> String {
            let lease = self.lease.lock();
            lease
                .as_ref()
                .and_then(|lease| lease["spec"]["holderIdentity"].as_str())
                .unwrap_or("-")
                .to_owned()
        }

        fn election(&self, identity: &str) -> Election {
            Election {
                client: self.client(),
                lease: LeaseName { namespace: "kube-system".into(), name: "kube-scheduler".into() },
                identity: identity.to_owned(),
                timing: Timing::default(),
                metrics: Metrics::new(&Registry::new()),
            }
        }
    }

    type Candidate = (CancellationToken, oneshot::Receiver<()>, tokio::task::JoinHandle<Ended>);

    fn candidate(server: &Server, identity: &str) -> Candidate {
        let cancel = CancellationToken::new();
        let (leading, began) = oneshot::channel();
        let election = server.election(identity).run(cancel.clone(), |stop| async move {
            let _ = leading.send(());
            stop.cancelled().await;
        });
        (cancel, began, tokio::spawn(election))
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_release_hands_over_at_once() {
        let server = Server::default();
        let (cancel, leading, first) = candidate(&server, "a");
        leading.await.unwrap();
        assert_eq!(server.holder(), "a");
        let (cancel_b, mut leading_b, second) = candidate(&server, "b");
        // Far beyond the lease's duration: the leader renews.
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(leading_b.try_recv().is_err());
        cancel.cancel();
        assert_eq!(first.await.unwrap(), Ended::Cancelled);
        assert_eq!(server.holder(), "");
        let released = Instant::now();
        leading_b.await.unwrap();
        assert!(released.elapsed() < Duration::from_secs(6), "{:?}", released.elapsed());
        assert_eq!(server.holder(), "b");
        assert_eq!(server.lease.lock().as_ref().unwrap()["spec"]["leaseTransitions"], 1);
        cancel_b.cancel();
        assert_eq!(second.await.unwrap(), Ended::Cancelled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_may_start() {
        let server = Server::default();
        let (_cancel, leading, first) = candidate(&server, "a");
        leading.await.unwrap();
        server.down.store(true, std::sync::atomic::Ordering::SeqCst);
        let down = Instant::now();
        assert_eq!(first.await.unwrap(), Ended::Lost);
        assert!(down.elapsed() <= Timing::default().renew_deadline + Timing::default().retry_period);
        assert_eq!(server.holder(), "a", "a lost lease is not released: it may be another's by now");

        server.down.store(false, std::sync::atomic::Ordering::SeqCst);
        let seen = Instant::now();
        let (cancel, leading, second) = candidate(&server, "b");
        leading.await.unwrap();
        // By its own clock the candidate waits the whole duration from when it first saw the lease.
        assert!(seen.elapsed() >= Timing::default().lease_duration, "{:?}", seen.elapsed());
        cancel.cancel();
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_someone_else_took_is_lost_at_once() {
        let server = Server::default();
        let (_cancel, leading, first) = candidate(&server, "a");
        leading.await.unwrap();
        {
            let mut lease = server.lease.lock();
            let lease = lease.as_mut().unwrap();
            lease["spec"]["holderIdentity"] = json!("thief");
            lease["metadata"]["resourceVersion"] = json!("99");
        }
        let taken = Instant::now();
        assert_eq!(first.await.unwrap(), Ended::Lost);
        assert!(taken.elapsed() <= Timing::default().retry_period);
        assert_eq!(server.holder(), "thief");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_ends_releases_the_lease() {
        let server = Server::default();
        let ended = server.election("a").run(CancellationToken::new(), |_| async {}).await;
        assert_eq!((ended, server.holder().as_str()), (Ended::Finished, ""));
    }
}

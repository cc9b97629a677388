//! The life of the process: listen, serve, and drain when asked to stop or when the node cannot go on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use keelson_component_base::metrics::Registry;
use keelson_component_base::shutdown;
use keelson_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::etcd::etcdserverpb::{AlarmRequest, AlarmType, Member};
use keelson_proto::etcd::storepb::command::Operation;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::calls::{Calls, CallsCollector};
use crate::compactor;
use crate::config::{Config, ConfigError, MetricsDetail, Url};
use crate::corruption::{self, Inconsistent};
use crate::env::Env;
use crate::grpc::Server;
use crate::join::{self, JoinError};
use crate::node::{Event, Stopped};
use crate::rejoin;
use crate::serve::{Listener, ServeError, Services};
use crate::start::{self, Running, StartError};
use crate::transport::PeerService;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot start the async runtime")]
    Runtime(#[source] io::Error),
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    #[error("cannot serve")]
    Serve(#[from] ServeError),
    #[error("cannot start")]
    Start(#[from] StartError),
    #[error("cannot start")]
    Join(#[from] JoinError),
    #[error("stopped")]
    Node(#[from] Stopped),
    #[error("not serving: its data is not what the other members hold")]
    Inconsistent(#[from] Inconsistent),
    #[error("cannot describe its services")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
}

/// Bytes that have to be free on the disk for writes to be accepted.
const RESERVE: u64 = 64 << 20;
/// Pause before a member without a leader asks again whether it may serve.
const READY_RETRY: Duration = Duration::from_millis(50);
const SPACE_CHECK: Duration = Duration::from_secs(2);
/// Where not much is free, it may be gone sooner.
const SPACE_CHECK_SOON: Duration = Duration::from_millis(200);
const SPACE_SOON: u64 = 1 << 30;
/// How long a leader that stops waits for another one to take over.
const HANDOVER: Duration = Duration::from_secs(1);

/// Why a member ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or was removed.
    Stopped,
    /// It may have to join another incarnation of its cluster: the process has to begin anew.
    Superseded,
}

/// The runtime of the node and of the connections to its peers: whatever clients ask for, it keeps neither heartbeats nor
/// votes waiting.
struct Consensus(Option<Runtime>);

impl Consensus {
    fn start() -> Result<(Self, Handle), RunError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("consensus").enable_all().build();
        let runtime = runtime.map_err(RunError::Runtime)?;
        let handle = runtime.handle().clone();
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for Consensus {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // After a failure a thread may hang on the disk.
            runtime.shutdown_background();
        }
    }
}

/// Runs a member until a signal, or until it cannot go on.
///
/// # Errors
/// Why it did not start, or had to stop.
pub async fn run(config: &Config) -> Result<Ended, RunError> {
    config.check()?;
    for warning in config.unused_certificates() {
        tracing::warn!("{warning}");
    }
    let signalled = shutdown::signalled().map_err(RunError::Signals)?;
    // Ports first: one that is taken is known before anything is touched.
    let (clients, peers) = (config.client_tls()?, config.peer_tls()?);
    let mut client_listeners = Vec::new();
    for url in &config.listen_client_urls {
        client_listeners.push(Listener::bind(url, clients.as_ref()).await?);
    }
    let mut peer_listeners = Vec::new();
    for url in &config.listen_peer_urls {
        peer_listeners.push(Listener::bind(url, peers.as_ref()).await?);
    }
    let mut metrics_listeners = Vec::new();
    for url in &config.listen_metrics_urls {
        metrics_listeners.push(Listener::bind(url, clients.as_ref()).await?);
    }

    let env = Env::real();
    let registry = Registry::new();
    registry.build_info("etcd_server_version", &[("server_version", crate::grpc::ETCD_VERSION)]);
    registry.build_info("etcd_cluster_version", &[("cluster_version", crate::grpc::CLUSTER_VERSION)]);
    let stopping = CancellationToken::new();
    let (_consensus, consensus) = Consensus::start()?;
    let origin = tokio::select! {
        () = signalled.cancelled() => return Ok(Ended::Stopped),
        origin = join::origin(config, &env) => origin?,
    };
    let Running { server, snapshots, events, epoch, mut node, wal, tree, lock } =
        tokio::task::block_in_place(|| {
            start::start(config, &env, &origin, &registry, stopping.clone(), &consensus)
        })
        .inspect_err(|error| advise(config, &env, error))?;
    let values = server.state.store.values.clone();

    let (stop_serving, serving) = (CancellationToken::new(), TaskTracker::new());
    let (refuse, mut refused) = oneshot::channel();
    let calls = Calls::new(config.metrics == MetricsDetail::Extensive);
    registry.collector(Box::new(CallsCollector(calls.clone())));
    let service = Services::clients(&server, &registry, calls).map_err(RunError::Reflection)?;
    let clients =
        ServeClients { listeners: client_listeners, check: config.initial_corrupt_check(), service };
    serving.spawn(clients.run(server.clone(), stop_serving.clone(), refuse));
    let service = Services::peers(PeerService::new(server.clone(), snapshots, epoch));
    for listener in peer_listeners {
        tracing::info!(url = %listener.url, "serving peers");
        serving.spawn_on(listener.serve(service.clone(), stop_serving.clone()), &consensus);
    }
    let service = Services::metrics(&server, &registry);
    for listener in metrics_listeners {
        tracing::info!(url = %listener.url, "serving metrics and health");
        serving.spawn(listener.serve(service.clone(), stop_serving.clone()));
    }
    serving.close();
    let background = TaskTracker::new();
    background.spawn(publish(server.clone(), config.clone(), stopping.clone()));
    background.spawn(rejoin::complete(server.clone(), config.clone(), env.clone(), stopping.clone()));
    if let Some(retention) = config.retention()? {
        background.spawn(compactor::run(server.clone(), retention, stopping.clone()));
    }
    if !config.corrupt_check_time.is_zero() {
        let every = config.corrupt_check_time;
        background.spawn(corruption::check_periodically(server.clone(), every, stopping.clone()));
    }
    background.spawn(watch_space(server.clone(), config.data_directory(), env.clone(), stopping.clone()));

    let mut inconsistent = None;
    let mut ended = Ended::Stopped;
    let failed = tokio::select! {
        () = signalled.cancelled() => None,
        () = rejoin::found_superseded(server.clone(), config, &env) => {
            ended = Ended::Superseded;
            tracing::warn!("{}: it begins anew", crate::transport::SUPERSEDED);
            None
        }
        Ok(error) = &mut refused => {
            inconsistent = Some(error);
            None
        }
        // It has no panic to tell of: those end the process.
        result = &mut node => Some(result.unwrap_or(Ok(()))),
    };
    if failed.is_none() {
        hand_over(&server).await;
    }
    stopping.cancel();
    stop_serving.cancel();
    serving.wait().await;
    let result = match failed {
        Some(result) => result,
        None => {
            // The node ends its threads; it may have ended by itself.
            let _ = events.send(Event::Stop);
            node.await.unwrap_or(Ok(()))
        }
    };
    background.close();
    background.wait().await;
    values.close();
    tokio::task::block_in_place(|| {
        // After a failure a thread may hang on the disk; what it would write is in the log, or was never acknowledged.
        if result.is_ok() {
            let _ = wal.join();
            let _ = tree.join();
        }
    });
    if let Err(Stopped::Removed) = result {
        join::mark_removed(&env, &config.data_directory())?;
        tracing::error!(
            directory = %config.data_directory().display(),
            "{}: it stops; its data directory is of no use any more",
            crate::transport::REMOVED
        );
        return Ok(Ended::Stopped);
    }
    drop(lock);
    if let Err(error) = &result {
        advise(config, &env, error);
    }
    tracing::info!("stopped");
    result?;
    inconsistent.map_or(Ok(ended), |error| Err(error.into()))
}

/// Says what to do about an end that a full disk may have brought about.
fn advise(config: &Config, env: &Env, error: &(dyn std::error::Error + 'static)) {
    let directory = config.data_directory();
    // No write is possible there whatever is free, which often is nothing.
    if is_read_only(error) {
        return;
    }
    if let Ok(available) = env.disk.available(&directory)
        && available < RESERVE
    {
        tracing::error!(
            directory = %directory.display(),
            available,
            "the disk is full: free disk space and start again; nothing that was acknowledged is lost"
        );
    }
}

/// Whether what is behind an error is a disk that takes no writes from this process at all.
fn is_read_only(error: &(dyn std::error::Error + 'static)) -> bool {
    let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| kinds.contains(&error.kind())) {
            return true;
        }
        next = error.source();
    }
    false
}

/// Serving clients.
struct ServeClients {
    listeners: Vec<Listener>,
    /// Compares this member with its peers before.
    check: bool,
    service: Services,
}

impl ServeClients {
    /// Serves clients once this member knows all that was committed before it started, as etcd does: after a
    /// restart the tail of the log is applied only when a leader has committed it, and a client that was
    /// told of a revision must never be answered with an older one.
    async fn run(
        self,
        server: Arc<Server>,
        stop_serving: CancellationToken,
        refuse: oneshot::Sender<Inconsistent>,
    ) {
        let ready = async {
            while let Err(error) = server.confirm().await {
                tracing::info!(error = error.message(), "not serving clients yet");
                tokio::time::sleep(READY_RETRY).await;
            }
            match self.check {
                true => corruption::initial_check(&server).await,
                false => Ok(()),
            }
        };
        tokio::select! {
            () = stop_serving.cancelled() => return,
            checked = ready => {
                if let Err(error) = checked {
                    // The process may be stopping already.
                    let _ = refuse.send(error);
                    return;
                }
            }
        }
        let serving = TaskTracker::new();
        for listener in self.listeners {
            tracing::info!(url = %listener.url, "serving clients");
            serving.spawn(listener.serve(self.service.clone(), stop_serving.clone()));
        }
        serving.close();
        serving.wait().await;
    }
}

/// A leader that stops lets another one take over first, so that writes go on at once.
async fn hand_over(server: &Arc<Server>) {
    if !server.shared.is_leader() {
        return;
    }
    let others: Vec<u64> = {
        let members = server.state.members.read();
        let others = members.values().filter(|other| other.id != server.member && !other.is_learner);
        others.map(|other| other.id).collect()
    };
    let mut leader = server.shared.watch_leader();
    for to in others {
        if server.events.send(Event::MoveLeader { to }).is_err() {
            return;
        }
        let moved = leader.wait_for(|leader| *leader != server.member && *leader != 0);
        if let Ok(Ok(leader)) = tokio::time::timeout(HANDOVER, moved).await {
            tracing::info!(leader = format!("{:x}", *leader), "handed over");
            return;
        }
    }
}

/// Tells the other members this one's name and clients' URLs, until it is known. Not before it has a state: whoever has
/// told its name is taken for one that may have lost what it once promised, and elects nobody until it is given a log.
async fn publish(server: Arc<Server>, config: Config, stopping: CancellationToken) {
    let client_urls: Vec<String> = config.advertised_client_urls().iter().map(Url::to_string).collect();
    let mut begun = server.shared.watch_membership();
    let publish = async {
        // The sender lives as long as the server.
        let _ = begun.wait_for(|_| server.state.applied() > 0).await;
        loop {
            let known = server.state.members.read().get(&server.member).cloned();
            match known {
                Some(known) if known.name == config.name && known.client_urls == client_urls => return,
                _ => {}
            }
            let member = Member {
                id: server.member,
                name: config.name.clone(),
                client_urls: client_urls.clone(),
                ..Member::default()
            };
            if let Err(error) = server.propose(Operation::Publish(member)).await {
                tracing::warn!(error = error.message(), "cannot publish this member's client URLs yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = publish => tracing::info!("published this member's client URLs"),
    }
}

/// Raises or disarms a member's alarm; what fails is tried again by whoever watches.
async fn tell_space(server: Arc<Server>, member_id: u64, lacks: bool) {
    let action = if lacks { AlarmAction::Activate } else { AlarmAction::Deactivate };
    let request = AlarmRequest { action: action as i32, member_id, alarm: AlarmType::Nospace as i32 };
    if let Err(error) = server.propose(Operation::Alarm(request)).await {
        tracing::debug!(error = error.message(), "cannot tell the other members about space");
    }
}

/// Whose alarm is not as it should be, and how it should: this member's, which `lacks` space or does not. If it leads and
/// has space, also that of one that has been silent for long and may never disarm it; should that one come back with too
/// much, it raises it again by itself.
fn alarm_to_tell(server: &Server, lacks: bool) -> Option<(u64, bool)> {
    let alarms = server.state.alarms.read();
    if alarms.has(server.member, AlarmType::Nospace) != lacks {
        return Some((server.member, lacks));
    }
    let mut raised = alarms.list(AlarmType::Nospace).into_iter().map(|alarm| alarm.member_id);
    let silent = raised.find(|member| !lacks && server.shared.is_silent(*member));
    silent.map(|member| (member, false))
}

/// Refuses writes while the quota is exceeded or the disk nearly full, and accepts them again by itself.
async fn watch_space(
    server: Arc<Server>,
    directory: std::path::PathBuf,
    env: Env,
    stopping: CancellationToken,
) {
    let mut telling: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        // What compaction leaves, not what the tree's file takes: that never shrinks, so it would refuse for good.
        let size = server.state.store.in_use();
        // An error is not taken for a full disk.
        let available = env.disk.available(&directory).unwrap_or(u64::MAX);
        let low = size > server.limits.quota || available < RESERVE;
        if server.shared.set_low_space(low) != low {
            if low {
                tracing::error!(
                    size,
                    quota = server.limits.quota,
                    available,
                    directory = %directory.display(),
                    "no space: writes are refused; delete and compact, raise --quota-backend-bytes, or free disk space"
                );
            } else {
                tracing::info!(size, available, "there is space again: writes are accepted");
            }
        }
        // The quota is the cluster's: the others refuse writes too, as in etcd. A full disk is this member's own trouble, and
        // the others go on without it. It is told beside, since it takes as long as there is no quorum.
        if telling.as_ref().is_none_or(tokio::task::JoinHandle::is_finished)
            && let Some((member, lacks)) = alarm_to_tell(&server, size > server.limits.quota)
        {
            telling = Some(tokio::spawn(tell_space(server.clone(), member, lacks)));
        }
        let pause = if available < SPACE_SOON { SPACE_CHECK_SOON } else { SPACE_CHECK };
        tokio::select! {
            () = stopping.cancelled() => return,
            () = server.look_at_space.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_takes_no_writes_is_not_taken_for_full() {
        let check = |kind: io::ErrorKind, expected: bool| {
            let error = StartError::Directory("data".into(), kind.into());
            assert_eq!(is_read_only(&error), expected, "{kind}");
            assert_eq!(is_read_only(&RunError::from(error)), expected, "{kind}");
        };
        check(io::ErrorKind::ReadOnlyFilesystem, true);
        check(io::ErrorKind::PermissionDenied, true);
        check(io::ErrorKind::StorageFull, false);
        check(io::ErrorKind::Other, false);
    }
}

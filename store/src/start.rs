//! Bringing a member up: snapshot, tree and log are read and made to agree, then its threads and listeners start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keelson_component_base::metrics::Registry;
use keelson_proto::etcd::storepb::Metadata;
use keelson_raft::{ConfState, Group, Initial};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::apply::State;
use crate::config::Config;
use crate::env::Env;
use crate::grpc::{self, Limits, Server};
use crate::incarnation::peer_cluster;
use crate::join::{JoinError, Origin, initial_members};
use crate::membership::Members;
use crate::metrics::{Metrics, StateCollector, WalObserver};
use crate::mvcc::{Backend, BackendError, Index, Loaded, Store, Values};
use crate::node::{Event, Network, Node, Parts, Shared, Stopped};
use crate::recovery::{self, RecoveryError};
use crate::shrink::Shrinker;
use crate::snapshot::{self, SnapshotError, Snapshots};
use crate::transport::{PeerNetwork, Peers, PeersConfig};
use crate::trees::{TREE_SPACE, Trees};
use crate::wal::{self, Identity, Known, Recovered, Wal, WalError};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("data directory {} cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    #[error("data directory {} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("cannot open the write-ahead log")]
    Wal(#[from] WalError),
    #[error(
        "the write-ahead log begins at {first}, behind the snapshot at {snapshot}: entries between are missing. {}",
        wal::REPLACE
    )]
    Gap { first: u64, snapshot: u64 },
    #[error("cannot open the snapshot")]
    Snapshot(#[from] SnapshotError),
    #[error("cannot build the tree of values")]
    Tree(#[from] BackendError),
    #[error("consensus refuses the state on disk")]
    Raft(#[from] keelson_raft::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot make this member the only one of its cluster")]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// What the disk says.
pub struct Disks {
    pub snapshots: Snapshots,
    pub trees: Trees,
    pub backend: Arc<dyn Backend>,
    pub loaded: Loaded,
    pub wal: Wal,
    pub recovered: Recovered,
}

/// The position at which a cluster begins. All its members have the same state there, and no entry before it, so that
/// one that joins later gets a snapshot.
const BEGINNING: (u64, u64) = (1, 1);

/// What is in the state when a cluster begins.
fn beginning(members: Members) -> Metadata {
    let empty = Index::new();
    let mut metadata = Metadata {
        applied_index: BEGINNING.0,
        applied_term: BEGINNING.1,
        revision: empty.revision,
        compact_revision: empty.compacted,
        ..Metadata::default()
    };
    members.describe(&mut metadata);
    metadata
}

/// What a data directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Its member goes on with what it promised.
    Continue,
    /// A new cluster is made of what is still there.
    ForceNewCluster,
}

/// Reads what is in a data directory and makes it agree, repairing and rebuilding what may be.
///
/// An entry is in a tree only after the log's fsync, so a tree that is ahead of log and snapshot proves that the log has
/// lost what was durable, and may be the only place that has it.
///
/// # Errors
/// What must not be repaired, and the disk's.
pub fn open(env: &Env, directory: &Path, origin: &Origin, purpose: Purpose) -> Result<Disks, StartError> {
    let member = directory.join("member");
    let identity = origin.identity();
    let mut snapshots = Snapshots::open(env.disk.clone(), &member.join("snap"), identity.cluster)?;
    if let Origin::Bootstrap { members, .. } = origin
        && snapshots.latest().is_none()
    {
        snapshots.begin(beginning(Members::bootstrap(members.iter().cloned())), identity.cluster)?;
    }
    let (index, term) = snapshots.latest().map_or((0, 0), snapshot::position);
    let trees = Trees::new(env, member.join("tree"))?;
    let forced = purpose == Purpose::ForceNewCluster;
    let (found, last) = trees.open(index, forced)?;
    let known = Known {
        floor: found.as_ref().map_or(index, |(loaded, _)| loaded.applied.0),
        durable: if last > index { last } else { 0 },
        give_up: forced,
    };
    let (mut wal, mut recovered) =
        Wal::open(env.disk.clone(), &member.join("wal"), identity, known, env.seed)?;
    let (loaded, backend) = match found {
        Some(found) => found,
        None => {
            // None of the others is of use, and on a full disk theirs is the room that the new one takes.
            trees.remove_all();
            let (tree, number) = trees.build(&snapshots)?;
            trees.lock().in_use = number;
            tree
        }
    };
    if recovered.torn > 0 {
        tracing::info!(bytes = recovered.torn, "cut off the last write, which is not whole");
    }
    // A snapshot of a peer may be newer than anything in the log.
    let (applied, applied_term) = loaded.applied;
    if recovered.before.0 > applied {
        return Err(StartError::Gap { first: recovered.before.0 + 1, snapshot: index });
    }
    if recovered.last_index() < applied || (recovered.entries.is_empty() && recovered.before.0 < applied) {
        recovered.cut(index, term);
        wal.append(None, Some((index, term)), &[]);
        wal.commit()?;
    }
    recovered.cut(applied, applied_term);
    Ok(Disks { snapshots, trees, backend, loaded, wal, recovered })
}

/// Ticks in a heartbeat interval: the finer, the less often elections tie.
pub const TICKS: u64 = 2;

/// What a member is to be, apart from what its disk says.
pub struct Setup<'a> {
    pub directory: &'a Path,
    pub origin: &'a Origin,
    /// The members as the configuration names them: for a tree of a version that could not change the membership.
    pub configured: Members,
    pub heartbeat: Duration,
    /// The least election timeout.
    pub election: Duration,
    /// After which a request fails.
    pub request_timeout: Duration,
    pub strict_reconfig_check: bool,
    pub max_learners: u32,
}

impl Setup<'_> {
    pub fn tick(&self) -> Duration {
        self.heartbeat / TICKS as u32
    }
}

/// A member that is put together and does not run: its loop, and what its threads do. A simulation steps them; a process
/// has a thread for each.
pub struct Built<N> {
    pub node: Node,
    pub network: N,
    pub wal: wal::Writer,
    pub keeper: snapshot::Worker,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub snapshots: Arc<Mutex<Snapshots>>,
}

/// Reads what is on the disk and puts a member together; its events come from `events`' other end.
///
/// # Errors
/// Anything on disk that cannot be used.
pub fn build<N: Network + Clone + 'static>(
    env: &Env,
    setup: Setup<'_>,
    metrics: &Arc<Metrics>,
    network: impl FnOnce(&State) -> N,
    events: &UnboundedSender<Event>,
) -> Result<Built<N>, StartError> {
    let Identity { cluster, member } = setup.origin.identity();
    let Disks { snapshots, trees, backend, loaded, wal, recovered } =
        open(env, setup.directory, setup.origin, Purpose::Continue)?;
    let (applied, applied_term) = loaded.applied;
    let values = Values::new(backend, applied);
    let store = Store::new(loaded.index, values, loaded.in_use);
    let (tick, fallback) = (setup.tick(), fallback_members(setup.origin, setup.configured));
    let state = State::new(store, loaded.leases, fallback, applied)?;
    let initial = initial(recovered, state.members.read().conf_state(), applied);
    tracing::info!(
        applied,
        entries = initial.entries.len(),
        revision = state.store.revision(),
        keys = state.store.key_count(),
        "read the state"
    );
    let shared = Arc::new(Shared::default());
    let observer = WalObserver { metrics: metrics.clone(), shared: shared.clone() };
    let (wal, writer) = wal::writer(wal, observer);
    let snapshots = Arc::new(Mutex::new(snapshots));
    let (keeper, worker) =
        snapshot::worker(snapshots.clone(), state.clone(), cluster, Shrinker::new(trees.clone()));
    if state.store.compacted() > 0 {
        // What an earlier life compacted and may not have removed.
        keeper.submit(snapshot::Job::Compact { revision: state.store.compacted(), index: applied });
    }
    let election_ticks = (setup.election.as_nanos() / tick.as_nanos().max(1)) as usize;
    let group_config = keelson_raft::Config {
        id: member,
        heartbeat_ticks: TICKS as usize,
        election_ticks,
        seed: env.seed,
        max_message: 1 << 20,
        max_uncommitted: 64 << 20,
        joining: matches!(setup.origin, Origin::Join { lost: true, .. }),
    };
    let group = Group::new(&group_config, initial)?;
    let network = network(&state);
    let node = Node::new(
        Parts {
            member,
            cluster,
            epoch: env.seed,
            group,
            state: state.clone(),
            shared: shared.clone(),
            wal,
            keeper,
            snapshots: snapshots.clone(),
            // Peers go on being heard.
            install: Box::new(move |state, snapshots| {
                tokio::task::block_in_place(|| install(&trees, state, snapshots))
            }),
            network: Box::new(network.clone()),
            clock: env.clock.clone(),
            metrics: metrics.clone(),
            tick,
            request_ticks: (setup.request_timeout.as_millis() / tick.as_millis().max(1)) as u64,
            election_ticks: election_ticks as u64,
            strict_reconfig_check: setup.strict_reconfig_check,
            max_learners: setup.max_learners,
            events: events.clone(),
        },
        applied_term,
    );
    Ok(Built { node, network, wal: writer, keeper: worker, state, shared, snapshots })
}

/// A member that is up.
pub struct Running {
    pub server: Arc<Server>,
    pub snapshots: Arc<Mutex<Snapshots>>,
    pub events: UnboundedSender<Event>,
    pub epoch: u64,
    /// Ends with why the member cannot go on, if it did not just stop.
    pub node: JoinHandle<Result<(), Stopped>>,
    pub wal: std::thread::JoinHandle<()>,
    pub tree: std::thread::JoinHandle<()>,
    /// While it is held, no other process uses the data.
    pub lock: fs::File,
}

/// Keeps other processes from the data in a directory.
pub(crate) fn lock(directory: &Path) -> Result<fs::File, StartError> {
    let refused = |error| StartError::Directory(directory.to_owned(), error);
    let file = fs::File::create(directory.join("lock")).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::InUse(directory.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(refused(error)),
    }
}

/// Starts a member; its node, and what that and its peers say to each other, run in `consensus`.
///
/// # Errors
/// Anything on disk that cannot be used; nothing was started then.
pub fn start(
    config: &Config,
    env: &Env,
    origin: &Origin,
    registry: &Registry,
    stopping: tokio_util::sync::CancellationToken,
    consensus: &Handle,
) -> Result<Running, StartError> {
    let directory = config.data_directory();
    env.disk.create_dir(&directory).map_err(|error| StartError::Directory(directory.clone(), error))?;
    let lock = lock(&directory)?;
    let Identity { cluster, member } = origin.identity();
    tracing::info!(
        name = config.name,
        member = format!("{member:x}"),
        cluster = format!("{cluster:x}"),
        data = %directory.display(),
        "starting"
    );
    let configured = config
        .members()
        .map_or_else(|_| Members::default(), |(_, named)| Members::bootstrap(initial_members(&named)));
    if config.force_new_cluster {
        let disks = open(env, &directory, origin, Purpose::ForceNewCluster)?;
        let members = fallback_members(origin, configured.clone());
        recovery::force_new_cluster(disks, origin.identity(), members, env.seed)?;
    }
    let metrics = Metrics::new(registry);
    let limits = limits(config);
    let setup = Setup {
        directory: &directory,
        origin,
        configured,
        heartbeat: Duration::from_millis(config.heartbeat_interval),
        election: Duration::from_millis(config.election_timeout),
        request_timeout: limits.request_timeout,
        strict_reconfig_check: config.strict_reconfig_check,
        max_learners: config.max_learners,
    };
    let (events, inbox) = unbounded_channel();
    let network = |state: &State| {
        let peers_config = PeersConfig {
            cluster: peer_cluster(cluster, state.members.read().incarnation().id),
            member,
            peer_urls: config.initial_advertise_peer_urls.clone(),
            credentials: config.peer_credentials(),
        };
        PeerNetwork(Peers::new(peers_config, events.clone(), metrics.clone(), consensus.clone()))
    };
    let Built { node, network, wal, keeper, state, shared, snapshots } =
        build(env, setup, &metrics, network, &events)?;
    let peers = network.0;
    let collector = StateCollector {
        state: state.clone(),
        shared: shared.clone(),
        metrics: metrics.clone(),
        quota: config.quota(),
        member,
    };
    registry.collector(Box::new(collector));
    let tree = {
        let (measured, room, failed) = (metrics.clone(), events.clone(), events.clone());
        // The node may be gone: then nobody needs to know.
        let (disk, place) = (env.disk.clone(), directory.clone());
        state
            .store
            .values
            .spawn(
                // An error is not taken for a full disk.
                move || disk.available(&place).map_or(true, |available| available >= TREE_SPACE),
                move |took| measured.backend_commit.observe(took.as_secs_f64()),
                move || drop(room.send(Event::TreeDrained)),
                move |error| drop(failed.send(Event::TreeFailed(error))),
            )
            .map_err(StartError::Thread)?
    };
    let wal_events = events.clone();
    let wal = wal::spawn(wal, move |report| drop(wal_events.send(Event::Wal(report))))
        .map_err(StartError::Thread)?;
    let keeper_events = events.clone();
    snapshot::spawn(keeper, move |report| drop(keeper_events.send(Event::Keeper(report))))
        .map_err(StartError::Thread)?;
    let node = consensus.spawn(crate::node::run(node, inbox));
    let server = Server::new(grpc::Parts {
        cluster,
        member,
        state,
        shared,
        metrics,
        events: events.clone(),
        peers,
        limits,
        stopping,
        seed: env.seed,
    });
    Ok(Running { server, snapshots, events, epoch: env.seed, node, wal, tree, lock })
}

fn limits(config: &Config) -> Limits {
    Limits {
        request_bytes: config.max_request_bytes,
        txn_ops: config.max_txn_ops,
        // As in etcd: one and a half election timeouts, in whole seconds.
        min_lease_ttl: (config.election_timeout * 3 / 2).div_ceil(1000).cast_signed(),
        watch_progress: config.watch_progress_notify_interval,
        quota: config.quota(),
        // As in etcd: five seconds, and two elections in case the leader has just been lost.
        request_timeout: Duration::from_secs(5) + Duration::from_millis(2 * config.election_timeout),
    }
}

/// The members as long as the tree does not say.
fn fallback_members(origin: &Origin, configured: Members) -> Members {
    match origin {
        Origin::Bootstrap { members, .. } => Members::bootstrap(members.iter().cloned()),
        Origin::Join { incarnation, members, .. } => {
            Members::hearsay(members.iter().cloned(), incarnation.clone())
        }
        // A tree of a version that could not change the membership has only what members said of themselves.
        Origin::Known(_) => configured,
    }
}

/// Where consensus starts: from the log, and from the state machine at index `applied`.
fn initial(recovered: Recovered, conf_state: ConfState, applied: u64) -> Initial {
    let last = recovered.last_index();
    let mut hard_state = recovered.hard_state;
    // The commit index is not made durable by itself: what was applied had been committed, and what a commit index
    // names beyond the log was lost with it before anyone was answered.
    hard_state.commit = hard_state.commit.max(applied).min(last);
    let last_term = recovered.entries.last().map_or(recovered.before.1, |entry| entry.term);
    if hard_state.term < last_term {
        (hard_state.term, hard_state.vote) = (last_term, 0);
    }
    Initial { hard_state, conf_state, before: recovered.before, entries: recovered.entries, applied }
}

/// Builds a tree from the snapshot that a peer sent and puts it in place.
///
/// # Errors
/// The snapshot's and the tree's; the member has to stop.
fn install(trees: &Trees, state: &State, snapshots: &Snapshots) -> Result<(), Stopped> {
    let ((loaded, backend), number) = trees.build(snapshots).map_err(Stopped::Install)?;
    let mut numbers = trees.lock();
    state.install(loaded, backend).map_err(Stopped::Tree)?;
    numbers.in_use = number;
    drop(numbers);
    trees.remove_but(number);
    Ok(())
}

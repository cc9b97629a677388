//! One member: its disk, which outlives it, and the process that runs on it at a time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use keelson_component_base::metrics::Registry;
use keelson_proto::etcd::etcdserverpb;
use keelson_raft::{Group, Message};
use kube_store::apply::State;
use kube_store::env::{Clock, Env};
use kube_store::join::Origin;
use kube_store::membership::Members;
use kube_store::metrics::{Metrics, WalObserver};
use kube_store::mvcc::{Store, Values};
use kube_store::node::{Event, Network, Node, Parts, Shared, SnapshotSender};
use kube_store::shrink::Shrinker;
use kube_store::snapshot::{self, Outgoing, Snapshots};
use kube_store::start::{self, Disks, StartError, TICKS};
use kube_store::wal::{self, Identity};
use parking_lot::Mutex;

use crate::disk::SimulatedDisk;

pub const CLUSTER: u64 = 0x51;
/// Default timings.
const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION_TICKS: usize = 20;
pub const TICK: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 / TICKS);
const REQUEST: Duration = Duration::from_secs(7);

/// Simulated time, and how far one member's clock is ahead of it.
#[derive(Clone, Default)]
pub struct SimulatedClock {
    pub time: Arc<AtomicU64>,
    pub ahead: Arc<AtomicU64>,
}

impl Clock for SimulatedClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.time.load(Ordering::Relaxed) + self.ahead.load(Ordering::Relaxed))
    }
}

/// What a member has sent and the network has not taken yet.
pub enum Sent {
    Messages { to: u64, messages: Vec<Message> },
    Snapshot { message: Box<Message>, outgoing: Box<Outgoing> },
}

#[derive(Clone, Default)]
pub struct Outbox(Arc<Mutex<Vec<Sent>>>);

impl Outbox {
    pub fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Network for Outbox {
    fn send(&self, to: u64, messages: Vec<Message>) {
        self.0.lock().push(Sent::Messages { to, messages });
    }

    fn follow(&self, _: &Members) {
        // Whoever is named can be reached.
    }

    fn snapshot_sender(&self) -> SnapshotSender {
        let outbox = self.0.clone();
        Box::new(move |message, outgoing| {
            outbox.lock().push(Sent::Snapshot { message: Box::new(message), outgoing: Box::new(outgoing) });
        })
    }
}

/// A process, its threads replaced by what the simulation steps.
pub struct Process {
    pub node: Node,
    pub inbox: Receiver<Event>,
    pub events: Sender<Event>,
    pub wal: wal::Writer,
    pub wal_busy: bool,
    pub keeper: snapshot::Worker,
    pub keeper_busy: bool,
    pub drain_busy: bool,
    pub turn_due: bool,
    pub state: Arc<State>,
    pub shared: Arc<Shared>,
    pub snapshots: Arc<Mutex<Snapshots>>,
    pub outbox: Outbox,
}

/// Starts a process on a disk, as [`start::start`] does.
pub fn boot(
    member: u64,
    members: &[u64],
    disk: &SimulatedDisk,
    clock: &SimulatedClock,
    seed: u64,
) -> Result<Process, StartError> {
    let trees = disk.clone();
    let env = Env {
        clock: Arc::new(clock.clone()),
        disk: Arc::new(disk.clone()),
        open_tree: Arc::new(move |path| trees.open_tree(path)),
        seed,
    };
    let identity = Identity { cluster: CLUSTER, member };
    let members: Vec<etcdserverpb::Member> = members
        .iter()
        .map(|id| etcdserverpb::Member {
            id: *id,
            peer_urls: vec![format!("http://member-{id}:2380")],
            ..Default::default()
        })
        .collect();
    let directory = Path::new("/data");
    // As `join::origin` finds it.
    let known = wal::identity(&*env.disk, &directory.join("member/wal"))?.is_some();
    let origin = match known {
        true => Origin::Known(identity),
        false => Origin::Bootstrap { identity, members: members.clone() },
    };
    let Disks { snapshots, trees, backend, loaded, wal, recovered } = start::open(&env, directory, &origin)?;
    let (applied, applied_term) = loaded.applied;
    let values = Values::new(backend, applied);
    let store = Store::new(loaded.index, values, loaded.in_use);
    let state = State::new(store, loaded.leases, Members::bootstrap(members), applied)?;
    let initial = start::initial(recovered, state.members.read().conf_state(), applied);

    let (events, inbox) = channel();
    let shared = Arc::new(Shared::default());
    let metrics = Metrics::new(&Registry::new());
    let observer = WalObserver { metrics: metrics.clone(), shared: shared.clone() };
    let (wal, writer) = wal::writer(wal, observer);
    let snapshots = Arc::new(Mutex::new(snapshots));
    let (keeper, worker) =
        snapshot::worker(snapshots.clone(), state.clone(), CLUSTER, Shrinker::new(trees.clone()));
    if state.store.compacted() > 0 {
        keeper.submit(snapshot::Job::Compact { revision: state.store.compacted(), index: applied });
    }
    let group = Group::new(
        &keelson_raft::Config {
            id: member,
            heartbeat_ticks: TICKS as usize,
            election_ticks: ELECTION_TICKS,
            seed,
            max_message: 1 << 20,
            max_uncommitted: 64 << 20,
            joining: false,
        },
        initial,
    )?;
    let outbox = Outbox::default();
    let node = Node::new(
        Parts {
            member,
            cluster: CLUSTER,
            epoch: seed,
            group,
            state: state.clone(),
            shared: shared.clone(),
            wal,
            keeper,
            snapshots: snapshots.clone(),
            install: Box::new(move |state, snapshots| start::install(&trees, state, snapshots)),
            network: Box::new(outbox.clone()),
            clock: env.clock.clone(),
            metrics,
            tick: TICK,
            request_ticks: (REQUEST.as_millis() / TICK.as_millis()) as u64,
            election_ticks: ELECTION_TICKS as u64,
            strict_reconfig_check: true,
            max_learners: 1,
            events: events.clone(),
        },
        applied_term,
    );
    Ok(Process {
        node,
        inbox,
        events,
        wal: writer,
        wal_busy: false,
        keeper: worker,
        keeper_busy: false,
        drain_busy: false,
        turn_due: false,
        state,
        shared,
        snapshots,
        outbox,
    })
}

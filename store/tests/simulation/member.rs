//! One member: its disk, which outlives it, and the process that runs on it at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keelson_component_base::metrics::Registry;
use keelson_proto::etcd::etcdserverpb;
use keelson_raft::Message;
use kube_store::apply::State;
use kube_store::env::{Clock, Env};
use kube_store::join::{Found, Origin, find, mark_joining};
use kube_store::membership::Members;
use kube_store::metrics::Metrics;
use kube_store::node::{Answer, Event, Network, Node, Shared, SnapshotSender};
use kube_store::snapshot::{self, Outgoing, Snapshots};
use kube_store::start::{Built, Setup, StartError, TICKS, build};
use kube_store::wal::{self, Identity};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::disk::{Flip, SimulatedDisk};

pub const CLUSTER: u64 = 0x51;
pub const DIRECTORY: &str = "/data";
/// Default timings.
const HEARTBEAT: Duration = Duration::from_millis(100);
const ELECTION: Duration = Duration::from_secs(1);
pub const TICK: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 / TICKS);
const REQUEST: Duration = Duration::from_secs(7);

/// What has become of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs, or is started again.
    Lives,
    /// Its disk is lost, and it with it.
    Lost,
    /// It was removed, and has ended.
    Ended,
}

pub struct Member {
    pub id: u64,
    /// Whether it begins the cluster; others join it with nothing.
    pub founder: bool,
    pub fate: Fate,
    /// Where it listens from its next start on.
    pub address: u64,
    pub disk: SimulatedDisk,
    pub clock: SimulatedClock,
    pub process: Option<Process>,
    pub life: u64,
    pub paused_until: u64,
    /// Something was done to it that it may end of.
    pub provoked: bool,
    pub flips: Vec<Flip>,
    /// Its disk takes so much longer.
    pub slowness: u64,
    /// Its clock's rate against time, in percent.
    pub rate: u64,
    /// Its place in the line of memberships, in this life; none before it knows one.
    pub place: Option<usize>,
    /// The furthest place of all its lives.
    pub furthest: usize,
    /// Whether it ever had one: then it has a state of its own.
    pub begun: bool,
}

impl Member {
    pub fn new(id: u64, founder: bool, address: u64, time: Arc<AtomicU64>, rate: u64) -> Self {
        Self {
            id,
            founder,
            fate: Fate::Lives,
            address,
            disk: SimulatedDisk::default(),
            clock: SimulatedClock { time, ahead: Arc::default() },
            process: None,
            life: 0,
            paused_until: 0,
            provoked: false,
            flips: Vec::new(),
            slowness: 1,
            rate,
            place: None,
            furthest: 0,
            begun: founder,
        }
    }

    /// As a process publishes it.
    pub fn says(&self) -> etcdserverpb::Member {
        etcdserverpb::Member {
            id: self.id,
            name: format!("member-{}", self.id),
            client_urls: vec![format!("http://member-{}:2379", self.id)],
            ..Default::default()
        }
    }
}

/// Members that begin a cluster, as each of them is configured with them.
pub fn founders(members: &[Member]) -> Vec<etcdserverpb::Member> {
    let founders = members.iter().filter(|member| member.founder);
    let named = founders.map(|member| etcdserverpb::Member {
        peer_urls: vec![url(member.id)],
        client_urls: Vec::new(),
        ..member.says()
    });
    named.collect()
}

/// The peer URL of an address. A founder's first address is its id.
pub fn url(address: u64) -> String {
    format!("http://{address}:2380")
}

pub fn address(url: &str) -> u64 {
    url.strip_prefix("http://").unwrap().strip_suffix(":2380").unwrap().parse().unwrap()
}

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

/// Where another member is: as the membership says, and as it says itself.
struct Known {
    members: Vec<u64>,
    dialed: Vec<u64>,
}

#[derive(Default)]
struct Office {
    sent: Vec<Sent>,
    /// Memberships that were followed.
    followed: Vec<Members>,
    known: BTreeMap<u64, Known>,
    own: Vec<u64>,
}

/// A member's side of the network.
#[derive(Clone)]
pub struct Outbox {
    member: u64,
    listens: u64,
    office: Arc<Mutex<Office>>,
}

impl Outbox {
    fn new(member: u64, listens: u64) -> Self {
        Self { member, listens, office: Arc::default() }
    }

    pub fn take(&self) -> (Vec<Sent>, Vec<Members>) {
        let mut office = self.office.lock();
        (std::mem::take(&mut office.sent), std::mem::take(&mut office.followed))
    }

    /// Where to try to reach a member, in this order.
    pub fn addresses(&self, id: u64) -> Vec<u64> {
        self.office.lock().known.get(&id).map(|known| known.dialed.clone()).unwrap_or_default()
    }

    /// Where this member says that it is.
    pub fn own(&self) -> Vec<u64> {
        let mut own = self.office.lock().own.clone();
        if !own.contains(&self.listens) {
            own.push(self.listens);
        }
        own
    }

    /// A member says where it is, as the peers' service hears it.
    pub fn introduce(&self, id: u64, addresses: &[u64]) {
        let mut office = self.office.lock();
        let known = office
            .known
            .entry(id)
            .or_insert_with(|| Known { members: addresses.to_vec(), dialed: Vec::new() });
        known.dialed.clone_from(&known.members);
        known.dialed.extend(addresses.iter().filter(|address| !known.members.contains(address)));
    }
}

impl Network for Outbox {
    fn send(&self, to: u64, messages: Vec<Message>) {
        self.office.lock().sent.push(Sent::Messages { to, messages });
    }

    fn follow(&self, members: &Members) {
        let mut office = self.office.lock();
        office.followed.push(members.clone());
        office.known.retain(|id, _| !members.is_removed(*id));
        for member in members.values() {
            let addresses: Vec<u64> = member.peer_urls.iter().map(|url| address(url)).collect();
            if member.id == self.member {
                office.own = addresses;
            } else if office.known.get(&member.id).is_none_or(|known| known.members != addresses) {
                let known = Known { dialed: addresses.clone(), members: addresses };
                office.known.insert(member.id, known);
            }
        }
    }

    fn snapshot_sender(&self) -> SnapshotSender {
        let office = self.office.clone();
        Box::new(move |message, outgoing| {
            let sent = Sent::Snapshot { message: Box::new(message), outgoing: Box::new(outgoing) };
            office.lock().sent.push(sent);
        })
    }
}

/// A process, its threads replaced by what the simulation steps.
pub struct Process {
    pub node: Node,
    pub inbox: UnboundedReceiver<Event>,
    pub events: UnboundedSender<Event>,
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
    pub listens: u64,
    /// It tells the others its name.
    pub publishing: Option<oneshot::Receiver<Answer>>,
}

pub fn env(disk: &SimulatedDisk, clock: &SimulatedClock, seed: u64) -> Env {
    let trees = disk.clone();
    Env {
        clock: Arc::new(clock.clone()),
        disk: Arc::new(disk.clone()),
        open_tree: Arc::new(move |path| trees.open_tree(path)),
        seed,
    }
}

/// What comes of a start.
pub enum Booted {
    Process(Box<Process>),
    /// It is to join, and nobody who was asked knows it.
    Unknown,
}

/// Starts a process. `founders` are those that it is configured with, and `told` what one that it asked for the members
/// said, if it begins with nothing.
pub fn boot(
    member: &Member,
    founders: &[etcdserverpb::Member],
    told: Option<Vec<etcdserverpb::Member>>,
    seed: u64,
) -> Result<Booted, StartError> {
    let env = env(&member.disk, &member.clock, seed);
    let directory = Path::new(DIRECTORY);
    let identity = Identity { cluster: CLUSTER, member: member.id };
    // As `join::origin` decides.
    let origin = match find(&env, directory)? {
        Found::Known(found) => Origin::Known(found),
        Found::Begun => Origin::Bootstrap { identity, members: founders.to_vec() },
        Found::Nothing if member.founder => Origin::Bootstrap { identity, members: founders.to_vec() },
        Found::Nothing | Found::Joining(_) => {
            let own = told.iter().flatten().find(|other| other.id == member.id);
            let Some(own) = own else { return Ok(Booted::Unknown) };
            let lost = !own.name.is_empty();
            mark_joining(&env, directory)?;
            Origin::Join {
                identity,
                incarnation: Default::default(),
                members: told.unwrap_or_default(),
                lost,
            }
        }
    };
    let setup = Setup {
        directory,
        origin: &origin,
        configured: Members::default(),
        heartbeat: HEARTBEAT,
        election: ELECTION,
        request_timeout: REQUEST,
        strict_reconfig_check: true,
        max_learners: 1,
    };
    let (events, inbox) = unbounded_channel();
    let outbox = Outbox::new(member.id, member.address);
    let metrics = Metrics::new(&Registry::new());
    let Built { node, network: outbox, wal, keeper, state, shared, snapshots } =
        build(&env, setup, &metrics, |_| outbox, &events)?;
    Ok(Booted::Process(Box::new(Process {
        node,
        inbox,
        events,
        wal,
        wal_busy: false,
        keeper,
        keeper_busy: false,
        drain_busy: false,
        turn_due: false,
        state,
        shared,
        snapshots,
        outbox,
        listens: member.address,
        publishing: None,
    })))
}

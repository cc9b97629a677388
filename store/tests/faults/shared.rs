//! What everybody in a run knows: where members are, what time it is, what was found wrong, and what was counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::transport::Endpoint;

use crate::client::Client;
use crate::history::{Changed, Ledger};

pub struct Shared {
    begun: Instant,
    addresses: Vec<String>,
    /// By place: tells apart the processes of a member.
    pub lives: Vec<Arc<AtomicU64>>,
    pub ledger: Mutex<Whole>,
    failure: Mutex<Option<String>>,
    failed: Notify,
    pub counts: Mutex<Counts>,
}

/// The ledger, with the last revision before which it lacks nothing.
#[derive(Default)]
pub struct Whole {
    pub ledger: Ledger,
    pub through: i64,
    /// The newest revision at which a compaction was asked for.
    pub compacted: i64,
}

#[derive(Default)]
pub struct Counts {
    /// By kind and outcome.
    pub calls: BTreeMap<(&'static str, &'static str), u64>,
    pub faults: BTreeMap<String, u64>,
    pub events: u64,
    pub resumed: u64,
    pub compacted_away: u64,
    /// Who led in each term.
    pub leaders: BTreeMap<u64, usize>,
    written: u64,
    /// When a write was accepted last, while somebody wrote.
    accepted: Option<u64>,
    pub longest: u64,
}

impl Shared {
    pub fn new(addresses: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            lives: addresses.iter().map(|_| Arc::default()).collect(),
            addresses,
            ledger: Mutex::new(Whole { through: 1, ..Whole::default() }),
            failure: Mutex::default(),
            failed: Notify::new(),
            counts: Mutex::default(),
        })
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    pub fn seconds(&self) -> f64 {
        self.now() as f64 / 1e9
    }

    pub fn members(&self) -> usize {
        self.addresses.len()
    }

    /// A connection of its own.
    pub fn client(&self, member: usize) -> Client {
        let endpoint = Endpoint::from_shared(format!("http://{}:2379", self.addresses[member])).unwrap();
        Client::new(endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy())
    }

    pub fn life(&self, member: usize) -> u64 {
        self.lives[member].load(Ordering::SeqCst)
    }

    /// Says what went wrong; the run ends with the first such thing.
    pub fn fail(&self, what: String) {
        self.failure.lock().get_or_insert(what);
        self.failed.notify_one();
    }

    /// Waits until something went wrong.
    pub async fn failed(&self) -> String {
        loop {
            if let Some(failure) = self.failure.lock().clone() {
                return failure;
            }
            self.failed.notified().await;
        }
    }

    /// What a watch of everything saw of a revision.
    pub fn saw(&self, revision: i64, changes: Vec<Changed>, member: usize) {
        let now = self.now();
        let mut whole = self.ledger.lock();
        if let Err(known) = whole.ledger.take(revision, changes.clone(), now) {
            drop(whole);
            self.fail(format!(
                "member {member} has another revision {revision}: {changes:#?}, not {known:#?}"
            ));
            return;
        }
        while whole.ledger.revisions.contains_key(&(whole.through + 1)) {
            whole.through += 1;
        }
    }

    pub fn count_fault(&self, what: &str) {
        println!("{:>9.3} {what}", self.seconds());
        *self.counts.lock().faults.entry(what.to_owned()).or_default() += 1;
    }

    /// A write was accepted, or writing begins.
    pub fn accepted(&self) {
        let now = self.now();
        let mut counts = self.counts.lock();
        counts.written += 1;
        let before = counts.accepted.replace(now).unwrap_or(now);
        counts.longest = counts.longest.max(now.saturating_sub(before));
    }

    /// Who leads in a term: never two.
    pub fn leads(&self, term: u64, member: usize) {
        let leader = *self.counts.lock().leaders.entry(term).or_insert(member);
        if leader != member {
            self.fail(format!("members {leader} and {member} lead in term {term}"));
        }
    }

    /// Writes that were accepted.
    pub fn written(&self) -> u64 {
        self.counts.lock().written
    }

    /// Nobody writes any more.
    pub fn quiet(&self) {
        self.counts.lock().accepted = None;
    }
}

//! The loop: follows Services and EndpointSlices and writes each batch of changes in one transaction
//! per address family.
//!
//! Invariant: the kernel's tables are what [`Table`] believes, or are about to be written whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keelson_client::cache::{self, Cache, Event, Indexers};
use kube::Api;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::conntrack;
use crate::facts::{ServiceFacts, ServiceKey, SliceFacts};
use crate::health::Progress;
use crate::metrics::{self, Metrics};
use crate::model::{self, Route};
use crate::nftables::{self, Family, Fragment, Table};

/// A refused transaction is tried again, whole, after this time.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is seen to that nobody has removed the rules (upstream's syncPeriod): `nft flush ruleset`, with which
/// many a firewall starts, takes all tables with it.
const LOOK: Duration = Duration::from_secs(30);

/// Why rules could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot run nft")]
    Run(#[from] std::io::Error),
    #[error("the kernel refused the rules: {0}")]
    Refused(String),
}

pub struct Proxy {
    pub client: kube::Client,
    pub node: String,
    pub cluster_ranges: Vec<String>,
    pub metrics: Metrics,
    pub progress: Progress,
}

/// A Service that changed, itself or its endpoints; or a first list that is complete.
enum Input {
    Changed(ServiceKey),
    Synced,
}

struct Caches {
    services: Arc<Cache<Option<ServiceFacts>>>,
    slices: Arc<Cache<Option<SliceFacts>>>,
}

const BY_SERVICE: &str = "service";
/// Number of watches whose first list must be complete before anything is written: half a picture would
/// cut off Services that work.
const WATCHES: u8 = 2;

/// What the kernel has.
struct State {
    tables: BTreeMap<Family, Table>,
    /// UDP connections to endpoints that are gone are forgotten by comparing with these.
    routes: HashMap<ServiceKey, Vec<Route>>,
    dirty: BTreeSet<ServiceKey>,
    /// The next transaction writes everything: the first one, and one after a failure.
    whole: bool,
    synced: u8,
}

impl Proxy {
    /// Proxies until cancelled. The rules stay, so that connections survive a restart.
    pub async fn run(self, cancel: CancellationToken) {
        let (sender, mut inputs) = mpsc::unbounded_channel();
        let caches = self.watch(&sender);
        let table = |family: Family| {
            let of_family = |range: &&String| range.contains(':') == (family == Family::Ip6);
            (family, Table::new(family, self.cluster_ranges.iter().filter(of_family).cloned().collect()))
        };
        let mut state = State {
            tables: Family::ALL.into_iter().map(table).collect(),
            routes: HashMap::new(),
            dirty: BTreeSet::new(),
            whole: true,
            synced: 0,
        };
        let mut batch = Vec::new();
        let mut failed = false;
        let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                received = inputs.recv_many(&mut batch, 4096) => if received == 0 { return },
                () = tokio::time::sleep(RETRY), if failed => {}
                _ = looks.tick(), if !state.whole => {
                    if tables_are_there().await {
                        continue;
                    }
                    tracing::warn!("the rules are gone; writing all of them again");
                    state.whole = true;
                }
            }
            for input in batch.drain(..) {
                match input {
                    Input::Changed(key) => {
                        state.dirty.insert(key);
                    }
                    Input::Synced => state.synced += 1,
                }
            }
            if state.synced < WATCHES {
                continue;
            }
            self.progress.queued();
            self.metrics.last_queued.set(metrics::now());
            failed = match self.sync(&caches, &mut state).await {
                Ok(()) => {
                    self.progress.written();
                    self.metrics.last_sync.set(metrics::now());
                    false
                }
                Err(error) => {
                    tracing::error!("cannot write the rules, trying again in {} s: {error}", RETRY.as_secs());
                    self.metrics.sync_failures.inc();
                    state.whole = true;
                    true
                }
            };
        }
    }

    fn watch(&self, sender: &mpsc::UnboundedSender<Input>) -> Caches {
        let client = &self.client;
        let project = |service| ServiceFacts::of(&service);
        let services = cache::start(Api::all(client.clone()), cache::config(), project, Vec::new());
        let by_service: Indexers<Option<SliceFacts>> = vec![(
            BY_SERVICE,
            Box::new(|slice: &Option<SliceFacts>| slice.iter().map(|s| s.service.to_string()).collect()),
        )];
        let project = |slice| SliceFacts::of(&slice);
        // Upstream's proxies leave headless Services' slices out on the server's side too.
        let config = cache::config().labels("!service.kubernetes.io/headless");
        let slices = cache::start(Api::all(client.clone()), config, project, by_service);

        let to_loop = sender.clone();
        let changes = self.metrics.service_changes.clone();
        services.subscribe(move |event| {
            changes.inc();
            tell(&to_loop, event, |service: &Option<ServiceFacts>| service.as_ref().map(|s| s.key.clone()));
        });
        let to_loop = sender.clone();
        let changes = self.metrics.endpoint_changes.clone();
        slices.subscribe(move |event| {
            changes.inc();
            tell(&to_loop, event, |slice: &Option<SliceFacts>| slice.as_ref().map(|s| s.service.clone()));
        });
        Caches { services, slices }
    }

    async fn sync(&self, caches: &Caches, state: &mut State) -> Result<(), WriteError> {
        let started = Instant::now();
        let mut changes: BTreeMap<Family, BTreeMap<ServiceKey, Option<Fragment>>> = BTreeMap::new();
        let mut stale = Vec::new();
        for key in std::mem::take(&mut state.dirty) {
            let service = caches.services.get(&key.namespace, &key.name);
            let routes = match service.as_deref() {
                Some(Some(service)) => {
                    let slices = caches.slices.indexed(BY_SERVICE, key.to_string());
                    let slices: Vec<Arc<SliceFacts>> =
                        slices.iter().filter_map(|s| s.as_ref().clone()).map(Arc::new).collect();
                    model::routes(service, &slices, &self.node)
                }
                Some(None) | None => Vec::new(),
            };
            let mut fragments = nftables::fragments(&key, &routes);
            for family in Family::ALL {
                changes.entry(family).or_default().insert(key.clone(), fragments.remove(&family));
            }
            let before = if routes.is_empty() {
                state.routes.remove(&key)
            } else {
                state.routes.insert(key, routes.clone())
            };
            stale.extend(conntrack::stale(&before.unwrap_or_default(), &routes));
        }
        let mut program = String::new();
        for (family, table) in &mut state.tables {
            let change = table.change(changes.remove(family).unwrap_or_default());
            // The whole program has this change in it already.
            program.push_str(&if state.whole { table.whole() } else { change });
        }
        if program.is_empty() {
            return Ok(());
        }
        nft(&program).await?;
        state.whole = false;
        self.metrics.sync_duration.observe(started.elapsed().as_secs_f64());
        conntrack::forget(stale).await;
        Ok(())
    }
}

fn tell<P>(sender: &mpsc::UnboundedSender<Input>, event: &Event<P>, key: impl Fn(&P) -> Option<ServiceKey>) {
    // A closed channel means that the loop has ended; nobody is left to tell.
    let send = |projected: &P| {
        if let Some(key) = key(projected) {
            let _ = sender.send(Input::Changed(key));
        }
    };
    match event {
        Event::Applied { old, new } => {
            // A Service may have become one that is not proxied, a slice another Service's.
            if let Some(old) = old {
                send(old);
            }
            send(new);
        }
        Event::Deleted(last) => send(last),
        Event::Synced => {
            let _ = sender.send(Input::Synced);
        }
    }
}

/// Has nft apply a program as one transaction.
async fn nft(program: &str) -> Result<(), WriteError> {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // An nft that ended early closes its input; its own message is the one to show.
        let _ = input.write_all(program.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(WriteError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Whether the kernel has the tables. If nft does not even run, writing would not help either.
async fn tables_are_there() -> bool {
    for family in Family::ALL {
        let output = Command::new("nft").args(Table::presence(family)).output().await;
        if output.is_ok_and(|output| !output.status.success()) {
            return false;
        }
    }
    true
}

/// Removes the tables of both families.
///
/// # Errors
/// nft cannot be run, or refuses.
pub async fn remove_tables() -> Result<(), WriteError> {
    nft(&Family::ALL.map(Table::removal).concat()).await
}

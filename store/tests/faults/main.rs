//! Three real members in network namespaces, under load, while an adversary does to them what it can; then the history
//! of what clients were told is checked as a simulation's is.
//!
//! `FAULTS_SEED=n` says what is drawn, `FAULTS_SECONDS=n` for how long there is load with faults (`make soak-store`). A
//! seed draws the same faults and calls each time, but real processes answer as they do: it need not fail again. What a
//! run that fails leaves is in `target/tmp/faults-<seed>`. It needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod adversary;
mod change;
#[path = "../store/client.rs"]
mod client;
mod clients;
#[path = "../history/mod.rs"]
mod history;
mod member;
mod network;
#[path = "../simulation/random.rs"]
mod random;
mod shared;
mod summary;
mod watches;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::{AlarmRequest, LeaseLeasesRequest, RangeRequest};
use keelson_proto::etcd::storepb::command::Operation;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use adversary::Adversary;
use client::Client as Connection;
use clients::{Client, Leases};
use history::check::{Start, Verdict, check};
use history::{Call, Outcome, Request, Watched};
use member::Member;
use network::Network;
use random::Random;
use shared::Shared;
use summary::Totals;
use watches::{Record, Watcher};

const MEMBERS: usize = 3;
const CLIENTS: usize = 32;
const WATCHES: usize = 8;
/// Load and faults, before everything gets well again and is checked.
const ROUND: Duration = Duration::from_secs(30);
/// Within this time without faults all members have to be level, and all leases have run out.
const CALM: Duration = Duration::from_secs(90);

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Where members write; removed in any case, but for the logs of a run that fails.
struct Place {
    directory: tempfile::TempDir,
    kept: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let _ = std::fs::remove_dir_all(&self.kept);
        std::fs::create_dir_all(&self.kept).unwrap();
        let copied = Command::new("cp").arg("-a").arg(self.directory.path()).arg(&self.kept).status();
        eprintln!("logs and data are in {}: {copied:?}", self.kept.display());
    }
}

#[test]
fn faults() {
    let seed = number("FAULTS_SEED").unwrap_or_else(rand::random);
    let seconds = number("FAULTS_SECONDS").unwrap_or(60);
    println!("FAULTS_SEED={seed} FAULTS_SECONDS={seconds}");
    let place = Place {
        directory: tempfile::Builder::new().prefix("kube-store-faults-").tempdir().unwrap(),
        kept: Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{seed}")),
    };
    // This thread is in the members' network from here on, and so are those that it starts.
    let network = Network::new(MEMBERS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        let shared = Shared::new((0..MEMBERS).map(|member| network.address(member)).collect());
        tokio::select! {
            biased;
            _ = terminate.recv() => panic!("ended from outside"),
            _ = interrupt.recv() => panic!("ended from outside"),
            failure = shared.failed() => panic!("FAULTS_SEED={seed}: {failure}"),
            () = run(seed, seconds, shared.clone(), network, place.directory.path()) => {}
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

async fn run(seed: u64, seconds: u64, shared: Arc<Shared>, network: Network, directory: &Path) {
    let mut random = Random::new(seed);
    let mut members: Vec<Member> =
        (0..MEMBERS).map(|place| Member::new(place, directory, shared.lives[place].clone())).collect();
    let cluster: Vec<String> = members
        .iter()
        .map(|member| format!("{}=http://{}:2380", member.name(), network.address(member.place)))
        .collect();
    members.iter_mut().for_each(|member| member.cluster = cluster.join(","));
    let mut adversary = Adversary::new(shared.clone(), members, network, random.split());
    adversary.begin();
    let connections: Vec<Connection> = (0..MEMBERS).map(|member| shared.client(member)).collect();
    for client in &connections {
        eventually("a member is ready", async || client.get("x").await.ok()).await;
    }
    let mut background = JoinSet::new();
    for member in 0..MEMBERS {
        background.spawn(follow_leader(shared.clone(), member));
    }
    let mut records = Vec::new();
    for number in 0..MEMBERS + WATCHES {
        let record = if number < MEMBERS { Record::tap(number) } else { Record::draw(&mut random) };
        let record = Arc::new(Mutex::new(record));
        records.push(record.clone());
        background.spawn(Watcher { record, shared: shared.clone(), random: random.split() }.run());
    }
    let leases = Arc::new(Leases::default());
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::new(number, random.split(), shared.clone(), leases.clone()))
        .collect();

    let (mut start, mut carried, mut totals) =
        (Start::default(), Vec::<Call>::new(), Totals::new(seed, seconds));
    let mut left = Duration::from_secs(seconds);
    while !left.is_zero() {
        let rough = left.min(ROUND);
        left -= rough;
        leases.forget();
        shared.accepted();
        let stop = Arc::new(AtomicBool::new(false));
        let mut asking: JoinSet<_> = clients.drain(..).map(|client| client.run(stop.clone())).collect();
        adversary.rage(Instant::now() + rough).await;
        let mut history = std::mem::take(&mut carried);
        let calm = async {
            // Clients go on for a while: the store has to serve them again.
            let written = shared.written();
            eventually("something is written again", async || (shared.written() > written).then_some(()))
                .await;
            sleep(Duration::from_secs(2)).await;
            stop.store(true, Ordering::Relaxed);
            while let Some(done) = asking.join_next().await {
                let (client, calls) = done.unwrap();
                clients.push(client);
                history.extend(calls);
            }
            shared.quiet();
            level(&shared, &connections, &records).await;
        };
        let healed = timeout(CALM, adversary.heal(calm)).await;
        assert!(healed.is_ok(), "the members do not get level within {CALM:?}");

        let verdict = judge(&shared, &records, &start, &history);
        totals.add(&verdict);
        carried = history
            .into_iter()
            .enumerate()
            .filter(|(place, call)| verdict.open.binary_search(place).is_ok() || is_open_grant(call))
            .map(|(_, call)| call)
            .collect();
        start = verdict.end;
        holds(&connections, &start).await;
    }
    background.shutdown().await;
    let logs: String = adversary.members.iter().map(Member::log).collect();
    verify(adversary.end());
    totals.print(&shared, &logs);
}

/// Checks what happened, now that nobody asks for anything any more and every watch has seen everything.
fn judge(shared: &Shared, records: &[Arc<Mutex<Record>>], start: &Start, history: &[Call]) -> Verdict {
    let mut whole = shared.ledger.lock();
    let mut records: Vec<_> = records.iter().map(|record| record.lock()).collect();
    let watched: Vec<Watched<'_>> =
        records.iter().filter(|record| !record.is_tap()).map(|record| record.watched()).collect();
    let verdict = check(start, history, &whole.ledger, &watched, false);
    println!("{:>9.3} what happened is right up to revision {}", shared.seconds(), verdict.end.revision);
    records.iter_mut().for_each(|record| record.forget());
    whole.ledger.revisions = whole.ledger.revisions.split_off(&verdict.end.revision);
    verdict
}

/// A lease that may be granted yet.
fn is_open_grant(call: &Call) -> bool {
    matches!((&call.request, &call.outcome), (Request::Operation(Operation::LeaseGrant(_)), Outcome::Unknown))
}

/// Asks again and again until there is an answer; whoever waits for this gives up.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Ok(Some(answer)) = timeout(Duration::from_secs(5), ask()).await {
            return answer;
        }
        assert!(begun.elapsed() < CALM, "gave up waiting until {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until all members have the same, all leases have run out, and every watch has seen everything.
async fn level(shared: &Shared, connections: &[Connection], records: &[Arc<Mutex<Record>>]) {
    eventually("all leases have run out and all members are level", async || {
        let mut found = BTreeSet::new();
        for client in connections {
            let leases =
                client.lease.clone().lease_leases(LeaseLeasesRequest {}).await.ok()?.into_inner().leases;
            if !leases.is_empty() {
                return None;
            }
            found.insert(client.hash().await.ok()?);
        }
        let (revision, _) = found.first().copied().filter(|_| found.len() == 1)?;
        let all_seen = records.iter().all(|record| record.lock().next == revision + 1);
        (all_seen && shared.ledger.lock().through == revision).then_some(())
    })
    .await;
    for client in connections {
        let alarms =
            client.maintenance.clone().alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms;
        assert!(alarms.is_empty(), "{alarms:?}");
    }
}

/// Every member has what the model has.
async fn holds(connections: &[Connection], expected: &Start) {
    for (member, client) in connections.iter().enumerate() {
        let everything = Bytes::from_static(b"\0");
        let request = RangeRequest {
            key: everything.clone(),
            range_end: everything,
            serializable: true,
            ..Default::default()
        };
        let found = client.range(request).await.unwrap();
        let revision = found.header.as_ref().unwrap().revision;
        assert_eq!(revision, expected.revision, "member {member}");
        let expected: Vec<_> = expected.keys.values().collect();
        assert_eq!(found.kvs.iter().collect::<Vec<_>>(), expected, "member {member} has another state");
    }
}

/// Log, snapshot and tree of each member agree, now that none runs.
fn verify(directories: Vec<PathBuf>) {
    for directory in directories {
        let output = Command::new(env!("CARGO_BIN_EXE_kube-store"))
            .args(["verify", "--data-dir"])
            .arg(directory)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
}

/// Notes who leads in which term: never two.
async fn follow_leader(shared: Arc<Shared>, member: usize) {
    let client = shared.client(member);
    loop {
        if let Ok(Ok(status)) = timeout(Duration::from_secs(1), client.status()).await
            && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
        {
            shared.leads(status.raft_term, member);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

//! Members of the store that are killed while they are written to.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::store::{self, Member, kv};
use keelson_proto::etcd::etcdserverpb::{PutRequest, RangeRequest};
use tonic::transport::Channel;

/// How many writers there are, and how many acknowledged writes lie between two kills.
const WRITERS: usize = 8;
const BETWEEN_KILLS: usize = 150;

/// Every write that was acknowledged, with its revision.
#[derive(Default)]
struct Acknowledged {
    writes: Mutex<BTreeMap<String, i64>>,
    count: AtomicUsize,
    stop: AtomicBool,
}

/// Writes new keys until told to stop, moving on to the next member when one fails.
async fn write(id: usize, channels: Vec<Channel>, acknowledged: Arc<Acknowledged>) {
    let mut member = id % channels.len();
    for number in 0.. {
        if acknowledged.stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("w{id}-{number:06}");
        let request = PutRequest {
            key: key.clone().into(),
            value: format!("value of {key} {}", "x".repeat(number % 3000)).into(),
            ..PutRequest::default()
        };
        let mut client = kv(channels[member].clone());
        match tokio::time::timeout(Duration::from_secs(2), client.put(request)).await {
            Ok(Ok(answer)) => {
                let revision = answer.get_ref().header.as_ref().map_or(0, |header| header.revision);
                acknowledged.writes.lock().unwrap().insert(key, revision);
                acknowledged.count.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                member = (member + 1) % channels.len();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Waits until `more` writes were acknowledged.
async fn progress(acknowledged: &Acknowledged, more: usize, members: &[Member]) {
    let target = acknowledged.count.load(Ordering::Relaxed) + more;
    let deadline = Instant::now() + Duration::from_secs(30);
    while acknowledged.count.load(Ordering::Relaxed) < target {
        let logs: Vec<String> = members.iter().map(Member::last_log).collect();
        assert!(Instant::now() < deadline, "writes do not go on:\n{}", logs.join("\n---\n"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts that a member has every acknowledged write, at the revision that was told.
async fn check_all_there(member: &Member, acknowledged: &Acknowledged) {
    let request = RangeRequest { key: "w".into(), range_end: "x".into(), ..RangeRequest::default() };
    let answer = kv(member.channel().unwrap()).range(request).await.unwrap().into_inner();
    let stored: BTreeMap<String, (i64, usize)> = answer
        .kvs
        .iter()
        .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), (kv.mod_revision, kv.value.len())))
        .collect();
    let writes = acknowledged.writes.lock().unwrap();
    for (key, revision) in writes.iter() {
        let Some((found, length)) = stored.get(key) else { panic!("{key} at revision {revision} is lost") };
        assert_eq!(found, revision, "{key}");
        let number: usize = key.split_once('-').unwrap().1.parse().unwrap();
        assert_eq!(*length, format!("value of {key} ").len() + number % 3000, "{key}");
    }
}

fn start_writers(members: &[Member]) -> (Arc<Acknowledged>, Vec<tokio::task::JoinHandle<()>>) {
    let acknowledged = Arc::new(Acknowledged::default());
    let channels: Vec<Channel> = members.iter().map(|member| member.channel().unwrap()).collect();
    let writers =
        (0..WRITERS).map(|id| tokio::spawn(write(id, channels.clone(), Arc::clone(&acknowledged)))).collect();
    (acknowledged, writers)
}

async fn stop(acknowledged: &Acknowledged, writers: Vec<tokio::task::JoinHandle<()>>) {
    acknowledged.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_killed_during_writes_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut members = store::start(&e2e::binaries().join("kube-store"), directory.path(), 1).unwrap();
    members[0].ready().await.unwrap();
    let (acknowledged, writers) = start_writers(&members);
    for _ in 0..8 {
        progress(&acknowledged, BETWEEN_KILLS, &members).await;
        members[0].kill().unwrap();
        members[0].restart().unwrap();
        members[0].ready().await.unwrap();
    }
    progress(&acknowledged, BETWEEN_KILLS, &members).await;
    stop(&acknowledged, writers).await;
    check_all_there(&members[0], &acknowledged).await;
    // And once more from the disk alone.
    members[0].kill().unwrap();
    members[0].restart().unwrap();
    members[0].ready().await.unwrap();
    check_all_there(&members[0], &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_carry_on_when_their_leader_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut members = store::start(&e2e::binaries().join("kube-store"), directory.path(), 3).unwrap();
    for member in &members {
        member.ready().await.unwrap();
    }
    let (acknowledged, writers) = start_writers(&members);
    for _ in 0..3 {
        progress(&acknowledged, BETWEEN_KILLS, &members).await;
        let leader = leader(&members).await;
        members[leader].kill().unwrap();
        // The other two go on without it.
        progress(&acknowledged, BETWEEN_KILLS, &members).await;
        members[leader].restart().unwrap();
        members[leader].ready().await.unwrap();
    }
    stop(&acknowledged, writers).await;
    for member in &members {
        check_all_there(member, &acknowledged).await;
    }
}

/// The index of the member that leads.
async fn leader(members: &[Member]) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        for (index, member) in members.iter().enumerate() {
            let status = member.ready().await.unwrap();
            if status.header.is_some_and(|header| header.member_id == status.leader) {
                return index;
            }
        }
        assert!(Instant::now() < deadline, "no member says that it leads");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let members = store::start(&e2e::binaries().join("kube-store"), directory.path(), 1).unwrap();
    members[0].ready().await.unwrap();
    let output = std::process::Command::new(e2e::binaries().join("kube-store"))
        .arg(format!("--data-dir={}", directory.path().join("other").display()))
        .arg(format!("--listen-client-urls={}", members[0].url))
        .arg(format!("--advertise-client-urls={}", members[0].url))
        .args(["--listen-peer-urls=http://127.0.0.1:0", "--initial-advertise-peer-urls=http://127.0.0.1:0"])
        .arg("--initial-cluster=default=http://127.0.0.1:0")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{log}");
    let port = members[0].url.rsplit(':').next().unwrap();
    assert!(log.to_lowercase().contains("in use") && log.contains(port), "{log}");
    // The one that has the port is none the worse for it.
    members[0].ready().await.unwrap();
}

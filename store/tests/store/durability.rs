//! What was acknowledged is there after any crash; what cannot be trusted is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keelson_proto::etcd::etcdserverpb::CompactionRequest;
use tokio::sync::Mutex;

use crate::harness::{self, Client, Member, eventually, files};

/// Writers whose acknowledged writes are remembered.
pub struct Load {
    acknowledged: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// `size`: bytes of a value. Each writer has keys of its own; a failed write is tried again under a new key.
    pub fn start(clients: &[Client], writers: usize, round: usize, size: usize) -> Self {
        let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..writers)
            .map(|writer| {
                let client = clients[writer % clients.len()].clone();
                let (acknowledged, stop, count) = (acknowledged.clone(), stop.clone(), count.clone());
                tokio::spawn(async move {
                    let mut serial = 0;
                    while !stop.load(Ordering::Relaxed) {
                        serial += 1;
                        let key = format!("load/{round}/{writer}/{serial:06}");
                        let mut value = key.clone().into_bytes();
                        value.resize(size.max(value.len()), b'.');
                        if client.put(&key, value.clone()).await.is_ok() {
                            acknowledged.lock().await.insert(key, value);
                            count.fetch_add(1, Ordering::Relaxed);
                        } else {
                            // The member may be down for a while.
                            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        }
                    }
                })
            })
            .collect();
        Self { acknowledged, count, stop, tasks }
    }

    pub async fn wait_for(&self, count: u64) {
        eventually("enough is written", || async {
            (self.count.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    pub fn written(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub async fn stop(self) -> BTreeMap<String, Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        Arc::into_inner(self.acknowledged).unwrap().into_inner()
    }
}

pub fn assert_holds(found: &BTreeMap<String, Vec<u8>>, acknowledged: &BTreeMap<String, Vec<u8>>) {
    for (key, value) in acknowledged {
        assert!(found.get(key) == Some(value), "{key} was acknowledged and is lost or changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_again_and_again() {
    let mut member = harness::single().await;
    let client = member.client();
    let mut all = BTreeMap::new();
    for round in 0..4 {
        let load = Load::start(std::slice::from_ref(&client), 8, round, 300);
        load.wait_for(100).await;
        member.kill();
        let acknowledged = load.stop().await;
        all.extend(acknowledged);
        member.start();
        member.ready().await;
        assert_holds(&client.all("load/").await.unwrap(), &all);
    }
    let hash = client.hash().await.unwrap();
    assert!(member.stop().success());
    member.start();
    member.ready().await;
    assert_eq!(client.hash().await.unwrap(), hash, "a clean restart changes nothing");
}

/// Runs into a failpoint under load, and checks what is there afterwards.
async fn crash_at(failpoint: &str, size: usize, prepare: impl AsyncFn(&Client)) {
    let mut member = harness::members(1).remove(0);
    member.start_with(failpoint);
    member.ready().await;
    let client = member.client();
    prepare(&client).await;
    let load = Load::start(std::slice::from_ref(&client), 4, 0, size);
    eventually("the failpoint is reached", || async {
        // Compactions on the way, for the failpoints in them.
        if let Ok(put) = client.put("compact", "x").await {
            let revision = put.header?.revision;
            let request = CompactionRequest { revision, physical: false };
            let _ = client.kv.clone().compact(request).await;
        }
        client.get("x").await.is_err().then_some(())
    })
    .await;
    let status = member.ended();
    assert!(!status.success(), "{failpoint}: {status}");
    let acknowledged = load.stop().await;
    member.start();
    member.ready().await;
    assert_holds(&client.all("load/").await.unwrap(), &acknowledged);
    assert!(client.put("after", "x").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_around_every_durable_step_of_a_write() {
    for point in [
        "wal_before_write",
        "wal_before_sync",
        "wal_after_sync",
        "apply_before",
        "apply_after",
        "tree_before_write",
        "tree_after_write",
        "compaction_before_write",
    ] {
        crash_at(&format!("{point}=5*off->panic"), 200, async |client| {
            // Something to compact.
            for _ in 0..3 {
                let _ = client.put("compact", "x").await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_around_every_durable_step_of_a_snapshot() {
    for (point, passes) in [
        // The first segment is made at start.
        ("wal_before_rename", 1),
        ("snapshot_before_file", 0),
        // And the first snapshot: the state with which the cluster begins.
        ("snapshot_before_rename", 1),
        ("snapshot_after_rename", 1),
        ("wal_before_cut", 0),
    ] {
        let failpoints = format!("snapshot_at=return(20000000);{point}={passes}*off->panic");
        crash_at(&failpoints, 1 << 20, async |_| {}).await;
    }
}

/// Bytes that make a snapshot and cut the log, and some more behind it.
async fn write_past_a_snapshot(member: &Member) {
    let client = member.client();
    for serial in 0..64 {
        client.put(&format!("large/{}", serial % 8), vec![serial; 1 << 20]).await.unwrap();
    }
    eventually("there is a snapshot", || async { (member.snapshots() == 1).then_some(()) }).await;
    client.put("last", "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_is_rebuilt_from_snapshot_and_log() {
    let mut member = harness::single().await;
    write_past_a_snapshot(&member).await;
    let client = member.client();
    let hash = client.hash().await.unwrap();
    let damages: [fn(&Path); 3] = [
        |trees| std::fs::remove_dir_all(trees).unwrap(),
        |trees| {
            for tree in files(trees, "") {
                let db = tree.join("db");
                let mut bytes = std::fs::read(&db).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle..].fill(0x5a);
                std::fs::write(&db, bytes).unwrap();
            }
        },
        |trees| {
            for tree in files(trees, "") {
                std::fs::write(tree.join("db"), b"").unwrap();
            }
        },
    ];
    for damage in damages {
        member.kill();
        damage(&member.trees());
        member.start();
        member.ready().await;
        assert_eq!(client.hash().await.unwrap(), hash);
        assert_eq!(files(&member.trees(), "").len(), 1, "no old tree is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_takes_too_much_is_built_anew() {
    let mut member = harness::single().await;
    assert!(member.stop().success());
    // So that the running member leaves the tree to the next start.
    member.start_with("shrink_slack=return(10000000000)");
    member.ready().await;
    let client = member.client();
    let mut revision = 0;
    for serial in 0..24 {
        revision = client.put("large", vec![serial; 1 << 20]).await.unwrap().header.unwrap().revision;
    }
    client.kv.clone().compact(CompactionRequest { revision, physical: true }).await.unwrap();
    eventually("it is compacted", || async {
        (client.status().await.ok()?.db_size_in_use < 2 << 20).then_some(())
    })
    .await;
    let hash = client.hash().await.unwrap();
    assert!(member.stop().success());
    member.start_with("tree_slack=return(0)");
    member.ready().await;
    assert!(member.log().contains("takes much more than what is in it"), "{}", member.log());
    assert_eq!(client.hash().await.unwrap(), hash);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_cut_behind_snapshots() {
    let mut member = harness::single().await;
    write_past_a_snapshot(&member).await;
    eventually("the log is cut", || async { (files(&member.wal(), ".wal").len() <= 2).then_some(()) }).await;
    let hash = member.client().hash().await.unwrap();
    member.kill();
    member.start();
    member.ready().await;
    assert_eq!(member.client().hash().await.unwrap(), hash);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_middle_of_the_log_is_refused() {
    let mut member = harness::single().await;
    let client = member.client();
    for serial in 0..20 {
        client.put(&format!("k{serial}"), "v".repeat(500)).await.unwrap();
    }
    member.kill();
    let segment = files(&member.wal(), ".wal").remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[2000] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    member.start();
    assert!(!member.ended().success());
    let log = member.log();
    assert!(log.contains("write-ahead log is corrupt") && log.contains("at offset"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_data_is_refused() {
    let member = harness::single().await;
    let mut second = harness::members(1).remove(0);
    second.extra = vec![format!("--data-dir={}", member.data().display())];
    second.start();
    // Given twice: the flag itself is refused.
    assert!(!second.ended().success());
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kube-store"))
        .arg(format!("--data-dir={}", member.data().display()))
        .args(["--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:1"])
        .arg("--listen-peer-urls=http://127.0.0.1:0")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("in use by another process"), "{log}");
}

/// Flips a bit of what was written to the log last.
fn damage_the_end(member: &Member) {
    let segment = files(&member.wal(), ".wal").pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    // Before what fills the frame up.
    let at = bytes.iter().rposition(|byte| *byte != 0).unwrap() - 12;
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_at_the_end_of_the_log_is_refused_and_can_be_given_up() {
    // A tree that has what was written, and one that is lost.
    for has_tree in [true, false] {
        let mut member = harness::single().await;
        member.client().put("a", "1").await.unwrap();
        member.client().put("z", "26").await.unwrap();
        if has_tree {
            assert!(member.stop().success());
        } else {
            member.kill();
            std::fs::remove_dir_all(member.trees()).unwrap();
        }
        damage_the_end(&member);
        for _ in 0..2 {
            member.start();
            assert!(!member.ended().success());
        }
        let verified = std::process::Command::new(env!("CARGO_BIN_EXE_kube-store"))
            .arg("verify")
            .arg(format!("--data-dir={}", member.data().display()))
            .output()
            .unwrap();
        assert!(!verified.status.success());
        for said in [member.log(), String::from_utf8_lossy(&verified.stderr).into_owned()] {
            for part in ["write-ahead log is corrupt", "at offset", "--force-new-cluster"] {
                assert!(said.contains(part), "{part:?} is not in {said}");
            }
        }
        member.extra = vec!["--force-new-cluster".to_owned()];
        member.start();
        member.ready().await;
        member.kill();
        member.extra.clear();
        member.start();
        member.ready().await;
        let client = member.client();
        assert_eq!(client.get("a").await.unwrap().unwrap(), b"1");
        let z = has_tree.then(|| b"26".to_vec());
        assert_eq!(client.get("z").await.unwrap(), z, "the tree is the only one that has it");
        client.put("z", "27").await.unwrap();
    }
}

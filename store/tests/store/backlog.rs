//! Members that are behind: by their log, their tree, or by a long read. None may fall back for ever, fill its memory, or hold
//! up the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use keelson_proto::etcd::etcdserverpb::request_op::Request;
use keelson_proto::etcd::etcdserverpb::{MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::cluster::agree;
use crate::harness::{self, Client, Member, eventually, leader};

/// Some election timeouts.
const AWAY: Duration = Duration::from_secs(4);
const STUCK: &str = "tree_before_write=sleep(3600000)";
/// The larger part of a request's limit.
const LARGE: usize = 1_000_000;

async fn started(failpoints: [&str; 3]) -> Vec<Member> {
    let mut members = harness::members(3);
    for (member, failpoints) in members.iter_mut().zip(failpoints) {
        member.start_with(failpoints);
    }
    for member in &members {
        member.ready().await;
    }
    members
}

async fn applied(client: &Client) -> u64 {
    client.status().await.unwrap().raft_applied_index
}

/// Has the first member lead, or another one.
async fn lead(members: &[Member], first: bool) {
    eventually("the right member leads", || async {
        let at = leader(members).await;
        if (at == 0) == first {
            return Some(());
        }
        let to = if first { 0 } else { 1 };
        let target_id = members[to].client().status().await.ok()?.header?.member_id;
        let mut maintenance = members[at].client().maintenance;
        // It may lead no longer; then this is tried again.
        let _ = maintenance.move_leader(MoveLeaderRequest { target_id }).await;
        None
    })
    .await;
}

/// While its snapshot is made, sent and installed, more is written than the leader keeps of its log for those that are away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_enough_to_catch_up_under_load() {
    let failpoints = "log_keep=return(20000);snapshot_before_file=sleep(300)";
    let mut members = started([failpoints; 3]).await;
    let away = (leader(&members).await + 1) % 3;
    let client = members[(away + 1) % 3].client();
    members[away].kill();
    // The leader keeps everything for it until it counts as away.
    let begun = Instant::now();
    for serial in 0.. {
        client.put(&format!("k{}", serial % 10), vec![b'v'; 1000]).await.unwrap();
        if serial > 100 && begun.elapsed() > AWAY {
            break;
        }
    }
    let (stop, load) = (Arc::new(AtomicBool::new(false)), members[(away + 1) % 3].client());
    let stopped = stop.clone();
    let load = tokio::spawn(async move {
        let mut written = 0;
        while !stopped.load(Ordering::Relaxed) {
            load.put(&format!("k{}", written % 10), vec![b'v'; 1000]).await.unwrap();
            written += 1;
        }
        written
    });
    members[away].start_with(failpoints);
    let installed = || members[away].log().matches("installed a peer's snapshot").count();
    eventually("it has a snapshot", || async { (installed() > 0).then_some(()) }).await;
    let through = applied(&client).await + 300;
    let behind = members[away].client();
    eventually("it has caught up", || async {
        let at = behind.status().await.ok()?.raft_applied_index;
        (at >= through).then_some(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let written = load.await.unwrap();
    assert_eq!(installed(), 1, "{written} writes meanwhile");
    agree(&members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_tree_is_stuck_takes_nothing_more_from_others() {
    let mut members = started([STUCK, "", ""]).await;
    lead(&members, true).await;
    let client = members[1].client();
    let mut written = 0;
    while written < 60 && client.put("large", vec![b'v'; LARGE]).await.is_ok() {
        written += 1;
    }
    assert!((10..30).contains(&written), "{written} MB wait in its memory");
    members[0].kill();
    members[0].start();
    members[0].ready().await;
    client.put("large", "small").await.unwrap();
    agree(&members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_tree_is_stuck_takes_no_more_from_the_leader() {
    let mut members = started([STUCK, "", ""]).await;
    lead(&members, false).await;
    let (client, stuck) = (members[1].client(), members[0].client());
    let begun = applied(&stuck).await;
    for _ in 0..100 {
        client.put("large", vec![b'v'; LARGE]).await.unwrap();
    }
    eventually("it has taken what it may", || async { (applied(&stuck).await > begun + 60).then_some(()) })
        .await;
    for _ in 0..10 {
        client.put("small", "x").await.unwrap();
    }
    let taken = applied(&stuck).await - begun;
    assert!(taken < 85, "{taken} MB wait in its memory");
    members[0].kill();
    members[0].start();
    members[0].ready().await;
    agree(&members).await;
}

/// A transaction of many long ranges reads them all at one revision, and writes go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transaction_that_reads_keeps_no_writes_waiting() {
    const KEYS: usize = 20_000;
    const RANGES: usize = 20;
    let member = harness::single().await;
    let client = member.client();
    let put = |key: String| {
        let put = PutRequest { key: key.into_bytes().into(), value: "v".into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    };
    for first in (0..KEYS).step_by(100) {
        let success = (first..first + 100).map(|key| put(format!("k/{key}"))).collect();
        client.kv.clone().txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
    // All values are read to find the one that is told.
    let range = RangeRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Value.into(),
        ..RangeRequest::default()
    };
    let success = vec![RequestOp { request: Some(Request::RequestRange(range)) }; RANGES];
    let request = TxnRequest { success, ..TxnRequest::default() };
    let (reader, done) = (member.client(), Arc::new(AtomicUsize::new(0)));
    let finished = done.clone();
    let read = tokio::spawn(async move {
        let answer = reader.kv.clone().txn(request).await.unwrap().into_inner();
        finished.store(1, Ordering::Relaxed);
        answer
    });
    let mut written = 0;
    while done.load(Ordering::Relaxed) == 0 {
        client.put("k/0", format!("v{written}")).await.unwrap();
        written += 1;
    }
    let answer = read.await.unwrap();
    let revision = answer.header.unwrap().revision;
    assert_eq!(answer.responses.len(), RANGES);
    let first = answer.responses[0].response.clone();
    for response in answer.responses {
        assert_eq!(response.response, first, "at {revision}");
    }
    assert!(written > 10, "{written} writes while it read");
}

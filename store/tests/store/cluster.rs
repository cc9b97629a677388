//! Three members: what is acknowledged outlives any one of them.

use std::collections::BTreeSet;

use keelson_proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MoveLeaderRequest, PutRequest,
    RangeRequest,
};
use nix::sys::signal::Signal;

use crate::durability::{Load, assert_holds};
use crate::harness::{self, Client, Member, eventually, leader};

fn clients(members: &[Member]) -> Vec<Client> {
    members.iter().map(Member::client).collect()
}

/// Waits until all members have the same state.
pub async fn agree(members: &[Member]) -> (i64, u32) {
    eventually("all members agree", || async {
        let mut hashes = BTreeSet::new();
        for member in members {
            hashes.insert(member.client().hash().await.ok()?);
        }
        hashes.first().copied().filter(|_| hashes.len() == 1)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_under_load() {
    let mut members = harness::group(3).await;
    let clients = clients(&members);
    let load = Load::start(&clients, 9, 0, 200);
    for _ in 0..3 {
        load.wait_for(load.written() + 60).await;
        let victim = leader(&members).await;
        members[victim].kill();
        // Others take over while it is away.
        load.wait_for(load.written() + 60).await;
        members[victim].start();
        members[victim].ready().await;
    }
    let acknowledged = load.stop().await;
    agree(&members).await;
    for client in &clients {
        assert_holds(&client.all("load/").await.unwrap(), &acknowledged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_are_killed_at_once() {
    let mut members = harness::group(3).await;
    let clients = clients(&members);
    let load = Load::start(&clients, 6, 0, 200);
    load.wait_for(100).await;
    for member in &mut members {
        member.kill();
    }
    let acknowledged = load.stop().await;
    for member in &mut members {
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    agree(&members).await;
    assert_holds(&clients[0].all("load/").await.unwrap(), &acknowledged);
}

/// What may be asked for at most is not too much for the other members.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_request_is_replicated() {
    let mut members = harness::members(3);
    for member in &mut members {
        member.extra = vec![format!("--max-request-bytes={}", 32 << 20)];
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    let client = members[0].client();
    client.put("large", vec![7; (32 << 20) - 100]).await.unwrap();
    client.put("after", "x").await.unwrap();
    agree(&members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fell_behind_the_log_gets_a_snapshot() {
    let mut members = harness::members(3);
    for member in &mut members {
        // Nothing more for one that is away, however shortly.
        member.start_with("log_most=return(8388608)");
    }
    for member in &members {
        member.ready().await;
    }
    let away = (leader(&members).await + 1) % 3;
    members[away].kill();
    let client = members[(away + 1) % 3].client();
    // Beyond what the leader keeps of its log in memory.
    for serial in 0..24 {
        client.put(&format!("large/{}", serial % 5), vec![serial; 1 << 20]).await.unwrap();
    }
    members[away].start();
    members[away].ready().await;
    agree(&members).await;
    assert!(members[away].log().contains("installed a peer's snapshot"));
    client.put("after", "x").await.unwrap();
    let before = agree(&members).await;
    // And it is durable there.
    members[away].kill();
    members[away].start();
    members[away].ready().await;
    assert_eq!(agree(&members).await, before);
}

/// Its leader remembers that it had everything, and would have it commit what it no longer has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_joins_again() {
    let mut members = harness::group(3).await;
    let leader = leader(&members).await;
    let lost = (leader + 1) % 3;
    for serial in 0..20 {
        members[leader].client().put(&format!("k{serial}"), "v").await.unwrap();
    }
    agree(&members).await;
    members[lost].kill();
    std::fs::remove_dir_all(members[lost].data()).unwrap();
    members[lost].extra = vec!["--initial-cluster-state=existing".to_owned()];
    members[lost].start();
    members[lost].ready().await;
    agree(&members).await;
    assert_eq!(members[lost].client().all("k").await.unwrap().len(), 20);
    assert!(members[lost].runs(), "it was never started again");
    members[leader].kill();
    eventually("it counts again", || async { members[lost].client().put("after", "x").await.ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_serves_nothing_old() {
    let members = harness::group(3).await;
    let old = leader(&members).await;
    let other = members[(old + 1) % 3].client();
    other.put("k", "1").await.unwrap();
    members[old].signal(Signal::SIGSTOP);
    eventually("the others have a leader", || async { other.put("k", "2").await.ok() }).await;
    let read = tokio::spawn({
        let client = members[old].client();
        async move { client.get("k").await }
    });
    members[old].signal(Signal::SIGCONT);
    if let Ok(found) = read.await.unwrap() {
        assert_eq!(found, Some(b"2".to_vec()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over() {
    let mut members = harness::group(3).await;
    let old = leader(&members).await;
    assert!(members[old].stop().success());
    assert!(members[old].log().contains("handed over"), "{}", members[old].log());
    let rest: Vec<Member> =
        members.into_iter().enumerate().filter(|(at, _)| *at != old).map(|(_, m)| m).collect();
    rest[0].client().put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let members = harness::group(3).await;
    let old = leader(&members).await;
    let new = (old + 1) % 3;
    let target_id = members[new].client().status().await.unwrap().header.unwrap().member_id;
    let mut wrong = members[new].client().maintenance;
    let error = wrong.move_leader(MoveLeaderRequest { target_id }).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: not leader");
    let mut right = members[old].client().maintenance;
    right.move_leader(MoveLeaderRequest { target_id }).await.unwrap();
    assert_eq!(leader(&members).await, new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_work_through_followers_and_outlive_the_leader() {
    let mut members = harness::group(3).await;
    let old = leader(&members).await;
    let client = members[(old + 1) % 3].client();
    let grant = LeaseGrantRequest { ttl: 3, id: 0 };
    let lease = client.lease.clone().lease_grant(grant).await.unwrap().into_inner();
    let put =
        PutRequest { key: "leased".into(), value: "v".into(), lease: lease.id, ..PutRequest::default() };
    client.kv.clone().put(put).await.unwrap();
    let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: lease.id }]);
    let mut answers = client.lease.clone().lease_keep_alive(requests).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl, 3, "a follower asks the leader");
    members[old].kill();
    let left = eventually("the new leader knows the lease", || async {
        let request = LeaseTimeToLiveRequest { id: lease.id, keys: true };
        client.lease.clone().lease_time_to_live(request).await.ok()
    })
    .await
    .into_inner();
    assert!((1..=3).contains(&left.ttl), "{left:?}");
    assert_eq!(left.keys, ["leased"]);
    eventually("it runs out", || async { client.get("leased").await.ok()?.is_none().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_acknowledged() {
    let mut members = harness::group(3).await;
    let client = members[0].client();
    client.put("k", "1").await.unwrap();
    members[1].kill();
    members[2].kill();
    let put = client.put("k", "2").await.unwrap_err();
    assert_eq!(put.message(), "etcdserver: request timed out");
    assert!(client.get("k").await.is_err());
    let request = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
    assert_eq!(client.range(request).await.unwrap().kvs[0].value, "1");
}

//! The classes of bugs that etcd itself has had, each by its shape. `simulation` and `faults` look for all of them at
//! random; what is listed here with another place is tested there.
//!
//! | class | etcd's issue | here |
//! |---|---|---|
//! | applied index saved apart from the data: an entry applied twice after a crash | 13766 | [`an_entry_is_applied_once_wherever_the_process_ends`] |
//! | acknowledged before it is durable | 14370 | [`nothing_is_acknowledged_before_its_fsync`]; `durability::crash_around_every_durable_step_of_a_write`, `simulation::crash` |
//! | watches starve under load | 15402, 17529 | [`all_watches_of_one_stream_hear_everything_under_load`]; `watch::a_slow_watcher_loses_nothing_and_holds_nobody_up` |
//! | progress told ahead of events | 15220 | [`a_watch_that_fell_behind_is_told_no_progress_before_its_events`]; `watch::progress_is_behind_all_events` |
//! | events before the revision that a watch asked for | 20221 | [`a_watch_of_the_future_hears_nothing_before`] |
//! | events lost around a compaction | 18089 | [`a_deletion_at_the_compacted_revision_is_still_told`]; `watch::a_compacted_start_is_told`, `watch::a_watch_goes_on_through_a_snapshot` |
//! | a lease revoked by a leader that no longer is one, or renewed by it | 12528, 15247 | [`a_leader_that_was_paused_neither_revokes_nor_renews`] |
//! | a lease revoked twice | 12528 | [`a_lease_ends_once_however_many_end_it`] |
//! | a stale read after a pause | 20418 | [`a_leader_that_was_paused_serves_nothing_old_to_many`]; `cluster::a_leader_that_was_paused_serves_nothing_old` |
//! | a snapshot while compacting | 4914, 14685 | [`a_snapshot_while_compacting_is_whole`]; `snapshot::tests::what_was_deleted_and_compacted_between_two_snapshots_stays_deleted` |
//! | a member added while another is cut off | 10114, 10499 | `membership::nobody_is_added_while_a_member_is_cut_off_and_somebody_when_it_is_back`, `membership::everything_restarts_in_the_middle_of_a_change` |

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keelson_proto::etcd::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::etcd::etcdserverpb::{
    CompactionRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, MoveLeaderRequest,
    PutRequest, RangeRequest, WatchCreateRequest, WatchProgressRequest,
};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use crate::cluster::agree;
use crate::durability::{Load, assert_holds};
use crate::harness::{self, Client, Member, eventually, leader};
use crate::watch::{Stream, delete, prefix, show};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_is_applied_once_wherever_the_process_ends() {
    let mut members = harness::group(3).await;
    let clients: Vec<Client> = members.iter().map(Member::client).collect();
    for (round, point) in
        ["wal_after_sync", "apply_before", "apply_after", "tree_before_write", "tree_after_write"]
            .into_iter()
            .enumerate()
    {
        members[0].kill();
        // Perhaps while it still starts, and has to apply again what is in its log.
        members[0].start_with(&format!("{point}=20*off->panic"));
        let load = Load::start(&clients, 6, round, 100);
        assert!(!members[0].ended().success(), "{point}");
        members[0].start();
        members[0].ready().await;
        let acknowledged = load.stop().await;
        // What it had applied twice would put its revision ahead of the others'.
        agree(&members).await;
        assert_holds(&clients[0].all("load/").await.unwrap(), &acknowledged);
    }
}

/// Alone, a member's own fsync is all that there is; of three, no two may be without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_before_its_fsync() {
    const STUCK: &str = "wal_before_sync=40*off->sleep(3600000)";
    for (count, stuck) in [(1, 1), (3, 2)] {
        let mut members = harness::members(count);
        for (at, member) in members.iter_mut().enumerate() {
            member.start_with(if at < stuck { STUCK } else { "" });
        }
        for member in &members {
            member.ready().await;
        }
        let client = members[count - 1].client();
        let mut acknowledged = 0;
        let begun = Instant::now();
        while client.put("k", acknowledged.to_string()).await.is_ok() {
            acknowledged += 1;
            assert!(begun.elapsed() < harness::PATIENCE, "written without an fsync");
        }
        assert!(acknowledged > 0);
        // Nobody sees what is not durable either.
        let request = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
        let kv = client.range(request).await.unwrap().kvs.remove(0);
        assert_eq!(kv.value, (acknowledged - 1).to_string());
        for member in &mut members {
            member.kill();
            member.start();
        }
        for member in &members {
            member.ready().await;
        }
        let found = String::from_utf8(client.get("k").await.unwrap().unwrap()).unwrap();
        // The one without an answer may have been written.
        assert!((acknowledged - 1..=acknowledged).contains(&found.parse().unwrap()), "{found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_watches_of_one_stream_hear_everything_under_load() {
    const WATCHES: usize = 200;
    const WRITES: usize = 100;
    let member = harness::single().await;
    let client = member.client();
    for key in 0..200 {
        client.put(&format!("large/{key}"), vec![7; 20_000]).await.unwrap();
    }
    let mut stream = Stream::open(&client).await;
    for _ in 0..WATCHES {
        stream.create(WatchCreateRequest { prev_kv: true, ..prefix("k/") }).await;
    }
    // On the same connection as the stream: large answers all the time.
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let client = client.clone();
        readers.spawn(async move {
            loop {
                client.all("large/").await.unwrap();
            }
        });
    }
    let writer = member.client();
    for serial in 0..WRITES {
        writer.put(&format!("k/{}", serial % 7), vec![b'v'; 1000]).await.unwrap();
    }
    let mut heard: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut left = WATCHES * WRITES;
    while left > 0 {
        let response = stream.next().await;
        assert!(!response.canceled, "{response:?}");
        left -= response.events.len();
        let revisions = response.events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision);
        heard.entry(response.watch_id).or_default().extend(revisions);
    }
    readers.abort_all();
    let expected: Vec<i64> = (202..202 + WRITES as i64).collect();
    assert!(heard.len() == WATCHES && heard.values().all(|revisions| *revisions == expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_fell_behind_is_told_no_progress_before_its_events() {
    const WRITES: i64 = 1500;
    let mut member = harness::members(1).remove(0);
    member.extra = vec!["--watch-progress-notify-interval=100ms".to_owned()];
    member.start();
    member.ready().await;
    let mut stream = Stream::open(&member.client()).await;
    stream.create(WatchCreateRequest { progress_notify: true, ..prefix("k") }).await;
    // Far beyond what is queued for it, while it does not listen.
    let client = member.client();
    for serial in 0..WRITES {
        client.put("k", vec![b'v'; 8000]).await.unwrap();
        if serial % 100 == 0 {
            stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        }
    }
    let mut next = 2;
    while next < 2 + WRITES {
        let response = stream.next().await;
        for event in &response.events {
            assert_eq!(event.kv.as_ref().unwrap().mod_revision, next);
            next += 1;
        }
        if response.events.is_empty() {
            let told = response.header.unwrap().revision;
            assert!(told < next, "progress at {told} is told before the event at {next}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_the_future_hears_nothing_before() {
    let mut member = harness::members(1).remove(0);
    member.extra = vec!["--watch-progress-notify-interval=100ms".to_owned()];
    member.start();
    member.ready().await;
    let client = member.client();
    let mut stream = Stream::open(&client).await;
    stream.create(WatchCreateRequest { start_revision: 8, progress_notify: true, ..prefix("k") }).await;
    stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let progress = stream.next().await;
    assert!(progress.events.is_empty() && progress.header.unwrap().revision == 1, "{progress:?}");
    for serial in 2..10 {
        client.put("k", serial.to_string()).await.unwrap();
    }
    let mut shown = Vec::new();
    while shown.len() < 2 {
        shown.extend(stream.next().await.events.iter().map(show));
    }
    assert_eq!(shown, ["8 put k=8", "9 put k=9"]);
}

/// The deletion is what the compacted revision consists of, and a watch may begin there: on a member that compacted, on
/// one that started again, and on one that has it from a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_at_the_compacted_revision_is_still_told() {
    let mut members = harness::members(3);
    for member in &mut members {
        member.start_with("log_keep=return(10000);log_most=return(10000)");
    }
    for member in &members {
        member.ready().await;
    }
    let away = (leader(&members).await + 1) % 3;
    members[away].kill();
    let stayed = (away + 1) % 3;
    let client = members[stayed].client();
    client.put("a", "1").await.unwrap();
    client.put("a", "2").await.unwrap();
    delete(&client, "a").await;
    client.put("b", "1").await.unwrap();
    let hear = async |member: &Member, from, what: &str| {
        let mut stream = Stream::open(&member.client()).await;
        let request = WatchCreateRequest { start_revision: from, ..prefix("a") };
        stream.create(request).await;
        let shown: Vec<_> = stream.events(1).await.iter().map(show).collect();
        assert_eq!(shown, [format!("{from} delete a=")], "{what}");
    };
    client.kv.clone().compact(CompactionRequest { revision: 4, physical: true }).await.unwrap();
    eventually("it is compacted", || async {
        members[stayed].log().contains("\"compacted\" revision=4 ").then_some(())
    })
    .await;
    hear(&members[stayed], 4, "compacted").await;
    // Beyond what the leader keeps of its log, so that the one that is away gets a snapshot.
    for serial in 0..40 {
        client.put(&format!("c{serial}"), vec![7; 10_000]).await.unwrap();
    }
    members[away].start();
    members[away].ready().await;
    assert!(members[away].log().contains("installed a peer's snapshot"));
    hear(&members[away], 4, "from a snapshot").await;
    members[stayed].kill();
    members[stayed].start();
    members[stayed].ready().await;
    hear(&members[stayed], 4, "started again").await;
    // And one revision later it is gone everywhere, and said to be.
    client.kv.clone().compact(CompactionRequest { revision: 5, physical: true }).await.unwrap();
    agree(&members).await;
    for member in &members {
        let mut stream = Stream::open(&member.client()).await;
        stream.create(WatchCreateRequest { start_revision: 4, ..prefix("a") }).await;
        let canceled = stream.next().await;
        assert!(canceled.canceled && canceled.compact_revision == 5, "{canceled:?}");
    }
}

async fn grant(client: &Client, id: i64, ttl: i64, key: &str) {
    client.lease.clone().lease_grant(LeaseGrantRequest { ttl, id }).await.unwrap();
    let put =
        PutRequest { key: key.to_owned().into(), value: "v".into(), lease: id, ..PutRequest::default() };
    client.kv.clone().put(put).await.unwrap();
}

/// Seconds that it has again.
async fn keep_alive(client: &Client, id: i64) -> Option<i64> {
    let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
    let mut answers = client.lease.clone().lease_keep_alive(requests).await.ok()?.into_inner();
    Some(answers.message().await.ok()??.ttl)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_neither_revokes_nor_renews() {
    let members = harness::group(3).await;
    let old = leader(&members).await;
    let client = members[(old + 1) % 3].client();
    grant(&client, 1, 3, "kept").await;
    grant(&client, 2, 3, "left").await;
    members[old].signal(Signal::SIGSTOP);
    // Asked while the one that is paused still counts as the leader: an answer comes before the lease runs out.
    eventually("there is another leader", || async { keep_alive(&client, 1).await }).await;
    // Until what the old leader knows of both has long run out, while one is renewed and the other one runs out.
    eventually("one runs out", || async {
        assert_ne!(keep_alive(&client, 1).await, Some(0));
        client.get("left").await.ok()?.is_none().then_some(())
    })
    .await;
    // Asked of the old leader itself: it wakes with these in front of everything else.
    let stale: Vec<_> = (0..4)
        .map(|_| {
            let client = members[old].client();
            tokio::spawn(async move { keep_alive(&client, 2).await })
        })
        .collect();
    members[old].signal(Signal::SIGCONT);
    for answer in stale {
        let answer = answer.await.unwrap();
        assert!(answer.is_none_or(|ttl| ttl == 0), "it renewed a lease that is gone: {answer:?}");
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(client.get("kept").await.unwrap().as_deref(), Some(&b"v"[..]), "it was renewed");
        assert_eq!(keep_alive(&members[old].client(), 1).await.unwrap_or(3), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_once_however_many_end_it() {
    const LEASES: i64 = 30;
    let members = harness::group(3).await;
    let old = leader(&members).await;
    let client = members[(old + 1) % 3].client();
    let mut stream = Stream::open(&client).await;
    stream.create(WatchCreateRequest { start_revision: 1, ..prefix("leased/") }).await;
    for id in 1..=LEASES {
        grant(&client, id, 2, &format!("leased/{id:02}")).await;
    }
    // Just when they run out, by way of every member, while the leader changes.
    let mut revokers = JoinSet::new();
    for member in &members {
        let client = member.client();
        revokers.spawn(async move {
            let mut revoked = Vec::new();
            for id in 1..=LEASES {
                let gone = client.get(&format!("leased/{id:02}")).await;
                // Half of them when the first has seen it run out.
                if id % 2 == 0 || matches!(gone, Ok(None)) {
                    let request = LeaseRevokeRequest { id };
                    match client.lease.clone().lease_revoke(request).await {
                        Ok(_) => revoked.push(id),
                        Err(status) => assert!(
                            status.message().contains("requested lease not found")
                                || status.code() == tonic::Code::Unavailable,
                            "{status}"
                        ),
                    }
                }
            }
            revoked
        });
    }
    let target_id = members[(old + 2) % 3].client().status().await.unwrap().header.unwrap().member_id;
    let request = MoveLeaderRequest { target_id };
    // It may have been the leader already, if the first was slow.
    let _ = members[old].client().maintenance.move_leader(request).await;
    let mut revoked = revokers.join_all().await.concat();
    revoked.sort_unstable();
    assert!(revoked.is_sorted_by(|one, other| one < other), "two were told that they ended one: {revoked:?}");
    eventually("all are gone", || async { client.all("leased/").await.ok()?.is_empty().then_some(()) }).await;
    let after = client.put("leased/after", "x").await.unwrap().header.unwrap().revision;
    assert_eq!(after, 2 + 2 * LEASES, "each was written once and deleted once");
    let mut deleted = BTreeMap::new();
    for event in stream.events(2 * LEASES as usize + 1).await {
        let kv = event.kv.clone().unwrap();
        if kv.create_revision == 0 {
            *deleted.entry(kv.key).or_insert(0) += 1;
        }
    }
    assert!(deleted.len() == LEASES as usize && deleted.values().all(|count| *count == 1), "{deleted:?}");
    agree(&members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_serves_nothing_old_to_many() {
    let members = harness::group(3).await;
    for round in 0..3 {
        let old = leader(&members).await;
        let other = members[(old + 1) % 3].client();
        let before = format!("before{round}");
        other.put("k", before.clone()).await.unwrap();
        // Reads of all members under way when the leader is paused, and some that begin while it is.
        let reads = || {
            members.iter().map(Member::client).map(|client| {
                tokio::spawn(async move {
                    let begun = Instant::now();
                    (begun, client.get("k").await)
                })
            })
        };
        let early: Vec<_> = reads().collect();
        members[old].signal(Signal::SIGSTOP);
        let after = format!("after{round}");
        eventually("the others have a leader", || async { other.put("k", after.clone()).await.ok() }).await;
        let written = Instant::now();
        let late: Vec<_> = reads().collect();
        members[old].signal(Signal::SIGCONT);
        for read in early.into_iter().chain(late) {
            let (begun, found) = read.await.unwrap();
            let Ok(found) = found else { continue };
            let found = String::from_utf8(found.unwrap()).unwrap();
            let may = found == after || (begun < written && found == before);
            assert!(may, "round {round}: {found} was read after {after} had been written");
        }
        eventually("there is a leader again", || async { members[old].client().get("k").await.ok() }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_while_compacting_is_whole() {
    let failpoints = "log_keep=return(20000);log_most=return(20000);snapshot_at=return(200000);snapshot_every=return(100000);\
                      wal_segment=return(65536);compaction_before_write=sleep(5);snapshot_before_file=sleep(100)";
    let mut members = harness::members(3);
    for member in &mut members {
        member.start_with(failpoints);
    }
    for member in &members {
        member.ready().await;
    }
    let away = (leader(&members).await + 1) % 3;
    let client = members[(away + 1) % 3].client();
    for round in 0..4 {
        members[away].kill();
        let churn = async |count: usize| {
            for serial in 0..count {
                let key = format!("k{}", serial % 50);
                let put = client.put(&key, vec![b'v'; 1000]).await.unwrap();
                if serial % 3 == 0 {
                    delete(&client, ["k1", "k2", "k3"][serial % 9 / 3]).await;
                }
                if serial % 10 == 0 {
                    // At the newest, so that what is deleted last is there or not.
                    let revision = put.header.unwrap().revision;
                    client.kv.clone().compact(CompactionRequest { revision, physical: false }).await.unwrap();
                }
            }
        };
        churn(150).await;
        let installed = members[away].log().matches("installed a peer's snapshot").count();
        members[away].start_with(failpoints);
        // The snapshot is made and sent in the middle of this.
        churn(100).await;
        members[away].ready().await;
        agree(&members).await;
        let now = members[away].log().matches("installed a peer's snapshot").count();
        assert!(now > installed, "round {round}: it was to get a snapshot");
        // What it got is what it has after a restart, too.
        members[away].kill();
        members[away].start_with(failpoints);
        members[away].ready().await;
        agree(&members).await;
    }
}

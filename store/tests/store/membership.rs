//! Members come and go: nothing acknowledged is lost, no change costs the quorum, and who was removed stays away.

use std::process::Command;

use keelson_proto::etcd::etcdserverpb::{
    Member as Listed, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, PutRequest, RangeRequest, WatchRequest,
};
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::cluster::agree;
use crate::durability::{Load, assert_holds};
use crate::harness::{self, Client, Member, eventually, leader, newcomer};

const REMOVED: &str = "the member has been permanently removed from the cluster";

async fn add(client: &Client, peer_url: &str, is_learner: bool) -> Result<(Listed, Vec<Listed>), Status> {
    let request = MemberAddRequest { peer_urls: vec![peer_url.to_owned()], is_learner };
    let answer = client.cluster.clone().member_add(request).await?.into_inner();
    Ok((answer.member.unwrap(), answer.members))
}

async fn remove(client: &Client, id: u64) -> Result<Vec<Listed>, Status> {
    Ok(client.cluster.clone().member_remove(MemberRemoveRequest { id }).await?.into_inner().members)
}

async fn promote(client: &Client, id: u64) -> Result<Vec<Listed>, Status> {
    Ok(client.cluster.clone().member_promote(MemberPromoteRequest { id }).await?.into_inner().members)
}

async fn list(client: &Client) -> Result<Vec<Listed>, Status> {
    let request = MemberListRequest { linearizable: true };
    Ok(client.cluster.clone().member_list(request).await?.into_inner().members)
}

async fn id(member: &Member) -> u64 {
    let status = eventually("it says its id", || async { member.client().status().await.ok() }).await;
    status.header.unwrap().member_id
}

/// Whether a refusal is for now: members have just started, or a leader has just been elected.
fn is_passing(status: &Status) -> bool {
    ["etcdserver: unhealthy cluster", "not enough started members", "in sync with leader", "timed out"]
        .iter()
        .any(|passing| status.message().contains(passing))
}

/// What `etcdctl member add` prints as `ETCD_INITIAL_CLUSTER`.
fn initial_cluster(members: &[Listed], newcomer: &Member) -> String {
    let name = |member: &Listed| match member.name.as_str() {
        "" => newcomer.name.clone(),
        name => name.to_owned(),
    };
    let pairs = members.iter().flat_map(|member| {
        let name = name(member);
        member.peer_urls.iter().map(move |url| format!("{name}={url}"))
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// Adds a newcomer, not started yet.
async fn admit(client: &Client, name: &str, is_learner: bool) -> (Member, u64) {
    let mut member = newcomer(name);
    let url = member.peer_url();
    let (added, members) = eventually("it is added", || async {
        match add(client, &url, is_learner).await {
            Ok(added) => Some(added),
            Err(status) => {
                assert!(is_passing(&status), "{status}");
                None
            }
        }
    })
    .await;
    assert_eq!((added.peer_urls.as_slice(), added.is_learner), ([url].as_slice(), is_learner));
    member.cluster = initial_cluster(&members, &member);
    (member, added.id)
}

async fn join(client: &Client, name: &str) -> Member {
    let (mut member, added) = admit(client, name, false).await;
    member.start();
    member.ready().await;
    assert_eq!(id(&member).await, added);
    assert!(member.log().contains("installed a peer's snapshot"));
    member
}

async fn remove_eventually(client: &Client, id: u64) {
    eventually("it is removed", || async {
        match remove(client, id).await {
            Ok(members) => {
                assert!(members.iter().all(|member| member.id != id));
                Some(())
            }
            // An answer may have been lost.
            Err(status) if status.message() == "etcdserver: member not found" => Some(()),
            Err(status) => {
                assert!(is_passing(&status), "{status}");
                None
            }
        }
    })
    .await;
}

/// It ends by itself, says why, and does not start again.
fn assert_gone(mut member: Member) {
    assert!(member.ended().success(), "{}", member.log());
    assert!(member.log().contains(&format!("{REMOVED}: it stops")), "{}", member.log());
    member.start();
    assert!(!member.ended().success());
    assert!(member.log().contains(&format!("{REMOVED}: data directory")), "{}", member.log());
}

fn refused<T: std::fmt::Debug>(found: Result<T, Status>, code: Code, message: &str) {
    let status = found.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_to_five_and_shrinks_to_one_under_load() {
    let mut members = vec![harness::single().await];
    let client = members[0].client();
    let load = Load::start(std::slice::from_ref(&client), 6, 0, 200);
    for name in ["a", "b", "c", "d"] {
        load.wait_for(load.written() + 30).await;
        members.push(join(&client, name).await);
    }
    load.wait_for(load.written() + 30).await;
    assert_eq!(list(&client).await.unwrap().len(), 5);
    // Any of them may lead; the last one that is left must not be the first that was.
    let last = members.pop().unwrap();
    let rest = last.client();
    let later = Load::start(std::slice::from_ref(&rest), 3, 1, 200);
    for member in members {
        later.wait_for(later.written() + 30).await;
        remove_eventually(&rest, id(&member).await).await;
        assert_gone(member);
    }
    later.wait_for(later.written() + 30).await;
    let mut acknowledged = load.stop().await;
    acknowledged.extend(later.stop().await);
    assert_holds(&rest.all("load/").await.unwrap(), &acknowledged);
    let left = list(&rest).await.unwrap();
    assert_eq!(left.len(), 1);
    refused(
        remove(&rest, left[0].id).await,
        Code::FailedPrecondition,
        "etcdserver: re-configuration failed due to not enough started members",
    );
    // Alone it comes back by itself.
    let mut last = last;
    last.kill();
    last.start();
    last.ready().await;
    assert_holds(&rest.all("load/").await.unwrap(), &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_promoted_when_it_has_caught_up() {
    let voter = harness::single().await;
    let client = voter.client();
    for serial in 0..100 {
        client.put(&format!("k{serial:03}"), "v").await.unwrap();
    }
    let (mut learner, learner_id) = admit(&client, "learner", true).await;
    let voter_id = id(&voter).await;
    let precondition = Code::FailedPrecondition;
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    refused(promote(&client, learner_id).await, precondition, not_ready);
    refused(promote(&client, 77).await, Code::NotFound, "etcdserver: member not found");
    refused(promote(&client, voter_id).await, precondition, "etcdserver: can only promote a learner member");
    refused(
        add(&client, "http://127.0.0.1:1", true).await,
        precondition,
        "etcdserver: too many learner members in cluster",
    );
    // It does not count: writes go on without it.
    client.put("without", "it").await.unwrap();

    learner.start();
    let of = learner.client();
    eventually("it has all", || async {
        let request = RangeRequest { key: "without".into(), serializable: true, ..RangeRequest::default() };
        (!of.range(request).await.ok()?.kvs.is_empty()).then_some(())
    })
    .await;
    assert!(of.status().await.unwrap().is_learner);
    let not_for_learner = "etcdserver: rpc not supported for learner";
    refused(of.get("k000").await, precondition, not_for_learner);
    refused(of.put("k", "v").await, precondition, not_for_learner);
    refused(list(&of).await, precondition, not_for_learner);
    let requests = tokio_stream::iter([WatchRequest::default()]);
    refused(of.watch.clone().watch(requests).await, precondition, not_for_learner);
    let to = MoveLeaderRequest { target_id: learner_id };
    refused(
        client.maintenance.clone().move_leader(to).await,
        precondition,
        "etcdserver: bad leader transferee",
    );
    let listed = list(&client).await.unwrap();
    let learners: Vec<_> = listed.iter().map(|member| (member.id == learner_id, member.is_learner)).collect();
    assert!(learners.contains(&(true, true)) && learners.contains(&(false, false)), "{listed:?}");

    let after = eventually("it is promoted", || async { promote(&client, learner_id).await.ok() }).await;
    assert!(after.iter().all(|member| !member.is_learner), "{after:?}");
    learner.ready().await;
    assert!(!of.status().await.unwrap().is_learner);
    of.put("through", "it").await.unwrap();
    client.maintenance.clone().move_leader(to).await.unwrap();
    assert_eq!(of.status().await.unwrap().leader, learner_id);
    agree(&[voter, learner]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_first() {
    let mut members = harness::group(3).await;
    let old = members.remove(leader(&members).await);
    let client = members[0].client();
    let load = Load::start(&[client.clone(), members[1].client()], 4, 0, 200);
    load.wait_for(50).await;
    // Asked of itself.
    remove_eventually(&old.client(), id(&old).await).await;
    assert!(old.log().contains("hands over first"), "{}", old.log());
    assert_gone(old);
    load.wait_for(load.written() + 50).await;
    let acknowledged = load.stop().await;
    agree(&members).await;
    assert_holds(&client.all("load/").await.unwrap(), &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced() {
    let mut members = harness::group(3).await;
    let leads = leader(&members).await;
    let mut dead = members.remove((leads + 1) % 3);
    let dead_id = id(&dead).await;
    dead.kill();
    let client = members[0].client();
    client.put("k", "v").await.unwrap();
    // While it is away, nothing that could cost the quorum is done.
    let unhealthy = "etcdserver: unhealthy cluster";
    refused(add(&client, "http://127.0.0.1:1", false).await, Code::Unavailable, unhealthy);
    let other = id(&members[1]).await;
    refused(remove(&client, other).await, Code::Unavailable, unhealthy);
    remove_eventually(&client, dead_id).await;
    refused(remove(&client, dead_id).await, Code::NotFound, "etcdserver: member not found");
    members.push(join(&client, "replacement").await);
    agree(&members).await;
    // It learns only now what became of it.
    dead.start();
    assert_gone(dead);
    client.put("k", "w").await.unwrap();
}

/// A learner asks for nothing by itself that would tell it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_was_removed_while_it_was_away_learns_of_it() {
    let voter = harness::single().await;
    let client = voter.client();
    let (mut learner, learner_id) = admit(&client, "learner", true).await;
    learner.start();
    eventually("it has the state", || async {
        learner.log().contains("installed a peer's snapshot").then_some(())
    })
    .await;
    learner.kill();
    remove_eventually(&client, learner_id).await;
    learner.start();
    assert_gone(learner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_added_while_a_member_is_cut_off_and_somebody_when_it_is_back() {
    let mut members = harness::group(3).await;
    let old = leader(&members).await;
    members[old].signal(Signal::SIGSTOP);
    let client = members[(old + 1) % 3].client();
    eventually("the others have a leader", || async { client.put("k", "v").await.ok() }).await;
    let url = newcomer("none").peer_url();
    refused(add(&client, &url, false).await, Code::Unavailable, "etcdserver: unhealthy cluster");
    // The old leader, which still takes itself for one, must not add anybody on its own.
    let stale = tokio::spawn({
        let (client, url) = (members[old].client(), newcomer("stale").peer_url());
        async move { add(&client, &url, false).await }
    });
    members[old].signal(Signal::SIGCONT);
    let stale = stale.await.unwrap();
    let expected = 3 + usize::from(stale.is_ok());
    for member in &members {
        let listed = eventually("it answers", || async { list(&member.client()).await.ok() }).await;
        assert_eq!(listed.len(), expected, "{stale:?}");
    }
    if let Ok((added, _)) = stale {
        remove_eventually(&client, added.id).await;
    }
    members.push(join(&client, "new").await);
    agree(&members).await;
}

/// Two of two are needed from the moment on in which the second is added.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_restarts_before_the_one_it_added_has_started() {
    let mut first = harness::single().await;
    let client = first.client();
    client.put("k", "v").await.unwrap();
    let (mut second, _) = admit(&client, "second", false).await;
    first.kill();
    first.start();
    second.start();
    first.ready().await;
    second.ready().await;
    assert_eq!(second.client().get("k").await.unwrap(), Some(b"v".to_vec()));
    agree(&[first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_restarts_in_the_middle_of_a_change() {
    let mut members = harness::group(3).await;
    let client = members[0].client();
    let load = Load::start(&[client.clone(), members[1].client()], 4, 0, 200);
    load.wait_for(30).await;
    let (mut fourth, fourth_id) = admit(&client, "fourth", false).await;
    fourth.start();
    // Whatever it has by then.
    for member in members.iter_mut().chain([&mut fourth]) {
        member.kill();
    }
    let acknowledged = load.stop().await;
    members.push(fourth);
    for member in &mut members {
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    agree(&members).await;
    for member in &members {
        let listed = list(&member.client()).await.unwrap();
        assert!(listed.len() == 4 && listed.iter().any(|listed| listed.id == fourth_id), "{listed:?}");
        assert_holds(&member.client().all("load/").await.unwrap(), &acknowledged);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_killed_in_the_middle_of_a_change() {
    for point in ["membership_before", "membership_after"] {
        let mut members = harness::members(3);
        members[0].start_with(&format!("{point}=panic"));
        for member in &mut members[1..] {
            member.start();
        }
        for member in &members {
            member.ready().await;
        }
        let client = members[1].client();
        let url = newcomer("none").peer_url();
        let added = eventually("it is added", || async {
            match add(&client, &url, true).await {
                Ok((added, _)) => Some(added.id),
                // It may be, and the leader has died before it could say so.
                Err(status) => {
                    assert!(is_passing(&status), "{status}");
                    let listed = list(&client).await.ok()?;
                    listed.iter().find(|member| member.is_learner).map(|member| member.id)
                }
            }
        })
        .await;
        assert!(!members[0].ended().success(), "{point}");
        members[0].start();
        members[0].ready().await;
        agree(&members).await;
        let all = list(&members[0].client()).await.unwrap();
        assert!(all.len() == 4 && all.iter().any(|member| member.id == added && member.is_learner));
        remove_eventually(&members[0].client(), added).await;
        for member in &members {
            assert_eq!(list(&member.client()).await.unwrap().len(), 3);
        }
    }
}

/// Alone, nobody else remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_member_is_killed_in_the_middle_of_a_change() {
    for point in ["membership_before", "membership_after"] {
        let mut member = harness::members(1).remove(0);
        member.start_with(&format!("{point}=panic"));
        member.ready().await;
        let client = member.client();
        client.put("k", "v").await.unwrap();
        let url = newcomer("none").peer_url();
        let answer = add(&client, &url, true).await;
        assert!(answer.is_err(), "{point}");
        assert!(!member.ended().success());
        member.start();
        member.ready().await;
        assert_eq!(client.get("k").await.unwrap(), Some(b"v".to_vec()));
        let before = list(&client).await.unwrap();
        assert!(before.len() <= 2, "{before:?}");
        // Done or not, it is so for good.
        let again = add(&client, &url, true).await;
        match before.len() {
            1 => assert!(again.is_ok(), "{again:?}"),
            _ => refused(again, Code::FailedPrecondition, "etcdserver: Peer URLs already exists"),
        }
        assert_eq!(list(&client).await.unwrap().len(), 2, "{point}");
        member.kill();
        member.start();
        member.ready().await;
        assert_eq!(list(&client).await.unwrap().len(), 2, "{point}");
    }
}

/// It has nothing to begin again from, and begins again all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_killed_while_it_joins() {
    let mut members = vec![harness::single().await];
    let client = members[0].client();
    client.put("k", vec![7; 100_000]).await.unwrap();
    for (serial, point) in [
        // Its log's first segment.
        "wal_before_rename",
        // The leader's snapshot, before and after it is in place, and the log that begins behind it.
        "snapshot_before_rename",
        "snapshot_after_rename",
        "wal_before_write",
        "wal_after_sync",
        // What it applies first.
        "apply_before",
    ]
    .into_iter()
    .enumerate()
    {
        let (mut newcomer, id) = admit(&client, &format!("n{serial}"), true).await;
        newcomer.start_with(&format!("{point}=panic"));
        let reached = format!("failpoint {point} panic");
        eventually("it is reached", || async {
            // Something to apply behind the snapshot.
            client.put("more", "x").await.ok()?;
            newcomer.log().contains(&reached).then_some(())
        })
        .await;
        newcomer.kill();
        newcomer.start();
        let of = newcomer.client();
        let k = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
        eventually("it has the state", || async {
            let found = of.range(k.clone()).await.ok()?.kvs.into_iter().next()?;
            (found.value == vec![7; 100_000]).then_some(())
        })
        .await;
        if serial % 3 == 0 {
            eventually("it is promoted", || async { promote(&client, id).await.ok() }).await;
            newcomer.ready().await;
            members.push(newcomer);
            agree(&members).await;
        } else {
            remove_eventually(&client, id).await;
            assert_gone(newcomer);
        }
    }
    assert_eq!(list(&client).await.unwrap().len(), members.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peer_urls_change_without_a_restart_of_the_others() {
    let mut members = harness::group(3).await;
    let moved = (leader(&members).await + 1) % 3;
    let moved_id = id(&members[moved]).await;
    let other = (moved + 1) % 3;
    let client = members[other].client();
    let update = |url: String| {
        let request = MemberUpdateRequest { id: moved_id, peer_urls: vec![url] };
        let mut cluster = client.cluster.clone();
        async move { Ok(cluster.member_update(request).await?.into_inner().members) }
    };
    refused(
        update(members[other].peer_url()).await,
        Code::FailedPrecondition,
        "etcdserver: Peer URLs already exists",
    );
    refused(
        update("no url".to_owned()).await,
        Code::InvalidArgument,
        "etcdserver: given member URLs are invalid",
    );
    let unknown = MemberUpdateRequest { id: 5, peer_urls: vec!["http://127.0.0.1:1".to_owned()] };
    refused(
        client.cluster.clone().member_update(unknown).await,
        Code::NotFound,
        "etcdserver: member not found",
    );
    members[moved].kill();
    members[moved].peer_port = harness::free_port();
    let url = members[moved].peer_url();
    let listed = update(url.clone()).await.unwrap();
    assert!(listed.iter().any(|member| member.id == moved_id && member.peer_urls == [url.clone()]));
    // Its own flags name the old one in --initial-cluster, which means nothing any more.
    members[moved].start();
    members[moved].ready().await;
    let away = (moved + 2) % 3;
    members[away].kill();
    eventually("it counts at its new place", || async { client.put("k", "v").await.ok() }).await;
    members[away].start();
    members[away].ready().await;
    agree(&members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_belong_does_not_start() {
    let first = harness::single().await;
    let client = first.client();
    let check = |mut member: Member, expected: &str| {
        member.start();
        assert!(!member.ended().success(), "{expected}");
        assert!(member.log().contains(expected), "{expected}: {}", member.log());
    };
    let mut uninvited = newcomer("uninvited");
    uninvited.cluster = format!("m0={},uninvited={}", first.peer_url(), uninvited.peer_url());
    check(uninvited, "member count is unequal");
    let (mut invited, _) = admit(&client, "invited", true).await;
    let right = invited.cluster.clone();
    invited.peer_port = harness::free_port();
    invited.cluster = format!("m0={},invited={}", first.peer_url(), invited.peer_url());
    check(invited, "no match found for existing member");
    let mut alone = newcomer("alone");
    alone.cluster = format!("alone={}", alone.peer_url());
    check(alone, "names no other member");
    assert!(right.contains("invited="));

    // Three that have begun: one whose data is lost must not begin again, or it would vote twice.
    let mut members = harness::group(3).await;
    for member in &members {
        eventually("all are published", || async {
            let listed = list(&member.client()).await.ok()?;
            listed.iter().all(|listed| !listed.client_urls.is_empty()).then_some(())
        })
        .await;
    }
    let mut lost = members.remove(0);
    lost.kill();
    std::fs::remove_dir_all(lost.data()).unwrap();
    check(lost, "has already been bootstrapped");
}

/// As its users drive it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_drives_every_member_command() {
    let first = harness::single().await;
    let client = first.client();
    let endpoint = format!("127.0.0.1:{}", first.client_port);
    let etcdctl = |arguments: &[&str]| {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={endpoint}"))
            .args(arguments)
            .output()
            .expect("etcdctl, of Debian's package etcd-client");
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let mut second = newcomer("second");
    let (ok, printed, error) =
        etcdctl(&["member", "add", "second", &format!("--peer-urls={}", second.peer_url())]);
    assert!(ok, "{error}");
    let line = |name: &str| {
        let begin = format!("{name}=\"");
        let found = printed.lines().find_map(|line| line.strip_prefix(&begin)?.strip_suffix('"'));
        found.unwrap_or_else(|| panic!("{printed}")).to_owned()
    };
    assert_eq!(line("ETCD_NAME"), "second");
    assert_eq!(line("ETCD_INITIAL_CLUSTER_STATE"), "existing");
    assert_eq!(line("ETCD_INITIAL_ADVERTISE_PEER_URLS"), second.peer_url());
    second.cluster = line("ETCD_INITIAL_CLUSTER");
    let mut pairs: Vec<&str> = second.cluster.split(',').collect();
    pairs.sort_unstable();
    let expected = [format!("m0={}", first.peer_url()), format!("second={}", second.peer_url())];
    assert_eq!(pairs, expected.iter().map(String::as_str).collect::<Vec<_>>());
    second.start();
    second.ready().await;

    let (ok, table, _) = etcdctl(&["member", "list", "-w", "table"]);
    assert!(ok && table.contains("IS LEARNER") && table.contains("second"), "{table}");
    let second_id = format!("{:x}", id(&second).await);
    let moved = format!("--peer-urls=http://127.0.0.1:{},{}", harness::free_port(), second.peer_url());
    let (ok, printed, error) = etcdctl(&["member", "update", &second_id, &moved]);
    assert!(ok && printed.contains("updated in cluster"), "{printed}{error}");
    let back = format!("--peer-urls={}", second.peer_url());
    assert!(etcdctl(&["member", "update", &second_id, &back]).0);

    let third = newcomer("third");
    let url = format!("--peer-urls={}", third.peer_url());
    let (ok, printed, error) = eventually("a learner is added", || async {
        let answer = etcdctl(&["member", "add", "third", "--learner", &url]);
        (!answer.2.contains("unhealthy cluster")).then_some(answer)
    })
    .await;
    assert!(ok && printed.contains("ETCD_INITIAL_CLUSTER="), "{printed}{error}");
    let listed = list(&client).await.unwrap();
    let third_id = format!("{:x}", listed.iter().find(|member| member.is_learner).unwrap().id);
    let (ok, _, error) = etcdctl(&["member", "promote", &third_id]);
    assert!(
        !ok && error.contains("can only promote a learner member which is in sync with leader"),
        "{error}"
    );
    let (ok, printed, error) = etcdctl(&["member", "remove", &third_id]);
    assert!(ok && printed.contains("removed from cluster"), "{printed}{error}");
    let (ok, _, error) = etcdctl(&["member", "remove", &third_id]);
    assert!(!ok && error.contains("etcdserver: member not found"), "{error}");
    let (ok, printed, error) = etcdctl(&["move-leader", &second_id]);
    assert!(ok && printed.contains("Leadership transferred"), "{printed}{error}");
    let (ok, printed, error) = etcdctl(&["member", "remove", &second_id]);
    assert!(ok && printed.contains("removed from cluster"), "{printed}{error}");
    assert_gone(second);
    client.put("k", "v").await.unwrap();
    let put = PutRequest { key: "k".into(), value: "w".into(), ..PutRequest::default() };
    client.kv.clone().put(put).await.unwrap();
}

/// As it may go with etcd: what it began is another cluster, and both say where the other one is and what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_was_started_as_if_it_began_a_cluster() {
    let members = harness::group(3).await;
    let (mut wrong, _) = admit(&members[0].client(), "wrong", false).await;
    let existing = std::mem::replace(&mut wrong.extra, vec!["--initial-cluster-state=new".to_owned()]);
    wrong.start();
    let says = |member: &Member, peer: &Member| {
        member.log().lines().any(|line| {
            line.contains("may have been made with --initial-cluster-state=new")
                && line.contains(&peer.peer_url())
        })
    };
    eventually("both sides say so", || async {
        let told = members.iter().any(|member| says(member, &wrong));
        (told && members.iter().any(|member| says(&wrong, member))).then_some(())
    })
    .await;
    // As it is told to do.
    wrong.kill();
    std::fs::remove_dir_all(wrong.data()).unwrap();
    wrong.extra = existing;
    wrong.start();
    wrong.ready().await;
}

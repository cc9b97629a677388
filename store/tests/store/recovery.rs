//! A quorum that is lost for good: one command makes a survivor a cluster of its own, and the others join it by
//! themselves, whenever they are killed. Nobody gives up data on what a peer says unasked, or against a majority that lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use keelson_proto::peer::peer_server::{Peer, PeerServer};
use keelson_proto::peer::{
    HashKvAnswer, HashKvQuery, LeaseAnswer, LeaseQuery, MembersRequest, MembersResponse, MembershipAnswer,
    MembershipQuery, MessageBatch, MessagesResponse, SnapshotChunk, SnapshotResponse,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::agree;
use crate::harness::{self, Member, eventually};
use crate::operate::{etcdctl, history};

const FORCE: &str = "--force-new-cluster";

/// Starts a member, which does not run, as the only one; afterwards it runs without the flag.
async fn force(member: &mut Member) {
    member.extra.push(FORCE.to_owned());
    member.start();
    member.ready().await;
    assert!(member.stop().success());
    member.extra.retain(|flag| flag != FORCE);
    member.start();
    member.ready().await;
}

/// Data that was set aside.
fn aside(member: &Member) -> usize {
    let found = harness::files(&member.data(), "");
    found.iter().filter(|path| path.to_string_lossy().contains("/superseded-") && path.is_dir()).count()
}

async fn voters(member: &Member, count: usize) {
    eventually(&format!("{count} members vote"), || async {
        let listed = etcdctl(&[member.client_port], &["member", "list"]);
        let voting = listed.lines().filter(|line| line.contains("started") && line.ends_with("false"));
        (voting.count() == count).then_some(())
    })
    .await;
}

/// Whether it has joined, and has nothing more to do.
async fn joined(member: &Member) {
    member.ready().await;
    eventually("its note is gone", || async { (!member.data().join("rejoining").exists()).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_goes_on_alone() {
    let mut members = harness::group(3).await;
    let client = members[2].client();
    history(&client).await;
    let all = client.all("k").await.unwrap();
    let id = client.status().await.unwrap().header.unwrap();
    for member in &mut members {
        member.kill();
    }
    let alone = &mut members[2];
    for flags in [FORCE, FORCE, ""] {
        alone.extra = [flags].iter().filter(|flag| !flag.is_empty()).map(|flag| (*flag).to_owned()).collect();
        alone.start();
        alone.ready().await;
        let client = alone.client();
        assert_eq!(client.all("k").await.unwrap(), all, "{flags}");
        let listed = etcdctl(&[alone.client_port], &["member", "list"]);
        assert_eq!(listed.lines().count(), 1, "{listed}");
        let now = client.status().await.unwrap().header.unwrap();
        assert_eq!((now.cluster_id, now.member_id), (id.cluster_id, id.member_id));
        client.put("after", flags).await.unwrap();
        assert!(alone.stop().success());
    }
}

#[test]
fn nothing_is_made_a_cluster_of_no_data() {
    let mut member = harness::members(1).remove(0);
    member.extra.push(FORCE.to_owned());
    member.start();
    assert!(!member.ended().success());
    assert!(member.log().contains("there is no data in"), "{}", member.log());
    assert!(!member.data().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_join_by_themselves() {
    let mut members = harness::group(3).await;
    history(&members[0].client()).await;
    agree(&members).await;
    let all = members[0].client().all("k").await.unwrap();
    for member in &mut members {
        member.kill();
    }
    force(&mut members[0]).await;
    members[0].client().put("after", "x").await.unwrap();
    members[1].start();
    members[2].start();
    for member in &members[1..] {
        joined(member).await;
        assert_eq!(aside(member), 1, "its old data is kept");
        assert_eq!(member.client().all("k").await.unwrap(), all);
        assert_eq!(member.client().get("after").await.unwrap().unwrap(), b"x");
    }
    voters(&members[0], 3).await;
    agree(&members).await;
    // They are members like any other now: they make a quorum, and start as before.
    members[0].kill();
    eventually("they go on without the survivor", || async { members[1].client().put("b", "y").await.ok() })
        .await;
    members[1].kill();
    members[0].start();
    members[1].start();
    for member in &members {
        joined(member).await;
    }
    agree(&members).await;
    assert_eq!(aside(&members[1]), 1, "that was once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_runs_all_the_time_joins_too() {
    let mut members = harness::group(3).await;
    members[0].client().put("a", "1").await.unwrap();
    agree(&members).await;
    members[2].kill();
    members[0].kill();
    force(&mut members[0]).await;
    joined(&members[1]).await;
    assert!(members[1].runs(), "it was never started again");
    assert_eq!(aside(&members[1]), 1);
    voters(&members[0], 2).await;
    agree(&members[..2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_killed_while_it_joins_again() {
    let mut members = harness::group(2).await;
    members[0].client().put("k", vec![7; 100_000]).await.unwrap();
    for (round, point) in [
        "rejoin_before_note",
        "rejoin_after_note",
        "rejoin_after_rename",
        "rejoin_after_add",
        // Its new log's first segment; the survivor's snapshot; what it applies first.
        "wal_before_rename",
        "snapshot_before_rename",
        "snapshot_after_rename",
        "apply_before",
    ]
    .into_iter()
    .enumerate()
    {
        for member in &mut members {
            member.kill();
        }
        force(&mut members[0]).await;
        members[1].start_with(&format!("{point}=panic"));
        let reached = format!("failpoint {point} panic");
        eventually("it is reached", || async {
            // Something to apply behind the snapshot, if there is a quorum.
            let client = members[0].client();
            let put = client.put("more", "x");
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), put).await;
            members[1].log().contains(&reached).then_some(())
        })
        .await;
        members[1].kill();
        members[1].start();
        joined(&members[1]).await;
        voters(&members[0], 2).await;
        agree(&members).await;
        assert_eq!(members[1].client().get("k").await.unwrap().unwrap(), vec![7; 100_000], "{point}");
        assert_eq!(aside(&members[1]), round + 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_lives_is_not_given_up() {
    let mut members = harness::group(3).await;
    members[0].client().put("a", "1").await.unwrap();
    agree(&members).await;
    // While the others have a leader there is nothing to force.
    members[0].kill();
    members[0].extra = vec![FORCE.to_owned()];
    members[0].start();
    assert!(!members[0].ended().success());
    assert!(members[0].log().contains("have a leader, so a majority lives"), "{}", members[0].log());
    let named = |at: usize| members[0].log().contains(&members[at].peer_url());
    assert!(named(1) || named(2), "{}", members[0].log());
    // What it cannot see it cannot know.
    members[1].kill();
    members[2].kill();
    members[0].extra.clear();
    force(&mut members[0]).await;
    members[0].client().put("fork", "one").await.unwrap();
    members[0].kill();
    members[1].start();
    members[2].start();
    members[1].ready().await;
    members[1].client().put("fork", "other").await.unwrap();
    members[0].start();
    members[0].ready().await;
    eventually("both sides say so", || async {
        let said = |at: usize, what: &str| members[at].log().contains(what);
        let majority = said(1, "two clusters serve clients") || said(2, "two clusters serve clients");
        (majority && said(0, "two clusters serve clients")).then_some(())
    })
    .await;
    assert_eq!(members[1].client().get("fork").await.unwrap().unwrap(), b"other", "they go on");
    assert_eq!(members[0].client().get("fork").await.unwrap().unwrap(), b"one", "and do not mix");
    // Started again, none of them gives up what was committed behind the survivor's back.
    members[1].kill();
    members[2].kill();
    for member in &mut members[1..] {
        member.start();
        assert!(!member.ended().success());
        assert!(member.log().contains("made of a member that had less"), "{}", member.log());
        assert_eq!(aside(member), 0);
        assert!(!member.data().join("rejoining").exists());
    }
    // The operator gives up what one of them has.
    std::fs::rename(members[1].data().join("member"), members[1].data().join("kept")).unwrap();
    members[1].start();
    joined(&members[1]).await;
    assert_eq!(members[1].client().get("fork").await.unwrap().unwrap(), b"one");
    voters(&members[0], 2).await;
}

/// It is one member or the other, whatever of its data is lost afterwards, and says so only when it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_is_killed_while_it_is_made_the_only_one() {
    for (point, is_alone) in [
        ("snapshot_before_file", false),
        ("snapshot_before_rename", false),
        ("snapshot_after_rename", true),
        ("force_after_snapshot", true),
        ("force_after_trees", true),
    ] {
        let mut members = harness::group(3).await;
        history(&members[0].client()).await;
        agree(&members).await;
        let all = members[0].client().all("k").await.unwrap();
        for member in &mut members {
            member.kill();
        }
        let survivor = &mut members[0];
        survivor.extra = vec![FORCE.to_owned()];
        survivor.start_with(&format!("{point}=panic"));
        assert!(!survivor.ended().success());
        let log = survivor.log();
        assert!(log.contains(&format!("failpoint {point} panic")), "{log}");
        assert!(is_alone || !log.contains("is now the only one"), "{log}");
        survivor.extra.clear();
        for tree_is_lost in [false, true] {
            if tree_is_lost {
                std::fs::remove_dir_all(survivor.trees()).unwrap();
            }
            let starts = survivor.log().matches("the members are").count();
            survivor.start();
            if is_alone {
                survivor.ready().await;
                let listed = etcdctl(&[survivor.client_port], &["member", "list"]);
                assert_eq!(listed.lines().count(), 1, "{point}: {listed}");
                assert_eq!(survivor.client().all("k").await.unwrap(), all, "{point}");
            } else {
                eventually("it is one of three", || async {
                    let log = survivor.log();
                    let mut told = log.lines().filter(|line| line.contains("the members are")).skip(starts);
                    told.next().map(|line| assert_eq!(line.matches(", ").count(), 2, "{point}: {line}"))
                })
                .await;
            }
            survivor.kill();
        }
        force(survivor).await;
        assert_eq!(survivor.client().all("k").await.unwrap(), all, "{point}");
    }
}

/// Listens in a member's place, and says the worst to whoever calls; only asked who the members are it is honest.
#[derive(Clone, Default)]
pub struct Liar {
    told: Arc<AtomicUsize>,
    /// How often it was asked for a checksum.
    pub compared: Arc<AtomicUsize>,
}

impl Liar {
    /// Lies at a port until the task is aborted.
    pub async fn listen(port: u16) -> (Self, JoinHandle<()>) {
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let liar = Self::default();
        let lying = liar.clone();
        let lies = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(PeerServer::new(lying.clone()));
                let builder = auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    // Whoever called may end the connection as it likes.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (liar, lies)
    }
}

fn superseded<T>() -> Result<Response<T>, Status> {
    Err(Status::failed_precondition(
        "the cluster of this member was superseded by one that --force-new-cluster made",
    ))
}

#[tonic::async_trait]
impl Peer for Liar {
    async fn messages(
        &self,
        _: Request<Streaming<MessageBatch>>,
    ) -> Result<Response<MessagesResponse>, Status> {
        self.told.fetch_add(1, Ordering::Relaxed);
        superseded()
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        superseded()
    }

    async fn lease_keep_alive(&self, _: Request<LeaseQuery>) -> Result<Response<LeaseAnswer>, Status> {
        superseded()
    }

    async fn lease_time_to_live(&self, _: Request<LeaseQuery>) -> Result<Response<LeaseAnswer>, Status> {
        superseded()
    }

    async fn hash_kv(&self, query: Request<HashKvQuery>) -> Result<Response<HashKvAnswer>, Status> {
        self.compared.fetch_add(1, Ordering::Relaxed);
        let hash_revision = query.into_inner().revision;
        // Of data that were never compacted.
        Ok(Response::new(HashKvAnswer {
            hash: 1,
            compact_revision: -1,
            hash_revision,
            revision: hash_revision,
        }))
    }

    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(MembersResponse { cluster_id: 1, member_id: 2, ..MembersResponse::default() }))
    }

    async fn change_membership(
        &self,
        _: Request<MembershipQuery>,
    ) -> Result<Response<MembershipAnswer>, Status> {
        superseded()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gives_up_data_on_what_a_peer_says_unasked() {
    let mut members = harness::group(3).await;
    members[1].client().put("a", "1").await.unwrap();
    agree(&members).await;
    members[0].kill();
    let (liar, lies) = Liar::listen(members[0].peer_port).await;
    eventually("the others go on", || async { members[1].client().put("a", "2").await.ok() }).await;
    members[2].kill();
    eventually("it is told, and has no leader", || async {
        members[1].log().contains("has no leader").then_some(())
    })
    .await;
    let told = liar.told.load(Ordering::Relaxed);
    eventually("it is told again", || async { (liar.told.load(Ordering::Relaxed) > told + 3).then_some(()) })
        .await;
    assert!(members[1].runs());
    members[2].start();
    eventually("they go on", || async { members[1].client().put("b", "3").await.ok() }).await;
    assert_eq!(members[1].client().get("a").await.unwrap().unwrap(), b"2");
    assert_eq!((aside(&members[1]), aside(&members[2])), (0, 0));
    for member in &members[1..] {
        assert!(!member.log().contains("it begins anew"), "it asked first");
    }
    lies.abort();
}

/// Of a member that had less: what the others print is a way back, and never leads to two clusters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_member_was_forced() {
    let mut members = harness::group(3).await;
    agree(&members).await;
    members[1].kill();
    eventually("two go on", || async { members[0].client().put("a", "1").await.ok() }).await;
    members[0].client().put("b", "2").await.unwrap();
    for at in [0, 2] {
        members[at].kill();
    }
    force(&mut members[1]).await;
    let rival = members[1].peer_url();
    members[0].start();
    assert!(!members[0].ended().success());
    let expected = format!("first stop the one at {rival} and remove its data directory");
    assert!(members[0].log().contains(&expected), "{}", members[0].log());
    members[0].extra.push(FORCE.to_owned());
    members[0].start();
    assert!(!members[0].ended().success());
    let expected = format!("serves at {rival}: with this member there would be two");
    assert!(members[0].log().contains(&expected), "{}", members[0].log());
    // Two that could not see each other say so once they can.
    members[1].kill();
    members[0].extra.clear();
    force(&mut members[0]).await;
    members[1].start();
    members[1].ready().await;
    let expected = "two clusters with this cluster's ID serve clients";
    assert!(members[1].log().contains(expected), "{}", members[1].log());
    assert!(members[1].log().contains(&members[0].peer_url()), "{}", members[1].log());
    members[2].start();
    assert!(!members[2].ended().success());
    assert!(members[2].log().contains("made a new cluster of each of two members"), "{}", members[2].log());
    // As it is told to do.
    members[1].kill();
    std::fs::remove_dir_all(members[1].data()).unwrap();
    for at in [1, 2] {
        members[at].start();
        joined(&members[at]).await;
        assert_eq!(members[at].client().get("b").await.unwrap().unwrap(), b"2");
    }
    voters(&members[0], 3).await;
}

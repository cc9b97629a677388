//! Operating a store with etcd's own tools: Debian's etcdctl 3.4, and etcd 3.4 itself to compare checksums with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use keelson_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use keelson_proto::etcd::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    MemberRemoveRequest, PutRequest, RangeRequest,
};
use keelson_proto::peer::MessageBatch;
use keelson_proto::peer::peer_client::PeerClient;
use kube_store::mvcc::{Backend, SledBackend};
use tonic::Code;

use crate::etcd::Etcd;
use crate::harness::{self, Client, Member, eventually};
use crate::recovery::Liar;

/// What etcdctl prints; it has to succeed.
pub fn etcdctl(ports: &[u16], arguments: &[&str]) -> String {
    let endpoints: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Puts, overwrites, deletes, transactions of several changes, leases.
pub async fn history(client: &Client) {
    let mut kv = client.kv.clone();
    for round in 0..5 {
        for key in 0..20 {
            client.put(&format!("k{key}"), vec![b'v'; key * round * 100]).await.unwrap();
        }
        let delete = DeleteRangeRequest {
            key: format!("k1{round}").into(),
            range_end: format!("k1{}", round + 2).into(),
            prev_kv: false,
        };
        kv.delete_range(delete).await.unwrap();
    }
    client.lease.clone().lease_grant(LeaseGrantRequest { ttl: 600, id: 77 }).await.unwrap();
    let put = PutRequest { key: "leased".into(), value: "x".into(), lease: 77, ..PutRequest::default() };
    kv.put(put).await.unwrap();
}

#[tokio::test]
async fn checksums_are_etcds() {
    let (member, etcd) = (harness::single().await, Etcd::start(&[]).await);
    let (ours, theirs) = (member.client(), etcd.client());
    history(&ours).await;
    history(&theirs).await;
    let check = async |revision: i64| {
        let ask = async |client: &Client| {
            let request = HashKvRequest { revision };
            let answer = client.maintenance.clone().hash_kv(request).await.unwrap().into_inner();
            (answer.hash, answer.compact_revision, answer.header.unwrap().revision)
        };
        assert_eq!(ask(&ours).await, ask(&theirs).await, "at revision {revision}");
    };
    check(0).await;
    check(40).await;
    for revision in [30, 55, 84] {
        for client in [&ours, &theirs] {
            client.kv.clone().compact(CompactionRequest { revision, physical: true }).await.unwrap();
        }
        check(0).await;
        check(revision + 3).await;
    }
    let error = ours.maintenance.clone().hash_kv(HashKvRequest { revision: 20 }).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alarms_are_the_clusters() {
    let members = harness::group(3).await;
    let ports: Vec<u16> = members.iter().map(|member| member.client_port).collect();
    let clients: Vec<Client> = members.iter().map(Member::client).collect();
    clients[0].put("a", "1").await.unwrap();
    let id = clients[1].status().await.unwrap().header.unwrap().member_id;
    let raise = async |alarm: AlarmType| {
        let request =
            AlarmRequest { action: AlarmAction::Activate as i32, member_id: id, alarm: alarm as i32 };
        clients[0].maintenance.clone().alarm(request).await.unwrap();
    };
    raise(AlarmType::Corrupt).await;
    for (client, port) in clients.iter().zip(&ports) {
        assert_eq!(etcdctl(&[*port], &["alarm", "list"]), format!("memberID:{id} alarm:CORRUPT \n"));
        for error in [client.get("a").await.unwrap_err(), client.put("a", "2").await.unwrap_err()] {
            assert_eq!((error.code(), error.message()), (Code::DataLoss, "etcdserver: corrupt cluster"));
        }
    }
    assert_eq!(etcdctl(&ports, &["alarm", "disarm"]), format!("memberID:{id} alarm:CORRUPT \n"));
    assert_eq!(etcdctl(&ports, &["alarm", "list"]), "");
    for client in &clients {
        assert_eq!(client.get("a").await.unwrap().unwrap(), b"1");
    }
}

/// Three members, of which the second, whose id is told too, has little space.
async fn one_with_a_small_quota() -> (Vec<Member>, Vec<Client>, u64) {
    let mut members = harness::members(3);
    members[1].extra = vec!["--quota-backend-bytes=1000000".to_owned()];
    for member in &mut members {
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    let clients: Vec<Client> = members.iter().map(Member::client).collect();
    let id = clients[1].status().await.unwrap().header.unwrap().member_id;
    (members, clients, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_space_stops_the_writes_of_all() {
    let (members, clients, id) = one_with_a_small_quota().await;
    let error =
        eventually("writes are refused", || async { clients[0].put("k", vec![7; 200_000]).await.err() })
            .await;
    assert_eq!(error.message(), "etcdserver: mvcc: database space exceeded");
    let listed = etcdctl(&[members[2].client_port], &["alarm", "list"]);
    assert_eq!(listed, format!("memberID:{id} alarm:NOSPACE \n"));
    let delete = DeleteRangeRequest { key: "k".into(), ..DeleteRangeRequest::default() };
    let deleted = clients[0].kv.clone().delete_range(delete).await.unwrap().into_inner();
    let revision = deleted.header.unwrap().revision;
    clients[0].kv.clone().compact(CompactionRequest { revision, physical: false }).await.unwrap();
    eventually("writes resume by themselves", || async { clients[0].put("k", "v").await.ok() }).await;
    assert_eq!(etcdctl(&[members[2].client_port], &["alarm", "list"]), "");
}

/// The alarm of a member that is dead or removed would refuse the writes of all for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_does_not_outlive_its_member() {
    let (mut members, clients, id) = one_with_a_small_quota().await;
    let refused = async || {
        eventually("writes are refused", || async { clients[0].put("k", vec![7; 200_000]).await.err() }).await
    };
    refused().await;
    let port = members[2].client_port;
    let listed = || etcdctl(&[port], &["alarm", "list"]);
    assert_eq!(listed(), format!("memberID:{id} alarm:NOSPACE \n"));
    members[1].kill();
    eventually("writes resume by themselves", || async { clients[0].put("a", "v").await.ok() }).await;
    assert_eq!(listed(), "");
    // It still has too much.
    members[1].start();
    members[1].ready().await;
    refused().await;
    assert_eq!(listed(), format!("memberID:{id} alarm:NOSPACE \n"));
    eventually("it is removed", || async {
        clients[0].cluster.clone().member_remove(MemberRemoveRequest { id }).await.ok()
    })
    .await;
    assert_eq!(listed(), "");
    clients[0].put("a", "v").await.unwrap();
    let late = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: id,
        alarm: AlarmType::Nospace as i32,
    };
    clients[0].maintenance.clone().alarm(late).await.unwrap();
    assert_eq!(listed(), "", "it is no member any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_with_etcdctl() {
    let members = harness::group(3).await;
    let ports: Vec<u16> = members.iter().map(|member| member.client_port).collect();
    for value in ["1", "2", "3"] {
        members[0].client().put("a", value).await.unwrap();
    }
    assert_eq!(etcdctl(&ports, &["compaction", "3"]), "compacted revision 3\n");
    eventually("all have compacted", || async {
        let hashes = etcdctl(&ports, &["endpoint", "hashkv"]);
        let hashes: Vec<&str> =
            hashes.lines().filter_map(|line| line.split_once(", ")).map(|pair| pair.1).collect();
        (hashes.len() == 3 && hashes.windows(2).all(|pair| pair[0] == pair[1])).then_some(())
    })
    .await;
    let defragmented = etcdctl(&ports, &["defrag"]);
    assert_eq!(defragmented.matches("Finished defragmenting").count(), 3, "{defragmented}");
    let leader = harness::leader(&members).await;
    let to = &members[(leader + 1) % 3];
    let id = to.client().status().await.unwrap().header.unwrap().member_id;
    let moved = etcdctl(&ports, &["move-leader", &format!("{id:x}")]);
    assert!(moved.starts_with("Leadership transferred from"), "{moved}");
    assert_eq!(to.client().status().await.unwrap().leader, id);
}

/// Changes a value in the tree of a member that does not run, behind its back.
fn corrupt(member: &Member, from: &[u8; 6], to: &[u8; 6]) {
    let tree = harness::files(&member.trees(), "").pop().unwrap();
    let backend = SledBackend::open(&tree).unwrap();
    let mut changes = Vec::new();
    backend
        .scan(b"r", b"s", &mut |key, value| {
            if let Some(at) = value.windows(from.len()).position(|window| window == from) {
                let mut value = value.to_vec();
                value[at..at + to.len()].copy_from_slice(to);
                changes.push((key.to_vec(), Some(value)));
            }
            true
        })
        .unwrap();
    assert_eq!(changes.len(), 1);
    backend.write(changes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_other_data_is_found() {
    let mut members = harness::members(3);
    for member in &mut members {
        member.extra = vec!["--experimental-corrupt-check-time=200ms".to_owned()];
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    let leader = harness::leader(&members).await;
    let clients: Vec<Client> = members.iter().map(Member::client).collect();
    clients[leader].put("a", "needle").await.unwrap();
    let wrong = (leader + 1) % 3;
    assert_eq!(clients[wrong].get("a").await.unwrap().unwrap(), b"needle", "it has it, too");
    assert!(members[wrong].stop().success());
    corrupt(&members[wrong], b"needle", b"noodle");
    // With the check before it serves, it does not.
    members[wrong].extra = vec!["--experimental-initial-corrupt-check=true".to_owned()];
    members[wrong].start();
    assert!(!members[wrong].ended().success());
    assert!(members[wrong].log().contains("found data inconsistency with peers"));
    members[wrong].extra.clear();
    members[wrong].start();
    let error = eventually("it is found", || async { clients[leader].put("b", "x").await.err() }).await;
    assert_eq!(error.message(), "etcdserver: corrupt cluster");
    let listed = etcdctl(&[members[leader].client_port], &["alarm", "list"]);
    let id = eventually("it is up", || async { clients[wrong].status().await.ok() }).await;
    assert_eq!(listed, format!("memberID:{} alarm:CORRUPT \n", id.header.unwrap().member_id));
    assert_eq!(clients[wrong].get("a").await.unwrap_err().message(), "etcdserver: corrupt cluster");
}

/// Whoever introduces itself is answered, but is no member for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_has_no_say_in_who_is_wrong() {
    let mut member = harness::members(1).remove(0);
    member.extra = vec!["--experimental-corrupt-check-time=200ms".to_owned()];
    member.start();
    member.ready().await;
    let client = member.client();
    client.put("a", "1").await.unwrap();
    let port = harness::free_port();
    let (liar, lies) = Liar::listen(port).await;
    let batch = MessageBatch {
        cluster_id: client.status().await.unwrap().header.unwrap().cluster_id,
        from: 77,
        peer_urls: vec![format!("http://127.0.0.1:{port}")],
        // Refused, so that the answer says that the rest was heard.
        messages: vec![b"no message"[..].into()],
    };
    let mut peer = PeerClient::connect(member.peer_url()).await.unwrap();
    let refused = peer.messages(tokio_stream::iter([batch])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let compared = || member.log().matches("compared the members' data").count();
    let before = compared();
    eventually("it has compared twice", || async {
        assert!(!member.log().contains("members hold different data"), "a stranger is believed");
        (compared() > before + 1).then_some(())
    })
    .await;
    assert_eq!(liar.compared.load(Ordering::Relaxed), 0, "it is not even asked");
    client.put("b", "2").await.unwrap();
    lies.abort();
}

/// Runs one of the binary's own commands; gives its exit code and what it prints.
pub fn tool(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kube-store")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

fn restore(file: &Path, member: &Member, more: &[&str]) -> (i32, String) {
    let identity = member.identity();
    let mut arguments = vec!["snapshot", "restore", file.to_str().unwrap()];
    arguments.extend(identity.iter().map(String::as_str));
    arguments.extend(more);
    tool(&arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_etcdctl_saved_is_restored() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, ours) = (directory.path().join("theirs.db"), directory.path().join("ours.db"));
    let (theirs, ours) = (theirs.as_path(), ours.as_path());
    let member = harness::single().await;
    let client = member.client();
    history(&client).await;
    client.kv.clone().compact(CompactionRequest { revision: 50, physical: false }).await.unwrap();
    let port = member.client_port;
    etcdctl(&[port], &["snapshot", "save", theirs.to_str().unwrap()]);
    let endpoint = format!("--endpoint=http://127.0.0.1:{port}");
    let (code, said) = tool(&["snapshot", "save", ours.to_str().unwrap(), &endpoint]);
    assert_eq!(code, 0, "{said}");

    let (revision, hash) = client.hash().await.unwrap();
    let (_, simple) = tool(&["snapshot", "status", ours.to_str().unwrap()]);
    assert_eq!(simple.split(", ").nth(1), Some(revision.to_string().as_str()), "{simple}");
    let (_, status) = tool(&["snapshot", "status", theirs.to_str().unwrap(), "-w", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["revision"], revision);
    assert_eq!(status["totalSize"], std::fs::metadata(theirs).unwrap().len());
    let (_, table) = tool(&["snapshot", "status", theirs.to_str().unwrap(), "-w", "table"]);
    assert!(table.contains(" | REVISION | TOTAL KEYS | TOTAL SIZE |"), "{table}");

    let mut restored = harness::members(3);
    for member in &mut restored {
        let (code, said) = restore(theirs, member, &[]);
        assert_eq!(code, 0, "{said}");
        let (code, said) = restore(theirs, member, &[]);
        assert!(code == 1 && said.contains("not empty"), "{said}");
        let (code, said) = tool(&["verify", "--data-dir", member.data().to_str().unwrap()]);
        assert!(code == 0 && said.contains("consistent"), "{said}");
        member.start();
    }
    for member in &restored {
        member.ready().await;
        assert_eq!(member.client().hash().await.unwrap(), (revision, hash));
    }
    assert_eq!(etcdctl(&[restored[0].client_port], &["lease", "list"]), "found 1 leases\n000000000000004d\n");
    assert_eq!(restored[0].client().all("k").await.unwrap(), client.all("k").await.unwrap());
    let put = restored[1].client().put("after", "x").await.unwrap();
    assert_eq!(put.header.unwrap().revision, revision + 1);

    let mut bumped = harness::members(1).remove(0);
    let (code, said) = restore(theirs, &bumped, &["--bump-revision=1000"]);
    assert!(code == 1 && said.contains("--mark-compacted required"), "{said}");
    let (code, said) = restore(theirs, &bumped, &["--bump-revision=1000", "--mark-compacted"]);
    assert_eq!(code, 0, "{said}");
    bumped.start();
    bumped.ready().await;
    let client = bumped.client();
    let request = RangeRequest { key: "leased".into(), revision: revision + 999, ..RangeRequest::default() };
    let error = client.range(request).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
    assert_eq!(client.get("leased").await.unwrap().unwrap(), b"x");
    assert_eq!(client.put("after", "x").await.unwrap().header.unwrap().revision, revision + 1001);

    // Who it is, is in the directory: its own flags do.
    let mut renamed = harness::members(1).remove(0);
    let (code, said) = restore(theirs, &renamed, &["--initial-cluster-token=another"]);
    assert_eq!(code, 0, "{said}");
    for _ in 0..2 {
        renamed.start();
        renamed.ready().await;
        assert_eq!(renamed.client().get("leased").await.unwrap().unwrap(), b"x");
        let cluster = renamed.client().status().await.unwrap().header.unwrap().cluster_id;
        assert!(said.contains(&format!("of cluster {cluster:x}")), "{said}");
        assert!(renamed.stop().success());
    }

    let mut bytes = std::fs::read(theirs).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let other = harness::members(1).remove(0);
    // Empty, and cut short: in the middle and within its last sector.
    for length in [0, 3, 100, at, bytes.len() - 33] {
        std::fs::write(ours, &bytes[..length]).unwrap();
        let (code, said) = restore(ours, &other, &[]);
        assert!(code == 1 && !said.contains("--skip-hash-check"), "{length}: {said}");
    }
    std::fs::write(ours, &bytes).unwrap();
    let (code, said) = restore(ours, &other, &[]);
    assert!(code == 1 && said.contains("SHA-256"), "{said}");
    let (code, said) = restore(ours, &other, &["--skip-hash-check"]);
    assert!(code == 1 && said.contains("checksum"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_what_is_wrong_and_changes_nothing() {
    let mut member = harness::members(1).remove(0);
    let data = member.data().display().to_string();
    let verify = || tool(&["verify", "--data-dir", &data]);
    // A snapshot every 16 MiB of the log, so that there is one with entries behind it.
    member.start_with("snapshot_at=return(1000000)");
    member.ready().await;
    let client = member.client();
    history(&client).await;
    for round in 0..20 {
        client.put("large", vec![round; 1_000_000]).await.unwrap();
    }
    eventually("there is a snapshot", || async { (member.snapshots() > 0).then_some(()) }).await;
    client.put("a", "needle").await.unwrap();
    let (code, said) = verify();
    assert!(code == 1 && said.contains("in use"), "{said}");
    assert!(member.stop().success());
    let content = || {
        let mut found: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        let mut left = vec![member.data()];
        while let Some(directory) = left.pop() {
            for path in harness::files(&directory, "") {
                match path.is_dir() {
                    true => left.push(path),
                    false => found.push((path.clone(), std::fs::read(path).unwrap())),
                }
            }
        }
        found.sort();
        found
    };
    let before = content();
    let (code, said) = verify();
    assert!(code == 0 && said.contains("give what the tree has: ok"), "{said}");
    assert!(content() == before, "it changed something");
    corrupt(&member, b"needle", b"noodle");
    let (code, said) = verify();
    assert!(code == 1 && said.contains("differ, first at revision") && said.contains("key \"a\""), "{said}");
    let segment = harness::files(&member.wal(), ".wal").remove(0);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let (code, said) = verify();
    assert!(code == 1 && said.contains("write-ahead log is corrupt"), "{said}");
}

#[tokio::test]
async fn the_environment_says_what_flags_do_not() {
    let mut member = harness::members(1).remove(0);
    let metrics = harness::free_port();
    member.environment = vec![
        ("ETCD_NAME", "other".to_owned()),
        ("ETCD_LISTEN_METRICS_URLS", format!("http://127.0.0.1:{metrics}")),
        ("ETCD_PRE_VOTE", "true".to_owned()),
        ("ETCD_NO_SUCH_FLAG", "1".to_owned()),
        ("ETCDCTL_NO_SUCH_FLAG", "1".to_owned()),
    ];
    member.start();
    member.ready().await;
    assert!(crate::secure::get(metrics, "/health").contains(r#""health":"true""#));
    for expected in [
        "ETCD_NAME=other is not used: --name is given",
        "ETCD_LISTEN_METRICS_URLS is used as --listen-metrics-urls=",
        "--pre-vote has nothing to act on in kube-store",
        "unrecognized environment variable ETCD_NO_SUCH_FLAG",
    ] {
        assert!(member.log().contains(expected), "{expected}: {}", member.log());
    }
    assert!(!member.log().contains("ETCDCTL"), "{}", member.log());
    member.kill();
    member.environment = vec![("ETCD_WAL_DIR", "/x".to_owned())];
    member.start();
    assert!(!member.ended().success());
    assert!(member.log().contains("--wal-dir=/x: kube-store does not do this"), "{}", member.log());
}

#[tokio::test]
async fn etcds_own_data_is_known_as_such() {
    let etcd = Etcd::start(&[]).await;
    etcd.client().put("a", "1").await.unwrap();
    let mut member = harness::members(1).remove(0);
    let copied = Command::new("cp").arg("-r").arg(etcd.data()).arg(member.data()).status().unwrap();
    assert!(copied.success());
    drop(etcd);
    let before = harness::files(&member.wal(), "");
    let says = |said: &str| said.contains("data directory of etcd's own") && !said.contains("corrupt");
    member.start();
    assert!(!member.ended().success());
    assert!(says(&member.log()), "{}", member.log());
    let (code, said) = tool(&["verify", "--data-dir", member.data().to_str().unwrap()]);
    assert!(code == 1 && says(&said), "{said}");
    assert_eq!(harness::files(&member.wal(), ""), before, "it changed something");
}

/// Bytes on the disk.
fn usage(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let paths = harness::files(directory, "");
    // What is being removed may be gone.
    let size = |path: &PathBuf| match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => usage(path),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    paths.iter().map(size).sum()
}

/// 2 MB of keys, written again and again; all but the newest is compacted.
async fn churn(client: &Client) {
    let mut revision = 0;
    for round in 0..20u8 {
        for key in 0..20 {
            let put = client.put(&format!("churn{key}"), vec![round; 100_000]).await.unwrap();
            revision = put.header.unwrap().revision;
        }
    }
    client.kv.clone().compact(CompactionRequest { revision, physical: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_shrinks_by_itself_after_a_compaction() {
    let mut member = harness::members(1).remove(0);
    member.start_with("shrink_slack=return(1000000)");
    member.ready().await;
    let client = member.client();
    churn(&client).await;
    eventually("a smaller tree is in use", || async {
        member.log().contains("a smaller tree of values is in use").then_some(())
    })
    .await;
    eventually("the old one is gone", || async {
        (harness::files(&member.trees(), "").len() == 1 && usage(&member.trees()) < 6_000_000).then_some(())
    })
    .await;
    let before = client.all("churn").await.unwrap();
    assert_eq!(before.len(), 20);
    client.put("after", "x").await.unwrap();
    let hash = client.hash().await.unwrap();
    for restart in [true, false] {
        if restart {
            assert!(member.stop().success());
        } else {
            member.kill();
        }
        member.start();
        member.ready().await;
        assert_eq!(client.hash().await.unwrap(), hash);
    }
    let (code, said) = {
        assert!(member.stop().success());
        tool(&["verify", "--data-dir", member.data().to_str().unwrap()])
    };
    assert_eq!(code, 0, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_was_being_built_is_never_mistaken_for_one() {
    for failpoint in ["rebuild_before_write=3*off->panic", "rebuild_before_switch=panic"] {
        let mut member = harness::members(1).remove(0);
        member.start_with(&format!("shrink_slack=return(1000000);{failpoint}"));
        member.ready().await;
        let client = member.client();
        churn(&client).await;
        assert!(!member.ended().success(), "{failpoint}");
        member.start();
        member.ready().await;
        let all = client.all("churn").await.unwrap();
        assert_eq!(all.len(), 20);
        assert!(all.values().all(|value| *value == vec![19; 100_000]), "{failpoint}");
        // It may begin again.
        eventually("one is left", || async {
            (harness::files(&member.trees(), "").len() == 1).then_some(())
        })
        .await;
        assert!(member.stop().success());
        let (code, said) = tool(&["verify", "--data-dir", member.data().to_str().unwrap()]);
        assert_eq!(code, 0, "{failpoint}: {said}");
    }
}

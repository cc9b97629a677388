//! Debian's etcdctl against three members: what it prints has to be what it prints against three members of etcd.
//!
//! In expected output `<m0>` is the first member's id, `<M0>` the same in decimal, `<cluster>` and `<CLUSTER>` likewise the
//! cluster's, `<name0>`, `<client0>` and `<peer0>` the first
//! member's name and URLs, and `<*>` anything within a line. Runs of spaces and dashes,
//! which align tables, count as one.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use keelson_proto::etcd::etcdserverpb::MemberListRequest;

use crate::harness::{self, Member};

/// What a command line is given on its standard input, and what it prints.
type Case = (&'static str, &'static str, &'static str);

/// What kube-store has not.
const NO_USERS: &str = "Error: rpc error: code = Unimplemented desc = etcdserver: users and roles are not supported by \
                        kube-store\n";

const KV: &[Case] = &[
    ("put k/a 1", "", "OK\n"),
    ("put k/b", "from input", "OK\n"),
    ("put k/c 3", "", "OK\n"),
    ("put k/a 4 --prev-kv", "", "OK\nk/a\n1\n"),
    ("put k/x --ignore-value", "", "Error: etcdserver: key not found\n"),
    ("put k/c --ignore-value", "", "OK\n"),
    ("put k/x v --lease=123", "", "Error: etcdserver: requested lease not found\n"),
    ("get k/a", "", "k/a\n4\n"),
    ("get nothing", "", ""),
    ("get k/ --prefix", "", "k/a\n4\nk/b\nfrom input\nk/c\n3\n"),
    ("get k/a k/c", "", "k/a\n4\nk/b\nfrom input\n"),
    ("get k/b --from-key", "", "k/b\nfrom input\nk/c\n3\n"),
    ("get k/ --prefix --keys-only", "", "k/a\n\nk/b\n\nk/c\n\n"),
    ("get k/ --prefix --print-value-only", "", "4\nfrom input\n3\n"),
    ("get k/ --prefix --rev=3", "", "k/a\n1\nk/b\nfrom input\n"),
    ("get k/ --prefix --rev=99", "", "Error: etcdserver: mvcc: required revision is a future revision\n"),
    ("get k/ --prefix --order=DESCEND --keys-only", "", "k/c\n\nk/b\n\nk/a\n\n"),
    ("get k/ --prefix --order=DESCEND --sort-by=CREATE --keys-only", "", "k/c\n\nk/b\n\nk/a\n\n"),
    ("get k/ --prefix --order=ASCEND --sort-by=MODIFY --keys-only", "", "k/b\n\nk/a\n\nk/c\n\n"),
    ("get k/ --prefix --order=ASCEND --sort-by=VALUE --keys-only", "", "k/c\n\nk/a\n\nk/b\n\n"),
    ("get k/ --prefix --order=ASCEND --sort-by=VERSION --keys-only", "", "k/b\n\nk/a\n\nk/c\n\n"),
    ("get k/ --prefix --limit=1", "", "k/a\n4\n"),
    ("get k/a --consistency=s", "", "k/a\n4\n"),
    ("get k/a --hex", "", "\\x6b\\x2f\\x61\n\\x34\n"),
    (
        "get k/ --prefix --limit=1 -w json",
        "",
        "{\"header\":{\"cluster_id\":<CLUSTER>,\"member_id\":<M0>,\"revision\":6,\"raft_term\":<*>},\"kvs\":[{\"key\":\"ay9h\",\
         \"create_revision\":2,\"mod_revision\":5,\"version\":2,\"value\":\"NA==\"}],\"more\":true,\"count\":3}\n",
    ),
    (
        "get k/ --prefix --limit=1 -w fields",
        "",
        "\"ClusterID\" : <CLUSTER>\n\"MemberID\" : <M0>\n\"Revision\" : 6\n\"RaftTerm\" : <*>\n\"Key\" : \"k/a\"\n\
         \"CreateRevision\" : 2\n\"ModRevision\" : 5\n\"Version\" : 2\n\"Value\" : \"4\"\n\"Lease\" : 0\n\"More\" : true\n\
         \"Count\" : 3\n",
    ),
    ("del k/b --prev-kv", "", "1\nk/b\nfrom input\n"),
    ("del nothing", "", "0\n"),
    ("del k/ --prefix", "", "2\n"),
    ("put k/a 1", "", "OK\n"),
    ("put k/b 2", "", "OK\n"),
    ("del k/b --from-key", "", "1\n"),
];

const TXN: &[Case] = &[
    (
        "txn -i",
        "value(\"k/a\") = \"1\"\n\nput k/a 2\nget k/a\n\nput k/a 3\n\n",
        "compares:\nsuccess requests (get, put, del):\nfailure requests (get, put, del):\nSUCCESS\n\nOK\n\nk/a\n2\n",
    ),
    (
        "txn",
        "mod(\"k/a\") = \"1\"\nver(\"k/a\") > \"0\"\n\nput k/a 2\n\nput k/a 3\nget k/a\ndel k/a\n\n",
        "Error: etcdserver: duplicate key given in txn request\n",
    ),
    (
        "txn",
        "create(\"k/a\") = \"1\"\n\nput k/a 2\n\nput k/z 3\nget k/a\ndel k/a\n\n",
        "FAILURE\n\nOK\n\nk/a\n2\n\n1\n",
    ),
    (
        "txn -w json",
        "ver(\"k/a\") = \"0\"\n\nput k/a 2 --prev-kv\n\n\n",
        "{\"header\":{\"cluster_id\":<CLUSTER>,\"member_id\":<M0>,\"revision\":14,\"raft_term\":<*>},\"succeeded\":true,\
         \"responses\":[{\"Response\":{\"ResponsePut\":{\"header\":{\"revision\":14}}}}]}\n",
    ),
];

const LEASES: &[Case] = &[
    ("lease grant 600", "", "lease <*> granted with TTL(600s)\n"),
    ("lease grant 9000000001", "", "Error: failed to grant lease (etcdserver: too large lease TTL)\n"),
    ("lease list", "", "found 1 leases\n<*>\n"),
    ("lease timetolive 1234", "", "lease 0000000000001234 already expired\n"),
    ("lease revoke 1234", "", "Error: failed to revoke lease (etcdserver: requested lease not found)\n"),
    ("lease keep-alive --once 1234", "", "Error: etcdserver: requested lease not found\n"),
];

const COMPACTION: &[Case] = &[
    ("compaction 9", "", "compacted revision 9\n"),
    ("compaction 9", "", "Error: etcdserver: mvcc: required revision has been compacted\n"),
    ("compaction 999", "", "Error: etcdserver: mvcc: required revision is a future revision\n"),
    ("compaction 10 --physical", "", "compacted revision 10\n"),
    ("get k/a --rev=4", "", "Error: etcdserver: mvcc: required revision has been compacted\n"),
    (
        "watch k/a --rev=2",
        "",
        "watch was canceled (etcdserver: mvcc: required revision has been compacted)\nError: watch is canceled by the server\n",
    ),
];

const MEMBERS: &[Case] = &[
    (
        "member list -w table",
        "",
        "+-+-+-+-+-+-+\n| ID | STATUS | NAME | PEER ADDRS | CLIENT ADDRS | IS LEARNER |\n+-+-+-+-+-+-+\n\
         | <m0> | started | <name0> | <peer0> | <client0> | false |\n| <m1> | started | <name1> | <peer1> | <client1> | false |\n\
         | <m2> | started | <name2> | <peer2> | <client2> | false |\n+-+-+-+-+-+-+\n",
    ),
    ("member remove 1234", "", "Error: etcdserver: member not found\n"),
    ("member update 1234 --peer-urls=http://127.0.0.1:1", "", "Error: etcdserver: member not found\n"),
    ("member promote 1234", "", "Error: etcdserver: member not found\n"),
    ("member add m4 --peer-urls=<peer0>", "", "Error: etcdserver: Peer URLs already exists\n"),
    (
        "member add m4 --learner --peer-urls=http://127.0.0.1:1",
        "",
        "Member <*> added to cluster <cluster>\n\nETCD_NAME=\"m4\"\nETCD_INITIAL_CLUSTER=\"<*>\"\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=\"http://127.0.0.1:1\"\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
    ),
];

const ENDPOINTS: &[Case] = &[
    (
        "endpoint health --cluster",
        "",
        "<client> is healthy: successfully committed proposal: took = <*>\n<client> is healthy: successfully committed \
         proposal: took = <*>\n<client> is healthy: successfully committed proposal: took = <*>\n",
    ),
    ("endpoint hashkv", "", "<client0>, <*>\n"),
    ("endpoint status", "", "<client0>, <m0>, 3.5.<*>, <*>B, <*>, false, <*>, <*>, <*>, \n"),
    (
        "endpoint status -w table",
        "",
        "+-+-+-+-+-+-+-+-+-+-+\n| ENDPOINT | ID | VERSION | DB SIZE | IS LEADER | IS LEARNER | RAFT TERM | RAFT INDEX | RAFT \
         APPLIED INDEX | ERRORS |\n+-+-+-+-+-+-+-+-+-+-+\n| <client0> | <m0> | 3.5.<*> | <*> | <*> | false | <*> | <*> | <*> \
         | |\n+-+-+-+-+-+-+-+-+-+-+\n",
    ),
    ("alarm list", "", ""),
    ("alarm disarm", "", ""),
    ("defrag", "", "Finished defragmenting etcd member[<client0>]\n"),
    ("move-leader 1234 --endpoints=<clients>", "", "Error: etcdserver: bad leader transferee\n"),
    ("lock name echo held", "", "held\n"),
    ("auth enable", "", NO_USERS),
    ("user list", "", NO_USERS),
    ("get k/a --user=root:x", "", "k/a\n2\n"),
];

struct Ctl {
    /// Placeholders and what they stand for here.
    names: Vec<(String, String)>,
    endpoint: String,
}

impl Ctl {
    async fn new(members: &[Member]) -> Self {
        let client = members[0].client();
        let request = MemberListRequest { linearizable: true };
        let listed = client.cluster.clone().member_list(request).await.unwrap().into_inner();
        let cluster = listed.header.unwrap().cluster_id;
        let mut names = vec![
            ("<cluster>".to_owned(), format!("{cluster:x}")),
            ("<CLUSTER>".to_owned(), cluster.to_string()),
        ];
        let mut clients = Vec::new();
        for (at, member) in members.iter().enumerate() {
            let known = listed.members.iter().find(|known| known.name == member.name).unwrap();
            names.push((format!("<m{at}>"), format!("{:x}", known.id)));
            names.push((format!("<M{at}>"), known.id.to_string()));
            names.push((format!("<name{at}>"), member.name.clone()));
            names.push((format!("<peer{at}>"), member.peer_url()));
            names.push((format!("<client{at}>"), format!("http://127.0.0.1:{}", member.client_port)));
            clients.push(format!("http://127.0.0.1:{}", member.client_port));
        }
        names.push(("<clients>".to_owned(), clients.join(",")));
        Self { names, endpoint: clients.swap_remove(0) }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--dial-timeout=5s", "--command-timeout=20s"]);
        if !line.contains("--endpoints") {
            command.arg(format!("--endpoints={}", self.endpoint));
        }
        command.args(self.fill(line).split_whitespace());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Puts what they stand for in the place of placeholders.
    fn fill(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// What a command line prints, without the client's own log.
    fn run(&self, line: &str, input: &str) -> String {
        let mut child = self.command(line).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        text.lines()
            .filter(|line| !line.starts_with("{\"level\""))
            .fold(String::new(), |text, line| text + line + "\n")
    }

    fn check(&self, (line, input, expected): &Case) {
        let found = squeeze(&self.run(line, input));
        let wanted = squeeze(&self.fill(&expected.replace("<client>", "http://127.0.0.1:<*>")));
        assert!(
            found.lines().count() == wanted.lines().count()
                && found.lines().zip(wanted.lines()).all(|(found, wanted)| fits(found, wanted)),
            "etcdctl {line} printed\n{found}\nand not\n{wanted}"
        );
    }
}

fn squeeze(text: &str) -> String {
    let mut squeezed = String::new();
    for character in text.chars() {
        if !(matches!(character, ' ' | '-') && squeezed.ends_with(character)) {
            squeezed.push(character);
        }
    }
    squeezed
}

/// Whether a line is as wanted, where `<*>` is anything.
fn fits(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split("<*>");
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_prints_what_it_prints_of_etcd() {
    let mut members = harness::group(3).await;
    // As they are listed.
    let mut ids = BTreeMap::new();
    for member in &members {
        ids.insert(member.name.clone(), member.client().status().await.unwrap().header.unwrap().member_id);
    }
    members.sort_by_key(|member| ids[&member.name]);
    let ctl = Ctl::new(&members).await;
    for case in [KV, TXN, LEASES, COMPACTION, MEMBERS, ENDPOINTS].concat() {
        ctl.check(&case);
    }
    let lease = ctl.run("lease grant 500", "").split(' ').nth(1).unwrap().to_owned();
    let line = |rest: &str| rest.replace("LEASE", &lease);
    for (command, expected) in [
        ("put l/1 x --lease=LEASE", "OK\n"),
        (
            "lease timetolive LEASE --keys",
            "lease LEASE granted with TTL(500s), remaining(<*>s), attached keys([l/1])\n",
        ),
        ("lease keep-alive --once LEASE", "lease LEASE keepalived with TTL(500)\n"),
        ("lease revoke LEASE", "lease LEASE revoked\n"),
        ("get l/1", ""),
    ] {
        let (command, wanted) = (line(command), line(expected));
        let found = ctl.run(&command, "");
        assert!(
            fits(found.trim_end(), wanted.trim_end()),
            "etcdctl {command} printed\n{found}\nand not\n{wanted}"
        );
    }
    let leader = harness::leader(&members).await;
    let to = (leader + 1) % members.len();
    let moved = ctl.run(&format!("move-leader <m{to}> --endpoints=<clients>"), "");
    let wanted = ctl.fill(&format!("Leadership transferred from <m{leader}> to <m{to}>\n"));
    assert_eq!(moved, wanted);
}

/// Commands that go on until they are ended: what they print first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_watches_mirrors_and_elects() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let members = harness::group(3).await;
    let ctl = Ctl::new(&members).await;
    for line in ["put a 1", "put a 2", "del a", "put b 3"] {
        ctl.run(line, "");
    }
    let first_lines = async |line: &str, input: &str, expected: &str| {
        let mut command = tokio::process::Command::from(ctl.command(line));
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        // It ends with its input, where it reads any.
        let mut stdin = child.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for wanted in expected.lines() {
            let next = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
            let next = next.unwrap_or_else(|_| panic!("{line}: no line {wanted:?} came")).unwrap();
            let found = next.unwrap_or_else(|| panic!("{line}: ended before {wanted:?}"));
            assert!(fits(&found, wanted), "{line}: {found:?} instead of {wanted:?}");
        }
    };
    first_lines("watch a --rev=2", "", "PUT\na\n1\nPUT\na\n2\nDELETE\na\n\n").await;
    first_lines("watch a --rev=2 --prev-kv", "", "PUT\na\n1\nPUT\na\n1\na\n2\nDELETE\na\n2\na\n\n").await;
    first_lines("watch a c --rev=4", "", "DELETE\na\n\nPUT\nb\n3\n").await;
    first_lines("watch -i", "watch b --rev=2\n", "PUT\nb\n3\n").await;
    first_lines("watch b --rev=2 -- echo seen", "", "PUT\nb\n3\nseen\n").await;
    first_lines("elect leaders me", "", "leaders/<*>\nme\n").await;
    // It says nothing for a long time.
    let mut mirror = ctl.command("make-mirror --prefix=b --dest-prefix=mirror/ <client1>").spawn().unwrap();
    let client = members[2].client();
    harness::eventually("it is mirrored", || async { client.get("mirror/").await.unwrap() }).await;
    mirror.kill().unwrap();
    mirror.wait().unwrap();
}

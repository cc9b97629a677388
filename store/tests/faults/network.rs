//! A network of the test's own: a namespace for each member, joined by a bridge that is in the test's namespace.
//!
//! Nothing of it has a name in the system. A namespace lives as long as the test has it open or a member runs in it, and
//! members end with the test; so nothing is left, however the test ends. Clients are beside the bridge: what is cut
//! between members never keeps a client from any of them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// What is wrong between members, who are meant by their place.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Links {
    /// From and to.
    pub cut: BTreeSet<(usize, usize)>,
    /// Of 100 packets.
    pub loss: u64,
    /// Members whose link is narrow, in kbit/s and in milliseconds that a packet waits before it is dropped.
    pub narrow: Vec<(usize, u64, u64)>,
}

pub struct Network {
    namespaces: Vec<File>,
    links: Links,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} (as root?): {}", String::from_utf8_lossy(&output.stderr));
}

fn ip<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) {
    run(Command::new("ip").args(arguments));
}

/// A namespace that nobody is in.
fn namespace() -> File {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces are for root");
        File::open("/proc/thread-self/ns/net").unwrap()
    });
    thread.join().unwrap()
}

impl Network {
    /// Moves the calling thread into a namespace of its own, and with it each thread that it begins from here on.
    pub fn new(members: usize) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces are for root");
        ip("link set lo up".split(' '));
        ip("link add bridge type bridge forward_delay 0".split(' '));
        ip("addr add 10.77.0.254/24 dev bridge".split(' '));
        ip("link set bridge up".split(' '));
        let network =
            Self { namespaces: (0..members).map(|_| namespace()).collect(), links: Links::default() };
        for member in 0..members {
            let path = network.path(member);
            ip(format!("link add member{member} type veth peer name eth0 netns {path}").split(' '));
            ip(format!("link set member{member} master bridge up").split(' '));
            for arguments in [
                "link set lo up".to_owned(),
                format!("addr add {}/24 dev eth0", network.address(member)),
                "link set eth0 up".to_owned(),
            ] {
                run(network.inside(member, "ip").args(arguments.split(' ')));
            }
        }
        network
    }

    fn path(&self, member: usize) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespaces[member].as_raw_fd())
    }

    pub fn address(&self, member: usize) -> String {
        format!("10.77.0.{}", member + 1)
    }

    fn inside(&self, member: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(member))).arg("--").arg(program);
        command
    }

    /// A program in a member's namespace, which is killed when the calling thread ends.
    pub fn command(&self, member: usize, program: &str) -> Command {
        let mut command = self.inside(member, "setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]);
        command
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    pub fn set(&mut self, links: Links) {
        if (&links.cut, links.loss) != (&self.links.cut, self.links.loss) {
            self.filter(&links);
        }
        if links.narrow != self.links.narrow {
            for (member, ..) in &self.links.narrow {
                self.shape(*member, "del", "");
            }
            for (member, rate, wait) in &links.narrow {
                self.shape(*member, "add", &format!(" tbf rate {rate}kbit burst 4kb latency {wait}ms"));
            }
        }
        self.links = links;
    }

    fn filter(&self, links: &Links) {
        let mut rules = String::new();
        for (from, to) in &links.cut {
            rules += &format!("ip saddr {} ip daddr {} drop\n", self.address(*from), self.address(*to));
        }
        if links.loss > 0 {
            rules += &format!("numgen random mod 100 < {} drop\n", links.loss);
        }
        let table = format!(
            "add table bridge faults\ndelete table bridge faults\ntable bridge faults {{\nchain forward {{\ntype filter \
             hook forward priority 0; policy accept;\n{rules}}}\n}}\n"
        );
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "nft refuses {table}");
    }

    /// Both ways, also towards clients.
    fn shape(&self, member: usize, verb: &str, how: &str) {
        let towards = format!("qdisc {verb} dev member{member} root{how}");
        run(Command::new("tc").args(towards.split(' ')));
        let from = format!("qdisc {verb} dev eth0 root{how}");
        run(self.inside(member, "tc").args(from.split(' ')));
    }
}

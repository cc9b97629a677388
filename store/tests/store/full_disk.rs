//! A disk without space: nothing that was acknowledged is lost, nothing is damaged, and it goes on when there is room.
//!
//! The data directory is a small tmpfs, so these tests need root.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use keelson_proto::etcd::etcdserverpb::{DeleteRangeRequest, MoveLeaderRequest};

use crate::cluster::agree;
use crate::durability::{Load, assert_holds};
use crate::harness::{self, Client, Member, eventually, files, leader};

/// A file system of a given size, in MiB.
struct Tmpfs(PathBuf);

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} (as root?): {}", String::from_utf8_lossy(&output.stderr));
}

impl Tmpfs {
    fn mount(at: &Path, size: u32) -> Self {
        fs::create_dir(at).unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"]).arg(at));
        Self(at.to_owned())
    }

    fn resize(&self, size: u32) {
        run(Command::new("mount").args(["-o", &format!("remount,size={size}m")]).arg(&self.0));
    }

    /// Takes the space that is left but for some MiB, to the last block.
    fn fill(&self, leave: u64) {
        let free = || {
            let stat = nix::sys::statvfs::statvfs(&self.0).unwrap();
            stat.blocks_available() * stat.fragment_size()
        };
        let file = File::options().create(true).append(true).open(self.0.join("ballast")).unwrap();
        let flags = nix::fcntl::FallocateFlags::empty();
        let mut step: i64 = 64 << 20;
        while step >= 4096 {
            let length = i64::try_from(file.metadata().unwrap().len()).unwrap();
            if free() < step.unsigned_abs() + (leave << 20)
                || nix::fcntl::fallocate(file.as_fd(), flags, length, step).is_err()
            {
                step /= 2;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: whatever still holds a file in it goes with the test.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// MiB that are too few for a segment of the log, while the tree can finish what it had begun.
const LITTLE: u64 = 4;

/// A member on a disk of 160 MiB, which runs.
async fn member_on_small_disk() -> (Member, Tmpfs) {
    let mut member = harness::members(1).remove(0);
    let disk = Tmpfs::mount(&member.data(), 160);
    member.start();
    member.ready().await;
    (member, disk)
}

/// Writes that need no space of their own are accepted longest: until the log can grow no more, or the process ends.
async fn write_until_nothing_is_accepted(client: &Client) {
    eventually("nothing is accepted", || async {
        let delete = DeleteRangeRequest { key: vec![b'x'; 1 << 20].into(), ..DeleteRangeRequest::default() };
        client.kv.clone().delete_range(delete).await.err()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_under_load() {
    let (mut member, disk) = member_on_small_disk().await;
    let client = member.client();
    let load = Load::start(std::slice::from_ref(&client), 4, 0, 50_000);
    load.wait_for(50).await;
    disk.fill(0);
    write_until_nothing_is_accepted(&client).await;
    let acknowledged = load.stop().await;
    if member.runs() {
        // What waits for space does not keep it from stopping.
        let _ = member.stop();
    } else {
        assert!(!member.ended().success());
    }
    assert!(member.log().contains("free disk space"), "it says what to do");
    for round in 0..3 {
        member.start();
        if member.ready_or_ended().await {
            // It may find while it answers that there is no space.
            if let Ok(found) = client.all("load/").await {
                assert_holds(&found, &acknowledged);
            }
            member.kill();
        }
        let trees = files(&member.trees(), "");
        assert!(trees.len() <= 1, "round {round} leaves trees: {trees:?}");
    }
    disk.resize(400);
    member.start();
    member.ready().await;
    assert_holds(&client.all("load/").await.unwrap(), &acknowledged);
    eventually("writes are accepted", || async { client.put("after", "x").await.ok() }).await;
    let hash = client.hash().await.unwrap();
    member.kill();
    member.start();
    member.ready().await;
    assert_eq!(client.hash().await.unwrap(), hash);
}

/// Writes are refused long before the disk is full, and nothing needs a restart when it no longer is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_slowly() {
    let (mut member, disk) = member_on_small_disk().await;
    let client = member.client();
    client.put("before", "x").await.unwrap();
    disk.fill(30);
    let error = eventually("it is noticed", || async { client.put("refused", "x").await.err() }).await;
    assert_eq!(error.message(), "etcdserver: mvcc: database space exceeded");
    assert_eq!(client.get("before").await.unwrap().unwrap(), b"x", "reads go on");
    disk.fill(LITTLE);
    write_until_nothing_is_accepted(&client).await;
    assert_eq!(client.get("before").await.unwrap().unwrap(), b"x", "reads still go on");
    assert!(member.log().contains("no space left for the write-ahead log"));
    disk.empty();
    eventually("writes are accepted", || async { client.put("after", "x").await.ok() }).await;
    let hash = client.hash().await.unwrap();
    assert!(member.runs(), "it was never started again");
    assert!(member.stop().success());
    member.start();
    member.ready().await;
    assert_eq!(client.hash().await.unwrap(), hash);
}

/// It could only hold in memory what the others commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_on_a_full_disk_hands_over() {
    let mut members = harness::members(3);
    let disk = Tmpfs::mount(&members[0].data(), 160);
    for member in &mut members {
        member.start();
    }
    for member in &members {
        member.ready().await;
    }
    let target_id = members[0].client().status().await.unwrap().header.unwrap().member_id;
    let first = leader(&members).await;
    if first != 0 {
        let mut maintenance = members[first].client().maintenance;
        maintenance.move_leader(MoveLeaderRequest { target_id }).await.unwrap();
    }
    disk.fill(LITTLE);
    let client = members[1].client();
    let mut serial = 0;
    while client.status().await.unwrap().leader == target_id {
        serial += 1;
        assert!(serial < 100, "it still leads");
        // What its log has no room for is answered late or not at all.
        let _ = client.put(&format!("k{serial}"), vec![7; 1 << 20]).await;
    }
    assert!(members[0].log().contains("no space left for the write-ahead log"));
    eventually("the others go on", || async { client.put("after", "x").await.ok() }).await;
    assert!(members[0].runs());
    disk.empty();
    agree(&members).await;
}

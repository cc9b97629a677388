//! The real binary, driven over its own protocol: what it promises when it is killed, restarted, cut off and watched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod backlog;
mod client;
mod cluster;
mod durability;
mod etcd;
mod etcd_bugs;
mod etcdctl;
mod full_disk;
mod harness;
mod membership;
mod operate;
mod peer;
mod protocol;
mod recovery;
mod secure;
mod services;
mod watch;

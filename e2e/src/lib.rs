//! End-to-end tests: the real daemons, driven with the clients that people use.
//!
//! `e2e/run` starts one cluster of two nodes that most tests share, each in a namespace of its own;
//! a test that breaks a whole cluster makes one for itself. Tests wait for conditions with a deadline
//! and leave nothing behind.

pub mod api;
pub mod bench;
pub mod kubectl;
pub mod network;
pub mod own;
pub mod pods;
pub mod store;
pub mod wait;

use std::path::PathBuf;

use keelson_local::cluster::Cluster;
use keelson_local::layout::Layout;

/// Number of nodes of the shared cluster, as `e2e/run` starts it.
const SHARED_NODES: u8 = 2;

/// The cluster that `e2e/run` started.
#[expect(clippy::expect_used, reason = "a test without its cluster can only fail, and says how to get one")]
pub fn shared_cluster() -> Cluster {
    let root = std::env::var_os("KEELSON_E2E_ROOT").expect("no cluster to test: run `make e2e` or `e2e/run`");
    let layout = Layout::new(PathBuf::from(root)).expect("KEELSON_E2E_ROOT is a path");
    Cluster::new(layout, &binaries(), SHARED_NODES).expect("the cluster's layout can be derived")
}

/// Directory of the daemons' binaries: beside the test's own.
#[expect(clippy::expect_used, reason = "a test binary is always in target/<profile>/deps")]
pub fn binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps").to_owned()
}

//! A cluster of one node for a test that breaks it.

use std::path::Path;
use std::time::Duration;

use keelson_local::cluster::Cluster;
use keelson_local::layout::Layout;
use keelson_local::supervisor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// A cluster that is taken away, with its data, when this is dropped.
pub struct OwnCluster {
    pub cluster: Cluster,
    // Dropped after the cluster is down: nothing is mounted below it any more.
    _root: tempfile::TempDir,
}

#[expect(clippy::expect_used, reason = "a test without its cluster can only fail")]
impl OwnCluster {
    /// Starts it, with the demo image loaded.
    pub fn start() -> Self {
        let own = Self::start_prepared(|_| {});
        own.cluster.load_demo_image(Path::new("/bin/busybox")).expect("the demo image loads");
        own
    }

    /// Starts it after `prepare` saw its layout. What that mounts below the root goes with the cluster.
    pub fn start_prepared(prepare: impl FnOnce(&Cluster)) -> Self {
        let root =
            tempfile::Builder::new().prefix("keelson-e2e-own-").tempdir_in("/tmp").expect("a directory");
        let layout = Layout::new(root.path()).expect("an absolute path");
        let cluster = Cluster::new(layout, &crate::binaries(), 1).expect("the cluster's layout");
        // From here on a failure takes away what was started.
        let own = Self { cluster, _root: root };
        prepare(&own.cluster);
        if let Err(error) = own.cluster.up() {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text += &format!(": {cause}");
                source = cause.source();
            }
            drop(own);
            Self::failed(&text);
        }
        own
    }

    #[expect(clippy::panic, reason = "a test without its cluster can only fail")]
    fn failed(text: &str) -> ! {
        panic!("the cluster does not start: {text}")
    }

    /// The pid of a daemon on the one host.
    pub fn pid(&self, daemon: &str) -> Option<Pid> {
        supervisor::daemon(&self.cluster.host_layout(&self.cluster.hosts[0]), daemon)
    }

    /// `kill -9` of a daemon; waits until its supervisor has started it again.
    pub fn kill(&self, daemon: &str) -> Pid {
        let old = until(&format!("{daemon} runs"), Duration::from_secs(20), || {
            self.pid(daemon).ok_or_else(|| "it does not".to_owned())
        });
        kill(old, Signal::SIGKILL).expect("the daemon can be killed");
        until(&format!("{daemon} is started again"), Duration::from_secs(20), || match self.pid(daemon) {
            Some(pid) if pid != old => Ok(pid),
            other => Err(format!("{other:?}")),
        })
    }

    /// The last lines of a daemon's log, for failures.
    pub fn log(&self, daemon: &str) -> String {
        let layout = self.cluster.host_layout(&self.cluster.hosts[0]);
        let text = std::fs::read_to_string(supervisor::log_file(&layout, daemon)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // A drop must not panic while a test fails; what is left is told.
        match runtime.map(|runtime| runtime.block_on(self.cluster.down(true))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("the cluster could not be taken away: {error}"),
            Err(error) => eprintln!("the cluster could not be taken away: {error}"),
        }
    }
}

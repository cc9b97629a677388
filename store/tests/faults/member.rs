//! One member's place: its address, its directory, and the process that there is at a time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Network;

pub struct Member {
    pub place: usize,
    /// How often it was removed and added anew.
    pub generation: u32,
    /// `--initial-cluster`.
    pub cluster: String,
    directory: PathBuf,
    /// Where the log of its last process begins.
    log_begins: usize,
    child: Option<Child>,
    paused: bool,
    /// A failpoint of its process may end it.
    pub armed: bool,
    /// Tells apart its processes; changed before one is killed and before one begins.
    life: Arc<AtomicU64>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Member {
    pub fn new(place: usize, directory: &Path, life: Arc<AtomicU64>) -> Self {
        Self {
            place,
            generation: 0,
            cluster: String::new(),
            directory: directory.join(format!("member{place}")),
            log_begins: 0,
            child: None,
            paused: false,
            armed: false,
            life,
        }
    }

    pub fn name(&self) -> String {
        format!("m{}-{}", self.place, self.generation)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Of all its processes.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of its last process, the newest first.
    pub fn last_words(&self) -> Vec<String> {
        let log = std::fs::read(self.log_path()).unwrap();
        let last = String::from_utf8_lossy(&log[self.log_begins..]);
        last.lines().rev().take(40).map(str::to_owned).collect()
    }

    pub fn start(&mut self, network: &Network, failpoints: &str) {
        assert!(self.child.is_none(), "it runs already");
        std::fs::create_dir_all(&self.directory).unwrap();
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        self.log_begins = log.metadata().unwrap().len() as usize;
        let url = |port| format!("http://{}:{port}", network.address(self.place));
        let mut command = network.command(self.place, env!("CARGO_BIN_EXE_kube-store"));
        command
            .arg(format!("--name={}", self.name()))
            .arg(format!("--data-dir={}", self.data().display()))
            .arg(format!("--listen-client-urls={}", url(2379)))
            .arg(format!("--advertise-client-urls={}", url(2379)))
            .arg(format!("--listen-peer-urls={}", url(2380)))
            .arg(format!("--initial-advertise-peer-urls={}", url(2380)))
            .arg(format!("--initial-cluster={}", self.cluster))
            .arg("--watch-progress-notify-interval=500ms")
            // Members compare what they hold while all this goes on.
            .arg("--corrupt-check-time=5s")
            .env("FAILPOINTS", failpoints)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if self.generation > 0 {
            command.arg("--initial-cluster-state=existing");
        }
        self.life.fetch_add(1, Ordering::SeqCst);
        self.child = Some(command.spawn().unwrap());
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Whether it runs and is not paused.
    pub fn acts(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// kill -9, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.life.fetch_add(1, Ordering::SeqCst);
            let _ = child.kill();
            child.wait().unwrap();
        }
        (self.paused, self.armed) = (false, false);
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        }
    }

    /// Whether its process has come so far that it handles SIGTERM; before, the signal ends it like any program.
    pub fn drains(&self) -> bool {
        let Some(child) = &self.child else { return false };
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        caught & 1 << (Signal::SIGTERM as u32 - 1) != 0
    }

    pub fn pause(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.paused = self.child.is_some();
    }

    pub fn resume(&mut self) {
        self.signal(Signal::SIGCONT);
        self.paused = false;
    }

    /// How its process has ended by itself, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.life.fetch_add(1, Ordering::SeqCst);
        self.child = None;
        (self.paused, self.armed) = (false, false);
        Some(status)
    }

    /// Makes room for a member anew. Its log stays.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none());
        if self.data().exists() {
            std::fs::remove_dir_all(self.data()).unwrap();
        }
        self.generation += 1;
    }
}

//! The cgroups of one host's pods: who is in them, ending those, and taking the cgroups away.
//!
//! Invariant: only what is below the host's own root is looked at; a process elsewhere is nobody's of
//! ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

const MOUNT: &str = "/sys/fs/cgroup";
const POLL: Duration = Duration::from_millis(20);
/// How long the kernel may take to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the root is: once on cgroup v2, once per controller on v1.
fn places(root: &str) -> Vec<PathBuf> {
    let base = Path::new(MOUNT);
    let mut hierarchies = vec![base.to_owned()];
    hierarchies.extend(fs::read_dir(base).into_iter().flatten().flatten().map(|entry| entry.path()));
    let root = root.trim_start_matches('/');
    hierarchies.into_iter().map(|hierarchy| hierarchy.join(root)).filter(|path| path.is_dir()).collect()
}

fn below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// Every process in the cgroup and those below it.
pub fn processes(root: &str) -> BTreeSet<Pid> {
    fn collect(path: &Path, found: &mut BTreeSet<Pid>) {
        let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw));
        below(path).iter().for_each(|path| collect(path, found));
    }
    let mut found = BTreeSet::new();
    places(root).iter().for_each(|path| collect(path, &mut found));
    // The kernel writes 0 for a process of another pid namespace; kill(0) would end ourselves.
    found.remove(&Pid::from_raw(0));
    found
}

/// Whether anybody of these handles SIGTERM. A container's first process that does not is not ended
/// by it either, so there is nothing to wait for.
fn anybody_handles_sigterm(pids: &BTreeSet<Pid>) -> bool {
    pids.iter().any(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        catches(&status, Signal::SIGTERM)
    })
}

fn catches(status: &str, signal: Signal) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

/// Ends every process: SIGTERM, and SIGKILL after `grace` or when nobody is left who listens. Returns
/// whether all are gone.
pub fn end_processes(root: &str, grace: Duration) -> bool {
    let send = |signal| {
        for pid in processes(root) {
            // One that has just ended is what we want.
            let _ = signal::kill(pid, signal);
        }
    };
    if !grace.is_zero() {
        send(Signal::SIGTERM);
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && anybody_handles_sigterm(&processes(root)) {
            std::thread::sleep(POLL);
        }
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    while !processes(root).is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        // Each time, for a process may have made another one.
        send(Signal::SIGKILL);
        std::thread::sleep(POLL);
    }
    true
}

/// Removes a cgroup and all below it, in every hierarchy.
pub fn remove(root: &str) {
    fn remove_one(path: &Path) {
        below(path).iter().for_each(|path| remove_one(path));
        // A cgroup that still has processes cannot be removed; what holds them was told before.
        let _ = fs::remove_dir(path);
    }
    places(root).iter().for_each(|path| remove_one(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_read_from_the_mask() {
        let check = |mask: &str, expected| {
            let status = format!("Name:\tx\nSigIgn:\tffffffffffffffff\nSigCgt:\t{mask}\n");
            assert_eq!(catches(&status, Signal::SIGTERM), expected, "{mask}");
        };
        check("0000000000004000", true);
        check("00000001800144eb", true);
        check("0000000000000000", false);
        check("ffffffffffffbfff", false);
        assert!(!catches("", Signal::SIGTERM));
    }

    #[test]
    fn a_root_that_is_not_there_has_no_processes() {
        assert!(processes("/keelson-no-such-cgroup").is_empty());
        assert!(end_processes("/keelson-no-such-cgroup", Duration::from_secs(60)));
    }
}

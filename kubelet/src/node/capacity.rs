//! What the machine has: CPUs, memory, disks, and how full they are. Reads /proc and statvfs, decides nothing.

use std::path::Path;

use crate::pod::resources::Amounts;

/// CPUs in milli and memory in bytes.
pub fn machine() -> Amounts {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpus = cpus.lines().filter(|line| line.starts_with("processor")).count().max(1);
    Amounts { cpu: i64::try_from(cpus).unwrap_or(1) * 1000, memory: memory("MemTotal").unwrap_or(0) }
}

/// A line of /proc/meminfo, in bytes.
pub fn memory(name: &str) -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<i64>().ok()? * 1024)
}

/// Whether anything is swapped to.
pub fn swap_is_on() -> bool {
    memory("SwapTotal").is_some_and(|bytes| bytes > 0)
}

/// Size of the filesystem that holds `path` and what is free of it, in bytes.
pub fn filesystem(path: &Path) -> Option<(u64, u64)> {
    let stat = existing(path).and_then(|path| nix::sys::statvfs::statvfs(path).ok())?;
    Some((stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size()))
}

/// Inodes of the filesystem that holds `path`, all and free.
pub fn inodes(path: &Path) -> Option<(u64, u64)> {
    let stat = existing(path).and_then(|path| nix::sys::statvfs::statvfs(path).ok())?;
    Some((stat.files(), stat.files_available()))
}

fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

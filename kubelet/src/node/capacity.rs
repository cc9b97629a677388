//! What the machine has: CPUs, memory, disks, and how full they are. Reads /proc and statvfs, decides nothing.

use std::{os::unix::fs::MetadataExt as _, path::Path};

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

/// Bytes on disk of a directory and what is in it, without what is mounted there.
pub fn used(directory: &Path) -> u64 {
    let Ok(top) = std::fs::symlink_metadata(directory) else { return 0 };
    let (mut sum, mut pending) = (0, vec![directory.to_path_buf()]);
    while let Some(next) = pending.pop() {
        let entries = std::fs::read_dir(&next).into_iter().flatten().flatten();
        for metadata in entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?))) {
            let (path, metadata) = metadata;
            if metadata.dev() != top.dev() {
                continue;
            }
            sum += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    sum
}

fn existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|path| path.exists())
}

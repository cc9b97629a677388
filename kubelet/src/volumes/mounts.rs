//! What is mounted below the kubelet's directory, from `/proc/self/mountinfo`.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mount points below `directory`, deepest first.
pub fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(directory))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(below(path)?.iter().any(|mounted| mounted == path))
}

/// Mountinfo writes blanks and backslashes as octal escapes.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A tmpfs at `path`, unless one is there; `size` in bytes, zero for the kernel's default.
pub fn tmpfs(path: &Path, size: i64) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let options = if size > 0 { format!("size={size},noswap") } else { "noswap".to_owned() };
    let flags = MsFlags::empty();
    match mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str())) {
        // Kernels before 6.4 have no noswap.
        Err(nix::errno::Errno::EINVAL) => {
            let size = (size > 0).then(|| format!("size={size}"));
            Ok(mount(Some("tmpfs"), path, Some("tmpfs"), flags, size.as_deref())?)
        }
        other => Ok(other?),
    }
}

/// Unmounts everything below `directory`, itself included.
pub fn unmount_all(directory: &Path) -> io::Result<()> {
    for path in below(directory)? {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

//! Removes a pod's directory, and never anything through a mount.
//!
//! A pod's directory holds bind mounts of other people's files, and pods make trees as deep as they like. So a
//! directory is only entered if no mount is crossed on the way, and directories are moved up before they are emptied:
//! there is no recursion, and no more than two directories are open at a time.

use std::{
    ffi::OsString,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

/// Removes `directory` and what is in it; what is already gone is fine.
///
/// # Errors
/// EXDEV where something is still mounted below it: nothing of that is touched.
pub fn tree(directory: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let gone = |error: &Errno| *error == Errno::ENOENT;
    let parent = match nix::fcntl::open(parent, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(error) if gone(&error) => return Ok(()),
        other => other?,
    };
    let top = match enter(&parent, Path::new(name)) {
        Err(error) if gone(&error) => return Ok(()),
        other => other?,
    };
    loop {
        let entries = names(&top)?;
        if entries.is_empty() {
            break;
        }
        for (name, is_directory) in entries {
            if is_directory { empty(&top, Path::new(&name))? } else { unlink(&top, Path::new(&name))? }
        }
    }
    match unlinkat(&parent, Path::new(name), UnlinkatFlags::RemoveDir) {
        Err(error) if !gone(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Opens a directory that is no symlink and no mount.
fn enter(base: &OwnedFd, name: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS,
        );
    openat2(base, name, how)
}

/// What is in a directory, and whether it is a directory itself.
fn names(directory: &OwnedFd) -> io::Result<Vec<(OsString, bool)>> {
    fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_dir()))))
        .filter(|entry| !matches!(entry, Err(error) if error.kind() == io::ErrorKind::NotFound))
        .collect()
}

fn unlink(base: &OwnedFd, name: &Path) -> io::Result<()> {
    match unlinkat(base, name, UnlinkatFlags::NoRemoveDir) {
        Err(error) if error != Errno::ENOENT => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes the directory `name` of `top`; directories in it move up into `top`.
fn empty(top: &OwnedFd, name: &Path) -> io::Result<()> {
    let directory = match enter(top, name) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    for (child, is_directory) in names(&directory)? {
        let child = Path::new(&child);
        if !is_directory {
            unlink(&directory, child)?;
            continue;
        }
        match unlinkat(&directory, child, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => continue,
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let moved = format!("{:032x}", rand::random::<u128>());
        match renameat2(&directory, child, top, Path::new(&moved), RenameFlags::RENAME_NOREPLACE) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match unlinkat(top, name, UnlinkatFlags::RemoveDir) {
        // Something was made in it meanwhile: the next round sees it.
        Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn removes_deep_trees_and_no_targets_of_symlinks() {
        let around = tempfile::tempdir().unwrap();
        let (inside, outside) = (around.path().join("pod"), around.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", 300).collect();
        fs::create_dir_all(inside.join(deep)).unwrap();
        fs::write(inside.join("d/file"), "").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        symlink(&outside, inside.join("d/link")).unwrap();
        tree(&inside).unwrap();
        assert!(!inside.exists());
        assert!(outside.join("kept").exists());
        tree(&inside).unwrap();
    }

    /// Needs to mount, so it runs where that is allowed (as root) and is empty elsewhere.
    #[test]
    fn never_removes_through_a_mount() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let around = tempfile::tempdir().unwrap();
        let (inside, outside) = (around.path().join("pod"), around.path().join("outside"));
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let none: Option<&str> = None;
        // A bind mount of the same filesystem: its device number says nothing.
        let target = inside.join("a/b");
        if nix::mount::mount(Some(&outside), &target, none, nix::mount::MsFlags::MS_BIND, none).is_err() {
            return;
        }
        let refused = tree(&inside);
        nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(refused.is_err());
        assert!(outside.join("kept").exists());
        tree(&inside).unwrap();
        assert!(!inside.exists());
    }
}

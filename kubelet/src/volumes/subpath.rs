//! `subPath` of a volume mount: resolved inside the volume by the kernel, then bound to a place a pod cannot change.
//!
//! A pod can race symlinks in its own volume, so the path is opened with `RESOLVE_BENEATH` and the open file is what
//! gets mounted; nothing is ever looked up by name a second time.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Component, Path},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::Mode,
};

fn open_in(base: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(base, path, how)
}

fn open_volume(volume: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens `sub_path` below `volume`, making directories that are missing.
fn open(volume: &Path, sub_path: &Path) -> io::Result<OwnedFd> {
    let base = open_volume(volume)?;
    match open_in(&base, sub_path) {
        Ok(found) => return Ok(found),
        Err(nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // As upstream: what is made is as open as the volume, so that the container's user may write to it.
    let mode = nix::sys::stat::fstat(&base)?.st_mode & 0o2777;
    let mut current = base;
    for component in sub_path.components() {
        let Component::Normal(name) = component else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "subPath must be a relative path without '..'",
            ));
        };
        let name = Path::new(name);
        current = match open_in(&current, name) {
            Ok(next) => next,
            Err(nix::errno::Errno::ENOENT) => {
                nix::sys::stat::mkdirat(&current, name, Mode::from_bits_truncate(0o750))?;
                let made = open_in(&current, name)?;
                // By its descriptor: the pod may put another thing at the name meanwhile.
                let path = format!("/proc/self/fd/{}", made.as_raw_fd());
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
                made
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(current)
}

/// Binds `volume/sub_path` to `target`, which then is what the container is given.
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let source = open(volume, Path::new(sub_path))?;
    let metadata = nix::sys::stat::fstat(&source)?;
    if super::mounts::is_mounted(target)? {
        // From an earlier start of the container: the volume may have been written anew since.
        unbind(target)?;
    }
    if nix::sys::stat::SFlag::from_bits_truncate(metadata.st_mode) & nix::sys::stat::SFlag::S_IFMT
        == nix::sys::stat::SFlag::S_IFDIR
    {
        std::fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    let opened = format!("/proc/self/fd/{}", source.as_raw_fd());
    Ok(mount(Some(opened.as_str()), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// Undoes [`bind`]; what is bound nowhere is fine.
pub fn unbind(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_below_the_volume() {
        let volume = tempfile::tempdir().unwrap();
        let root = volume.path();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../..", root.join("up")).unwrap();
        let check = |path: &str, accepted: bool| {
            assert_eq!(open(root, Path::new(path)).is_ok(), accepted, "{path}");
        };
        check("real", true);
        check("inside", true);
        check("new/deep", true);
        check("absolute", false);
        check("absolute/passwd", false);
        check("up", false);
        check("../x", false);
        assert!(root.join("new/deep").is_dir());
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o2777)).unwrap();
        check("open/deeper", true);
        let mode = std::fs::metadata(root.join("open/deeper")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o2777, "what is made is as open as the volume");
    }
}

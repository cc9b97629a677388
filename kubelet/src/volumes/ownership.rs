//! Gives a volume to the pod's fsGroup: every file and directory that is in it, as upstream's `SetVolumeOwnership`.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown},
    path::{Path, PathBuf},
};

/// Hands `path` and all below it to `group`, symlinks themselves and never what they point to. The group may read,
/// and write unless the volume is `read_only`; what is made in a directory later is the group's too.
pub fn give(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let mut pending: Vec<PathBuf> = vec![path.to_path_buf()];
    while let Some(next) = pending.pop() {
        let metadata = fs::symlink_metadata(&next)?;
        if metadata.gid() != group {
            lchown(&next, None, Some(group))?;
        }
        if metadata.is_symlink() {
            continue;
        }
        let mut added = if read_only { 0o440 } else { 0o660 };
        if metadata.is_dir() {
            added |= 0o2110;
            for entry in fs::read_dir(&next)? {
                pending.push(entry?.path());
            }
        }
        let mode = metadata.permissions().mode() & 0o7777;
        // A change of owner may have taken the set-group-id bit away.
        fs::set_permissions(&next, fs::Permissions::from_mode(mode | added))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn reaches_everything_below_and_nothing_beside() {
        let around = tempfile::tempdir().unwrap();
        let (volume, outside) = (around.path().join("volume"), around.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        for file in [volume.join("a/b/file"), outside.clone()] {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, volume.join("a/link")).unwrap();
        // The own group, which everybody may give things to.
        let group = nix::unistd::getegid().as_raw();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        give(&volume, group, true).unwrap();
        assert_eq!(mode(&volume.join("a/b/file")), 0o640);
        give(&volume, group, false).unwrap();
        assert_eq!(mode(&volume.join("a/b/file")), 0o660);
        assert_eq!(mode(&volume.join("a/b")) & 0o2770, 0o2770);
        assert_eq!(mode(&outside), 0o600);
    }
}

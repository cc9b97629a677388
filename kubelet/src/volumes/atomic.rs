//! Writes a set of files so that a reader sees all of the old ones or all of the new ones.
//!
//! The layout is upstream's: files in a timestamped directory, `..data` a symlink to it that is replaced by rename,
//! and a symlink through `..data` for each top-level name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, where the volume asks for one.
    pub owner: Option<u32>,
}

/// Relative path → file.
pub type Payload = BTreeMap<String, File>;

/// A path that would leave the volume.
fn checked(path: &str) -> io::Result<&Path> {
    let candidate = Path::new(path);
    let plain = candidate.components().all(|component| matches!(component, Component::Normal(_)));
    if path.is_empty() || path.len() > 4096 || !plain || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}")));
    }
    Ok(candidate)
}

/// Brings `directory` to exactly `payload`; false if nothing had to change. `group` owns what is written.
pub fn write(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    for path in payload.keys() {
        checked(path)?;
    }
    let data = directory.join(DATA);
    if let Some(current) = current(directory)
        && same(&directory.join(current), payload)?
    {
        // A kubelet that was killed after publishing has not linked the names yet.
        link_names(directory, payload)?;
        return Ok(false);
    }
    let fresh = new_directory(directory)?;
    let result = fill(&fresh, payload, group).and_then(|()| publish(directory, &fresh, &data));
    if let Err(error) = result {
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    link_names(directory, payload)?;
    remove_stale(directory)?;
    Ok(true)
}

/// The stamped directory that `..data` points to; only a plain name is believed.
fn current(directory: &Path) -> Option<PathBuf> {
    let target = fs::read_link(directory.join(DATA)).ok()?;
    let mut parts = target.components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain.then_some(target)
}

/// Stamped directories that are not the current one: of the payload before, and of kubelets that were killed.
fn remove_stale(directory: &Path) -> io::Result<()> {
    let current = current(directory);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let stamped = name.to_string_lossy().starts_with("..") && entry.file_type()?.is_dir();
        if stamped && current.as_deref() != Some(Path::new(&name)) {
            super::remove::tree(&entry.path())?;
        }
    }
    Ok(())
}

fn new_directory(directory: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.").to_string();
    let path = directory.join(format!("{stamp}{}", rand::random::<u32>()));
    fs::create_dir(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn fill(fresh: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    use std::os::unix::fs::chown;
    for (path, file) in payload {
        let path = fresh.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, &file.data)?;
        if file.owner.is_some() {
            chown(&path, file.owner, None)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    // A group that owns the volume can read all of it.
    group.map_or(Ok(()), |group| super::ownership::give(fresh, group, true))
}

fn publish(directory: &Path, fresh: &Path, data: &Path) -> io::Result<()> {
    let temporary = directory.join(NEW_DATA);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(fresh.file_name().unwrap_or_default(), &temporary)?;
    fs::rename(&temporary, data)
}

/// Top-level names point through `..data`; those of files that are gone are removed.
fn link_names(directory: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        match symlink(Path::new(DATA).join(name), directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(directory.join(name.as_ref()))?;
        }
    }
    Ok(())
}

fn same(directory: &Path, payload: &Payload) -> io::Result<bool> {
    let mut found = 0;
    let mut pending = vec![directory.to_path_buf()];
    while let Some(next) = pending.pop() {
        let entries = match fs::read_dir(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
                continue;
            }
            let path = entry.path();
            let Ok(relative) = path.strip_prefix(directory) else { return Ok(false) };
            match payload.get(relative.to_string_lossy().as_ref()) {
                Some(file) if fs::read(&path)? == file.data => found += 1,
                _ => return Ok(false),
            }
        }
    }
    Ok(found == payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o640, owner: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    #[test]
    fn replaces_everything_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let read = |path: &str| fs::read_to_string(directory.join(path)).ok();
        assert!(write(directory, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!((read("a"), read("d/b")), (Some("1".into()), Some("2".into())));
        assert_eq!(fs::metadata(directory.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let before = fs::read_link(directory.join(DATA)).unwrap();
        assert!(!write(directory, &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap(), "nothing changed");
        assert_eq!(fs::read_link(directory.join(DATA)).unwrap(), before);
        assert!(write(directory, &payload(&[("a", "3")]), None).unwrap());
        assert_eq!((read("a"), read("d/b")), (Some("3".into()), None));
        let stamped = fs::read_dir(directory).unwrap().count();
        assert_eq!(stamped, 3, "..data, one stamped directory, one name");
        assert!(!directory.join(&before).exists());
    }

    #[test]
    fn completes_what_a_killed_kubelet_began_and_believes_no_foreign_link() {
        let around = tempfile::tempdir().unwrap();
        let (directory, outside) = (around.path().join("volume"), around.path().join("outside"));
        fs::create_dir(&directory).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        write(&directory, &payload(&[("a", "1")]), None).unwrap();
        fs::remove_file(directory.join("a")).unwrap();
        fs::create_dir(directory.join("..2020_01_01_00_00_00.1")).unwrap();
        assert!(!write(&directory, &payload(&[("a", "1")]), None).unwrap());
        assert_eq!(fs::read_to_string(directory.join("a")).unwrap(), "1");
        // Whoever could write to the volume may have made `..data` point anywhere.
        fs::remove_file(directory.join(DATA)).unwrap();
        symlink(&outside, directory.join(DATA)).unwrap();
        assert!(write(&directory, &payload(&[("a", "2")]), None).unwrap());
        assert!(outside.join("kept").exists());
        assert_eq!(fs::read_to_string(directory.join("a")).unwrap(), "2");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 3, "what was stale is gone");
    }

    #[test]
    fn refuses_paths_that_leave_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "", "..data"] {
            assert!(write(directory.path(), &payload(&[(path, "")]), None).is_err(), "{path}");
        }
    }
}

//! `hostPath` volumes: checks the type that the pod says, and makes what it asks to be made.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

/// Checks or makes `path` as its type says; the sentences are upstream's.
pub fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let found = fs::metadata(path);
    let is =
        |test: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(|metadata| test(&metadata.file_type()));
    let check = |holds: bool, what: &str| {
        if holds { Ok(()) } else { Err(format!("hostPath type check failed: {shown} is not a {what}")) }
    };
    match kind {
        "" => Ok(()),
        "Directory" => check(is(fs::FileType::is_dir), "directory"),
        "File" => check(is(fs::FileType::is_file), "file"),
        "Socket" => check(is(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => check(is(|kind| kind.is_char_device()), "character device"),
        "BlockDevice" => check(is(|kind| kind.is_block_device()), "block device"),
        "DirectoryOrCreate" => {
            if found.is_err() {
                make_directory(path).map_err(|error| error.to_string())?;
                return Ok(());
            }
            check(is(fs::FileType::is_dir), "directory")
        }
        "FileOrCreate" => {
            if found.is_err() {
                make_file(path).map_err(|error| error.to_string())?;
                return Ok(());
            }
            check(is(fs::FileType::is_file), "file")
        }
        other => Err(format!("{other} is an invalid volume type")),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().create_new(true).write(true).open(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let directory = tempfile::tempdir().unwrap();
        let check = |name: &str, kind: &str, expected: Result<(), &str>| {
            let path = directory.path().join(name);
            let expected = expected
                .map_err(|what| format!("hostPath type check failed: {} is not a {what}", path.display()));
            assert_eq!(prepare(&path, kind), expected, "{name} {kind}");
        };
        check("none", "", Ok(()));
        check("none", "Directory", Err("directory"));
        check("d", "DirectoryOrCreate", Ok(()));
        check("d", "Directory", Ok(()));
        check("d", "FileOrCreate", Err("file"));
        check("f", "FileOrCreate", Ok(()));
        check("f", "File", Ok(()));
        check("f", "Socket", Err("socket file"));
    }
}

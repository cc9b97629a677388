//! Container images made from files of this machine, for places where no registry can be reached.
//!
//! An image is a program together with the shared libraries that it needs (as `ldd` tells), in the
//! archive format of `docker save`, which containerd imports. The same input gives the same bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command::{self, CommandError};

/// Why an image could not be made or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the image archive {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full names with tags, such as `localhost/pause:latest`.
    pub names: Vec<String>,
    /// Files as (path on this machine, path in the image); modes are kept.
    pub files: Vec<(PathBuf, String)>,
    /// Symbolic links as (path in the image, target).
    pub links: Vec<(String, String)>,
    /// Files with content of their own, as (path in the image, content).
    pub texts: Vec<(String, String)>,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// Numeric user to run as, or empty for root.
    pub user: String,
}

/// The pod sandbox's first process.
pub fn pause(binary: &Path) -> Result<Image, ImageError> {
    program("localhost/pause:latest", binary, "/pause", "65535")
}

/// An image that runs `binary`, at `target`.
pub fn program(name: &str, binary: &Path, target: &str, user: &str) -> Result<Image, ImageError> {
    let mut files = vec![(binary.to_owned(), target.to_owned())];
    files.extend(shared_libraries(binary)?);
    Ok(Image {
        names: vec![name.to_owned()],
        files,
        links: Vec::new(),
        texts: Vec::new(),
        entrypoint: vec![target.to_owned()],
        command: Vec::new(),
        user: user.to_owned(),
    })
}

/// A name for commands that cannot say `imagePullPolicy`: with the tag `latest` a pod always pulls.
pub const BUSYBOX: &str = "localhost/busybox:1";
pub const BUSYBOX_LATEST: &str = "localhost/busybox:latest";

/// Debian's static busybox with a link for each of its applets.
pub fn busybox(binary: &Path) -> Result<Image, ImageError> {
    let path = binary.to_string_lossy();
    let applets = command::run(&path, ["--list"])?;
    let mut files = vec![(binary.to_owned(), "/bin/busybox".to_owned())];
    files.extend(shared_libraries(binary)?);
    Ok(Image {
        names: vec![BUSYBOX.to_owned(), BUSYBOX_LATEST.to_owned()],
        files,
        links: applets
            .lines()
            .filter(|a| *a != "busybox")
            .map(|a| (format!("/bin/{a}"), "busybox".into()))
            .collect(),
        texts: vec![
            (
                "/etc/passwd".into(),
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n".into(),
            ),
            ("/etc/group".into(), "root:x:0:\nnobody:x:65534:\n".into()),
        ],
        entrypoint: Vec::new(),
        command: vec!["sh".to_owned()],
        user: String::new(),
    })
}

/// The shared libraries of a program, each at its own path; none for a static program.
fn shared_libraries(binary: &Path) -> Result<Vec<(PathBuf, String)>, ImageError> {
    // ldd fails for static programs, which need nothing.
    let Ok(listing) = command::run("ldd", [binary]) else { return Ok(Vec::new()) };
    Ok(parse_ldd(&listing).into_iter().map(|path| (PathBuf::from(&path), path)).collect())
}

fn parse_ldd(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

impl Image {
    /// Writes the archive to `path` and returns it.
    pub fn save(&self, path: &Path) -> Result<(), ImageError> {
        let write_error = |source| ImageError::Write { path: path.to_owned(), source };
        let layer = self.layer()?;
        let layer_digest = hex(&Sha256::digest(&layer));
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "User": self.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "keelson-local" }],
        })
        .to_string();
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest =
            json!([{ "Config": config_name, "RepoTags": self.names, "Layers": [layer_name] }]).to_string();
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(write_error)?;
        }
        let mut archive = tar::Builder::new(File::create(path).map_err(write_error)?);
        for (name, bytes) in [
            (config_name.as_str(), config.as_bytes()),
            (&layer_name, &layer),
            ("manifest.json", manifest.as_bytes()),
        ] {
            append(&mut archive, name, bytes, 0o644).map_err(write_error)?;
        }
        archive.into_inner().and_then(|mut file| file.flush()).map_err(write_error)
    }

    fn layer(&self) -> Result<Vec<u8>, ImageError> {
        let memory_error = |source| ImageError::Write { path: PathBuf::from(self.names.join(" ")), source };
        let mut archive = tar::Builder::new(Vec::new());
        let inside: Vec<&str> = (self.files.iter().map(|(_, target)| target.as_str()))
            .chain(self.texts.iter().map(|(target, _)| target.as_str()))
            .chain(self.links.iter().map(|(target, _)| target.as_str()))
            .collect();
        for directory in parents(&inside) {
            append_directory(&mut archive, &directory, 0o755).map_err(memory_error)?;
        }
        append_directory(&mut archive, "tmp/", 0o1777).map_err(memory_error)?;
        for (source_path, target) in &self.files {
            let read_error = |source| ImageError::Read { path: source_path.clone(), source };
            let bytes = fs::read(source_path).map_err(read_error)?;
            let mode = fs::metadata(source_path).map_err(read_error)?.permissions().mode() & 0o777;
            append(&mut archive, target.trim_start_matches('/'), &bytes, mode).map_err(memory_error)?;
        }
        for (target, text) in &self.texts {
            append(&mut archive, target.trim_start_matches('/'), text.as_bytes(), 0o644)
                .map_err(memory_error)?;
        }
        for (target, link) in &self.links {
            let mut header = header(tar::EntryType::Symlink, 0, 0o777);
            archive.append_link(&mut header, target.trim_start_matches('/'), link).map_err(memory_error)?;
        }
        archive.into_inner().map_err(memory_error)
    }
}

/// Every directory above the given paths, parents first, in tar's form (`usr/lib/`).
fn parents(paths: &[&str]) -> BTreeSet<String> {
    let mut directories = BTreeSet::new();
    for path in paths {
        let path = path.trim_start_matches('/');
        for (index, _) in path.match_indices('/') {
            directories.insert(path[..=index].to_owned());
        }
    }
    directories
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut header = header(tar::EntryType::Regular, bytes.len() as u64, mode);
    archive.append_data(&mut header, name, bytes)
}

fn append_directory<W: Write>(archive: &mut tar::Builder<W>, name: &str, mode: u32) -> io::Result<()> {
    let mut header = header(tar::EntryType::Directory, 0, mode);
    archive.append_data(&mut header, name, io::empty())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Loads an archive into the runtime whose containerd listens on `socket`.
pub fn import(socket: &Path, archive: &Path) -> Result<(), ImageError> {
    let socket = socket.to_string_lossy();
    let archive = archive.to_string_lossy();
    command::run("ctr", ["--address", &socket, "--namespace", "k8s.io", "images", "import", &archive])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x0)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x0)\n";
        let found: Vec<String> = parse_ldd(listing).into_iter().collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn an_archive_is_reproducible_and_names_its_parts() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("program");
        fs::write(&binary, b"#!/bin/sh\n").unwrap();
        let image = program("localhost/program:latest", &binary, "/usr/bin/program", "").unwrap();
        let save = |name: &str| {
            let path = directory.path().join(name);
            image.save(&path).unwrap();
            fs::read(path).unwrap()
        };
        let first = save("a.tar");
        assert_eq!(first, save("b.tar"));
        let mut archive = tar::Archive::new(first.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(names[2], "manifest.json");
        assert!(names[1].ends_with("/layer.tar"));
    }

    #[test]
    fn parents_come_before_children() {
        let found: Vec<String> = parents(&["/bin/a", "/usr/lib/x/y"]).into_iter().collect();
        assert_eq!(found, ["bin/", "usr/", "usr/lib/", "usr/lib/x/"]);
    }
}

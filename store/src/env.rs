//! Everything outside of the process: time, disk and randomness, as traits, so that a whole member can run in a
//! simulation from a seed. (The network's trait is [`crate::node::Network`]: it speaks in messages.)
//!
//! Nothing else in this crate may call the clock or the file system; sled, which opens files itself, is behind
//! [`crate::mvcc::Backend`].

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::mvcc::{Backend, BackendError, SledBackend};

/// Monotonic time since some moment in the past; steps of the wall clock do not move it.
pub trait Clock: Send + Sync {
    fn now(&self) -> Duration;
}

/// A file system, reduced to what durable formats need.
pub trait Disk: Send + Sync {
    /// Creates a directory and what it lies in, durably.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted; none if it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Creates a file, or empties it.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes free for this process on the file system of `path`.
    fn available(&self, path: &Path) -> io::Result<u64>;
}

pub trait File: Send + Sync {
    fn length(&self) -> io::Result<u64>;
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves space, reading as zeros, so that later writes below `length` cannot fail for want of it.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&self) -> io::Result<()>;
}

/// The whole of a file.
///
/// # Errors
/// The disk's.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let length = usize::try_from(file.length()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Opens the tree of values in a directory, or creates an empty one.
pub type OpenTree = dyn Fn(&Path) -> Result<Arc<dyn Backend>, BackendError> + Send + Sync;

/// What a member takes from outside.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub disk: Arc<dyn Disk>,
    pub open_tree: Arc<OpenTree>,
    /// Where every other random choice comes from.
    pub seed: u64,
}

impl Env {
    /// The machine's own.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(RealClock(Instant::now())),
            disk: Arc::new(RealDisk),
            open_tree: Arc::new(|path| Ok(Arc::new(SledBackend::open(path)?))),
            seed: rand::random(),
        }
    }
}

struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        if path.is_dir() {
            return Ok(());
        }
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.create_dir(parent)?;
        // As etcd does: nobody else has business in a store's data.
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
        // Files in it may be fsynced as often as one likes: without this they could be lost with it.
        match self.sync_dir(parent) {
            // One that this user may write to but not read: whoever made it so has to see to it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(fs::OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
}

/// The machine's files, to be looked at only.
pub struct ReadOnlyDisk;

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnlyDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        Ok(Box::new(RealFile(fs::File::open(path)?)))
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn File>> {
        read_only()
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        read_only()
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        RealDisk.available(path)
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let length = i64::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
        match nix::fcntl::fallocate(&self.0, nix::fcntl::FallocateFlags::empty(), 0, length) {
            // Some file systems cannot reserve; then only a later write can find the disk full.
            Err(nix::errno::Errno::EOPNOTSUPP) => self.0.set_len(length.unsigned_abs()),
            other => Ok(other?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Real files on a disk with faults, for tests of this crate.
#[cfg(test)]
pub mod faulty {
    use super::*;

    /// What such a disk does otherwise than the real one.
    pub trait Faults: Send + Sync {
        fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
            RealDisk.create(path)
        }

        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            RealDisk.sync_dir(path)
        }
    }

    #[derive(Default)]
    pub struct FaultyDisk<F>(pub F);

    impl<F: Faults> Disk for FaultyDisk<F> {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            RealDisk.create_dir(path)
        }

        fn list(&self, path: &Path) -> io::Result<Vec<String>> {
            RealDisk.list(path)
        }

        fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
            RealDisk.open(path)
        }

        fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
            self.0.create(path)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            RealDisk.rename(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            RealDisk.remove(path)
        }

        fn remove_dir(&self, path: &Path) -> io::Result<()> {
            RealDisk.remove_dir(path)
        }

        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.0.sync_dir(path)
        }

        fn available(&self, path: &Path) -> io::Result<u64> {
            RealDisk.available(path)
        }
    }
}

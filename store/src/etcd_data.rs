//! etcd's own data, which kube-store does not read: it is told from damaged data of kube-store's, so that nobody is
//! advised to remove it. Looks at files and changes nothing.

use std::io;
use std::path::Path;

use crate::env::{Disk, File};

/// What to do about it.
pub const ADVICE: &str = "kube-store does not read it, and nothing was changed. Run that etcd, give kube-store another --data-dir, and copy the keys from one to the other with etcdctl make-mirror";

/// What bbolt's first page has at this place.
const BBOLT: (u64, u32) = (16, 0xed0c_daed);
/// Where a segment of etcd's log has its first record's type, and what the first one is: a checksum.
const FIRST_RECORD: (u64, [u8; 2]) = (8, [0x08, 0x04]);

/// Whether a file begins as bbolt's do.
///
/// # Errors
/// The disk's.
pub fn is_bbolt(file: &dyn File) -> io::Result<bool> {
    let (at, magic) = BBOLT;
    let mut word = [0; 4];
    if file.length()? < at + 4 {
        return Ok(false);
    }
    file.read_at(&mut word, at)?;
    Ok(u32::from_le_bytes(word) == magic)
}

/// Whether `member` below a data directory was made by etcd: by its tree's file, or by a segment of its log, whose name has two
/// numbers.
///
/// # Errors
/// The disk's.
pub fn is_etcds(disk: &dyn Disk, member: &Path) -> io::Result<bool> {
    let snap = member.join("snap");
    if disk.list(&snap)?.iter().any(|name| name == "db") && is_bbolt(&*disk.open(&snap.join("db"))?)? {
        return Ok(true);
    }
    let log = member.join("wal");
    let names = disk.list(&log)?;
    let Some(segment) = names.iter().find(|name| name.ends_with(".wal") && name.contains('-')) else {
        return Ok(false);
    };
    let file = disk.open(&log.join(segment))?;
    let (at, expected) = FIRST_RECORD;
    let mut found = [0; 2];
    if file.length()? < at + 2 {
        return Ok(false);
    }
    file.read_at(&mut found, at)?;
    Ok(found == expected)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::env::ReadOnlyDisk;

    #[test]
    fn etcds_data_is_told_from_damaged_data() {
        let check = |name: &str, bytes: &[u8], expected: bool| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            assert_eq!(is_etcds(&ReadOnlyDisk, directory.path()).unwrap(), expected, "{name}");
        };
        let bbolt = [&[0; 16][..], &0xed0c_daed_u32.to_le_bytes(), &[2, 0, 0, 0]].concat();
        let segment = [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 0x10, 0];
        check("snap/db", &bbolt, true);
        check("snap/db", &bbolt[..18], false);
        check("snap/other", &bbolt, false);
        check("wal/0000000000000000-0000000000000000.wal", &segment, true);
        check("wal/0000000000000000-0000000000000000.wal", &segment[..8], false);
        check("wal/0000000000000000.wal", &segment, false);
        check("wal/0000000000000000.wal", &[0; 100], false);
    }
}

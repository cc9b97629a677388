//! The tree that holds values: rebuildable state, never the durability story. (Snapshots and the log are.)

use std::path::Path;

/// One change of a batch: a key with its value, or with none to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("the tree cannot be read or written")]
    Tree(#[from] sled::Error),
    #[error("the tree holds a damaged record at revision {0}")]
    Damaged(i64),
}

/// An ordered map whose batches are atomic. After a crash it holds some prefix of the batches written.
pub trait Backend: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError>;
    /// Visits the last key that is `key` or before it, if there is one.
    fn at_or_before(&self, key: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BackendError>;
    /// Visits keys in `from..to` in order until `visit` says false.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackendError>;
    fn write(&self, batch: Vec<Change>) -> Result<(), BackendError>;
    /// Hands what was written to the system.
    fn flush(&self) -> Result<(), BackendError>;
    /// Bytes on disk.
    fn size(&self) -> u64;
}

pub struct SledBackend(sled::Db);

/// sled's own default is 1 GiB. The system caches the file anyway.
const CACHE: u64 = 1 << 20;

impl SledBackend {
    /// # Errors
    /// sled's: a locked, damaged or unreadable directory.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(Some(500));
        Ok(Self(config.open()?))
    }
}

impl Backend for SledBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(self.0.get(key)?.map(|value| value.to_vec()))
    }

    fn at_or_before(&self, key: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BackendError> {
        if let Some(pair) = self.0.range(..=key).next_back() {
            let (key, value) = pair?;
            visit(&key, &value);
        }
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackendError> {
        for pair in self.0.range(from..to) {
            let (key, value) = pair?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), BackendError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.0.flush()?;
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.size_on_disk().unwrap_or(0)
    }
}

/// A tree in memory: for tests and simulations.
#[derive(Default)]
pub struct MemoryBackend(parking_lot::RwLock<std::collections::BTreeMap<Vec<u8>, Vec<u8>>>);

impl Backend for MemoryBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(self.0.read().get(key).cloned())
    }

    fn at_or_before(&self, key: &[u8], visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), BackendError> {
        if let Some((key, value)) = self.0.read().range(..=key.to_vec()).next_back() {
            visit(key, value);
        }
        Ok(())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), BackendError> {
        let tree = self.0.read();
        let _ = tree.range(from.to_vec()..to.to_vec()).all(|(key, value)| visit(key, value));
        Ok(())
    }

    fn write(&self, batch: Vec<Change>) -> Result<(), BackendError> {
        let mut tree = self.0.write();
        for (key, value) in batch {
            match value {
                Some(value) => tree.insert(key, value),
                None => tree.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.read().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

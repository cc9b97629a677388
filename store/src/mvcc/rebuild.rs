//! A fresh tree beside the one in use, and the switch to it: sled never gives back what it once took.
//!
//! While it is built the fresh tree is a mirror: what the drain thread writes and what compaction removes goes to both.
//! What lay in the old tree before is copied in steps; revisions never change, so neither a copy nor a removal can be
//! overtaken as long as one thread does both. Everything else (leases, members, ...) does change: it is copied while the
//! drain thread is held, as is the switch. The fresh tree has its applied index only with the switch.

use std::sync::Arc;

use super::backend::{Backend, Change};
use super::record::{REVISION_PREFIX, Revision, chunk_key};
use super::values::{APPLIED_KEY, Values};
use super::{BackendError, Store, UNFINISHED_KEY};

/// Bytes copied in one step.
const STEP: usize = 256 << 10;

pub struct Rebuild {
    values: Arc<Values>,
    source: Arc<dyn Backend>,
    fresh: Arc<dyn Backend>,
    /// Where to go on, and where to end.
    next: Vec<u8>,
    end: Vec<u8>,
}

pub enum Step {
    More,
    /// The fresh tree is in use; here is the old one.
    Done(Arc<dyn Backend>),
    /// Another state was put in place, or the fresh tree cannot be written: it is of no use.
    GivenUp,
}

impl Drop for Rebuild {
    fn drop(&mut self) {
        self.values.end_mirror(&self.fresh);
    }
}

fn copy(
    source: &dyn Backend,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<(Vec<Change>, bool), BackendError> {
    let (mut batch, mut bytes): (Vec<Change>, usize) = (Vec::new(), 0);
    source.scan(from, to, &mut |key, value| {
        bytes += key.len() + value.len();
        batch.push((key.to_vec(), Some(value.to_vec())));
        bytes < limit
    })?;
    Ok((batch, bytes >= limit))
}

impl Store {
    /// Begins to fill an empty tree. None: this one is closed, or was just replaced. The steps, and all compactions, are one thread's.
    ///
    /// # Errors
    /// A tree's; this store is as it was.
    pub fn rebuild(&self, fresh: Arc<dyn Backend>) -> Result<Option<Rebuild>, BackendError> {
        let Some(source) = self.values.hold() else { return Ok(None) };
        let begun = self.begin(&source, &fresh);
        self.values.release();
        if !begun? {
            return Ok(None);
        }
        // Whatever is newer was not in the tree when the mirror was set up.
        let end = chunk_key(Revision { main: self.revision() + 1, sub: 0 }, 0).to_vec();
        let next = vec![REVISION_PREFIX];
        Ok(Some(Rebuild { values: self.values.clone(), source, fresh, next, end }))
    }

    fn begin(&self, source: &Arc<dyn Backend>, fresh: &Arc<dyn Backend>) -> Result<bool, BackendError> {
        fresh.write(vec![(UNFINISHED_KEY.to_vec(), Some(Vec::new()))])?;
        let (mut batch, _) = copy(&**source, &[], &[REVISION_PREFIX], usize::MAX)?;
        batch.extend(copy(&**source, &[REVISION_PREFIX + 1], &[u8::MAX; 16], usize::MAX)?.0);
        batch.retain(|(key, _)| key != APPLIED_KEY);
        fresh.write(batch)?;
        // Otherwise another state was put in place meanwhile.
        Ok(self.values.begin_mirror(source, fresh))
    }
}

impl Rebuild {
    /// Copies some more, or switches.
    ///
    /// # Errors
    /// A tree's; the old one is still in use.
    pub fn step(&mut self) -> Result<Step, BackendError> {
        if !self.values.is_mirror(&self.fresh) {
            return Ok(Step::GivenUp);
        }
        let (batch, more) = copy(&*self.source, &self.next, &self.end, STEP)?;
        if let Some((last, _)) = batch.last() {
            self.next = [&last[..], &[0]].concat();
        }
        fail::fail_point!("rebuild_before_write");
        self.fresh.write(batch)?;
        if more {
            return Ok(Step::More);
        }
        let Some(source) = self.values.hold() else { return Ok(Step::GivenUp) };
        let switched = self.switch(&*source);
        self.values.release();
        Ok(switched?.map_or(Step::GivenUp, Step::Done))
    }

    fn switch(&self, source: &dyn Backend) -> Result<Option<Arc<dyn Backend>>, BackendError> {
        let applied = source.get(APPLIED_KEY)?;
        self.fresh.write(vec![(APPLIED_KEY.to_vec(), applied), (UNFINISHED_KEY.to_vec(), None)])?;
        fail::fail_point!("rebuild_before_switch");
        Ok(self.values.switch(&self.fresh))
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::etcd::etcdserverpb::{DeleteRangeRequest, PutRequest};

    use super::*;
    use crate::lease::Leases;
    use crate::mvcc::{Index, MemoryBackend, load};

    /// Puts some keys, deletes one now and then, as the entry at `index`.
    fn entry(store: &Store, index: u64) {
        let mut leases = Leases::default();
        let mut txn = store.write();
        for key in 0..20 {
            let put = PutRequest {
                key: format!("k{key}").into(),
                value: vec![index as u8; 3000].into(),
                ..PutRequest::default()
            };
            txn.put(&put, &mut leases).unwrap();
        }
        let delete = DeleteRangeRequest { key: format!("k{}", index % 20).into(), ..Default::default() };
        txn.delete_range(&delete, &mut leases).unwrap();
        txn.commit();
        store.values.put_metadata(vec![b'l', index as u8 % 4], Some(vec![index as u8]));
        store.values.seal(index, 1);
    }

    fn store() -> (Store, std::thread::JoinHandle<()>) {
        let values = Values::new(Arc::new(MemoryBackend::default()), 0);
        let drain = values.spawn(|| true, |_| {}, || {}, |_| {}).unwrap();
        (Store::new(Index::new(), values, 0), drain)
    }

    #[test]
    fn the_fresh_tree_is_the_same_although_the_store_goes_on() {
        let (store, drain) = store();
        for index in 1..=30 {
            entry(&store, index);
        }
        assert!(store.values.wait_drained(30));
        let fresh: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
        let mut rebuild = store.rebuild(fresh.clone()).unwrap().unwrap();
        let (mut index, mut steps) = (30, 0);
        let old = loop {
            match rebuild.step().unwrap() {
                Step::More => {
                    index += 1;
                    steps += 1;
                    entry(&store, index);
                    assert!(load(&fresh).unwrap().unfinished);
                    if steps == 2 {
                        store.write().compact(20).unwrap();
                        assert!(store.values.wait_drained(index));
                        assert!(store.remove_compacted(20, i64::MAX).unwrap() > 0);
                    }
                }
                Step::Done(old) => break old,
                Step::GivenUp => panic!("nothing came between"),
            }
        };
        assert!(steps > 3);
        index += 1;
        entry(&store, index);
        let expected = store.hash(0).unwrap();
        assert!(store.values.wait_drained(index));
        store.values.close();
        drain.join().unwrap();
        let loaded = load(&fresh).unwrap();
        assert_eq!((loaded.applied, loaded.unfinished), ((index, 1), false));
        assert_eq!(loaded.in_use, store.in_use());
        for lease in 0..4 {
            let newest = (index - 3..=index).find(|index| index % 4 == lease).unwrap();
            assert_eq!(fresh.get(&[b'l', lease as u8]).unwrap(), Some(vec![newest as u8]));
        }
        let values = Values::new(fresh, index);
        let reopened = Store::new(loaded.index, values, loaded.in_use);
        assert_eq!(reopened.hash(0).unwrap(), expected);
        assert_ne!(load(&old).unwrap().applied, (index, 1), "the old one is left alone");
    }

    #[test]
    fn another_state_ends_it() {
        let (store, drain) = store();
        for index in 1..=30 {
            entry(&store, index);
        }
        assert!(store.values.wait_drained(30));
        let mut rebuild = store.rebuild(Arc::new(MemoryBackend::default())).unwrap().unwrap();
        assert!(matches!(rebuild.step().unwrap(), Step::More));
        let other: Arc<dyn Backend> = Arc::new(MemoryBackend::default());
        store.replace(load(&other).unwrap(), other.clone());
        assert!(matches!(rebuild.step().unwrap(), Step::GivenUp));
        assert!(Arc::ptr_eq(&store.values.backend(), &other));
        store.values.close();
        drain.join().unwrap();
    }
}

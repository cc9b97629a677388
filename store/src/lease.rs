//! Leases: keys that vanish together when nobody renews.
//!
//! [`Leases`] is replicated state: which leases there are and which keys are attached; only `apply` changes it.
//! [`Deadlines`] is the leader's own: when each lease runs out, in monotonic time. A new leader gives every lease its
//! full time again, so a lease may live longer than its TTL but never shorter. Expiry is a proposal like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;

/// etcd's bounds, in seconds.
pub const MAX_TTL: i64 = 9_000_000_000;

#[derive(Debug, Default, Clone)]
struct Lease {
    /// Seconds, as granted.
    ttl: i64,
    keys: BTreeSet<Box<[u8]>>,
}

#[derive(Debug, Default, Clone)]
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
    by_key: HashMap<Box<[u8]>, i64>,
}

impl Leases {
    pub fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    pub fn grant(&mut self, id: i64, ttl: i64) {
        self.leases.entry(id).or_default().ttl = ttl;
    }

    /// Removes a lease; its keys, in order, are for the caller to delete.
    pub fn revoke(&mut self, id: i64) -> Option<Vec<Bytes>> {
        let lease = self.leases.remove(&id)?;
        for key in &lease.keys {
            self.by_key.remove(key);
        }
        Some(lease.keys.into_iter().map(|key| Bytes::from(key.into_vec())).collect())
    }

    /// Attaches a key to a lease instead of whichever it had; 0 for none.
    pub fn attach(&mut self, key: &[u8], id: i64) {
        match self.by_key.get(key) {
            Some(old) if *old == id => return,
            Some(old) => {
                if let Some(lease) = self.leases.get_mut(old) {
                    lease.keys.remove(key);
                }
                self.by_key.remove(key);
            }
            None => {}
        }
        if id != 0 {
            // At start keys are read before leases, hence the lease may be yet to be named.
            self.leases.entry(id).or_default().keys.insert(key.into());
            self.by_key.insert(key.into(), id);
        }
    }

    /// Drops what was attached but never granted (its lease was revoked since).
    pub fn retain_granted(&mut self) {
        let lost: Vec<i64> =
            self.leases.iter().filter(|(_, lease)| lease.ttl == 0).map(|(id, _)| *id).collect();
        for id in lost {
            self.revoke(id);
        }
    }

    pub fn ttl(&self, id: i64) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    pub fn keys(&self, id: i64) -> Vec<Bytes> {
        let keys = self.leases.get(&id).into_iter().flat_map(|lease| &lease.keys);
        keys.map(|key| Bytes::copy_from_slice(key)).collect()
    }

    /// All leases with their granted TTL, by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl))
    }

    pub fn len(&self) -> usize {
        self.leases.len()
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

/// When leases run out. Empty on every member but the leader.
#[derive(Debug, Default)]
pub struct Deadlines {
    by_lease: HashMap<i64, Deadline>,
    /// When each is to be looked at: its expiry, or later when its revocation is under way.
    order: BTreeSet<(Duration, i64)>,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    expires: Duration,
    due: Duration,
}

/// How long after its revocation was proposed a lease that is still there is proposed again.
const REVOKE_RETRY: Duration = Duration::from_secs(3);

impl Deadlines {
    /// Gives a lease `ttl` seconds from now.
    pub fn set(&mut self, id: i64, ttl: i64, now: Duration) {
        let expires = now + Duration::from_secs(ttl.unsigned_abs());
        self.remove(id);
        self.by_lease.insert(id, Deadline { expires, due: expires });
        self.order.insert((expires, id));
    }

    pub fn remove(&mut self, id: i64) {
        if let Some(deadline) = self.by_lease.remove(&id) {
            self.order.remove(&(deadline.due, id));
        }
    }

    pub fn clear(&mut self) {
        self.by_lease.clear();
        self.order.clear();
    }

    /// Gives leases that much more time, since nobody could renew them meanwhile: but not those whose revocation is under
    /// way, which would be renewed and then end early.
    pub fn postpone(&mut self, by: Duration) {
        for (id, deadline) in &mut self.by_lease {
            if deadline.due == deadline.expires {
                self.order.remove(&(deadline.due, *id));
                deadline.expires += by;
                deadline.due += by;
                self.order.insert((deadline.due, *id));
            }
        }
    }

    /// Whole seconds left, as etcd counts them.
    pub fn left(&self, id: i64, now: Duration) -> Option<i64> {
        Some(self.by_lease.get(&id)?.expires.saturating_sub(now).as_secs().cast_signed())
    }

    /// Whether its revocation may be under way: then it cannot be renewed any more.
    pub fn is_expired(&self, id: i64, now: Duration) -> bool {
        self.by_lease.get(&id).is_some_and(|deadline| deadline.expires <= now)
    }

    /// At most `count` leases that have run out. Each comes again after a while, should its revocation be lost.
    pub fn take_expired(&mut self, now: Duration, count: usize) -> Vec<i64> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        let expired: Vec<i64> = due.take(count).map(|(_, id)| *id).collect();
        for id in &expired {
            if let Some(deadline) = self.by_lease.get_mut(id) {
                self.order.remove(&(deadline.due, *id));
                deadline.due = now + REVOKE_RETRY;
                self.order.insert((deadline.due, *id));
            }
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postponed_leases_run_out_later() {
        let seconds = Duration::from_secs;
        let mut deadlines = Deadlines::default();
        deadlines.set(1, 10, seconds(0));
        deadlines.set(2, 20, seconds(0));
        deadlines.postpone(seconds(5));
        assert_eq!(deadlines.take_expired(seconds(14), 9), [0_i64; 0]);
        assert_eq!(deadlines.left(2, seconds(14)), Some(11));
        assert_eq!(deadlines.take_expired(seconds(15), 9), [1]);
        deadlines.postpone(seconds(5));
        assert!(deadlines.is_expired(1, seconds(15)), "its revocation is under way");
        assert_eq!(deadlines.left(2, seconds(15)), Some(15));
        assert_eq!(deadlines.take_expired(seconds(18), 9), [1]);
    }

    #[test]
    fn a_key_has_one_lease() {
        let mut leases = Leases::default();
        leases.grant(1, 10);
        leases.grant(2, 10);
        leases.attach(b"a", 1);
        leases.attach(b"b", 1);
        leases.attach(b"a", 2);
        assert_eq!(leases.keys(1), ["b"]);
        assert_eq!(leases.revoke(2), Some(vec!["a".into()]));
        assert_eq!(leases.revoke(2), None);
        leases.attach(b"b", 0);
        assert_eq!(leases.revoke(1), Some(vec![]));
    }

    #[test]
    fn expiry_is_offered_again_until_it_is_applied() {
        let second = Duration::from_secs;
        let mut deadlines = Deadlines::default();
        deadlines.set(1, 10, second(0));
        deadlines.set(2, 20, second(0));
        assert!(deadlines.take_expired(second(9), 10).is_empty());
        assert_eq!(deadlines.left(1, Duration::from_millis(8500)), Some(1));
        assert_eq!(deadlines.take_expired(second(10), 10), [1]);
        assert!(deadlines.is_expired(1, second(10)));
        assert!(deadlines.take_expired(second(11), 10).is_empty());
        assert_eq!(deadlines.take_expired(second(13), 10), [1]);
        deadlines.remove(1);
        assert!(deadlines.take_expired(second(16), 10).is_empty());
        deadlines.set(2, 20, second(15));
        assert!(deadlines.take_expired(second(34), 10).is_empty(), "it was renewed");
        assert_eq!(deadlines.take_expired(second(35), 10), [2]);
    }
}

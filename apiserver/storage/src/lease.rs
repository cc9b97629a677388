//! Leases for objects that expire: many objects share one, because a lease costs the store more than a key.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::client::{Client, StoreError};

/// A lease is given out for this long after it was granted, so objects live at most this much longer than
/// asked. Upstream: `--lease-reuse-duration-seconds`.
const REUSE: Duration = Duration::from_secs(60);

/// Upstream: at most this many objects on one lease, which all go in one transaction of the store.
const MAX_OBJECTS: usize = 1000;

/// Gives out leases; one is granted at a time.
#[derive(Default)]
pub(crate) struct Leases {
    last: Mutex<Option<Granted>>,
}

struct Granted {
    id: i64,
    expires: Instant,
    objects: usize,
}

impl Leases {
    /// The id of a lease that lasts at least `ttl` and not much longer; 0 (none) without a time.
    pub(crate) async fn lease(&self, client: &Client, ttl: Option<Duration>) -> Result<i64, StoreError> {
        let Some(ttl) = ttl.filter(|ttl| !ttl.is_zero()) else { return Ok(0) };
        let mut last = self.last.lock().await;
        let now = Instant::now();
        if let Some(granted) = last.as_mut()
            && reusable(granted.expires.saturating_duration_since(now), ttl)
            && granted.objects < MAX_OBJECTS
        {
            granted.objects += 1;
            return Ok(granted.id);
        }
        let lasting = whole_seconds(ttl + reuse_for(ttl));
        let id = client.grant(lasting).await?;
        *last = Some(Granted { id, expires: now + Duration::from_secs(lasting), objects: 1 });
        Ok(id)
    }

    /// The store says that a lease is gone (it was restored, or its clock ran ahead).
    pub(crate) async fn forget(&self, id: i64) {
        let mut last = self.last.lock().await;
        if last.as_ref().is_some_and(|granted| granted.id == id) {
            *last = None;
        }
    }
}

/// Short times get a short extension.
fn reuse_for(ttl: Duration) -> Duration {
    REUSE.min(ttl / 20)
}

/// The store knows whole seconds; an object must not go too early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn reusable(left: Duration, ttl: Duration) -> bool {
    ttl <= left && left <= ttl + reuse_for(ttl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1050)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(3660)), 3660);
    }

    #[test]
    fn leases_are_shared_by_like_times() {
        fn check(left: u64, ttl: u64, expected: bool) {
            let seconds = Duration::from_secs;
            assert_eq!(reusable(seconds(left), seconds(ttl)), expected, "left {left} ttl {ttl}");
        }
        check(3660, 3600, true);
        check(3600, 3600, true);
        check(3599, 3600, false);
        check(3600, 10, false);
        check(10, 10, true);
        check(12, 10, false);
    }
}

//! Whether the rules follow the cluster: `/healthz` on port 10256, which load balancers ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A change that is not written after this time means that the proxy is not well (upstream: twice the
/// sync period).
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Shared between the loop, which tells, and the health endpoint, which is asked.
#[derive(Clone)]
pub struct Progress {
    started: Instant,
    /// Milliseconds after `started` of the oldest change that is not written; 0 for none.
    waiting_since: Arc<AtomicU64>,
    synced: Arc<AtomicU64>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { started: Instant::now(), waiting_since: Arc::default(), synced: Arc::default() }
    }
}

impl Progress {
    fn milliseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    pub fn queued(&self) {
        let _ =
            self.waiting_since.compare_exchange(0, self.milliseconds(), Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn written(&self) {
        self.waiting_since.store(0, Ordering::Relaxed);
        self.synced.store(1, Ordering::Relaxed);
    }

    /// # Errors
    /// Says what is not well.
    pub fn check(&self) -> Result<(), String> {
        let since = self.waiting_since.load(Ordering::Relaxed);
        let waited = Duration::from_millis(self.milliseconds().saturating_sub(since));
        if since != 0 && waited > STUCK_AFTER {
            return Err(format!("rules have waited {} s to be written", waited.as_secs()));
        }
        if self.synced.load(Ordering::Relaxed) == 0 {
            return Err("rules were not written yet".to_owned());
        }
        Ok(())
    }
}

//! Compaction by itself: of what is older than a time, or than a number of revisions, with etcd's semantics.
//!
//! When to compact at what is decided without a clock or I/O ([`Periodic`]); the task around it asks the store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use keelson_component_base::flags;
use keelson_proto::etcd::etcdserverpb::CompactionRequest;
use keelson_proto::etcd::storepb::command::Operation;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::grpc::{Server, status};

const HOUR: Duration = Duration::from_secs(3600);
/// How often old revisions are counted.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// Samples in an interval.
const SAMPLES: u32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Periodic,
    Revision,
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Period(Duration),
    Revisions(i64),
}

impl Retention {
    /// None: 0, nothing is compacted. A plain number is hours, or revisions.
    ///
    /// # Errors
    /// What is neither a number nor a duration.
    pub fn parse(mode: Mode, text: &str) -> Result<Option<Self>, String> {
        let number = text.parse::<u32>().ok();
        let retention = match (mode, number) {
            (_, Some(0)) => return Ok(None),
            (Mode::Periodic, Some(hours)) => Self::Period(HOUR * hours),
            (Mode::Periodic, None) => match flags::duration(text)? {
                Duration::ZERO => return Ok(None),
                period => Self::Period(period),
            },
            (Mode::Revision, Some(revisions)) => Self::Revisions(revisions.into()),
            (Mode::Revision, None) => return Err(format!("{text:?} is not a number of revisions")),
        };
        Ok(Some(retention))
    }
}

/// Revisions of the last period, sampled ten times an interval; the oldest is that of a period ago.
struct Periodic {
    period: Duration,
    samples: VecDeque<i64>,
    /// What has to have passed since the last compaction: at first the whole period, then at most an hour.
    wait: Duration,
    last: Instant,
    compacted: i64,
}

impl Periodic {
    fn new(period: Duration, now: Instant) -> Self {
        Self { period, samples: VecDeque::new(), wait: period, last: now, compacted: 0 }
    }

    fn interval(&self) -> Duration {
        self.period.min(HOUR)
    }

    fn sample(&mut self, revision: i64) {
        self.samples.push_back(revision);
        let pause = (self.interval() / SAMPLES).as_nanos().max(1);
        if self.samples.len() as u128 > self.period.as_nanos() / pause + 1 {
            self.samples.pop_front();
        }
    }

    /// A pause after a sample: the revision to compact at, if it is time.
    fn due(&mut self, now: Instant) -> Option<i64> {
        let oldest = *self.samples.front()?;
        if now.duration_since(self.last) < self.wait || oldest == self.compacted {
            return None;
        }
        self.wait = self.interval();
        Some(oldest)
    }

    fn done(&mut self, revision: i64, now: Instant) {
        (self.compacted, self.last) = (revision, now);
    }
}

/// Compacts now and then, while this member leads.
pub async fn run(server: Arc<Server>, retention: Retention, stopping: CancellationToken) {
    let compact = async {
        match retention {
            Retention::Period(period) => periodically(&server, period).await,
            Retention::Revisions(keep) => by_revision(&server, keep).await,
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = compact => {}
    }
}

async fn periodically(server: &Server, period: Duration) {
    let mut periodic = Periodic::new(period, Instant::now());
    loop {
        periodic.sample(server.state.store.revision());
        tokio::time::sleep(periodic.interval() / SAMPLES).await;
        if server.shared.is_leader()
            && let Some(revision) = periodic.due(Instant::now())
            && compact(server, revision).await
        {
            periodic.done(revision, Instant::now());
        }
    }
}

async fn by_revision(server: &Server, keep: i64) {
    let mut compacted = 0;
    loop {
        tokio::time::sleep(REVISION_INTERVAL).await;
        let revision = server.state.store.revision() - keep;
        if server.shared.is_leader()
            && revision > 0
            && revision != compacted
            && compact(server, revision).await
        {
            compacted = revision;
        }
    }
}

/// False: it is tried again.
async fn compact(server: &Server, revision: i64) -> bool {
    let request = CompactionRequest { revision, physical: false };
    match server.propose(Operation::Compaction(request)).await {
        Ok(_) => {
            tracing::info!(revision, "compacted automatically");
            true
        }
        Err(error) if error.message() == status::compacted().message() => true,
        Err(error) => {
            tracing::warn!(revision, error = error.message(), "automatic compaction failed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retentions() {
        let check = |mode, text: &str, expected: Result<Option<Retention>, ()>| {
            assert_eq!(Retention::parse(mode, text).map_err(|_| ()), expected, "{text}");
        };
        let seconds = |seconds| Ok(Some(Retention::Period(Duration::from_secs(seconds))));
        check(Mode::Periodic, "0", Ok(None));
        check(Mode::Periodic, "0s", Ok(None));
        check(Mode::Periodic, "2", seconds(7200));
        check(Mode::Periodic, "5m", seconds(300));
        check(Mode::Periodic, "x", Err(()));
        check(Mode::Revision, "0", Ok(None));
        check(Mode::Revision, "1000", Ok(Some(Retention::Revisions(1000))));
        check(Mode::Revision, "5m", Err(()));
    }

    /// Every pause one revision more; returns (pauses passed, compacted at).
    fn compactions(period: Duration, pauses: u32) -> Vec<(u32, i64)> {
        let begun = Instant::now();
        let mut periodic = Periodic::new(period, begun);
        let mut found = Vec::new();
        for pause in 1..=pauses {
            periodic.sample(i64::from(pause));
            let now = begun + periodic.interval() / SAMPLES * pause;
            if let Some(revision) = periodic.due(now) {
                found.push((pause, revision));
                periodic.done(revision, now);
            }
        }
        found
    }

    #[test]
    fn a_short_period_compacts_once_a_period() {
        assert_eq!(compactions(Duration::from_secs(600), 35), [(10, 1), (20, 10), (30, 20)]);
    }

    #[test]
    fn a_long_period_compacts_once_an_hour() {
        assert_eq!(compactions(3 * HOUR, 55), [(30, 1), (40, 10), (50, 20)]);
    }
}

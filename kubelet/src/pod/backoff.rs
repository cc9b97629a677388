//! Exponential back-off of restarts and image pulls, as upstream's `flowcontrol.Backoff`; and what else has failed and
//! is not to be tried again before its time.
//!
//! Pure: the caller says what time it is.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use jiff::Timestamp;

/// First pause and longest pause. A key that was quiet for twice the longest pause starts anew.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub initial: Duration,
    pub max: Duration,
}

/// Restarts of containers; also upstream's figures for image pulls.
pub const RESTARTS: Limits = Limits { initial: Duration::from_secs(10), max: Duration::from_secs(300) };

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    pause: Duration,
    updated: Timestamp,
    /// What went wrong last, for those who are told while the pause lasts.
    message: String,
}

/// Pauses by key.
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: Limits,
    entries: HashMap<String, Entry>,
}

impl Backoff {
    pub fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new() }
    }

    /// The key's pause as it stands; zero if it has none.
    pub fn pause(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.pause)
    }

    /// When the key failed last, and how.
    pub fn last(&self, key: &str) -> Option<(Timestamp, String)> {
        self.entries.get(key).map(|entry| (entry.updated, entry.message.clone()))
    }

    /// How much longer to wait if the last failure was at `since`.
    pub fn remaining(&self, key: &str, since: Timestamp, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, since) {
            return None;
        }
        let left = entry.pause.checked_sub(elapsed(since, now))?;
        (!left.is_zero()).then_some(left)
    }

    /// Notes one more failure at `since`: the next pause is twice as long.
    pub fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        self.next_with(key, since, now, "");
    }

    /// Like [`Self::next`], keeping what went wrong.
    pub fn next_with(&mut self, key: &str, since: Timestamp, now: Timestamp, message: &str) {
        let pause = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, since) => (entry.pause * 2).min(self.limits.max),
            _ => self.limits.initial,
        };
        self.entries.insert(key.to_owned(), Entry { pause, updated: now, message: message.to_owned() });
    }

    /// Forgets a key that succeeded.
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    fn expired(&self, entry: &Entry, event: Timestamp) -> bool {
        elapsed(entry.updated, event) > self.limits.max * 2
    }
}

/// Work that failed and when it may be tried again, whatever wakes its worker until then.
#[derive(Debug, Clone)]
pub struct Postponed<K>(HashMap<K, Instant>);

impl<K> Default for Postponed<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Postponed<K> {
    /// The work is not to be tried again before `until`.
    pub fn put(&mut self, work: K, until: Instant) {
        self.0.insert(work, until);
    }

    /// How much longer it has to wait, if it has to.
    pub fn left(&self, work: &K, now: Instant) -> Option<Duration> {
        let left = self.0.get(work)?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// What made it fail may be over: everything may be tried at once.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// A pause as Go prints it: whole seconds as `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(pause: Duration) -> String {
    match (pause.as_secs() / 60, pause.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_up_to_the_limit_and_resets() {
        let mut backoff = Backoff::new(RESTARTS);
        assert_eq!(backoff.remaining("c", at(0), at(0)), None, "the first restart is at once");
        let mut now = 0;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next("c", at(now), at(now));
            let left = backoff.remaining("c", at(now), at(now));
            assert_eq!(left, Some(Duration::from_secs(expected)));
            now += i64::try_from(expected).unwrap();
            assert_eq!(
                backoff.remaining("c", at(now - 1), at(now + 299)),
                None,
                "the pause counts from the failure"
            );
        }
        let later = now + 601;
        assert_eq!(backoff.remaining("c", at(later), at(later)), None, "ten quiet minutes are forgiven");
        backoff.next("c", at(later), at(later));
        assert_eq!(backoff.pause("c"), Duration::from_secs(10));
    }

    #[test]
    fn what_failed_waits_for_its_time_or_for_a_change() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut postponed = Postponed::default();
        postponed.put("a", after(10));
        postponed.put("b", after(1));
        postponed.put("b", after(20));
        let check = |postponed: &Postponed<&str>, work: &str, at: u64, expected: Option<u64>| {
            let left = postponed.left(&work, after(at));
            assert_eq!(left, expected.map(Duration::from_secs), "{work} at {at}");
        };
        check(&postponed, "a", 0, Some(10));
        check(&postponed, "a", 9, Some(1));
        check(&postponed, "a", 10, None);
        check(&postponed, "a", 11, None);
        check(&postponed, "b", 2, Some(18));
        check(&postponed, "c", 0, None);
        postponed.clear();
        check(&postponed, "b", 2, None);
    }

    #[test]
    fn prints_as_go() {
        let check =
            |seconds: u64, expected: &str| assert_eq!(go_seconds(Duration::from_secs(seconds)), expected);
        check(10, "10s");
        check(80, "1m20s");
        check(300, "5m0s");
    }
}

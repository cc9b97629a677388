//! What is said only now and then, since whoever brings it about tries again and again.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const SELDOM: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it was not said for a while; then it is to be said now.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() > SELDOM);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

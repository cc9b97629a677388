//! Waiting for a condition, with a deadline and the last thing seen in the failure.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Asks until `probe` gives `Ok`; panics with the last `Err` after `timeout`.
#[track_caller]
#[expect(clippy::panic, reason = "a condition that never came is a failed test")]
pub fn until<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => panic!("{what}: not within {timeout:?}; last: {last}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// `until` for text that must contain something.
#[track_caller]
pub fn until_contains(
    what: &str,
    timeout: Duration,
    part: &str,
    mut text: impl FnMut() -> Result<String, String>,
) -> String {
    until(what, timeout, || {
        let text = text()?;
        if text.contains(part) { Ok(text) } else { Err(format!("{text:?} has no {part:?}")) }
    })
}

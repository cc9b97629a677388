//! Gives freed memory back to the kernel once the process has come to rest.
//!
//! glibc keeps what was freed below the top of an arena. A daemon that once built a large answer (OpenAPI
//! documents, a list of 10,000 objects) would hold that memory for good: the API server held 15 MiB of heap
//! with 3 MiB in use. Go's runtime has a scavenger for this; here a thread that mostly sleeps asks glibc to trim
//! its arenas. It asks only after work has ended, because a trim holds each arena's lock while it walks it, and
//! only if there was work since the last trim.

use std::time::Duration;

use crate::process;

const PERIOD: Duration = Duration::from_secs(5);
/// Below this share of one core in a period the process counts as at rest.
const REST: f64 = 0.05;
/// Less work than this leaves too little behind for a trim to be worth its walk.
const WORK_SECONDS: f64 = 0.1;

/// Starts the thread; a process that cannot have one goes on without.
pub fn trim_when_idle() {
    let spawned = std::thread::Builder::new().name("trim".into()).stack_size(64 * 1024).spawn(|| {
        let mut pace = Pace::default();
        loop {
            std::thread::sleep(PERIOD);
            if let Some(used) = process::cpu_seconds()
                && pace.observe(used)
            {
                trim();
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread that gives unused memory back");
    }
}

/// What the CPU time of the process, read once a period, tells of its work.
#[derive(Default)]
struct Pace {
    last: f64,
    trimmed: f64,
}

impl Pace {
    /// Whether now is the time to trim.
    fn observe(&mut self, used: f64) -> bool {
        let at_rest = used - self.last < REST * PERIOD.as_secs_f64();
        self.last = used;
        let due = at_rest && used - self.trimmed >= WORK_SECONDS;
        if due {
            self.trimmed = used;
        }
        due
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    #[expect(
        unsafe_code,
        reason = "no safe wrapper exists; the call has no preconditions and is thread-safe"
    )]
    // SAFETY: malloc_trim takes the arenas' own locks and touches only chunks that are free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_once_after_work_has_ended() {
        let mut pace = Pace::default();
        let asked: Vec<bool> = [3.0, 5.0, 5.1, 5.12, 5.14, 5.16, 7.0, 7.01, 7.02]
            .into_iter()
            .map(|used| pace.observe(used))
            .collect();
        assert_eq!(asked, [false, false, true, false, false, false, false, true, false]);
    }

    #[test]
    fn little_work_is_not_worth_a_walk() {
        let mut pace = Pace::default();
        assert!([0.01, 0.02, 0.05, 0.06].into_iter().all(|used| !pace.observe(used)));
    }

    #[test]
    fn a_trim_shrinks_what_is_resident() {
        // Chunks under the mmap threshold with the last one kept: glibc cannot lower the arena's top by itself.
        let mut chunks: Vec<Vec<u8>> = (0..1000).map(|_| vec![1; 60_000]).collect();
        let kept = chunks.pop();
        drop(chunks);
        let before = process::resident_bytes().unwrap();
        trim();
        let after = process::resident_bytes().unwrap();
        assert!(before - after > 20e6, "{before} {after}");
        drop(kept);
    }
}

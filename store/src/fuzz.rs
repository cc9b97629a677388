//! Runs a property on arbitrary and mutated inputs: a short bounded run in every test run, a long one by
//! `FUZZ_SECONDS=n`; `FUZZ_SEED=n` runs the one case that failed. Nothing is measured but what the property asserts, that
//! it ends, and that memory stays bounded.
//!
//! (cargo-fuzz wants a nightly compiler for the sanitizers' coverage; the workspace builds with stable.)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// No case takes nearly that long.
const HANGS: Duration = Duration::from_secs(60);
/// What a test process may grow to.
const MEMORY_KIB: u64 = 1 << 20;

pub struct Random(StdRng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// Often small, sometimes at a boundary, sometimes anything: what lengths, indexes and terms are made of.
    pub fn number(&mut self) -> u64 {
        match self.below(10) {
            0..6 => self.below(8) as u64,
            6 => self.below(1000) as u64,
            7 => u64::MAX - self.below(3) as u64,
            8 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.below(most + 1)];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.below(of.len());
        &of[at]
    }

    /// Changes, cuts, doubles, removes or adds some bytes.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                *bytes = self.bytes(16);
                continue;
            }
            let at = self.below(bytes.len());
            let end = at + self.below((bytes.len() - at).min(64)) + 1;
            match self.below(7) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = *self.choose(&[0, 1, 0x7f, 0x80, 0xff]),
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let doubled = bytes[at..end].to_vec();
                    bytes.splice(at..at, doubled);
                }
                5 => drop(bytes.splice(at..end, self.bytes(16))),
                _ => {
                    let word = self.number().to_le_bytes();
                    let length = word.len().min(bytes.len() - at);
                    bytes[at..at + length].copy_from_slice(&word[..length]);
                }
            }
        }
    }
}

/// Says which case it was that failed.
struct Case {
    name: &'static str,
    seed: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("fuzz {}: this case again: FUZZ_SEED={}", self.name, self.seed);
        }
    }
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The most memory that this process ever had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Ends the process when a case hangs: nobody else would say which.
fn watch(name: &'static str, running: &Arc<AtomicU64>) {
    let running = Arc::downgrade(running);
    std::thread::spawn(move || {
        let mut last = (0, Instant::now());
        while let Some(seed) = running.upgrade().map(|seed| seed.load(Ordering::Relaxed)) {
            if seed != last.0 {
                last = (seed, Instant::now());
            }
            if last.1.elapsed() > HANGS {
                eprintln!("fuzz {name}: this case hangs: FUZZ_SEED={seed}");
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
}

/// Runs `cases` cases, or as many as a long run has time for. Prints how many, and the seed that they come from.
pub fn run(name: &'static str, cases: u64, mut property: impl FnMut(&mut Random)) {
    let running = Arc::new(AtomicU64::new(0));
    watch(name, &running);
    let mut one = |seed: u64| {
        let case = Case { name, seed };
        running.store(seed, Ordering::Relaxed);
        property(&mut Random::new(seed));
        drop(case);
    };
    if let Some(seed) = number_of("FUZZ_SEED") {
        return one(seed);
    }
    let first: u64 = rand::random();
    println!("fuzz {name}: from seed {first}");
    let (begun, before) = (Instant::now(), peak_kib());
    let mut count = 0;
    match number_of("FUZZ_SECONDS").map(Duration::from_secs) {
        None => {
            for case in 0..cases {
                one(first.wrapping_add(case));
                count += 1;
            }
        }
        Some(long) => {
            while begun.elapsed() < long {
                one(first.wrapping_add(count));
                count += 1;
            }
        }
    }
    let grown = peak_kib() - before;
    println!("fuzz {name}: {count} cases in {:?}, {grown} KiB more memory", begun.elapsed());
    assert!(grown < MEMORY_KIB, "it took {grown} KiB");
}

//! Medians and percentiles of what was measured.

use std::time::Duration;

/// Latencies of many requests, in any order.
#[derive(Debug, Clone, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many took longer.
    pub fn longer_than(&self, bound: Duration) -> usize {
        self.0.iter().filter(|latency| **latency > bound).count()
    }

    /// The latency in milliseconds that `percent` of the requests stayed within (nearest rank).
    pub fn percentile(&mut self, percent: usize) -> f64 {
        self.per_mille(percent * 10)
    }

    /// As [`Self::percentile`], in thousandths.
    pub fn per_mille(&mut self, part: usize) -> f64 {
        self.0.sort_unstable();
        let rank = (self.0.len() * part).div_ceil(1000).max(1);
        self.0.get(rank - 1).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
    }
}

/// The middle of the values; of two middles, their mean.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let check = |count: u64, percent: usize, expected: f64| {
            let mut latencies = Latencies((1..=count).rev().map(Duration::from_millis).collect());
            assert_eq!(latencies.percentile(percent), expected, "{percent} of {count}");
        };
        check(100, 50, 50.0);
        check(100, 99, 99.0);
        check(10, 99, 10.0);
        check(1, 50, 1.0);
        assert!(Latencies::default().percentile(50).is_nan());
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}

//! What the figures were measured on.

use std::fs;

/// Cores, memory, kernel and processor, in one line.
pub fn description() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let processor = value(&read("/proc/cpuinfo"), "model name");
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let kibibytes: u64 = memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores ({processor}), {} GiB, Linux {}", kibibytes >> 20, kernel.trim())
}

//! The process's own figures from /proc, as the `process_*` metrics that every Prometheus client library exports.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads /proc/self at every scrape.
#[derive(Debug)]
pub struct ProcessCollector {
    start_time: f64,
}

impl Default for ProcessCollector {
    fn default() -> Self {
        let ticks_per_second =
            sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100.0, |ticks| ticks as f64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // Field 22 counts ticks since boot, as /proc/uptime counts seconds.
        let started = stat_fields().and_then(|fields| fields.get(19)?.parse::<f64>().ok());
        let uptime = std::fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        let age = match (started, uptime) {
            (Some(started), Some(uptime)) => (uptime - started / ticks_per_second).max(0.0),
            _ => 0.0,
        };
        // The kernel counts hundredths; a process has never started after now.
        Self { start_time: ((now - age) * 100.0).floor() / 100.0 }
    }
}

/// The fields of /proc/self/stat from the third on (the second, the command, may hold anything).
fn stat_fields() -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// User and system CPU time spent so far.
pub(crate) fn cpu_seconds() -> Option<f64> {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok()??;
    let fields = stat_fields()?;
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some((user + system) / ticks_per_second as f64)
}

#[cfg(test)]
pub(crate) fn resident_bytes() -> Option<f64> {
    status_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

fn status_bytes(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: f64 = line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => {
                let metric = ConstGauge::new(value);
                metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
            }
            None => Ok(()),
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            status_bytes(&status, "VmRSS"),
        )?;
        gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes",
            status_bytes(&status, "VmSize"),
        )?;
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64 - 1.0);
        gauge("process_open_fds", "Number of open file descriptors", open)?;
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let maximum = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
        gauge("process_max_fds", "Maximum number of open file descriptors", maximum)?;
        gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            Some(self.start_time),
        )?;
        if let Some(seconds) = cpu_seconds() {
            let metric = ConstCounter::new(seconds);
            metric.encode(encoder.encode_descriptor(
                "process_cpu_seconds",
                "Total user and system CPU time spent in seconds",
                None,
                metric.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

//! Structured logs on stderr, readable as klog's lines or as one JSON object a line.
//!
//! `-v` follows upstream's conventions: up to 3 the daemon's information, 4 and 5 its debug messages, 6 and more
//! its traces. Libraries speak only from 8 (debug) and 10 (trace) on.

use std::fmt::{self, Write as _};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The logging flags of every daemon; flatten it into the daemon's clap arguments.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Number for the log level verbosity
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0, allow_hyphen_values = true)]
    pub verbosity: i32,
    /// Sets the log format
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub logging_format: LogFormat,
}

impl Default for LogArgs {
    fn default() -> Self {
        Self { verbosity: 0, logging_format: LogFormat::Text }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Libraries whose messages are of no use to who runs a daemon.
const LIBRARIES: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "rustls",
    "tokio_rustls",
    "tower",
    "tonic",
    "kube_client",
    "kube_runtime",
    "sled",
    "mio",
    "hickory_server",
    "hickory_proto",
    "netlink_proto",
    "netlink_packet_route",
    "tungstenite",
    "tokio_tungstenite",
    "tokio_util",
    "want",
];

/// Installs the process's subscriber. To be called once, first thing.
///
/// # Errors
/// A subscriber is installed already.
pub fn init(args: &LogArgs) -> Result<(), TryInitError> {
    let layer = match args.logging_format {
        LogFormat::Text => {
            tracing_subscriber::fmt::layer().event_format(Klog).with_writer(io::stderr).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().event_format(Json).with_writer(io::stderr).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(filter(args.verbosity))).try_init()
}

fn filter(verbosity: i32) -> Targets {
    let own = match verbosity {
        ..4 => LevelFilter::INFO,
        4..6 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let libraries = match verbosity {
        ..8 => LevelFilter::WARN,
        8..10 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    Targets::new().with_default(own).with_targets(LIBRARIES.iter().map(|library| (*library, libraries)))
}

/// Collects an event's message and its other fields.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    Bare(String),
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text) | Value::Bare(text)) => self.message = text,
            (name, value) => self.rest.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Bare(value.to_string()));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Bare(value.to_string()));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        // A JSON number has no NaN or infinity.
        self.put(
            field,
            if value.is_finite() { Value::Bare(value.to_string()) } else { Value::Text(value.to_string()) },
        );
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bare(value.to_string()));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.put(field, Value::Text(text));
    }
}

fn caller<'a>(event: &Event<'a>) -> (&'a str, u32) {
    let metadata = event.metadata();
    let file = metadata.file().map_or(metadata.target(), |path| path.rsplit('/').next().unwrap_or(path));
    (file, metadata.line().unwrap_or(0))
}

/// `I1120 21:37:43.123456    1234 file.rs:12] "message" key="value"`
struct Klog;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N>
    for Klog
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let severity = match *event.metadata().level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (_, month, day) = civil(now.as_secs() / 86_400);
        let of_day = now.as_secs() % 86_400;
        let (file, line) = caller(event);
        write!(
            writer,
            "{severity}{month:02}{day:02} {:02}:{:02}:{:02}.{:06} {:>7} {file}:{line}] {:?}",
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            now.subsec_micros(),
            std::process::id(),
            fields.message,
        )?;
        for (name, value) in &fields.rest {
            match value {
                Value::Text(text) => write!(writer, " {name}={text:?}")?,
                Value::Bare(text) => write!(writer, " {name}={text}")?,
            }
        }
        writeln!(writer)
    }
}

/// `{"ts":1700000000123.456,"caller":"file.rs:12","msg":"message","v":0,"key":"value"}`
struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N>
    for Json
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (file, line) = caller(event);
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        write!(
            writer,
            "{{\"ts\":{}.{:03},\"caller\":{},\"msg\":{}",
            now.as_millis(),
            now.subsec_micros() % 1000,
            quoted(&format!("{file}:{line}")),
            quoted(&fields.message),
        )?;
        let level = match *event.metadata().level() {
            Level::ERROR | Level::WARN => None,
            Level::INFO => Some(0),
            Level::DEBUG => Some(4),
            Level::TRACE => Some(6),
        };
        if let Some(level) = level {
            write!(writer, ",\"v\":{level}")?;
        }
        for (name, value) in &fields.rest {
            // Upstream calls the error of a message "err".
            let name = if *name == "error" { "err" } else { name };
            match value {
                Value::Text(text) => write!(writer, ",{}:{}", quoted(name), quoted(text))?,
                Value::Bare(text) => write!(writer, ",{}:{text}", quoted(name))?,
            }
        }
        writeln!(writer, "}}")
    }
}

/// Year, month and day of a day since 1970-01-01 (UTC); the era arithmetic of Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::sync::{Arc, Mutex};

    #[derive(Parser)]
    struct Daemon {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn flags_take_upstreams_forms() {
        for (arguments, verbosity) in [
            (&["d"][..], 0),
            (&["d", "-v", "4"], 4),
            (&["d", "-v=2"], 2),
            (&["d", "--v=6"], 6),
            (&["d", "-v4"], 4),
        ] {
            assert_eq!(Daemon::try_parse_from(arguments).unwrap().log.verbosity, verbosity);
        }
        assert!(
            Daemon::try_parse_from(["d", "--logging-format=json"]).unwrap().log.logging_format
                == LogFormat::Json
        );
    }

    #[test]
    fn verbosity_opens_levels() {
        #[track_caller]
        fn check(verbosity: i32, target: &str, level: Level, expected: bool) {
            assert_eq!(
                filter(verbosity).would_enable(target, &level),
                expected,
                "{verbosity} {target} {level}"
            );
        }
        check(0, "kubelet", Level::INFO, true);
        check(3, "kubelet", Level::DEBUG, false);
        check(4, "kubelet::pod", Level::DEBUG, true);
        check(4, "kubelet", Level::TRACE, false);
        check(6, "kubelet", Level::TRACE, true);
        check(6, "h2::proto", Level::DEBUG, false);
        check(6, "hyper", Level::WARN, true);
        check(8, "h2::proto", Level::DEBUG, true);
    }

    #[test]
    fn days_become_dates() {
        for (days, date) in
            [(0, (1970, 1, 1)), (58, (1970, 2, 28)), (11_016, (2000, 2, 29)), (20_777, (2026, 11, 20))]
        {
            assert_eq!(civil(days), date);
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged<E>(format: E) -> String
    where
        E: FormatEvent<tracing_subscriber::Registry, tracing_subscriber::fmt::format::DefaultFields>
            + Send
            + Sync
            + 'static,
    {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(format).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(pod = "default/a", count = 3, error = %"no \"disk\"", "Could not start");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn lines_in_both_formats() {
        let text = logged(Klog);
        assert!(text.starts_with('W'), "{text}");
        assert!(text.contains("logging.rs:"), "{text}");
        assert!(
            text.ends_with("] \"Could not start\" pod=\"default/a\" count=3 error=\"no \\\"disk\\\"\"\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&logged(Json)).unwrap();
        assert_eq!(json["msg"], "Could not start");
        assert_eq!(json["count"], 3);
        assert_eq!(json["err"], "no \"disk\"");
        assert!(json["ts"].is_f64());
    }
}

//! Times as the API writes them: RFC 3339 in UTC, to the second (`Time`) or the microsecond (`MicroTime`).

use jiff::{SignedDuration, Timestamp, ToSpan as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use crate::durations::human_duration;

/// `2026-11-20T21:37:43Z`
#[must_use]
pub fn format(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-11-20T21:37:43.000000Z`
#[must_use]
pub fn format_micro(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Parses RFC 3339 with any offset.
///
/// # Errors
/// The text is no such time.
pub fn parse(text: &str) -> Result<Timestamp, jiff::Error> {
    text.parse()
}

/// Cuts to whole seconds, as a `Time` is stored.
#[must_use]
pub fn truncate(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A `Time` of whole seconds.
#[must_use]
pub fn api_time(time: Timestamp) -> Time {
    Time(truncate(time))
}

/// A `MicroTime` of whole microseconds.
#[must_use]
pub fn api_micro_time(time: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time))
}

/// How long ago a time was, as kubectl's AGE column says it; `<unknown>` without one.
#[must_use]
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    since.map_or_else(|| "<unknown>".to_owned(), |since| human_duration(now.duration_since(since)))
}

/// A time some seconds later (earlier, when negative); the same time if there is no such.
#[must_use]
pub fn plus_seconds(time: Timestamp, seconds: i64) -> Timestamp {
    let bounded = seconds.clamp(-100_000_000_000, 100_000_000_000);
    time.checked_add(bounded.seconds()).unwrap_or(time)
}

/// The time from `earlier` to `later`; negative when they are the other way round.
#[must_use]
pub fn between(earlier: Timestamp, later: Timestamp) -> SignedDuration {
    later.duration_since(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_ages() {
        let time = parse("2026-11-20T23:37:43.123456789+02:00").unwrap();
        assert_eq!(format(time), "2026-11-20T21:37:43Z");
        assert_eq!(format_micro(time), "2026-11-20T21:37:43.123456Z");
        assert_eq!(serde_json::to_value(api_time(time)).unwrap(), "2026-11-20T21:37:43Z");
        assert_eq!(serde_json::to_value(api_micro_time(time)).unwrap(), "2026-11-20T21:37:43.123456Z");
        assert_eq!(age(Some(time), plus_seconds(time, 90)), "90s");
        assert_eq!(age(None, time), "<unknown>");
        assert!(parse("yesterday").is_err());
        assert_eq!(plus_seconds(time, i64::MAX), plus_seconds(time, 100_000_000_000));
    }
}

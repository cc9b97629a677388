//! Durations as Go writes them ("1h30m", "300ms"): the form in which flags and configuration files carry time.
//! Only durations of zero or more exist here; a negative one is refused by name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit:?} in duration {input:?}")]
    UnknownUnit { unit: String, input: String },
    #[error("negative duration {0:?} is not supported")]
    Negative(String),
}

/// Parses Go's duration syntax: decimal numbers, each with an optional fraction and a unit out of
/// `ns us µs ms s m h`, such as `1h30m` or `1.5s`. `0` needs no unit.
///
/// # Errors
/// The text is empty, has an unknown or missing unit, is negative, or does not fit into 64 bits of nanoseconds.
pub fn parse(input: &str) -> Result<Duration, ParseDurationError> {
    let invalid = || ParseDurationError::Invalid(input.to_owned());
    let unsigned = input.strip_prefix('+').unwrap_or(input);
    if let Some(rest) = unsigned.strip_prefix('-') {
        let value = parse(rest).map_err(|_| invalid())?;
        return if value.is_zero() { Ok(value) } else { Err(ParseDurationError::Negative(input.to_owned())) };
    }
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale: u128 = match unit {
            "" => return Err(ParseDurationError::MissingUnit(input.to_owned())),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => {
                return Err(ParseDurationError::UnknownUnit {
                    unit: unit.to_owned(),
                    input: input.to_owned(),
                });
            }
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total += u128::from(whole) * scale;
        // As Go: the fraction goes through floating point, so that 0.333…h is 20 minutes.
        let (mut numerator, mut denominator) = (0_u64, 1.0_f64);
        for digit in fraction.bytes() {
            let next = numerator.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
            let Some(next) = next.filter(|next| *next <= i64::MAX as u64) else { break };
            numerator = next;
            denominator *= 10.0;
        }
        total += (numerator as f64 * (scale as f64 / denominator)) as u128;
        if total > i64::MAX as u128 {
            return Err(invalid());
        }
        rest = tail;
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| invalid())
}

/// Formats as Go's `Duration.String`: `1h30m0s`, `1.5s`, `300ms`, `0s`.
#[must_use]
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let decimal = |value: u128, unit: u128| {
        let fraction = value % unit;
        if fraction == 0 {
            return (value / unit).to_string();
        }
        let width = unit.ilog10() as usize;
        let digits = format!("{fraction:0width$}");
        format!("{}.{}", value / unit, digits.trim_end_matches('0'))
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / 60_000_000_000;
            let seconds = decimal(nanos % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    }
}

/// A duration in a configuration file or a flag, carried as text (`metav1.Duration` upstream).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(pub Duration);

impl FromStr for GoDuration {
    type Err = ParseDurationError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format(self.0))
    }
}

impl From<GoDuration> for Duration {
    fn from(value: GoDuration) -> Self {
        value.0
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_formats_as_go_does() {
        #[track_caller]
        fn check(input: &str, nanos: u64, formatted: &str) {
            let parsed = parse(input).unwrap();
            assert_eq!(parsed, Duration::from_nanos(nanos), "{input}");
            assert_eq!(format(parsed), formatted, "{input}");
        }
        check("0", 0, "0s");
        check("-0s", 0, "0s");
        check("1ns", 1, "1ns");
        check("1.5us", 1_500, "1.5µs");
        check("1100ns", 1_100, "1.1µs");
        check("2.2ms", 2_200_000, "2.2ms");
        check("300ms", 300_000_000, "300ms");
        check("3.3s", 3_300_000_000, "3.3s");
        check("1h30m", 5_400_000_000_000, "1h30m0s");
        check("4m5.001s", 245_001_000_000, "4m5.001s");
        check(".5s", 500_000_000, "500ms");
        check("1.s", 1_000_000_000, "1s");
        check("+5s", 5_000_000_000, "5s");
        check("1.00000000000000000000001h", 3_600_000_000_000, "1h0m0s");
        check("0.3333333333333333333h", 1_200_000_000_000, "20m0s");
        check("9223372036s", 9_223_372_036_000_000_000, "2562047h47m16s");
    }

    #[test]
    fn refuses_what_go_refuses() {
        #[track_caller]
        fn check(input: &str, expected: &str) {
            assert_eq!(parse(input).unwrap_err().to_string(), expected);
        }
        check("", "time: invalid duration \"\"");
        check("3", "time: missing unit in duration \"3\"");
        check("1d", "time: unknown unit \"d\" in duration \"1d\"");
        check(".s", "time: invalid duration \".s\"");
        check("1..2s", "time: invalid duration \"1..2s\"");
        check("9223372037s", "time: invalid duration \"9223372037s\"");
        check("-5s", "negative duration \"-5s\" is not supported");
    }
}

//! Scalars with a form of their own: quantities, times, bytes. Each is checked and rewritten canonically.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What Go calls a JSON value in its errors.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub(super) fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// RFC 3339 in UTC with `decimals` digits of the second (0 or 6).
pub(super) fn time(text: &str, micro: bool) -> Result<String, String> {
    let parsed = match text.as_bytes().get(10) {
        // Only the form with T is RFC 3339; the parser knows more.
        Some(b'T') if !text.contains('[') => text.parse::<Timestamp>().ok(),
        _ => None,
    };
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let parsed = parsed
        .ok_or_else(|| format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))?;
    let zoned = parsed.to_zoned(TimeZone::UTC);
    let format = if micro { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(zoned.strftime(format).to_string())
}

/// Base64 as Go reads it: line breaks are ignored, padding is required.
pub(super) fn bytes(text: String) -> Result<String, String> {
    const STRICT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
            .with_decode_allow_trailing_bits(true),
    );
    let text = if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], "") } else { text };
    match STRICT.decode(&text) {
        Ok(_) => Ok(text),
        Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
            Err(format!("illegal base64 data at input byte {at}"))
        }
        Err(_) => Err(format!("illegal base64 data at input byte {}", text.len() / 4 * 4)),
    }
}

const QUANTITY_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// A resource quantity in canonical form: the largest suffix of its family that leaves no fraction. At most nano
/// precision, rounded up, and at most 2^63-1; both like upstream.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    let text = text.trim();
    let wrong = || QUANTITY_FORMAT.to_owned();
    if text.is_empty() {
        return Err(wrong());
    }
    let (negative, unsigned) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = unsigned.find(|c: char| !c.is_ascii_digit()).unwrap_or(unsigned.len());
    let (whole, rest) = unsigned.split_at(digits);
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(wrong());
    }
    let scale = Scale::parse(suffix).ok_or_else(|| {
        if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) {
            "unable to parse quantity's suffix".to_owned()
        } else {
            wrong()
        }
    })?;
    let nano = scale.nano(whole, fraction);
    Ok(scale.family.canonical(nano, negative))
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Binary,
    Decimal,
    Exponent,
}

struct Scale {
    family: Family,
    /// Of two (binary) or of ten.
    power: i32,
}

/// The largest magnitude, in units and in nano units.
const LIMIT: u128 = i64::MAX as u128;
const NANO: u128 = 1_000_000_000;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Scale {
    fn parse(suffix: &str) -> Option<Self> {
        if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            return Some(Self { family: Family::Decimal, power: *power });
        }
        if let Some(at) = BINARY.iter().position(|s| *s == suffix) {
            return Some(Self { family: Family::Binary, power: 10 * i32::try_from(at).ok()? });
        }
        let exponent = suffix.strip_prefix(['e', 'E'])?;
        Some(Self { family: Family::Exponent, power: exponent.parse().ok()? })
    }

    /// `whole.fraction` at this scale in nano units, rounded up, capped.
    fn nano(&self, whole: &str, fraction: &str) -> u128 {
        // Digits of the number without leading zeros; the decimal point stands `point` digits from its end.
        let digits: String = [whole, fraction].concat();
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return 0;
        }
        let ten = if self.family == Family::Binary { 0 } else { i64::from(self.power) };
        let exponent = ten + 9 - i64::try_from(fraction.len()).unwrap_or(i64::MAX);
        let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
        // 28 digits of nano units are beyond the limit; so is anything with more.
        if length.saturating_add(exponent) > 29 {
            return LIMIT * NANO;
        }
        let (kept, lost) = if exponent < 0 {
            let keep = usize::try_from(length.saturating_add(exponent).max(0)).unwrap_or(0);
            let (kept, cut) = digits.split_at(keep);
            (kept, cut.bytes().any(|b| b != b'0'))
        } else {
            (digits, false)
        };
        let mut value: u128 = if kept.is_empty() { 0 } else { kept.parse().unwrap_or(LIMIT * NANO) };
        if exponent > 0 {
            value = value.saturating_mul(10u128.saturating_pow(u32::try_from(exponent).unwrap_or(u32::MAX)));
        }
        if self.family == Family::Binary {
            let factor = 1u128 << self.power.clamp(0, 63);
            value = value.saturating_mul(factor);
        }
        (value + u128::from(lost)).min(LIMIT * NANO)
    }
}

impl Family {
    fn canonical(self, nano: u128, negative: bool) -> String {
        if nano == 0 {
            return "0".to_owned();
        }
        let sign = if negative { "-" } else { "" };
        // Below 1024 upstream falls back to decimal; above it rounds fractions up.
        if self == Family::Binary && nano >= 1024 * NANO {
            let mut value = nano.div_ceil(NANO);
            let mut step = 0;
            while value % 1024 == 0 && step + 1 < BINARY.len() {
                value /= 1024;
                step += 1;
            }
            return format!("{sign}{value}{}", BINARY[step]);
        }
        let mut value = nano;
        let mut step = 0;
        while value % 1000 == 0 && step + 1 < DECIMAL.len() {
            value /= 1000;
            step += 1;
        }
        let (suffix, power) = DECIMAL[step];
        if self == Family::Exponent && power != 0 {
            return format!("{sign}{value}e{power}");
        }
        format!("{sign}{value}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_canonical() {
        let check =
            |input: &str, expected: &str| assert_eq!(quantity(input).as_deref(), Ok(expected), "{input}");
        check("1", "1");
        check("0.5", "500m");
        check("1000m", "1");
        check("1500m", "1500m");
        check("1024Mi", "1Gi");
        check("1.5Gi", "1536Mi");
        check("1024", "1024");
        check("1000", "1k");
        check("1e3", "1e3");
        check("12e6", "12e6");
        check("100e-3", "100e-3");
        check("0", "0");
        check("0Gi", "0");
        check("-0.5", "-500m");
        check("+5", "5");
        check(".5", "500m");
        check("5.", "5");
        check("0.1n", "1n");
        check("0.0000000001", "1n");
        check("500Ki", "500Ki");
        check("0.5Mi", "512Ki");
        check("512", "512");
        check("0.5Ki", "512");
        check("9223372036854775807", "9223372036854775807");
        check("99999999999999999999", "9223372036854775807");
        check("1E", "1E");
        check("123456789n", "123456789n");
    }

    #[test]
    fn bad_quantities() {
        for input in ["", "x", "1x", "1KI", "--1", "1..2", ".", "1ee3", "1Kii"] {
            assert!(quantity(input).is_err(), "{input}");
        }
    }

    #[test]
    fn times() {
        let check = |input: &str, micro, expected: Option<&str>| {
            assert_eq!(time(input, micro).ok().as_deref(), expected, "{input}");
        };
        check("2024-01-02T03:04:05Z", false, Some("2024-01-02T03:04:05Z"));
        check("2024-01-02T03:04:05.999+02:00", false, Some("2024-01-02T01:04:05Z"));
        check("2024-01-02T03:04:05.5Z", true, Some("2024-01-02T03:04:05.500000Z"));
        check("2024-01-02T03:04:05Z", true, Some("2024-01-02T03:04:05.000000Z"));
        check("2024-01-02 03:04:05Z", false, None);
        check("2024-01-02", false, None);
        check("", false, None);
        check("yesterday é", false, None);
    }

    #[test]
    fn base64() {
        assert_eq!(bytes("aGVs\nbG8=".into()).unwrap(), "aGVsbG8=");
        assert_eq!(bytes("!".into()).unwrap_err(), "illegal base64 data at input byte 0");
        assert!(bytes("aGVsbG8".into()).is_err());
        assert_eq!(bytes(String::new()).unwrap(), "");
    }
}

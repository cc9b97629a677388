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

/// A resource quantity as upstream shows it again.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    keelson_objects::quantity::canonical(text.trim()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        let check = |input: &str, expected: Option<&str>| {
            assert_eq!(quantity(input).ok().as_deref(), expected, "{input}");
        };
        check("0.5", Some("500m"));
        check(" 1024Mi ", Some("1Gi"));
        check("1Kii", None);
        check("", None);
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

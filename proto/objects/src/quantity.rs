//! Resource quantities: `100m`, `1.5Gi`, `12e6`. Exact to a nano unit, which is as fine as the API goes; what is
//! finer rounds up, so that asking for some of a resource never becomes none.
//!
//! Values beyond about ±1.7e29 are refused (upstream's decimals have no bound); binary ones are capped at 2^63-1, as
//! upstream's.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const NANO: i128 = 1_000_000_000;
const MILLI: i128 = 1_000_000;
/// Digits that upstream's fast path holds.
const INT64_DIGITS: i64 = 18;

/// Why a text is no quantity; the messages are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity was written, and is printed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// An amount and the format it is printed in. Comparison is by amount alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A number of whole units.
    #[must_use]
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * NANO, format }
    }

    /// Bytes, printed as `Mi` and the like.
    #[must_use]
    pub fn from_bytes(bytes: i64) -> Self {
        Self::from_units(bytes, Format::BinarySi)
    }

    /// Thousandths of a unit, as CPU is counted.
    #[must_use]
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * MILLI, format: Format::DecimalSi }
    }

    /// Exactly what an API object holds.
    ///
    /// # Errors
    /// The text is no quantity.
    pub fn from_api(quantity: &ApiQuantity) -> Result<Self, QuantityError> {
        quantity.0.parse()
    }

    #[must_use]
    pub fn to_api(self) -> ApiQuantity {
        ApiQuantity(self.to_string())
    }

    #[must_use]
    pub fn format(self) -> Format {
        self.format
    }

    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Billionths of a unit: the exact amount.
    #[must_use]
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// Whole units, rounded away from zero, within 64 bits. Bytes, when memory is meant.
    #[must_use]
    pub fn value(self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero, within 64 bits.
    #[must_use]
    pub fn milli_value(self) -> i64 {
        self.scaled(MILLI)
    }

    /// Whether this is a whole number of units.
    #[must_use]
    pub fn is_integer(self) -> bool {
        self.nanos % NANO == 0
    }

    fn scaled(self, unit: i128) -> i64 {
        let whole = self.nanos / unit;
        let rounded = whole + if self.nanos % unit == 0 { 0 } else { self.nanos.signum() };
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }

    /// The units as a floating-point number.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    fn with(self, other: Self, nanos: i128) -> Self {
        // Zero has no format of its own.
        Self { nanos, format: if self.is_zero() { other.format } else { self.format } }
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(other, self.nanos.saturating_add(other.nanos))
    }
}
impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(other, self.nanos.saturating_sub(other.nanos))
    }
}
impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
impl std::ops::Mul<i64> for Quantity {
    type Output = Self;
    fn mul(self, factor: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(i128::from(factor)), format: self.format }
    }
}
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(quantities: I) -> Self {
        quantities.fold(Self::ZERO, |sum, quantity| sum + quantity)
    }
}

/// A text taken apart: sign, digits before and after the point, suffix.
struct Parts<'a> {
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let not_digit = |c: char| !c.is_ascii_digit();
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, rest) = unsigned.split_at(unsigned.find(not_digit).unwrap_or(unsigned.len()));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(not_digit).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let exponent = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.contains(not_digit) {
        return Err(QuantityError::Format);
    }
    Ok(Parts { negative: text.starts_with('-'), whole: whole.trim_start_matches('0'), fraction, suffix })
}

/// What a suffix multiplies by: base, exponent and the format it shows.
fn interpret(suffix: &str) -> Result<(u32, i64, Format), QuantityError> {
    Ok(match suffix {
        "n" => (10, -9, Format::DecimalSi),
        "u" => (10, -6, Format::DecimalSi),
        "m" => (10, -3, Format::DecimalSi),
        "" => (10, 0, Format::DecimalSi),
        "k" => (10, 3, Format::DecimalSi),
        "M" => (10, 6, Format::DecimalSi),
        "G" => (10, 9, Format::DecimalSi),
        "T" => (10, 12, Format::DecimalSi),
        "P" => (10, 15, Format::DecimalSi),
        "E" => (10, 18, Format::DecimalSi),
        "Ki" => (2, 10, Format::BinarySi),
        "Mi" => (2, 20, Format::BinarySi),
        "Gi" => (2, 30, Format::BinarySi),
        "Ti" => (2, 40, Format::BinarySi),
        "Pi" => (2, 50, Format::BinarySi),
        "Ei" => (2, 60, Format::BinarySi),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            (10, exponent.parse().map_err(|_| QuantityError::Suffix)?, Format::DecimalExponent)
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let parts = split(text)?;
        let (base, exponent, mut format) = interpret(parts.suffix)?;
        // The value is digits · 10^power · 2^shift nanos.
        let fraction = parts.fraction.trim_end_matches('0');
        let digits = parts.whole.len() + fraction.len();
        let is_zero = parts.whole.is_empty() && fraction.bytes().all(|digit| digit == b'0');
        let mut power = 9 - i64::try_from(fraction.len()).map_err(|_| QuantityError::Numeric)?;
        let mut shift = 0;
        if base == 10 {
            power = power.checked_add(exponent).ok_or(QuantityError::Numeric)?;
        } else {
            shift = exponent;
        }
        let nanos = if is_zero {
            0
        } else if i64::try_from(digits).map_err(|_| QuantityError::Numeric)?.saturating_add(power) < 0
            && shift == 0
        {
            // Less than a nano unit.
            1
        } else {
            scale(parts.whole.bytes().chain(fraction.bytes()), power, shift)?
        };
        let mut nanos = nanos;
        if format == Format::BinarySi {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
            if nanos > 0 && nanos < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Self { nanos: if parts.negative { -nanos } else { nanos }, format })
    }
}

/// Digits times powers of ten and two, rounded up where the power is negative.
fn scale(digits: impl Iterator<Item = u8>, mut power: i64, shift: i64) -> Result<i128, QuantityError> {
    let too_large = QuantityError::Numeric;
    let mut value: i128 = 0;
    for digit in digits {
        value =
            value.checked_mul(10).and_then(|v| v.checked_add(i128::from(digit - b'0'))).ok_or(too_large)?;
    }
    if value == 0 {
        return Ok(0);
    }
    // Multiply by two first: it can only make digits below the point matter less.
    value = value.checked_mul(1_i128 << shift.clamp(0, 60)).ok_or(too_large)?;
    while power > 0 {
        value = value.checked_mul(10).ok_or(too_large)?;
        power -= 1;
    }
    let mut remainder = false;
    while power < 0 && value > 0 {
        remainder |= value % 10 != 0;
        value /= 10;
        power += 1;
    }
    Ok(value + i128::from(remainder))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_integer() {
            let mut number = self.nanos / NANO;
            let mut suffix = 0;
            while number % 1024 == 0 && suffix + 1 < BINARY.len() {
                number /= 1024;
                suffix += 1;
            }
            return write!(f, "{number}{}", BINARY[suffix]);
        }
        let mut number = self.nanos;
        let mut thousands = 0;
        let limit = if self.format == Format::DecimalExponent { usize::MAX } else { DECIMAL.len() - 1 };
        while number % 1000 == 0 && thousands < limit {
            number /= 1000;
            thousands += 1;
        }
        if self.format == Format::DecimalExponent {
            let exponent = i64::try_from(thousands).unwrap_or(0) * 3 - 9;
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        write!(f, "{number}{}", DECIMAL[thousands])
    }
}

/// The text that the API server stores and shows for a quantity a client sent: the client's own where upstream
/// takes it for canonical, else the canonical form.
///
/// # Errors
/// The text is no quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    let quantity: Quantity = text.parse()?;
    Ok(if is_kept(text)? { text.to_owned() } else { quantity.to_string() })
}

/// Upstream keeps the text of numbers that its fast path reads and that need no change of suffix.
fn is_kept(text: &str) -> Result<bool, QuantityError> {
    if text == "0" {
        return Ok(true);
    }
    let parts = split(text)?;
    let (_, exponent, format) = interpret(parts.suffix)?;
    let length = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let whole = if parts.whole.is_empty() { "0" } else { parts.whole };
    let shifted = format!("{whole}{}", parts.fraction);
    if format == Format::BinarySi {
        let precision = 15 - length(whole) - exponent * 3 / 10 - 1;
        let odd = shifted.parse::<i64>().is_ok_and(|value| value & 7 != 0);
        return Ok(parts.fraction.is_empty() && precision >= 0 && odd);
    }
    let scale = exponent - length(parts.fraction);
    Ok(INT64_DIGITS >= length(&shifted)
        && scale >= -9
        && scale % 3 == 0
        && !shifted.ends_with("000")
        && !shifted.starts_with('0'))
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From a string or a plain number, as the API takes both.
impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text,
            serde_json::Value::Number(number) => number.to_string(),
            _ => return Err(de::Error::custom(QuantityError::Format)),
        };
        text.trim().parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        #[track_caller]
        fn check(input: &str, nanos: i128, printed: &str, stored: &str) {
            let quantity: Quantity = input.parse().unwrap();
            assert_eq!(quantity.nanos(), nanos, "{input}");
            assert_eq!(quantity.to_string(), printed, "{input}");
            assert_eq!(canonical(input).unwrap(), stored, "{input}");
            assert_eq!(quantity.to_string().parse::<Quantity>().unwrap(), quantity, "{input}");
        }
        check("0", 0, "0", "0");
        check("0Ki", 0, "0", "0");
        check("0.0", 0, "0", "0");
        check("1", NANO, "1", "1");
        check("100m", NANO / 10, "100m", "100m");
        check("1000m", NANO, "1", "1");
        check("0.5", NANO / 2, "500m", "500m");
        check(".5", NANO / 2, "500m", "500m");
        check("1.5", NANO * 3 / 2, "1500m", "1500m");
        check("1.", NANO, "1", "1.");
        check("-1.5", -NANO * 3 / 2, "-1500m", "-1500m");
        check("+5", 5 * NANO, "5", "+5");
        check("1024", 1024 * NANO, "1024", "1024");
        check("1024Ki", (1 << 20) * NANO, "1Mi", "1Mi");
        check("1025Ki", 1025 * 1024 * NANO, "1025Ki", "1025Ki");
        check("1.5Gi", 3 * (1 << 29) * NANO, "1536Mi", "1536Mi");
        check("0.5Ki", 512 * NANO, "512", "512");
        check("1.5Ki", 1536 * NANO, "1536", "1536");
        check("0.1Ki", 102_400_000_000, "102400m", "102400m");
        check("1e3", 1000 * NANO, "1e3", "1e3");
        check("1E3", 1000 * NANO, "1e3", "1E3");
        check("12e6", 12_000_000 * NANO, "12e6", "12e6");
        check("1e4", 10_000 * NANO, "10e3", "10e3");
        check("1e-1", NANO / 10, "100e-3", "100e-3");
        check("1E", 10_i128.pow(18) * NANO, "1E", "1E");
        check("2000k", 2_000_000 * NANO, "2M", "2M");
        check("1n", 1, "1n", "1n");
        check("0.1n", 1, "1n", "1n");
        check("1.0000000001", NANO + 1, "1000000001n", "1000000001n");
        check("0.0000000000000000000000000000000000000000001", 1, "1n", "1n");
        check("-0.1n", -1, "-1n", "-1n");
        check("8Ei", i128::from(i64::MAX) * NANO, "9223372036854775807", "9223372036854775807");
        check("100000000000000000000", 10_i128.pow(20) * NANO, "100E", "100E");
        check("1e-50", 1, "1e-9", "1e-9");
        check("1.001", 1_001_000_000, "1001m", "1.001");
    }

    #[test]
    fn errors() {
        #[track_caller]
        fn check(input: &str, expected: QuantityError) {
            assert_eq!(input.parse::<Quantity>().unwrap_err(), expected, "{input}");
        }
        check("", QuantityError::Format);
        check("1.1.1", QuantityError::Format);
        check("abc", QuantityError::Format);
        check("1 Mi", QuantityError::Format);
        check("1Mi ", QuantityError::Format);
        check("é", QuantityError::Format);
        check("1K", QuantityError::Suffix);
        check("1i", QuantityError::Suffix);
        check("1mi", QuantityError::Suffix);
        check("1m5", QuantityError::Suffix);
        check("1e", QuantityError::Suffix);
        check("1e99999999999999999999", QuantityError::Suffix);
        check("1e40", QuantityError::Numeric);
        check("1e9223372036854775807", QuantityError::Numeric);
    }

    #[test]
    fn arithmetic_and_rounding() {
        let q = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("0") + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("1") - q("100m")).to_string(), "900m");
        assert_eq!((q("100m") * 3).milli_value(), 300);
        assert!(q("1000m") == q("1") && q("1Ki") > q("1k") && q("-1") < q("0"));
        assert_eq!((q("1.1").value(), q("-1.1").value(), q("100u").milli_value()), (2, -2, 1));
        assert_eq!(q("1e25").value(), i64::MAX);
        assert_eq!(Quantity::from_milli(250).to_string(), "250m");
        assert_eq!(Quantity::from_bytes(64 << 20).to_string(), "64Mi");
        assert_eq!(serde_json::from_str::<Quantity>("1.5").unwrap(), q("1500m"));
    }
}

//! Amounts of resources (`resource.Quantity`), as far as validation needs them: parsed, compared, rounded.
//! Exact to a billionth; finer amounts round away from zero, as upstream rounds them.

use serde_json::Value;

const NANO: i128 = 1_000_000_000;

/// An amount in billionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

impl Quantity {
    /// A JSON string or number; None when it is no quantity.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let (base, exponent) = scale(suffix)?;
        let mut digits = String::with_capacity(whole.len() + fraction.len());
        digits.push_str(whole);
        digits.push_str(fraction);
        let digits = digits.trim_start_matches('0');
        if digits.len() > 30 {
            // Far beyond what an int64 of anything can be: saturate.
            return Some(Quantity(if negative { i128::MIN } else { i128::MAX }));
        }
        let mut amount: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        let fraction_digits = i32::try_from(fraction.len()).ok()?;
        if base == 2 {
            amount = amount.saturating_mul(NANO).saturating_mul(1_i128.checked_shl(exponent as u32)?);
            amount = divide_up(amount, power_of_ten(fraction_digits));
        } else {
            let exponent = exponent + 9 - fraction_digits;
            amount = if exponent >= 0 {
                amount.saturating_mul(power_of_ten(exponent))
            } else {
                divide_up(amount, power_of_ten(-exponent))
            };
        }
        Some(Quantity(if negative { -amount } else { amount }))
    }

    pub fn plus(self, other: Self) -> Self {
        Quantity(self.0.saturating_add(other.0))
    }

    /// The canonical text; `binary` amounts (memory) take Ki, Mi, … where they divide evenly.
    pub fn to_text(self, binary: bool) -> String {
        if self.0 % NANO != 0 {
            return match (self.0 % (NANO / 1000), self.0 % 1000) {
                (0, _) => format!("{}m", self.0 / (NANO / 1000)),
                (_, 0) => format!("{}u", self.0 / 1000),
                _ => format!("{}n", self.0),
            };
        }
        let mut whole = self.0 / NANO;
        let (step, suffixes) = if binary {
            (1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
        } else {
            (1000, ["", "k", "M", "G", "T", "P", "E"])
        };
        let mut index = 0;
        while whole != 0 && whole % step == 0 && index + 1 < suffixes.len() {
            whole /= step;
            index += 1;
        }
        format!("{whole}{}", suffixes[index])
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn is_whole(self) -> bool {
        self.0 % NANO == 0
    }

    pub fn is_whole_milli(self) -> bool {
        self.0 % (NANO / 1000) == 0
    }
}

fn power_of_ten(exponent: i32) -> i128 {
    10_i128.checked_pow(exponent.unsigned_abs()).unwrap_or(i128::MAX)
}

fn divide_up(amount: i128, by: i128) -> i128 {
    amount / by + i128::from(amount % by != 0)
}

/// Base and exponent of a suffix.
fn scale(suffix: &str) -> Option<(u8, i32)> {
    Some(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10, exponent.clamp(-60, 60))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        fn check(text: &str, binary: bool, expected: &str) {
            assert_eq!(Quantity::parse(text).unwrap().to_text(binary), expected);
        }
        check("1.5", false, "1500m");
        check("2000", false, "2k");
        check("1536Mi", true, "1536Mi");
        check("2048Mi", true, "2Gi");
        check("0", true, "0");
    }

    #[test]
    fn amounts() {
        fn check(text: &str, nanos: Option<i128>) {
            assert_eq!(Quantity::parse(text), nanos.map(Quantity), "{text}");
        }
        check("1", Some(NANO));
        check("100m", Some(NANO / 10));
        check("1.5Gi", Some(3 * (1 << 29) * NANO));
        check("1e3", Some(1000 * NANO));
        check("1E", Some(NANO.pow(3)));
        check("-5k", Some(-5000 * NANO));
        check(".5", Some(NANO / 2));
        check("0.0000000001", Some(1));
        check("", None);
        check("-", None);
        check(".", None);
        check("1.2.3", None);
        check("1 Gi", None);
        check("1Kx", None);
        check("éi", None);
        assert!(Quantity::parse(&"9".repeat(400)) > Quantity::parse("1E"));
        assert!(Quantity::parse("1e999999999999").is_none());
    }
}

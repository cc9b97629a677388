//! Values that are a number or a percentage of a total (`maxSurge`, `minAvailable`, …).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The string is neither: the message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for IntOrString: invalid type: string is not a percentage")]
pub struct NotAPercentage;

/// Which way a share of a total is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Up,
    Down,
}

/// The number itself, or the percentage of `total`.
///
/// # Errors
/// A string that is no percentage.
pub fn scaled_value(value: &IntOrString, total: i32, round: Round) -> Result<i32, NotAPercentage> {
    let percent = match value {
        IntOrString::Int(number) => return Ok(*number),
        IntOrString::String(text) => percentage(text).ok_or(NotAPercentage)?,
    };
    let product = i64::from(percent) * i64::from(total);
    let whole = product.div_euclid(100);
    let rounded = match round {
        Round::Up if product.rem_euclid(100) != 0 => whole + 1,
        _ => whole,
    };
    Ok(i32::try_from(rounded).unwrap_or(if rounded < 0 { i32::MIN } else { i32::MAX }))
}

/// The number before the percent sign.
#[must_use]
pub fn percentage(text: &str) -> Option<i32> {
    text.strip_suffix('%')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling() {
        #[track_caller]
        fn check(value: IntOrString, total: i32, up: Option<i32>, down: Option<i32>) {
            assert_eq!(scaled_value(&value, total, Round::Up).ok(), up);
            assert_eq!(scaled_value(&value, total, Round::Down).ok(), down);
        }
        let text = |text: &str| IntOrString::String(text.to_owned());
        check(IntOrString::Int(3), 10, Some(3), Some(3));
        check(text("25%"), 10, Some(3), Some(2));
        check(text("50%"), 10, Some(5), Some(5));
        check(text("0%"), 10, Some(0), Some(0));
        check(text("150%"), 3, Some(5), Some(4));
        check(text("5"), 10, None, None);
        check(text("x%"), 10, None, None);
    }
}

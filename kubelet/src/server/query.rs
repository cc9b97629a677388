//! Query strings and path segments. Pure.

/// Names and values, decoded, in order.
pub fn pairs(query: &str) -> Vec<(String, String)> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (decode(name, true), decode(value, true))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

/// The last value of a name.
pub fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Go's idea of a true boolean.
pub fn flag(pairs: &[(String, String)], name: &str) -> bool {
    matches!(value(pairs, name), Some("1" | "t" | "T" | "true" | "True" | "TRUE"))
}

/// The decoded segments below a prefix.
pub fn segments(path: &str, prefix: &str) -> Vec<String> {
    let rest = path.strip_prefix(prefix).unwrap_or_default();
    rest.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect()
}

fn decode(text: &str, plus_is_blank: bool) -> String {
    let (mut out, bytes) = (Vec::with_capacity(text.len()), text.as_bytes());
    let digit = |at: usize| {
        bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16)).and_then(|d| u8::try_from(d).ok())
    };
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
                continue;
            }
            (b'+', ..) if plus_is_blank => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        let pairs = pairs("command=sh&command=-c&command=echo+a%26b%3D%zz&tty=1&x");
        let commands: Vec<&str> =
            pairs.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.as_str()).collect();
        assert_eq!(commands, ["sh", "-c", "echo a&b=%zz"]);
        assert!(flag(&pairs, "tty") && !flag(&pairs, "x"));
        assert_eq!(segments("/exec/ns/a%2Bb/c+d", "/exec/"), ["ns", "a+b", "c+d"]);
    }
}

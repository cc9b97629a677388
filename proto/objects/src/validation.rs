//! The primitives of validation, with upstream's messages: each gives the list of what is wrong with a string,
//! empty when nothing is. Lengths are in bytes, as upstream counts.

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
     and must start and end with an alphanumeric character";
const SUBDOMAIN_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
     '-' or '.', and must start and end with an alphanumeric character";
const KEY_NAME_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const KEY_NAME_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
     an alphanumeric character";

/// The longest DNS label, label value, and name part of a label key.
pub const LABEL_MAX_LENGTH: usize = 63;
/// The longest DNS subdomain.
pub const SUBDOMAIN_MAX_LENGTH: usize = 253;

/// `must be no more than … characters`
#[must_use]
pub fn max_length_message(length: usize) -> String {
    format!("must be no more than {length} characters")
}

/// `must be between … and …, inclusive`
#[must_use]
pub fn range_message(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// A message that shows the expression a string should match, with examples.
#[must_use]
pub fn regex_message(message: &str, format: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{format}')");
    }
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{format}')", examples.join(" or "))
}

/// `must be no more than … bytes`: upstream words it so for the keys and values of labels alone.
fn max_bytes_message(length: usize) -> String {
    format!("must be no more than {length} bytes")
}

fn length(value: &str, maximum: usize) -> Vec<String> {
    if value.len() > maximum { vec![max_length_message(maximum)] } else { Vec::new() }
}

/// One or more bytes: the first and the last as `edge` says, those between as `inner` says.
fn bounded(
    value: &str,
    first: impl Fn(u8) -> bool,
    inner: impl Fn(u8) -> bool,
    last: impl Fn(u8) -> bool,
) -> bool {
    match value.as_bytes() {
        [] => false,
        [only] => first(*only) && last(*only),
        [head, middle @ .., tail] => first(*head) && middle.iter().all(|byte| inner(*byte)) && last(*tail),
    }
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn lower_dash(byte: u8) -> bool {
    lower(byte) || byte == b'-'
}

fn matches_label(value: &str) -> bool {
    bounded(value, lower, lower_dash, lower)
}

fn matches_subdomain(value: &str) -> bool {
    value.split('.').all(matches_label)
}

fn matches_key_name(value: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_alphanumeric();
    bounded(value, alphanumeric, |byte| alphanumeric(byte) || b"-_.".contains(&byte), alphanumeric)
}

/// A DNS label of RFC 1123.
#[must_use]
pub fn is_dns1123_label(value: &str) -> Vec<String> {
    let mut errors = length(value, LABEL_MAX_LENGTH);
    if !matches_label(value) {
        errors.push(if matches_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            regex_message(LABEL_MESSAGE, LABEL_FMT, &["my-name", "123-abc"])
        });
    }
    errors
}

/// A DNS subdomain of RFC 1123.
#[must_use]
pub fn is_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = length(value, SUBDOMAIN_MAX_LENGTH);
    if !matches_subdomain(value) {
        errors.push(regex_message(SUBDOMAIN_MESSAGE, SUBDOMAIN_FMT, &["example.com"]));
    }
    errors
}

/// A subdomain whose first label may be `*`.
#[must_use]
pub fn is_wildcard_dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = length(value, SUBDOMAIN_MAX_LENGTH);
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        errors.push(regex_message(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN_FMT}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// A DNS label of RFC 1035, as Services are named.
#[must_use]
pub fn is_dns1035_label(value: &str) -> Vec<String> {
    let mut errors = length(value, LABEL_MAX_LENGTH);
    if !bounded(value, |byte| byte.is_ascii_lowercase(), lower_dash, lower) {
        errors.push(regex_message(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A label key: a name with an optional DNS subdomain and `/` before it.
#[must_use]
pub fn is_qualified_name(value: &str) -> Vec<String> {
    let examples = ["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let mut parts = value.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, None) => name,
        (Some(""), Some(name), None) => {
            errors.push("prefix part must be non-empty".to_owned());
            name
        }
        (Some(prefix), Some(name), None) => {
            errors
                .extend(is_dns1123_subdomain(prefix).into_iter().map(|error| format!("prefix part {error}")));
            name
        }
        _ => {
            let message = regex_message(KEY_NAME_MESSAGE, KEY_NAME_FMT, &examples);
            return vec![format!(
                "a valid label key {message} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX_LENGTH {
        errors.push(format!("name part {}", max_bytes_message(LABEL_MAX_LENGTH)));
    }
    if !matches_key_name(name) {
        errors.push(format!("name part {}", regex_message(KEY_NAME_MESSAGE, KEY_NAME_FMT, &examples)));
    }
    errors
}

/// A label's value: empty, or as the name part of a key.
#[must_use]
pub fn is_label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX_LENGTH {
        errors.push(max_bytes_message(LABEL_MAX_LENGTH));
    }
    if !value.is_empty() && !matches_key_name(value) {
        errors.push(regex_message(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            &format!("({KEY_NAME_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// An identifier of C.
#[must_use]
pub fn is_c_identifier(value: &str) -> Vec<String> {
    let start = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let inner = |byte: u8| start(byte) || byte.is_ascii_digit();
    if bounded(value, start, inner, inner) {
        return Vec::new();
    }
    vec![regex_message(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
         characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// The name of an environment variable, as it was before names were relaxed.
#[must_use]
pub fn is_env_var_name(value: &str) -> Vec<String> {
    let start = |byte: u8| byte.is_ascii_alphabetic() || b"-._".contains(&byte);
    let inner = |byte: u8| start(byte) || byte.is_ascii_digit();
    let mut errors = Vec::new();
    if !bounded(value, start, inner, inner) {
        errors.push(regex_message(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and \
             must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errors.extend(directory_prefix(value));
    errors
}

/// The name of an environment variable: printable ASCII without `=` (the rule of 1.36).
#[must_use]
pub fn is_relaxed_env_var_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// A key of a ConfigMap or Secret.
#[must_use]
pub fn is_config_map_key(value: &str) -> Vec<String> {
    let mut errors = length(value, SUBDOMAIN_MAX_LENGTH);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if value.is_empty() || !value.bytes().all(allowed) {
        errors.push(regex_message(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errors.extend(directory_prefix(value));
    errors
}

fn directory_prefix(value: &str) -> Option<String> {
    match value {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if value.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of a port (RFC 6335).
#[must_use]
pub fn is_port_name(value: &str) -> Vec<String> {
    let mut errors = length(value, 15);
    if value.is_empty() || !value.bytes().all(lower_dash) {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|byte| byte.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A port number.
#[must_use]
pub fn is_port_number(value: i64) -> Vec<String> {
    is_in_range(value, 1, 65535)
}

/// A number between two bounds, both allowed.
#[must_use]
pub fn is_in_range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) { Vec::new() } else { vec![range_message(low, high)] }
}

/// A user or group id.
#[must_use]
pub fn is_user_or_group_id(value: i64) -> Vec<String> {
    is_in_range(value, 0, i64::from(i32::MAX))
}

/// Digits and a percent sign.
#[must_use]
pub fn is_percent(value: &str) -> Vec<String> {
    let digits = value.strip_suffix('%').unwrap_or_default();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Vec::new();
    }
    let message = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_message(message, "[0-9]+%", &["1%", "93%"])]
}

/// The name of an HTTP header.
#[must_use]
pub fn is_http_header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Vec::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_message(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// A name that can be a segment of a URL's path; RBAC objects are named so. With `prefix` it is a `generateName`.
#[must_use]
pub fn is_path_segment_name(value: &str, prefix: bool) -> Vec<String> {
    if !prefix && (value == "." || value == "..") {
        return vec![format!("may not be '{value}'")];
    }
    let contained = ["/", "%"].into_iter().filter(|part| value.contains(part));
    contained.map(|part| format!("may not contain '{part}'")).collect()
}

/// What a `generateName` is checked as: upstream lets a trailing dash pass, since letters will follow it.
#[must_use]
pub fn mask_trailing_dash(value: &str) -> String {
    match value.strip_suffix('-') {
        // Upstream replaces the last two characters by an 'a'.
        Some(rest) if !rest.is_empty() => {
            let mut masked = rest.to_owned();
            masked.pop();
            masked.push('a');
            masked
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: fn(&str) -> Vec<String>, valid: &[&str], invalid: &[&str]) {
        for value in valid {
            assert_eq!(rule(value), Vec::<String>::new(), "{value:?}");
        }
        for value in invalid {
            assert!(!rule(value).is_empty(), "{value:?}");
        }
    }

    #[test]
    fn names() {
        let long = "a".repeat(64);
        check(
            is_dns1123_label,
            &["a", "0", "a-b", "1-2-3"],
            &["", "A", "a.b", "-a", "a-", "a_b", "é", &long],
        );
        check(is_dns1123_subdomain, &["a", "a.b-c.0"], &["", ".", "a.", ".a", "a..b", "A.b", "a.-b", "*.a"]);
        check(is_wildcard_dns1123_subdomain, &["*.a", "*.a.b"], &["*", "a.b", "*.", "*a.b", "a.*"]);
        check(is_dns1035_label, &["a", "a-1"], &["", "1a", "a-", "A", "a.b", &long]);
        check(
            is_qualified_name,
            &["a", "A_b.c-9", "example.com/A"],
            &["", "/a", "a/", "a/b/c", "A.b/c", "-a", "a_", &long],
        );
        check(is_label_value, &["", "a", "A_b.c"], &["-a", "a b", "a.", &long]);
        check(is_c_identifier, &["_", "aB_9"], &["", "9a", "a-b"]);
        check(is_env_var_name, &["a", "A_B.c-d", "-x"], &["", "9a", "a=b", ".", "..", "..a"]);
        check(is_relaxed_env_var_name, &["9a", "a b", ":"], &["", "a=b", "é", "\u{7f}"]);
        check(is_config_map_key, &["a", "A.b_c-d", ".a"], &["", ".", "..", "..a", "a/b", "a b"]);
        check(is_port_name, &["a", "http", "p-80"], &["", "80", "a--b", "-a", "a-", "A", "abcdefghijklmnop"]);
        check(is_percent, &["0%", "100%"], &["", "%", "5", "-1%", "1.5%"]);
        check(is_http_header_name, &["X-A"], &["", "a b", "a:"]);
        check(|value| is_path_segment_name(value, false), &["a:b", "system:node"], &[".", "..", "a/b", "a%"]);
    }

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(
            is_dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
                 end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            is_qualified_name("A.b/"),
            [
                "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                 and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                "name part must be non-empty",
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            ]
        );
        assert_eq!(is_port_number(0), ["must be between 1 and 65535, inclusive"]);
        for (value, masked) in [("web-", "wea"), ("-", "-"), ("a-", "a"), ("web", "web")] {
            assert_eq!(mask_trailing_dash(value), masked);
        }
    }
}

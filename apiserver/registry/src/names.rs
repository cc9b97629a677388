//! Syntax of names, keys and values (RFC 1123, RFC 1035, label syntax), in upstream's words. Each check returns one
//! message per broken rule. Must not know any kind.

use rand::Rng;

pub(crate) const SUBDOMAIN_MAX: usize = 253;
pub(crate) const LABEL_MAX: usize = 63;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";

/// A suffix as upstream draws it: no vowels, no digits that look like letters.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name from `metadata.generateName`: at most 63 characters with 5 random ones at the end.
pub fn generate(base: &str) -> String {
    let end = base.char_indices().nth(58).map_or(base.len(), |(index, _)| index);
    let mut rng = rand::rng();
    let mut name = base[..end].to_owned();
    name.extend((0..5).map(|_| char::from(SUFFIX[rng.random_range(0..SUFFIX.len())])));
    name
}

/// Label keys and values are counted in bytes and say so; names say characters (upstream has two packages for them).
fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

pub(crate) fn max_length(max: usize) -> String {
    format!("must be no more than {max} characters")
}

pub(crate) fn range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub(crate) fn regex(message: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{message} (regex used for validation is '{pattern}')");
    }
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{pattern}')", examples.join(" or "))
}

fn edge(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn matches_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
        && bytes.iter().all(|&b| edge(b) || b == b'-')
}

fn matches_subdomain(value: &str) -> bool {
    value.split('.').all(matches_label)
}

fn matches_qualified(value: &str) -> bool {
    let bytes = value.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last))
        if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

pub(crate) fn dns_label(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > LABEL_MAX {
        messages.push(max_length(LABEL_MAX));
    }
    if !matches_label(value) {
        messages.push(if matches_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            regex(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                 start and end with an alphanumeric character",
                LABEL,
                &["my-name", "123-abc"],
            )
        });
    }
    messages
}

pub(crate) fn dns_subdomain(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        messages.push(max_length(SUBDOMAIN_MAX));
    }
    if !matches_subdomain(value) {
        messages.push(regex(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
             must start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        ));
    }
    messages
}

/// A DNS search domain, which may have underscores.
pub(crate) fn subdomain_with_underscore(value: &str) -> Vec<String> {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut messages = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        messages.push(max_length(SUBDOMAIN_MAX));
    }
    let matches = |label: &str| {
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
            && bytes.iter().all(|&b| edge(b) || b == b'-' || b == b'_')
    };
    if !value.split('.').all(matches) {
        messages.push(regex(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
             and must start and end with an alphanumeric character",
            &format!("{LABEL}(\\.{LABEL})*"),
            &["example.com"],
        ));
    }
    messages
}

pub(crate) fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        messages.push(max_length(SUBDOMAIN_MAX));
    }
    if !value.strip_prefix("*.").is_some_and(matches_subdomain) {
        messages.push(regex(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must \
             consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    messages
}

pub(crate) fn dns1035_label(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > LABEL_MAX {
        messages.push(max_length(LABEL_MAX));
    }
    if !matches_label(value) || !value.starts_with(|c: char| c.is_ascii_lowercase()) {
        messages.push(regex(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            LABEL_1035,
            &["my-name", "abc-123"],
        ));
    }
    messages
}

/// A name that can stand in a URL: what RBAC kinds allow.
pub(crate) fn path_segment(value: &str, prefix: bool) -> Vec<String> {
    if !prefix && (value == "." || value == "..") {
        return vec![format!("may not be '{value}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|illegal| value.contains(**illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// Keys of labels, names of finalizers: `[prefix/]name`.
pub(crate) fn qualified_name(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    let mut parts = value.split('/');
    let (prefix, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (None, name),
        (Some(prefix), Some(name), None) => (Some(prefix), name),
        _ => {
            return vec![
                regex(
                    "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                     end with an alphanumeric character",
                    QUALIFIED,
                    &["MyName", "my.name", "123-abc"],
                ) + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            ];
        }
    };
    match prefix {
        Some("") => messages.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            messages
                .extend(dns_subdomain(prefix).into_iter().map(|message| format!("prefix part {message}")));
        }
        None => {}
    }
    if name.is_empty() {
        messages.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        messages.push(format!("name part {}", max_bytes(LABEL_MAX)));
    }
    if !matches_qualified(name) {
        messages.push(format!(
            "name part {}",
            regex(
                "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                 alphanumeric character",
                QUALIFIED,
                &["MyName", "my.name", "123-abc"],
            )
        ));
    }
    messages
}

pub(crate) fn label_value(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > LABEL_MAX {
        messages.push(max_bytes(LABEL_MAX));
    }
    if !value.is_empty() && !matches_qualified(value) {
        messages.push(regex(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            LABEL_VALUE,
            &["MyValue", "my_value", "12345"],
        ));
    }
    messages
}

/// Keys of config maps and secrets.
pub(crate) fn config_key(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        messages.push(max_length(SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        messages.push(regex(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => messages.push("must not be '.'".to_owned()),
        ".." => messages.push("must not be '..'".to_owned()),
        value if value.starts_with("..") => messages.push("must not start with '..'".to_owned()),
        _ => {}
    }
    messages
}

/// Names of environment variables, as relaxed since 1.34: printable ASCII without `=`.
pub(crate) fn environment_variable(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.is_empty() {
        messages.push("environment variable name must be non-empty".to_owned());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        messages.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    messages
}

/// Names of container ports (RFC 6335, lower case).
pub(crate) fn port_name(value: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if value.len() > 15 {
        messages.push(max_length(15));
    }
    if value.is_empty() || !value.bytes().all(|b| edge(b) || b == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

pub(crate) fn port_number(value: i64) -> Option<String> {
    (!(1..=65535).contains(&value)).then(|| range(1, 65535))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> Vec<String>, value: &str, messages: usize) {
        assert_eq!(rule(value).len(), messages, "{value:?}: {:?}", rule(value));
    }

    #[test]
    fn syntax() {
        let long = "a".repeat(64);
        for good in ["a", "a-b", "0", &long[..63]] {
            check(dns_label, good, 0);
        }
        for bad in ["", "-a", "a-", "A", "a_b", &long] {
            check(dns_label, bad, 1);
        }
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        check(dns_subdomain, "a.b", 0);
        check(dns_subdomain, "a..b", 1);
        check(dns1035_label, "a1", 0);
        check(dns1035_label, "1a", 1);
        check(wildcard_subdomain, "*.a", 0);
        check(wildcard_subdomain, "*a", 1);
        check(qualified_name, "a.b/c_d", 0);
        check(qualified_name, "A", 0);
        check(qualified_name, "a/b/c", 1);
        check(qualified_name, "/b", 1);
        check(qualified_name, "a/", 2);
        check(label_value, "", 0);
        check(label_value, "a b", 1);
        check(config_key, "..a", 1);
        check(config_key, ".a", 0);
        check(environment_variable, "a b", 0);
        check(environment_variable, "a=b", 1);
        check(port_name, "http", 0);
        check(port_name, "12", 1);
        check(port_name, "-", 2);
        assert_eq!(path_segment("a:b", false), Vec::<String>::new());
        assert_eq!(path_segment("a/b%", false), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(path_segment("..", false), ["may not be '..'"]);
    }

    #[test]
    fn upstreams_words() {
        assert_eq!(
            dns_subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
              must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert!(dns_label("A")[0].contains("(e.g. 'my-name',  or '123-abc', regex used"));
    }

    #[test]
    fn generated_names() {
        let name = generate(&"é".repeat(70));
        assert_eq!(name.chars().count(), 63);
        assert!(generate("web-").starts_with("web-") && generate("web-").len() == 9);
    }
}

//! Syntax of names, keys and values under short names, and names made up for `generateName`. The rules themselves are
//! the objects package's; only what no other daemon asks for is here.

use keelson_objects::validation::{SUBDOMAIN_MAX_LENGTH, max_length_message};
pub(crate) use keelson_objects::validation::{
    is_config_map_key as config_key, is_dns1035_label as dns1035_label, is_dns1123_label as dns_label,
    is_dns1123_subdomain as dns_subdomain, is_label_value as label_value,
    is_path_segment_name as path_segment, is_port_name as port_name, is_port_number as port_number,
    is_qualified_name as qualified_name, is_relaxed_env_var_name as environment_variable,
    is_wildcard_dns1123_subdomain as wildcard_subdomain, mask_trailing_dash, range_message as range,
    regex_message as regex,
};

/// A name from `metadata.generateName`: at most 63 bytes with 5 random letters at the end.
pub fn generate(base: &str) -> String {
    keelson_objects::names::generate_name(base, rand::random())
}

/// A DNS search domain, which may have underscores.
pub(crate) fn subdomain_with_underscore(value: &str) -> Vec<String> {
    const UNDERSCORED: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut messages = Vec::new();
    if value.len() > SUBDOMAIN_MAX_LENGTH {
        messages.push(max_length_message(SUBDOMAIN_MAX_LENGTH));
    }
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let matches = |label: &str| {
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if edge(first) && edge(last))
            && bytes.iter().all(|&b| edge(b) || b == b'-' || b == b'_')
    };
    if !value.split('.').all(matches) {
        messages.push(regex(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
             and must start and end with an alphanumeric character",
            &format!("{UNDERSCORED}(\\.{UNDERSCORED})*"),
            &["example.com"],
        ));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains() {
        for good in ["a", "_srv._tcp.a_b.c"] {
            assert_eq!(subdomain_with_underscore(good), Vec::<String>::new(), "{good}");
        }
        for bad in ["", "a..b", "-a", "A", "a-"] {
            assert_eq!(subdomain_with_underscore(bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn generated_names_differ() {
        let (a, b) = (generate("web-"), generate("web-"));
        assert!(a != b && a.starts_with("web-") && a.len() == 9, "{a} {b}");
    }
}

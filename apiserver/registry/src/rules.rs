//! Validation rules that many kinds share: enumerations, ranges, ports, paths, addresses, resource names, selectors.
//! Must not know any kind.

use std::net::IpAddr;

use keelson_objects::addresses::{is_cidr_in_legacy_field, is_ip_in_legacy_field};
use serde_json::Value;

use crate::{
    cause::{Causes, Path},
    fields::Fields,
    metadata, names,
    quantity::quantity,
};

/// A required text of a closed set.
pub(crate) fn one_of(value: &str, supported: &[&str], path: &Path<'_>, causes: &mut Causes) {
    if value.is_empty() {
        causes.required(path, "");
    } else if !supported.contains(&value) {
        causes.not_supported(path, value, supported);
    }
}

pub(crate) fn not_negative(holder: &Value, field: &str, path: &Path<'_>, causes: &mut Causes) {
    if let Some(value) = holder.int(field).filter(|value| *value < 0) {
        causes.invalid(&path.child(field), value, "must be greater than or equal to 0");
    }
}

pub(crate) fn port_number(number: i64, path: &Path<'_>, causes: &mut Causes) {
    for message in names::port_number(number) {
        causes.invalid(path, number, message);
    }
}

pub(crate) fn port_number_or_name(port: &Value, path: &Path<'_>, causes: &mut Causes) {
    match port {
        Value::String(name) => causes.syntax(path, name, names::port_name(name)),
        other => port_number(other.as_i64().unwrap_or(0), path, causes),
    }
}

/// A relative path that stays below where it starts.
pub(crate) fn local_descending_path(value: &str, path: &Path<'_>, causes: &mut Causes) {
    if value.starts_with('/') {
        causes.invalid(path, value, "must be a relative path");
    }
    no_backsteps(value, path, causes);
}

pub(crate) fn no_backsteps(value: &str, path: &Path<'_>, causes: &mut Causes) {
    if value.split('/').any(|part| part == "..") {
        causes.invalid(path, value, "must not contain '..'");
    }
}

/// A file name inside a volume: relative, and not beginning with `..`.
pub(crate) fn local_non_reserved_path(value: &str, path: &Path<'_>, causes: &mut Causes) {
    local_descending_path(value, path, causes);
    if value.starts_with("..") && !value.starts_with("../") {
        causes.invalid(path, value, "must not start with '..'");
    }
}

pub(crate) fn ip_address(value: &str, path: &Path<'_>, causes: &mut Causes) {
    causes.syntax(path, value, is_ip_in_legacy_field(value));
}

pub(crate) fn parse_ip(value: &str) -> Option<IpAddr> {
    value.parse().ok()
}

pub(crate) fn parse_cidr(value: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = value.split_once('/')?;
    let address = parse_ip(address)?;
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

pub(crate) fn cidr(value: &str, path: &Path<'_>, causes: &mut Causes) {
    causes.syntax(path, value, is_cidr_in_legacy_field(value));
}

/// Addresses that no endpoint can have.
pub(crate) fn non_special_ip(value: &str, path: &Path<'_>, causes: &mut Causes) {
    let Some(address) = parse_ip(value) else {
        causes.invalid(path, value, "must be a valid IP address");
        return;
    };
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        causes.invalid(path, value, format!("may not be unspecified ({value})"));
    }
    if address.is_loopback() {
        causes.invalid(path, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        causes.invalid(path, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        causes.invalid(path, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn is_standard_container_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

/// Counted by whole objects.
fn is_object_count(name: &str) -> bool {
    matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "resourcequotas"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "services.nodeports"
            | "services.loadbalancers"
    )
}

pub(crate) fn is_standard_resource(name: &str) -> bool {
    let computed = |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage");
    is_standard_container_resource(name)
        || is_object_count(name)
        || name == "storage"
        || name.strip_prefix("limits.").is_some_and(computed)
        || name.strip_prefix("requests.").is_some_and(|requested| {
            computed(requested) || requested == "storage" || requested.starts_with("hugepages-")
        })
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

pub(crate) fn overcommit_allowed(name: &str) -> bool {
    is_native(name) && !name.starts_with("hugepages-")
}

pub(crate) fn resource_name(name: &str, path: &Path<'_>, causes: &mut Causes) {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        causes.syntax(path, name, messages);
    } else if !name.contains('/') && !is_standard_resource(name) {
        causes.invalid(path, name, "must be a standard resource type or fully qualified");
    }
}

pub(crate) fn container_resource_name(name: &str, path: &Path<'_>, causes: &mut Causes) {
    resource_name(name, path, causes);
    if !name.contains('/') {
        if !is_standard_container_resource(name) {
            causes.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        causes.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// The amount as the client wrote it.
pub(crate) fn amount_text(amount: &Value) -> String {
    amount.as_str().map_or_else(|| amount.to_string(), str::to_owned)
}

/// An amount of a resource: not negative, and whole where the resource comes in pieces.
pub(crate) fn resource_amount(name: &str, amount: &Value, path: &Path<'_>, causes: &mut Causes) {
    let Some(quantity) = quantity(amount) else {
        causes.invalid(path, amount.clone(), "must be a valid resource quantity");
        return;
    };
    if quantity.is_negative() {
        causes.invalid(path, amount_text(amount), "must be greater than or equal to 0");
    }
    let counted = is_extended(name) || is_object_count(name);
    if counted && !quantity.is_integer() {
        causes.invalid(path, amount_text(amount), "must be an integer");
    }
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(selector: &Value, path: &Path<'_>, causes: &mut Causes) {
    metadata::label_map(selector.at("matchLabels"), &path.child("matchLabels"), causes);
    let path = path.child("matchExpressions");
    for (index, expression) in selector.list("matchExpressions").iter().enumerate() {
        let path = path.index(index);
        let values = expression.list("values");
        match expression.text("operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    causes.required(
                        &path.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    causes.forbidden(
                        &path.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            other => causes.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        let key = expression.text("key");
        causes.syntax(&path.child("key"), key, names::qualified_name(key));
        for (index, value) in expression.texts("values").enumerate() {
            causes.syntax(&path.child("values").index(index), value, names::label_value(value));
        }
    }
}

/// Whether a label selector selects nothing in particular.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    selector.entries("matchLabels").is_none_or(serde_json::Map::is_empty)
        && selector.list("matchExpressions").is_empty()
}

/// Whether a label selector matches labels. A selector that is not valid matches nothing.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    selector.pairs("matchLabels").all(|(key, value)| label(key) == Some(value))
        && selector.list("matchExpressions").iter().all(|expression| {
            let value = label(expression.text("key"));
            let listed = value.is_some_and(|value| expression.texts("values").any(|other| other == value));
            match expression.text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// An integer or a percentage (`25%`); the texts are upstream's.
pub(crate) fn int_or_percent(value: &Value, path: &Path<'_>, causes: &mut Causes) {
    match value {
        Value::String(text) => {
            if percent(value).is_none() {
                let message = names::regex(
                    "a valid percent string must be a numeric string followed by an ending '%'",
                    "[0-9]+%",
                    &["1%", "93%"],
                );
                causes.invalid(path, text.as_str(), message);
            }
        }
        other => {
            if let Some(number) = other.as_i64().filter(|number| *number < 0) {
                causes.invalid(path, number, "must be greater than or equal to 0");
            }
        }
    }
}

/// The number of a percentage text.
pub(crate) fn percent(value: &Value) -> Option<i64> {
    let digits = value.as_str()?.strip_suffix('%')?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors() {
        fn check(selector: Value, labels: Value, expected: bool) {
            assert_eq!(selects(&selector, &labels), expected, "{selector} {labels}");
        }
        check(json!({}), json!({}), true);
        check(json!({"matchLabels": {"a": "1"}}), json!({"a": "1", "b": "2"}), true);
        check(json!({"matchLabels": {"a": "1"}}), json!({}), false);
        check(
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
            json!({}),
            true,
        );
        check(json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}), json!(null), false);
        check(json!({"matchExpressions": [{"key": "a", "operator": "?"}]}), json!({"a": ""}), false);
    }

    #[test]
    fn addresses() {
        fn check(value: &str, expected: usize) {
            let mut causes = Causes::default();
            non_special_ip(value, &Path::new("ip"), &mut causes);
            assert_eq!(causes.len(), expected, "{value}");
        }
        check("10.0.0.1", 0);
        check("2001:db8::1", 0);
        for bad in ["0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "::1", "fe80::1", "x", "1.2.3"] {
            check(bad, 1);
        }
        assert!(parse_cidr("10.0.0.0/8").is_some());
        assert!(parse_cidr("10.0.0.0/33").is_none());
        assert!(parse_cidr("10.0.0.0").is_none());
    }

    #[test]
    fn resources() {
        fn check(name: &str, expected: usize) {
            let mut causes = Causes::default();
            container_resource_name(name, &Path::new("r"), &mut causes);
            assert_eq!(causes.len(), expected, "{name}");
        }
        check("cpu", 0);
        check("hugepages-2Mi", 0);
        check("example.com/gpu", 0);
        check("pods", 1);
        check("gpu", 2);
        let mut causes = Causes::default();
        resource_amount("example.com/gpu", &json!("1.5"), &Path::new("r"), &mut causes);
        resource_amount("cpu", &json!("-1"), &Path::new("r"), &mut causes);
        resource_amount("cpu", &json!("x"), &Path::new("r"), &mut causes);
        resource_amount("cpu", &json!(0.5), &Path::new("r"), &mut causes);
        assert_eq!(causes.len(), 3);
    }
}

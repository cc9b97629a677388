//! Whether two objects mean the same, as upstream's `equality.Semantic.DeepEqual` on decoded objects decides: what Go
//! leaves out when empty equals what is absent, and quantities are compared by amount. Must not know any kind.

use serde_json::{Map, Value};

use crate::quantity::quantity;

/// Maps of strings or quantities: Go does not tell an empty one from an absent one. Any other empty object is a
/// pointer to an empty struct (`emptyDir: {}`), which is not the same as none.
const MAPS: &[&str] = &[
    "labels",
    "annotations",
    "matchLabels",
    "nodeSelector",
    "data",
    "binaryData",
    "stringData",
    "limits",
    "requests",
    "overhead",
    "parameters",
    "capacity",
    "allocatable",
    "hard",
    "used",
    "options",
    "volumeAttributes",
    "allocatedResources",
];

/// Maps whose values are quantities.
const QUANTITIES: &[&str] =
    &["limits", "requests", "overhead", "capacity", "allocatable", "hard", "used", "allocatedResources"];

/// Booleans that are pointers in Go, so that false is not the same as absent.
const POINTER_FLAGS: &[&str] = &[
    "automountServiceAccountToken",
    "enableServiceLinks",
    "shareProcessNamespace",
    "hostUsers",
    "runAsNonRoot",
    "privileged",
    "readOnlyRootFilesystem",
    "allowPrivilegeEscalation",
    "setHostnameAsFQDN",
    "optional",
    "controller",
    "blockOwnerDeletion",
    "immutable",
    "suspend",
    "manualSelector",
    "allocateLoadBalancerNodePorts",
    "ready",
    "serving",
    "terminating",
    "started",
];

/// Strings that are pointers in Go.
const POINTER_TEXTS: &[&str] = &["storageClassName", "timeZone", "appProtocol", "loadBalancerClass", "value"];

/// Integers that are not pointers in Go, so that 0 is the same as absent.
const PLAIN_INTEGERS: &[&str] = &[
    "minReadySeconds",
    "hostPort",
    "initialDelaySeconds",
    "nodePort",
    "replicas",
    "observedGeneration",
    "updatedReplicas",
    "readyReplicas",
    "availableReplicas",
    "unavailableReplicas",
    "currentReplicas",
    "active",
    "succeeded",
    "failed",
    "weight",
    "value",
];

/// Equal in meaning.
pub(crate) fn equal(a: &Value, b: &Value) -> bool {
    equal_at("", a, b)
}

fn equal_at(key: &str, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            if QUANTITIES.contains(&key) {
                return same_entries(a, b, same_amount);
            }
            if MAPS.contains(&key) {
                return same_entries(a, b, |a, b| a == b);
            }
            same_fields(a, b) && b.iter().all(|(key, value)| a.contains_key(key) || empty(key, value))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_at("", a, b))
        }
        (Value::Null, other) | (other, Value::Null) => empty(key, other),
        (a, b) => a == b,
    }
}

fn same_fields(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.iter().all(|(key, value)| match b.get(key) {
        None => empty(key, value),
        Some(other) => equal_at(key, value, other),
    })
}

/// In a map an entry with an empty value is still an entry.
fn same_entries(a: &Map<String, Value>, b: &Map<String, Value>, same: fn(&Value, &Value) -> bool) -> bool {
    a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
}

fn same_amount(a: &Value, b: &Value) -> bool {
    a == b || matches!((quantity(a), quantity(b)), (Some(a), Some(b)) if a == b)
}

/// Whether a value under this key is what Go would have left out.
fn empty(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && MAPS.contains(&key),
        Value::Bool(flag) => !flag && !POINTER_FLAGS.contains(&key),
        Value::String(text) => text.is_empty() && !POINTER_TEXTS.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && PLAIN_INTEGERS.contains(&key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn meaning() {
        fn check(a: Value, b: Value, expected: bool) {
            assert_eq!((equal(&a, &b), equal(&b, &a)), (expected, expected), "{a} {b}");
        }
        check(
            json!({}),
            json!({"labels": {}, "containers": [], "nodeName": "", "paused": false, "x": null}),
            true,
        );
        check(json!({}), json!({"emptyDir": {}}), false);
        check(json!({}), json!({"runAsNonRoot": false}), false);
        check(json!({}), json!({"storageClassName": ""}), false);
        check(json!({}), json!({"terminationGracePeriodSeconds": 0}), false);
        check(json!({}), json!({"minReadySeconds": 0}), true);
        check(json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "1000m"}}), true);
        check(json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}), false);
        check(json!({"a": [{"b": 1, "nodeName": ""}]}), json!({"a": [{"b": 1}]}), true);
        check(json!({"a": [1, 2]}), json!({"a": [2, 1]}), false);
        check(json!({"labels": {"a": ""}}), json!({"labels": {}}), false);
    }
}

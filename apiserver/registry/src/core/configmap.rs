//! ConfigMaps: keys, the size limit of what they hold, and immutability.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer},
    fields::Fields,
    kind::{Column, Spec, name},
    names,
};

/// Bytes of all values together; a Secret has the same limit.
const SIZE_MAX: usize = 1 << 20;

pub(crate) const KIND: Spec = Spec {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &[name("cm")],
    storage_prefix: Some("configmaps"),
    columns: COLUMNS,
    strategy: &ConfigMap,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[NAME, integer("Data", "Number of entries, binary ones included."), AGE];

struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let (data, binary) = (Path::new("data"), Path::new("binaryData"));
        let mut size = 0;
        for (key, value) in object.entries("data").into_iter().flatten() {
            causes.syntax(&data.key(key), key, names::config_key(key));
            if object.at("binaryData").has(key) {
                causes.invalid(&data.key(key), key.as_str(), "duplicate of key present in binaryData");
            }
            size += value.as_str().map_or(0, str::len);
        }
        for (key, value) in object.entries("binaryData").into_iter().flatten() {
            causes.syntax(&binary.key(key), key, names::config_key(key));
            size += value.as_str().map_or(0, decoded_length);
        }
        if size > SIZE_MAX {
            // What upstream prints for the whole object.
            causes.too_long(&Path::new("[]"), SIZE_MAX);
        }
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        immutable(new, old, &["data", "binaryData"], &mut causes);
        causes.extend(self.validate_create(new));
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let count = |key| object.entries(key).map_or(0, serde_json::Map::len);
        vec![columns::name(object), (count("data") + count("binaryData")).into(), columns::age(object, now)]
    }
}

/// Once `immutable` is true, it and the named fields stay (config maps and secrets).
pub(super) fn immutable(new: &Value, old: &Value, fields: &[&str], causes: &mut Causes) {
    if !old.flag("immutable") {
        return;
    }
    if !new.flag("immutable") {
        causes.forbidden(&Path::new("immutable"), "field is immutable when `immutable` is set");
    }
    for field in fields {
        let entries = |object: &Value| object.entries(field).cloned().unwrap_or_default();
        if entries(new) != entries(old) {
            causes.forbidden(&Path::new(field), "field is immutable when `immutable` is set");
        }
    }
}

/// Bytes that a base64 text stands for.
pub(super) fn decoded_length(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take(2).filter(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(causes: Vec<Cause>, expected: &[&str]) {
        let fields: Vec<String> =
            causes.iter().map(|cause| format!("{} {}", cause.reason.as_str(), cause.field)).collect();
        assert_eq!(fields, expected);
    }

    #[test]
    fn keys_and_size() {
        let kind = KIND.kind();
        let create = |mut object: Value| {
            object["metadata"] = json!({"name": "a", "namespace": "b"});
            kind.validate_create(&object)
        };
        check(create(json!({"data": {"a.b": "x"}, "binaryData": {"c": "AAAA"}})), &[]);
        check(
            create(json!({"data": {"a b": "x", "..c": "y", "d": "z"}, "binaryData": {"d": ""}})),
            &["FieldValueInvalid data[a b]", "FieldValueInvalid data[..c]", "FieldValueInvalid data[d]"],
        );
        check(create(json!({"data": {"a": "x".repeat(SIZE_MAX + 1)}})), &["FieldValueTooLong []"]);
        check(create(json!({"data": {"a": "x".repeat(SIZE_MAX)}})), &[]);
    }

    #[test]
    fn immutability() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        check(ConfigMap.validate_update(&old, &old), &[]);
        check(
            ConfigMap.validate_update(&json!({"data": {"a": "2"}}), &old),
            &["FieldValueForbidden immutable", "FieldValueForbidden data"],
        );
        check(ConfigMap.validate_update(&json!({"data": {"a": "2"}}), &json!({"data": {"a": "1"}})), &[]);
    }

    #[test]
    fn rows() {
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "data": {"x": "1"}, "binaryData": {"y": "", "z": ""}});
        let now = "2024-01-01T00:02:30Z".parse().unwrap();
        assert_eq!(KIND.kind().row(&object, now), [json!("a"), json!(3), json!("2m30s")]);
        assert_eq!(decoded_length("AAA="), 2);
        assert_eq!(decoded_length("=="), 0);
    }
}

//! Reading and setting `metadata` of objects that are JSON values.
//!
//! Total: a missing or mistyped field reads as empty; setting a field on something that is no object does nothing.

use jiff::{Timestamp, Unit};
use serde_json::{Map, Value};

pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub fn is_deleting(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some_and(|value| !value.is_null())
}

/// The metadata map, made if it is missing.
pub fn metadata(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.as_object_mut()?.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(metadata) = metadata(object) {
        metadata.insert(field.into(), value.into());
    }
}

pub fn remove(object: &mut Value, field: &str) {
    if let Some(metadata) = metadata(object) {
        metadata.shift_remove(field);
    }
}

/// Takes a field over from `old`, or removes it where `old` has none.
pub fn keep(object: &mut Value, old: &Value, field: &str) {
    match old["metadata"].get(field) {
        Some(value) => set(object, field, value.clone()),
        None => remove(object, field),
    }
}

/// Now in the API's format: RFC 3339, whole seconds, UTC.
pub fn now() -> String {
    format_time(Timestamp::now())
}

pub fn format_time(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

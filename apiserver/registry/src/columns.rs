//! What cells of Tables have in common: ages, durations, joined lists. Must not know any kind.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{fields::Fields, kind::Column};

pub(crate) const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, r#type: "string", format: "", description, priority: 0 }
}

pub(crate) const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, r#type: "integer", format: "", description, priority: 0 }
}

pub(crate) const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, r#type: "string", format: "", description, priority: 1 }
}

/// The first column of nearly every Table.
pub(crate) const NAME: Column = Column {
    name: "Name",
    r#type: "string",
    format: "name",
    description: "Name of the object, unique among its kind in its namespace.",
    priority: 0,
};

pub(crate) const AGE: Column = Column {
    name: "Age",
    r#type: "string",
    format: "",
    description: "Time since the object was created.",
    priority: 0,
};

pub(crate) const CREATED_AT: Column = Column {
    name: "Created At",
    r#type: "string",
    format: "",
    description: "When the object was created.",
    priority: 0,
};

/// Columns of kinds that show nothing of their own.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];
/// As upstream's default printer has it: the creation time itself.
pub const NAME_AND_CREATED_AT: &[Column] = &[NAME, CREATED_AT];

/// Cells for [`NAME_AND_AGE`].
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// Cells for [`NAME_AND_CREATED_AT`].
pub fn name_and_created_at(object: &Value) -> Vec<Value> {
    vec![name(object), object.at("metadata").text("creationTimestamp").into()]
}

pub(crate) fn name(object: &Value) -> Value {
    object.at("metadata").text("name").into()
}

/// Age of the object, `<unknown>` while it has no creation time.
pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(object.at("metadata").text("creationTimestamp"), now).into()
}

/// Time since an RFC 3339 timestamp, `<unknown>` when there is none.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human_duration(seconds_between(time, now)),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Whole seconds, rounded towards zero as Go's durations are.
pub(crate) fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs()
}

/// Two to three significant figures of a duration in seconds.
pub(crate) fn human_duration(seconds: i64) -> String {
    keelson_objects::durations::human_duration(SignedDuration::from_secs(seconds))
}

/// Labels as `a=b,c=d` in order of key, `<none>` when there are none.
pub(crate) fn labels(object: &Value, key: &str) -> String {
    let mut pairs: Vec<String> = object.pairs(key).map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort_unstable();
    or_none(pairs.join(","))
}

/// A label selector as upstream's `metav1.FormatLabelSelector` writes it.
pub(crate) fn selector(selector: &Value) -> String {
    if selector.is_null() {
        return "<none>".to_owned();
    }
    let mut terms: Vec<(String, String)> =
        selector.pairs("matchLabels").map(|(k, v)| (k.to_owned(), format!("{k}={v}"))).collect();
    for expression in selector.list("matchExpressions") {
        let key = expression.text("key");
        let mut values: Vec<&str> = expression.texts("values").collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    or_none(terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(","))
}

pub(crate) fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

/// Names and images of a pod template's containers, for the wide columns of workloads.
pub(crate) fn containers_and_images(pod_spec: &Value) -> (String, String) {
    let join = |key| {
        let texts: Vec<&str> =
            pod_spec.list("containers").iter().map(|container| container.text(key)).collect();
        texts.join(",")
    };
    (join("name"), join("image"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors() {
        fn check(value: Value, expected: &str) {
            assert_eq!(selector(&value), expected);
        }
        check(Value::Null, "<none>");
        check(json!({}), "<none>");
        check(json!({"matchLabels": {"b": "1", "a": "2"}}), "a=2,b=1");
        check(
            json!({"matchLabels": {"z": "1"}, "matchExpressions": [
                {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "b", "operator": "DoesNotExist"}]}),
            "a in (x,y),!b,z=1",
        );
    }
}

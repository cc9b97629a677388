//! Reading and filling JSON objects without ever panicking: a missing field, or one of the wrong type, reads as Go's
//! zero value. Must not know any kind.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Reads fields of an object.
pub(crate) trait Fields {
    /// Null when absent.
    fn at(&self, key: &str) -> &Value;
    /// Empty when absent.
    fn text(&self, key: &str) -> &str;
    fn int(&self, key: &str) -> Option<i64>;
    /// False when absent.
    fn flag(&self, key: &str) -> bool;
    /// Empty when absent.
    fn list(&self, key: &str) -> &[Value];
    fn entries(&self, key: &str) -> Option<&Map<String, Value>>;
    /// Present and not null.
    fn has(&self, key: &str) -> bool;

    fn texts<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.list(key).iter().filter_map(Value::as_str)
    }

    /// A map of strings, such as labels.
    fn pairs<'a>(&'a self, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.entries(key).into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| (k.as_str(), v)))
    }
}

impl Fields for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or(&NULL)
    }

    fn text(&self, key: &str) -> &str {
        self.at(key).as_str().unwrap_or_default()
    }

    fn int(&self, key: &str) -> Option<i64> {
        self.at(key).as_i64()
    }

    fn flag(&self, key: &str) -> bool {
        self.at(key).as_bool().unwrap_or_default()
    }

    fn list(&self, key: &str) -> &[Value] {
        self.at(key).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn entries(&self, key: &str) -> Option<&Map<String, Value>> {
        self.at(key).as_object()
    }

    fn has(&self, key: &str) -> bool {
        !self.at(key).is_null()
    }
}

/// Fills fields of an object; on anything but an object (or null) it does nothing.
pub(crate) trait Fill {
    /// The object under `key`, made when absent.
    fn section(&mut self, key: &str) -> Option<&mut Value>;
    /// The object under `key` if it is there.
    fn part(&mut self, key: &str) -> Option<&mut Value>;
    fn items(&mut self, key: &str) -> &mut [Value];
    /// Sets an absent field.
    fn fill(&mut self, key: &str, value: impl Into<Value>);
    /// Sets a field that is absent or the empty string.
    fn fill_text(&mut self, key: &str, value: &str);
    fn put(&mut self, key: &str, value: impl Into<Value>);
    fn drop_field(&mut self, key: &str);
    /// Takes over what `from` has under `key`, absence too.
    fn copy(&mut self, key: &str, from: &Value);
}

impl Fill for Value {
    fn section(&mut self, key: &str) -> Option<&mut Value> {
        let map = self.as_object_mut()?;
        let entry = map.entry(key).or_insert(Value::Null);
        if entry.is_null() {
            *entry = Value::Object(Map::new());
        }
        entry.is_object().then_some(entry)
    }

    fn part(&mut self, key: &str) -> Option<&mut Value> {
        self.get_mut(key).filter(|value| value.is_object())
    }

    fn items(&mut self, key: &str) -> &mut [Value] {
        self.get_mut(key).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
    }

    fn fill(&mut self, key: &str, value: impl Into<Value>) {
        if let Some(map) = self.as_object_mut()
            && map.get(key).is_none_or(Value::is_null)
        {
            map.insert(key.to_owned(), value.into());
        }
    }

    fn fill_text(&mut self, key: &str, value: &str) {
        if let Some(map) = self.as_object_mut()
            && map.get(key).is_none_or(|old| old.is_null() || old.as_str() == Some(""))
        {
            map.insert(key.to_owned(), value.into());
        }
    }

    fn put(&mut self, key: &str, value: impl Into<Value>) {
        if let Some(map) = self.as_object_mut() {
            map.insert(key.to_owned(), value.into());
        }
    }

    fn drop_field(&mut self, key: &str) {
        if let Some(map) = self.as_object_mut() {
            // Order is part of what clients see: never swap the last field into the hole.
            map.shift_remove(key);
        }
    }

    fn copy(&mut self, key: &str, from: &Value) {
        match from.get(key) {
            Some(value) => self.put(key, value.clone()),
            None => self.drop_field(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wrong_types_read_as_absent() {
        let odd = json!({"spec": [1], "name": 5, "list": {"a": 1}, "flag": "true", "count": "7"});
        assert!(odd.at("spec").at("x").at("y").is_null());
        assert_eq!((odd.text("name"), odd.list("list").len(), odd.flag("flag")), ("", 0, false));
        assert_eq!(odd.int("count"), None);
        let mut odd = odd;
        assert!(odd.section("name").is_none());
        assert!(Value::Null.section("a").is_none());
        odd.fill("name", "kept");
        assert_eq!(odd["name"], 5);
    }
}

//! Labels as the scheduler keeps them: few enough to be searched one by one, and smaller than any map.

use std::collections::BTreeMap;

pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// The labels of an API object.
pub fn of(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// The value of a label.
pub fn get<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| &**value)
}

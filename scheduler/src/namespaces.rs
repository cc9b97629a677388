//! The labels of namespaces, by which affinity terms may say whose pods they mean.

use std::collections::HashMap;

use keelson_objects::labels::Selector;

use crate::cache::Change;

/// Keys and values; few enough to be searched one by one.
pub type Labels = Box<[(Box<str>, Box<str>)]>;

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| &**value)
}

#[derive(Debug, Default)]
pub struct Namespaces(HashMap<Box<str>, Labels>);

impl Namespaces {
    /// A namespace is new or has changed. Only pods that look at other pods can gain by it.
    pub fn set(&mut self, name: &str, labels: &Labels) -> Change {
        if self.0.get(name) == Some(labels) {
            return Change::Nothing;
        }
        self.0.insert(name.into(), labels.clone());
        Change::Placed
    }

    pub fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Whether a namespace has the labels that are asked for. One that is not known has none.
    pub fn is_selected(&self, name: &str, selector: &Selector) -> bool {
        selector.matches_with(|key| label(self.0.get(name)?, key))
    }
}

//! The labels of namespaces, by which affinity terms may say whose pods they mean.

use std::collections::HashMap;

use keelson_objects::labels::Selector;

use crate::cache::Change;
use crate::labels::{self, Labels};

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
        selector.matches_with(|key| labels::get(self.0.get(name)?, key))
    }
}

//! Label selectors, matched against the scheduler's own form of a pod.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_objects::labels::Selector;

use crate::pod::PodInfo;

/// A selector of pods by labels. An absent selector matches no pod, an empty one every pod, and one
/// that the API server would refuse none.
#[derive(Debug, Clone)]
pub struct PodSelector {
    selector: Selector,
    equals: Vec<(String, String)>,
}

impl PodSelector {
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        let selector = Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing());
        Self { selector, equals: Vec::new() }
    }

    /// Requires one more label.
    pub fn and_equals(mut self, key: &str, value: &str) -> Self {
        self.equals.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Whether it asks for nothing.
    pub fn is_everything(&self) -> bool {
        self.equals.is_empty() && self.selector.is_everything()
    }

    pub fn matches(&self, pod: &PodInfo) -> bool {
        self.selector.matches_with(|key| pod.label(key))
            && self.equals.iter().all(|(key, value)| pod.label(key) == Some(value))
    }
}

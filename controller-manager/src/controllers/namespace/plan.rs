//! What a namespace that is being deleted says about its end. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::NamespaceCondition;
use keelson_objects::times;

/// How long to wait before the next look at a namespace whose content takes its time to go: one that hangs on a
/// finalizer may do so for ever, and a look costs a request for every kind of object.
#[must_use]
pub fn recheck(since_deletion: SignedDuration) -> Duration {
    let share = Duration::try_from(since_deletion).unwrap_or_default() / 4;
    share.clamp(Duration::from_secs(1), Duration::from_secs(15))
}

/// What one attempt to empty a namespace came to.
#[derive(Debug, Default)]
pub struct Attempt {
    pub discovery_error: Option<String>,
    pub deletion_errors: Vec<String>,
    /// Objects left, by resource.
    pub remaining: BTreeMap<String, usize>,
    /// Objects left, by the finalizers that hold them.
    pub finalizers: BTreeMap<String, usize>,
}

impl Attempt {
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.discovery_error.is_none() && self.deletion_errors.is_empty() && self.remaining.is_empty()
    }

    /// The conditions in upstream's words: type, status, reason, message.
    fn findings(&self) -> [(&'static str, bool, &'static str, String); 5] {
        let list = |counts: &BTreeMap<String, usize>, text: &str, separator: &str| {
            counts
                .iter()
                .map(|(name, count)| format!("{name}{text}{count} resource instances"))
                .collect::<Vec<_>>()
                .join(separator)
        };
        let discovery = match &self.discovery_error {
            Some(error) => {
                let message = format!("Discovery failed for some groups, 1 failing: {error}");
                ("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", message)
            }
            None => {
                let message = "All resources successfully discovered".to_owned();
                ("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", message)
            }
        };
        let parsing = (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        );
        let content = if self.deletion_errors.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization".to_owned();
            ("NamespaceDeletionContentFailure", false, "ContentDeleted", message)
        } else {
            let message = format!(
                "Failed to delete all resource types, {} remaining: {}",
                self.deletion_errors.len(),
                self.deletion_errors.join(", ")
            );
            ("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", message)
        };
        let remaining = if self.remaining.is_empty() {
            (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".to_owned(),
            )
        } else {
            let message = format!("Some resources are remaining: {}", list(&self.remaining, " has ", ", "));
            ("NamespaceContentRemaining", true, "SomeResourcesRemain", message)
        };
        let finalizers = if self.finalizers.is_empty() {
            let message = "All content-preserving finalizers finished".to_owned();
            ("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message)
        } else {
            let what = list(&self.finalizers, " in ", ", ");
            let message = format!("Some content in the namespace has finalizers remaining: {what}");
            ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
        };
        [discovery, parsing, content, remaining, finalizers]
    }

    /// The conditions to write, unless `old` say the same.
    #[must_use]
    pub fn conditions(&self, old: &[NamespaceCondition], now: Timestamp) -> Option<Vec<NamespaceCondition>> {
        let mut conditions = old.to_vec();
        for (kind, holds, reason, message) in self.findings() {
            let status = if holds { "True" } else { "False" };
            let known = conditions.iter_mut().find(|condition| condition.type_ == kind);
            let since = known
                .as_ref()
                .filter(|condition| condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            let new = NamespaceCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: since.or_else(|| Some(times::api_time(now))),
            };
            match known {
                Some(known) => *known = new,
                None => conditions.push(new),
            }
        }
        (conditions != old).then_some(conditions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rare() {
        for (age, expected) in [(-5, 1), (0, 1), (20, 5), (60, 15), (86_400, 15)] {
            assert_eq!(recheck(SignedDuration::from_secs(age)).as_secs(), expected, "{age}");
        }
    }

    #[test]
    fn conditions_keep_their_times() {
        let at = |seconds| times::plus_seconds(times::parse("2026-11-20T12:00:00Z").unwrap(), seconds);
        let mut attempt = Attempt::default();
        attempt.remaining.insert("pods".into(), 2);
        attempt.finalizers.insert("example.com/hold".into(), 1);
        assert!(!attempt.is_complete());
        let first = attempt.conditions(&[], at(0)).unwrap();
        let message =
            |conditions: &[NamespaceCondition], index: usize| conditions[index].message.clone().unwrap();
        assert_eq!(message(&first, 3), "Some resources are remaining: pods has 2 resource instances");
        assert_eq!(
            message(&first, 4),
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert!(attempt.conditions(&first, at(5)).is_none());
        let done = Attempt::default();
        assert!(done.is_complete());
        let last = done.conditions(&first, at(9)).unwrap();
        assert_eq!(last[0].last_transition_time, first[0].last_transition_time);
        assert_eq!(
            (last[3].status.as_str(), last[3].last_transition_time.clone()),
            ("False", Some(times::api_time(at(9))))
        );
    }
}

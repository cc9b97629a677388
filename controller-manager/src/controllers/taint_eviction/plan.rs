//! When a pod must leave a tainted node. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use keelson_objects::{taints, times};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stays,
    LeavesAt(Timestamp),
}

/// `since`: when the pod and the taints first met, as far as taints do not tell when they came. A pod never leaves
/// sooner than its shortest toleration after `created`.
#[must_use]
pub fn fate(
    node_taints: &[Taint],
    tolerations: &[Toleration],
    created: Timestamp,
    since: Timestamp,
    now: Timestamp,
) -> Fate {
    let mut leaves: Option<Timestamp> = None;
    for taint in node_taints.iter().filter(|taint| taint.effect == taints::NO_EXECUTE) {
        let matching: Vec<&Toleration> =
            tolerations.iter().filter(|toleration| taints::tolerates(toleration, taint)).collect();
        if matching.is_empty() {
            return Fate::LeavesAt(now);
        }
        // Upstream: the shortest of those that match counts; one without a time sets no limit.
        let Some(seconds) = matching.iter().filter_map(|toleration| toleration.toleration_seconds).min()
        else {
            continue;
        };
        let came = taint.time_added.as_ref().map_or(since, |time| time.0).max(created);
        let at = times::plus_seconds(came, seconds.max(0));
        leaves = Some(leaves.map_or(at, |known| known.min(at)));
    }
    leaves.map_or(Fate::Stays, Fate::LeavesAt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates() {
        let at = |seconds| times::plus_seconds(times::parse("2026-11-20T12:00:00Z").unwrap(), seconds);
        let check =
            |taints: &[(&str, &str, Option<i64>)], tolerations: &[(&str, Option<i64>)], expected: Fate| {
                let taint = |(key, effect, added): &(&str, &str, Option<i64>)| Taint {
                    key: (*key).into(),
                    effect: (*effect).into(),
                    value: None,
                    time_added: added.map(|seconds| times::api_time(at(seconds))),
                };
                let toleration = |(key, seconds): &(&str, Option<i64>)| Toleration {
                    key: Some((*key).into()),
                    operator: Some("Exists".into()),
                    toleration_seconds: *seconds,
                    ..Toleration::default()
                };
                let taints: Vec<_> = taints.iter().map(taint).collect();
                let tolerations: Vec<_> = tolerations.iter().map(toleration).collect();
                assert_eq!(fate(&taints, &tolerations, at(0), at(50), at(100)), expected);
            };
        let never = Fate::Stays;
        check(&[], &[], never);
        check(&[("a", "NoSchedule", None)], &[], never);
        check(&[("a", "NoExecute", Some(10))], &[], Fate::LeavesAt(at(100)));
        check(&[("a", "NoExecute", Some(10))], &[("a", None)], never);
        check(&[("a", "NoExecute", Some(10))], &[("a", Some(300))], Fate::LeavesAt(at(310)));
        check(&[("a", "NoExecute", Some(-99))], &[("a", Some(300))], Fate::LeavesAt(at(300)));
        check(&[("a", "NoExecute", None)], &[("a", Some(300))], Fate::LeavesAt(at(350)));
        check(&[("a", "NoExecute", Some(10))], &[("a", Some(0))], Fate::LeavesAt(at(10)));
        check(
            &[("a", "NoExecute", Some(10)), ("b", "NoExecute", Some(0))],
            &[("a", Some(60)), ("b", Some(30))],
            Fate::LeavesAt(at(30)),
        );
        check(
            &[("a", "NoExecute", Some(10)), ("b", "NoExecute", None)],
            &[("a", Some(60))],
            Fate::LeavesAt(at(100)),
        );
    }
}

//! Taints of nodes and the tolerations of pods.

use k8s_openapi::api::core::v1::{Taint, Toleration};

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether a toleration covers a taint. An absent effect covers all effects; an absent key with `Exists` all keys.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

/// Whether one of the tolerations covers a taint.
#[must_use]
pub fn tolerated_by(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

/// The first taint, of those whose effect `counts`, that no toleration covers.
pub fn first_untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    counts: impl Fn(&str) -> bool,
) -> Option<&'a Taint> {
    taints.iter().find(|taint| counts(&taint.effect) && !tolerated_by(taint, tolerations))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations() {
        #[track_caller]
        fn check(toleration: [&str; 4], expected: bool) {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let [key, operator, value, effect] = toleration;
            let toleration = Toleration {
                key: some(key),
                operator: some(operator),
                value: some(value),
                effect: some(effect),
                toleration_seconds: None,
            };
            let taint = Taint {
                key: "k".into(),
                value: Some("v".into()),
                effect: NO_SCHEDULE.into(),
                time_added: None,
            };
            assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?}");
            let taints = [taint];
            let found = first_untolerated(&taints, &[toleration], |effect| effect != PREFER_NO_SCHEDULE);
            assert_eq!(found.is_none(), expected);
        }
        check(["k", "Equal", "v", NO_SCHEDULE], true);
        check(["k", "", "v", ""], true);
        check(["k", "Equal", "w", ""], false);
        check(["k", "Exists", "", ""], true);
        check(["", "Exists", "", ""], true);
        check(["", "Exists", "", NO_EXECUTE], false);
        check(["j", "Exists", "", ""], false);
        check(["k", "Other", "v", ""], false);
    }
}

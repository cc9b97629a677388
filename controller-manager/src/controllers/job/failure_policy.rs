//! What a Job's pod failure policy says of a pod that failed. Pure.

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement as OnExitCodes,
    PodFailurePolicyOnPodConditionsPattern as OnPodCondition, PodFailurePolicyRule,
};

use crate::pod::{Exit, PodInfo};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consequence {
    /// It counts towards the back-off limit; no rule matches, or one with `Count`.
    Counts,
    Ignored,
    FailsIndex,
    /// With the message of the condition.
    FailsJob(String),
}

fn matching_exit<'a>(rule: &OnExitCodes, pod: &'a PodInfo) -> Option<&'a Exit> {
    let named = |exit: &&Exit| rule.container_name.as_deref().is_none_or(|name| name == &*exit.container);
    let matches = |exit: &&Exit| {
        let listed = rule.values.contains(&exit.code);
        exit.code != 0 && if rule.operator == "NotIn" { !listed } else { listed }
    };
    pod.exits.iter().filter(named).find(matches)
}

/// Of conditions only those that are true are known.
fn matching_condition<'a>(patterns: &'a [OnPodCondition], pod: &PodInfo) -> Option<&'a str> {
    let is_true = |pattern: &&OnPodCondition| pattern.status.as_deref().unwrap_or("True") == "True";
    let has = |pattern: &&OnPodCondition| pod.has_condition(&pattern.type_);
    patterns.iter().filter(is_true).find(has).map(|pattern| pattern.type_.as_str())
}

fn reason(rule: &PodFailurePolicyRule, pod: &PodInfo) -> Option<String> {
    let name = format!("{}/{}", pod.meta.namespace, pod.meta.name);
    if let Some(codes) = &rule.on_exit_codes {
        let Exit { container, code, .. } = matching_exit(codes, pod)?;
        return Some(format!("Container {container} for pod {name} failed with exit code {code}"));
    }
    let kind = matching_condition(rule.on_pod_conditions.as_deref()?, pod)?;
    Some(format!("Pod {name} has condition {kind}"))
}

/// The first rule that matches decides.
#[must_use]
pub fn consequence(spec: &JobSpec, pod: &PodInfo) -> Consequence {
    let rules = spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        let Some(reason) = reason(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Consequence::Ignored,
            "FailIndex" => Consequence::FailsIndex,
            "FailJob" => Consequence::FailsJob(format!("{reason} matching FailJob rule at index {index}")),
            _ => Consequence::Counts,
        };
    }
    Consequence::Counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use serde_json::{Value, json};

    #[test]
    fn rules() {
        #[track_caller]
        fn check(rules: Value, expected: Consequence) {
            let spec: JobSpec =
                serde_json::from_value(json!({"template": {}, "podFailurePolicy": {"rules": rules}}))
                    .unwrap();
            let meta = Meta { namespace: "ns".into(), name: "p".into(), ..Meta::default() };
            let exit = |container: &str, code| Exit { container: container.into(), code, init: false };
            let pod = PodInfo {
                meta,
                exits: [exit("side", 0), exit("main", 42)].into(),
                conditions: ["DisruptionTarget".into()].into(),
                ..PodInfo::default()
            };
            assert_eq!(consequence(&spec, &pod), expected);
        }
        let codes = |action: &str, operator: &str, values: &[i32], container: Option<&str>| json!({"action": action, "onExitCodes": {"operator": operator, "values": values, "containerName": container}});
        let disruption =
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]});
        check(json!([]), Consequence::Counts);
        check(json!([codes("FailIndex", "In", &[42], None)]), Consequence::FailsIndex);
        check(json!([codes("FailIndex", "In", &[42], Some("side"))]), Consequence::Counts);
        check(json!([codes("FailIndex", "NotIn", &[42], None)]), Consequence::Counts);
        check(json!([codes("FailIndex", "NotIn", &[1], Some("main"))]), Consequence::FailsIndex);
        check(json!([codes("Ignore", "In", &[7], None), disruption]), Consequence::Ignored);
        check(
            json!([codes("Count", "In", &[42], None), codes("Ignore", "In", &[42], None)]),
            Consequence::Counts,
        );
        let message = "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 0";
        check(json!([codes("FailJob", "In", &[1, 42], None)]), Consequence::FailsJob(message.into()));
        let message = "Pod ns/p has condition DisruptionTarget matching FailJob rule at index 1";
        let fail = json!({"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]});
        check(json!([codes("Count", "In", &[7], None), fail]), Consequence::FailsJob(message.into()));
    }
}

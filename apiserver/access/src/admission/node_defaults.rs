//! TaintNodesByCondition and DefaultTolerationSeconds: new nodes take no pods until they are ready,
//! and pods stay on a lost node for a while only.

use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Admitted, Operation, admitted};
use crate::state::{items, text};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// New nodes get the taint `node.kubernetes.io/not-ready:NoSchedule`.
pub struct TaintNodesByCondition;

impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("", "nodes")
            && request.subresource.is_empty()
            && let Some(node) = request.object.as_deref_mut()
            && node.is_object()
        {
            let tainted = items(&node["spec"]["taints"])
                .iter()
                .any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule");
            if !tainted {
                push(node, "taints", json!({"key": NOT_READY, "effect": "NoSchedule"}));
            }
        }
        admitted()
    }
}

/// Pods tolerate an unready or unreachable node for a while (`--default-*-toleration-seconds`),
/// unless they say themselves for how long.
pub struct DefaultTolerationSeconds {
    pub not_ready_seconds: i64,
    pub unreachable_seconds: i64,
}

impl Default for DefaultTolerationSeconds {
    fn default() -> Self {
        Self { not_ready_seconds: 300, unreachable_seconds: 300 }
    }
}

impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("", "pods")
            && request.subresource.is_empty()
            && let Some(pod) = request.object.as_deref_mut()
            && pod["spec"].is_object()
        {
            for (key, seconds) in
                [(NOT_READY, self.not_ready_seconds), (UNREACHABLE, self.unreachable_seconds)]
            {
                let tolerated = items(&pod["spec"]["tolerations"]).iter().any(|toleration| {
                    [key, ""].contains(&text(&toleration["key"]))
                        && ["NoExecute", ""].contains(&text(&toleration["effect"]))
                });
                if !tolerated {
                    let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                        "tolerationSeconds": seconds});
                    push(pod, "tolerations", toleration);
                }
            }
        }
        admitted()
    }
}

fn push(object: &mut Value, field: &str, item: Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    match &mut object["spec"][field] {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate};
    use super::*;

    #[test]
    fn new_nodes_are_not_ready() {
        let check = |node: Value, expected: Value| {
            let given = Given { kind: "Node", resource: "nodes", name: "n", ..Given::default() };
            assert_eq!(mutate(&TaintNodesByCondition, &given, node).unwrap()["spec"]["taints"], expected);
        };
        let taint = json!({"key": NOT_READY, "effect": "NoSchedule"});
        check(json!({}), json!([taint]));
        check(json!({"spec": {"taints": [taint]}}), json!([taint]));
        let other = json!({"key": NOT_READY, "effect": "NoExecute"});
        check(json!({"spec": {"taints": [other]}}), json!([other, taint]));
    }

    #[test]
    fn pods_leave_lost_nodes_after_a_while() {
        let check = |tolerations: Value, expected: &[&str]| {
            let given = Given { kind: "Pod", resource: "pods", namespace: "ns", ..Given::default() };
            let pod = json!({"spec": {"tolerations": tolerations}});
            let pod = mutate(&DefaultTolerationSeconds::default(), &given, pod).unwrap();
            let added =
                items(&pod["spec"]["tolerations"]).iter().filter(|one| one["tolerationSeconds"] == 300);
            assert_eq!(added.map(|one| text(&one["key"])).collect::<Vec<_>>(), expected);
        };
        check(Value::Null, &[NOT_READY, UNREACHABLE]);
        check(json!([{"operator": "Exists"}]), &[]);
        check(json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"}]), &[UNREACHABLE]);
        check(json!([{"key": NOT_READY, "effect": "NoSchedule"}]), &[NOT_READY, UNREACHABLE]);
        check(json!([{"key": "other", "effect": "NoExecute"}]), &[NOT_READY, UNREACHABLE]);
    }
}

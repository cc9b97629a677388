//! Priority: resolves a pod's priority class to its number and preemption policy; keeps the global
//! default unique.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Admitted, Operation};
use crate::observed::{Freshness, Resource};
use crate::state::{PriorityClass, State, text};
use crate::status::Status;

pub struct Priority {
    pub state: Arc<State>,
    pub freshness: Arc<dyn Freshness>,
}

impl Priority {
    async fn resolve(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        let spec = &pod["spec"];
        let wanted = text(&spec["priorityClassName"]);
        let class = if wanted.is_empty() {
            self.state.default_priority_class().unwrap_or(PriorityClass {
                name: "".into(),
                value: 0,
                global_default: false,
                preemption_policy: Some("PreemptLowerPriority".into()),
            })
        } else {
            let found = match self.state.priority_class(wanted) {
                Some(class) => Some(class),
                None => {
                    self.freshness.catch_up(Resource::PriorityClasses).await;
                    self.state.priority_class(wanted)
                }
            };
            found.ok_or_else(|| {
                request.forbidden(format_args!("no PriorityClass with name {wanted} was found"))
            })?
        };
        if let Some(given) = spec["priority"].as_i64().filter(|given| *given != class.value) {
            return Err(request.forbidden(format_args!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {} from the given PriorityClass name",
                class.value
            )));
        }
        let given = spec["preemptionPolicy"].as_str();
        if let (Some(given), Some(policy)) = (given, class.preemption_policy.as_deref())
            && given != policy
        {
            return Err(request.forbidden(format_args!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        let spec = request.object.as_deref_mut().and_then(|pod| pod.get_mut("spec"));
        let Some(spec) = spec.filter(|spec| spec.is_object()) else { return Ok(()) };
        if !class.name.is_empty() {
            spec["priorityClassName"] = json!(class.name);
        }
        spec["priority"] = json!(class.value);
        if let Some(policy) = class.preemption_policy {
            spec["preemptionPolicy"] = json!(policy);
        }
        Ok(())
    }

    fn check_class(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let class = request.object.as_deref().unwrap_or(&Value::Null);
        if class["globalDefault"] != true {
            return Ok(());
        }
        match self.state.default_priority_class() {
            Some(default)
                if request.operation == Operation::Create
                    || *default.name != *text(&class["metadata"]["name"]) =>
            {
                Err(request.forbidden(format_args!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    default.name
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn mutate<'a>(&'a self, request: &'a mut AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("", "pods") && request.subresource.is_empty() && request.operation == Operation::Create
        {
            return Box::pin(self.resolve(request));
        }
        super::admitted()
    }

    fn validate<'a>(&'a self, request: &'a AdmissionRequest<'_>) -> Admitted<'a> {
        if request.is("scheduling.k8s.io", "priorityclasses") && request.subresource.is_empty() {
            return Box::pin(std::future::ready(self.check_class(request)));
        }
        super::admitted()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Given, mutate, validate};
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer};

    fn plugin(classes: &[Value]) -> Priority {
        let state = State::default();
        for class in classes {
            state.observe(Resource::PriorityClasses, Event::Upsert(class));
        }
        Priority { state: Arc::new(state), freshness: Arc::new(AlwaysFresh) }
    }

    fn class(name: &str, value: i64, default: bool, policy: &str) -> Value {
        json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": policy})
    }

    #[test]
    fn resolves_priorities() {
        let high = class("high", 1000, false, "Never");
        let default = class("usual", 7, true, "PreemptLowerPriority");
        let check = |classes: &[Value], spec: Value, expected: Result<Value, &str>| {
            let given =
                Given { kind: "Pod", resource: "pods", namespace: "ns", name: "p", ..Given::default() };
            match (mutate(&plugin(classes), &given, json!({"spec": spec})), expected) {
                (Ok(pod), Ok(expected)) => assert_eq!(pod["spec"], expected),
                (Err(status), Err(text)) => assert!(status.message.contains(text), "{}", status.message),
                (result, expected) => panic!("{result:?}, expected {expected:?}"),
            }
        };
        check(&[], json!({}), Ok(json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})));
        check(
            std::slice::from_ref(&default),
            json!({}),
            Ok(
                json!({"priorityClassName": "usual", "priority": 7, "preemptionPolicy": "PreemptLowerPriority"}),
            ),
        );
        check(
            &[high.clone(), default],
            json!({"priorityClassName": "high", "priority": 1000}),
            Ok(json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"})),
        );
        check(&[], json!({"priorityClassName": "high"}), Err("no PriorityClass with name high was found"));
        check(&[], json!({"priority": 5}), Err("the integer value of priority (5) must not be provided"));
        check(
            &[high],
            json!({"priorityClassName": "high", "preemptionPolicy": "PreemptLowerPriority"}),
            Err("the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided"),
        );
    }

    #[test]
    fn keeps_one_global_default() {
        let plugin = plugin(&[class("a", 1, true, "Never")]);
        let check = |operation, name: &str, default: bool, expected: bool| {
            let given = Given {
                operation,
                group: "scheduling.k8s.io",
                kind: "PriorityClass",
                resource: "priorityclasses",
                ..Given::default()
            };
            let result = validate(&plugin, &given, class(name, 1, default, "Never"));
            assert_eq!(result.is_ok(), expected, "{result:?}");
        };
        check(Operation::Create, "b", true, false);
        check(Operation::Create, "b", false, true);
        check(Operation::Update, "a", true, true);
        check(Operation::Update, "b", true, false);
    }
}

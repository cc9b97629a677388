//! The scale subresource (`autoscaling/v1 Scale`): a view of one workload's replicas. Must not know who scales.

use serde_json::{Value, json};

use crate::{
    Cause,
    cause::{Causes, Path},
    columns,
    fields::{Fields, Fill},
};

/// How a workload's selector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorForm {
    /// `metav1.LabelSelector`.
    LabelSelector,
    /// A plain map (replication controllers).
    Map,
}

/// The kind has `spec.replicas`, `status.replicas` and `spec.selector`, as all scalable built-in kinds do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleFields {
    pub selector: SelectorForm,
}

impl ScaleFields {
    /// The Scale of `object`, complete with kind, apiVersion and the object's own identity.
    pub fn read(&self, object: &Value) -> Value {
        let metadata = object.at("metadata");
        let mut identity = json!({});
        for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            if metadata.has(key) {
                identity.put(key, metadata.at(key).clone());
            }
        }
        let selector = object.at("spec").at("selector");
        let text = match self.selector {
            SelectorForm::LabelSelector => columns::selector(selector),
            SelectorForm::Map => columns::labels(object.at("spec"), "selector"),
        };
        let mut status = json!({ "replicas": object.at("status").int("replicas").unwrap_or(0) });
        if text != "<none>" && text != "<error>" {
            status.put("selector", text);
        }
        json!({
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": identity,
            "spec": { "replicas": object.at("spec").int("replicas").unwrap_or(0) },
            "status": status,
        })
    }

    /// Puts the replicas a Scale asks for into `object`; the caller has validated the Scale and compares versions.
    pub fn write(&self, object: &mut Value, scale: &Value) {
        let replicas = scale.at("spec").int("replicas").unwrap_or(0);
        if let Some(spec) = object.section("spec") {
            spec.put("replicas", replicas);
        }
    }

    /// What is wrong with a Scale that a client sent.
    pub fn validate(&self, scale: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        let replicas = scale.at("spec").int("replicas").unwrap_or(0);
        if replicas < 0 {
            causes.invalid(
                &Path::new("spec").child("replicas"),
                replicas,
                "must be greater than or equal to 0",
            );
        }
        causes.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let fields = ScaleFields { selector: SelectorForm::LabelSelector };
        let mut object = json!({"metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}}, "status": {"replicas": 2}});
        assert_eq!(
            fields.read(&object),
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
                "metadata": {"name": "a", "namespace": "b", "uid": "u"},
                "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=a"}})
        );
        fields.write(&mut object, &json!({"spec": {"replicas": 5}}));
        assert_eq!(object["spec"]["replicas"], 5);
        assert_eq!(fields.validate(&json!({"spec": {"replicas": -1}})).len(), 1);
        assert!(fields.validate(&json!({})).is_empty());
    }
}

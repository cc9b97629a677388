//! `--allow-privileged`: whether containers may be privileged is a setting of the server, so the registry's pure
//! validation cannot know it.

use serde_json::Value;

use super::Write;
use crate::status::Cause;

/// One cause for each privileged container of a pod or of a workload's template, where they are not allowed.
pub fn check(write: &Write<'_>, object: &Value) -> Vec<Cause> {
    if write.server.config.allow_privileged {
        return Vec::new();
    }
    let path: &[&str] = match write.served.kind.resource.kind.as_ref() {
        "Pod" => &["spec"],
        "PodTemplate" => &["template", "spec"],
        "Deployment" | "DaemonSet" | "Job" | "ReplicaSet" | "ReplicationController" | "StatefulSet" => {
            &["spec", "template", "spec"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template", "spec"],
        _ => return Vec::new(),
    };
    causes(object, path)
}

fn causes(object: &Value, path: &[&str]) -> Vec<Cause> {
    let spec = path.iter().fold(object, |value, field| &value[*field]);
    let mut causes = Vec::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            if container["securityContext"]["privileged"] == true {
                let field = format!("{}.{list}[{index}].securityContext.privileged", path.join("."));
                causes.push(Cause::forbidden(&field, "disallowed by cluster policy"));
            }
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn privileged_containers_are_named() {
        let spec = json!({"containers": [{"name": "a"}, {"securityContext": {"privileged": true}}]});
        let check = |object: Value, path: &[&str], expected: &[&str]| {
            let fields: Vec<String> = causes(&object, path).into_iter().map(|cause| cause.field).collect();
            assert_eq!(fields, expected);
        };
        check(json!({"spec": spec}), &["spec"], &["spec.containers[1].securityContext.privileged"]);
        check(
            json!({"spec": {"template": {"spec": spec}}}),
            &["spec", "template", "spec"],
            &["spec.template.spec.containers[1].securityContext.privileged"],
        );
        check(json!({}), &["spec"], &[]);
    }
}

//! Warnings about pods and pod templates: what is accepted and most likely not meant.

use std::collections::HashSet;

use serde_json::Value;

use crate::fields::Fields;

/// For a Pod.
pub(super) fn pod(pod: &Value) -> Vec<String> {
    let mut warnings = spec(pod.at("spec"), "spec");
    let grace = pod.at("spec").int("terminationGracePeriodSeconds").unwrap_or(0);
    if grace < 0 {
        warnings.push("spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1".to_owned());
    }
    warnings
}

/// For a PodTemplateSpec at `path`.
pub(crate) fn template(template: &Value, path: &str) -> Vec<String> {
    spec(template.at("spec"), &format!("{path}.spec"))
}

fn spec(spec: &Value, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, _) in spec.pairs("nodeSelector") {
        if let Some(message) = deprecated_label(key) {
            warnings.push(format!("{path}.nodeSelector[{key}]: {message}"));
        }
    }
    for (index, volume) in spec.list("volumes").iter().enumerate() {
        for source in [
            "gitRepo",
            "glusterfs",
            "rbd",
            "cephfs",
            "flexVolume",
            "storageos",
            "scaleIO",
            "flocker",
            "quobyte",
        ] {
            if volume.has(source) {
                warnings.push(format!("{path}.volumes[{index}].{source}: deprecated in v1.11 or later"));
            }
        }
    }
    for (list, ephemeral) in [("initContainers", false), ("containers", false), ("ephemeralContainers", true)]
    {
        for (index, container) in spec.list(list).iter().enumerate() {
            container_warnings(container, &format!("{path}.{list}[{index}]"), ephemeral, &mut warnings);
        }
    }
    duplicate_ports(spec, path, &mut warnings);
    warnings
}

fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

fn container_warnings(container: &Value, path: &str, ephemeral: bool, warnings: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for (index, variable) in container.list("env").iter().enumerate() {
        let name = variable.text("name");
        // A later value may refer to the earlier one of the same name: that is how lists are extended.
        let refers = variable.text("value").contains(&format!("$({name})"));
        if !seen.insert(name) && !refers {
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {}, which may be unintended",
                crate::cause::go_quote(name)
            ));
        }
    }
    if !ephemeral {
        for kind in ["limits", "requests"] {
            for name in ["memory", "ephemeral-storage"] {
                let amount = container.at("resources").at(kind).at(name);
                let Some(quantity) = crate::quantity::quantity(amount) else { continue };
                if !quantity.is_integer() {
                    let text = crate::rules::amount_text(amount);
                    warnings.push(format!(
                        "{path}.resources.{kind}[{name}]: fractional byte value {} is invalid, must be an integer",
                        crate::cause::go_quote(&text)
                    ));
                }
            }
        }
    }
}

fn duplicate_ports(spec: &Value, path: &str, warnings: &mut Vec<String>) {
    for (index, container) in spec.list("containers").iter().enumerate() {
        let ports = container.list("ports");
        for (port_index, port) in ports.iter().enumerate() {
            let same = |other: &&Value| {
                ["containerPort", "protocol", "hostPort", "hostIP"].iter().all(|f| other.at(f) == port.at(f))
            };
            if let Some(earlier) = ports[..port_index].iter().position(|other| same(&other)) {
                warnings.push(format!(
                    "{path}.containers[{index}].ports[{port_index}]: duplicate port definition with \
                     {path}.containers[{index}].ports[{earlier}]"
                ));
            }
        }
    }
}

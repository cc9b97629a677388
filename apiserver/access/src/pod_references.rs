//! Which other API objects a pod refers to by name.
//!
//! Used by the Node authorizer (what a node may read) and by admission (what mirror pods may not
//! do). Lists each reference that upstream's pod visitors list; the visitor may see a name twice.

use serde_json::Value;

use crate::state::{items, text};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Init, ordinary and ephemeral containers.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    CONTAINERS.iter().flat_map(|field| items(&pod["spec"][*field]))
}

pub(crate) fn volumes(pod: &Value) -> &[Value] {
    items(&pod["spec"]["volumes"])
}

/// Names of secrets, in the pod's namespace.
pub(crate) fn secrets<'a>(pod: &'a Value, mut visit: impl FnMut(&'a str)) {
    let mut name = |value: &'a Value| {
        if let Some(name) = value.as_str().filter(|name| !name.is_empty()) {
            visit(name);
        }
    };
    for reference in items(&pod["spec"]["imagePullSecrets"]) {
        name(&reference["name"]);
    }
    for container in containers(pod) {
        for source in items(&container["envFrom"]) {
            name(&source["secretRef"]["name"]);
        }
        for variable in items(&container["env"]) {
            name(&variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    for volume in volumes(pod) {
        name(&volume["secret"]["secretName"]);
        name(&volume["azureFile"]["secretName"]);
        name(&volume["csi"]["nodePublishSecretRef"]["name"]);
        for driver in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
            name(&volume[driver]["secretRef"]["name"]);
        }
        for source in items(&volume["projected"]["sources"]) {
            name(&source["secret"]["name"]);
        }
    }
}

/// Names of config maps, in the pod's namespace.
pub(crate) fn config_maps<'a>(pod: &'a Value, mut visit: impl FnMut(&'a str)) {
    let mut name = |value: &'a Value| {
        if let Some(name) = value.as_str().filter(|name| !name.is_empty()) {
            visit(name);
        }
    };
    for container in containers(pod) {
        for source in items(&container["envFrom"]) {
            name(&source["configMapRef"]["name"]);
        }
        for variable in items(&container["env"]) {
            name(&variable["valueFrom"]["configMapKeyRef"]["name"]);
        }
    }
    for volume in volumes(pod) {
        name(&volume["configMap"]["name"]);
        for source in items(&volume["projected"]["sources"]) {
            name(&source["configMap"]["name"]);
        }
    }
}

/// Names of persistent volume claims; those of ephemeral volumes are made of pod and volume.
pub(crate) fn claims(pod: &Value) -> impl Iterator<Item = String> {
    volumes(pod).iter().filter_map(|volume| {
        if let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            return Some(name.to_owned());
        }
        volume["ephemeral"]
            .is_object()
            .then(|| format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"])))
    })
}

/// Names of resource claims, as far as they are known.
pub(crate) fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let named = items(&pod["spec"]["resourceClaims"]).iter().map(|claim| &claim["resourceClaimName"]);
    let status = &pod["status"];
    let generated = items(&status["resourceClaimStatuses"]).iter().map(|claim| &claim["resourceClaimName"]);
    let extended = std::iter::once(&status["extendedResourceClaimStatus"]["resourceClaimName"]);
    named.chain(generated).chain(extended).filter_map(Value::as_str).filter(|name| !name.is_empty())
}

/// Audiences of the pod's projected service account tokens; the empty one is the API server.
pub(crate) fn token_audiences(pod: &Value) -> impl Iterator<Item = &str> {
    volumes(pod)
        .iter()
        .flat_map(|volume| items(&volume["projected"]["sources"]))
        .filter(|source| source["serviceAccountToken"].is_object())
        .map(|source| text(&source["serviceAccountToken"]["audience"]))
}

pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub(crate) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR_ANNOTATION].is_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_every_reference() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "init"}}}]}],
            "containers": [{"envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "cm-from"}}],
                "env": [{"valueFrom": {"configMapKeyRef": {"name": "cm-env"}}}, {"value": "x"}]}],
            "ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "debug"}}]}],
            "volumes": [{"secret": {"secretName": "vol"}}, {"configMap": {"name": "cm-vol"}},
                {"projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cm-proj"}},
                    {"serviceAccountToken": {"path": "t"}}, {"serviceAccountToken": {"audience": "vault"}}]}},
                {"persistentVolumeClaim": {"claimName": "data"}}, {"name": "tmp", "ephemeral": {}},
                {"rbd": {"secretRef": {"name": "rbd"}}}],
            "resourceClaims": [{"name": "x", "resourceClaimName": "gpu"}, {"name": "y"}]},
            "status": {"resourceClaimStatuses": [{"name": "y", "resourceClaimName": "p-y"}]}});
        let mut found = Vec::new();
        secrets(&pod, |name| found.push(name));
        assert_eq!(found, ["pull", "init", "from", "debug", "vol", "proj", "rbd"]);
        found.clear();
        config_maps(&pod, |name| found.push(name));
        assert_eq!(found, ["cm-from", "cm-env", "cm-vol", "cm-proj"]);
        assert_eq!(claims(&pod).collect::<Vec<_>>(), ["data", "p-tmp"]);
        assert_eq!(resource_claims(&pod).collect::<Vec<_>>(), ["gpu", "p-y"]);
        assert_eq!(token_audiences(&pod).collect::<Vec<_>>(), ["", "vault"]);
    }
}

//! Defaults of pods and of pod templates. A template gets what every PodSpec gets; some defaults materialise only in
//! the Pod itself, so that templates (and their hashes) stay as the user wrote them.

use serde_json::{Value, json};

use crate::fields::{Fields, Fill};

/// Kinds of volumes; a volume that names none is an emptyDir.
pub(super) const VOLUME_SOURCES: &[&str] = &[
    "hostPath",
    "emptyDir",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "projected",
    "portworxVolume",
    "scaleIO",
    "storageos",
    "csi",
    "ephemeral",
    "image",
];

/// The three lists of containers, with whether they are ephemeral.
pub(super) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod.
pub(super) fn pod(pod: &mut Value) {
    let Some(spec) = pod.section("spec") else { return };
    for list in ["containers", "initContainers"] {
        for container in spec.items(list) {
            requests_from_limits(container);
        }
    }
    pod_level_resources(spec);
    spec.fill("enableServiceLinks", true);
    if spec.flag("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for port in spec.items(list).iter_mut().flat_map(|container| container.items("ports")) {
                if port.int("hostPort").unwrap_or(0) == 0 {
                    let number = port.at("containerPort").clone();
                    port.put("hostPort", number);
                }
            }
        }
    }
    pod_spec(spec);
}

/// Defaults of a PodTemplateSpec.
pub(crate) fn template(template: &mut Value) {
    if let Some(spec) = template.section("spec") {
        pod_spec(spec);
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container.part("resources") else { return };
    let Some(limits) = resources.entries("limits").filter(|limits| !limits.is_empty()).cloned() else {
        return;
    };
    if let Some(requests) = resources.section("requests") {
        for (name, limit) in limits {
            requests.fill(&name, limit);
        }
    }
}

/// Requests of the pod as a whole, where its limits are given: the containers' sum where they ask, else the limit.
fn pod_level_resources(spec: &mut Value) {
    let Some(limits) = spec.at("resources").entries("limits").filter(|limits| !limits.is_empty()).cloned()
    else {
        return;
    };
    let sums = super::resources::requests(spec);
    let Some(requests) = spec.part("resources").and_then(|resources| resources.section("requests")) else {
        return;
    };
    for (name, sum) in sums {
        if matches!(name.as_str(), "cpu" | "memory") {
            requests.fill(&name, sum.to_string());
        }
    }
    for (name, limit) in limits {
        if matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-") {
            requests.fill(&name, limit);
        }
    }
}

fn pod_spec(spec: &mut Value) {
    spec.items("volumes").iter_mut().for_each(volume);
    for list in CONTAINER_LISTS {
        spec.items(list).iter_mut().for_each(container);
    }
    spec.fill_text("restartPolicy", "Always");
    spec.fill("terminationGracePeriodSeconds", 30);
    spec.fill_text("dnsPolicy", "ClusterFirst");
    spec.fill("securityContext", json!({}));
    spec.fill_text("schedulerName", "default-scheduler");
    // Two names for one thing in the wire format; the old one follows the new one.
    let account = spec.text("serviceAccountName").to_owned();
    match (account.is_empty(), spec.text("serviceAccount").is_empty()) {
        (false, _) => spec.put("serviceAccount", account),
        (true, false) => {
            let old = spec.text("serviceAccount").to_owned();
            spec.put("serviceAccountName", old);
        }
        (true, true) => {}
    }
}

fn volume(volume: &mut Value) {
    if !VOLUME_SOURCES.iter().any(|source| volume.has(source)) {
        volume.put("emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.part(source) {
            source.fill("defaultMode", 0o644);
            source.items("items").iter_mut().for_each(field_reference);
        }
    }
    if let Some(projected) = volume.part("projected") {
        for source in projected.items("sources") {
            if let Some(token) = source.part("serviceAccountToken") {
                token.fill("expirationSeconds", 3600);
            }
            if let Some(downward) = source.part("downwardAPI") {
                downward.items("items").iter_mut().for_each(field_reference);
            }
        }
    }
    if let Some(host_path) = volume.part("hostPath") {
        host_path.fill("type", "");
    }
    if let Some(image) = volume.part("image") {
        let policy = pull_policy(image.text("reference"));
        image.fill_text("pullPolicy", policy);
    }
    if let Some(spec) =
        volume.part("ephemeral").and_then(|e| e.part("volumeClaimTemplate")).and_then(|t| t.part("spec"))
    {
        spec.fill("volumeMode", "Filesystem");
    }
    for (source, field, value) in [
        ("iscsi", "iscsiInterface", json!("default")),
        ("rbd", "pool", json!("rbd")),
        ("rbd", "user", json!("admin")),
        ("rbd", "keyring", json!("/etc/ceph/keyring")),
        ("azureDisk", "cachingMode", json!("ReadWrite")),
        ("azureDisk", "kind", json!("Shared")),
        ("azureDisk", "fsType", json!("ext4")),
        ("azureDisk", "readOnly", json!(false)),
        ("scaleIO", "storageMode", json!("ThinProvisioned")),
        ("scaleIO", "fsType", json!("xfs")),
    ] {
        if let Some(source) = volume.part(source) {
            source.fill(field, value);
        }
    }
}

fn container(container: &mut Value) {
    for port in container.items("ports") {
        port.fill_text("protocol", "TCP");
    }
    for variable in container.items("env") {
        if let Some(from) = variable.part("valueFrom") {
            field_reference(from);
            if let Some(file) = from.part("fileKeyRef") {
                file.fill("optional", false);
            }
        }
    }
    container.fill("resources", json!({}));
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.part(name) {
            for (field, value) in [
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ] {
                if probe.int(field).unwrap_or(0) == 0 {
                    probe.put(field, value);
                }
            }
            http_get(probe);
            if let Some(grpc) = probe.part("grpc") {
                grpc.fill("service", "");
            }
        }
    }
    if let Some(lifecycle) = container.part("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = lifecycle.part(hook) {
                http_get(hook);
            }
        }
    }
    container.fill_text("terminationMessagePath", "/dev/termination-log");
    container.fill_text("terminationMessagePolicy", "File");
    let policy = pull_policy(container.text("image"));
    container.fill_text("imagePullPolicy", policy);
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.part("httpGet") {
        get.fill_text("path", "/");
        get.fill_text("scheme", "HTTP");
    }
}

/// `fieldRef` under an environment variable's source or a downward API item.
fn field_reference(holder: &mut Value) {
    if let Some(reference) = holder.part("fieldRef") {
        reference.fill_text("apiVersion", "v1");
    }
}

/// `latest`, said or unsaid, is always pulled. A digest without a tag is a fixed image.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
        None if digest => "IfNotPresent",
        // A name that does not parse has no tag: it will be refused for other reasons.
        None if image.is_empty() => "IfNotPresent",
        None => "Always",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        fn check(image: &str, expected: &str) {
            assert_eq!(pull_policy(image), expected, "{image}");
        }
        check("nginx", "Always");
        check("nginx:latest", "Always");
        check("nginx:1", "IfNotPresent");
        check("localhost:5000/nginx", "Always");
        check("localhost:5000/nginx:1", "IfNotPresent");
        check("nginx@sha256:0123", "IfNotPresent");
        check("", "IfNotPresent");
    }

    #[test]
    fn a_small_pod_becomes_whole() {
        let mut object = json!({"spec": {"containers": [{"name": "a", "image": "busybox:1",
            "ports": [{"containerPort": 80}],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 80}}}],
            "hostNetwork": true, "serviceAccountName": "x",
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}});
        pod(&mut object);
        let whole = json!({"spec": {"containers": [{"name": "a", "image": "busybox:1",
            "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}}}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent"}],
            "hostNetwork": true, "serviceAccountName": "x", "serviceAccount": "x",
            "volumes": [{"name": "e", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "p", "projected": {"defaultMode": 420,
                    "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}],
            "enableServiceLinks": true, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "securityContext": {}, "schedulerName": "default-scheduler"}});
        assert_eq!(object, whole);
        pod(&mut object);
        assert_eq!(object, whole, "defaults are idempotent");
    }

    #[test]
    fn templates_keep_to_themselves() {
        let mut object =
            json!({"spec": {"containers": [{"image": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        template(&mut object);
        assert!(!object.at("spec").has("enableServiceLinks"));
        assert!(!object["spec"]["containers"][0]["resources"].has("requests"));
        for mut odd in [
            json!(null),
            json!([]),
            json!({"spec": 1}),
            json!({"spec": {"containers": {"a": 1}, "volumes": [1]}}),
        ] {
            pod(&mut odd);
        }
    }
}

//! Pods as clients send them: what is refused, in which words, and what an update may change.

use serde_json::{Value, json};

use super::KIND;
use crate::{Cause, Scope};

fn whole(spec: Value) -> Value {
    let kind = KIND.kind();
    let mut pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "1"}, "spec": spec});
    kind.default(&mut pod);
    kind.prepare_for_create(&mut pod);
    pod
}

fn simple() -> Value {
    whole(json!({"containers": [{"name": "c", "image": "i:1"}]}))
}

fn texts(causes: Vec<Cause>) -> Vec<String> {
    causes.iter().map(Cause::to_string).collect()
}

fn check_spec(spec: Value, expected: &[&str]) {
    assert_eq!(texts(KIND.kind().validate_create(&whole(spec.clone()))), expected, "{spec}");
}

/// One container with these fields added.
fn check(container: Value, expected: &[&str]) {
    let mut whole = json!({"name": "c", "image": "i:1"});
    for (key, value) in container.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    check_spec(
        json!({"containers": [whole], "volumes": [{"name": "v"}, {"name": "p", "persistentVolumeClaim": {"claimName": "x"}}]}),
        expected,
    );
}

#[test]
fn a_new_pod() {
    let pod = simple();
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(pod["metadata"]["generation"], 1);
    assert_eq!(KIND.kind().validate_create(&pod), []);
    let gated =
        whole(json!({"containers": [{"name": "c", "image": "i"}], "schedulingGates": [{"name": "a/b"}]}));
    assert_eq!(gated["status"]["conditions"][0]["reason"], "SchedulingGated");
}

#[test]
fn containers() {
    check(json!({}), &[]);
    check(json!({"image": ""}), &["spec.containers[0].image: Required value"]);
    check(
        json!({"image": " i"}),
        &["spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace"],
    );
    check(
        json!({"name": "a.b"}),
        &["spec.containers[0].name: Invalid value: \"a.b\": must not contain dots"],
    );
    check(
        json!({"imagePullPolicy": "Sometimes"}),
        &[
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    check(
        json!({"ports": [{"containerPort": 70000}]}),
        &[
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    );
    check(
        json!({"ports": [{"containerPort": 1, "hostPort": 2}, {"containerPort": 3, "hostPort": 2}]}),
        &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//2\""],
    );
    check(
        json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
        &[
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ],
    );
    check(
        json!({"resources": {"requests": {"example.com/gpu": "1"}}}),
        &[
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ],
    );
    check(
        json!({"resources": {"limits": {"gpu": "1"}}}),
        &[
            "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
        ],
    );
    check_spec(json!({}), &["spec.containers: Required value"]);
    check_spec(
        json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}),
        &["spec.containers[1].name: Duplicate value: \"c\""],
    );
    check_spec(
        json!({"containers": [{"name": "c", "image": "i"}],
            "initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]}),
        &[
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ],
    );
}

#[test]
fn environment_and_mounts() {
    check(
        json!({"env": [{"name": "A", "value": "$(B)"}, {"name": "a b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}]}),
        &[],
    );
    check(json!({"env": [{"name": ""}]}), &["spec.containers[0].env[0].name: Required value"]);
    check(
        json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
        &[
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \
         \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \
         \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ],
    );
    check(
        json!({"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        &[
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ],
    );
    check(
        json!({"envFrom": [{}]}),
        &[
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ],
    );
    check(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "gone", "mountPath": "/a"}]}),
        &[
            "spec.containers[0].volumeMounts[1].name: Not found: \"gone\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
        ],
    );
    check(
        json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "../x"}]}),
        &["spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'"],
    );
    check(json!({"volumeDevices": [{"name": "p", "devicePath": "/dev/x"}]}), &[]);
}

#[test]
fn probes_and_security() {
    check(
        json!({"livenessProbe": {}}),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        json!({"livenessProbe": {"tcpSocket": {"port": "http"}, "successThreshold": 2}}),
        &["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    check(
        json!({"readinessProbe": {"httpGet": {"port": 0}, "exec": {"command": ["a"]}}}),
        &["spec.containers[0].readinessProbe.httpGet: Forbidden: may not specify more than 1 handler type"],
    );
    check(
        json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
        &[
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ],
    );
    check(
        json!({"securityContext": {"runAsUser": -1}}),
        &[
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ],
    );
    check(
        json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}}),
        &[
            "spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
        ],
    );
}

#[test]
fn volumes_and_scheduling() {
    let with = |field: &str, value: Value| {
        let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
        spec[field] = value;
        spec
    };
    check_spec(
        with("volumes", json!([{"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}}])),
        &["spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type"],
    );
    check_spec(
        with(
            "volumes",
            json!([{"name": "a", "configMap": {"name": "c", "items": [{"key": "k", "path": "/x"}]}}]),
        ),
        &["spec.volumes[0].configMap.items[0].path: Invalid value: \"/x\": must be a relative path"],
    );
    check_spec(
        with(
            "volumes",
            json!([{"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 5}}]}}]),
        ),
        &[
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    );
    check_spec(
        with("tolerations", json!([{"operator": "Equal", "effect": "NoExecute"}])),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ],
    );
    check_spec(with("affinity", json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": ""}]}})).clone(), &[
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must be non-empty",
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
    ]);
    check_spec(
        with("restartPolicy", json!("Sometimes")),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    check_spec(
        with("dnsPolicy", json!("None")),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    check_spec(
        with("ephemeralContainers", json!([{"name": "e", "image": "i"}])),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
}

fn update(scope: Scope, change: impl FnOnce(&mut Value)) -> (Value, Vec<String>) {
    let kind = KIND.kind();
    let old = simple();
    let mut new = old.clone();
    change(&mut new);
    kind.prepare_for_update(scope, &mut new, &old);
    let causes = kind.validate_update(scope, &new, &old);
    (new, texts(causes))
}

#[test]
fn updates() {
    let (new, causes) = update(Scope::Main, |pod| pod["spec"]["containers"][0]["image"] = json!("i:2"));
    assert_eq!((&new["metadata"]["generation"], causes.len()), (&json!(2), 0));
    let (_, causes) = update(Scope::Main, |pod| pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]));
    assert_eq!(causes.len(), 0);
    let (_, causes) = update(Scope::Main, |pod| pod["spec"]["activeDeadlineSeconds"] = json!(5));
    assert_eq!(causes.len(), 0);
    let (_, causes) = update(Scope::Main, |pod| pod["spec"]["hostname"] = json!("h"));
    assert!(
        causes[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        ),
        "{causes:?}"
    );
    assert!(
        causes[0].contains("(allow it to be set to 1 if it was previously negative)\n@@ -")
            && causes[0].lines().filter(|line| line.starts_with('+')).eq(["+  \"hostname\": \"h\","])
            && !causes[0].lines().any(|line| line.starts_with('-')),
        "{causes:?}"
    );
    let (_, causes) = update(Scope::Main, |pod| pod["spec"]["containers"] = json!([]));
    assert!(
        causes
            .contains(&"spec.containers: Forbidden: pod updates may not add or remove containers".to_owned())
    );
    let (_, causes) = update(Scope::Main, |pod| pod["metadata"]["name"] = json!("other"));
    assert_eq!(causes, ["metadata.name: Invalid value: \"other\": field is immutable"]);
}

#[test]
fn status_updates() {
    let (new, causes) = update(Scope::Status, |pod| {
        pod["spec"]["nodeName"] = json!("n");
        pod["status"] = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]});
    });
    assert_eq!(causes, Vec::<String>::new());
    assert_eq!((new["spec"].get("nodeName"), &new["status"]["qosClass"]), (None, &json!("BestEffort")));
    let (_, causes) = update(Scope::Status, |pod| pod["status"]["qosClass"] = json!("Guaranteed"));
    assert_eq!(causes, ["status.qosClass: Invalid value: \"Guaranteed\": field is immutable"]);
}

#[test]
fn ephemeral_containers_and_resize() {
    let (new, causes) = update(Scope::EphemeralContainers, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File"}]);
        pod["spec"]["hostname"] = json!("ignored");
        pod["metadata"]["labels"] = json!({"stolen": "x"});
        pod["metadata"]["finalizers"] = json!(["a/b"]);
    });
    assert_eq!((causes, new["spec"].get("hostname")), (vec![], None));
    assert_eq!((new["metadata"]["labels"].get("stolen"), new["metadata"].get("finalizers")), (None, None));
    let (_, causes) = update(Scope::EphemeralContainers, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([{"name": "c", "image": "i", "imagePullPolicy": "Always",
            "terminationMessagePolicy": "File", "ports": [{"containerPort": 1, "protocol": "TCP"}]}]);
    });
    assert_eq!(
        causes,
        [
            "spec.ephemeralContainers[0].name: Duplicate value: \"c\"",
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
        ]
    );
    let (_, causes) = update(Scope::Resize, |pod| {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
    });
    assert_eq!(
        causes,
        ["spec: Invalid value: \"BestEffort\": Pod QOS Class may not change as a result of resizing",]
    );
}

#[test]
fn grace() {
    fn check(pod: Value, requested: Option<i64>, expected: i64) {
        assert_eq!(KIND.kind().grace_period(&pod, requested), Some(expected), "{pod}");
    }
    let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
    check(running.clone(), None, 30);
    check(running.clone(), Some(5), 5);
    check(running.clone(), Some(-1), 1);
    check(json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0);
    check(json!({"spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}}), Some(5), 0);
}

//! What pods find in their environment and their volumes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own functions fail as it does"
)]

use e2e::api::Api;
use e2e::kubectl::Kubectl;
use e2e::pods::{LONG, container, ended, pod, ready, shell, until_pod};
use e2e::wait::{until, until_contains};
use http::Method;
use serde_json::json;
use std::time::Duration;

#[test]
fn environment_comes_from_config_maps_secrets_and_the_pod_itself() {
    let kubectl = Kubectl::shared("env");
    kubectl.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
        "--from-literal=SIZE=large",
    ]);
    kubectl.run(&["create", "secret", "generic", "login", "--from-literal=password=hunter2"]);
    let mut asker = pod("asker", "env | sort");
    asker["spec"]["restartPolicy"] = json!("Never");
    let main = &mut asker["spec"]["containers"][0];
    main["resources"] = json!({"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "10m"}});
    main["envFrom"] = json!([
        {"configMapRef": {"name": "settings"}, "prefix": "ALL_"},
        {"secretRef": {"name": "absent", "optional": true}},
    ]);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    main["env"] = json!([
        {"name": "PLAIN", "value": "plain"},
        {"name": "BOTH", "value": "$(PLAIN) and $(COLOR), not $$(PLAIN) or $(NOTHING)"},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
        {"name": "AFTER", "value": "$(COLOR)"},
        {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "no", "optional": true}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
        {"name": "POD", "valueFrom": field("metadata.name")},
        {"name": "NAMESPACE", "valueFrom": field("metadata.namespace")},
        {"name": "LABEL", "valueFrom": field("metadata.labels['app']")},
        {"name": "NODE", "valueFrom": field("spec.nodeName")},
        {"name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
        {"name": "POD_IP", "valueFrom": field("status.podIP")},
        {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "REQUEST", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
    ]);
    kubectl.apply(&asker.to_string());
    let pod = ended(&kubectl, "asker");
    assert_eq!(pod["status"]["phase"], "Succeeded", "{}", pod["status"]);
    let log = kubectl.run(&["logs", "asker"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let expected = [
        ("ALL_color", "blue".to_owned()),
        ("ALL_SIZE", "large".to_owned()),
        ("PLAIN", "plain".to_owned()),
        // COLOR comes later in the list, so that it is not known yet.
        ("BOTH", "plain and $(COLOR), not $(PLAIN) or $(NOTHING)".to_owned()),
        ("AFTER", "blue".to_owned()),
        ("PASSWORD", "hunter2".to_owned()),
        ("POD", "asker".to_owned()),
        ("NAMESPACE", kubectl.namespace.clone()),
        ("LABEL", "asker".to_owned()),
        ("NODE", text(&pod["spec"]["nodeName"])),
        ("ACCOUNT", "default".to_owned()),
        ("POD_IP", text(&pod["status"]["podIP"])),
        ("HOST_IP", text(&pod["status"]["hostIP"])),
        ("CPU", "2".to_owned()),
        ("MEMORY", "64".to_owned()),
        ("REQUEST", "10".to_owned()),
        ("HOSTNAME", "asker".to_owned()),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT", "443".to_owned()),
    ];
    for (name, value) in expected {
        let line = format!("{name}={value}");
        assert!(log.lines().any(|found| found == line), "{line} in\n{log}");
    }
    assert!(!log.contains("ABSENT="), "{log}");
}

#[test]
fn a_pod_waits_for_what_its_environment_names() {
    let kubectl = Kubectl::shared("missing");
    let mut asker = pod("asker", "echo $COLOR");
    asker["spec"]["restartPolicy"] = json!("Never");
    asker["spec"]["containers"][0]["env"] =
        json!([{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "color"}}}]);
    kubectl.apply(&asker.to_string());
    let waiting = until_pod(&kubectl, "asker", "the container waits for its config map", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(message.contains("configmap \\\"later\\\" not found"), "{message}");
    kubectl.run(&["create", "configmap", "later", "--from-literal=color=green"]);
    assert_eq!(ended(&kubectl, "asker")["status"]["phase"], "Succeeded");
    assert_eq!(kubectl.run(&["logs", "asker"]), "green\n");
}

#[test]
fn volumes_of_every_kind_are_there_and_writable_where_they_should_be() {
    let kubectl = Kubectl::shared("volumes");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("from-host"), "host").unwrap();
    kubectl.run(&["create", "configmap", "files", "--from-literal=a=1", "--from-literal=b=2"]);
    kubectl.run(&["create", "secret", "generic", "keys", "--from-literal=key=private"]);
    let mut user = pod("user", "echo kept > /shared/main; sleep 3600");
    user["metadata"]["annotations"] = json!({"note": "first line"});
    user["spec"]["volumes"] = json!([
        {"name": "shared", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        {"name": "host", "hostPath": {"path": directory.path(), "type": "Directory"}},
        {"name": "files", "configMap": {"name": "files", "items": [{"key": "a", "path": "deep/a"}]}},
        {"name": "all", "configMap": {"name": "files"}},
        {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
        {"name": "pod", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}]}},
        {"name": "both", "projected": {"sources": [
            {"configMap": {"name": "files", "items": [{"key": "b", "path": "b"}]}},
            {"secret": {"name": "keys", "items": [{"key": "key", "path": "secret/key"}]}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
    ]);
    user["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "shared", "mountPath": "/shared"},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "host", "mountPath": "/host"},
        {"name": "host", "mountPath": "/host-read-only", "readOnly": true},
        {"name": "files", "mountPath": "/files"},
        {"name": "all", "mountPath": "/one/a", "subPath": "a"},
        {"name": "keys", "mountPath": "/keys", "readOnly": true},
        {"name": "pod", "mountPath": "/pod"},
        {"name": "both", "mountPath": "/both"},
    ]);
    let mut other = container("other", "sleep 3600");
    other["volumeMounts"] = json!([{"name": "shared", "mountPath": "/data"}]);
    user["spec"]["containers"].as_array_mut().unwrap().push(other);
    kubectl.apply(&user.to_string());
    ready(&kubectl, "user");

    let check = |line: &str, expected: &str| {
        let output = kubectl.run(&["exec", "user", "-c", "main", "--", "sh", "-c", line]);
        assert_eq!(output.trim_end(), expected, "{line}");
    };
    until_contains("the containers share a volume", LONG, "kept", || {
        kubectl.ask(&["exec", "user", "-c", "other", "--", "cat", "/data/main"])
    });
    check("grep -c ' /memory tmpfs ' /proc/mounts", "1");
    check("cat /host/from-host; echo back > /host/from-pod", "host");
    assert_eq!(std::fs::read_to_string(directory.path().join("from-pod")).unwrap(), "back\n");
    check("echo no > /host-read-only/x 2>/dev/null || echo refused", "refused");
    check("ls /files; cat /files/deep/a", "deep\n1");
    check("cat /one/a", "1");
    check("cat /keys/key; stat -L -c ' %a' /keys/key", "private 400");
    check("cat /pod/labels", "app=\"user\"");
    check("grep ^note /pod/annotations", "note=\"first line\"");
    check("cat /both/b /both/secret/key /both/name", "2privateuser");
    check("stat -f -c %T /keys", "tmpfs");

    // What the pod says of itself follows it while it runs.
    kubectl.run(&["label", "pod", "user", "color=red"]);
    until_contains("the label reaches the volume", LONG * 2, "color=\"red\"", || {
        kubectl.ask(&["exec", "user", "-c", "main", "--", "cat", "/pod/labels"])
    });
}

#[test]
fn a_changed_config_map_reaches_running_pods() {
    let kubectl = Kubectl::shared("update");
    kubectl.run(&["create", "configmap", "page", "--from-literal=text=old", "--from-literal=other=same"]);
    kubectl.run(&["create", "secret", "generic", "word", "--from-literal=word=old"]);
    let mut reader = pod("reader", "sleep 3600");
    reader["spec"]["volumes"] = json!([
        {"name": "page", "configMap": {"name": "page"}}, {"name": "word", "secret": {"secretName": "word"}},
    ]);
    reader["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "page", "mountPath": "/page"}, {"name": "word", "mountPath": "/word"}]);
    kubectl.apply(&reader.to_string());
    ready(&kubectl, "reader");
    assert_eq!(shell(&kubectl, "reader", "cat /page/text /word/word").unwrap(), "oldold");
    kubectl.run(&["patch", "configmap", "page", "-p", r#"{"data": {"text": "new"}}"#]);
    kubectl.run(&["patch", "secret", "word", "-p", r#"{"stringData": {"word": "new"}}"#]);
    // A kubelet looks at a running pod again within its syncFrequency of a minute, and some.
    until_contains("the new text", Duration::from_secs(120), "newnewsame", || {
        shell(&kubectl, "reader", "cat /page/text /word/word /page/other")
    });
    assert_eq!(
        kubectl.object(&["pod", "reader"]).unwrap()["status"]["containerStatuses"][0]["restartCount"],
        0
    );
}

#[test]
fn a_pods_token_is_accepted_by_the_api_server() {
    let kubectl = Kubectl::shared("token");
    let mut holder = pod("holder", "sleep 3600");
    holder["spec"]["volumes"] = json!([{"name": "tokens", "projected": {"sources": [
        {"serviceAccountToken": {"path": "api", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
    ]}}]);
    holder["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "tokens", "mountPath": "/tokens"}]);
    kubectl.apply(&holder.to_string());
    ready(&kubectl, "holder");
    let read = |path: &str| shell(&kubectl, "holder", &format!("cat {path}")).unwrap();
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {}});
    let ask = |token: &str| {
        Api::with_token(token).request(
            Method::POST,
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            Some(&review),
        )
    };
    let default = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(read(&format!("{default}/namespace")), kubectl.namespace);
    assert!(read(&format!("{default}/ca.crt")).contains("BEGIN CERTIFICATE"));
    for path in [format!("{default}/token"), "/tokens/api".to_owned()] {
        let user = ask(&read(&path)).ok()["status"]["userInfo"].clone();
        assert_eq!(user["username"], format!("system:serviceaccount:{}:default", kubectl.namespace));
        assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["holder"]));
    }
    // Meant for someone else, it opens nothing here.
    assert_eq!(ask(&read("/tokens/vault")).code, 401);

    // A token dies with the pod that it was made for.
    let token = read("/tokens/api");
    kubectl.run(&["delete", "pod", "holder", "--wait=true"]);
    until("the token is refused", LONG, || match ask(&token).code {
        401 => Ok(()),
        code => Err(format!("{code}")),
    });
}

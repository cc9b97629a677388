//! Who owns which field after a write, against the real binary and a real store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod harness;

use harness::Cluster;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const APPLY: &str = "application/apply-patch+yaml";
/// What admission sets in a pod that says nothing of it.
const ADMITTED: [&str; 6] =
    ["preemptionPolicy", "priority", "serviceAccount", "serviceAccountName", "tolerations", "volumes"];

async fn cluster() -> Cluster {
    let cluster = Cluster::start().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    cluster.post(accounts, &json!({"metadata": {"name": "default"}})).await.ok();
    cluster
}

fn manifest() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "p"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

/// The fields of a manager's entry; null: it has none.
fn owned(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    entry.map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[track_caller]
fn check_keys(value: &Value, expected: &[&str]) {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, expected);
}

#[track_caller]
fn nobody_owns_what_admission_set(pod: &Value) {
    for field in ADMITTED {
        assert!(pod["spec"].get(field).is_some(), "{field} is not set: {}", pod["spec"]);
        let owned = pod["metadata"]["managedFields"].to_string();
        assert!(!owned.contains(&format!("\"f:{field}\"")), "{field} is owned: {owned}");
    }
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.len(), 1);
    assert!(!pod["metadata"]["managedFields"].to_string().contains("volumeMounts"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_admission_sets_is_nobodys() {
    let cluster = cluster().await;
    let created = cluster.post(&format!("{PODS}?fieldManager=creator"), &manifest()).await.ok();
    nobody_owns_what_admission_set(&created);
    let spec = &owned(&created, "creator")["f:spec"];
    check_keys(
        spec,
        &[
            "f:containers",
            "f:dnsPolicy",
            "f:enableServiceLinks",
            "f:restartPolicy",
            "f:schedulerName",
            "f:securityContext",
            "f:terminationGracePeriodSeconds",
        ],
    );
    check_keys(
        &spec["f:containers"]["k:{\"name\":\"c\"}"],
        &[
            ".",
            "f:image",
            "f:imagePullPolicy",
            "f:name",
            "f:resources",
            "f:terminationMessagePath",
            "f:terminationMessagePolicy",
        ],
    );

    // An update that leaves out what admission sets again: it does not become the writer's.
    let mut new = created.clone();
    new["spec"]["containers"][0]["image"] = "i:2".into();
    new["spec"].as_object_mut().unwrap().shift_remove("tolerations");
    let updated = cluster.put(&format!("{PODS}/p?fieldManager=updater"), &new).await.ok();
    nobody_owns_what_admission_set(&updated);
    let image = json!({"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {"f:image": {}}}}});
    assert_eq!(owned(&updated, "updater"), image);

    let patch = r#"{"metadata":{"labels":{"patched":"yes"}},"spec":{"tolerations":null}}"#;
    let patched = cluster
        .patch(&format!("{PODS}/p?fieldManager=patcher"), "application/merge-patch+json", patch)
        .await
        .ok();
    nobody_owns_what_admission_set(&patched);
    assert_eq!(owned(&patched, "patcher"), json!({"f:metadata": {"f:labels": {"f:patched": {}}}}));

    // What the client names is its own, in both of its names.
    let mut named = manifest();
    named["metadata"]["name"] = "named".into();
    named["spec"]["serviceAccountName"] = "default".into();
    let named = cluster.post(&format!("{PODS}?fieldManager=creator"), &named).await.ok();
    let spec = &owned(&named, "creator")["f:spec"];
    assert_eq!((&spec["f:serviceAccountName"], &spec["f:serviceAccount"]), (&json!({}), &json!({})));
    assert_eq!(spec.get("f:priority"), None);
}

/// `kubectl apply`, then `kubectl apply --server-side`, of one and the same manifest.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_goes_from_client_side_to_server_side_apply() {
    let cluster = cluster().await;
    let text = manifest().to_string();
    let mut client_side = manifest();
    client_side["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": text});
    let created =
        cluster.post(&format!("{PODS}?fieldManager=kubectl-client-side-apply"), &client_side).await.ok();
    nobody_owns_what_admission_set(&created);
    let apply = async || cluster.patch(&format!("{PODS}/p?fieldManager=kubectl"), APPLY, &text).await;
    let applied = apply().await.ok();
    assert_eq!(applied["spec"], created["spec"]);

    // kubectl makes what was applied on the client's side its own and applies again.
    let mut entry = applied["metadata"]["managedFields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["manager"] == "kubectl-client-side-apply")
        .unwrap()
        .clone();
    entry["manager"] = "kubectl".into();
    entry["operation"] = "Apply".into();
    let patch = json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": [entry]},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": applied["metadata"]["resourceVersion"]},
    ]);
    let path = format!("{PODS}/p?fieldManager=kubectl");
    cluster.patch(&path, "application/json-patch+json", &patch.to_string()).await.ok();
    let again = apply().await.ok();
    assert_eq!(again["spec"], created["spec"]);
    nobody_owns_what_admission_set(&again);
    let container = json!({".": {}, "f:image": {}, "f:name": {}});
    let spec = json!({"f:containers": {"k:{\"name\":\"c\"}": container}});
    assert_eq!(owned(&again, "kubectl")["f:spec"], spec);
    // And once more changes nothing at all.
    assert_eq!(apply().await.ok()["metadata"], again["metadata"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_that_creates_owns_what_it_names() {
    let cluster = cluster().await;
    let path = format!("{PODS}/p?fieldManager=one");
    let created = cluster.patch(&path, APPLY, &manifest().to_string()).await;
    assert_eq!(created.code, 201);
    let created = created.ok();
    nobody_owns_what_admission_set(&created);
    let container = json!({".": {}, "f:image": {}, "f:name": {}});
    assert_eq!(
        owned(&created, "one"),
        json!({"f:metadata": {"f:labels": {"f:app": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": container}}})
    );
    let again = cluster.patch(&path, APPLY, &manifest().to_string()).await.ok();
    assert_eq!(again, created);
}

/// What an endpoint puts back is not owned through it.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_owns_no_spec_and_a_spec_no_status() {
    let cluster = cluster().await;
    let pod = cluster.post(&format!("{PODS}?fieldManager=creator"), &manifest()).await.ok();
    let mut new = pod.clone();
    new["spec"]["containers"][0]["image"] = "i:2".into();
    new["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"}]);
    new["status"]["phase"] = "Running".into();
    let seen = cluster.put(&format!("{PODS}/p/status?fieldManager=status"), &new).await.ok();
    assert_eq!((&seen["spec"], &seen["metadata"]["ownerReferences"]), (&pod["spec"], &Value::Null));
    assert_eq!(owned(&seen, "status"), json!({"f:status": {"f:phase": {}}}));

    let mut new = seen.clone();
    new["status"]["phase"] = "Failed".into();
    new["metadata"]["labels"]["app"] = "q".into();
    let main = cluster.put(&format!("{PODS}/p?fieldManager=main"), &new).await.ok();
    assert_eq!(main["status"]["phase"], "Running");
    assert_eq!(owned(&main, "main"), json!({"f:metadata": {"f:labels": {"f:app": {}}}}));
    assert_eq!(owned(&main, "status"), json!({"f:status": {"f:phase": {}}}));

    let mut new = main.clone();
    new["status"]["phase"] = "Failed".into();
    new["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "d"}]);
    let debug = cluster.put(&format!("{PODS}/p/ephemeralcontainers?fieldManager=debug"), &new).await.ok();
    let fields = owned(&debug, "debug");
    check_keys(&fields, &["f:spec"]);
    check_keys(&fields["f:spec"], &["f:ephemeralContainers"]);
}

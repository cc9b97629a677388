//! Pods of the demo image for tests: manifests to change, and commands inside them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kubectl::Kubectl;
use crate::wait::until;

/// The image that `e2e/run` loads into every node's runtime.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Enough for any one step of a pod on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// A container that runs a shell script.
pub fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
    })
}

/// A pod whose one container `main` runs a shell script. It is labelled `app=<name>` and ends at once.
pub fn pod(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container("main", script)]},
    })
}

/// The template of pods that sleep, for workloads: labelled `app=<app>`.
pub fn template(app: &str) -> Value {
    let pod = pod(app, "sleep 3600");
    json!({"metadata": {"labels": {"app": app}}, "spec": pod["spec"]})
}

/// Creates a pod that sleeps, on a node if one is named, and waits until it is Ready.
#[track_caller]
pub fn sleeper(kubectl: &Kubectl, name: &str, node: Option<&str>) {
    let mut sleeper = pod(name, "sleep 3600");
    if let Some(node) = node {
        sleeper["spec"]["nodeName"] = json!(node);
    }
    kubectl.apply(&sleeper.to_string());
    ready(kubectl, name);
}

/// Waits until a pod is Ready.
#[track_caller]
pub fn ready(kubectl: &Kubectl, name: &str) {
    kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

/// Runs a shell line in a pod.
pub fn shell(kubectl: &Kubectl, pod: &str, line: &str) -> Result<String, String> {
    kubectl.ask(&["exec", pod, "--", "sh", "-c", line])
}

/// Waits until a pod has come to an end, and gives it.
#[track_caller]
pub fn ended(kubectl: &Kubectl, name: &str) -> Value {
    until("the pod ends", LONG, || {
        let pod = kubectl.object(&["pod", name])?;
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(pod),
            _ => Err(pod["status"].to_string()),
        }
    })
}

/// Waits until `accept` takes the pod, and gives it.
#[track_caller]
pub fn until_pod(kubectl: &Kubectl, name: &str, what: &str, accept: impl Fn(&Value) -> bool) -> Value {
    until(what, LONG, || {
        let pod = kubectl.object(&["pod", name])?;
        if accept(&pod) { Ok(pod) } else { Err(pod["status"].to_string()) }
    })
}

/// Waits for an event about an object with this reason, and gives its message.
#[track_caller]
pub fn event(kubectl: &Kubectl, object: &str, reason: &str) -> String {
    let selector = format!("involvedObject.name={object},reason={reason}");
    until(&format!("an event {reason} about {object}"), LONG, || {
        let list = kubectl.object(&["events", "--field-selector", &selector])?;
        match list["items"][0]["message"].as_str() {
            Some(message) => Ok(message.to_owned()),
            None => Err("no such event".to_owned()),
        }
    })
}

//! Sends a pod's status to the API server: at once, the newest only, until it is there.
//!
//! One task per pod, so no pod waits for another. A patch carries what changed since the last one; the pod's uid in
//! it keeps a status from reaching a namesake.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tokio::{sync::watch, task::AbortHandle};

const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Where a status goes: for a static pod, its mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

#[derive(Debug, Clone)]
struct Update {
    serial: u64,
    target: Target,
    status: PodStatus,
}

/// The sending end of one pod's status.
pub struct Publisher {
    updates: watch::Sender<Option<Update>>,
    sent: watch::Receiver<u64>,
    serial: u64,
    task: AbortHandle,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publisher {
    /// `known` is the status that the API server has.
    pub fn start(client: Client, known: Option<&PodStatus>) -> Self {
        let (updates, receiver) = watch::channel(None);
        let (done, sent) = watch::channel(0);
        let known = known.map(to_map).unwrap_or_default();
        let task = tokio::spawn(run(client, receiver, done, known)).abort_handle();
        Self { updates, sent, serial: 0, task }
    }

    /// Never blocks; an older status that was not sent yet is replaced.
    pub fn publish(&mut self, target: Target, status: PodStatus) {
        self.serial += 1;
        self.updates.send_replace(Some(Update { serial: self.serial, target, status }));
    }

    /// Waits until what was published last is with the API server, or the pod is gone from it.
    pub async fn flush(&mut self) {
        let serial = self.serial;
        // An error means the task has ended: the pod is gone and nobody reads its status.
        let _ = self.sent.wait_for(|sent| *sent >= serial).await;
    }
}

async fn run(
    client: Client,
    mut updates: watch::Receiver<Option<Update>>,
    done: watch::Sender<u64>,
    mut known: Map<String, Value>,
) {
    let mut pause = RETRY;
    let mut target: Option<Target> = None;
    loop {
        if updates.changed().await.is_err() {
            return;
        }
        loop {
            let Some(update) = updates.borrow_and_update().clone() else { break };
            if target.as_ref().is_some_and(|before| *before != update.target) {
                // Another mirror: nothing is known of what the API server has.
                known = Map::new();
            }
            target = Some(update.target.clone());
            match send(&client, &update, &known).await {
                Ok(status) => {
                    known = status;
                    pause = RETRY;
                    done.send_replace(update.serial);
                    break;
                }
                Err(SendError::Gone) => {
                    // For a static pod another mirror may come.
                    done.send_replace(update.serial);
                    break;
                }
                Err(SendError::Again(error)) => {
                    tracing::debug!(pod = update.target.name, %error, "patching a pod's status");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = updates.changed() => {}
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

enum SendError {
    /// The pod is not there, or another one is in its place.
    Gone,
    Again(kube::Error),
}

async fn send(
    client: &Client,
    update: &Update,
    known: &Map<String, Value>,
) -> Result<Map<String, Value>, SendError> {
    let status = to_map(&update.status);
    let Some(body) = patch(known, &status, &update.target.uid) else { return Ok(status) };
    let api: Api<Pod> = Api::namespaced(client.clone(), &update.target.namespace);
    let params = PatchParams::default();
    match api.patch_status(&update.target.name, &params, &Patch::Strategic(body)).await {
        Ok(_) => Ok(status),
        Err(kube::Error::Api(error))
            if error.code == 404 || error.code == 409 && error.message.contains("uid") =>
        {
            Err(SendError::Gone)
        }
        Err(error) => Err(SendError::Again(error)),
    }
}

fn to_map(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A strategic merge patch from one status to the other; none if nothing changed.
///
/// Lists that merge by key lose an element only where it is said, so those are replaced; conditions of others stay.
fn patch(known: &Map<String, Value>, status: &Map<String, Value>, uid: &str) -> Option<Value> {
    let mut changed = Map::new();
    for (key, value) in status {
        let before = known.get(key);
        if before == Some(value) {
            continue;
        }
        let value = match (key.as_str(), value) {
            ("podIPs" | "hostIPs", Value::Array(items)) if before.is_some() => {
                let mut items = items.clone();
                items.push(json!({"$patch": "replace"}));
                Value::Array(items)
            }
            ("conditions", Value::Array(items)) => {
                let before = before.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                let changed = items.iter().filter(|item| owned(item) && !before.contains(item)).map(explicit);
                let kind = |item: &Value| item.get("type").cloned();
                let gone = before.iter().filter(|item| owned(item));
                let gone = gone.filter(|old| !items.iter().any(|item| kind(item) == kind(old)));
                let gone = gone.map(|old| json!({"$patch": "delete", "type": kind(old)}));
                let ours: Vec<Value> = changed.chain(gone).collect();
                if ours.is_empty() {
                    continue;
                }
                Value::Array(ours)
            }
            _ => value.clone(),
        };
        changed.insert(key.clone(), value);
    }
    for key in known.keys().filter(|key| !status.contains_key(*key)) {
        changed.insert(key.clone(), Value::Null);
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// What others write is not sent: it would undo a change that has not arrived here yet.
fn owned(condition: &Value) -> bool {
    let text = |field: &str| condition.get(field).and_then(Value::as_str);
    text("type").is_some_and(|kind| super::conditions::is_owned(kind, text("reason")))
}

/// A reason that no longer holds must be taken away by name.
fn explicit(condition: &Value) -> Value {
    let mut condition = condition.clone();
    if let Value::Object(fields) = &mut condition {
        for field in ["reason", "message"] {
            fields.entry(field).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_only_what_changed() {
        let check = |known: Value, status: Value, expected: Option<Value>| {
            let (Value::Object(known), Value::Object(status)) = (known, status) else { panic!("objects") };
            let got = patch(&known, &status, "u");
            assert_eq!(got.map(|mut patch| patch["status"].take()), expected);
        };
        check(json!({"phase": "Pending"}), json!({"phase": "Pending"}), None);
        check(json!({"phase": "Pending"}), json!({"phase": "Running"}), Some(json!({"phase": "Running"})));
        check(json!({"reason": "x"}), json!({}), Some(json!({"reason": null})));
        check(
            json!({"podIPs": [{"ip": "1"}]}),
            json!({"podIPs": [{"ip": "2"}]}),
            Some(json!({"podIPs": [{"ip": "2"}, {"$patch": "replace"}]})),
        );
        let gate = |status: &str| json!({"type": "example.com/gate", "status": status});
        let ready = json!({"type": "Ready", "status": "True"});
        check(json!({"conditions": [gate("False")]}), json!({"conditions": [gate("True")]}), None);
        check(
            json!({"conditions": [gate("False"), {"type": "Initialized", "status": "True"}]}),
            json!({"conditions": [ready, gate("True"), {"type": "Initialized", "status": "True"}]}),
            Some(
                json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}),
            ),
        );
        let pending = json!({"type": "PodResizePending", "status": "True"});
        check(
            json!({"conditions": [ready, pending]}),
            json!({"conditions": [ready]}),
            Some(json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]})),
        );
        check(
            json!({}),
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            Some(
                json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]}),
            ),
        );
    }
}

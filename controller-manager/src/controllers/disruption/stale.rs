//! Takes back what an eviction said of a pod that was not deleted after all: its owner would take a later failure for
//! a disruption.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::cache::{Cache, Event};
use keelson_client::queue::Queue;
use keelson_objects::{pods, times};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::meta::ObjectKey;
use crate::pod::PodInfo;
use crate::pod_control::is_code;
use crate::sync::{self, Outcome};

/// Seconds after which a pod that is still not being deleted is not going to be.
const TIMEOUT: i64 = 120;

/// When what the pod says is to be taken back. Pure.
fn due(pod: &PodInfo) -> Option<Timestamp> {
    let since = pod.disrupted.filter(|_| pod.is_active())?;
    Some(times::plus_seconds(since, TIMEOUT))
}

fn wait(due: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(times::between(now, due)).unwrap_or_default()
}

pub async fn run(client: Client, all: Arc<Cache<PodInfo>>, queue: Queue<ObjectKey>) {
    let to_queue = queue.clone();
    all.subscribe(move |event| {
        if let Event::Applied { new, .. } = event
            && let Some(due) = due(new)
        {
            to_queue.add_after(new.meta.key(), wait(due, Timestamp::now()));
        }
    });
    sync::run(&queue, 1, |key| take_back(&client, &all, key)).await;
}

async fn take_back(client: &Client, all: &Cache<PodInfo>, key: ObjectKey) -> Outcome {
    let Some(pod) = all.get(&key.namespace, &key.name) else { return Ok(None) };
    let now = Timestamp::now();
    match due(&pod) {
        None => return Ok(None),
        Some(due) if due > now => return Ok(Some(wait(due, now))),
        Some(_) => {}
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch(&pod, now))).await {
        Err(error) if !is_code(&error, 404) => return Err(error.into()),
        _ => tracing::info!(pod = %key, "Took back the condition of a disruption that did not come"),
    }
    Ok(None)
}

/// For the very version that was looked at: an eviction may have come meanwhile.
fn patch(pod: &PodInfo, now: Timestamp) -> Value {
    json!({
        "metadata": {"uid": pod.meta.uid, "resourceVersion": pod.meta.resource_version},
        "status": {"conditions": [{
            "type": pods::DISRUPTION_TARGET,
            "status": "False",
            "reason": null,
            "message": null,
            "lastTransitionTime": times::format(now),
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disruptions_that_did_not_come() {
        #[track_caller]
        fn check(condition: Value, change: Value, expected: Option<&str>) {
            let mut pod = json!({"metadata": {"name": "a", "namespace": "ns"},
                "status": {"phase": "Running", "conditions": [condition]}});
            json_patch(&mut pod, change);
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(due(&PodInfo::of(&pod)), expected.map(|time| times::parse(time).unwrap()));
        }
        fn json_patch(object: &mut Value, change: Value) {
            match change {
                Value::Object(fields) => {
                    fields.into_iter().for_each(|(name, value)| json_patch(&mut object[name], value));
                }
                value => *object = value,
            }
        }
        let target = |status: &str, reason: &str| {
            json!({"type": "DisruptionTarget", "status": status, "reason": reason,
                "lastTransitionTime": "2026-11-20T12:00:00Z"})
        };
        let evicted = || target("True", "EvictionByEvictionAPI");
        check(evicted(), json!({}), Some("2026-11-20T12:02:00Z"));
        check(target("False", ""), json!({}), None);
        check(json!({"type": "Ready", "status": "True", "lastTransitionTime": null}), json!({}), None);
        // It will end, however long that takes.
        check(target("True", "TerminationByKubelet"), json!({}), None);
        check(evicted(), json!({"metadata": {"deletionTimestamp": "2026-11-20T12:00:01Z"}}), None);
        check(evicted(), json!({"status": {"phase": "Failed"}}), None);
    }

    #[test]
    fn waits_until_it_is_due() {
        let at = |text| times::parse(text).unwrap();
        let due = at("2026-11-20T12:02:00Z");
        assert_eq!(wait(due, at("2026-11-20T12:01:30Z")), Duration::from_secs(30));
        assert_eq!(wait(due, at("2026-11-20T13:00:00Z")), Duration::ZERO);
    }
}

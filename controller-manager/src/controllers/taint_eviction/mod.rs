//! Deletes pods from nodes with `NoExecute` taints that they do not, or no longer, tolerate.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_objects::{taints, times};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use self::plan::Fate;
use crate::context::Context;
use crate::informers::BY_NODE;
use crate::meta::ObjectKey;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::pod_control::{is_code, reference};
use crate::sync::{self, Outcome};

struct Evictions {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Cache<NodeInfo>>,
    pods: Arc<Cache<PodInfo>>,
    /// Pods that are to leave, by uid, with when they first met the taints.
    met: Mutex<HashMap<String, Timestamp>>,
}

fn no_execute(node: &NodeInfo) -> Vec<(&str, Option<&String>)> {
    let evicting = node.taints.iter().filter(|taint| taint.effect == taints::NO_EXECUTE);
    evicting.map(|taint| (taint.key.as_str(), taint.value.as_ref())).collect()
}

pub async fn run(context: Context) {
    let client = context.client("node-controller");
    let queue = context.queue("noexec_taint_pod");
    let controller = Evictions {
        recorder: context.recorder(&client, "taint-eviction-controller"),
        client,
        nodes: context.informers().nodes(),
        pods: context.informers().pods(),
        met: Mutex::default(),
    };
    let to_queue = queue.clone();
    controller.pods.subscribe(move |event| {
        let pod = match event {
            Event::Applied { old: Some(old), new }
                if old.node == new.node
                    && old.tolerations == new.tolerations
                    && old.meta.uid == new.meta.uid =>
            {
                return;
            }
            Event::Applied { new, .. } if !new.node.is_empty() => new,
            Event::Deleted(last) => last,
            _ => return,
        };
        to_queue.add(pod.meta.key());
    });
    let (pods, to_queue) = (controller.pods.clone(), queue.clone());
    controller.nodes.subscribe(move |event| {
        let Event::Applied { old, new } = event else { return };
        if no_execute(new) == old.as_ref().map(|old| no_execute(old)).unwrap_or_default() {
            return;
        }
        for pod in pods.indexed(BY_NODE, new.meta.name.as_str()) {
            to_queue.add(pod.meta.key());
        }
    });
    controller.nodes.wait_synced().await;
    controller.pods.wait_synced().await;
    sync::run(&queue, 8, |key| controller.sync(key)).await;
}

impl Evictions {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(node) = self.nodes.get("", &pod.node) else { return Ok(None) };
        let now = Timestamp::now();
        if pod.meta.deleting {
            self.met.lock().remove(&pod.meta.uid);
            return Ok(None);
        }
        let met = self.met.lock().get(&pod.meta.uid).copied();
        match plan::fate(&node.taints, &pod.tolerations, pod.meta.created, met.unwrap_or(now), now) {
            Fate::Stays => {
                if met.is_some() {
                    self.met.lock().remove(&pod.meta.uid);
                    let text = format!("Cancelling deletion of Pod {key}");
                    self.recorder.event(
                        &reference("v1", "Pod", &pod.meta),
                        Type::Normal,
                        "TaintManagerEviction",
                        text,
                    );
                }
                Ok(None)
            }
            Fate::LeavesAt(at) if at > now => {
                self.forget_gone();
                self.met.lock().entry(pod.meta.uid.clone()).or_insert(now);
                Ok(Some(Duration::try_from(times::between(now, at)).unwrap_or_default()))
            }
            Fate::LeavesAt(_) => {
                self.met.lock().remove(&pod.meta.uid);
                self.evict(&key, &pod).await
            }
        }
    }

    /// Pods that were deleted while they were to leave.
    fn forget_gone(&self) {
        let mut met = self.met.lock();
        if met.len() > 1024 && met.len() > 2 * self.pods.len() {
            let alive: std::collections::HashSet<String> =
                self.pods.list().iter().map(|pod| pod.meta.uid.clone()).collect();
            met.retain(|uid, _| alive.contains(uid));
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &PodInfo) -> Outcome {
        let text = format!("Marking for deletion Pod {key}");
        self.recorder.event(&reference("v1", "Pod", &pod.meta), Type::Normal, "TaintManagerEviction", text);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"metadata": {"uid": pod.meta.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": times::format(Timestamp::now()),
        }]}});
        if let Err(error) =
            api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await
        {
            return if is_code(&error, 404) { Ok(None) } else { Err(error.into()) };
        }
        let uid = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
        match api.delete(&key.name, &DeleteParams::default().preconditions(uid)).await {
            Err(error) if !is_code(&error, 404) => Err(error.into()),
            _ => Ok(None),
        }
    }
}

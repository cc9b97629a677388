//! Removes pods that nobody else will: those on nodes that are gone, those being deleted that were never on a node,
//! and the oldest finished ones beyond a number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::cache::Cache;
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use crate::context::Context;
use crate::meta::HasMeta;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::pod_control::{is_code, message};

const PERIOD: Duration = Duration::from_secs(20);
/// A node may be unknown only because its watch is slow.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a pod is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Finished,
    NodeGone,
    NodeOutOfService,
    NeverOnNode,
}

pub async fn run(context: Context) {
    let client = context.client("pod-garbage-collector");
    let (pods, nodes) = (context.informers().pods(), context.informers().nodes());
    pods.wait_synced().await;
    nodes.wait_synced().await;
    let threshold = context.settings().terminated_pod_gc_threshold;
    let mut missing: HashMap<Box<str>, Instant> = HashMap::new();
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let gone = match gone_nodes(&client, &pods, &nodes, &mut missing).await {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!("cannot read nodes: {}", message(&error));
                continue;
            }
        };
        let all = pods.list();
        for (pod, cause) in plan(&all, threshold, |pod| {
            if gone.contains(&pod.node) {
                return Some(Cause::NodeGone);
            }
            let out = nodes.get("", &pod.node).is_some_and(|node| {
                node.condition("Ready").is_none_or(|ready| &*ready.status != "True")
                    && node.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
            });
            (out && pod.meta.deleting).then_some(Cause::NodeOutOfService)
        }) {
            if let Err(error) = remove(&client, &pod, cause).await {
                tracing::warn!(pod = %pod.meta.key(), ?cause, "cannot remove the pod: {}", message(&error));
            }
        }
    }
}

/// Pure: what is to be removed. `lost` tells of the pod's node.
fn plan(
    pods: &[Arc<PodInfo>],
    threshold: usize,
    lost: impl Fn(&PodInfo) -> Option<Cause>,
) -> Vec<(Arc<PodInfo>, Cause)> {
    let mut removed = Vec::new();
    let mut finished = Vec::new();
    for pod in pods {
        if pod.node.is_empty() {
            if pod.meta.deleting {
                removed.push((pod.clone(), Cause::NeverOnNode));
            }
        } else if let Some(cause) = lost(pod) {
            removed.push((pod.clone(), cause));
            continue;
        }
        if pod.is_terminal() && !pod.meta.deleting {
            finished.push(pod);
        }
    }
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by(|a, b| (a.meta.created, &a.meta.name).cmp(&(b.meta.created, &b.meta.name)));
        let excess = finished.len() - threshold;
        removed.extend(finished.into_iter().take(excess).map(|pod| (pod.clone(), Cause::Finished)));
    }
    removed
}

/// Nodes that pods are on and that have been missing for a while, also for the API server.
async fn gone_nodes(
    client: &Client,
    pods: &Cache<PodInfo>,
    nodes: &Cache<NodeInfo>,
    missing: &mut HashMap<Box<str>, Instant>,
) -> Result<Vec<Box<str>>, kube::Error> {
    let now = Instant::now();
    let mut seen = Vec::new();
    for pod in pods.list() {
        if !pod.node.is_empty() && nodes.get("", &pod.node).is_none() {
            missing.entry(pod.node.clone()).or_insert(now);
            seen.push(pod.node.clone());
        }
    }
    missing.retain(|name, _| seen.contains(name));
    let api: Api<Node> = Api::all(client.clone());
    let mut gone = Vec::new();
    for (name, _) in missing.iter().filter(|(_, since)| since.elapsed() >= QUARANTINE) {
        if api.get_metadata_opt(name).await?.is_none() {
            gone.push(name.clone());
        }
    }
    Ok(gone)
}

/// What the pod's status says first, so that its controllers know that it will not come back.
fn last_words(pod: &PodInfo, cause: Cause, now: Timestamp) -> Option<Value> {
    let message = match cause {
        Cause::NodeGone => "PodGC: node no longer exists",
        Cause::NodeOutOfService | Cause::NeverOnNode | Cause::Finished => "",
    };
    if pod.is_terminal() || cause == Cause::Finished {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if !message.is_empty() {
        status["conditions"] = json!([{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": message,
            "lastTransitionTime": times::format(now),
        }]);
    }
    Some(json!({"metadata": {"uid": pod.meta().uid}, "status": status}))
}

async fn remove(client: &Client, pod: &PodInfo, cause: Cause) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.meta.namespace);
    let name = &pod.meta.name;
    tracing::info!(pod = %pod.meta.key(), ?cause, "Removing");
    let result = async {
        if let Some(patch) = last_words(pod, cause, Timestamp::now()) {
            api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
        let uid = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete(name, &at_once.preconditions(uid)).await
    };
    match result.await {
        Err(error) if !is_code(&error, 404) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;
    use crate::pod::Phase;

    fn pod(name: &str, node: &str, phase: Phase, deleting: bool) -> Arc<PodInfo> {
        let meta = Meta { name: name.into(), deleting, ..Meta::default() };
        Arc::new(PodInfo { meta, node: node.into(), phase, ..PodInfo::default() })
    }

    #[test]
    fn what_is_removed() {
        let pods = [
            pod("a", "n", Phase::Running, false),
            pod("b", "gone", Phase::Running, false),
            pod("c", "", Phase::Pending, false),
            pod("d", "", Phase::Pending, true),
            pod("e", "n", Phase::Failed, false),
            pod("f", "n", Phase::Succeeded, false),
        ];
        let check = |threshold, expected: &[(&str, Cause)]| {
            let found = plan(&pods, threshold, |pod| (&*pod.node == "gone").then_some(Cause::NodeGone));
            let found: Vec<_> = found.iter().map(|(pod, cause)| (pod.meta.name.as_str(), *cause)).collect();
            assert_eq!(found, expected);
        };
        check(0, &[("b", Cause::NodeGone), ("d", Cause::NeverOnNode)]);
        check(2, &[("b", Cause::NodeGone), ("d", Cause::NeverOnNode)]);
        check(1, &[("b", Cause::NodeGone), ("d", Cause::NeverOnNode), ("e", Cause::Finished)]);
    }

    #[test]
    fn last_words_are_for_the_living() {
        let now = Timestamp::UNIX_EPOCH;
        let said = last_words(&pod("a", "gone", Phase::Running, false), Cause::NodeGone, now).unwrap();
        assert_eq!(said["status"]["phase"], "Failed");
        assert_eq!(said["status"]["conditions"][0]["reason"], "DeletionByPodGC");
        assert!(last_words(&pod("a", "gone", Phase::Succeeded, false), Cause::NodeGone, now).is_none());
    }
}

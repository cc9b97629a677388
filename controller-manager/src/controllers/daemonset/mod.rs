//! Runs one pod of each DaemonSet on every node that suits it. The scheduler places the pods: each is bound to its
//! node by affinity.

pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_objects::labels::Selector;
use keelson_objects::{owners, times};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::plan::{Changes, Daemon};
use super::history::{self, Parent, REVISION_HASH, Revisions};
use super::replicaset::observe_pods;
use crate::claim::Claimant;
use crate::context::Context;
use crate::expectations::Expectations;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ORPHANS, ObjectKey};
use crate::node::NodeInfo;
use crate::pod::{Phase, PodInfo};
use crate::pod_control::{PodControl, from_template, reference};
use crate::sync::{self, Outcome, SyncError};

/// The most pods that one look creates or deletes.
const BURST: usize = 250;
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MOST: Duration = Duration::from_secs(15 * 60);

/// How long failed pods stay before they are replaced, by set (uid) and node.
#[derive(Default)]
struct Backoffs(Mutex<HashMap<(String, String), (Duration, Instant)>>);

impl Backoffs {
    /// What is left of the time.
    fn left(&self, uid: &str, node: &str) -> Option<Duration> {
        let all = self.0.lock();
        let (delay, since) = all.get(&(uid.to_owned(), node.to_owned()))?;
        delay.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }

    fn failed(&self, uid: &str, node: &str) {
        let mut all = self.0.lock();
        all.retain(|_, (_, since)| since.elapsed() < 2 * BACKOFF_MOST);
        let next = |(delay, _): &(Duration, Instant)| (*delay * 2).min(BACKOFF_MOST);
        let key = (uid.to_owned(), node.to_owned());
        let delay = all.get(&key).map_or(BACKOFF_FIRST, next);
        all.insert(key, (delay, Instant::now()));
    }
}

struct DaemonSets {
    client: Client,
    recorder: Recorder,
    sets: Arc<Cache<Compact<DaemonSet>>>,
    revisions: Arc<Cache<Compact<ControllerRevision>>>,
    nodes: Arc<Cache<NodeInfo>>,
    pods: Arc<Cache<PodInfo>>,
    expectations: Arc<Expectations>,
    backoffs: Backoffs,
}

pub async fn run(context: Context) {
    let client = context.client("daemon-set-controller");
    let queue = context.queue("daemonset");
    let controller = DaemonSets {
        recorder: context.recorder(&client, "daemonset-controller"),
        client,
        sets: context.informers().daemon_sets(),
        revisions: context.informers().revisions(),
        nodes: context.informers().nodes(),
        pods: context.informers().pods(),
        expectations: Arc::default(),
        backoffs: Backoffs::default(),
    };
    controller.expectations.follow(&controller.sets);
    sync::enqueue(&controller.sets, &queue);
    observe_pods(&controller.pods, "DaemonSet", controller.expectations.clone());
    let (sets, to_queue) = (controller.sets.clone(), queue.clone());
    let orphan = move |object: &Meta| {
        for set in sets.list_in(&object.namespace) {
            if selector(&set.object()).is_ok_and(|selector| selector.matches(&object.labels)) {
                to_queue.add(set.meta.key());
            }
        }
    };
    sync::enqueue_controllers(&controller.pods, &queue, "DaemonSet", orphan.clone());
    sync::enqueue_controllers(&controller.revisions, &queue, "DaemonSet", orphan);
    let (sets, to_queue) = (controller.sets.clone(), queue.clone());
    controller.nodes.subscribe(move |event| {
        let relevant = match event {
            Event::Applied { old: Some(old), new } => {
                old.labels() != new.labels() || old.taints != new.taints
            }
            Event::Applied { old: None, .. } | Event::Deleted(_) => true,
            Event::Synced => false,
        };
        if relevant {
            sets.list().iter().for_each(|set| to_queue.add(set.meta.key()));
        }
    });
    controller.sets.wait_synced().await;
    controller.revisions.wait_synced().await;
    controller.nodes.wait_synced().await;
    controller.pods.wait_synced().await;
    sync::run(&queue, context.workers("daemonset"), |key| controller.sync(key)).await;
}

fn selector(set: &DaemonSet) -> Result<Selector, SyncError> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

impl DaemonSets {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let meta = &compact.meta;
        let set = compact.object();
        let selector = selector(&set)?;
        let owner = reference("apps/v1", "DaemonSet", meta);
        if selector.is_everything() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&owner, Type::Warning, "SelectingAll", text);
            return Ok(None);
        }
        if meta.deleting {
            return Ok(None);
        }
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let satisfied = self.expectations.satisfied(&key);
        let claimant = Claimant { api_version: "apps/v1", kind: "DaemonSet", meta, selector: &selector };
        let mut observed = self.revisions.indexed(BY_CONTROLLER, meta.uid.as_str());
        observed.extend(self.revisions.indexed(ORPHANS, meta.namespace.as_str()));
        let owned =
            claimant.claim::<DaemonSet, ControllerRevision, _>(&self.client, observed, |_| true).await?;
        let parent = Parent {
            client: &self.client,
            api_version: "apps/v1",
            kind: "DaemonSet",
            hash_label: REVISION_HASH,
            meta,
            metadata: &set.metadata,
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
        };
        let Some(Revisions { current, others }) = parent.reconcile(&owned).await? else {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write(&key, set, status).await?;
            return Ok(None);
        };
        let hash = label(&current).to_owned();
        let mut observed = self.pods.indexed(BY_CONTROLLER, meta.uid.as_str());
        observed.extend(self.pods.indexed(ORPHANS, meta.namespace.as_str()));
        let pods = claimant
            .claim::<DaemonSet, Pod, _>(&self.client, observed, |pod: &PodInfo| !pod.meta.deleting)
            .await?;
        let mut pod_spec = spec.template.spec.clone().unwrap_or_default();
        plan::tolerate(&mut pod_spec);
        let nodes = self.nodes.list();
        let now = Timestamp::now();
        let daemon =
            Daemon { set: &set, spec: &spec, pod_spec, nodes: &nodes, pods: &pods, hash: &hash, now };
        let (mut again, mut failure) = (None, None);
        if satisfied {
            again = self.backoff_left(meta, &pods);
            let changes = daemon.manage(|node| self.backoffs.left(&meta.uid, node).is_some());
            failure = self.execute(&key, meta, &daemon, changes).await.err();
            if failure.is_none() && daemon.is_rolling() && self.expectations.satisfied(&key) {
                failure = self.execute(&key, meta, &daemon, daemon.roll()).await.err();
            }
            let live: HashSet<&str> = pods
                .iter()
                .filter_map(|pod| pod.meta.labels.get(REVISION_HASH))
                .map(String::as_str)
                .collect();
            let excess = others.len().saturating_sub(history::limit(spec.revision_history_limit));
            parent
                .remove(&history::obsolete(&others, excess, |revision| live.contains(label(revision))))
                .await?;
        }
        let (status, available) = daemon.status();
        if !plan::same(set.status.as_ref().unwrap_or(&DaemonSetStatus::default()), &status) {
            self.write(&key, set, status).await?;
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        let available = available.map(|at| Duration::try_from(times::between(now, at)).unwrap_or_default());
        Ok(sooner(again, available.map(|left| left + Duration::from_millis(1))))
    }

    async fn write(&self, key: &ObjectKey, set: DaemonSet, status: DaemonSetStatus) -> Result<(), SyncError> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.namespace);
        api.replace_status(&key.name, &PostParams::default(), &DaemonSet { status: Some(status), ..set })
            .await?;
        Ok(())
    }

    /// When the first failed pod may be replaced.
    fn backoff_left(&self, meta: &Meta, pods: &[Arc<PodInfo>]) -> Option<Duration> {
        let failed = pods.iter().filter(|pod| pod.phase == Phase::Failed && !pod.meta.deleting);
        failed.filter_map(|pod| self.backoffs.left(&meta.uid, &pod.node)).min()
    }

    async fn execute(
        &self,
        key: &ObjectKey,
        meta: &Meta,
        daemon: &Daemon<'_>,
        mut changes: Changes,
    ) -> Result<(), kube::Error> {
        changes.create.truncate(BURST);
        changes.delete.truncate(BURST);
        if changes.create.is_empty() && changes.delete.is_empty() {
            return Ok(());
        }
        let owner = reference("apps/v1", "DaemonSet", meta);
        for removal in &changes.delete {
            let pod = &removal.pod;
            let place = format!("daemon pod {}/{} on node {}", pod.meta.namespace, pod.meta.name, pod.node);
            match removal.ended {
                Some(Phase::Failed) => {
                    self.backoffs.failed(&meta.uid, &pod.node);
                    let text = format!("Found failed {place}, will try to kill it");
                    self.recorder.event(&owner, Type::Warning, "FailedDaemonPod", text);
                }
                Some(_) => {
                    let text = format!("Found succeeded {place}, will try to delete it");
                    self.recorder.event(&owner, Type::Normal, "SucceededDaemonPod", text);
                }
                None => {}
            }
        }
        let control = PodControl {
            client: &self.client,
            recorder: &self.recorder,
            owner: &owner,
            key,
            expectations: &self.expectations,
        };
        let delete: Vec<Arc<PodInfo>> = changes.delete.into_iter().map(|removal| removal.pod).collect();
        self.expectations.expect(key, changes.create.len(), delete.iter().map(|pod| pod.meta.uid.clone()));
        let nodes = changes.create;
        let created = control.create_all(nodes.len(), |number| pod(meta, daemon, &nodes[number])).await;
        control.delete_all(&delete).await?;
        created
    }
}

fn label(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH)).map_or("", String::as_str)
}

/// The pod of a node, with no name yet.
fn pod(meta: &Meta, daemon: &Daemon<'_>, node: &str) -> Pod {
    let owner = owners::new_controller_ref("apps/v1", "DaemonSet", &meta.name, &meta.uid);
    let mut pod = from_template(&daemon.spec.template, &meta.namespace, owner);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_HASH.to_owned(), daemon.hash.to_owned());
    if let Some(generation) = plan::template_generation(daemon.set) {
        labels.insert(plan::GENERATION_LABEL.to_owned(), generation.to_owned());
    }
    let mut spec = daemon.pod_spec.clone();
    plan::pin(&mut spec, node);
    pod.spec = Some(spec);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failed_pods_wait_longer_each_time() {
        let all = Backoffs::default();
        assert_eq!(all.left("u", "n"), None);
        all.failed("u", "n");
        assert_eq!(all.left("u", "n"), Some(BACKOFF_FIRST));
        assert_eq!(all.left("u", "m"), None);
        tokio::time::advance(BACKOFF_FIRST).await;
        assert_eq!(all.left("u", "n"), None);
        all.failed("u", "n");
        assert_eq!(all.left("u", "n"), Some(2 * BACKOFF_FIRST));
        (0..20).for_each(|_| all.failed("u", "n"));
        assert_eq!(all.left("u", "n"), Some(BACKOFF_MOST));
    }
}

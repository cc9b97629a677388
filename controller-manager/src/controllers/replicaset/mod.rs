//! Keeps as many pods of each ReplicaSet running as it asks for.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::cache::{Cache, Event};
use keelson_client::events::Recorder;
use keelson_objects::labels::Selector;
use keelson_objects::{owners, times};
use kube::Client;
use kube::api::{Api, PostParams};

use crate::claim::Claimant;
use crate::context::Context;
use crate::expectations::Expectations;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ORPHANS, ObjectKey};
use crate::pod::PodInfo;
use crate::pod_control::{PodControl, from_template, message, reference};
use crate::sync::{self, Outcome, SyncError};

struct ReplicaSets {
    client: Client,
    recorder: Recorder,
    sets: Arc<Cache<Compact<ReplicaSet>>>,
    pods: Arc<Cache<PodInfo>>,
    expectations: Arc<Expectations>,
}

pub async fn run(context: Context) {
    let client = context.client("replicaset-controller");
    let queue = context.queue("replicaset");
    let controller = ReplicaSets {
        recorder: context.recorder(&client, "replicaset-controller"),
        client,
        sets: context.informers().replica_sets(),
        pods: context.informers().pods(),
        expectations: Arc::default(),
    };
    controller.expectations.follow(&controller.sets);
    sync::enqueue(&controller.sets, &queue);
    observe_pods(&controller.pods, "ReplicaSet", controller.expectations.clone());
    let (sets, to_queue) = (controller.sets.clone(), queue.clone());
    sync::enqueue_controllers(&controller.pods, &queue, "ReplicaSet", move |pod: &Meta| {
        for set in sets.list_in(&pod.namespace) {
            if selector(&set.object()).is_ok_and(|selector| selector.matches(&pod.labels)) {
                to_queue.add(set.meta.key());
            }
        }
    });
    controller.sets.wait_synced().await;
    controller.pods.wait_synced().await;
    sync::run(&queue, context.workers("replicaset"), |key| controller.sync(key)).await;
}

/// Takes what is seen of pods off what is expected. A pod that is being deleted counts as gone.
pub fn observe_pods(pods: &Cache<PodInfo>, kind: &'static str, expectations: Arc<Expectations>) {
    pods.subscribe(move |event| {
        let (old, pod, gone) = match event {
            Event::Applied { old, new } => (old.as_ref(), new, new.meta.deleting),
            Event::Deleted(last) => (None, last, true),
            Event::Synced => return,
        };
        let Some(key) = pod.meta.controller_key(kind) else { return };
        if old.is_none() && !matches!(event, Event::Deleted(_)) {
            expectations.created(&key);
        }
        if gone {
            expectations.deleted(&key, &pod.meta.uid);
        }
    });
}

fn selector(set: &ReplicaSet) -> Result<Selector, SyncError> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

impl ReplicaSets {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.sets.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let set = compact.object();
        let satisfied = self.expectations.satisfied(&key);
        let selector = selector(&set)?;
        let mut observed = self.pods.indexed(BY_CONTROLLER, compact.meta.uid.as_str());
        observed.extend(self.pods.indexed(ORPHANS, compact.meta.namespace.as_str()));
        let claimant =
            Claimant { api_version: "apps/v1", kind: "ReplicaSet", meta: &compact.meta, selector: &selector };
        let owned = claimant
            .claim::<ReplicaSet, Pod, _>(&self.client, observed, |pod: &PodInfo| pod.is_active())
            .await?;
        let failure = if satisfied && !compact.meta.deleting {
            self.manage(&key, &compact.meta, &set, &owned).await.err()
        } else {
            None
        };
        let now = Timestamp::now();
        let (status, again) = plan::status(&set, &owned, failure.as_ref().map(|(failure, _)| failure), now);
        if !plan::same(set.status.as_ref().unwrap_or(&Default::default()), &status) {
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
            let updated = ReplicaSet { status: Some(status), ..set };
            api.replace_status(&key.name, &PostParams::default(), &updated).await?;
        }
        match failure {
            Some((_, error)) => Err(error.into()),
            None => Ok(again.map(|at| {
                Duration::try_from(times::between(now, at)).unwrap_or_default() + Duration::from_millis(1)
            })),
        }
    }

    async fn manage(
        &self,
        key: &ObjectKey,
        meta: &Meta,
        set: &ReplicaSet,
        owned: &[Arc<PodInfo>],
    ) -> Result<(), (plan::Failure, kube::Error)> {
        let active: Vec<_> = owned.iter().filter(|pod| pod.is_active()).cloned().collect();
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let owner = reference("apps/v1", "ReplicaSet", meta);
        let control = PodControl {
            client: &self.client,
            recorder: &self.recorder,
            owner: &owner,
            key,
            expectations: &self.expectations,
        };
        let failed = |reason, error: kube::Error| (plan::Failure { reason, message: message(&error) }, error);
        match plan::scale(replicas, &active, &self.related(meta, &active), Timestamp::now()) {
            plan::Scale::Nothing => Ok(()),
            plan::Scale::Create(count) => {
                let owner = owners::new_controller_ref("apps/v1", "ReplicaSet", &meta.name, &meta.uid);
                let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
                let pod = from_template(&template, &meta.namespace, owner);
                self.expectations.expect(key, count, []);
                control
                    .create_all(count, |_| pod.clone())
                    .await
                    .map_err(|error| failed("FailedCreate", error))
            }
            plan::Scale::Delete(pods) => {
                self.expectations.expect(key, 0, pods.iter().map(|pod| pod.meta.uid.clone()));
                control.delete_all(&pods).await.map_err(|error| failed("FailedDelete", error))
            }
        }
    }

    /// The pods of all sets that have the same controller.
    fn related(&self, meta: &Meta, own: &[Arc<PodInfo>]) -> Vec<Arc<PodInfo>> {
        let Some(controller) = &meta.controller else { return own.to_vec() };
        let sets = self.sets.indexed(BY_CONTROLLER, &*controller.uid);
        sets.iter().flat_map(|set| self.pods.indexed(BY_CONTROLLER, set.meta.uid.as_str())).collect()
    }
}

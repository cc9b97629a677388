//! Says of each PodDisruptionBudget how many of its pods may be evicted now.
//!
//! The API server takes evictions off that number; a write here that has not seen one of them is refused as
//! outdated, and done again.

pub mod plan;
mod stale;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ObjectReference, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_client::queue::Queue;
use keelson_objects::labels::Selector;
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, PostParams};

use self::plan::{Scalable, Scale, Scales};
use crate::context::Context;
use crate::meta::{Compact, Controller, Meta, ObjectKey};
use crate::pod::PodInfo;
use crate::pod_control::reference;
use crate::sync::{self, Outcome, SyncError};

type Budgets = Cache<Compact<PodDisruptionBudget>>;

struct Disruption {
    client: Client,
    recorder: Arc<Recorder>,
    budgets: Arc<Budgets>,
    pods: Arc<Cache<PodInfo>>,
    deployments: Arc<Cache<Compact<Deployment>>>,
    replica_sets: Arc<Cache<Compact<ReplicaSet>>>,
    stateful_sets: Arc<Cache<Compact<StatefulSet>>>,
}

pub async fn run(context: Context) {
    let client = context.client("disruption-controller");
    let queue = context.queue("disruption");
    let stale = context.queue("stale_pod_disruption");
    let informers = context.informers();
    let controller = Disruption {
        recorder: Arc::new(context.recorder(&client, "controllermanager")),
        client,
        budgets: informers.budgets(),
        pods: informers.pods(),
        deployments: informers.deployments(),
        replica_sets: informers.replica_sets(),
        stateful_sets: informers.stateful_sets(),
    };
    sync::enqueue(&controller.budgets, &queue);
    observe_pods(&controller.pods, controller.budgets.clone(), queue.clone(), controller.recorder.clone());
    controller.budgets.wait_synced().await;
    controller.pods.wait_synced().await;
    controller.deployments.wait_synced().await;
    controller.replica_sets.wait_synced().await;
    controller.stateful_sets.wait_synced().await;
    tokio::join!(
        sync::run(&queue, 1, |key| controller.sync(key)),
        stale::run(controller.client.clone(), controller.pods.clone(), stale),
    );
}

fn selector(budget: &PodDisruptionBudget) -> Result<Selector, SyncError> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

/// Every change of a pod brings its budgets into the queue; those too that it was under before.
fn observe_pods(
    pods: &Cache<PodInfo>,
    budgets: Arc<Budgets>,
    queue: Queue<ObjectKey>,
    recorder: Arc<Recorder>,
) {
    let over = move |pod: &Meta| -> Vec<ObjectKey> {
        let all = budgets.list_in(&pod.namespace);
        let matches = |budget: &Compact<PodDisruptionBudget>| {
            selector(&budget.object()).is_ok_and(|selector| selector.matches(&pod.labels))
        };
        all.iter().filter(|budget| matches(budget)).map(|budget| budget.meta.key()).collect()
    };
    pods.subscribe(move |event| {
        let (old, pod) = match event {
            Event::Applied { old, new } => (old.as_ref(), &new.meta),
            Event::Deleted(last) => (None, &last.meta),
            Event::Synced => return,
        };
        if let Some(old) = old.filter(|old| old.meta.labels != pod.labels) {
            over(&old.meta).into_iter().for_each(|key| queue.add(key));
        }
        let keys = over(pod);
        if keys.len() > 1 && matches!(event, Event::Applied { .. }) {
            let (namespace, name) = (&pod.namespace, &pod.name);
            let text = format!("Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.");
            let pod = reference("v1", "Pod", pod);
            recorder.event(&pod, Type::Warning, "MultiplePodDisruptionBudgets", text);
        }
        keys.into_iter().for_each(|key| queue.add(key));
    });
}

impl Disruption {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.budgets.get(&key.namespace, &key.name) else { return Ok(None) };
        let meta = &compact.meta;
        let budget = compact.object();
        let known = budget.status.clone().unwrap_or_default();
        let about = reference("policy/v1", "PodDisruptionBudget", meta);
        let now = Timestamp::now();
        let (pods, demand) = match self.count(&key, &budget, &about).await {
            Ok(counted) => counted,
            Err(error) => {
                tracing::warn!(budget = %key, "cannot count the pods: {error}");
                let status = plan::fail_safe(&known, error.to_string(), now);
                self.write(&key, budget, &known, status).await?;
                return match error {
                    // Nothing comes of asking again before a pod or the budget changes.
                    SyncError::Invalid(_) => Ok(None),
                    SyncError::Api(_) => Err(error),
                };
            }
        };
        let disrupted = plan::disrupted(known.disrupted_pods.as_ref(), &pods, now);
        for pod in disrupted.spared {
            let text = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.recorder.event(&reference("v1", "Pod", &pod.meta), Type::Warning, "NotDeleted", text);
        }
        let status = plan::status(&known, meta.generation, &demand, &pods, disrupted.pods, now);
        self.write(&key, budget, &known, status).await?;
        Ok(disrupted.until.map(|until| Duration::try_from(times::between(now, until)).unwrap_or_default()))
    }

    /// The pods of a budget, and how many of them it wants; tells its owner what is odd about them.
    async fn count(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        about: &ObjectReference,
    ) -> Result<(Vec<Arc<PodInfo>>, plan::Demand), SyncError> {
        let tell = |kind, reason, text: String| self.recorder.event(about, kind, reason, text);
        let selector = selector(budget).inspect_err(|error| {
            tell(Type::Warning, "NoPods", format!("Failed to get pods: {error}"));
        })?;
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selector.matches(&pod.meta.labels));
        if pods.is_empty() {
            tell(Type::Normal, "NoPods", "No matching pods found".to_owned());
        }
        let demand = self.demand(budget, &pods).await.inspect_err(|error| {
            let text = format!("Failed to calculate the number of expected pods: {error}");
            tell(Type::Warning, "CalculateExpectedPodCountFailed", text);
        })?;
        if demand.unmanaged {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined \
                 behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an \
                 integer value."
            );
            tell(Type::Warning, "UnmanagedPods", text);
        }
        Ok((pods, demand))
    }

    async fn demand(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<PodInfo>],
    ) -> Result<plan::Demand, SyncError> {
        let spec = budget.spec.clone().unwrap_or_default();
        let mut scales = Scales::new();
        if plan::needs_scales(&spec) {
            let mut asked = HashSet::new();
            for pod in pods {
                let Some(controller) = &pod.meta.controller else { continue };
                if asked.insert(&controller.uid)
                    && let Some(scale) = self.scale(&pod.meta.namespace, controller).await?
                {
                    scales.insert(controller.uid.clone(), scale);
                }
            }
        }
        plan::demand(&spec, pods, &scales).map_err(|error| SyncError::Invalid(error.to_string()))
    }

    /// What a pod's controller asks for; none where it is gone.
    async fn scale(&self, namespace: &str, controller: &Controller) -> Result<Option<Scale>, SyncError> {
        let scalable = plan::scalable(controller).map_err(|error| SyncError::Invalid(error.to_string()))?;
        let (name, uid) = (&*controller.name, &*controller.uid);
        let scale = |uid: &str, replicas: Option<Option<i32>>| Scale {
            uid: uid.to_owned(),
            replicas: replicas.flatten().unwrap_or(1),
        };
        let deployment = |name: &str, uid: &str| {
            let found = self.deployments.get(namespace, name).filter(|found| found.meta.uid == uid)?;
            Some(scale(uid, found.object().spec.map(|spec| spec.replicas)))
        };
        Ok(match scalable {
            Scalable::Deployment => deployment(name, uid),
            Scalable::ReplicaSet => {
                let set = self.replica_sets.get(namespace, name).filter(|set| set.meta.uid == uid);
                set.map(|set| {
                    let owner = set.meta.controller.as_ref();
                    let owner = owner.filter(|owner| plan::scalable(owner) == Ok(Scalable::Deployment));
                    owner
                        .and_then(|owner| deployment(&owner.name, &owner.uid))
                        .unwrap_or_else(|| scale(uid, set.object().spec.map(|spec| spec.replicas)))
                })
            }
            Scalable::StatefulSet => {
                let set = self.stateful_sets.get(namespace, name).filter(|set| set.meta.uid == uid);
                set.map(|set| scale(uid, set.object().spec.map(|spec| spec.replicas)))
            }
            // Nothing here runs them, so they are not worth a watch.
            Scalable::ReplicationController => {
                let api: Api<ReplicationController> = Api::namespaced(self.client.clone(), namespace);
                let found = api.get_opt(name).await?;
                let found = found.filter(|found| found.metadata.uid.as_deref() == Some(uid));
                found.map(|found| scale(uid, found.spec.map(|spec| spec.replicas)))
            }
        })
    }

    async fn write(
        &self,
        key: &ObjectKey,
        budget: PodDisruptionBudget,
        known: &PodDisruptionBudgetStatus,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), SyncError> {
        if *known == status {
            return Ok(());
        }
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
        let updated = PodDisruptionBudget { status: Some(status), ..budget };
        api.replace_status(&key.name, &PostParams::default(), &updated).await?;
        Ok(())
    }
}

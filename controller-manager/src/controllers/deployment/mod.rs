//! Rolls Deployments out through ReplicaSets, one for each template.

pub mod plan;
pub mod status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::ObjectReference;
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_objects::labels::Selector;
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::plan::{Resize, Rollout};
use crate::claim::Claimant;
use crate::context::Context;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ORPHANS, ObjectKey};
use crate::pod::PodInfo;
use crate::pod_control::{is_code, is_namespace_terminating, message, reference};
use crate::sync::{self, Outcome, SyncError};

struct Deployments {
    client: Client,
    recorder: Recorder,
    deployments: Arc<Cache<Compact<Deployment>>>,
    sets: Arc<Cache<Compact<ReplicaSet>>>,
    pods: Arc<Cache<PodInfo>>,
}

pub async fn run(context: Context) {
    let client = context.client("deployment-controller");
    let queue = context.queue("deployment");
    let controller = Deployments {
        recorder: context.recorder(&client, "deployment-controller"),
        client,
        deployments: context.informers().deployments(),
        sets: context.informers().replica_sets(),
        pods: context.informers().pods(),
    };
    sync::enqueue(&controller.deployments, &queue);
    let (deployments, to_queue) = (controller.deployments.clone(), queue.clone());
    sync::enqueue_controllers(&controller.sets, &queue, "Deployment", move |set: &Meta| {
        for deployment in deployments.list_in(&set.namespace) {
            if selector(&deployment.object()).is_ok_and(|selector| selector.matches(&set.labels)) {
                to_queue.add(deployment.meta.key());
            }
        }
    });
    // Recreate waits for the last old pod to go.
    let (sets, to_queue) = (controller.sets.clone(), queue.clone());
    controller.pods.subscribe(move |event| {
        if let Event::Deleted(pod) = event
            && let Some(set) = pod.meta.controller_key("ReplicaSet")
            && let Some(set) = sets.get(&set.namespace, &set.name)
            && let Some(key) = set.meta.controller_key("Deployment")
        {
            to_queue.add(key);
        }
    });
    controller.deployments.wait_synced().await;
    controller.sets.wait_synced().await;
    controller.pods.wait_synced().await;
    sync::run(&queue, context.workers("deployment"), |key| controller.sync(key)).await;
}

fn selector(deployment: &Deployment) -> Result<Selector, SyncError> {
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

/// A Deployment that is worked on.
struct Work<'a> {
    controller: &'a Deployments,
    owner: ObjectReference,
    key: &'a ObjectKey,
}

impl Deployments {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.deployments.get(&key.namespace, &key.name) else { return Ok(None) };
        let deployment = compact.object();
        let selector = selector(&deployment)?;
        let owner = reference("apps/v1", "Deployment", &compact.meta);
        if selector.is_everything() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&owner, Type::Warning, "SelectingAll", text);
            return Ok(None);
        }
        let mut observed = self.sets.indexed(BY_CONTROLLER, compact.meta.uid.as_str());
        observed.extend(self.sets.indexed(ORPHANS, compact.meta.namespace.as_str()));
        let claimant =
            Claimant { api_version: "apps/v1", kind: "Deployment", meta: &compact.meta, selector: &selector };
        let owned = claimant.claim::<Deployment, ReplicaSet, _>(&self.client, observed, |_| true).await?;
        let sets = owned.iter().map(|set| set.object()).collect();
        let rollout = Rollout::new(&deployment, sets);
        let work = Work { controller: self, owner, key: &key };
        // Boxed, as are those below: Deployments and ReplicaSets are kilobytes each.
        Box::pin(work.step(rollout, compact.meta.deleting)).await
    }

    /// Whether pods of old sets still run.
    fn old_pods_run(&self, rollout: &Rollout<'_>) -> bool {
        rollout.old.iter().any(|set| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            set.status.as_ref().is_some_and(|status| status.replicas > 0)
                || self.pods.indexed(BY_CONTROLLER, uid).iter().any(|pod| !pod.is_terminal())
        })
    }
}

impl Work<'_> {
    async fn step(&self, mut rollout: Rollout<'_>, deleting: bool) -> Outcome {
        let deployment = rollout.deployment;
        let now = Timestamp::now();
        if deleting {
            self.finish(deployment, status::counts(&rollout, now), None, now).await?;
            // It has no deadline to meet any more.
            return Ok(None);
        }
        if let Some(paused) = status::pause(deployment, now) {
            // The watch brings the next look.
            return self.finish(deployment, paused, None, now).await;
        }
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        if paused || rollout.is_scaling() {
            self.refresh(&mut rollout).await?;
            self.resize(&rollout, rollout.scale()).await?;
            if paused {
                self.remove_obsolete(&rollout).await?;
            }
            return self.finish(deployment, status::counts(&rollout, now), None, now).await;
        }
        if plan::is_rolling(deployment) {
            if rollout.new.is_none() {
                return Box::pin(self.create(&mut rollout, now)).await;
            }
            self.refresh(&mut rollout).await?;
            self.resize(&rollout, rollout.roll()).await?;
        } else {
            let removals = rollout.remove_old();
            let removed = !removals.is_empty();
            self.refresh(&mut rollout).await?;
            self.resize(&rollout, removals).await?;
            if !removed && !self.controller.old_pods_run(&rollout) {
                if rollout.new.is_none() {
                    return Box::pin(self.create(&mut rollout, now)).await;
                }
                self.resize(&rollout, rollout.grow_new()).await?;
            }
        }
        let status = status::progress(&rollout, now);
        if status::is_complete(deployment, &status) {
            self.remove_obsolete(&rollout).await?;
        }
        let revision = rollout.new.as_ref().map(|set| plan::revision(&set.metadata));
        self.finish(deployment, status, revision, now).await
    }

    fn sets(&self) -> Api<ReplicaSet> {
        Api::namespaced(self.controller.client.clone(), &self.key.namespace)
    }

    /// Brings the new set's annotations up to date.
    async fn refresh(&self, rollout: &mut Rollout<'_>) -> Result<(), SyncError> {
        if let Some(updated) = rollout.refreshed() {
            let name = plan::name(&updated).to_owned();
            rollout.new = Some(self.sets().replace(&name, &PostParams::default(), &updated).await?);
        }
        Ok(())
    }

    async fn create(&self, rollout: &mut Rollout<'_>, now: Timestamp) -> Outcome {
        let deployment = rollout.deployment;
        let set = rollout.create();
        let made = match self.sets().create(&PostParams::default(), &set).await {
            Ok(made) => {
                self.tell_scaled(&made, 0, plan::size(&made));
                made
            }
            Err(error) if is_code(&error, 409) => match self.existing(deployment, &set).await? {
                Some(existing) => existing,
                None => {
                    // Another template has the same hash: the next one is made with a salt.
                    let mut status = deployment.status.clone().unwrap_or_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    return self.finish(deployment, status, None, now).await;
                }
            },
            Err(error) if is_namespace_terminating(&error) => return Ok(None),
            Err(error) => {
                let text =
                    format!("Failed to create new replica set {:?}: {}", plan::name(&set), message(&error));
                let mut status = deployment.status.clone().unwrap_or_default();
                status::set(
                    &mut status,
                    status::PROGRESSING,
                    "False",
                    "ReplicaSetCreateError",
                    text.clone(),
                    now,
                );
                self.controller.recorder.event(&self.owner, Type::Warning, "ReplicaSetCreateError", text);
                self.finish(deployment, status, None, now).await?;
                return Err(error.into());
            }
        };
        let revision = plan::revision(&made.metadata);
        let text = format!("Created new replica set {:?}", plan::name(&made));
        rollout.new = Some(made);
        let mut status = status::counts(rollout, now);
        if deployment.spec.as_ref().is_some_and(|spec| spec.progress_deadline_seconds.is_some()) {
            status::set(&mut status, status::PROGRESSING, "True", "NewReplicaSetCreated", text, now);
        }
        self.finish(deployment, status, Some(revision), now).await
    }

    /// The set that has the name already, if it is ours and of our template: the cache was behind.
    async fn existing(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
    ) -> Result<Option<ReplicaSet>, SyncError> {
        let live = self.sets().get(plan::name(set)).await?;
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let ours = keelson_objects::owners::is_controlled_by(&live.metadata, uid);
        Ok(Some(live).filter(|live| ours && plan::has_template_of(live, deployment)))
    }

    fn tell_scaled(&self, set: &ReplicaSet, from: i32, to: i32) {
        if from == to {
            return;
        }
        let direction = if to > from { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {} from {from} to {to}", plan::name(set));
        self.controller.recorder.event(&self.owner, Type::Normal, "ScalingReplicaSet", text);
    }

    async fn resize(&self, rollout: &Rollout<'_>, resizes: Vec<Resize>) -> Result<(), SyncError> {
        for set in rollout.all() {
            let resize = resizes.iter().find(|resize| resize.name == plan::name(set));
            let to = resize.map_or_else(|| plan::size(set), |resize| resize.to);
            let mut updated = set.clone();
            if resize.is_some() || to > 0 {
                rollout.annotate_sizes(&mut updated);
            }
            if let Some(spec) = updated.spec.as_mut().filter(|spec| spec.replicas != Some(to)) {
                spec.replicas = Some(to);
            }
            if updated == *set {
                continue;
            }
            self.sets().replace(plan::name(set), &PostParams::default(), &updated).await?;
            self.tell_scaled(set, plan::size(set), to);
        }
        Ok(())
    }

    async fn remove_obsolete(&self, rollout: &Rollout<'_>) -> Result<(), SyncError> {
        for set in
            rollout.old.iter().filter(|set| rollout.obsolete().iter().any(|name| name == plan::name(set)))
        {
            let preconditions = Preconditions { uid: set.metadata.uid.clone(), resource_version: None };
            let background = DeleteParams::background().preconditions(preconditions);
            match self.sets().delete(plan::name(set), &background).await {
                Err(error) if !is_code(&error, 404) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the status, and the revision with it, if they say anything new.
    async fn finish(
        &self,
        deployment: &Deployment,
        status: DeploymentStatus,
        revision: Option<i64>,
        now: Timestamp,
    ) -> Outcome {
        let again = status::deadline_at(deployment, &status).map(|at| {
            Duration::try_from(times::between(now, at)).unwrap_or_default().max(Duration::from_secs(1))
        });
        let revision = revision.filter(|revision| *revision != plan::revision(&deployment.metadata));
        if revision.is_none()
            && status::same(deployment.status.as_ref().unwrap_or(&Default::default()), &status)
        {
            return Ok(again);
        }
        let mut updated = deployment.clone();
        updated.status = Some(status);
        if let Some(revision) = revision {
            let annotations = updated.metadata.annotations.get_or_insert_default();
            annotations.insert(plan::REVISION.to_owned(), revision.to_string());
        }
        let api: Api<Deployment> = Api::namespaced(self.controller.client.clone(), &self.key.namespace);
        api.replace_status(&self.key.name, &PostParams::default(), &updated).await?;
        Ok(again)
    }
}

//! Runs the numbered pods of StatefulSets, each with its name and its claims for life.

pub mod plan;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod, PodTemplateSpec};
use keelson_client::cache::Cache;
use keelson_client::events::{Recorder, Type};
use keelson_objects::labels::Selector;
use keelson_objects::{owners, times};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use self::plan::{Action, ClaimOwner, Observed};
use super::history::{self, Parent, REVISION_HASH, Revisions};
use crate::claim::Claimant;
use crate::context::Context;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ORPHANS, ObjectKey};
use crate::pod::{Phase, PodInfo};
use crate::pod_control::{is_code, is_namespace_terminating, message, reference};
use crate::sync::{self, Outcome, SyncError};

/// The label of revisions that carries their hash; pods carry the revision's name.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

struct StatefulSets {
    client: Client,
    recorder: Recorder,
    sets: Arc<Cache<Compact<StatefulSet>>>,
    revisions: Arc<Cache<Compact<ControllerRevision>>>,
    pods: Arc<Cache<PodInfo>>,
    claims: Arc<Cache<Meta>>,
}

pub async fn run(context: Context) {
    let client = context.client("statefulset-controller");
    let queue = context.queue("statefulset");
    let controller = StatefulSets {
        recorder: context.recorder(&client, "statefulset-controller"),
        client,
        sets: context.informers().stateful_sets(),
        revisions: context.informers().revisions(),
        pods: context.informers().pods(),
        claims: context.informers().claims(),
    };
    sync::enqueue(&controller.sets, &queue);
    let (sets, to_queue) = (controller.sets.clone(), queue.clone());
    let orphan = move |object: &Meta| {
        for set in sets.list_in(&object.namespace) {
            if selector(&set.object()).is_ok_and(|selector| selector.matches(&object.labels)) {
                to_queue.add(set.meta.key());
            }
        }
    };
    sync::enqueue_controllers(&controller.pods, &queue, "StatefulSet", orphan.clone());
    sync::enqueue_controllers(&controller.revisions, &queue, "StatefulSet", orphan);
    controller.sets.wait_synced().await;
    controller.revisions.wait_synced().await;
    controller.pods.wait_synced().await;
    controller.claims.wait_synced().await;
    sync::run(&queue, context.workers("statefulset"), |key| controller.sync(key)).await;
}

fn selector(set: &StatefulSet) -> Result<Selector, SyncError> {
    let selector = set.spec.as_ref().map(|spec| &spec.selector);
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

/// A StatefulSet that is worked on.
struct Work<'a> {
    controller: &'a StatefulSets,
    owner: ObjectReference,
    meta: &'a Meta,
    spec: &'a StatefulSetSpec,
    /// Of the current and of the new revision.
    templates: [(&'a str, &'a PodTemplateSpec); 2],
}

impl StatefulSets {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let meta = &compact.meta;
        let set = compact.object();
        let selector = selector(&set)?;
        let owner = reference("apps/v1", "StatefulSet", meta);
        let Some(spec) = set.spec.as_ref() else { return Ok(None) };
        let claimant = Claimant { api_version: "apps/v1", kind: "StatefulSet", meta, selector: &selector };
        let mut observed = self.revisions.indexed(BY_CONTROLLER, meta.uid.as_str());
        observed.extend(self.revisions.indexed(ORPHANS, meta.namespace.as_str()));
        let owned =
            claimant.claim::<StatefulSet, ControllerRevision, _>(&self.client, observed, |_| true).await?;
        let mut observed = self.pods.indexed(BY_CONTROLLER, meta.uid.as_str());
        observed.extend(self.pods.indexed(ORPHANS, meta.namespace.as_str()));
        let member = |pod: &PodInfo| plan::ordinal(&meta.name, &pod.meta.name).is_some();
        let mut pods = claimant.claim::<StatefulSet, Pod, _>(&self.client, observed, member).await?;
        pods.retain(|pod| member(pod));
        let parent = Parent {
            client: &self.client,
            api_version: "apps/v1",
            kind: "StatefulSet",
            hash_label: HASH_LABEL,
            meta,
            metadata: &set.metadata,
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|status| status.collision_count),
        };
        let Some(Revisions { current: update, others }) = parent.reconcile(&owned).await? else {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write(&key, set, status).await?;
            return Ok(None);
        };
        let running = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        let current =
            others.iter().find(|revision| Some(history::name(revision)) == running).unwrap_or(&update);
        let template = |revision| {
            let invalid =
                || SyncError::Invalid(format!("revision {} has no template", history::name(revision)));
            history::template_of(revision).ok_or_else(invalid)
        };
        let (current_template, update_template) = (template(current)?, template(&update)?);
        let (current_name, update_name) = (history::name(current), history::name(&update));
        let now = Timestamp::now();
        let observed = Observed {
            name: &meta.name,
            set: &set,
            spec,
            pods: &pods,
            current: current_name,
            update: update_name,
            now,
        };
        let templates = [(current_name, &current_template), (update_name, &update_template)];
        let work = Work { controller: self, owner, meta, spec, templates };
        let mut failure = None;
        let mut taken = Vec::new();
        if !meta.deleting {
            for pod in &pods {
                work.care_for_claims(pod).await?;
            }
            for action in observed.plan(|ordinal| work.has_foreign_claim(ordinal)) {
                match work.act(&action).await {
                    Ok(()) => taken.push(action),
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        let (status, again) = observed.status(&taken);
        let live: HashSet<&str> =
            pods.iter().filter_map(|pod| pod.meta.labels.get(REVISION_HASH)).map(String::as_str).collect();
        let in_use = |revision: &ControllerRevision| {
            let name = history::name(revision);
            live.contains(name) || name == current_name || status.current_revision.as_deref() == Some(name)
        };
        let unused = others.iter().filter(|revision| !in_use(revision)).count();
        let excess = unused.saturating_sub(history::limit(spec.revision_history_limit));
        let obsolete = history::obsolete(&others, excess, in_use);
        if !plan::same(set.status.as_ref().unwrap_or(&StatefulSetStatus::default()), &status) {
            self.write(&key, set.clone(), status.clone()).await?;
        }
        parent.remove(&obsolete).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(again.map(|at| {
                Duration::try_from(times::between(now, at)).unwrap_or_default() + Duration::from_millis(1)
            })),
        }
    }

    async fn write(
        &self,
        key: &ObjectKey,
        set: StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<(), SyncError> {
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let updated = StatefulSet { status: Some(status), ..set };
        api.replace_status(&key.name, &PostParams::default(), &updated).await?;
        Ok(())
    }
}

impl Work<'_> {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.controller.client.clone(), &self.meta.namespace)
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.controller.client.clone(), &self.meta.namespace)
    }

    /// Upstream's events: `create Pod web-0 in StatefulSet web successful`.
    fn tell<T>(&self, verb: &str, what: &str, result: &Result<T, kube::Error>) {
        let (verb_reason, text) = match verb {
            "create" => ("Create", "create"),
            "delete" => ("Delete", "delete"),
            _ => ("Update", "update"),
        };
        let recorder = &self.controller.recorder;
        match result {
            Ok(_) => {
                let text = format!("{text} {what} in StatefulSet {} successful", self.meta.name);
                recorder.event(&self.owner, Type::Normal, &format!("Successful{verb_reason}"), text);
            }
            Err(error) => {
                let text = format!(
                    "{text} {what} in StatefulSet {} failed error: {}",
                    self.meta.name,
                    message(error)
                );
                recorder.event(&self.owner, Type::Warning, &format!("Failed{verb_reason}"), text);
            }
        }
    }

    async fn act(&self, action: &Action) -> Result<(), SyncError> {
        match action {
            Action::Create { ordinal, updated } => self.create(*ordinal, *updated).await,
            Action::Recreate(pod) => {
                let (reason, state) = match pod.phase {
                    Phase::Failed => ("RecreatingFailedPod", "failed"),
                    _ => ("RecreatingTerminatedPod", "terminated"),
                };
                let text = format!(
                    "StatefulSet {}/{} is recreating {state} Pod {}",
                    self.meta.namespace, self.meta.name, pod.meta.name
                );
                self.controller.recorder.event(&self.owner, Type::Warning, reason, text);
                self.delete(pod).await
            }
            Action::Condemn(pod) | Action::Replace(pod) => self.delete(pod).await,
            Action::Identify(pod) => {
                let ordinal = plan::ordinal(&self.meta.name, &pod.meta.name).unwrap_or_default();
                let labels = json!({plan::POD_NAME: pod.meta.name, plan::POD_INDEX: ordinal.to_string()});
                let patch = json!({"metadata": {"uid": pod.meta.uid, "labels": labels}});
                let params = PatchParams::default();
                let result =
                    self.pods().patch_metadata(&pod.meta.name, &params, &Patch::Strategic(patch)).await;
                self.tell("update", &format!("Pod {}", pod.meta.name), &result);
                result?;
                Ok(())
            }
        }
    }

    async fn create(&self, ordinal: i32, updated: bool) -> Result<(), SyncError> {
        self.make_claims(ordinal, None).await?;
        let (revision, template) = self.templates[usize::from(updated)];
        let pod = plan::pod(self.meta, self.spec, template, revision, ordinal);
        let result = self.pods().create(&PostParams::default(), &pod).await;
        match &result {
            // The cache is behind: the name is taken.
            Err(error) if is_code(error, 409) => {}
            Err(error) if is_namespace_terminating(error) => return Ok(()),
            result => {
                self.tell("create", &format!("Pod {}", plan::pod_name(&self.meta.name, ordinal)), result)
            }
        }
        result?;
        Ok(())
    }

    async fn delete(&self, pod: &PodInfo) -> Result<(), SyncError> {
        let preconditions = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let result = self.pods().delete(&pod.meta.name, &params).await;
        match &result {
            Err(error) if is_code(error, 404) => return Ok(()),
            Err(error) if is_code(error, 409) => {}
            result => self.tell("delete", &format!("Pod {}", pod.meta.name), result),
        }
        result?;
        Ok(())
    }

    fn claim_names(&self, ordinal: i32) -> impl Iterator<Item = (&PersistentVolumeClaim, String)> {
        self.spec.volume_claim_templates.iter().flatten().map(move |template| {
            let name = template.metadata.name.as_deref().unwrap_or_default();
            (template, plan::claim_name(name, &self.meta.name, ordinal))
        })
    }

    fn cached(&self, claim: &str) -> Option<Arc<Meta>> {
        self.controller.claims.get(&self.meta.namespace, claim)
    }

    /// Whether a claim of an ordinal without a pod belongs to a pod, which is gone: it will go too.
    fn has_foreign_claim(&self, ordinal: i32) -> bool {
        let of_pod = |claim: Arc<Meta>| claim.controller.as_ref().is_some_and(|owner| &*owner.kind == "Pod");
        self.claim_names(ordinal).any(|(_, name)| self.cached(&name).is_some_and(of_pod))
    }

    /// Makes what claims a pod lacks and gives those that exist to whom the retention policy says.
    async fn care_for_claims(&self, pod: &PodInfo) -> Result<(), SyncError> {
        let Some(ordinal) = plan::ordinal(&self.meta.name, &pod.meta.name) else { return Ok(()) };
        if pod.phase == Phase::Pending && !pod.meta.deleting {
            self.make_claims(ordinal, Some(pod)).await?;
        }
        for (_, name) in self.claim_names(ordinal) {
            let Some(claim) = self.cached(&name) else { continue };
            let wanted = self.owner_of(ordinal, Some(pod));
            let known = claim.controller.as_ref();
            let ours = known.is_none_or(|owner| matches!(&*owner.kind, "StatefulSet" | "Pod"));
            if claim.deleting
                || !ours
                || known.map(|owner| &*owner.uid) == wanted.as_ref().map(|owner| &*owner.uid)
            {
                continue;
            }
            let mut live = match self.claims().get(&name).await {
                Err(error) if is_code(&error, 404) => continue,
                live => live?,
            };
            let mut owners = live.metadata.owner_references.take().unwrap_or_default();
            let former = [Some(self.meta.uid.as_str()), known.map(|owner| &*owner.uid)];
            owners.retain(|owner| !former.contains(&Some(owner.uid.as_str())));
            owners.extend(wanted);
            live.metadata.owner_references = Some(owners);
            self.claims().replace(&name, &PostParams::default(), &live).await?;
        }
        Ok(())
    }

    fn owner_of(
        &self,
        ordinal: i32,
        pod: Option<&PodInfo>,
    ) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
        let start = self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let condemned = !(start..start.saturating_add(self.spec.replicas.unwrap_or(1))).contains(&ordinal);
        match (plan::claim_owner(self.spec, condemned), pod) {
            (ClaimOwner::Set, _) => {
                Some(owners::new_controller_ref("apps/v1", "StatefulSet", &self.meta.name, &self.meta.uid))
            }
            (ClaimOwner::Pod, Some(pod)) => {
                Some(owners::new_controller_ref("v1", "Pod", &pod.meta.name, &pod.meta.uid))
            }
            _ => None,
        }
    }

    async fn make_claims(&self, ordinal: i32, pod: Option<&PodInfo>) -> Result<(), SyncError> {
        for (template, name) in self.claim_names(ordinal) {
            if self.cached(&name).is_some() {
                continue;
            }
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(self.meta.namespace.clone()),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    owner_references: self.owner_of(ordinal, pod).map(|owner| vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            };
            let result = self.claims().create(&PostParams::default(), &claim).await;
            match &result {
                Err(error) if is_code(error, 409) => continue,
                result => {
                    let what = format!("Claim {name} Pod {}", plan::pod_name(&self.meta.name, ordinal));
                    self.tell("create", &what, result);
                }
            }
            result?;
        }
        Ok(())
    }
}

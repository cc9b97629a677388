//! Runs Jobs to their end: makes pods, counts every one that ended exactly once, and says how the Job went.

pub mod failure_policy;
pub mod indexes;
pub mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use keelson_client::cache::{Cache, Event};
use keelson_client::events::{Recorder, Type};
use keelson_client::queue::Queue;
use keelson_objects::labels::Selector;
use keelson_objects::{owners, times};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;

use self::plan::{Action, Creation, Done, Failures, Observed, Settled};
use super::replicaset::observe_pods;
use crate::claim::Claimant;
use crate::context::Context;
use crate::expectations::Expectations;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ORPHANS, ObjectKey};
use crate::pod::{JOB_TRACKING_FINALIZER, PodInfo};
use crate::pod_control::{AT_ONCE, PodControl, from_template, generate_name, is_code, reference};
use crate::sync::{self, Outcome, SyncError};

const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const INDEX_IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const OWN_NAME: &str = "kubernetes.io/job-controller";

/// What is remembered of a Job between two looks.
#[derive(Default)]
struct Memory {
    /// Of the Job: another of its name starts without failures.
    uid: String,
    failures: Failures,
    /// Uids of pods whose finalizer was removed, until the cache shows it.
    released: HashSet<String>,
}

type Memories = Arc<Mutex<HashMap<ObjectKey, Memory>>>;

struct Jobs {
    client: Client,
    recorder: Recorder,
    jobs: Arc<Cache<Compact<Job>>>,
    pods: Arc<Cache<PodInfo>>,
    expectations: Arc<Expectations>,
    memories: Memories,
}

pub async fn run(context: Context) {
    let client = context.client("job-controller");
    let queue = context.queue("job");
    let orphans: Queue<ObjectKey> = context.queue("job_orphan_pod");
    let controller = Jobs {
        recorder: context.recorder(&client, "job-controller"),
        client,
        jobs: context.informers().jobs(),
        pods: context.informers().pods(),
        expectations: Arc::default(),
        memories: Arc::default(),
    };
    controller.jobs.wait_synced().await;
    controller.expectations.follow(&controller.jobs);
    sync::enqueue(&controller.jobs, &queue);
    observe_pods(&controller.pods, "Job", controller.expectations.clone());
    observe_finalizers(&controller.pods, controller.memories.clone());
    let (jobs, to_queue) = (controller.jobs.clone(), queue.clone());
    sync::enqueue_controllers(&controller.pods, &queue, "Job", move |pod: &Meta| {
        for job in jobs.list_in(&pod.namespace) {
            if selector(&job.object()).is_ok_and(|selector| selector.matches(&pod.labels)) {
                to_queue.add(job.meta.key());
            }
        }
    });
    let (pods, to_orphans) = (controller.pods.clone(), orphans.clone());
    controller.jobs.subscribe(move |event| {
        if let Event::Deleted(job) = event {
            let left = pods.indexed(BY_CONTROLLER, job.meta.uid.as_str());
            left.iter().filter(|pod| pod.job_tracked).for_each(|pod| to_orphans.add(pod.meta.key()));
        }
    });
    let (jobs, to_orphans) = (controller.jobs.clone(), orphans.clone());
    controller.pods.subscribe(move |event| {
        if let Event::Applied { new: pod, .. } = event
            && pod.job_tracked
            && job_of(&jobs, &pod.meta).is_none()
        {
            to_orphans.add(pod.meta.key());
        }
    });
    controller.pods.wait_synced().await;
    let orphaned = sync::run(&orphans, 1, |key| controller.release_orphan(key));
    tokio::join!(sync::run(&queue, context.workers("job"), |key| controller.sync(key)), orphaned);
}

/// Forgets pods that are shown without their finalizer, or are gone.
fn observe_finalizers(pods: &Cache<PodInfo>, memories: Memories) {
    pods.subscribe(move |event| {
        let (pod, gone) = match event {
            Event::Applied { new, .. } => (new, !new.job_tracked),
            Event::Deleted(last) => (last, true),
            Event::Synced => return,
        };
        if gone
            && let Some(key) = pod.meta.controller_key("Job")
            && let Some(memory) = memories.lock().get_mut(&key)
        {
            memory.released.remove(&pod.meta.uid);
        }
    });
}

/// The Job that a pod belongs to, if the cache has it.
fn job_of(jobs: &Cache<Compact<Job>>, pod: &Meta) -> Option<Arc<Compact<Job>>> {
    let key = pod.controller_key("Job")?;
    jobs.get(&key.namespace, &key.name).filter(|job| pod.is_controlled_by(&job.meta.uid))
}

fn selector(job: &Job) -> Result<Selector, SyncError> {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::from_label_selector(selector).map_err(|error| SyncError::Invalid(error.to_string()))
}

impl Jobs {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.jobs.get(&key.namespace, &key.name) else {
            self.expectations.forget(&key);
            self.memories.lock().remove(&key);
            return Ok(None);
        };
        let meta = &compact.meta;
        let job = compact.object();
        let Some(spec) = job.spec.as_ref() else { return Ok(None) };
        if plan::finished(&job).is_some() {
            self.memories.lock().remove(&key);
            return Ok(None);
        }
        if spec.managed_by.as_deref().is_some_and(|manager| manager != OWN_NAME) {
            return Ok(None);
        }
        let satisfied = self.expectations.satisfied(&key);
        let selector = selector(&job)?;
        let mut observed = self.pods.indexed(BY_CONTROLLER, meta.uid.as_str());
        observed.extend(self.pods.indexed(ORPHANS, meta.namespace.as_str()));
        let claimant = Claimant { api_version: "batch/v1", kind: "Job", meta, selector: &selector };
        // A pod without the finalizer cannot be counted, so an orphan that has none is left alone.
        let mut pods =
            claimant.claim::<Job, Pod, _>(&self.client, observed, |pod: &PodInfo| pod.job_tracked).await?;
        pods.sort_by_key(|pod| pod.completion_index);
        let (failures, released) = {
            let mut memories = self.memories.lock();
            let memory = memories.entry(key.clone()).or_default();
            if memory.uid != meta.uid {
                *memory = Memory { uid: meta.uid.clone(), ..Memory::default() };
            }
            (memory.failures, memory.released.clone())
        };
        let now = Timestamp::now();
        let observed =
            Observed { job: &job, spec, pods: &pods, released: &released, failures, satisfied, now };
        let decision = observed.decide();
        let owner = reference("batch/v1", "Job", meta);
        let control = PodControl {
            client: &self.client,
            recorder: &self.recorder,
            owner: &owner,
            key: &key,
            expectations: &self.expectations,
        };
        let (done, failure) = self.act(&control, meta, spec, &decision.action, satisfied).await;
        let settled = observed.settle(&decision, done);
        if let Some((reason, message)) = settled.event {
            self.recorder.event(&owner, Type::Normal, reason, message);
        }
        let tracked = pods.iter().filter(|pod| pod.job_tracked && !released.contains(&pod.meta.uid));
        let tracked = tracked.map(|pod| pod.meta.uid.clone()).collect();
        if let Some(ended) = self.write(&key, &job, settled, tracked, decision.failures).await? {
            if ended.succeeded {
                self.recorder.event(&owner, Type::Normal, "Completed", "Job completed");
            } else {
                self.recorder.event(&owner, Type::Warning, &ended.reason, ended.message);
            }
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        let left =
            |at| Duration::try_from(times::between(now, at)).unwrap_or_default() + Duration::from_millis(1);
        Ok(decision.again.map(left))
    }

    /// Writes the counts, lets go of pods that are counted, and writes the end if this is it.
    async fn write(
        &self,
        key: &ObjectKey,
        job: &Job,
        settled: Settled,
        mut tracked: HashSet<String>,
        failures: Failures,
    ) -> Result<Option<plan::Verdict>, SyncError> {
        let Settled { mut status, must_write, changed, release, verdict, all, .. } = settled;
        let mut current = job.clone();
        let mut written = !changed;
        if must_write {
            current = self.write_status(key, current, status).await?;
            status = current.status.clone().unwrap_or_default();
            written = true;
        }
        if let Some(memory) = self.memories.lock().get_mut(key) {
            memory.failures = failures;
        }
        let mut removed = Vec::with_capacity(release.len());
        for part in release.chunks(AT_ONCE) {
            removed.extend(join_all(part.iter().map(|pod| self.release(key, pod))).await);
        }
        let mut failure = None;
        for (pod, result) in release.iter().zip(removed) {
            match result {
                Ok(()) => {
                    tracked.remove(&pod.meta.uid);
                }
                Err(error) => failure = Some(error),
            }
        }
        let last = verdict.as_ref().filter(|_| all && failure.is_none());
        let (counted, ended) = plan::conclude(&mut status, &tracked, last, Timestamp::now());
        if counted || !written {
            self.write_status(key, current, status).await?;
        }
        match failure {
            Some(error) => Err(error.into()),
            None => Ok(verdict.filter(|_| ended)),
        }
    }

    async fn write_status(&self, key: &ObjectKey, job: Job, status: JobStatus) -> Result<Job, SyncError> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let updated = Job { status: Some(status), ..job };
        Ok(api.replace_status(&key.name, &PostParams::default(), &updated).await?)
    }

    /// Removes a pod's finalizer. A pod that is gone has none.
    async fn release(&self, key: &ObjectKey, pod: &PodInfo) -> Result<(), kube::Error> {
        let remember = |add: bool| {
            if let Some(memory) = self.memories.lock().get_mut(key) {
                match add {
                    true => memory.released.insert(pod.meta.uid.clone()),
                    false => memory.released.remove(&pod.meta.uid),
                };
            }
        };
        // Before asking: the watch may be faster than the answer.
        remember(true);
        let result = self.strip(pod).await;
        let gone = self
            .pods
            .get(&pod.meta.namespace, &pod.meta.name)
            .is_none_or(|seen| seen.meta.uid != pod.meta.uid);
        if result.is_err() || gone {
            remember(false);
        }
        result
    }

    async fn strip(&self, pod: &PodInfo) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.meta.namespace);
        let patch = json!({"metadata": {
            "uid": pod.meta.uid,
            "$deleteFromPrimitiveList/finalizers": [JOB_TRACKING_FINALIZER],
        }});
        match api.patch_metadata(&pod.meta.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if is_code(&error, 404) => Ok(()),
            result => result.map(drop),
        }
    }

    async fn act(
        &self,
        control: &PodControl<'_>,
        meta: &Meta,
        spec: &JobSpec,
        action: &Action,
        satisfied: bool,
    ) -> (Done, Option<kube::Error>) {
        match action {
            Action::Nothing => (Done::default(), None),
            Action::Create(creations) => {
                self.expectations.expect(control.key, creations.len(), []);
                let count = creations.len();
                match control.create_all(count, |number| pod(meta, spec, creations[number])).await {
                    Ok(()) => (Done { created: size(count), ..Done::default() }, None),
                    // How many were made the cache will show.
                    Err(error) => (Done::default(), Some(error)),
                }
            }
            Action::Discard(pods) | Action::Stop(pods) => {
                let keep = matches!(action, Action::Stop(_));
                if satisfied {
                    self.expectations.expect(control.key, 0, pods.iter().map(|pod| pod.meta.uid.clone()));
                }
                let remove = async |pod: &Arc<PodInfo>| {
                    if !keep
                        && pod.job_tracked
                        && let Err(error) = self.strip(pod).await
                    {
                        self.expectations.deleted(control.key, &pod.meta.uid);
                        return Err(error);
                    }
                    control.delete(pod).await
                };
                let (mut done, mut failure) = (Done::default(), None);
                for part in pods.chunks(AT_ONCE) {
                    for (pod, result) in part.iter().zip(join_all(part.iter().map(remove)).await) {
                        match result {
                            Ok(()) => {
                                done.deleted += 1;
                                done.ready += i32::from(pod.is_ready());
                            }
                            Err(error) => failure = Some(error),
                        }
                    }
                }
                (done, failure)
            }
        }
    }

    /// Frees a pod whose Job is gone, or it could never be deleted.
    async fn release_orphan(&self, key: ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get(&key.namespace, &key.name).filter(|pod| pod.job_tracked) else {
            return Ok(None);
        };
        if job_of(&self.jobs, &pod.meta).is_some() {
            return Ok(None);
        }
        if let Some(job) = pod.meta.controller_key("Job") {
            // The cache of Jobs may be behind that of pods.
            let api: Api<Job> = Api::namespaced(self.client.clone(), &job.namespace);
            match api.get_metadata(&job.name).await {
                Ok(live)
                    if live.metadata.uid.as_deref().is_some_and(|uid| pod.meta.is_controlled_by(uid)) =>
                {
                    return Ok(None);
                }
                Err(error) if !is_code(&error, 404) => return Err(error.into()),
                _ => {}
            }
        }
        self.strip(&pod).await?;
        Ok(None)
    }
}

fn size(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A pod with the finalizer by which it is counted, with no name yet.
fn pod(meta: &Meta, spec: &JobSpec, creation: Creation) -> Pod {
    let owner = owners::new_controller_ref("batch/v1", "Job", &meta.name, &meta.uid);
    let mut pod = from_template(&spec.template, &meta.namespace, owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|name| name == JOB_TRACKING_FINALIZER) {
        finalizers.push(JOB_TRACKING_FINALIZER.to_owned());
    }
    let Some(index) = creation.index else { return pod };
    let text = index.to_string();
    pod.metadata.generate_name = Some(generate_name(&format!("{}-{index}", meta.name)));
    pod.metadata.labels.get_or_insert_default().insert(COMPLETION_INDEX.to_owned(), text.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(COMPLETION_INDEX.to_owned(), text);
    if let Some((counted, ignored)) = creation.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = Some(format!("{}-{index}", meta.name));
    pod_spec.containers.iter_mut().chain(pod_spec.init_containers.iter_mut().flatten()).for_each(tell_index);
    pod
}

fn tell_index(container: &mut Container) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == NAME) {
        return;
    }
    let field_ref = ObjectFieldSelector {
        api_version: None,
        field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
    };
    let value_from = EnvVarSource { field_ref: Some(field_ref), ..EnvVarSource::default() };
    env.push(EnvVar { name: NAME.to_owned(), value: None, value_from: Some(value_from) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_indexes() {
        let spec: JobSpec = serde_json::from_value(json!({"template": {"spec": {
            "containers": [{"name": "a"}, {"name": "b", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "own"}]}]}}}))
        .unwrap();
        let meta = Meta { namespace: "ns".into(), name: "j".into(), uid: "u".into(), ..Meta::default() };
        let made = pod(&meta, &spec, Creation { index: Some(3), failures: Some((2, 0)) });
        assert_eq!(made.metadata.generate_name.as_deref(), Some("j-3-"));
        let info = PodInfo::of(&made);
        assert!(info.job_tracked && info.meta.is_controlled_by("u"));
        assert_eq!((info.completion_index, info.index_failures, &*info.hostname), (Some(3), (2, 0), "j-3"));
        let spec = made.spec.unwrap();
        let env = |number: usize| spec.containers[number].env.clone().unwrap_or_default();
        assert!(
            env(0)[0].value_from.is_some() && env(1).len() == 1 && env(1)[0].value.as_deref() == Some("own")
        );
        let plain = pod(
            &meta,
            &serde_json::from_value(json!({"template": {}})).unwrap(),
            Creation { index: None, failures: None },
        );
        assert_eq!(plain.metadata.generate_name.as_deref(), Some("j-"));
        assert!(PodInfo::of(&plain).job_tracked);
    }
}

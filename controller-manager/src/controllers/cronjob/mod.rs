//! Starts Jobs by the clock, and remembers and removes them.

pub mod plan;
pub mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use keelson_client::cache::Cache;
use keelson_client::events::{Recorder, Type};
use keelson_objects::{owners, times};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use self::plan::Next;
use self::schedule::Schedule;
use crate::context::Context;
use crate::meta::{BY_CONTROLLER, Compact, Meta, ObjectKey};
use crate::pod_control::{is_code, is_namespace_terminating, message, reference};
use crate::sync::{self, Outcome, SyncError};

/// Added to every wait, so that the time has come when the work begins.
const MARGIN: Duration = Duration::from_millis(100);

struct CronJobs {
    client: Client,
    recorder: Recorder,
    crons: Arc<Cache<Compact<CronJob>>>,
    jobs: Arc<Cache<Compact<Job>>>,
}

pub async fn run(context: Context) {
    let client = context.client("cronjob-controller");
    let queue = context.queue("cronjob");
    let controller = CronJobs {
        recorder: context.recorder(&client, "cronjob-controller"),
        client,
        crons: context.informers().cron_jobs(),
        jobs: context.informers().jobs(),
    };
    sync::enqueue(&controller.crons, &queue);
    // Jobs are never adopted.
    sync::enqueue_controllers(&controller.jobs, &queue, "CronJob", |_: &Meta| {});
    controller.crons.wait_synced().await;
    controller.jobs.wait_synced().await;
    sync::run(&queue, context.workers("cron-job"), |key| controller.sync(key)).await;
}

/// A CronJob that is worked on.
struct Work<'a> {
    controller: &'a CronJobs,
    owner: ObjectReference,
    meta: &'a Meta,
    cron: &'a CronJob,
    spec: &'a CronJobSpec,
    status: CronJobStatus,
}

impl CronJobs {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let Some(compact) = self.crons.get(&key.namespace, &key.name) else { return Ok(None) };
        let cron = compact.object();
        let spec = &cron.spec;
        let jobs = self.jobs.indexed(BY_CONTROLLER, compact.meta.uid.as_str());
        let jobs: Vec<Job> = jobs.iter().map(|job| job.object()).collect();
        let mut work = Work {
            controller: self,
            owner: reference("batch/v1", "CronJob", &compact.meta),
            meta: &compact.meta,
            cron: &cron,
            spec,
            status: cron.status.clone().unwrap_or_default(),
        };
        work.review(&jobs).await?;
        let result = if compact.meta.deleting { Ok(None) } else { work.start().await };
        for job in plan::obsolete(spec, &jobs) {
            work.delete(plan::name(job), job.metadata.uid.clone()).await?;
        }
        if cron.status.as_ref().unwrap_or(&CronJobStatus::default()) != &work.status {
            let api: Api<CronJob> = Api::namespaced(self.client.clone(), &key.namespace);
            let updated = CronJob { status: Some(work.status), ..cron.clone() };
            api.replace_status(&key.name, &PostParams::default(), &updated).await?;
        }
        result
    }
}

impl Work<'_> {
    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.controller.client.clone(), &self.meta.namespace)
    }

    fn tell(&self, kind: Type, reason: &str, message: String) {
        self.controller.recorder.event(&self.owner, kind, reason, message);
    }

    fn active(&self) -> &[ObjectReference] {
        self.status.active.as_deref().unwrap_or_default()
    }

    fn forget(&mut self, uid: Option<&String>) {
        let mut active = self.status.active.take().unwrap_or_default();
        active.retain(|reference| reference.uid.as_ref() != uid);
        self.status.active = Some(active).filter(|active| !active.is_empty());
    }

    /// Brings what is remembered up to date with the Jobs.
    async fn review(&mut self, jobs: &[Job]) -> Result<(), SyncError> {
        let review = plan::review(self.cron, jobs);
        for job in review.unexpected {
            let uid = job.metadata.uid.as_deref().unwrap_or_default();
            // The cache of CronJobs may not show what was started last.
            let api: Api<CronJob> = Api::namespaced(self.controller.client.clone(), &self.meta.namespace);
            let live = api.get(&self.meta.name).await?;
            let active = live.status.and_then(|status| status.active).unwrap_or_default();
            if !plan::is_active(&active, uid) {
                let text =
                    format!("Saw a job that the controller did not create or forgot: {}", plan::name(job));
                self.tell(Type::Warning, "UnexpectedJob", text);
            }
        }
        for (job, condition) in review.completed {
            self.forget(job.metadata.uid.as_ref());
            let text = format!("Saw completed job: {}, condition: {condition}", plan::name(job));
            self.tell(Type::Normal, "SawCompletedJob", text);
        }
        for missing in review.missing {
            let name = missing.name.as_deref().unwrap_or_default();
            // The cache of Jobs may not show what was started last.
            match self.jobs().get_metadata(name).await {
                Ok(live) if live.metadata.uid == missing.uid => {}
                Err(error) if !is_code(&error, 404) => return Err(error.into()),
                _ => {
                    self.forget(missing.uid.as_ref());
                    self.tell(Type::Normal, "MissingJob", format!("Active job went missing: {name}"));
                }
            }
        }
        if let Some(time) = review.last_success {
            self.status.last_successful_time = Some(times::api_time(time));
        }
        Ok(())
    }

    fn schedule(&self) -> Option<Schedule> {
        let zone = match self.spec.time_zone.as_deref() {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let text = format!("invalid timeZone: {name:?}: {error}");
                    self.tell(Type::Warning, "UnknownTimeZone", text);
                    return None;
                }
            },
        };
        let text = &self.spec.schedule;
        let warn = |error: &String| {
            self.tell(
                Type::Warning,
                "UnparseableSchedule",
                format!("unparseable schedule: {text:?} : {error}"),
            );
        };
        Schedule::parse(text, zone).inspect_err(warn).ok()
    }

    /// Starts the Job that is due. What is wrong with the CronJob itself only an update of it can heal.
    async fn start(&mut self) -> Outcome {
        if self.spec.suspend == Some(true) {
            return Ok(None);
        }
        let Some(schedule) = self.schedule() else { return Ok(None) };
        let now = Timestamp::now();
        let (next, many_missed) = plan::next(self.cron, self.spec, &schedule, self.active(), now);
        if many_missed {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(Type::Warning, "TooManyMissedTimes", text.to_owned());
        }
        match next {
            Next::Wait => {}
            Next::TooLate(time) => {
                let time = time.strftime("%a, %d %b %Y %H:%M:%S +0000");
                self.tell(
                    Type::Warning,
                    "MissSchedule",
                    format!("Missed scheduled time to start a job: {time}"),
                );
            }
            Next::Forbidden => {
                let text =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(Type::Normal, "JobAlreadyActive", text.to_owned());
            }
            Next::Start { at, replace } => {
                if replace {
                    for former in self.active().to_vec() {
                        self.delete(former.name.as_deref().unwrap_or_default(), former.uid.clone()).await?;
                        self.forget(former.uid.as_ref());
                    }
                }
                self.create(at).await?;
            }
        }
        let wait =
            schedule.next(now).map(|at| Duration::try_from(times::between(now, at)).unwrap_or_default());
        Ok(wait.map(|wait| wait + MARGIN))
    }

    async fn create(&mut self, at: Timestamp) -> Result<(), SyncError> {
        let job = plan::job(self.cron, self.spec, at);
        let job = match self.jobs().create(&PostParams::default(), &job).await {
            Ok(made) => {
                self.tell(Type::Normal, "SuccessfulCreate", format!("Created job {}", plan::name(&made)));
                made
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) if is_code(&error, 409) => {
                // Made before, by one that could not write it down.
                let live = self.jobs().get(plan::name(&job)).await?;
                let uid = live.metadata.uid.as_deref().unwrap_or_default();
                if !owners::is_controlled_by(&live.metadata, &self.meta.uid)
                    || plan::is_active(self.active(), uid)
                {
                    return Ok(());
                }
                live
            }
            Err(error) => {
                self.tell(Type::Warning, "FailedCreate", format!("Error creating job: {}", message(&error)));
                return Err(error.into());
            }
        };
        let reference = reference("batch/v1", "Job", &Meta::of(&job.metadata));
        self.status.active.get_or_insert_default().push(reference);
        self.status.last_schedule_time = Some(times::api_time(at));
        Ok(())
    }

    async fn delete(&self, name: &str, uid: Option<String>) -> Result<(), SyncError> {
        let preconditions = Preconditions { uid, resource_version: None };
        let background = DeleteParams::background().preconditions(preconditions);
        match self.jobs().delete(name, &background).await {
            Ok(_) => self.tell(Type::Normal, "SuccessfulDelete", format!("Deleted job {name}")),
            Err(error) if is_code(&error, 404) => {}
            Err(error) => {
                self.tell(Type::Warning, "FailedDelete", format!("Deleted job: {}", message(&error)));
                return Err(error.into());
            }
        }
        Ok(())
    }
}

//! Which Job of a CronJob starts when, which are remembered, and which are removed. Pure.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use keelson_objects::{owners, times};
use kube::api::ObjectMeta;

use super::schedule::{Due, Schedule};
use crate::controllers::job::plan::finished;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

#[must_use]
pub fn name(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn uid(metadata: &ObjectMeta) -> &str {
    metadata.uid.as_deref().unwrap_or_default()
}

#[must_use]
pub fn is_active(active: &[ObjectReference], uid: &str) -> bool {
    active.iter().any(|reference| reference.uid.as_deref() == Some(uid))
}

/// What the Jobs that exist say about those that are remembered as running.
#[derive(Debug, Default)]
pub struct Review<'a> {
    /// Running, but not remembered.
    pub unexpected: Vec<&'a Job>,
    /// Remembered, and over: with the condition that says so.
    pub completed: Vec<(&'a Job, &'static str)>,
    /// Remembered, and not among the Jobs.
    pub missing: Vec<&'a ObjectReference>,
    pub last_success: Option<Timestamp>,
}

#[must_use]
pub fn review<'a>(cron: &'a CronJob, jobs: &'a [Job]) -> Review<'a> {
    let status = cron.status.as_ref();
    let active = status.and_then(|status| status.active.as_deref()).unwrap_or_default();
    let mut review = Review::default();
    for job in jobs {
        match (is_active(active, uid(&job.metadata)), finished(job)) {
            (false, None) => review.unexpected.push(job),
            (true, Some(condition)) => review.completed.push((job, condition)),
            _ => {}
        }
        if finished(job) == Some("Complete") {
            let at = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
            review.last_success = review.last_success.max(at.map(|at| at.0));
        }
    }
    let known = status.and_then(|status| status.last_successful_time.as_ref()).map(|time| time.0);
    review.last_success = review.last_success.filter(|time| Some(*time) > known);
    let exists = |reference: &&ObjectReference| jobs.iter().any(|job| job.metadata.uid == reference.uid);
    review.missing = active.iter().filter(|reference| !exists(reference)).collect();
    review
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Wait,
    TooLate(Timestamp),
    /// What was started before still runs and may not have company.
    Forbidden,
    Start {
        at: Timestamp,
        replace: bool,
    },
}

/// What to do at `now`, and whether too many starts were missed. `active` are the Jobs that run.
#[must_use]
pub fn next(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    active: &[ObjectReference],
    now: Timestamp,
) -> (Next, bool) {
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref()).map(|time| time.0);
    let created = cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut earliest = last.or(created).unwrap_or(now);
    let deadline = spec.starting_deadline_seconds;
    if let Some(seconds) = deadline {
        earliest = earliest.max(times::plus_seconds(now, seconds.saturating_neg()));
    }
    let Due::At { time, many_missed } = schedule.due(earliest, now) else { return (Next::Wait, false) };
    let started = active.iter().any(|job| job.name.as_deref() == Some(job_name(cron, time).as_str()));
    let next = if deadline.is_some_and(|seconds| times::plus_seconds(time, seconds) < now) {
        Next::TooLate(time)
    } else if started || last == Some(time) {
        Next::Wait
    } else {
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => Next::Forbidden,
            policy => Next::Start { at: time, replace: policy == Some("Replace") },
        }
    };
    (next, many_missed)
}

/// The same for every look at the same time: two controllers cannot both make it.
#[must_use]
pub fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.metadata.name.as_deref().unwrap_or_default(), at.as_second() / 60)
}

#[must_use]
pub fn job(cron: &CronJob, spec: &CronJobSpec, at: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let zone = spec.time_zone.as_deref().and_then(|name| jiff::tz::TimeZone::get(name).ok());
    let zoned = at.to_zoned(zone.unwrap_or(jiff::tz::TimeZone::UTC));
    let format = if zoned.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), zoned.strftime(format).to_string());
    let of = &cron.metadata;
    let owner =
        owners::new_controller_ref("batch/v1", "CronJob", of.name.as_deref().unwrap_or_default(), uid(of));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: of.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// Jobs that are over and beyond the limits, the oldest first.
#[must_use]
pub fn obsolete<'a>(spec: &CronJobSpec, jobs: &'a [Job]) -> Vec<&'a Job> {
    let beyond = |condition: &str, limit: Option<i32>| {
        let Some(limit) = limit else { return Vec::new() };
        let over = |job: &&Job| finished(job) == Some(condition) && job.metadata.deletion_timestamp.is_none();
        let mut all: Vec<&Job> = jobs.iter().filter(over).collect();
        all.sort_by_key(|job| {
            let started =
                job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            // One that never started counts as newest.
            (Reverse(started.is_none()), Reverse(started), Reverse(name(job)))
        });
        let mut old = all.split_off(all.len().min(usize::try_from(limit).unwrap_or(0)));
        old.reverse();
        old
    };
    let mut all = beyond("Complete", spec.successful_jobs_history_limit);
    all.extend(beyond("Failed", spec.failed_jobs_history_limit));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;
    use serde_json::{Value, json};

    fn time(text: &str) -> Timestamp {
        times::parse(&format!("2026-11-20T{text}Z")).unwrap()
    }

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut whole = json!({"metadata": {"name": "tick", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-11-20T11:59:30Z"},
            "spec": {"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}},
            "status": status});
        for (key, value) in spec.as_object().unwrap() {
            whole["spec"][key] = value.clone();
        }
        serde_json::from_value(whole).unwrap()
    }

    fn job_of(name: &str, condition: &str, minute: u32) -> Job {
        let conditions = json!([{"type": condition, "status": "True"}]);
        let mut status = json!({"startTime": format!("2026-11-20T12:{minute:02}:00Z"),
            "completionTime": format!("2026-11-20T12:{minute:02}:30Z")});
        if !condition.is_empty() {
            status["conditions"] = conditions;
        }
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "status": status})).unwrap()
    }

    #[test]
    fn starting() {
        #[track_caller]
        fn check(spec: Value, status: Value, now: &str, expected: Next) {
            let cron = cron(spec, status);
            let spec = &cron.spec;
            let schedule = Schedule::parse(&spec.schedule, TimeZone::UTC).unwrap();
            let active = cron.status.as_ref().and_then(|status| status.active.as_deref()).unwrap_or_default();
            assert_eq!(next(&cron, spec, &schedule, active, time(now)).0, expected);
        }
        let start = |at: &str, replace| Next::Start { at: time(at), replace };
        let none = json!({});
        let running =
            json!({"active": [{"name": "tick-1", "uid": "1"}], "lastScheduleTime": "2026-11-20T12:00:00Z"});
        check(none.clone(), none.clone(), "11:59:59", Next::Wait);
        check(none.clone(), none.clone(), "12:00:00", start("12:00:00", false));
        check(none.clone(), none.clone(), "12:35:00", start("12:30:00", false));
        check(none.clone(), json!({"lastScheduleTime": "2026-11-20T12:00:00Z"}), "12:05:00", Next::Wait);
        check(none.clone(), running.clone(), "12:10:01", start("12:10:00", false));
        check(json!({"concurrencyPolicy": "Forbid"}), running.clone(), "12:10:01", Next::Forbidden);
        check(json!({"concurrencyPolicy": "Replace"}), running, "12:10:01", start("12:10:00", true));
        check(json!({"startingDeadlineSeconds": 60}), none.clone(), "12:00:30", start("12:00:00", false));
        check(json!({"startingDeadlineSeconds": 60}), none.clone(), "12:05:00", Next::Wait);
        let name = format!("tick-{}", time("12:00:00").as_second() / 60);
        check(none, json!({"active": [{"name": name, "uid": "1"}]}), "12:00:05", Next::Wait);
    }

    #[test]
    fn too_many_missed() {
        let cron =
            cron(json!({"schedule": "* * * * *"}), json!({"lastScheduleTime": "2026-11-20T10:00:00Z"}));
        let spec = &cron.spec;
        let schedule = Schedule::parse(&spec.schedule, TimeZone::UTC).unwrap();
        assert!(next(&cron, spec, &schedule, &[], time("12:00:00")).1);
        assert!(!next(&cron, spec, &schedule, &[], time("11:00:00")).1);
    }

    #[test]
    fn reviewing() {
        let cron = cron(
            json!({}),
            json!({"active": [{"name": "a", "uid": "a"}, {"name": "gone", "uid": "gone"}],
            "lastSuccessfulTime": "2026-11-20T12:05:30Z"}),
        );
        let jobs = [
            job_of("a", "Complete", 7),
            job_of("b", "", 9),
            job_of("c", "Complete", 3),
            job_of("d", "Failed", 1),
        ];
        let review = review(&cron, &jobs);
        assert_eq!(review.unexpected.iter().map(|job| name(job)).collect::<Vec<_>>(), ["b"]);
        assert_eq!(
            review.completed.iter().map(|(job, how)| (name(job), *how)).collect::<Vec<_>>(),
            [("a", "Complete")]
        );
        assert_eq!(review.missing.len(), 1);
        assert_eq!(review.last_success, Some(time("12:07:30")));
        assert_eq!(super::review(&cron, &jobs[2..]).last_success, None);
    }

    #[test]
    fn history() {
        #[track_caller]
        fn check(successful: Option<i32>, failed: Option<i32>, expected: &[&str]) {
            let jobs = [
                job_of("new", "Complete", 9),
                job_of("old", "Complete", 1),
                job_of("mid", "Complete", 5),
                job_of("runs", "", 0),
                job_of("bad", "Failed", 2),
            ];
            let cron = cron(
                json!({"successfulJobsHistoryLimit": successful, "failedJobsHistoryLimit": failed}),
                json!({}),
            );
            let names: Vec<_> = obsolete(&cron.spec, &jobs).into_iter().map(name).collect();
            assert_eq!(names, expected);
        }
        check(Some(3), Some(1), &[]);
        check(Some(1), Some(1), &["old", "mid"]);
        check(Some(0), Some(0), &["old", "mid", "new", "bad"]);
        check(None, None, &[]);
    }

    #[test]
    fn jobs() {
        let cron = cron(json!({"timeZone": "Europe/Berlin"}), json!({}));
        let made = job(&cron, &cron.spec, time("12:00:00"));
        assert_eq!(name(&made), "tick-29919600");
        assert_eq!(made.metadata.annotations.unwrap()[SCHEDULED_AT], "2026-11-20T13:00:00+01:00");
        assert_eq!(made.metadata.labels.unwrap()["a"], "b");
        let utc = super::tests::cron(json!({}), json!({}));
        let made = job(&utc, &utc.spec, time("12:00:00"));
        assert_eq!(made.metadata.annotations.unwrap()[SCHEDULED_AT], "2026-11-20T12:00:00Z");
    }
}

//! A Job's counts and conditions: what is written before finalizers are removed, and what afterwards. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};
use keelson_objects::times;

use super::super::failure_policy::{Consequence, consequence};
use super::super::indexes::Indexes;
use super::{
    COMPLETE, Decision, Done, FAILED, FAILURE_TARGET, Observed, SUCCESS_CRITERIA_MET, Verdict, counted,
};
use crate::pod::{Phase, PodInfo};

const SUSPENDED: &str = "Suspended";
/// The most uids that one status may hold.
const MOST_UNCOUNTED: usize = 500;

pub struct Settled {
    pub status: JobStatus,
    /// The status must be written before finalizers are removed.
    pub must_write: bool,
    /// The status says something new.
    pub changed: bool,
    pub release: Vec<Arc<PodInfo>>,
    pub verdict: Option<Verdict>,
    /// `Suspended` or `Resumed`.
    pub event: Option<(&'static str, &'static str)>,
    /// There was room for all uids.
    pub all: bool,
}

/// Whether the condition changed. One that is absent is false already.
fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let text = if value { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let place = conditions.iter().position(|condition| condition.type_ == kind);
    if place.map_or(!value, |place| conditions[place].status == text) {
        if conditions.is_empty() {
            status.conditions = None;
        }
        return false;
    }
    let new = JobCondition {
        type_: kind.to_owned(),
        status: text.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(times::api_time(now)),
        last_transition_time: Some(times::api_time(now)),
    };
    match place {
        Some(place) => conditions[place] = new,
        None => conditions.push(new),
    }
    true
}

fn nonzero(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count != 0)
}

impl Observed<'_> {
    /// What to write now that the action was taken, and which pods may then lose their finalizer.
    #[must_use]
    pub fn settle(&self, decision: &Decision, done: Done) -> Settled {
        let mut status = self.status();
        let active = self.active();
        let now_active = counted(active.iter()) + done.created - done.deleted;
        let mut verdict = decision.verdict.clone();
        let mut event = None;
        if status.start_time.is_none() {
            status.start_time = decision.started.map(times::api_time);
        }
        if verdict.is_some() {
            if now_active != 0 || !self.satisfied {
                // Pods may remain that nobody has seen.
                verdict = None;
            }
        } else if match self.completions() {
            None => decision.succeeded > 0 && now_active == 0,
            Some(completions) => decision.succeeded >= completions && now_active == 0,
        } {
            verdict =
                Some(super::verdict(true, "CompletionsReached", "Reached expected number of succeeded pods"));
        } else if decision.managed {
            let (reason, message) = if self.is_suspended() {
                ("JobSuspended", "Job suspended")
            } else {
                ("JobResumed", "Job resumed")
            };
            if set_condition(&mut status, SUSPENDED, self.is_suspended(), reason, message, self.now) {
                event = Some((if self.is_suspended() { "Suspended" } else { "Resumed" }, message));
                if !self.is_suspended() {
                    status.start_time = Some(times::api_time(self.now));
                }
            }
        }
        status.active = nonzero(now_active);
        status.ready = Some(counted(active.iter().filter(|pod| pod.is_ready())) - done.ready);
        status.terminating = Some(counted(self.terminating()) + done.deleted);
        let before = (status.uncounted_terminated_pods.clone(), status.completed_indexes.clone());
        let failed_before = status.failed_indexes.clone();
        self.clean(&mut status);
        let (release, all) = self.count(decision, verdict.as_ref(), &mut status);
        let mut must_write = before
            != (status.uncounted_terminated_pods.clone(), status.completed_indexes.clone())
            || failed_before != status.failed_indexes;
        if let Some(verdict) = &verdict {
            let kind = if verdict.succeeded { SUCCESS_CRITERIA_MET } else { FAILURE_TARGET };
            must_write |= set_condition(&mut status, kind, true, &verdict.reason, &verdict.message, self.now);
        }
        let changed = must_write || !same(&status, &self.status());
        Settled { status, must_write, changed, release, verdict, event, all }
    }

    fn clean(&self, status: &mut JobStatus) {
        let tracked: HashSet<&str> =
            self.pods.iter().filter(|pod| self.is_tracked(pod)).map(|pod| pod.meta.uid.as_str()).collect();
        count_released(status, &tracked);
    }

    /// Notes the uids of pods that have ended; whether all found room.
    fn count(
        &self,
        decision: &Decision,
        verdict: Option<&Verdict>,
        status: &mut JobStatus,
    ) -> (Vec<Arc<PodInfo>>, bool) {
        let failing = verdict.is_some_and(|verdict| !verdict.succeeded);
        let completions = self.completions().unwrap_or(0);
        let known = Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
        let mut completed = Vec::new();
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        let mut succeeded = uncounted.succeeded.take().unwrap_or_default();
        let mut failed = uncounted.failed.take().unwrap_or_default();
        let seen: HashSet<String> = succeeded.iter().chain(&failed).cloned().collect();
        let mut release = Vec::new();
        let mut all = true;
        for pod in self.pods.iter().filter(|pod| self.is_tracked(pod)) {
            let lost = self.has_failed(pod);
            let ended = lost || pod.phase == Phase::Succeeded;
            if !(ended || self.is_deleting() || verdict.is_some()) {
                continue;
            }
            if verdict.is_none() && !self.is_deleting() && decision.kept.contains(&pod.meta.uid) {
                continue;
            }
            release.push(pod.clone());
            let index = self.index(pod);
            let counts = !seen.contains(&pod.meta.uid) && (!self.is_indexed() || index.is_some());
            if pod.phase == Phase::Succeeded {
                match index.filter(|_| self.is_indexed()) {
                    Some(index) if !known.contains(index) => completed.push(index),
                    None if counts && !self.is_indexed() => succeeded.push(pod.meta.uid.clone()),
                    _ => {}
                }
            } else if (lost || failing) && counts && consequence(self.spec, pod) != Consequence::Ignored {
                failed.push(pod.meta.uid.clone());
            }
            if completed.len() + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
                all = false;
                break;
            }
        }
        let filled = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
        status.uncounted_terminated_pods =
            Some(UncountedTerminatedPods { succeeded: filled(succeeded), failed: filled(failed) });
        if self.is_indexed() {
            let mut known = known;
            known.extend(completed);
            status.succeeded = nonzero(known.len());
            status.completed_indexes = Some(known.to_string()).filter(|text| !text.is_empty());
            status.failed_indexes = decision.failed_indexes.as_ref().map(ToString::to_string);
        }
        (release, all)
    }
}

/// Turns uids of pods that have no finalizer any more into numbers. Whether there were any.
pub fn count_released<S: std::borrow::Borrow<str> + Eq + std::hash::Hash>(
    status: &mut JobStatus,
    tracked: &HashSet<S>,
) -> bool {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else { return false };
    let take = |list: &mut Option<Vec<String>>, total: &mut Option<i32>| {
        let Some(uids) = list else { return false };
        let before = uids.len();
        uids.retain(|uid| tracked.contains(uid.as_str()));
        let gone = before - uids.len();
        if uids.is_empty() {
            *list = None;
        }
        if gone > 0 {
            *total = Some(total.unwrap_or(0) + i32::try_from(gone).unwrap_or(i32::MAX));
        }
        gone > 0
    };
    let succeeded = take(&mut uncounted.succeeded, &mut status.succeeded);
    take(&mut uncounted.failed, &mut status.failed) || succeeded
}

/// After finalizers were removed: the numbers, and the end, if nothing is left to wait for. `tracked` are the uids of
/// pods that have their finalizer still. Whether the status changed, and whether this is the end.
pub fn conclude(
    status: &mut JobStatus,
    tracked: &HashSet<String>,
    verdict: Option<&Verdict>,
    now: Timestamp,
) -> (bool, bool) {
    let changed = count_released(status, tracked);
    let Some(verdict) = verdict else { return (changed, false) };
    let uncounted = status.uncounted_terminated_pods.as_ref();
    let waits =
        uncounted.is_some_and(|uncounted| uncounted.succeeded.is_some() || uncounted.failed.is_some());
    if waits || status.terminating.unwrap_or(0) > 0 {
        return (changed, false);
    }
    let kind = if verdict.succeeded { COMPLETE } else { FAILED };
    set_condition(status, kind, true, &verdict.reason, &verdict.message, now);
    if verdict.succeeded {
        status.completion_time = Some(times::api_time(now));
    }
    (true, true)
}

/// Whether two statuses say the same: a count that is left out is zero.
fn same(a: &JobStatus, b: &JobStatus) -> bool {
    let counts = |s: &JobStatus| [s.active, s.succeeded, s.failed].map(|count| count.unwrap_or(0));
    let rest = |s: &JobStatus| {
        let mut s = s.clone();
        (s.active, s.succeeded, s.failed) = (None, None, None);
        s.conditions = s.conditions.filter(|conditions| !conditions.is_empty());
        s.uncounted_terminated_pods.get_or_insert_default();
        s
    };
    counts(a) == counts(b) && rest(a) == rest(b)
}

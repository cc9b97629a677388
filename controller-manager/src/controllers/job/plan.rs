//! What a Job lacks, whether it is over, and how its pods are counted. Pure.
//!
//! Every pod carries a finalizer until it is counted. Counting has two steps, so that a crash between them neither
//! loses a pod nor counts it twice: its uid goes into `uncountedTerminatedPods` (an index into
//! `completedIndexes`), then the finalizer is removed; once it is gone the uid becomes part of a number.
//! [`Observed::decide`] says what to do with pods, [`Observed::settle`] what to write before finalizers are
//! removed, [`conclude`] what to write afterwards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use keelson_objects::times;

use super::failure_policy::{Consequence, consequence};
use super::indexes::Indexes;
use crate::pod::{Phase, PodInfo, choose_to_delete};
use crate::pod_control::BURST;

mod counting;

pub use counting::{Settled, conclude};

const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";
const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
const FAILURE_TARGET: &str = "FailureTarget";
const BACKOFF_FIRST: i64 = 10;
const BACKOFF_MOST: i64 = 600;

/// Failures since the last success, and when the last of them was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    pub count: u32,
    pub last: Option<Timestamp>,
}

/// How a Job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub succeeded: bool,
    pub reason: String,
    pub message: String,
}

/// A pod to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Creation {
    pub index: Option<i32>,
    /// Failures of this index before: counted and ignored.
    pub failures: Option<(i32, i32)>,
}

#[derive(Debug)]
pub enum Action {
    Nothing,
    /// The Job goes on, these do not count as failed: their finalizers go first.
    Discard(Vec<Arc<PodInfo>>),
    /// The Job is over.
    Stop(Vec<Arc<PodInfo>>),
    Create(Vec<Creation>),
}

/// What is observed of one Job that is not over.
pub struct Observed<'a> {
    pub job: &'a Job,
    pub spec: &'a JobSpec,
    /// In the order of their indexes.
    pub pods: &'a [Arc<PodInfo>],
    /// Pods whose finalizer was removed, which the cache may not show yet.
    pub released: &'a HashSet<String>,
    pub failures: Failures,
    /// The cache shows every pod that was made or removed.
    pub satisfied: bool,
    pub now: Timestamp,
}

pub struct Decision {
    pub action: Action,
    pub failures: Failures,
    /// When to look again.
    pub again: Option<Timestamp>,
    verdict: Option<Verdict>,
    started: Option<Timestamp>,
    succeeded: i32,
    completed: Indexes,
    failed_indexes: Option<Indexes>,
    /// Failed pods that keep their finalizer until another takes their index over.
    kept: HashSet<String>,
    managed: bool,
}

/// What became of the action.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    pub created: i32,
    pub deleted: i32,
    /// Of the deleted.
    pub ready: i32,
}

fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind && condition.status == "True")
}

/// Whether a Job has come to its end: `Complete` or `Failed`.
#[must_use]
pub fn finished(job: &Job) -> Option<&'static str> {
    let status = job.status.as_ref()?;
    [COMPLETE, FAILED].into_iter().find(|kind| condition(status, kind).is_some())
}

fn counted(of: impl Iterator) -> i32 {
    i32::try_from(of.count()).unwrap_or(i32::MAX)
}

fn uids(list: Option<&Vec<String>>) -> HashSet<&str> {
    list.into_iter().flatten().map(String::as_str).collect()
}

fn ended_at(pod: &PodInfo) -> Timestamp {
    pod.finished.or(pod.deletion).unwrap_or(pod.meta.created)
}

/// 10 s after the first failure, doubling up to 10 min.
fn backoff_until(failures: Failures) -> Option<Timestamp> {
    let doublings = failures.count.checked_sub(1)?.min(16);
    Some(times::plus_seconds(failures.last?, (BACKOFF_FIRST << doublings).min(BACKOFF_MOST)))
}

fn verdict(succeeded: bool, reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { succeeded, reason: reason.to_owned(), message: message.into() }
}

impl<'a> Observed<'a> {
    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    fn completions(&self) -> Option<i32> {
        self.spec.completions
    }

    pub fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn is_deleting(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    /// Pods that are being deleted are replaced once they have ended.
    fn waits_for_the_end(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
            || self.spec.pod_failure_policy.is_some()
    }

    fn has_failed(&self, pod: &PodInfo) -> bool {
        pod.phase == Phase::Failed
            || !self.waits_for_the_end() && pod.meta.deleting && pod.phase != Phase::Succeeded
    }

    fn is_tracked(&self, pod: &PodInfo) -> bool {
        pod.job_tracked && !self.released.contains(&pod.meta.uid)
    }

    fn index(&self, pod: &PodInfo) -> Option<i32> {
        pod.completion_index.filter(|index| (0..self.completions().unwrap_or(0)).contains(index))
    }

    /// Pods that are not counted yet and may be.
    fn countable(&self) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.pods
            .iter()
            .filter(|pod| self.is_tracked(pod) && (!self.is_indexed() || self.index(pod).is_some()))
    }

    fn active(&self) -> Vec<&'a Arc<PodInfo>> {
        self.pods.iter().filter(|pod| pod.is_active()).collect()
    }

    fn terminating(&self) -> impl Iterator<Item = &'a Arc<PodInfo>> {
        self.pods.iter().filter(|pod| pod.meta.deleting && !pod.is_terminal())
    }

    /// What to do with the pods, and whether the Job is over.
    #[must_use]
    pub fn decide(&self) -> Decision {
        let status = self.status();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (counted_succeeded, counted_failed) =
            (uids(uncounted.succeeded.as_ref()), uids(uncounted.failed.as_ref()));
        let new = |known: &HashSet<&str>, is: &dyn Fn(&PodInfo) -> bool| -> Vec<&Arc<PodInfo>> {
            self.countable().filter(|pod| is(pod) && !known.contains(pod.meta.uid.as_str())).collect()
        };
        let new_succeeded = new(&counted_succeeded, &|pod| pod.phase == Phase::Succeeded);
        let new_failed = new(&counted_failed, &|pod| self.has_failed(pod));
        let not_ignored = new_failed.iter().filter(|pod| consequence(self.spec, pod) != Consequence::Ignored);
        let failed = status.failed.unwrap_or(0) + counted(not_ignored) + counted(counted_failed.iter());
        let mut succeeded =
            status.succeeded.unwrap_or(0) + counted(new_succeeded.iter()) + counted(counted_succeeded.iter());
        let started = status.start_time.as_ref().map(|time| time.0);
        let mut decision = Decision {
            action: Action::Nothing,
            failures: self.failures_after(&new_succeeded, &new_failed),
            again: None,
            verdict: None,
            started: started.or_else(|| (!self.is_suspended()).then(|| times::truncate(self.now))),
            succeeded: 0,
            completed: Indexes::default(),
            failed_indexes: None,
            kept: HashSet::new(),
            managed: false,
        };
        decision.verdict = self.verdict(&status, failed, decision.started, &mut decision.again);
        if self.is_indexed() {
            let completions = self.completions().unwrap_or(0);
            decision.completed =
                Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
            let ended = self.countable().filter(|pod| pod.phase == Phase::Succeeded);
            decision.completed.extend(ended.filter_map(|pod| self.index(pod)));
            succeeded = decision.completed.len();
            if let Some(limit) = self.spec.backoff_limit_per_index {
                self.judge_indexes(&mut decision, &status, limit, completions);
            }
            if decision.verdict.is_none() {
                decision.verdict = self.success_policy(&decision.completed);
            }
        }
        decision.succeeded = succeeded;
        if decision.verdict.is_some() {
            decision.action = Action::Stop(self.active().into_iter().cloned().collect());
        } else if self.satisfied && !self.is_deleting() {
            decision.managed = true;
            decision.action = self.manage(&mut decision);
        }
        decision
    }

    fn failures_after(&self, succeeded: &[&Arc<PodInfo>], failed: &[&Arc<PodInfo>]) -> Failures {
        let mut all: Vec<(Timestamp, bool)> = succeeded.iter().map(|pod| (ended_at(pod), true)).collect();
        all.extend(failed.iter().map(|pod| (ended_at(pod), false)));
        all.sort_unstable();
        all.into_iter().fold(self.failures, |before, (at, success)| match success {
            true => Failures::default(),
            false => Failures { count: before.count + 1, last: Some(at) },
        })
    }

    fn verdict(
        &self,
        status: &JobStatus,
        failed: i32,
        started: Option<Timestamp>,
        again: &mut Option<Timestamp>,
    ) -> Option<Verdict> {
        let earlier = |kind, succeeded| {
            let known = condition(status, kind)?;
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            Some(Verdict { succeeded, reason: text(&known.reason), message: text(&known.message) })
        };
        if let Some(known) = earlier(SUCCESS_CRITERIA_MET, true).or_else(|| earlier(FAILURE_TARGET, false)) {
            return Some(known);
        }
        for pod in self.pods.iter().filter(|pod| self.has_failed(pod)) {
            if let Consequence::FailsJob(message) = consequence(self.spec, pod) {
                return Some(verdict(false, "PodFailurePolicy", message));
            }
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if failed > limit || self.restarts_exceed(limit) {
            return Some(verdict(
                false,
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ));
        }
        let deadline = self.spec.active_deadline_seconds.filter(|_| !self.is_suspended());
        if let (Some(seconds), Some(started)) = (deadline, started) {
            let at = times::plus_seconds(started, seconds);
            if at <= self.now {
                let text = "Job was active longer than specified deadline";
                return Some(verdict(false, "DeadlineExceeded", text));
            }
            *again = Some(at);
        }
        None
    }

    /// Containers that are restarted in place count as failures too.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let running = self.pods.iter().filter(|pod| matches!(pod.phase, Phase::Running | Phase::Pending));
        let restarts: i32 = running.map(|pod| pod.restarts_total).sum();
        restarts > 0 && restarts >= limit
    }

    fn judge_indexes(&self, decision: &mut Decision, status: &JobStatus, limit: i32, completions: i32) {
        let mut failed = Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions);
        let is_over = |pod: &&Arc<PodInfo>| match consequence(self.spec, pod) {
            Consequence::FailsIndex => true,
            Consequence::Ignored => false,
            _ => pod.index_failures.0 >= limit,
        };
        let lost = self.countable().filter(|pod| self.has_failed(pod)).filter(is_over);
        let lost: Vec<i32> = lost.filter_map(|pod| self.index(pod)).collect();
        failed.extend(lost.into_iter().filter(|index| !decision.completed.contains(*index)));
        if decision.verdict.is_none() {
            if self.spec.max_failed_indexes.is_some_and(|most| failed.len() > most) {
                let text = "Job has exceeded the specified maximal number of failed indexes";
                decision.verdict = Some(verdict(false, "MaxFailedIndexesExceeded", text));
            } else if !failed.is_empty() && failed.len() + decision.completed.len() >= completions {
                decision.verdict = Some(verdict(false, "FailedIndexes", "Job has failed indexes"));
            }
        }
        let kept = self.last_failed(&decision.completed, &failed);
        decision.kept = kept.values().map(|pod| pod.meta.uid.clone()).collect();
        decision.failed_indexes = Some(failed);
    }

    /// The last failed pod of each index that waits for another: it knows how often the index failed.
    fn last_failed(&self, completed: &Indexes, failed: &Indexes) -> BTreeMap<i32, &'a Arc<PodInfo>> {
        let active: HashSet<i32> = self.active().iter().filter_map(|pod| self.index(pod)).collect();
        let mut last: BTreeMap<i32, &Arc<PodInfo>> = BTreeMap::new();
        for pod in self.countable().filter(|pod| self.has_failed(pod)) {
            let Some(index) = self.index(pod) else { continue };
            if completed.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            let key = |pod: &PodInfo| (pod.index_failures.0 + pod.index_failures.1, ended_at(pod));
            if last.get(&index).is_none_or(|known| key(known) <= key(pod)) {
                last.insert(index, pod);
            }
        }
        last
    }

    fn success_policy(&self, completed: &Indexes) -> Option<Verdict> {
        let rules = self.spec.success_policy.iter().flat_map(|policy| &policy.rules);
        for (number, rule) in rules.enumerate() {
            let all = rule
                .succeeded_indexes
                .as_ref()
                .map(|text| Indexes::parse(text, self.completions().unwrap_or(0)));
            let of = match &all {
                None => completed.len(),
                Some(all) => counted(all.iter().filter(|index| completed.contains(*index))),
            };
            let wanted = rule.succeeded_count.or_else(|| all.map(|all| all.len()));
            if wanted.is_some_and(|wanted| of >= wanted) {
                return Some(verdict(true, "SuccessPolicy", format!("Matched rules at index {number}")));
            }
        }
        None
    }

    fn manage(&self, decision: &mut Decision) -> Action {
        let active = self.active();
        let count = counted(active.iter());
        if self.is_suspended() {
            return match active.is_empty() {
                true => Action::Nothing,
                false => Action::Discard(active.into_iter().take(BURST).cloned().collect()),
            };
        }
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.completions() {
            None if decision.succeeded > 0 => count,
            None => parallelism,
            Some(completions) => (completions - decision.succeeded).min(parallelism).max(0),
        };
        let excess = self.excess(&active, usize::try_from(count - wanted).unwrap_or(0));
        if !excess.is_empty() {
            return Action::Discard(excess);
        }
        let terminating = if self.waits_for_the_end() { counted(self.terminating()) } else { 0 };
        let missing = usize::try_from(wanted - terminating - count).unwrap_or(0).min(BURST);
        if missing == 0 {
            return Action::Nothing;
        }
        if self.spec.backoff_limit_per_index.is_none()
            && let Some(until) = backoff_until(decision.failures).filter(|until| *until > self.now)
        {
            decision.again = Some(decision.again.map_or(until, |again| again.min(until)));
            return Action::Nothing;
        }
        if !self.is_indexed() {
            return Action::Create(vec![Creation { index: None, failures: None }; missing]);
        }
        let creations = self.pending_indexes(decision, &active, missing);
        if creations.is_empty() { Action::Nothing } else { Action::Create(creations) }
    }

    /// Active pods to remove: those of wrong or duplicate indexes, then what dies first.
    fn excess(&self, active: &[&Arc<PodInfo>], at_least: usize) -> Vec<Arc<PodInfo>> {
        let mut left: Vec<Arc<PodInfo>> = active.iter().map(|pod| (*pod).clone()).collect();
        let mut remove = Vec::new();
        let nobody = HashMap::new();
        if self.is_indexed() {
            let mut by_index: BTreeMap<Option<i32>, Vec<Arc<PodInfo>>> = BTreeMap::new();
            for pod in left.drain(..) {
                by_index.entry(self.index(&pod)).or_default().push(pod);
            }
            for (index, pods) in by_index {
                let surplus = pods.len() - usize::from(index.is_some());
                let gone = choose_to_delete(pods.clone(), surplus, &nobody, self.now);
                left.extend(
                    pods.into_iter().filter(|pod| !gone.iter().any(|other| other.meta.uid == pod.meta.uid)),
                );
                remove.extend(gone.into_iter().take(surplus));
            }
        }
        let more = at_least.saturating_sub(remove.len());
        if more > 0 {
            remove.extend(choose_to_delete(left, more, &nobody, self.now).into_iter().take(more));
        }
        remove.truncate(BURST);
        remove
    }

    fn pending_indexes(
        &self,
        decision: &mut Decision,
        active: &[&Arc<PodInfo>],
        count: usize,
    ) -> Vec<Creation> {
        let mut taken: HashSet<i32> = active.iter().filter_map(|pod| self.index(pod)).collect();
        if self.waits_for_the_end() {
            taken.extend(self.terminating().filter_map(|pod| self.index(pod)));
        }
        let failed = decision.failed_indexes.clone().unwrap_or_default();
        let pending = (0..self.completions().unwrap_or(0)).filter(|index| {
            !taken.contains(index) && !decision.completed.contains(*index) && !failed.contains(*index)
        });
        let pending: Vec<i32> = pending.take(count).collect();
        if self.spec.backoff_limit_per_index.is_none() {
            return pending
                .into_iter()
                .map(|index| Creation { index: Some(index), failures: None })
                .collect();
        }
        let last = self.last_failed(&decision.completed, &failed);
        let mut ready = Vec::new();
        for index in pending {
            let mut before = (0, 0);
            if let Some(pod) = last.get(&index) {
                before = pod.index_failures;
                let failures = Failures {
                    count: u32::try_from(before.0 + before.1 + 1).unwrap_or(1),
                    last: Some(ended_at(pod)),
                };
                if let Some(until) = backoff_until(failures).filter(|until| *until > self.now) {
                    decision.again = Some(decision.again.map_or(until, |again| again.min(until)));
                    continue;
                }
                match consequence(self.spec, pod) {
                    Consequence::Ignored => before.1 += 1,
                    _ => before.0 += 1,
                }
            }
            ready.push(Creation { index: Some(index), failures: Some(before) });
        }
        ready
    }
}

#[cfg(test)]
mod tests;

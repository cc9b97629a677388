//! When a pod is looked at again though nothing happened: deadlines, back-offs, tokens, expected ends.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodSpec;

use super::{RETRY, RETRY_FAILED, Work, Worker};
use crate::{
    pod::{End, plan},
    runtime::observe::{ObservedPod, State},
    status::compute::Waiting,
};

/// The least time between looks at containers that are expected to end soon.
pub(super) const MINIMUM_POLL: Duration = Duration::from_millis(100);
const RESIZE_RETRY: Duration = Duration::from_secs(10);
/// A runtime without events is listed this often anyway.
const MAXIMUM_POLL: Duration = Duration::from_secs(1);

impl Worker {
    /// Upstream's activeDeadlineSeconds: counted from the pod's start time.
    pub(super) fn check_deadline(&mut self, spec: &PodSpec) {
        if self.failed.is_none() && self.until_deadline(spec) == Some(Duration::ZERO) {
            self.failed = Some(End::from(Waiting {
                reason: "DeadlineExceeded".to_owned(),
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
            }));
        }
    }

    pub(super) fn until_deadline(&self, spec: &PodSpec) -> Option<Duration> {
        let limit = Duration::from_secs(u64::try_from(spec.active_deadline_seconds?).ok()?);
        let started = self.status.start_time.as_ref()?.0;
        let age = Duration::try_from(Timestamp::now().duration_since(started)).unwrap_or_default();
        Some(limit.saturating_sub(age))
    }

    /// How long nothing has to be done unless something happens.
    pub(super) fn pause(&self, spec: &PodSpec, observed: &ObservedPod) -> Duration {
        let now = Timestamp::now();
        let backoffs = observed.containers.iter().filter_map(|container| {
            let key = super::starting::restart_key(&container.name, &container.hash);
            self.restarts.remaining(&key, container.finished_at()?, now)
        });
        let pulls = spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .filter(|container| self.waiting.contains_key(&container.name))
            .map(|container| {
                let image = container.image.as_deref().unwrap_or_default();
                let pull = self.pulls.last(image).and_then(|(at, _)| self.pulls.remaining(image, at, now));
                let postponed = self.postponed.left(&Work::Container(container.name.clone()), Instant::now());
                postponed.or(pull).unwrap_or(RETRY_FAILED)
            });
        let renew =
            self.mounted.renew_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        // Room may come when other pods go, which nobody says here.
        let resize = self.resize_pending.as_ref().map(|_| RESIZE_RETRY);
        backoffs
            .chain(pulls)
            .chain(resize)
            .chain(renew)
            .chain(self.until_deadline(spec))
            .chain(expected_end(spec, observed, now))
            .chain([self.kubelet.config.sync_frequency.mul_f64(rand::random_range(1.0..1.5))])
            .min()
            .unwrap_or(RETRY)
            .max(Duration::from_millis(10))
    }
}

/// How soon a container may end whose end is waited for: init containers, and those of pods that run to completion.
///
/// A young one is looked at often and an old one as often as the runtime is listed anyway.
fn expected_end(spec: &PodSpec, observed: &ObservedPod, now: Timestamp) -> Option<Duration> {
    let to_completion = plan::RestartPolicy::of(spec) != plan::RestartPolicy::Always;
    let init = |name: &str| {
        spec.init_containers
            .iter()
            .flatten()
            .any(|container| container.name == name && !plan::is_sidecar(container))
    };
    let ages = observed.containers.iter().filter_map(|container| match container.state {
        State::Running { started_at } if to_completion || init(&container.name) => {
            let at = crate::runtime::observe::timestamp(started_at)?;
            Some(Duration::try_from(now.duration_since(at)).unwrap_or_default())
        }
        _ => None,
    });
    let poll = (ages.min()? / 5).max(MINIMUM_POLL);
    (poll < MAXIMUM_POLL).then_some(poll)
}

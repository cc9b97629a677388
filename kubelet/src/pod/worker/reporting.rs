//! What the API server is told of a pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::{Life, Worker};
use crate::{
    pod::{Desired, Source, termination},
    runtime::observe::{Container, ObservedPod},
    status::{
        compute::{self, Inputs, Probed},
        conditions,
        publish::Target,
    },
};

impl Worker {
    /// Does what may take long, such as stopping a container or pulling an image; what probes find meanwhile is told at
    /// once, or traffic would go on to a container that says it is not ready.
    pub(super) async fn reporting<T>(
        &mut self,
        desired: &Desired,
        observed: &ObservedPod,
        work: impl Future<Output = T>,
    ) -> T {
        let (wake, mut work) = (self.wake.clone(), Box::pin(work));
        let mut woken = false;
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                () = wake.notified() => {
                    woken = true;
                    self.publish(desired, observed, false);
                }
            }
        };
        // Whatever it was that woke is still to be looked at.
        if woken {
            wake.notify_one();
        }
        done
    }

    pub(super) fn publish(&mut self, desired: &Desired, observed: &ObservedPod, terminated: bool) {
        self.read_termination_messages(observed);
        let (host_ips, now) = (self.kubelet.host_ips(), Timestamp::now());
        let deleting = desired.deleting() || self.life != Life::Running;
        let (probes, was_ready) = (&self.probes, &self.was_ready);
        let probed = |container: &Container, name: &str| -> Probed {
            probes
                .probed(&container.id)
                .unwrap_or_else(|| unprobed(&desired.pod, name, was_ready.contains(&container.id)))
        };
        let mut status = compute::compute(&Inputs {
            pod: &desired.pod,
            observed,
            previous: &self.status,
            waiting: &self.waiting,
            probed: &probed,
            termination_messages: &self.termination_messages,
            host_ips: &host_ips,
            failed: self.failed.as_ref().map(|end| &end.why),
            terminating: deleting,
            terminated,
            given: self.given(),
            // The default handler's; others are rare, and runc serves them too.
            recursive_read_only: self.kubelet.runtime_condition.read().recursive_read_only.contains(""),
            now,
        });
        // Conditions that others own are theirs to change: what the API server last said of them holds.
        conditions::adopt_foreign(&mut status, desired.pod.status.as_ref());
        if let Some(end) = self.failed.as_ref().filter(|end| end.why.reason == "Evicted") {
            conditions::disrupted(&mut status, &self.status, &end.why.message, now);
        }
        if let Some(why) = &self.resize_pending {
            conditions::resize_pending(&mut status, &self.status, (&why.reason, &why.message), now);
        }
        if !self.running_reported && status.phase.as_deref() == Some("Running") {
            self.running_reported = true;
            self.report_start(&desired.pod);
        }
        if status != self.status {
            self.status = status;
            self.latest.send_replace(self.status.clone());
        }
        let uid = match (desired.source, &desired.mirror) {
            (Source::Api, _) => self.uid.clone(),
            (Source::File, Some(mirror)) => mirror.uid.clone(),
            (Source::File, None) => return,
        };
        let metadata = &desired.pod.metadata;
        if let (Some(publisher), false) = (&mut self.publisher, desired.gone) {
            let target = Target {
                namespace: metadata.namespace.clone().unwrap_or_default(),
                name: metadata.name.clone().unwrap_or_default(),
                uid,
            };
            publisher.publish(target, self.status.clone());
        }
    }

    fn report_start(&self, pod: &Pod) {
        // A pod that was adopted did not start now.
        if self.was_ready.is_empty() {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let age = created.and_then(|at| Duration::try_from(Timestamp::now().duration_since(at)).ok());
            self.kubelet.metrics.pod_started(self.seen.elapsed(), age.unwrap_or(self.seen.elapsed()));
        }
    }

    fn read_termination_messages(&mut self, observed: &ObservedPod) {
        for container in &observed.containers {
            if container.exit_code().is_some() && !self.termination_messages.contains_key(&container.id) {
                let directory = self.kubelet.volumes.container_directory(&self.uid, &container.name);
                let message = termination::message(container, &directory);
                self.termination_messages.insert(container.id.clone(), message);
            }
        }
    }
}

/// What holds of a running container that no probe watches here: one with probes is as ready as it was before.
fn unprobed(pod: &Pod, name: &str, was_ready: bool) -> Probed {
    let spec = pod.spec.as_ref().and_then(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .find(|container| container.name == name)
    });
    let has = |probe: fn(&Spec) -> bool| spec.is_some_and(probe);
    let started = was_ready || !has(|container| container.startup_probe.is_some());
    Probed { started, ready: started && (was_ready || !has(|container| container.readiness_probe.is_some())) }
}

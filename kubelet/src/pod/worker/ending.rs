//! Ending a pod and giving back what it had; removing records that nobody asks for any more.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri;
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};

use super::{Life, Next, RETRY, Worker, timing::MINIMUM_POLL};
use crate::{
    context::Kubelet,
    pod::{Desired, Source, describe, kill},
    runtime::observe::{ObservedPod, State},
};

impl Worker {
    /// Ends the pod: containers, sandboxes, volumes, cgroup, and at last its object and records.
    pub(super) async fn end(&mut self, desired: &Desired, observed: &ObservedPod) -> Next {
        let pod = &desired.pod;
        let kubelet = self.kubelet.clone();
        self.waiting.clear();
        self.probes.stop_restarts();
        if self.life == Life::Ending {
            self.publish(desired, observed, false);
            if observed.any_running() || observed.sandboxes.iter().any(|sandbox| sandbox.ready) {
                let killing = kill::pod(&kubelet, pod, observed, self.grace(desired));
                if let Err(error) = self.reporting(desired, observed, killing).await {
                    return self.sync_failed(pod, "FailedKillPod", &format!("error killing pod: {error}"));
                }
                let unknown = observed.containers.iter().any(|c| matches!(c.state, State::Unknown));
                return if unknown { Next::Wait(RETRY) } else { Next::Again };
            }
            self.probes.stop();
            self.publish(desired, observed, true);
            if let Err(error) = remove_volumes(kubelet.clone(), self.uid.clone()).await {
                tracing::warn!(pod = describe(pod), %error, "removing a pod's volumes");
                return Next::Wait(RETRY);
            }
            kubelet.volumes.release(&self.uid);
            if !kubelet.cgroups.remove_pod(&self.uid) {
                // The last processes may still be on their way out.
                kubelet.cgroups.kill_pod(&self.uid);
                return Next::Wait(MINIMUM_POLL);
            }
            self.life = Life::Ended;
        }
        if !desired.deleting() {
            self.publish(desired, observed, true);
            return Next::Wait(kubelet.config.sync_frequency);
        }
        if !desired.gone && desired.source == Source::Api && !self.delete_object(pod).await {
            return Next::Wait(RETRY);
        }
        if let Err(error) = kill::remove(&kubelet, observed).await {
            tracing::warn!(pod = describe(pod), %error, "removing a pod from the runtime");
            return Next::Wait(RETRY);
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let logs =
            kubelet.log_directory(&text(&pod.metadata.namespace), &text(&pod.metadata.name), &self.uid);
        let _ = tokio::fs::remove_dir_all(logs).await;
        Next::Finished
    }

    /// Tells the API server that nothing of the pod is left; true once it has no such object.
    async fn delete_object(&mut self, pod: &Pod) -> bool {
        if let Some(publisher) = &mut self.publisher {
            publisher.flush().await;
        }
        let (Some(client), Some(name)) = (self.kubelet.client.clone(), pod.metadata.name.as_deref()) else {
            return true;
        };
        let api: Api<Pod> = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => true,
            // Gone, or another pod has its name by now.
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => true,
            Err(error) => {
                tracing::warn!(pod = describe(pod), %error, "deleting a pod that has ended");
                false
            }
        }
    }

    /// Keeps the newest ended container of each name, for logs and the last state.
    pub(super) async fn remove_old(&mut self, observed: &ObservedPod) {
        let mut seen: HashMap<&str, u32> = HashMap::new();
        for container in &observed.containers {
            let count = seen.entry(container.name.as_str()).or_default();
            *count += 1;
            if *count > 2 && !container.may_run() {
                let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
                if let Err(error) = self.kubelet.runtime.remove_container(request).await {
                    tracing::debug!(%error, "removing an old container");
                }
                crate::server::rotation::remove(std::path::Path::new(&container.log_path));
                self.termination_messages.remove(&container.id);
            }
        }
        // Sandboxes that were replaced, once nothing of theirs is kept.
        for sandbox in observed.sandboxes.iter().skip(1).filter(|sandbox| !sandbox.ready) {
            if observed.containers.iter().all(|container| container.sandbox_id != sandbox.id)
                && let Err(error) = kill::remove_sandbox(&self.kubelet, &sandbox.id).await
            {
                tracing::debug!(%error, "removing an old sandbox");
            }
        }
    }
}

/// Unmounts and removes; there may be a great many files, so not on a thread that others wait for.
pub async fn remove_volumes(kubelet: Arc<Kubelet>, uid: String) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || kubelet.volumes.remove(&uid)).await.map_err(std::io::Error::other)?
}

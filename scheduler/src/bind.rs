//! Carrying a decision out: the binding, or the condition that says why there is none.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::{Recorder, Type};
use keelson_objects::times;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::plugins::volume_binding::Step;
use crate::pod::{PodInfo, PodKey};
use crate::volumes::SELECTED_NODE;

/// On a volume that was given to its claim, not set aside for it by a person: it is free again without the claim.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// Why a pod could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The pod is gone or has a node already: nothing is left to do.
    #[error("the pod is gone, or bound by someone else")]
    Settled(#[source] Box<kube::Error>),
    #[error("the API server refused the binding")]
    Refused(#[source] Box<kube::Error>),
}

/// Why a volume could not be set aside, or asked for.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("persistentvolume {volume:?} cannot be reserved for persistentvolumeclaim {claim:?}")]
    Reserve { volume: String, claim: String, source: Box<kube::Error> },
    #[error("no volume can be requested for persistentvolumeclaim {claim:?}")]
    Provision { claim: String, source: Box<kube::Error> },
}

/// Speaks to the API server for the scheduler.
#[derive(Clone)]
pub struct Binder {
    pub client: kube::Client,
    pub recorder: Recorder,
}

impl Binder {
    fn pods(&self, key: &PodKey) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    /// Binds the pod to the node and tells so.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), BindError> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.key.name.to_string()),
                namespace: Some(pod.key.namespace.to_string()),
                // A pod of the same name that took this one's place must not get its node.
                uid: Some(pod.uid.to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let posted: Result<serde_json::Value, _> = self
            .pods(&pod.key)
            .create_subresource("binding", &pod.key.name, &PostParams::default(), &binding)
            .await;
        match posted {
            Ok(_) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.event(&reference(pod), Type::Normal, "Scheduled", message);
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Err(BindError::Settled(Box::new(kube::Error::Api(status))))
            }
            Err(error) => Err(BindError::Refused(Box::new(error))),
        }
    }

    /// Takes the steps by which a pod's claims get their volumes. The versions say that what was decided on is still
    /// so: a volume that another claim has got meanwhile is not taken from it.
    pub async fn prepare_volumes(&self, steps: &[Step]) -> Result<(), VolumeError> {
        for step in steps {
            match step {
                Step::Reserve { volume, claim } => {
                    let mut patch = json!({
                        "metadata": { "resourceVersion": volume.resource_version },
                        "spec": { "claimRef": {
                            "apiVersion": "v1",
                            "kind": "PersistentVolumeClaim",
                            "namespace": claim.namespace,
                            "name": claim.name,
                            "uid": claim.uid,
                            "resourceVersion": claim.resource_version,
                        }},
                    });
                    if !volume.is_for(claim) {
                        patch["metadata"]["annotations"] = json!({ BOUND_BY_CONTROLLER: "yes" });
                    }
                    let volumes = Api::<PersistentVolume>::all(self.client.clone());
                    let patched =
                        volumes.patch(&volume.name, &PatchParams::default(), &Patch::Merge(patch)).await;
                    patched.map_err(|error| VolumeError::Reserve {
                        volume: volume.name.to_string(),
                        claim: claim.name.to_string(),
                        source: Box::new(error),
                    })?;
                }
                Step::Provision { claim, node } => {
                    let patch = json!({ "metadata": {
                        "resourceVersion": claim.resource_version,
                        "annotations": { SELECTED_NODE: node },
                    }});
                    let claims =
                        Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &claim.namespace);
                    let patched =
                        claims.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch)).await;
                    patched.map_err(|error| VolumeError::Provision {
                        claim: claim.name.to_string(),
                        source: Box::new(error),
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Says in an event why the pod has no node.
    pub fn tell_failure(&self, pod: &PodInfo, message: &str) {
        self.recorder.event(&reference(pod), Type::Warning, "FailedScheduling", message);
    }

    /// Notes in the pod's conditions why it has no node, and since when it has none.
    pub async fn note_unschedulable(
        &self,
        pod: &PodInfo,
        message: &str,
        since: Timestamp,
    ) -> Result<(), kube::Error> {
        let patch = json!({
            "metadata": { "uid": pod.uid },
            "status": { "conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastTransitionTime": times::format(since),
            }]},
        });
        let pods = self.pods(&pod.key);
        pods.patch_status(&pod.key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.key.namespace.to_string()),
        name: Some(pod.key.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

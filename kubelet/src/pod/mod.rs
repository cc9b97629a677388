//! One pod: what is wanted of it ([`plan`], pure) and the worker that brings it about ([`worker`]).

pub mod backoff;
pub mod container;
pub mod dns;
pub mod env;
pub mod hooks;
pub mod kill;
pub mod mounts;
pub mod plan;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod start;
pub mod termination;
pub mod worker;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod};

use crate::{runtime::names, status::compute::Waiting};

/// How a container id is prefixed in a status; upstream takes it from the runtime's Version.
pub const RUNTIME_NAME: &str = "containerd";

/// Whether the runtime had a container for this status.
pub fn had_run(status: &ContainerStatus) -> bool {
    status.container_id.as_deref().is_some_and(|id| !id.is_empty())
}

/// Where a pod was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Api,
    /// A manifest in the static pod directory.
    File,
}

/// The API server's image of a static pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub uid: String,
}

/// A decision to end a pod before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Reason and message of its status.
    pub why: Waiting,
    /// Seconds, if it is to be quicker than the pod would have it.
    pub grace: Option<i64>,
}

impl From<Waiting> for End {
    fn from(why: Waiting) -> Self {
        Self { why, grace: None }
    }
}

/// What is wanted of a pod; replaced as a whole when it changes.
#[derive(Debug, Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    pub source: Source,
    pub mirror: Option<Mirror>,
    /// It is no longer in its source: end it with nobody to tell.
    pub gone: bool,
}

impl Desired {
    pub fn deleting(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Seconds between SIGTERM and SIGKILL: the deletion's own, else the spec's, never less than one.
    pub fn grace(&self) -> i64 {
        let spec = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        self.pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(30).max(1)
    }
}

/// `name_namespace(uid)`, as messages name a pod.
pub fn describe(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let metadata = &pod.metadata;
    format!("{}_{}({})", text(&metadata.name), text(&metadata.namespace), text(&metadata.uid))
}

/// `<namespace>_<name>_<uid>`, the directory of a pod's logs.
pub fn log_directory(namespace: &str, name: &str, uid: &str) -> String {
    format!("{namespace}_{name}_{uid}")
}

/// An event's object: the pod, or one of its containers.
pub fn reference(pod: &Pod, container: Option<(plan::Kind, &str)>) -> ObjectReference {
    // An event about a static pod is about its mirror, whose uid kubectl knows.
    let uid = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(names::CONFIG_HASH))
        .or(pod.metadata.uid.as_ref());
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: uid.cloned(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|(kind, name)| {
            let list = match kind {
                plan::Kind::Init => "initContainers",
                plan::Kind::Regular => "containers",
                plan::Kind::Ephemeral => "ephemeralContainers",
            };
            format!("spec.{list}{{{name}}}")
        }),
    }
}

//! Images: whether to pull, pulling with secrets, back-off, and what it says to the user.
//!
//! Reasons and sentences are upstream's. Nothing else pulls an image.

pub mod gc;
pub mod reference;
pub mod secrets;

use std::{sync::Arc, time::Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use keelson_proto::cri;
use tokio::sync::Semaphore;

use crate::{
    events::{Events, Type},
    pod::{backoff::Backoff, plan::Kind, reference as object, security::ImageUser},
    runtime::Runtime,
    status::compute::Waiting,
};

/// An image that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// What containers are made from.
    pub id: String,
    pub user: ImageUser,
}

/// Gets images; shared by all pods.
pub struct Images {
    runtime: Runtime,
    events: Events,
    /// One at a time where the configuration says so.
    pulls: Option<Arc<Semaphore>>,
    /// When each was first seen and last used.
    seen: tokio::sync::Mutex<gc::Seen>,
}

/// The waiting reason of a container whose image could not be pulled a while ago.
pub const BACK_OFF: &str = "ImagePullBackOff";

/// What a container's image depends on.
pub struct Wanted<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub kind: Kind,
    pub secrets: &'a [Arc<Secret>],
    pub sandbox: &'a cri::PodSandboxConfig,
    /// What it waits for already: a back-off is told once and not at every look.
    pub waiting: Option<&'a str>,
}

impl Images {
    pub fn new(runtime: Runtime, events: Events, serialize: bool) -> Self {
        Self {
            runtime,
            events,
            pulls: serialize.then(|| Arc::new(Semaphore::new(1))),
            seen: Default::default(),
        }
    }

    /// Makes sure that the container's image is there.
    ///
    /// # Errors
    /// The waiting state of the container, which is tried again.
    pub async fn ensure(&self, wanted: &Wanted<'_>, backoff: &mut Backoff) -> Result<Present, Waiting> {
        let image = wanted.container.image.as_deref().unwrap_or_default();
        let object = object(wanted.pod, Some((wanted.kind, &wanted.container.name)));
        let fail = |reason: &str, event: &str, message: String| {
            self.events.record(&object, Type::Warning, event, &message);
            Waiting { reason: reason.to_owned(), message }
        };
        let tagged = reference::with_default_tag(image).map_err(|error| {
            let message = format!("Failed to apply default image tag {image:?}: {error}");
            fail("InvalidImageName", "InspectFailed", message)
        })?;
        let policy =
            wanted.container.image_pull_policy.as_deref().unwrap_or(reference::default_policy(image));
        let spec =
            cri::ImageSpec { image: tagged, user_specified_image: image.to_owned(), ..Default::default() };
        let inspected = |error| {
            fail("ImageInspectError", "InspectFailed", format!("Failed to inspect image {image:?}: {error}"))
        };
        if policy != "Always" {
            match (self.inspect(&spec).await.map_err(inspected)?, policy) {
                (Some(present), _) => {
                    let message = format!(
                        "Container image {image:?} already present on machine and can be accessed by the pod"
                    );
                    self.events.record(&object, Type::Normal, "Pulled", &message);
                    return Ok(present);
                }
                (None, "Never") => {
                    let message =
                        format!("Container image {image:?} is not present with pull policy of Never");
                    return Err(fail("ErrImageNeverPull", "ErrImageNeverPull", message));
                }
                (None, _) => {}
            }
        }
        let now = Timestamp::now();
        if let Some(last) = backoff.last(image)
            && backoff.remaining(image, last.0, now).is_some()
        {
            let message = format!("Back-off pulling image {image:?}");
            if wanted.waiting != Some(BACK_OFF) {
                self.events.record(&object, Type::Normal, "BackOff", &message);
            }
            let message = format!("{message}: ErrImagePull: {}", last.1);
            return Err(Waiting { reason: BACK_OFF.to_owned(), message });
        }
        self.events.record(&object, Type::Normal, "Pulling", &format!("Pulling image {image:?}"));
        match self.pull(wanted, &spec).await {
            Ok((took, waited)) => {
                backoff.forget(image);
                let present = self.inspect_sized(&spec).await.map_err(inspected)?;
                let present = present.ok_or_else(|| {
                    fail(
                        "ErrImagePull",
                        "Failed",
                        format!("Failed to pull image {image:?}: it is not there after the pull"),
                    )
                })?;
                let message = format!(
                    "Successfully pulled image {image:?} in {took:.3?} ({waited:.3?} including waiting). Image size: {} bytes.",
                    present.1
                );
                self.events.record(&object, Type::Normal, "Pulled", &message);
                Ok(present.0)
            }
            Err(error) => {
                let error = error.to_string();
                backoff.next_with(image, now, now, &error);
                self.events.record(
                    &object,
                    Type::Warning,
                    "Failed",
                    &format!("Failed to pull image {image:?}: {error}"),
                );
                Err(Waiting { reason: "ErrImagePull".to_owned(), message: error })
            }
        }
    }

    async fn pull(
        &self,
        wanted: &Wanted<'_>,
        spec: &cri::ImageSpec,
    ) -> crate::runtime::Result<(std::time::Duration, std::time::Duration)> {
        let queued = Instant::now();
        let permit = match &self.pulls {
            Some(pulls) => pulls.clone().acquire_owned().await.ok(),
            None => None,
        };
        let started = Instant::now();
        let mut result = None;
        // Each credential that fits the registry is tried, then none at all.
        let mut credentials: Vec<_> =
            secrets::for_image(wanted.secrets, &spec.image).into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        for auth in credentials {
            let request = cri::PullImageRequest {
                image: Some(spec.clone()),
                auth,
                sandbox_config: Some(wanted.sandbox.clone()),
            };
            match self.runtime.pull_image(request).await {
                Ok(_) => {
                    drop(permit);
                    return Ok((started.elapsed(), queued.elapsed()));
                }
                Err(error) => result = Some(error),
            }
        }
        Err(result.unwrap_or_else(|| crate::runtime::RuntimeError {
            code: crate::runtime::GrpcCode(tonic::Code::Internal),
            message: "no pull was tried".to_owned(),
        }))
    }

    async fn inspect(&self, spec: &cri::ImageSpec) -> crate::runtime::Result<Option<Present>> {
        Ok(self.inspect_sized(spec).await?.map(|present| present.0))
    }

    async fn inspect_sized(&self, spec: &cri::ImageSpec) -> crate::runtime::Result<Option<(Present, u64)>> {
        let request = cri::ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        Ok(self.runtime.image_status(request).await?.image.map(|image| {
            // An image that names no user runs as root.
            let root = image.username.is_empty().then_some(0);
            let user = ImageUser { uid: image.uid.map(|uid| uid.value).or(root), username: image.username };
            (Present { id: image.id, user }, image.size)
        }))
    }
}

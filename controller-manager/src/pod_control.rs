//! Making and removing pods on behalf of an owner, with upstream's events, in batches that start small so that
//! what cannot succeed (a quota, a refused template) fails a few times and not hundreds.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::events::{Recorder, Type};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};

use crate::expectations::Expectations;
use crate::meta::{Meta, ObjectKey};
use crate::pod::PodInfo;

/// The most pods that one look at an owner creates or deletes.
pub const BURST: usize = 500;

/// Requests for one owner that are under way at once: the API server's places are for everybody.
pub const AT_ONCE: usize = 50;

/// The API's own sentence, without what kube wraps around it.
#[must_use]
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[must_use]
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Nothing can be created there any more; not an error of the owner's.
#[must_use]
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// The object that events are about.
#[must_use]
pub fn reference(api_version: &str, kind: &str, meta: &Meta) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(meta.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(meta.name.clone()),
        uid: Some(meta.uid.clone()),
        resource_version: Some(meta.resource_version.clone()),
        field_path: None,
    }
}

/// `<owner>-`, or the name alone where that would be no prefix of a pod's name.
#[must_use]
pub fn generate_name(owner: &str) -> String {
    let prefix = format!("{owner}-");
    let valid = keelson_objects::validation::is_dns1123_subdomain(&format!("{prefix}a")).is_empty();
    if valid { prefix } else { owner.to_owned() }
}

/// A pod of a template, with no name yet.
#[must_use]
pub fn from_template(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        generate_name: Some(generate_name(&owner.name)),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

/// Makes and removes the pods of one owner.
pub struct PodControl<'a> {
    pub client: &'a Client,
    pub recorder: &'a Recorder,
    pub owner: &'a ObjectReference,
    pub key: &'a ObjectKey,
    pub expectations: &'a Expectations,
}

impl PodControl<'_> {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.key.namespace)
    }

    /// Creates one pod and tells of it.
    ///
    /// # Errors
    /// The server refused.
    pub async fn create(&self, pod: &Pod) -> Result<(), kube::Error> {
        match self.api().create(&PostParams::default(), pod).await {
            Ok(made) => {
                let name = made.metadata.name.unwrap_or_default();
                self.recorder.event(
                    self.owner,
                    Type::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(())
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!("Error creating: {}", message(&error));
                    self.recorder.event(self.owner, Type::Warning, "FailedCreate", text);
                }
                Err(error)
            }
        }
    }

    /// Creates `count` pods, each as `make` says: 1, then 2, 4, … at a time; after a batch with a failure no more is
    /// tried. Lowers the expectations by what was not made. Gives the first error.
    pub async fn create_all(&self, count: usize, make: impl Fn(usize) -> Pod) -> Result<(), kube::Error> {
        let (mut made, mut size) = (0, 1);
        while made < count {
            let end = (made + size).min(count);
            let mut first = None;
            while made < end {
                // Only as many pods exist at once as there are requests: one takes kilobytes.
                let part: Vec<Pod> = (made..end.min(made + AT_ONCE)).map(&make).collect();
                made += part.len();
                for result in join_all(part.iter().map(|pod| self.create(pod))).await {
                    if let Err(error) = result {
                        self.expectations.created(self.key);
                        first.get_or_insert(error);
                    }
                }
            }
            if let Some(error) = first {
                self.expectations.not_created(self.key, count - end);
                return if is_namespace_terminating(&error) { Ok(()) } else { Err(error) };
            }
            size *= 2;
        }
        Ok(())
    }

    /// Deletes one pod, if it is still the one that was seen.
    ///
    /// # Errors
    /// The server refused. A pod that is gone is no error.
    pub async fn delete(&self, pod: &PodInfo) -> Result<(), kube::Error> {
        let exactly = Preconditions { uid: Some(pod.meta.uid.clone()), resource_version: None };
        match self.api().delete(&pod.meta.name, &DeleteParams::default().preconditions(exactly)).await {
            Ok(_) => {
                let text = format!("Deleted pod: {}", pod.meta.name);
                self.recorder.event(self.owner, Type::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) if is_code(&error, 404) => {
                self.expectations.deleted(self.key, &pod.meta.uid);
                Ok(())
            }
            // Another pod has the name now: the cache is behind.
            Err(error) if is_code(&error, 409) => {
                self.expectations.deleted(self.key, &pod.meta.uid);
                Err(error)
            }
            Err(error) => {
                self.expectations.deleted(self.key, &pod.meta.uid);
                let text = format!("Error deleting: {}", message(&error));
                self.recorder.event(self.owner, Type::Warning, "FailedDelete", text);
                Err(error)
            }
        }
    }

    /// Deletes all at once; gives the first error.
    ///
    /// # Errors
    /// As [`Self::delete`].
    pub async fn delete_all(&self, pods: &[Arc<PodInfo>]) -> Result<(), kube::Error> {
        let mut result = Ok(());
        for part in pods.chunks(AT_ONCE) {
            let results = join_all(part.iter().map(|pod| self.delete(pod))).await;
            result = result.and(results.into_iter().collect());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that accepts so many pods, and counts how many it is asked for.
    fn server(accepts: usize, reason: &'static str) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let pod = request.uri().path().ends_with("/pods");
            let number = if pod { counter.fetch_add(1, Ordering::SeqCst) } else { 0 };
            let (code, body) = if number < accepts {
                (201, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}")}}))
            } else {
                let details = json!({"causes": [{"reason": reason}]});
                (
                    403,
                    json!({"kind": "Status", "status": "Failure", "code": 403, "reason": "Forbidden",
                    "message": "no", "details": details}),
                )
            };
            async move {
                let response =
                    Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, std::convert::Infallible>(response.unwrap())
            }
        });
        (Client::new(service, "default"), asked)
    }

    #[tokio::test]
    async fn creation_starts_slowly_and_stops_at_failures() {
        async fn check(accepts: usize, reason: &'static str, asked: usize, failed: bool) {
            let (client, counter) = server(accepts, reason);
            let (sink, _) = server(usize::MAX, "");
            let recorder = Recorder::new(sink, "test", "");
            let (key, expectations) = (ObjectKey::new("ns", "a"), Expectations::default());
            let owner = ObjectReference::default();
            let control = PodControl {
                client: &client,
                recorder: &recorder,
                owner: &owner,
                key: &key,
                expectations: &expectations,
            };
            expectations.expect(&key, 20, []);
            let result = control.create_all(20, |_| Pod::default()).await;
            assert_eq!((counter.load(Ordering::SeqCst), result.is_err()), (asked, failed), "{accepts}");
            // What was made is still to be seen, nothing else is.
            (0..accepts.min(20)).for_each(|_| {
                assert!(!expectations.satisfied(&key));
                expectations.created(&key);
            });
            assert!(expectations.satisfied(&key));
        }
        check(usize::MAX, "", 20, false).await;
        check(0, "", 1, true).await;
        // 1, 2, and one of the batch of 4.
        check(4, "", 7, true).await;
        check(0, "NamespaceTerminating", 1, false).await;
    }

    #[test]
    fn prefixes_of_names() {
        assert_eq!(generate_name("web"), "web-");
        assert_eq!(generate_name(&"x".repeat(252)), "x".repeat(252));
    }
}

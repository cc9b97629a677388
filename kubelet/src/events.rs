//! Events of this kubelet: to the API server where there is one, and to the log always.

use k8s_openapi::api::core::v1::ObjectReference;
pub use keelson_client::events::Type;

/// Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Events(Option<keelson_client::events::Recorder>);

impl Events {
    pub fn new(client: Option<&kube::Client>, node: &str) -> Self {
        Self(client.map(|client| keelson_client::events::Recorder::new(client.clone(), "kubelet", node)))
    }

    pub fn record(&self, object: &ObjectReference, kind: Type, reason: &str, message: &str) {
        let (namespace, name) =
            (object.namespace.as_deref().unwrap_or_default(), object.name.as_deref().unwrap_or_default());
        tracing::info!(namespace, name, reason, message, "event");
        if let Some(recorder) = &self.0 {
            recorder.event(object, kind, reason, message);
        }
    }
}

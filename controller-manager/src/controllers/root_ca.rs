//! Publishes the cluster's CA into every namespace as the config map `kube-root-ca.crt`, from where pods mount it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use keelson_client::cache::Event;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::context::Context;
use crate::informers::CaBundle;
use crate::meta::ObjectKey;
use crate::pod_control::{is_code, is_namespace_terminating};
use crate::sync;

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

pub async fn run(context: Context) {
    let Some(ca) = context.settings().root_ca.clone() else {
        tracing::warn!("no CA to publish: give --root-ca-file");
        return;
    };
    let data = BTreeMap::from([("ca.crt".to_owned(), ca)]);
    let client = context.client("root-ca-cert-publisher");
    let queue = context.queue("root_ca_cert_publisher");
    let namespaces = context.informers().namespaces();
    let bundles = context.informers().ca_bundles();
    sync::enqueue(&namespaces, &queue);
    let to_queue = queue.clone();
    bundles.subscribe(move |event| {
        if let Event::Applied { new: bundle, .. } | Event::Deleted(bundle) = event {
            to_queue.add(ObjectKey::new("", &bundle.meta.namespace));
        }
    });
    namespaces.wait_synced().await;
    bundles.wait_synced().await;
    sync::run(&queue, 1, |key| {
        let (client, namespaces, bundles, data) = (&client, &namespaces, &bundles, &data);
        async move {
            if namespaces.get("", &key.name).is_none_or(|namespace| namespace.meta.deleting) {
                return Ok(None);
            }
            let bundle = bundles.get(&key.name, NAME);
            let map = publish(bundle.as_deref(), data);
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &key.name);
            let result = match (bundle, map) {
                (_, None) => return Ok(None),
                (None, Some(map)) => api.create(&PostParams::default(), &map).await,
                (Some(_), Some(map)) => api.replace(NAME, &PostParams::default(), &map).await,
            };
            match result {
                Err(error) if !(is_code(&error, 404) || is_namespace_terminating(&error)) => {
                    Err(error.into())
                }
                _ => Ok(None),
            }
        }
    })
    .await;
}

/// The config map to write, unless what is there says the same.
fn publish(bundle: Option<&CaBundle>, data: &BTreeMap<String, String>) -> Option<ConfigMap> {
    if bundle.is_some_and(|bundle| bundle.data.as_ref() == Some(data)) {
        return None;
    }
    let (key, value) = DESCRIPTION;
    let metadata = ObjectMeta {
        name: Some(NAME.to_owned()),
        resource_version: bundle.map(|bundle| bundle.meta.resource_version.clone()),
        labels: bundle.map(|bundle| bundle.meta.labels.clone()).filter(|labels| !labels.is_empty()),
        annotations: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
        ..ObjectMeta::default()
    };
    Some(ConfigMap { metadata, data: Some(data.clone()), ..ConfigMap::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;

    #[test]
    fn written_only_when_it_differs() {
        let data = BTreeMap::from([("ca.crt".to_owned(), "PEM".to_owned())]);
        let made = publish(None, &data).unwrap();
        assert!(made.metadata.resource_version.is_none());
        let meta = Meta { resource_version: "7".into(), ..Meta::default() };
        let mut bundle = CaBundle { meta, data: Some(data.clone()) };
        assert!(publish(Some(&bundle), &data).is_none());
        bundle.data = None;
        let repaired = publish(Some(&bundle), &data).unwrap();
        assert_eq!((repaired.data, repaired.metadata.resource_version.as_deref()), (Some(data), Some("7")));
    }
}

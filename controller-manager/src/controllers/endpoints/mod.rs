//! Keeps the Endpoints of each Service that has a selector. Clients of today read EndpointSlices; these are for
//! those that do not.

pub mod plan;

use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{Api, DeleteParams, PostParams};

use crate::context::Context;
use crate::pod_control::{is_code, is_namespace_terminating};
use crate::service::enqueue_for_pods;
use crate::sync::{self, Outcome};

pub async fn run(context: Context) {
    let client = context.client("endpoint-controller");
    let queue = context.queue("endpoint");
    let services = context.informers().services();
    let pods = context.informers().pods();
    let endpoints = context.informers().endpoints();
    sync::enqueue(&services, &queue);
    sync::enqueue(&endpoints, &queue);
    enqueue_for_pods(&pods, services.clone(), &queue);
    services.wait_synced().await;
    pods.wait_synced().await;
    endpoints.wait_synced().await;
    sync::run(&queue, context.workers("endpoint"), |key| {
        let (services, pods, endpoints) = (&services, &pods, &endpoints);
        let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.namespace);
        async move {
            let existing = endpoints.get(&key.namespace, &key.name);
            let Some(service) = services.get(&key.namespace, &key.name) else {
                let ours =
                    existing.filter(|e| e.meta.labels.contains_key("endpoints.kubernetes.io/managed-by"));
                return match ours {
                    Some(_) => remove(&api, &key.name).await,
                    None => Ok(None),
                };
            };
            if service.selector.is_none() || service.external {
                return Ok(None);
            }
            let found = service.pods(pods);
            let Some(wanted) = plan::plan(&service, &found, existing.as_ref().map(|e| e.object())) else {
                return Ok(None);
            };
            let result = match existing {
                None => api.create(&PostParams::default(), &wanted).await,
                Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
            };
            match result {
                Err(error) if !is_namespace_terminating(&error) => Err(error.into()),
                _ => Ok(None),
            }
        }
    })
    .await;
}

async fn remove(api: &Api<Endpoints>, name: &str) -> Outcome {
    match api.delete(name, &DeleteParams::default()).await {
        Err(error) if !is_code(&error, 404) => Err(error.into()),
        _ => Ok(None),
    }
}

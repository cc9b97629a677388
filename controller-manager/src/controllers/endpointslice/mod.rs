//! Keeps the EndpointSlices of each Service that has a selector.
//!
//! Slices have generated names, so a cache that is behind could make them twice: what was written is remembered
//! until the cache shows it.

pub mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::cache::{Cache, Event};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::Context;
use crate::informers::BY_SERVICE;
use crate::meta::{Compact, ObjectKey};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::pod_control::{is_code, is_namespace_terminating};
use crate::service::{ServiceInfo, enqueue_for_pods};
use crate::sync::{self, Outcome};

/// After this long something else must have happened to a slice that the cache does not show.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Writes that the cache has not shown yet.
#[derive(Default)]
struct Written(Mutex<HashMap<ObjectKey, Vec<Write>>>);

struct Write {
    name: String,
    /// `None`: deleted.
    generation: Option<i64>,
    at: Instant,
}

impl Written {
    fn note(&self, service: &ObjectKey, name: &str, generation: Option<i64>) {
        let write = Write { name: name.to_owned(), generation, at: Instant::now() };
        let mut all = self.0.lock();
        let writes = all.entry(service.clone()).or_default();
        writes.retain(|write| write.name != name);
        writes.push(write);
    }

    /// Whether the cache shows all that was written for a Service; forgets what it shows.
    fn shown(&self, service: &ObjectKey, cached: &[Arc<Compact<EndpointSlice>>]) -> bool {
        let mut all = self.0.lock();
        let Some(writes) = all.get_mut(service) else { return true };
        writes.retain(|write| {
            let cached = cached.iter().find(|slice| slice.meta.name == write.name);
            let shown = match (write.generation, cached) {
                (Some(wanted), Some(slice)) => slice.meta.generation >= wanted,
                (None, None) => true,
                _ => false,
            };
            !shown && write.at.elapsed() < GIVE_UP
        });
        let done = writes.is_empty();
        if done {
            all.remove(service);
        }
        done
    }

    fn gone(&self, service: &ObjectKey, name: &str) {
        if let Some(writes) = self.0.lock().get_mut(service) {
            writes.retain(|write| write.name != name);
        }
    }
}

struct Slices {
    client: Client,
    services: Arc<Cache<ServiceInfo>>,
    pods: Arc<Cache<PodInfo>>,
    nodes: Arc<Cache<NodeInfo>>,
    slices: Arc<Cache<Compact<EndpointSlice>>>,
    written: Arc<Written>,
}

fn service_of(slice: &Compact<EndpointSlice>) -> Option<ObjectKey> {
    let labels = &slice.meta.labels;
    let ours = labels.get(plan::MANAGED_BY).is_some_and(|manager| manager == plan::MANAGER);
    let service = labels.get(plan::SERVICE_NAME).filter(|_| ours)?;
    Some(ObjectKey::new(&slice.meta.namespace, service))
}

pub async fn run(context: Context) {
    let client = context.client("endpointslice-controller");
    let queue = context.queue("endpoint_slice");
    let controller = Slices {
        client,
        services: context.informers().services(),
        pods: context.informers().pods(),
        nodes: context.informers().nodes(),
        slices: context.informers().slices(),
        written: Arc::default(),
    };
    sync::enqueue(&controller.services, &queue);
    enqueue_for_pods(&controller.pods, controller.services.clone(), &queue);
    let (to_queue, written) = (queue.clone(), controller.written.clone());
    controller.slices.subscribe(move |event| {
        let slice = match event {
            Event::Applied { new, .. } => new,
            Event::Deleted(last) => last,
            Event::Synced => return,
        };
        if let Some(service) = service_of(slice) {
            if matches!(event, Event::Deleted(_)) {
                written.gone(&service, &slice.meta.name);
            }
            to_queue.add(service);
        }
    });
    controller.services.wait_synced().await;
    controller.pods.wait_synced().await;
    controller.nodes.wait_synced().await;
    controller.slices.wait_synced().await;
    sync::run(&queue, context.workers("service-endpoint"), |key| controller.sync(key)).await;
}

impl Slices {
    async fn sync(&self, key: ObjectKey) -> Outcome {
        let mut cached = self.slices.indexed(BY_SERVICE, key.to_string());
        cached.retain(|slice| service_of(slice).is_some());
        // A Service that is gone leaves its slices to the garbage collector.
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.written.0.lock().remove(&key);
            return Ok(None);
        };
        if service.selector.is_none() || service.external || service.meta.deleting {
            return Ok(None);
        }
        if !self.written.shown(&key, &cached) {
            return Ok(Some(Duration::from_secs(1)));
        }
        let found = service.pods(&self.pods);
        let existing =
            cached.iter().filter(|slice| !slice.meta.deleting).map(|slice| slice.object()).collect();
        let zone_of = |node: &str| {
            self.nodes
                .get("", node)
                .and_then(|node| node.labels().get("topology.kubernetes.io/zone").cloned())
        };
        let changes = plan::plan(&service, &found, existing, zone_of);
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        for slice in changes.create {
            match api.create(&params, &slice).await {
                Ok(made) => self.note(&key, &made),
                Err(error) if is_namespace_terminating(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        for slice in changes.update {
            let made =
                api.replace(slice.metadata.name.as_deref().unwrap_or_default(), &params, &slice).await?;
            self.note(&key, &made);
        }
        for name in changes.delete {
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => self.written.note(&key, &name, None),
                Err(error) if is_code(&error, 404) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn note(&self, key: &ObjectKey, made: &EndpointSlice) {
        let name = made.metadata.name.as_deref().unwrap_or_default();
        self.written.note(key, name, Some(made.metadata.generation.unwrap_or(0)));
    }
}

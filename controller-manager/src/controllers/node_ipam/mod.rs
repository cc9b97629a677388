//! Gives each node its block of pod addresses (`spec.podCIDRs`), which is how the pod network knows them.

pub mod plan;

use k8s_openapi::api::core::v1::Node;
use keelson_client::events::Type;
use keelson_objects::addresses::Cidr;
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use self::plan::Allocator;
use crate::context::Context;
use crate::node::NodeInfo;
use crate::pod_control::{is_code, reference};
use crate::sync::{self, SyncError};

fn cidrs_of(node: &NodeInfo) -> Vec<Cidr> {
    node.pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect()
}

pub async fn run(context: Context) {
    let settings = context.settings();
    if !settings.allocate_node_cidrs {
        return;
    }
    let clusters = settings.cluster_cidrs.iter().map(|cidr| {
        let length =
            if cidr.is_ipv4() { settings.node_cidr_mask_size } else { settings.node_cidr_mask_size_ipv6 };
        (*cidr, length)
    });
    let allocator = Mutex::new(Allocator::new(clusters, &settings.service_cidrs));
    let client = context.client("node-controller");
    let recorder = context.recorder(&client, "cidrAllocator");
    let queue = context.queue("cidrallocator");
    let nodes = context.informers().nodes();
    nodes.wait_synced().await;
    // What is taken must be known before anything is given away.
    for node in nodes.list().iter().filter(|node| !node.pod_cidrs.is_empty()) {
        allocator.lock().occupy(&node.meta.name, &cidrs_of(node));
    }
    sync::enqueue(&nodes, &queue);
    let api: Api<Node> = Api::all(client);
    sync::run(&queue, 1, |key| {
        let (nodes, allocator, recorder, api) = (&nodes, &allocator, &recorder, &api);
        async move {
            let Some(node) = nodes.get("", &key.name) else {
                allocator.lock().release(&key.name);
                return Ok(None);
            };
            if !node.pod_cidrs.is_empty() {
                allocator.lock().occupy(&key.name, &cidrs_of(&node));
                return Ok(None);
            }
            let allocated = allocator.lock().allocate(&key.name);
            let cidrs: Vec<String> = match allocated {
                Ok(cidrs) => cidrs.iter().map(Cidr::to_string).collect(),
                Err(exhausted) => {
                    let about = reference("v1", "Node", &node.meta);
                    let text = format!("Node {} status is now: CIDRNotAvailable", key.name);
                    recorder.event(&about, Type::Normal, "CIDRNotAvailable", text);
                    return Err(SyncError::Invalid(exhausted.to_string()));
                }
            };
            let patch =
                json!({"metadata": {"uid": node.meta.uid}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}});
            match api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Err(error) if !is_code(&error, 404) => Err(error.into()),
                _ => Ok(None),
            }
        }
    })
    .await;
}

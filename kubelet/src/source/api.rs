//! Pods that the API server has bound to this node, by watch.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};
use tokio_util::sync::CancellationToken;

use crate::{
    pod::Source,
    pods::{API, Pods},
};

const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Runs until cancelled; never asks for anything but this node's pods.
pub async fn run(client: Client, node_name: String, pods: Arc<Pods>, cancel: CancellationToken) {
    let api: Api<Pod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut events = Box::pin(watcher::watcher(api, config));
    let (mut listed, mut pause) = (HashSet::new(), RETRY);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = cancel.cancelled() => return,
        };
        match event {
            Some(Ok(event)) => {
                pause = RETRY;
                apply(&pods, event, &mut listed);
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "watching this node's pods");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = cancel.cancelled() => return,
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
            None => return,
        }
    }
}

fn apply(pods: &Arc<Pods>, event: Event<Pod>, listed: &mut HashSet<String>) {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(pod) => {
            listed.extend(pod.metadata.uid.clone());
            pods.update(Source::Api, slim(pod));
        }
        Event::InitDone => {
            pods.retain(Source::Api, listed);
            listed.clear();
            pods.source_ready(API);
            pods.refresh_mirrors();
        }
        Event::Apply(pod) => pods.update(Source::Api, slim(pod)),
        Event::Delete(pod) => {
            let text = |value: Option<String>| value.unwrap_or_default();
            let metadata = pod.metadata;
            pods.remove(Source::Api, &text(metadata.namespace), &text(metadata.name), &text(metadata.uid));
        }
    }
}

/// Managed fields are for API servers; they are a large part of a pod.
fn slim(mut pod: Pod) -> Arc<Pod> {
    pod.metadata.managed_fields = None;
    Arc::new(pod)
}

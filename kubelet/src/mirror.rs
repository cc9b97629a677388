//! Mirror pods: the API server's images of static pods, so that they can be seen, logged and exec'ed into.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use parking_lot::Mutex;

use crate::runtime::names;

/// Makes and removes mirrors, one request at a time.
pub struct Mirrors {
    client: Client,
    node_name: String,
    /// Serialises requests: a mirror is deleted before its successor is made.
    turn: Arc<tokio::sync::Mutex<()>>,
    pending: Arc<Mutex<std::collections::HashSet<(String, String)>>>,
}

/// The hash that a static pod's mirror must carry.
pub fn hash(pod: &Pod) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(names::CONFIG_HASH).cloned()
}

impl Mirrors {
    pub fn new(client: Client, node_name: &str) -> Self {
        Self { client, node_name: node_name.to_owned(), turn: Arc::default(), pending: Arc::default() }
    }

    /// Makes the mirror, after removing an outdated one with that uid.
    pub fn ensure(&self, pod: Arc<Pod>, outdated: Option<String>) {
        let (Some(namespace), Some(name)) = (pod.metadata.namespace.clone(), pod.metadata.name.clone())
        else {
            return;
        };
        let key = (namespace.clone(), name.clone());
        if !self.pending.lock().insert(key.clone()) {
            return;
        }
        let (client, node_name) = (self.client.clone(), self.node_name.clone());
        let (turn, pending) = (self.turn.clone(), self.pending.clone());
        tokio::spawn(async move {
            let _turn = turn.lock().await;
            let mut pause = std::time::Duration::from_millis(200);
            loop {
                match create(&client, &node_name, &pod, outdated.as_deref()).await {
                    Ok(()) => break,
                    // The node may not be registered yet.
                    Err(error) => {
                        tracing::debug!(namespace, name, %error, "making a mirror pod");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(std::time::Duration::from_secs(10));
                        if pause >= std::time::Duration::from_secs(10) {
                            break;
                        }
                    }
                }
            }
            pending.lock().remove(&key);
        });
    }

    /// Removes a mirror whose static pod is gone.
    pub fn delete(&self, namespace: String, name: String, uid: String) {
        let (client, turn) = (self.client.clone(), self.turn.clone());
        tokio::spawn(async move {
            let _turn = turn.lock().await;
            if let Err(error) = delete(&client, &namespace, &name, &uid).await {
                tracing::warn!(namespace, name, %error, "deleting a mirror pod");
            }
        });
    }
}

async fn delete(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn create(
    client: &Client,
    node_name: &str,
    pod: &Pod,
    outdated: Option<&str>,
) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let (Some(uid), Some(name)) = (outdated, pod.metadata.name.as_deref()) {
        delete(client, namespace, name, uid).await?;
    }
    // The owner is what lets a node make pods of its own (NodeRestriction), and what collects them with it.
    let node = Api::<Node>::all(client.clone()).get(node_name).await?;
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.creation_timestamp = None;
    mirror.status = None;
    if let Some(hash) = hash(pod) {
        mirror.metadata.annotations.get_or_insert_default().insert(names::CONFIG_MIRROR.to_owned(), hash);
    }
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node_name.to_owned(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), &mirror).await {
        // Seen by the watch soon; an outdated namesake is then replaced.
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
        other => other.map(|_| ()),
    }
}

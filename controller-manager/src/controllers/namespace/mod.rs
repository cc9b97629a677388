//! Empties namespaces that are being deleted, pods first, and then lets them go.

pub mod plan;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use keelson_objects::times;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};

use self::plan::Attempt;
use crate::context::Context;
use crate::discovery::{self, Found};
use crate::meta::ObjectKey;
use crate::pod_control::{is_code, message};
use crate::sync::{self, Outcome, SyncError};

const FINALIZER: &str = "kubernetes";

pub async fn run(context: Context) {
    let client = context.client("namespace-controller");
    let queue = context.queue("namespace");
    let namespaces = context.informers().namespaces();
    sync::enqueue(&namespaces, &queue);
    namespaces.wait_synced().await;
    sync::run(&queue, context.workers("namespace"), |key| {
        let (client, namespaces) = (&client, &namespaces);
        async move {
            match namespaces.get("", &key.name) {
                Some(namespace) if namespace.meta.deleting => finish(client, &key).await,
                _ => Ok(None),
            }
        }
    })
    .await;
}

async fn finish(client: &Client, key: &ObjectKey) -> Outcome {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(namespace) = api.get_opt(&key.name).await? else { return Ok(None) };
    let held =
        namespace.spec.as_ref().is_some_and(|spec| spec.finalizers.iter().flatten().any(|f| f == FINALIZER));
    if namespace.metadata.deletion_timestamp.is_none() || !held {
        return Ok(None);
    }
    let attempt = empty(client, &key.name).await;
    let old = namespace.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut namespace = namespace;
    let now = Timestamp::now();
    if let Some(conditions) = attempt.conditions(&old, now) {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.clone());
        namespace.status = Some(NamespaceStatus { phase, conditions: Some(conditions) });
        namespace = api.replace_status(&key.name, &PostParams::default(), &namespace).await?;
    }
    if !attempt.is_complete() {
        let failures: Vec<&str> =
            attempt.discovery_error.iter().chain(&attempt.deletion_errors).map(String::as_str).collect();
        if failures.is_empty() {
            let since = namespace.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
            return Ok(Some(plan::recheck(times::between(since, now))));
        }
        return Err(SyncError::Invalid(failures.join("; ")));
    }
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    match api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace).await {
        Err(error) if !is_code(&error, 404) => Err(error.into()),
        _ => Ok(None),
    }
}

/// Deletes what is there, and counts what remains. Pods go first, and nothing else before they are gone: what
/// they use (network policies, secrets) stays for as long as they run.
async fn empty(client: &Client, namespace: &str) -> Attempt {
    let mut attempt = Attempt::default();
    let resources = match discovery::resources(client).await {
        Ok(resources) => resources,
        Err(error) => {
            attempt.discovery_error = Some(message(&error));
            return attempt;
        }
    };
    let is_pods = |found: &&Found| found.resource.group.is_empty() && found.resource.plural == "pods";
    let content: Vec<&Found> = resources.iter().filter(|found| found.namespaced && found.deletable).collect();
    for found in content.iter().copied().filter(is_pods) {
        empty_resource(client, namespace, found, &mut attempt).await;
    }
    if !attempt.is_complete() {
        return attempt;
    }
    for found in content.iter().copied().filter(|found| !is_pods(found)) {
        empty_resource(client, namespace, found, &mut attempt).await;
    }
    attempt
}

async fn empty_resource(client: &Client, namespace: &str, found: &Found, attempt: &mut Attempt) {
    if let Err(error) = try_empty(client, namespace, found, attempt).await
        && !is_code(&error, 404)
        && !is_code(&error, 405)
    {
        attempt.deletion_errors.push(format!("{}: {}", found.name(), message(&error)));
    }
}

async fn try_empty(
    client: &Client,
    namespace: &str,
    found: &Found,
    attempt: &mut Attempt,
) -> Result<(), kube::Error> {
    let api = found.api(client, namespace);
    let everything = ListParams::default();
    let before = api.list(&ListParams::default().limit(1)).await?;
    if before.items.is_empty() {
        return Ok(());
    }
    let background = DeleteParams::background();
    if found.deletes_collections {
        api.delete_collection(&background, &everything).await?;
    } else {
        for object in api.list(&everything).await?.items {
            let name = object.metadata.name.unwrap_or_default();
            match api.delete(&name, &background).await {
                Err(error) if !is_code(&error, 404) => return Err(error),
                _ => {}
            }
        }
    }
    let left = api.list(&everything).await?.items;
    if !left.is_empty() {
        // Upstream writes the group's dot also where there is no group.
        let name = format!("{}.{}", found.resource.plural, found.resource.group);
        attempt.remaining.insert(name, left.len());
        for finalizer in left.into_iter().flat_map(|object| object.metadata.finalizers.unwrap_or_default()) {
            *attempt.finalizers.entry(finalizer).or_default() += 1;
        }
    }
    Ok(())
}

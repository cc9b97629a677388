//! The `kubernetes` Service of the default namespace and its endpoints: how pods find the API servers.
//!
//! Every server keeps a lease with its address in the store (`masterleases/<address>`, upstream's lease reconciler);
//! the endpoints are the addresses whose leases live.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::bootstrap::Own;
use crate::{server::Server, status::Status};

const LEASES: &str = "masterleases";
/// Seconds; upstream's `--endpoint-reconciler-type=lease` uses 15 s leases renewed every 10 s.
const LEASE: u64 = 15;
const RENEW: Duration = Duration::from_secs(10);

/// Runs until the server stops; then its address is taken out.
pub async fn run(server: Arc<Server>, cancel: CancellationToken) {
    let key = format!("{LEASES}/{}", server.address);
    loop {
        if let Err(error) = reconcile(&server, &key).await {
            tracing::warn!(%error, "reconciling the kubernetes service failed");
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(RENEW) => {}
        }
    }
    let raw = server.storage.raw();
    if let Ok(Some(entry)) = raw.get(&key).await
        && let Err(error) = raw.remove(&key, entry.mod_revision).await
    {
        tracing::info!(%error, "removing this server's lease failed");
    }
    if let Err(error) = endpoints(&server).await {
        tracing::info!(%error, "removing this server from the kubernetes endpoints failed");
    }
}

/// One pass: the lease, the Service, its endpoints.
pub async fn reconcile(server: &Arc<Server>, key: &str) -> Result<(), Status> {
    let value = json!({ "address": server.address.to_string() }).to_string();
    server
        .storage
        .raw()
        .put(key, value.into(), Some(LEASE))
        .await
        .map_err(|error| crate::generic::errors::store(&error))?;
    service(server).await?;
    endpoints(server).await
}

/// First pass at startup.
pub async fn ensure(server: &Arc<Server>) -> Result<(), Status> {
    reconcile(server, &format!("{LEASES}/{}", server.address)).await
}

async fn service(server: &Arc<Server>) -> Result<(), Status> {
    let Some(served) = server.table.find("", "v1", "services") else { return Ok(()) };
    let Some(range) = server.services.ranges().first() else { return Ok(()) };
    let port = json!({
        "name": "https", "protocol": "TCP", "port": 443, "targetPort": server.config.secure_port,
    });
    let desired = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": range.at(0).to_string(), "sessionAffinity": "None",
            "ports": [port.clone()],
        },
    });
    Own::new(server)
        .ensure(served, desired, move |current| {
            (current["spec"]["ports"] != json!([port])).then(|| {
                let mut next = current.clone();
                next["spec"]["ports"] = json!([port]);
                next
            })
        })
        .await
}

async fn endpoints(server: &Arc<Server>) -> Result<(), Status> {
    let entries = server
        .storage
        .raw()
        .list(&format!("{LEASES}/"))
        .await
        .map_err(|error| crate::generic::errors::store(&error))?;
    let mut addresses: Vec<IpAddr> =
        entries.iter().filter_map(|entry| entry.key.rsplit('/').next()?.parse().ok()).collect();
    addresses.retain(|address| address.is_ipv4() == server.address.is_ipv4());
    addresses.sort();
    addresses.dedup();
    // Nobody left: what is known is better than nothing, for this server may be about to start again.
    if addresses.is_empty() {
        return Ok(());
    }
    let port = json!({ "name": "https", "port": server.config.secure_port, "protocol": "TCP" });
    let own = Own::new(server);
    if let Some(served) = server.table.find("", "v1", "endpoints") {
        let subsets = json!([{
            "addresses": addresses.iter().map(|ip| json!({ "ip": ip.to_string() })).collect::<Value>(),
            "ports": [port.clone()],
        }]);
        let desired = json!({
            "kind": "Endpoints", "apiVersion": "v1",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": subsets.clone(),
        });
        own.ensure(served, desired, move |current| replaced(current, "subsets", &subsets)).await?;
    }
    if let Some(served) = server.table.find("discovery.k8s.io", "v1", "endpointslices") {
        let list: Value = addresses
            .iter()
            .map(|ip| json!({ "addresses": [ip.to_string()], "conditions": { "ready": true } }))
            .collect();
        let desired = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" },
            },
            "addressType": if server.address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": list.clone(), "ports": [port],
        });
        own.ensure(served, desired, move |current| replaced(current, "endpoints", &list)).await?;
    }
    Ok(())
}

/// The object with another value in one field; None if it has that value already.
fn replaced(current: &Value, field: &str, wanted: &Value) -> Option<Value> {
    if current[field] == *wanted {
        return None;
    }
    let mut next = current.clone();
    next.as_object_mut()?.insert(field.into(), wanted.clone());
    Some(next)
}

//! Finds allocations that no Service holds (a crash between two writes) and Services whose allocations are missing
//! (a migrated or restored store).
//!
//! Only an allocation that was unowned in two passes is released: a Service may be written between the two reads of
//! one pass.

use std::{collections::HashMap, collections::HashSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{ADDRESSES, PORTS, held};
use crate::server::Server;

/// Upstream's period.
const PERIOD: Duration = Duration::from_secs(180);

/// Runs until the server stops.
pub async fn run(server: Arc<Server>, cancel: CancellationToken) {
    let mut suspects = HashSet::new();
    loop {
        match pass(&server, &suspects).await {
            Ok(found) => suspects = found,
            Err(error) => tracing::warn!(%error, "repairing service allocations failed"),
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// One pass; returns the allocations without an owner that the next pass may release.
async fn pass(
    server: &Server,
    suspects: &HashSet<String>,
) -> Result<HashSet<String>, keelson_storage::StoreError> {
    let Some(resource) = server.table.find("", "v1", "services").and_then(|served| served.resource.as_ref())
    else {
        return Ok(HashSet::new());
    };
    let store = server.storage.raw();
    let mut present = HashMap::new();
    for prefix in [ADDRESSES, PORTS] {
        for entry in store.list(&format!("{prefix}/")).await? {
            present.insert(entry.key.clone(), entry);
        }
    }
    let mut owned = HashSet::new();
    for object in resource.cached_list("") {
        let value: Value = object.value();
        for allocation in held(&value) {
            let key = allocation.key();
            if !present.contains_key(&key) {
                let owner = json!({ "namespace": object.namespace(), "name": object.name() });
                tracing::warn!(key, service = object.name(), "recording a missing service allocation");
                if let Err(error) = store.swap(&key, 0, owner.to_string().into()).await {
                    tracing::info!(key, %error, "somebody else recorded it");
                }
            }
            owned.insert(key);
        }
    }
    let mut found = HashSet::new();
    for (key, entry) in present {
        if owned.contains(&key) {
            continue;
        }
        if suspects.contains(&key) {
            tracing::warn!(key, "releasing a service allocation that no Service holds");
            if let Err(error) = store.remove(&key, entry.mod_revision).await {
                tracing::info!(key, %error, "it changed meanwhile");
            }
        } else {
            found.insert(key);
        }
    }
    Ok(found)
}

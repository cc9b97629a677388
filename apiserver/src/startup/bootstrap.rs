//! What every cluster has: the system namespaces, the system priority classes, the bootstrap RBAC policy and the
//! rules of aggregated roles.
//!
//! Everything goes through the generic write path, as the API server's own user. Running on several servers at once
//! is fine: creates that lose are what was wanted, updates are compare-and-swaps.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use keelson_access::{
    bootstrap::{
        self,
        reconcile::{Reconciled, reconcile},
    },
    user::UserInfo,
};
use keelson_schema::resource::split_api_version;
use keelson_storage::Notice;
use serde_json::Value;

use crate::{
    generic::{Write, metadata, update::Ownership},
    http::chain::WarningList,
    request::{
        DeleteOptions,
        options::{FieldValidation, WriteOptions},
    },
    served::Served,
    server::Server,
    status::Status,
};

/// Options of the server's own writes.
static OWN_WRITE: WriteOptions = WriteOptions {
    dry_run: false,
    field_manager: String::new(),
    field_validation: FieldValidation::Ignore,
    force: None,
};

/// Runs `work` as the server itself on a kind.
pub struct Own<'a> {
    pub server: &'a Arc<Server>,
    pub user: UserInfo,
    pub warnings: WarningList,
}

impl<'a> Own<'a> {
    pub fn new(server: &'a Arc<Server>) -> Self {
        Own { server, user: UserInfo::apiserver(), warnings: WarningList::default() }
    }

    pub fn write<'w>(&'w self, served: &'w Served, namespace: &'w str) -> Write<'w> {
        Write {
            server: self.server,
            served,
            user: &self.user,
            namespace,
            subresource: "",
            options: &OWN_WRITE,
            manager: "kube-apiserver",
            ownership: Ownership::Track,
            warnings: &self.warnings,
        }
    }

    /// Creates an object, or brings the stored one to what `change` makes of it (None: it is fine).
    pub async fn ensure(
        &self,
        served: &Served,
        desired: Value,
        change: impl Fn(&Value) -> Option<Value> + Send + Sync,
    ) -> Result<(), Status> {
        let name = metadata::name(&desired).to_string();
        let namespace = metadata::text(&desired, "namespace").to_string();
        let Some(resource) = &served.resource else { return Ok(()) };
        let write = self.write(served, &namespace);
        if let Some(present) = resource.cached(served.key(&namespace, &name)) {
            let value = served.value(&present);
            if change(&value).is_none() {
                return Ok(());
            }
        } else {
            match write.create(desired.clone(), "").await {
                Ok(_) => return Ok(()),
                Err(status) if status.reason == "AlreadyExists" => {}
                Err(status) => return Err(status),
            }
        }
        write
            .update(&name, |current| match current {
                None => Ok(desired.clone()),
                Some(current) => Ok(change(current).unwrap_or_else(|| current.clone())),
            })
            .await
            .map(|_| ())
    }
}

/// Objects that are ensured at a time: a new cluster has some 150 of them to write.
const AT_ONCE: usize = 16;

/// Ensures everything once. Objects of kinds that are not served are skipped.
pub async fn ensure(server: &Arc<Server>) -> Result<(), Status> {
    let own = &Own::new(server);
    // Namespaces first: the roles in them are refused without.
    let (namespaces, others): (Vec<Value>, Vec<Value>) =
        bootstrap::objects().into_iter().partition(|object| object["kind"] == "Namespace");
    for objects in [namespaces, others] {
        futures::stream::iter(objects)
            .map(|desired| ensure_one(own, desired))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
    }
    Ok(())
}

async fn ensure_one(own: &Own<'_>, desired: Value) -> Result<(), Status> {
    let served =
        desired["apiVersion"].as_str().and_then(split_api_version).zip(desired["kind"].as_str()).and_then(
            |((group, version), kind)| {
                own.server.table.all().find(|served| {
                    let resource = &served.kind.resource;
                    resource.group == group && resource.version == version && resource.kind == kind
                })
            },
        );
    let Some(served) = served else { return Ok(()) };
    let namespace = metadata::text(&desired, "namespace").to_string();
    let name = metadata::name(&desired).to_string();
    if let Some(present) =
        served.resource.as_ref().and_then(|resource| resource.cached(served.key(&namespace, &name)))
        && let Reconciled::Recreate(_) = reconcile(&served.value(&present), &desired)
    {
        own.write(served, &namespace).delete(&name, &DeleteOptions::default()).await?;
    }
    let wanted = desired.clone();
    own.ensure(served, desired, move |current| match reconcile(current, &wanted) {
        Reconciled::Update(object) => Some(object),
        Reconciled::Unchanged | Reconciled::Recreate(_) => None,
    })
    .await
}

/// Keeps the rules of aggregated cluster roles what their selectors say; ends with the storage.
pub async fn aggregate(server: Arc<Server>) {
    let Some(served) = server.table.find("rbac.authorization.k8s.io", "v1", "clusterroles") else { return };
    let Some(resource) = &served.resource else { return };
    let mut changes = resource.subscribe();
    let mut synced = false;
    while let Some(notice) = changes.next().await {
        synced |= matches!(notice, Notice::Synced);
        // What has arrived together is looked at once.
        while let Some(more) = changes.try_next() {
            synced |= matches!(more, Notice::Synced);
        }
        if !synced {
            continue;
        }
        let roles: Vec<Value> = resource.cached_list("").iter().map(|object| object.value()).collect();
        let own = Own::new(&server);
        for (name, rules) in bootstrap::aggregation::outdated(&roles) {
            let result = own
                .write(served, "")
                .update(&name, |current| {
                    let mut role =
                        current.cloned().ok_or_else(|| Status::not_found(served.qualified(), &name))?;
                    role["rules"] = rules.clone();
                    Ok(role)
                })
                .await;
            if let Err(error) = result {
                tracing::warn!(role = name, %error, "updating an aggregated cluster role failed");
            }
        }
    }
}

//! Which resources the API server has, for the controllers that work on all of them.

use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};

/// Objects by their metadata alone.
pub type AnyMeta = PartialObjectMeta<DynamicObject>;

#[derive(Debug, Clone)]
pub struct Found {
    pub resource: ApiResource,
    pub namespaced: bool,
    /// `list`, `watch` and `delete`: it can be collected.
    pub collectable: bool,
    /// `list` and `delete`: it can be emptied.
    pub deletable: bool,
    pub deletes_collections: bool,
}

impl Found {
    /// `pods`, `deployments.apps`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.resource.group.as_str() {
            "" => self.resource.plural.clone(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }

    /// The API of one namespace, or of all (also for what has none) where it is empty.
    #[must_use]
    pub fn api(&self, client: &Client, namespace: &str) -> Api<AnyMeta> {
        if self.namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Each resource once, in its group's preferred version.
///
/// # Errors
/// The documents cannot be read.
pub async fn resources(client: &Client) -> Result<Vec<Found>, kube::Error> {
    let discovered = Discovery::new(client.clone()).run_aggregated().await?;
    let all = discovered.groups().flat_map(|group| group.recommended_resources());
    let found = all.map(|(resource, capabilities)| {
        let can = |verb| capabilities.supports_operation(verb);
        let deletable = can(verbs::LIST) && can(verbs::DELETE);
        Found {
            namespaced: capabilities.scope == Scope::Namespaced,
            collectable: deletable && can(verbs::WATCH),
            deletable,
            deletes_collections: can(verbs::DELETE_COLLECTION),
            resource,
        }
    });
    Ok(found.collect())
}

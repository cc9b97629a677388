//! How the server tells this package what exists.
//!
//! The server feeds each watch cache's events, in order, into every [`Observer`]. After a relist it
//! sends `Delete` for what vanished meanwhile; nothing is ever reset.

use futures::future::BoxFuture;
use serde_json::Value;

/// The resources whose objects this package needs to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    Namespaces,
    Nodes,
    Pods,
    Secrets,
    ServiceAccounts,
    LimitRanges,
    PersistentVolumes,
    Roles,
    ClusterRoles,
    RoleBindings,
    ClusterRoleBindings,
    PriorityClasses,
    VolumeAttachments,
    ResourceSlices,
}

impl Resource {
    pub const ALL: &'static [Self] = &[
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::Secrets,
        Self::ServiceAccounts,
        Self::LimitRanges,
        Self::PersistentVolumes,
        Self::Roles,
        Self::ClusterRoles,
        Self::RoleBindings,
        Self::ClusterRoleBindings,
        Self::PriorityClasses,
        Self::VolumeAttachments,
        Self::ResourceSlices,
    ];

    /// API group and plural name.
    #[must_use]
    pub fn group_resource(self) -> (&'static str, &'static str) {
        match self {
            Self::Namespaces => ("", "namespaces"),
            Self::Nodes => ("", "nodes"),
            Self::Pods => ("", "pods"),
            Self::Secrets => ("", "secrets"),
            Self::ServiceAccounts => ("", "serviceaccounts"),
            Self::LimitRanges => ("", "limitranges"),
            Self::PersistentVolumes => ("", "persistentvolumes"),
            Self::Roles => (RBAC, "roles"),
            Self::ClusterRoles => (RBAC, "clusterroles"),
            Self::RoleBindings => (RBAC, "rolebindings"),
            Self::ClusterRoleBindings => (RBAC, "clusterrolebindings"),
            Self::PriorityClasses => ("scheduling.k8s.io", "priorityclasses"),
            Self::VolumeAttachments => ("storage.k8s.io", "volumeattachments"),
            Self::ResourceSlices => ("resource.k8s.io", "resourceslices"),
        }
    }

    /// None: a resource this package has no interest in.
    #[must_use]
    pub fn find(group: &str, plural: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|resource| resource.group_resource() == (group, plural))
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// What happened to one object.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Created or changed: the whole object in a served version.
    Upsert(&'a Value),
    /// Gone from storage. `namespace` is empty for cluster-scoped objects.
    Delete { namespace: &'a str, name: &'a str },
}

/// Keeps compiled state from the objects it is shown. Must not block.
pub trait Observer: Send + Sync {
    fn observe(&self, resource: Resource, event: Event<'_>);
}

/// The server's promise to catch up: after the future resolves, everything that was in the store
/// when it was called has been observed (or the server gave up waiting).
pub trait Freshness: Send + Sync {
    fn catch_up(&self, resource: Resource) -> BoxFuture<'_, ()>;
}

/// For where everything observed is current by construction.
pub struct AlwaysFresh;

impl Freshness for AlwaysFresh {
    fn catch_up(&self, _resource: Resource) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

//! The one list of kinds, in the order in which discovery lists groups and resources.

use crate::{
    Kind, apps, batch, core, disruptionbudget, endpointslice, lease, networking, priorityclass, rbac,
    reviews, storageclass,
};

static KINDS: &[Kind] = &[
    core::BINDING.kind(),
    core::COMPONENT_STATUS.kind(),
    core::CONFIG_MAP.kind(),
    core::ENDPOINTS.kind(),
    core::EVENT.kind(),
    core::LIMIT_RANGE.kind(),
    core::NAMESPACE.kind(),
    core::NODE.kind(),
    core::CLAIM.kind(),
    core::VOLUME.kind(),
    core::pod::KIND.kind(),
    core::POD_TEMPLATE.kind(),
    core::REPLICATION_CONTROLLER.kind(),
    core::RESOURCE_QUOTA.kind(),
    core::SECRET.kind(),
    core::SERVICE_ACCOUNT.kind(),
    core::SERVICE.kind(),
    core::EVENTS_EVENT.kind(),
    reviews::SELF_SUBJECT_REVIEW.kind(),
    reviews::TOKEN_REVIEW.kind(),
    reviews::LOCAL_SUBJECT_ACCESS_REVIEW.kind(),
    reviews::SELF_SUBJECT_ACCESS_REVIEW.kind(),
    reviews::SELF_SUBJECT_RULES_REVIEW.kind(),
    reviews::SUBJECT_ACCESS_REVIEW.kind(),
    apps::CONTROLLER_REVISION.kind(),
    apps::DAEMON_SET.kind(),
    apps::DEPLOYMENT.kind(),
    apps::REPLICA_SET.kind(),
    apps::STATEFUL_SET.kind(),
    batch::CRON_JOB.kind(),
    batch::JOB.kind(),
    networking::INGRESS_CLASS.kind(),
    networking::INGRESS.kind(),
    networking::NETWORK_POLICY.kind(),
    disruptionbudget::KIND.kind(),
    rbac::CLUSTER_ROLE_BINDING.kind(),
    rbac::CLUSTER_ROLE.kind(),
    rbac::ROLE_BINDING.kind(),
    rbac::ROLE.kind(),
    storageclass::KIND.kind(),
    priorityclass::KIND.kind(),
    lease::KIND.kind(),
    endpointslice::KIND.kind(),
];

/// Every kind that is built in.
pub fn kinds() -> &'static [Kind] {
    KINDS
}

/// The kind served at `/apis/<group>/<version>/<plural>`.
pub fn kind(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| {
        kind.resource.plural == plural && kind.resource.group == group && kind.resource.version == version
    })
}

#[cfg(test)]
mod tests;

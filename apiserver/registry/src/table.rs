//! The one list of kinds, in the order in which discovery lists groups and resources.

use crate::{Kind, apps, core};

static KINDS: &[Kind] = &[
    core::CONFIG_MAP.kind(),
    core::ENDPOINTS.kind(),
    core::EVENT.kind(),
    core::NAMESPACE.kind(),
    core::NODE.kind(),
    core::CLAIM.kind(),
    core::VOLUME.kind(),
    core::pod::KIND.kind(),
    core::SECRET.kind(),
    core::SERVICE_ACCOUNT.kind(),
    core::SERVICE.kind(),
    apps::CONTROLLER_REVISION.kind(),
    apps::DAEMON_SET.kind(),
    apps::DEPLOYMENT.kind(),
    apps::REPLICA_SET.kind(),
    apps::STATEFUL_SET.kind(),
    core::EVENTS_EVENT.kind(),
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

//! Nobody grants what they do not hold: the check of roles and bindings before they are written.
//!
//! Upstream does this in the storage of the RBAC kinds, behind admission; it is part of the write path here so that
//! no way of writing gets around it.

use keelson_access::authz::{
    escalation::{check_binding, check_role},
    rbac::RoleKind,
};
use serde_json::Value;

use super::Write;
use crate::status::Status;

/// Refuses a write that would raise the writer's own rights.
pub fn check(write: &Write<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let resource = &write.served.kind.resource;
    if resource.group != "rbac.authorization.k8s.io" {
        return Ok(());
    }
    let access = &write.server.access;
    let (user, authorizer) = (write.user, access.authorizer.as_ref());
    match resource.plural.as_ref() {
        "roles" => check_role(user, RoleKind::Role, new, old, &access.rbac, authorizer)?,
        "clusterroles" => check_role(user, RoleKind::ClusterRole, new, old, &access.rbac, authorizer)?,
        _ => check_binding(user, new, old, &access.rbac, authorizer)?,
    }
    Ok(())
}

//! Owner references: who an object belongs to, and which of its owners manages it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The owner that is marked as controller.
#[must_use]
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object with this uid is the controller.
#[must_use]
pub fn is_controlled_by(metadata: &ObjectMeta, uid: &str) -> bool {
    controller_of(metadata).is_some_and(|owner| owner.uid == uid)
}

/// Whether the object with this uid is among the owners.
#[must_use]
pub fn is_owned_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

/// A reference from a controller to what it makes: controlling, and blocking the deletion of the owner.
#[must_use]
pub fn new_controller_ref(api_version: &str, kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_and_owners() {
        let mut owner = new_controller_ref("apps/v1", "ReplicaSet", "web", "u1");
        let plain = OwnerReference { controller: None, uid: "u2".into(), ..owner.clone() };
        owner.name = "rs".into();
        let metadata = ObjectMeta { owner_references: Some(vec![plain, owner]), ..ObjectMeta::default() };
        assert_eq!(controller_of(&metadata).unwrap().name, "rs");
        assert!(is_controlled_by(&metadata, "u1") && !is_controlled_by(&metadata, "u2"));
        assert!(is_owned_by(&metadata, "u2") && !is_owned_by(&metadata, "u3"));
        assert!(controller_of(&ObjectMeta::default()).is_none());
    }
}

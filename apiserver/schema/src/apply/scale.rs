//! The scale subresource shows one field of its parent under another name; so do its managed fields.

use super::{
    fieldset::{Element, Set},
    managed::{Managed, Owned},
};
use serde_json::{Value, json};

const SCALE_VERSION: &str = "autoscaling/v1";

fn path_of(names: &[&str]) -> Vec<Element> {
    names.iter().map(|name| Element::field(name)).collect()
}

fn only(path: &[Element]) -> Set {
    let mut set = Set::default();
    set.insert(path);
    set
}

fn entries(managed: Managed) -> Value {
    let mut object = json!({"metadata": {}});
    managed.write(&mut object);
    object.pointer_mut("/metadata/managedFields").map_or(Value::Null, Value::take)
}

/// The managed fields of a Scale: the owners of the parent's replicas. `parent` is the whole object; null: nobody.
pub fn managed_fields_of_scale(parent: &Value, replicas: &[&str]) -> Result<Value, super::ApplyError> {
    let replicas = path_of(replicas);
    let mut managed = Managed::of(parent).map_err(super::ApplyError::Internal)?;
    managed.0.retain(|_, owned| owned.set.has(&replicas));
    for owned in managed.0.values_mut() {
        owned.set = only(&path_of(&["spec", "replicas"]));
        owned.api_version = SCALE_VERSION.to_owned();
    }
    Ok(entries(managed))
}

/// The managed fields of the parent after its scale was written with the managed fields `scale` (a whole Scale).
pub fn managed_fields_of_parent(
    parent: &Value,
    scale: &Value,
    api_version: &str,
    replicas: &[&str],
) -> Result<Value, super::ApplyError> {
    let replicas = path_of(replicas);
    let mut managed = Managed::of(parent).map_err(super::ApplyError::Internal)?;
    let mut of_scale = Managed::of(scale).map_err(super::ApplyError::Internal)?;
    managed.0.retain(|manager, owned| {
        if owned.set.has(&replicas) && of_scale.0.remove(manager).is_none() {
            // It was taken over through the scale.
            owned.set = owned.set.difference(&only(&replicas));
        }
        !owned.set.is_empty()
    });
    for (manager, owned) in of_scale.0 {
        if owned.set.has(&path_of(&["spec", "replicas"])) {
            let owned = Owned { set: only(&replicas), api_version: api_version.to_owned(), time: owned.time };
            managed.0.insert(manager, owned);
        }
    }
    Ok(entries(managed))
}

//! The one list of kinds, in the order in which discovery lists groups and resources.

use crate::{Kind, core};

static KINDS: &[Kind] = &[core::CONFIG_MAP.kind()];

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

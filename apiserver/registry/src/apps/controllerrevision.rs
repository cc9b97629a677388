//! ControllerRevisions: snapshots of a template, written once.

use jiff::Timestamp;
use serde_json::Value;

use super::immutable;
use crate::{
    Cause, Strategy,
    cause::{Causes, Path},
    columns::{self, AGE, NAME, integer, text},
    fields::Fields,
    kind::{Column, Spec},
    rules,
};

pub(crate) const KIND: Spec = Spec {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    storage_prefix: Some("controllerrevisions"),
    columns: COLUMNS,
    strategy: &ControllerRevision,
    ..Spec::STORED
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Controller", "The workload that it belongs to."),
    integer("Revision", "Its number among the workload's revisions."),
    AGE,
];

struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        if !object.has("data") {
            causes.required(&Path::new("data"), "data is mandatory");
        }
        rules::not_negative(object, "revision", &Path::new(""), &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        causes.extend(self.validate_create(new));
        immutable(new, old, "data", &Path::new(""), &mut causes);
        causes.into_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let owner =
            object.at("metadata").list("ownerReferences").iter().find(|owner| owner.flag("controller"));
        let controller = owner.map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let kind = owner.text("kind").to_lowercase();
                match owner.text("apiVersion").split_once('/') {
                    Some((group, _)) => format!("{kind}.{group}/{}", owner.text("name")),
                    None => format!("{kind}/{}", owner.text("name")),
                }
            },
        );
        vec![
            columns::name(object),
            controller.into(),
            object.int("revision").unwrap_or(0).into(),
            columns::age(object, now),
        ]
    }
}

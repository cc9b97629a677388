//! ComponentStatuses: whether the control plane's other parts answer. Deprecated since 1.19, asked for by hand still;
//! never stored, the API server asks when it is asked.

use jiff::Timestamp;
use keelson_schema::resource::Verb;
use serde_json::Value;

use crate::{
    Strategy,
    columns::{self, NAME, text},
    fields::Fields,
    kind::{Column, Spec, name},
};

pub(crate) const KIND: Spec = Spec {
    kind: "ComponentStatus",
    plural: "componentstatuses",
    singular: "componentstatus",
    short_names: &[name("cs")],
    verbs: &[Verb::Get, Verb::List],
    columns: COLUMNS,
    strategy: &ComponentStatus,
    ..Spec::VIRTUAL
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Status", "Whether it is healthy."),
    text("Message", "What it says of itself."),
    text("Error", "Why it could not be asked."),
];

struct ComponentStatus;

impl Strategy for ComponentStatus {
    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let conditions = object.list("conditions");
        let healthy = conditions.iter().find(|condition| condition.text("type") == "Healthy");
        let status = match healthy.map(|condition| condition.text("status")) {
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let said = |field: &str| healthy.map_or("", |condition| condition.text(field));
        vec![columns::name(object), status.into(), said("message").into(), said("error").into()]
    }
}

//! Events, in both their forms: core/v1 is what is stored, events.k8s.io/v1 is the same event under other names.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    Cause, Conversion, Strategy,
    cause::{Causes, Path},
    columns::{self, NAME, text, wide},
    fields::{Fields, Fill},
    kind::{Column, Spec, name},
    names,
};

const EVENT: Spec = Spec {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &[name("ev")],
    storage_prefix: Some("events"),
    columns: COLUMNS,
    create_on_update: true,
    ..Spec::STORED
};

pub(crate) const CORE: Spec = Spec {
    selectable: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    strategy: &CoreEvent,
    ..EVENT
};

pub(crate) const EVENTS: Spec = Spec {
    group: "events.k8s.io",
    selectable: &[
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reason",
        "reportingController",
        "type",
    ],
    conversion: Some(Conversion {
        to_storage,
        from_storage,
        fields: &[
            ("regarding.kind", "involvedObject.kind"),
            ("regarding.namespace", "involvedObject.namespace"),
            ("regarding.name", "involvedObject.name"),
            ("regarding.uid", "involvedObject.uid"),
            ("regarding.apiVersion", "involvedObject.apiVersion"),
            ("regarding.resourceVersion", "involvedObject.resourceVersion"),
            ("regarding.fieldPath", "involvedObject.fieldPath"),
            ("reportingController", "reportingComponent"),
        ],
    }),
    strategy: &EventsEvent,
    ..EVENT
};

const COLUMNS: &[Column] = &[
    text("Last Seen", "Time since it was seen last."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why, in a word for machines."),
    text("Object", "What it is about."),
    wide("Subobject", "Part of the object that it is about."),
    wide("Source", "Who reports it."),
    text("Message", "What has happened."),
    wide("First Seen", "Time since it was seen first."),
    wide("Count", "How often it was seen."),
    Column { priority: 1, ..NAME },
];

/// (events.k8s.io, core) names of fields that differ.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, api_version: &str, pairs: impl Iterator<Item = (&'static str, &'static str)>) {
    object.put("apiVersion", api_version);
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in pairs {
        if let Some(value) = map.shift_remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

fn to_storage(object: &mut Value) {
    rename(object, "v1", RENAMED.iter().copied());
    object.fill("involvedObject", json!({}));
}

fn from_storage(object: &mut Value) {
    rename(object, "events.k8s.io/v1", RENAMED.iter().map(|(new, old)| (*old, *new)));
}

/// Both strategies think in the stored form.
fn stored(object: &Value) -> Value {
    let mut object = object.clone();
    to_storage(&mut object);
    object
}

struct CoreEvent;

impl Strategy for CoreEvent {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        lenient(object, "reportingComponent", "reportingInstance", &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Cause> {
        self.validate_create(new)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let about = object.at("involvedObject");
        let source = match object.at("source").text("component") {
            "" => object.text("reportingComponent"),
            component => component,
        };
        vec![
            ("involvedObject.kind", about.text("kind").to_owned()),
            ("involvedObject.namespace", about.text("namespace").to_owned()),
            ("involvedObject.name", about.text("name").to_owned()),
            ("involvedObject.uid", about.text("uid").to_owned()),
            ("involvedObject.apiVersion", about.text("apiVersion").to_owned()),
            ("involvedObject.resourceVersion", about.text("resourceVersion").to_owned()),
            ("involvedObject.fieldPath", about.text("fieldPath").to_owned()),
            ("reason", object.text("reason").to_owned()),
            ("reportingComponent", object.text("reportingComponent").to_owned()),
            ("source", source.to_owned()),
            ("type", object.text("type").to_owned()),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let event_time = object.text("eventTime");
        let first = columns::since(or(object.text("firstTimestamp"), event_time), now);
        let series = object.at("series");
        let last = if series.is_null() {
            match object.text("lastTimestamp") {
                "" => first.clone(),
                time => columns::since(time, now),
            }
        } else {
            columns::since(series.text("lastObservedTime"), now)
        };
        let count = if series.is_null() {
            object.int("count").filter(|count| *count != 0).unwrap_or(1)
        } else {
            series.int("count").unwrap_or(0)
        };
        let about = object.at("involvedObject");
        let kind = about.text("kind").to_lowercase();
        let target = match about.text("name") {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        let source = object.at("source");
        let component = or(source.text("component"), object.text("reportingComponent"));
        let reporter = match or(source.text("host"), object.text("reportingInstance")) {
            "" => component.to_owned(),
            instance => format!("{component}, {instance}"),
        };
        vec![
            last.into(),
            object.text("type").into(),
            object.text("reason").into(),
            target.into(),
            about.text("fieldPath").into(),
            reporter.into(),
            object.text("message").trim().into(),
            first.into(),
            count.into(),
            columns::name(object),
        ]
    }
}

fn or<'a>(first: &'a str, second: &'a str) -> &'a str {
    if first.is_empty() { second } else { first }
}

struct EventsEvent;

impl Strategy for EventsEvent {
    fn validate_create(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        lenient(&stored(object), "reportingController", "reportingInstance", &mut causes);
        strict(object, &mut causes);
        causes.into_vec()
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Causes::default();
        lenient(&stored(new), "reportingController", "reportingInstance", &mut causes);
        // An event may only be told more often: everything else is what has happened.
        for field in [
            "note",
            "reason",
            "type",
            "action",
            "reportingController",
            "reportingInstance",
            "regarding",
            "related",
            "eventTime",
        ] {
            if !crate::equality::equal(new.at(field), old.at(field)) {
                causes.invalid(&Path::new(field), new.at(field).clone(), "field is immutable");
            }
        }
        causes.into_vec()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let core = CoreEvent.selectable_fields(&stored(object));
        let value = |name: &str| {
            core.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let fields = EVENTS.conversion.map_or(&[] as &[_], |conversion| conversion.fields);
        EVENTS
            .selectable
            .iter()
            .map(|name| {
                let stored =
                    fields.iter().find(|(served, _)| served == name).map_or(*name, |(_, stored)| stored);
                (*name, value(stored))
            })
            .collect()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        CoreEvent.row(&stored(object), now)
    }
}

/// What both forms ask of an event in its stored form; the two fields are named as the client knows them.
fn lenient(event: &Value, controller_field: &str, instance_field: &str, causes: &mut Causes) {
    let namespace = event.at("metadata").text("namespace");
    let about = event.at("involvedObject").text("namespace");
    let path = Path::new("involvedObject");
    let mismatch = "does not match event.namespace";
    if !event.has("eventTime") {
        let wrong = if about.is_empty() {
            !namespace.is_empty() && namespace != "default"
        } else {
            about != namespace
        };
        if wrong {
            causes.invalid(&path.child("namespace"), about, mismatch);
        }
    } else {
        if about.is_empty() && !matches!(namespace, "default" | "kube-system") {
            causes.invalid(&path.child("namespace"), about, mismatch);
        }
        let controller = event.text("reportingComponent");
        if controller.is_empty() {
            causes.required(&Path::new(controller_field), "");
        }
        causes.syntax(&Path::new(controller_field), controller, names::qualified_name(controller));
        for (field, shown) in
            [("reportingInstance", instance_field), ("action", "action"), ("reason", "reason")]
        {
            match event.text(field) {
                "" => causes.required(&Path::new(shown), ""),
                text if text.len() > 128 => {
                    causes.invalid(&Path::new(shown), "", "can have at most 128 characters");
                }
                _ => {}
            }
        }
        if event.text("message").len() > 1024 {
            causes.invalid(&Path::new("message"), "", "can have at most 1024 characters");
        }
    }
}

/// What only events.k8s.io/v1 asks, of a new event.
fn strict(event: &Value, causes: &mut Causes) {
    if event.has("series") {
        if event.at("series").int("count").unwrap_or(0) < 2 {
            causes.invalid(&Path::new("series.count"), "", "should be at least 2");
        }
        if !event.at("series").has("lastObservedTime") {
            causes.required(&Path::new("series.lastObservedTime"), "");
        }
    }
    if !event.has("eventTime") {
        causes.required(&Path::new("eventTime"), "");
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        causes.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    for field in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount"] {
        if event.has(field) && event.int(field) != Some(0) {
            let field = if field == "deprecatedCount" { "deprecatedCount" } else { field };
            causes.invalid(&Path::new(field), "", "needs to be unset");
        }
    }
    for field in ["component", "host"] {
        if !event.at("deprecatedSource").text(field).is_empty() {
            let path = Path::new("deprecatedSource");
            causes.invalid(&path.child(field), "", "needs to be unset");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_two_forms() {
        let served = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "e", "namespace": "a"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "a"},
            "note": "x", "reason": "R", "type": "Normal", "action": "A", "eventTime": "2024-01-01T00:00:00.000000Z",
            "reportingController": "c", "reportingInstance": "i"});
        assert_eq!(EVENTS.kind().validate_create(&served), []);
        let mut object = served.clone();
        to_storage(&mut object);
        assert_eq!(object["involvedObject"]["name"], "p");
        assert_eq!((&object["message"], &object["apiVersion"]), (&json!("x"), &json!("v1")));
        assert_eq!(CORE.kind().validate_create(&object), []);
        from_storage(&mut object);
        assert_eq!(object, served);
        assert!(EVENTS.kind().selectable_fields(&served).contains(&("regarding.kind", "Pod".to_owned())));
        let now = "2024-01-01T00:05:00Z".parse().unwrap();
        let row = EVENTS.kind().row(&served, now);
        assert_eq!(row[0], "5m");
        assert_eq!(row[3], "pod/p");
        assert_eq!(row[5], "c, i");
        assert_eq!(row[8], 1);
    }

    #[test]
    fn namespaces_match() {
        fn check(namespace: &str, about: &str, expected: usize) {
            let event = json!({"metadata": {"name": "e", "namespace": namespace}, "involvedObject": {"namespace": about}});
            assert_eq!(CORE.kind().validate_create(&event).len(), expected, "{namespace} {about}");
        }
        check("a", "a", 0);
        check("default", "", 0);
        check("a", "", 1);
        check("a", "b", 1);
    }
}

//! The parameters of operations. Descriptions are our own; names, places and types are the API's.

use serde_json::{Map, Value, json};

/// A parameter: its name, place, type and meaning.
#[derive(Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    place: &'static str,
    kind: &'static str,
    description: &'static str,
    required: bool,
    /// Written out in each operation. Clients older than 1.27 look for these in the operation itself.
    inline: bool,
}

const fn query(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter { name, place: "query", kind, description, required: false, inline: false }
}

const fn in_path(name: &'static str, description: &'static str) -> Parameter {
    Parameter { name, place: "path", kind: "string", description, required: true, inline: false }
}

pub(super) const NAME: Parameter = in_path("name", "name of the object");
pub(super) const NAMESPACE: Parameter =
    in_path("namespace", "namespace of the object, which scopes the request");
pub(super) const PATH: Parameter = in_path("path", "path to the resource behind the proxy");
pub(super) const PRETTY: Parameter = query("pretty", "string", "If 'true', the output is pretty printed.");
pub(super) const DRY_RUN: Parameter = Parameter {
    inline: true,
    ..query(
        "dryRun",
        "string",
        "All: process the request in full, but persist nothing. There is no other value.",
    )
};
pub(super) const FIELD_MANAGER: Parameter = query(
    "fieldManager",
    "string",
    "Who or what makes the change, in printable characters, at most 128 of them.",
);
pub(super) const FIELD_VALIDATION: Parameter = Parameter {
    inline: true,
    ..query(
        "fieldValidation",
        "string",
        "What is done about unknown and duplicate fields: Ignore drops them, Warn (the default) drops them and warns, \
         Strict refuses the request.",
    )
};
pub(super) const FORCE: Parameter = query(
    "force",
    "boolean",
    "Take fields from other managers in an apply instead of failing with a conflict.",
);
pub(super) const LIST: [Parameter; 11] = [
    query("allowWatchBookmarks", "boolean", "Ask a watch for events of type BOOKMARK."),
    query("continue", "string", "Where to go on with a list that was given in part."),
    query("fieldSelector", "string", "Restrict the list by fields; everything by default."),
    query("labelSelector", "string", "Restrict the list by labels; everything by default."),
    query("limit", "integer", "The most items of one response; if there are more, metadata.continue is set."),
    query("resourceVersion", "string", "Which resource versions the request may be served from."),
    query("resourceVersionMatch", "string", "How resourceVersion applies to a list: Exact or NotOlderThan."),
    query("sendInitialEvents", "boolean", "Begin a watch with events for all objects that exist."),
    query("shardSelector", "string", "Restrict the list to a shard of all objects."),
    query("timeoutSeconds", "integer", "How long a list or watch may take, whatever else happens."),
    query("watch", "boolean", "Watch for changes instead of listing, beginning at resourceVersion."),
];
pub(super) const DELETE: [Parameter; 4] = [
    query("gracePeriodSeconds", "integer", "How long the object may take to end; zero: delete it at once."),
    query(
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete an object that cannot be read from the store. It may break the cluster.",
    ),
    query("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    query("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
];
pub(super) const LOG: [Parameter; 9] = [
    query("container", "string", "The container; the only one of the pod by default."),
    query("follow", "boolean", "Go on with the log as it is written."),
    query("insecureSkipTLSVerifyBackend", "boolean", "Do not verify the kubelet's certificate."),
    query("limitBytes", "integer", "The most bytes to return."),
    query("previous", "boolean", "The log of the container that ended before the current one."),
    query("sinceSeconds", "integer", "Only what is not older than this."),
    query("stream", "string", "All, Stdout or Stderr."),
    query("tailLines", "integer", "Only so many lines from the end."),
    query("timestamps", "boolean", "Begin each line with its time."),
];
pub(super) const EXEC: [Parameter; 6] = [
    query("command", "string", "The command, an argument each time it is given; not run in a shell."),
    LOG[0],
    query("stderr", "boolean", "Redirect standard error."),
    query("stdin", "boolean", "Redirect standard input."),
    query("stdout", "boolean", "Redirect standard output."),
    query("tty", "boolean", "Give it a terminal."),
];
pub(super) const PORTS: Parameter = query("ports", "integer", "Ports to forward; needed over WebSockets.");
pub(super) const PROXY_PATH: Parameter = Parameter { place: "query", required: false, ..PATH };

impl Parameter {
    pub(super) fn v2(&self) -> Value {
        let mut map = Map::new();
        map.insert("description".to_owned(), self.description.into());
        map.insert("in".to_owned(), self.place.into());
        map.insert("name".to_owned(), self.name.into());
        if self.required {
            map.insert("required".to_owned(), true.into());
        }
        map.insert("type".to_owned(), self.kind.into());
        map.insert("uniqueItems".to_owned(), true.into());
        Value::Object(map)
    }

    pub(super) fn v2_or_reference(&self) -> Value {
        if self.inline { self.v2() } else { json!({"$ref": format!("#/parameters/{}", self.key())}) }
    }

    /// The name in the list of shared parameters: `path` is one in a path and one in a query.
    fn key(&self) -> String {
        format!("{}-{}", self.name, self.place)
    }

    pub(super) fn v3(&self) -> Value {
        let mut map = Map::new();
        map.insert("description".to_owned(), self.description.into());
        map.insert("in".to_owned(), self.place.into());
        map.insert("name".to_owned(), self.name.into());
        if self.required {
            map.insert("required".to_owned(), true.into());
        }
        map.insert("schema".to_owned(), json!({"type": self.kind, "uniqueItems": true}));
        Value::Object(map)
    }
}

/// The parameters that version 2 refers to.
pub(super) fn shared_parameters() -> Value {
    let single = [NAME, NAMESPACE, PATH, PROXY_PATH, PRETTY, FIELD_MANAGER, FORCE, PORTS];
    let all = single.iter().chain(&LIST).chain(&DELETE).chain(&LOG).chain(&EXEC);
    let mut shared: Map<String, Value> = all.map(|parameter| (parameter.key(), parameter.v2())).collect();
    shared.sort_keys();
    Value::Object(shared)
}

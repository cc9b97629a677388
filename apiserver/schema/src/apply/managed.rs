//! `metadata.managedFields`: who owns which fields, read and written.

use super::fieldset::Set;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt};

/// Above this many managers of updates, the oldest are merged.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What tells managers apart. Of an applier the version does not matter: it has one set of fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub name: String,
    pub operation: Operation,
    /// Empty for appliers.
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    pub(super) fn new(name: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let api_version = match operation {
            Operation::Apply => "",
            Operation::Update => api_version,
        };
        Self {
            name: if name.is_empty() { "unknown" } else { name }.to_owned(),
            operation,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

impl fmt::Display for Manager {
    /// As upstream names it in a conflict: `"kubectl" with subresource "status" using apps/v1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.api_version),
        }
    }
}

/// What a manager owns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owned {
    pub set: Set,
    /// The version in which the fields are written.
    pub api_version: String,
    /// When it last changed something; kept as it was written, RFC 3339 in UTC.
    pub time: Option<String>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Managed(pub BTreeMap<Manager, Owned>);

impl Managed {
    /// Reads an object's managed fields. No entries are an empty map.
    pub(super) fn of(object: &Value) -> Result<Self, String> {
        match object.pointer("/metadata/managedFields") {
            Some(Value::Array(entries)) => Self::decode(entries),
            _ => Ok(Self::default()),
        }
    }

    fn decode(entries: &[Value]) -> Result<Self, String> {
        let mut managed = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            let api_version = text("apiVersion");
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {index}")),
            }
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(fields) => Set::decode(fields).map_err(|e| format!("error decoding set: {e}"))?,
            };
            let manager = Manager {
                name: text("manager").to_owned(),
                ..Manager::new("", operation, api_version, text("subresource"))
            };
            let time = entry["time"].as_str().map(str::to_owned);
            managed.0.insert(manager, Owned { set, api_version: api_version.to_owned(), time });
        }
        Ok(managed)
    }

    /// Writes the managers into an object: appliers first, then by time and name; none of them if there are none.
    pub(super) fn write(self, object: &mut Value) {
        let mut entries: Vec<(Manager, Owned)> = self.0.into_iter().collect();
        entries.sort_by(|(p, p_owned), (q, q_owned)| {
            (
                p.operation,
                p_owned.time.as_deref().unwrap_or_default(),
                &p.name,
                &p_owned.api_version,
                &p.subresource,
            )
                .cmp(&(
                    q.operation,
                    q_owned.time.as_deref().unwrap_or_default(),
                    &q.name,
                    &q_owned.api_version,
                    &q.subresource,
                ))
        });
        let entries: Vec<Value> =
            entries.into_iter().map(|(manager, owned)| encode(manager, owned)).collect();
        set_entries(object, (!entries.is_empty()).then_some(Value::Array(entries)));
    }

    /// Merges the oldest updates of a version into one entry until there are at most ten managers of updates.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<(Option<String>, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == Operation::Update)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        let mut count = updaters.len();
        if count <= MAX_UPDATE_MANAGERS {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
        for (time, manager) in updaters {
            if count <= MAX_UPDATE_MANAGERS {
                break;
            }
            let Some(version) = self.0.get(&manager).map(|owned| owned.api_version.clone()) else { continue };
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, manager);
                continue;
            };
            let bucket = Manager::new(ANCIENT, Operation::Update, &version, "");
            if !self.0.contains_key(&bucket)
                && let Some(owned) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), owned);
            }
            if manager != bucket
                && let Some(owned) = self.0.remove(&manager)
                && let Some(ancient) = self.0.get_mut(&bucket)
            {
                ancient.set.extend(&owned.set);
                ancient.time = time;
            }
            count -= 1;
        }
    }
}

fn encode(manager: Manager, owned: Owned) -> Value {
    let mut entry = Map::new();
    if !manager.name.is_empty() {
        entry.insert("manager".to_owned(), manager.name.into());
    }
    entry.insert("operation".to_owned(), manager.operation.as_str().into());
    entry.insert("apiVersion".to_owned(), owned.api_version.into());
    if let Some(time) = owned.time {
        entry.insert("time".to_owned(), time.into());
    }
    entry.insert("fieldsType".to_owned(), "FieldsV1".into());
    entry.insert("fieldsV1".to_owned(), owned.set.encode());
    if !manager.subresource.is_empty() {
        entry.insert("subresource".to_owned(), manager.subresource.into());
    }
    Value::Object(entry)
}

/// Replaces `metadata.managedFields`, or removes it.
pub(super) fn set_entries(object: &mut Value, entries: Option<Value>) {
    let Some(object) = object.as_object_mut() else { return };
    match entries {
        Some(entries) => {
            let metadata = object.entry("metadata").or_insert_with(|| json!({}));
            if metadata.is_null() {
                *metadata = json!({});
            }
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("managedFields".to_owned(), entries);
            }
        }
        None => {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.shift_remove("managedFields");
            }
        }
    }
}

/// A client asks to forget all owners: an empty list, or a list of one empty entry.
pub(super) fn is_reset(object: &Value) -> bool {
    match object.pointer("/metadata/managedFields") {
        Some(Value::Array(entries)) => match entries.as_slice() {
            [] => true,
            [Value::Object(entry)] => entry.values().all(Value::is_null),
            _ => false,
        },
        _ => false,
    }
}

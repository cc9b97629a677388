//! Published schemas: the types' JSON Schemas in the words of OpenAPI 2 or 3, with the facts as extensions.
//!
//! Only what is referred to is published, with all that it refers to in turn.

use super::Custom;
use crate::{
    facts::{self, ListType},
    types::{self, Schemas, Shape},
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavor {
    V2,
    V3,
}

/// The definitions of one document under construction.
pub(super) struct Definitions {
    flavor: Flavor,
    /// Everything there is, as generated. Taken from as it is published.
    source: Map<String, Value>,
    facts: HashMap<&'static str, facts::Definition>,
    /// Group, version and kind of a definition.
    kinds: HashMap<String, Vec<Value>>,
    published: BTreeMap<String, Value>,
    wanted: Vec<String>,
    seen: BTreeSet<String>,
}

impl Definitions {
    pub(super) fn new(flavor: Flavor, served: &BTreeSet<(&str, &str)>) -> Self {
        let mut kinds: HashMap<String, Vec<Value>> = HashMap::new();
        for (group, version, kind, ty) in Schemas::builtin().kinds() {
            if let Shape::Object(object) = ty.shape() {
                kinds.entry(object.definition.to_string()).or_default().push(gvk(group, version, kind));
            }
        }
        for kind in ["DeleteOptions", "WatchEvent"] {
            let everywhere = served.iter().map(|(group, version)| gvk(group, version, kind)).collect();
            kinds.insert(format!("{META}{kind}"), everywhere);
        }
        Self {
            flavor,
            source: types::definitions(),
            facts: facts::table(),
            kinds,
            published: BTreeMap::new(),
            wanted: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// A schema that refers to a definition, which is thereby published.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if self.seen.insert(name.to_owned()) {
            self.wanted.push(name.to_owned());
        }
        match self.flavor {
            Flavor::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Flavor::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }

    /// Publishes a custom resource's own schema and that of its list.
    pub(super) fn add_custom(&mut self, custom: &Custom<'_>) {
        let resource = custom.resource;
        let (name, list) = (custom_definition(resource, ""), custom_definition(resource, "List"));
        let mut schema = custom.schema.cloned().unwrap_or_else(|| json!({"type": "object"}));
        if self.flavor == Flavor::V2 {
            to_v2(&mut schema);
        }
        let text = |description: &str| json!({"type": "string", "description": description});
        let own = json!({
            "apiVersion": text("The group and version of this representation: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"),
            "kind": text("The kind of this representation: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
            "metadata": self.described(&format!("{META}ObjectMeta"), "Standard object's metadata: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"),
        });
        if let Some(map) = schema.as_object_mut() {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            if let (Some(properties), Value::Object(own)) = (properties.as_object_mut(), own.clone()) {
                properties.extend(own);
            }
            map.insert(
                "x-kubernetes-group-version-kind".to_owned(),
                json!([gvk(&resource.group, &resource.version, &resource.kind)]),
            );
        }
        let item = self.reference(&name);
        let list_kind = format!("{}List", resource.kind);
        let list_schema = json!({
            "description": format!("{list_kind} is a list of {}", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": own["apiVersion"],
                "items": {"type": "array", "description": format!("List of {}.", resource.plural), "items": item},
                "kind": own["kind"],
                "metadata": self.described(&format!("{META}ListMeta"), "Standard list metadata: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"),
            },
            "x-kubernetes-group-version-kind": [gvk(&resource.group, &resource.version, &list_kind)],
        });
        self.published.insert(name, schema);
        self.published.insert(list, list_schema);
    }

    fn described(&mut self, name: &str, description: &str) -> Value {
        let mut reference = self.reference(name);
        match self.flavor {
            Flavor::V2 => {
                reference["description"] = description.into();
                reference
            }
            Flavor::V3 => json!({"allOf": [reference], "default": {}, "description": description}),
        }
    }

    /// Publishes all that is wanted.
    pub(super) fn finish(mut self) -> BTreeMap<String, Value> {
        while let Some(name) = self.wanted.pop() {
            if self.published.contains_key(&name) {
                continue;
            }
            if let Some(schema) = self.source.shift_remove(&name) {
                let schema = self.definition(&name, schema);
                self.published.insert(name, schema);
            }
        }
        self.published
    }

    fn definition(&mut self, name: &str, schema: Value) -> Value {
        let Value::Object(mut schema) = schema else { return schema };
        let short = name.rsplit('.').next().unwrap_or(name);
        match short {
            "IntOrString" | "Quantity" => {
                schema.shift_remove("x-kubernetes-int-or-string");
                self.open_scalar(short, &mut schema);
            }
            // Any value: these have no type of their own.
            "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
                schema.shift_remove("type");
                schema.shift_remove("oneOf");
            }
            _ => {}
        }
        let facts = self.facts.remove(name);
        let required: Vec<String> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect();
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            for (field, schema) in properties.iter_mut() {
                let facts = facts.as_ref().and_then(|facts| facts.field(field));
                let is_metadata = field == "metadata" && !name.starts_with(META);
                let present = is_metadata || facts.is_some_and(|facts| facts.present);
                let default = present || required.contains(field);
                let is_items = field == "items" && short.ends_with("List");
                *schema = self.property(schema.take(), facts, default, present, is_items);
            }
        }
        let published: Vec<Value> = required
            .into_iter()
            .filter(|field| {
                facts::is_required(field, facts.as_ref().and_then(|facts| facts.field(field)), true)
            })
            .map(Value::from)
            .collect();
        if published.is_empty() {
            schema.shift_remove("required");
        } else {
            schema.insert("required".to_owned(), published.into());
        }
        if let Some(facts) = &facts {
            if facts.atomic {
                schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
            }
            if !facts.unions.is_empty() {
                schema.insert("x-kubernetes-unions".to_owned(), facts.unions.iter().map(union).collect());
            }
        }
        if let Some(kinds) = self.kinds.remove(name) {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
        }
        Value::Object(schema)
    }

    fn open_scalar(&self, short: &str, schema: &mut Map<String, Value>) {
        let int_or_string = short == "IntOrString";
        if int_or_string {
            schema.insert("format".to_owned(), "int-or-string".into());
        }
        match self.flavor {
            Flavor::V2 => schema.insert("type".to_owned(), "string".into()),
            Flavor::V3 if int_or_string => {
                schema.insert("oneOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]))
            }
            Flavor::V3 => schema.insert("oneOf".to_owned(), json!([{"type": "string"}, {"type": "number"}])),
        };
    }

    /// `default`: upstream always writes the field, so its zero value is its default.
    fn property(
        &mut self,
        schema: Value,
        facts: Option<&facts::Field>,
        default: bool,
        present: bool,
        is_items: bool,
    ) -> Value {
        let is_list = schema["type"] == "array";
        let mut schema = match self.plain(schema, default, present) {
            Value::Object(schema) => schema,
            other => return other,
        };
        let mut extend = |key: &str, value: Value| {
            schema.insert(format!("x-kubernetes-{key}"), value);
        };
        match facts.map(|facts| &facts.list) {
            Some(ListType::Unmarked) => {}
            Some(ListType::Set) => extend("list-type", "set".into()),
            Some(ListType::Map(keys)) => {
                extend("list-map-keys", keys.as_slice().into());
                extend("list-type", "map".into());
            }
            Some(ListType::Atomic) | None if is_list && !is_items => extend("list-type", "atomic".into()),
            _ => {}
        }
        if let Some(facts) = facts {
            if let Some(atomic) = facts.atomic {
                extend("map-type", if atomic { "atomic" } else { "granular" }.into());
            }
            if let Some(key) = facts.merge_key {
                extend("patch-merge-key", key.into());
            }
            if let Some(strategy) = facts.patch.published() {
                extend("patch-strategy", strategy.into());
            }
            if let Some(text) = facts.default
                && self.flavor == Flavor::V3
            {
                schema.insert("default".to_owned(), text.into());
            }
        }
        Value::Object(schema)
    }

    /// Rewrites references and, in version 3, adds defaults.
    fn plain(&mut self, schema: Value, default: bool, present: bool) -> Value {
        let Value::Object(mut schema) = schema else { return schema };
        let v3 = self.flavor == Flavor::V3;
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let name = target.rsplit('/').next().unwrap_or(target).to_owned();
            let reference = self.reference(&name);
            let Value::Object(target) = reference else { return reference };
            schema.shift_remove("$ref");
            if !v3 {
                schema.extend(target);
            } else if schema.is_empty() && !present {
                return Value::Object(target);
            } else {
                schema.insert("allOf".to_owned(), json!([target]));
                if present {
                    schema.insert("default".to_owned(), json!({}));
                }
            }
            return Value::Object(schema);
        }
        if let Some(items) = schema.get_mut("items") {
            let object = self.is_object(items);
            *items = self.plain(items.take(), true, object);
        }
        if let Some(values) = schema.get_mut("additionalProperties") {
            let object = self.is_object(values);
            *values = self.plain(values.take(), true, object);
        }
        if v3 && default {
            let zero = match schema.get("type").and_then(Value::as_str) {
                Some("string") if schema.get("format").is_none() => Some(json!("")),
                Some("integer" | "number") => Some(json!(0)),
                Some("boolean") => Some(json!(false)),
                _ => None,
            };
            schema.extend(zero.map(|zero| ("default".to_owned(), zero)));
        }
        Value::Object(schema)
    }

    /// Whether a schema refers to an object with fields, whose zero value is `{}`.
    fn is_object(&self, schema: &Value) -> bool {
        let name = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next());
        let ty = name.and_then(|name| Schemas::builtin().named(name));
        ty.is_some_and(|ty| matches!(ty.shape(), Shape::Object(_)))
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

fn union(union: &facts::Union) -> Value {
    let fields: Map<String, Value> =
        union.fields.iter().map(|(field, name)| ((*field).to_owned(), (*name).into())).collect();
    let mut published = Map::new();
    if let Some(discriminator) = union.discriminator {
        published.insert("discriminator".to_owned(), discriminator.into());
    }
    published.insert("fields-to-discriminateBy".to_owned(), Value::Object(fields));
    Value::Object(published)
}

/// `com.example.v1.Widget`
pub(super) fn custom_definition(resource: &crate::resource::ApiResource, suffix: &str) -> String {
    let group: Vec<&str> = resource.group.split('.').rev().collect();
    format!("{}.{}.{}{suffix}", group.join("."), resource.version, resource.kind)
}

/// Leaves out of a custom resource's schema what version 2 cannot say.
fn to_v2(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for key in
        ["oneOf", "anyOf", "allOf", "not", "default", "example", "externalDocs", "x-kubernetes-validations"]
    {
        map.shift_remove(key);
    }
    let open = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_bool) == Some(true);
    if open(map, "nullable") || open(map, "x-kubernetes-int-or-string") {
        for key in ["nullable", "type", "items", "properties", "additionalProperties", "required"] {
            map.shift_remove(key);
        }
    }
    if open(map, "x-kubernetes-preserve-unknown-fields") {
        map.shift_remove("items");
        map.shift_remove("properties");
        map.shift_remove("required");
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(to_v2);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            to_v2(inner);
        }
    }
}

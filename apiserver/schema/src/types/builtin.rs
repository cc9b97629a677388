//! Makes the compact schema of the built-in types from the JSON Schemas that `k8s-openapi` generates, and the table
//! of facts. The JSON Schemas are dropped kind by kind, so that they are never in memory all at once.

use super::{
    Alternative, Field, KindRow, List, ListKind, Map, Object, Schemas, Shape, TypeId,
    kinds::{KINDS, generate_meta},
};
use crate::facts::{self, ListType};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// JSON Schemas of all definitions, with descriptions, list kinds included. Several MiB: for OpenAPI documents.
pub(crate) fn definitions() -> serde_json::Map<String, Value> {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    for kind in KINDS {
        (kind.generate)(&mut generator);
    }
    generate_meta(&mut generator);
    let mut definitions = generator.take_definitions(false);
    for kind in KINDS {
        if let Some(list_kind) = kind.list_kind {
            let item = (kind.definition)();
            definitions.insert(list_definition(&item, list_kind), list_schema(&item, kind.kind, list_kind));
        }
    }
    definitions
}

fn list_definition(item: &str, list_kind: &str) -> String {
    let package = item.rsplit_once('.').map_or("", |(package, _)| package);
    format!("{package}.{list_kind}")
}

fn list_schema(item: &str, kind: &str, list_kind: &str) -> Value {
    json!({
        "description": format!("{list_kind} is a list of {kind} objects."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {
                "description": "The group and version of this representation: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
                "type": "string",
            },
            "items": {
                "description": format!("The list of {kind} objects."),
                "type": "array",
                "items": {"$ref": format!("#/$defs/{item}")},
            },
            "kind": {
                "description": "The kind of this representation: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
                "type": "string",
            },
            "metadata": {
                "description": "The list's resource version and where to continue: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
                "$ref": format!("#/$defs/{META}ListMeta"),
            },
        },
    })
}

/// The compact schema of everything.
pub(super) fn schemas() -> Schemas {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let mut builder = Builder { facts: facts::table(), ..Builder::default() };
    for kind in KINDS {
        (kind.generate)(&mut generator);
        builder.drain(&mut generator);
        let item = (kind.definition)();
        builder.kind(kind.group, kind.version, kind.kind, &item);
        if let Some(list_kind) = kind.list_kind {
            let name = list_definition(&item, list_kind);
            builder.definition(&name, &list_schema(&item, kind.kind, list_kind));
            builder.kind(kind.group, kind.version, list_kind, &name);
        }
    }
    generate_meta(&mut generator);
    builder.drain(&mut generator);
    builder.finish()
}

#[derive(Default)]
struct Builder {
    shapes: Vec<Shape>,
    names: HashMap<Arc<str>, TypeId>,
    kinds: Vec<KindRow>,
    words: HashSet<Arc<str>>,
    lists: HashMap<List, TypeId>,
    maps: HashMap<Map, TypeId>,
    plain: HashMap<&'static str, TypeId>,
    /// Objects whose granularity a field overrides: they copy their type when everything is known.
    overrides: HashMap<(TypeId, bool), TypeId>,
    facts: HashMap<&'static str, facts::Definition>,
}

impl Builder {
    /// Converts what the generator has made since the last time. A marker stays, so that it is not made again.
    fn drain(&mut self, generator: &mut SchemaGenerator) {
        for (name, schema) in generator.definitions_mut() {
            let schema = std::mem::replace(schema, Value::Bool(true));
            if schema.is_object() {
                self.definition(name, &schema);
            }
        }
    }

    fn word(&mut self, word: &str) -> Arc<str> {
        if let Some(found) = self.words.get(word) {
            return found.clone();
        }
        let word: Arc<str> = word.into();
        self.words.insert(word.clone());
        word
    }

    fn push(&mut self, shape: Shape) -> TypeId {
        self.shapes.push(shape);
        TypeId::try_from(self.shapes.len() - 1).unwrap_or(TypeId::MAX)
    }

    fn plain(&mut self, name: &'static str, shape: Shape) -> TypeId {
        if let Some(id) = self.plain.get(name) {
            return *id;
        }
        let id = self.push(shape);
        self.plain.insert(name, id);
        id
    }

    /// The index of a definition that may be converted later.
    fn named(&mut self, name: &str) -> TypeId {
        if let Some(id) = self.names.get(name) {
            return *id;
        }
        let id = self.push(Shape::Any { granular: false });
        let name = self.word(name);
        self.names.insert(name, id);
        id
    }

    fn kind(&mut self, group: &str, version: &str, kind: &str, definition: &str) {
        let row = (self.word(group), self.word(version), self.word(kind), self.named(definition));
        self.kinds.push(row);
    }

    fn definition(&mut self, name: &str, schema: &Value) {
        let id = self.named(name);
        let short = name.strip_prefix(META).or_else(|| name.strip_prefix(APIEXTENSIONS)).unwrap_or(name);
        let alternative = |builder: &mut Self, boolean, list, names| {
            let schema = builder.named(&format!("{APIEXTENSIONS}JSONSchemaProps"));
            let text = builder.plain("string", Shape::String);
            Shape::SchemaOr(Alternative { schema, text, boolean, list, names })
        };
        let shape = match short {
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Shape::IntOrString,
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => Shape::Quantity,
            "io.k8s.apimachinery.pkg.runtime.RawExtension" | "FieldsV1" => Shape::Any { granular: true },
            "Patch" | "JSON" => Shape::Any { granular: false },
            "Time" => Shape::Time,
            "MicroTime" => Shape::MicroTime,
            "JSONSchemaPropsOrArray" => alternative(self, false, true, false),
            "JSONSchemaPropsOrBool" => alternative(self, true, false, false),
            "JSONSchemaPropsOrStringArray" => alternative(self, false, false, true),
            _ => self.object(name, schema),
        };
        self.shapes[id as usize] = shape;
    }

    fn object(&mut self, name: &str, schema: &Value) -> Shape {
        let definition_facts = self.facts.remove(name);
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut fields = Vec::new();
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            let facts = definition_facts.as_ref().and_then(|d| d.field(field));
            let is_metadata = field == "metadata"
                && reference(schema)
                    .is_some_and(|name| name.ends_with(".ObjectMeta") || name.ends_with(".ListMeta"));
            fields.push(Field {
                name: self.word(field),
                ty: self.field_type(schema, facts),
                present: is_metadata || facts.is_some_and(|f| f.present),
                required: facts::is_required(field, facts, required.contains(&field.as_str())),
                nullable: false,
                patch: facts.map(|f| f.patch).unwrap_or_default(),
                merge_key: facts.and_then(|f| f.merge_key).map(|key| self.word(key)),
                default: facts.and_then(|f| f.default).map(|text| Box::new(Value::from(text))),
            });
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Shape::Object(Object {
            definition: self.word(name),
            fields: fields.into(),
            atomic: definition_facts.is_some_and(|d| d.atomic),
            others: None,
        })
    }

    fn field_type(&mut self, schema: &Value, facts: Option<&facts::Field>) -> TypeId {
        if let Some(name) = reference(schema) {
            let id = self.named(name);
            return match facts.and_then(|f| f.atomic) {
                Some(atomic) => self.overridden(id, atomic),
                None => id,
            };
        }
        match schema["type"].as_str().unwrap_or_default() {
            "array" => {
                let item = self.field_type(&schema["items"], None);
                let kind = match facts.map(|f| &f.list) {
                    Some(ListType::Set) => ListKind::Set,
                    Some(ListType::Map(keys)) => ListKind::Map(keys.iter().map(|k| self.word(k)).collect()),
                    _ => ListKind::Atomic,
                };
                let list = List { item, kind };
                if let Some(id) = self.lists.get(&list) {
                    return *id;
                }
                let id = self.push(Shape::List(list.clone()));
                self.lists.insert(list, id);
                id
            }
            "object" => {
                let value = match &schema["additionalProperties"] {
                    Value::Object(_) => self.field_type(&schema["additionalProperties"], None),
                    _ => self.plain("any", Shape::Any { granular: true }),
                };
                let map = Map { value, atomic: facts.and_then(|f| f.atomic) == Some(true) };
                if let Some(id) = self.maps.get(&map) {
                    return *id;
                }
                let id = self.push(Shape::Map(map));
                self.maps.insert(map, id);
                id
            }
            "string" if schema["format"] == "byte" => self.plain("bytes", Shape::Bytes),
            "string" => self.plain("string", Shape::String),
            "integer" if schema["format"] == "int32" => self.plain("int32", Shape::Int32),
            "integer" => self.plain("int64", Shape::Int64),
            "number" => self.plain("number", Shape::Number),
            "boolean" => self.plain("boolean", Shape::Boolean),
            _ => self.plain("any", Shape::Any { granular: true }),
        }
    }

    fn overridden(&mut self, id: TypeId, atomic: bool) -> TypeId {
        if let Some(own) = self.overrides.get(&(id, atomic)) {
            return *own;
        }
        let own = self.push(Shape::Any { granular: false });
        self.overrides.insert((id, atomic), own);
        own
    }

    fn finish(mut self) -> Schemas {
        for ((id, atomic), own) in self.overrides {
            if let Shape::Object(object) = &self.shapes[id as usize] {
                self.shapes[own as usize] = Shape::Object(Object { atomic, ..object.clone() });
            }
        }
        self.kinds.sort();
        self.kinds.shrink_to_fit();
        self.shapes.shrink_to_fit();
        Schemas { shapes: self.shapes, kinds: self.kinds, names: self.names, custom: false }
    }
}

fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

//! The type of a custom resource from the structural schema in its definition.
//!
//! Only shape is taken: types, list types, map types, preserved fields, defaults. Value rules (patterns, limits, CEL)
//! are checked elsewhere.

use super::{Field, KindRow, List, ListKind, Map, Object, Schemas, Shape, TypeId, TypeRef};
use crate::{facts::PatchStrategy, resource::GroupVersionKind};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};

/// Why a custom resource's schema cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}: {reason}")]
pub struct SchemaError {
    /// `openAPIV3Schema.properties[spec]`
    pub path: String,
    pub reason: String,
}

/// Deeper schemas are refused: they are walked recursively.
const MAX_DEPTH: usize = 100;

pub(super) fn schemas(gvk: &GroupVersionKind, schema: Option<&Value>) -> Result<Schemas, SchemaError> {
    let mut builder = Builder::default();
    let root = match schema {
        Some(schema) => builder.resource(schema, "openAPIV3Schema".to_owned(), 0)?,
        None => builder.resource(
            &serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            String::new(),
            0,
        )?,
    };
    let item = List { item: root, kind: ListKind::Atomic };
    let items = builder.push(Shape::List(item));
    let list_meta = builder.import("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta");
    let string = builder.push(Shape::String);
    let list = builder.object(vec![
        field("apiVersion", string, false),
        field("items", items, true),
        field("kind", string, false),
        field("metadata", list_meta, false),
    ]);
    let list = builder.push(list);
    let row = |kind: &str, id| (gvk.group.as_ref().into(), gvk.version.as_ref().into(), kind.into(), id);
    let mut kinds: Vec<KindRow> = vec![row(&gvk.kind, root), row(&format!("{}List", gvk.kind), list)];
    kinds.sort();
    Ok(Schemas { shapes: builder.shapes, kinds, names: HashMap::new(), custom: true })
}

fn field(name: &str, ty: TypeId, required: bool) -> Field {
    Field {
        name: name.into(),
        ty,
        required,
        nullable: false,
        present: false,
        patch: PatchStrategy::default(),
        merge_key: None,
        default: None,
    }
}

#[derive(Default)]
struct Builder {
    shapes: Vec<Shape>,
    imported: HashMap<TypeId, TypeId>,
}

impl Builder {
    fn push(&mut self, shape: Shape) -> TypeId {
        self.shapes.push(shape);
        TypeId::try_from(self.shapes.len() - 1).unwrap_or(TypeId::MAX)
    }

    fn object(&self, mut fields: Vec<Field>) -> Shape {
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        Shape::Object(Object { definition: "".into(), fields: fields.into(), atomic: false, others: None })
    }

    /// Copies a built-in type with all it refers to.
    fn import(&mut self, definition: &str) -> TypeId {
        match Schemas::builtin().named(definition) {
            Some(ty) => self.copy(ty),
            None => self.push(Shape::Any { granular: true }),
        }
    }

    fn copy(&mut self, ty: TypeRef<'_>) -> TypeId {
        if let Some(id) = self.imported.get(&ty.id) {
            return *id;
        }
        let id = self.push(Shape::Any { granular: true });
        self.imported.insert(ty.id, id);
        let shape = match ty.shape() {
            Shape::Object(object) => {
                let fields = object
                    .fields
                    .iter()
                    .map(|f| Field { ty: self.copy(ty.resolve(f.ty)), ..f.clone() })
                    .collect();
                Shape::Object(Object { fields, ..object.clone() })
            }
            Shape::Map(map) => Shape::Map(Map { value: self.copy(ty.resolve(map.value)), ..*map }),
            Shape::List(list) => {
                Shape::List(List { item: self.copy(ty.resolve(list.item)), kind: list.kind.clone() })
            }
            Shape::String => Shape::String,
            Shape::Bytes => Shape::Bytes,
            Shape::Int32 => Shape::Int32,
            Shape::Int64 => Shape::Int64,
            Shape::Number => Shape::Number,
            Shape::Boolean => Shape::Boolean,
            Shape::IntOrString => Shape::IntOrString,
            Shape::Quantity => Shape::Quantity,
            Shape::Time => Shape::Time,
            Shape::MicroTime => Shape::MicroTime,
            Shape::Any { granular } => Shape::Any { granular: *granular },
            Shape::SchemaOr(_) => Shape::Any { granular: false },
        };
        self.shapes[id as usize] = shape;
        id
    }

    /// A schema with the API's own `apiVersion`, `kind` and `metadata`.
    fn resource(&mut self, schema: &Value, path: String, depth: usize) -> Result<TypeId, SchemaError> {
        let id = self.structural(schema, path, depth)?;
        let (fields, atomic, others) = match &self.shapes[id as usize] {
            Shape::Object(object) => (object.fields.to_vec(), object.atomic, object.others),
            _ => (Vec::new(), false, Some(id)),
        };
        let others = match others {
            Some(others) if others == id => Some(self.push(Shape::Any { granular: true })),
            others => others,
        };
        let string = self.push(Shape::String);
        let meta = self.import("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        let mut all: Vec<Field> = fields
            .into_iter()
            .filter(|f| !matches!(&*f.name, "apiVersion" | "kind" | "metadata"))
            .chain([
                field("apiVersion", string, false),
                field("kind", string, false),
                field("metadata", meta, false),
            ])
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        self.shapes[id as usize] =
            Shape::Object(Object { definition: "".into(), fields: all.into(), atomic, others });
        Ok(id)
    }

    fn structural(&mut self, schema: &Value, path: String, depth: usize) -> Result<TypeId, SchemaError> {
        let invalid = |reason: &str| SchemaError { path: path.clone(), reason: reason.to_owned() };
        if depth > MAX_DEPTH {
            return Err(invalid("the schema is nested too deeply"));
        }
        let is = |key: &str| schema[key].as_bool() == Some(true);
        if is("x-kubernetes-int-or-string") {
            return Ok(self.push(Shape::IntOrString));
        }
        if is("x-kubernetes-embedded-resource") && depth > 0 {
            let mut plain = schema.clone();
            if let Some(map) = plain.as_object_mut() {
                map.remove("x-kubernetes-embedded-resource");
            }
            return self.resource(&plain, path, depth + 1);
        }
        let shape = match schema["type"].as_str() {
            Some("object") => return self.structural_object(schema, path, depth),
            Some("array") => {
                let item = self.structural(&schema["items"], format!("{path}.items"), depth + 1)?;
                let kind = match schema["x-kubernetes-list-type"].as_str() {
                    None | Some("atomic") => ListKind::Atomic,
                    Some("set") => ListKind::Set,
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array();
                        let keys: Arc<[Arc<str>]> =
                            keys.into_iter().flatten().filter_map(Value::as_str).map(Arc::from).collect();
                        if keys.is_empty() {
                            return Err(invalid("x-kubernetes-list-map-keys is required for list type map"));
                        }
                        ListKind::Map(keys)
                    }
                    Some(other) => return Err(invalid(&format!("unknown x-kubernetes-list-type {other:?}"))),
                };
                Shape::List(List { item, kind })
            }
            // Formats of custom resources are checked as values, not normalised.
            Some("string") => Shape::String,
            Some("integer") if schema["format"] == "int32" => Shape::Int32,
            Some("integer") => Shape::Int64,
            Some("number") => Shape::Number,
            Some("boolean") => Shape::Boolean,
            None if is("x-kubernetes-preserve-unknown-fields") => Shape::Any { granular: true },
            None => Shape::Any { granular: true },
            Some(other) => return Err(invalid(&format!("unknown type {other:?}"))),
        };
        Ok(self.push(shape))
    }

    fn structural_object(
        &mut self,
        schema: &Value,
        path: String,
        depth: usize,
    ) -> Result<TypeId, SchemaError> {
        let atomic = schema["x-kubernetes-map-type"] == "atomic";
        let preserve = schema["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(true);
        let others = match &schema["additionalProperties"] {
            Value::Object(_) => {
                let path = format!("{path}.additionalProperties");
                Some(self.structural(&schema["additionalProperties"], path, depth + 1)?)
            }
            Value::Bool(true) => Some(self.push(Shape::Any { granular: true })),
            _ if preserve => Some(self.push(Shape::Any { granular: true })),
            _ => None,
        };
        let properties = schema["properties"].as_object().filter(|p| !p.is_empty());
        let Some(properties) = properties else {
            let shape = match others {
                Some(value) => Shape::Map(Map { value, atomic }),
                None => Shape::Object(Object {
                    definition: "".into(),
                    fields: Arc::from([]),
                    atomic,
                    others: None,
                }),
            };
            return Ok(self.push(shape));
        };
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut fields = Vec::with_capacity(properties.len());
        for (name, schema) in properties {
            let ty = self.structural(schema, format!("{path}.properties[{name}]"), depth + 1)?;
            fields.push(Field {
                nullable: schema["nullable"].as_bool() == Some(true),
                default: schema.get("default").cloned().map(Box::new),
                ..field(name, ty, required.contains(&name.as_str()))
            });
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let object = Object { definition: "".into(), fields: fields.into(), atomic, others };
        Ok(self.push(Shape::Object(object)))
    }
}

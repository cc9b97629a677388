//! The one pass: a serde visitor that carries the type of what it is about to see.

use super::{DecodeError, Decoded, scalar};
use crate::types::{Shape, TypeRef};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::{borrow::Cow, fmt};

/// Deeper values are refused. The parsers refuse at 128 already; values that patches have made are not parsed.
const MAX_DEPTH: usize = 256;
/// As upstream: enough to see what is wrong.
const MAX_COMPLAINTS: usize = 100;

/// What the walk has found, and where it is.
#[derive(Default)]
pub(super) struct Context<'a> {
    unknown: Vec<String>,
    duplicate: Vec<String>,
    complaints: Vec<String>,
    /// `spec.containers[0].ports`, for complaints.
    path: String,
    /// Field names only, for errors in Go's words.
    fields: Vec<&'a str>,
    /// Go's name of the innermost struct that has a field under way.
    owner: Vec<&'a str>,
    depth: usize,
    /// Above zero inside of types whose own decoders are not strict.
    silent: usize,
    /// The error; what serde carries is only a signal.
    error: Option<String>,
}

impl Context<'_> {
    pub(super) fn finish(self, result: Result<Option<Value>, String>) -> Result<Decoded, DecodeError> {
        match (self.error, result) {
            (Some(error), _) | (None, Err(error)) => Err(DecodeError::new(error)),
            (None, Ok(value)) => {
                let value = value.unwrap_or(Value::Null);
                Ok(Decoded {
                    value,
                    unknown: self.unknown,
                    duplicate: self.duplicate,
                    complaints: self.complaints,
                })
            }
        }
    }

    fn fail<E: de::Error>(&mut self, error: String) -> E {
        self.error.get_or_insert(error);
        E::custom("")
    }

    fn complain(&mut self, duplicate: bool) {
        if self.silent > 0 || self.complaints.len() >= MAX_COMPLAINTS {
            return;
        }
        let (list, word) =
            if duplicate { (&mut self.duplicate, "duplicate") } else { (&mut self.unknown, "unknown") };
        let complaint = format!("{word} field {:?}", self.path);
        if !list.contains(&complaint) {
            self.complaints.push(complaint.clone());
            list.push(complaint);
        }
    }

    /// Appends a key to the path and says how long it was.
    fn enter(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }
}

/// Decodes one value of a type; null is `None`.
pub(super) struct Seed<'a, 'c> {
    ty: TypeRef<'a>,
    context: &'c mut Context<'a>,
}

impl<'a, 'c> Seed<'a, 'c> {
    pub(super) fn root(ty: TypeRef<'a>, context: &'c mut Context<'a>) -> Self {
        Self { ty, context }
    }

    fn child(&mut self, ty: TypeRef<'a>) -> Seed<'a, '_> {
        Seed { ty, context: self.context }
    }

    /// `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
    fn mismatch<E: de::Error>(self, found: &str) -> E {
        let own = match self.ty.shape() {
            // Types with decoders of their own do not know where they stand.
            Shape::Time | Shape::MicroTime => Some("string"),
            Shape::IntOrString => Some("int32"),
            Shape::Quantity => return self.context.fail(scalar::quantity("").unwrap_or_else(|e| e)),
            _ => None,
        };
        let text = match (own, self.context.owner.last()) {
            (Some(name), _) => format!("json: cannot unmarshal {found} into Go value of type {name}"),
            (None, Some(owner)) => format!(
                "json: cannot unmarshal {found} into Go struct field {owner}.{} of type {}",
                self.context.fields.join("."),
                go_type(self.ty)
            ),
            (None, None) => {
                format!("json: cannot unmarshal {found} into Go value of type {}", go_type(self.ty))
            }
        };
        self.context.fail(text)
    }

    fn descend<E: de::Error>(&mut self) -> Result<(), E> {
        self.context.depth += 1;
        if self.context.depth > MAX_DEPTH {
            return Err(self.context.fail("exceeded max depth".to_owned()));
        }
        Ok(())
    }

    fn integer<E: de::Error>(self, value: i64, number: Number) -> Result<Option<Value>, E> {
        match self.ty.shape() {
            Shape::Int64 | Shape::Number | Shape::Any { .. } => Ok(Some(Value::Number(number))),
            Shape::Int32 | Shape::IntOrString => match i32::try_from(value) {
                Ok(_) => Ok(Some(Value::Number(number))),
                Err(_) => Err(self.mismatch(&format!("number {number}"))),
            },
            Shape::Quantity => self.quantity(&number.to_string()),
            _ => Err(self.mismatch("number")),
        }
    }

    fn quantity<E: de::Error>(self, text: &str) -> Result<Option<Value>, E> {
        scalar::quantity(text).map(|text| Some(Value::String(text))).map_err(|e| self.context.fail(e))
    }

    fn text<E: de::Error>(self, text: Cow<'_, str>) -> Result<Option<Value>, E> {
        let canonical = match self.ty.shape() {
            Shape::String | Shape::IntOrString | Shape::Any { .. } => Ok(text.into_owned()),
            Shape::Quantity => scalar::quantity(&text),
            Shape::Time => scalar::time(&text, false),
            Shape::MicroTime => scalar::time(&text, true),
            Shape::Bytes => scalar::bytes(text.into_owned()),
            _ => return Err(self.mismatch("string")),
        };
        canonical.map(|text| Some(Value::String(text))).map_err(|e| self.context.fail(e))
    }

    /// What Go leaves in a list or map for a null.
    fn zero(ty: TypeRef<'_>) -> Value {
        if ty.is_custom() {
            return Value::Null;
        }
        match ty.shape() {
            Shape::String | Shape::Bytes => Value::String(String::new()),
            Shape::Quantity => Value::String("0".to_owned()),
            Shape::Object(_) => Value::Object(Map::new()),
            Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => Value::from(0),
            Shape::Boolean => Value::Bool(false),
            _ => Value::Null,
        }
    }

    fn object<'de, A: MapAccess<'de>>(mut self, mut access: A) -> Result<Map<String, Value>, A::Error> {
        self.descend()?;
        let definition = match self.ty.shape() {
            Shape::Object(object) => Some(short_name(&object.definition)),
            _ => None,
        };
        let typed = !self.ty.is_custom();
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let length = self.context.enter(&key);
            if map.contains_key(&key) {
                self.context.complain(true);
            }
            let field = self.ty.field(&key);
            let ty = match (field, definition) {
                (Some(field), _) => Some(field.ty()),
                (None, Some(_)) => self.ty.others(),
                (None, None) => self.ty.at_key(&key),
            };
            let Some(ty) = ty else {
                self.context.complain(false);
                access.next_value::<IgnoredAny>()?;
                self.context.path.truncate(length);
                continue;
            };
            let pushed = match (field, definition) {
                (Some(field), Some(definition)) => {
                    self.context.fields.push(field.name());
                    self.context.owner.push(definition);
                    true
                }
                _ => false,
            };
            let value = access.next_value_seed(self.child(ty))?;
            if pushed {
                self.context.fields.pop();
                self.context.owner.pop();
            }
            self.context.path.truncate(length);
            match (value, field) {
                (Some(value), Some(field)) if !field.required && typed && is_left_out(&key, &value, ty) => {
                    map.shift_remove(&key);
                }
                (Some(value), _) => {
                    map.insert(key, value);
                }
                (None, Some(_)) if typed => {
                    map.shift_remove(&key);
                }
                (None, _) if matches!(ty.shape(), Shape::Any { .. }) => {
                    map.insert(key, Value::Null);
                }
                (None, _) => {
                    map.insert(key, Self::zero(ty));
                }
            }
        }
        self.context.depth -= 1;
        if definition.is_some() {
            add_present(&mut map, self.ty);
        }
        Ok(map)
    }

    fn list<'de, A: SeqAccess<'de>>(mut self, item: TypeRef<'a>, mut access: A) -> Result<Value, A::Error> {
        self.descend()?;
        let mut list = Vec::new();
        let length = self.context.path.len();
        loop {
            use fmt::Write as _;
            let _ = write!(self.context.path, "[{}]", list.len());
            let Some(value) = access.next_element_seed(self.child(item))? else { break };
            self.context.path.truncate(length);
            list.push(value.unwrap_or_else(|| match item.shape() {
                Shape::Any { .. } => Value::Null,
                _ => Self::zero(item),
            }));
        }
        self.context.path.truncate(length);
        self.context.depth -= 1;
        Ok(Value::Array(list))
    }
}

/// Objects that upstream holds by value are written even when nothing is in them.
fn add_present(map: &mut Map<String, Value>, ty: TypeRef<'_>) {
    if ty.is_custom() {
        return;
    }
    for field in ty.fields().filter(|field| field.present) {
        if !map.contains_key(field.name()) {
            let mut empty = Map::new();
            add_present(&mut empty, field.ty());
            map.insert(field.name().to_owned(), Value::Object(empty));
        }
    }
}

/// An empty list or map of an optional field is what upstream leaves out. Objects are not: `emptyDir: {}` says much;
/// nor are managed fields, where emptiness is a wish.
fn is_left_out(key: &str, value: &Value, ty: TypeRef<'_>) -> bool {
    match (value, ty.shape()) {
        (Value::Array(list), Shape::List(_)) => list.is_empty() && key != "managedFields",
        (Value::Object(map), Shape::Map(_)) => map.is_empty(),
        _ => false,
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        match self.ty.shape() {
            Shape::Boolean | Shape::Any { .. } => Ok(Some(Value::Bool(value))),
            Shape::SchemaOr(or) if or.boolean => Ok(Some(Value::Bool(value))),
            _ => Err(self.mismatch("bool")),
        }
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        self.integer(value, value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        match i64::try_from(value) {
            Ok(signed) => self.integer(signed, value.into()),
            Err(_) => match self.ty.shape() {
                Shape::Int32 | Shape::Int64 | Shape::IntOrString => {
                    Err(self.mismatch(&format!("number {value}")))
                }
                _ => self.integer(i64::MAX, value.into()),
            },
        }
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        let literal = format!("{value:?}");
        match (self.ty.shape(), Number::from_f64(value)) {
            (Shape::Number | Shape::Any { .. }, Some(number)) => Ok(Some(Value::Number(number))),
            (Shape::Quantity, Some(_)) => self.quantity(&value.to_string()),
            (Shape::Int32 | Shape::Int64 | Shape::IntOrString, _) => {
                Err(self.mismatch(&format!("number {literal}")))
            }
            _ => Err(self.mismatch("number")),
        }
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        self.text(Cow::Borrowed(value))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Self::Value, E> {
        self.text(Cow::Owned(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, access: A) -> Result<Self::Value, A::Error> {
        if let Shape::SchemaOr(or) = self.ty.shape()
            && (or.list || or.names)
        {
            // Lists of names are text already; schemas are walked like a single one.
            let item = if or.names { self.ty.plain_text() } else { self.ty.resolve(or.schema) };
            self.context.silent += 1;
            let list = self.child(item).list(item, access);
            self.context.silent -= 1;
            return list.map(Some);
        }
        match self.ty.item() {
            Some(item) => self.list(item, access).map(Some),
            None => Err(self.mismatch("array")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, access: A) -> Result<Self::Value, A::Error> {
        match self.ty.shape() {
            Shape::Object(_) | Shape::Map(_) | Shape::Any { .. } => {
                self.object(access).map(|map| Some(Value::Object(map)))
            }
            Shape::SchemaOr(or) => {
                let schema = self.ty.resolve(or.schema);
                self.context.silent += 1;
                let map = self.child(schema).object(access);
                self.context.silent -= 1;
                map.map(|map| Some(Value::Object(map)))
            }
            _ => Err(self.mismatch("object")),
        }
    }
}

/// `PodSpec` of `io.k8s.api.core.v1.PodSpec`.
fn short_name(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// Go's name of a type.
fn go_type(ty: TypeRef<'_>) -> String {
    match ty.shape() {
        Shape::Object(object) => {
            let mut parts = object.definition.rsplit('.');
            match (parts.next(), parts.next()) {
                (Some(name), Some(package)) => format!("{package}.{name}"),
                _ => "map[string]interface {}".to_owned(),
            }
        }
        Shape::Map(_) => format!("map[string]{}", ty.value().map_or_else(String::new, go_type)),
        Shape::List(_) => format!("[]{}", ty.item().map_or_else(String::new, go_type)),
        Shape::String => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Number => "float64".to_owned(),
        Shape::Boolean => "bool".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::Time => "v1.Time".to_owned(),
        Shape::MicroTime => "v1.MicroTime".to_owned(),
        Shape::Any { .. } => "interface {}".to_owned(),
        Shape::SchemaOr(_) => "v1.JSONSchemaProps".to_owned(),
    }
}

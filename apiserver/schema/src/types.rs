//! The shapes of types: what a field is called, what it holds, and how its parts are owned and merged.
//!
//! A [`Schemas`] is an arena of shapes that refer to each other by index, so that types may be recursive and the
//! whole of the built-in API stays well under 3 MiB. It is immutable once made. Descriptions are not kept.

mod builtin;
mod kinds;
mod structural;

pub(crate) use builtin::definitions;

use crate::facts::PatchStrategy;
use serde_json::Value;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

pub use structural::SchemaError;

/// Index of a shape in its [`Schemas`].
pub(crate) type TypeId = u32;

/// Group, version, kind and its type.
pub(crate) type KindRow = (Arc<str>, Arc<str>, Arc<str>, TypeId);

/// A set of types: all built-in ones, or those of one custom resource version.
#[derive(Debug)]
pub struct Schemas {
    shapes: Vec<Shape>,
    /// Sorted by group, version and kind.
    kinds: Vec<KindRow>,
    /// By definition name; only built-in types have one.
    names: HashMap<Arc<str>, TypeId>,
    /// Values of custom resources keep nulls and empty lists as they were sent.
    custom: bool,
}

/// What a value of a type looks like.
#[derive(Debug)]
pub enum Shape {
    Object(Object),
    Map(Map),
    List(List),
    String,
    /// Base64 in a string.
    Bytes,
    Int32,
    Int64,
    Number,
    Boolean,
    IntOrString,
    Quantity,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with six decimals.
    MicroTime,
    /// Any value. `granular`: objects inside have owners by field, else the value has one owner.
    Any {
        granular: bool,
    },
    /// A JSON Schema, or in its place a boolean, a list of schemas or a list of names: within custom resource
    /// definitions. Unknown fields inside are dropped without a complaint, like upstream's own decoders do.
    SchemaOr(Alternative),
}

/// The type of a JSON Schema and what else may stand in its place.
#[derive(Clone, Copy, Debug)]
pub struct Alternative {
    pub(crate) schema: TypeId,
    pub(crate) text: TypeId,
    pub boolean: bool,
    pub list: bool,
    pub names: bool,
}

/// An object with named fields.
#[derive(Clone, Debug)]
pub struct Object {
    /// The OpenAPI definition; empty for objects of custom resources.
    pub definition: Arc<str>,
    /// Sorted by name.
    pub(crate) fields: Arc<[Field]>,
    /// The whole object has one owner.
    pub atomic: bool,
    /// The type of fields that are not declared (custom resources: `additionalProperties`, or anything where
    /// unknown fields are preserved).
    pub(crate) others: Option<TypeId>,
}

/// An object with arbitrary keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    pub(crate) value: TypeId,
    pub atomic: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List {
    pub(crate) item: TypeId,
    pub kind: ListKind,
}

/// How the items of a list are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListKind {
    Atomic,
    Set,
    /// By the values of these fields.
    Map(Arc<[Arc<str>]>),
}

/// A named field of an object.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: Arc<str>,
    pub(crate) ty: TypeId,
    pub required: bool,
    /// Custom resources only: null is a value.
    pub nullable: bool,
    /// Built-in objects only: never absent, only empty.
    pub present: bool,
    pub patch: PatchStrategy,
    pub merge_key: Option<Arc<str>>,
    pub default: Option<Box<Value>>,
}

/// A type: a place in a [`Schemas`]. Cheap to copy.
#[derive(Clone, Copy)]
pub struct TypeRef<'a> {
    schemas: &'a Schemas,
    id: TypeId,
}

/// A field and where to find its type.
#[derive(Clone, Copy, Debug)]
pub struct FieldRef<'a> {
    field: &'a Field,
    schemas: &'a Schemas,
}

impl Schemas {
    /// All built-in types, made at the first call (a few milliseconds); call it once at start.
    pub fn builtin() -> &'static Schemas {
        static BUILTIN: LazyLock<Schemas> = LazyLock::new(builtin::schemas);
        &BUILTIN
    }

    /// The type of a custom resource version from its definition's `openAPIV3Schema` (a structural schema). Without
    /// one every field is kept. `apiVersion`, `kind` and `metadata` are the API's own, whatever the schema says.
    pub fn custom(
        gvk: &crate::resource::GroupVersionKind,
        open_api_v3_schema: Option<&Value>,
    ) -> Result<Schemas, SchemaError> {
        structural::schemas(gvk, open_api_v3_schema)
    }

    /// The type that any value has.
    pub fn any() -> TypeRef<'static> {
        static ANY: LazyLock<Schemas> = LazyLock::new(|| Schemas {
            shapes: vec![Shape::Any { granular: true }],
            kinds: Vec::new(),
            names: HashMap::new(),
            custom: true,
        });
        ANY.type_ref(0)
    }

    /// The type of a kind, also of a list kind (`PodList`). `DeleteOptions` and `WatchEvent` exist in every group
    /// and version.
    pub fn of(&self, group: &str, version: &str, kind: &str) -> Option<TypeRef<'_>> {
        let found = self
            .kinds
            .binary_search_by(|(g, v, k, _)| (&**g, &**v, &**k).cmp(&(group, version, kind)))
            .ok()
            .map(|at| self.type_ref(self.kinds[at].3));
        found.or_else(|| match kind {
            "DeleteOptions" | "WatchEvent" => {
                self.named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}"))
            }
            _ => None,
        })
    }

    /// By OpenAPI definition name, `io.k8s.api.core.v1.PodSpec`. Custom types have no names.
    pub fn named(&self, definition: &str) -> Option<TypeRef<'_>> {
        self.names.get(definition).map(|id| self.type_ref(*id))
    }

    /// Group, version and kind of everything that [`Schemas::of`] finds.
    pub fn kinds(&self) -> impl Iterator<Item = (&str, &str, &str, TypeRef<'_>)> {
        self.kinds.iter().map(|(g, v, k, id)| (&**g, &**v, &**k, self.type_ref(*id)))
    }

    fn type_ref(&self, id: TypeId) -> TypeRef<'_> {
        TypeRef { schemas: self, id }
    }
}

impl<'a> TypeRef<'a> {
    pub fn shape(self) -> &'a Shape {
        &self.schemas.shapes[self.id as usize]
    }

    /// True in custom resources, where nulls and empty lists are kept as they were sent; not of the API's own objects
    /// within them (metadata).
    pub fn is_custom(self) -> bool {
        match self.shape() {
            Shape::Object(object) => self.schemas.custom && object.definition.is_empty(),
            _ => self.schemas.custom,
        }
    }

    /// The declared field of an object.
    pub fn field(self, name: &str) -> Option<FieldRef<'a>> {
        let Shape::Object(object) = self.shape() else { return None };
        let at = object.fields.binary_search_by(|f| (*f.name).cmp(name)).ok()?;
        Some(FieldRef { field: &object.fields[at], schemas: self.schemas })
    }

    pub fn fields(self) -> impl Iterator<Item = FieldRef<'a>> {
        let fields = match self.shape() {
            Shape::Object(object) => &*object.fields,
            _ => &[],
        };
        fields.iter().map(move |field| FieldRef { field, schemas: self.schemas })
    }

    /// The type under a key: a declared field's, a map's values', or that of undeclared fields.
    pub fn at_key(self, name: &str) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::Object(object) => match self.field(name) {
                Some(field) => Some(field.ty()),
                None => object.others.map(|id| self.schemas.type_ref(id)),
            },
            Shape::Map(map) => Some(self.schemas.type_ref(map.value)),
            Shape::Any { .. } => Some(self),
            _ => None,
        }
    }

    /// The type of undeclared fields of an object.
    pub(crate) fn others(self) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::Object(Object { others: Some(id), .. }) => Some(self.schemas.type_ref(*id)),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(self) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::List(list) => Some(self.schemas.type_ref(list.item)),
            Shape::Any { .. } => Some(self),
            _ => None,
        }
    }

    /// The type of a map's values.
    pub fn value(self) -> Option<TypeRef<'a>> {
        match self.shape() {
            Shape::Map(map) => Some(self.schemas.type_ref(map.value)),
            _ => None,
        }
    }

    /// The type of a name in a list that stands for a schema; any other type is its own.
    pub(crate) fn plain_text(self) -> TypeRef<'a> {
        match self.shape() {
            Shape::SchemaOr(or) => self.resolve(or.text),
            _ => self,
        }
    }

    pub(crate) fn resolve(self, id: TypeId) -> TypeRef<'a> {
        self.schemas.type_ref(id)
    }

    /// Follows field names; lists are entered on the way. For tests and tables.
    pub fn path(self, names: &[&str]) -> Option<TypeRef<'a>> {
        names.iter().try_fold(self, |ty, name| {
            let ty = if matches!(ty.shape(), Shape::List(_)) { ty.item()? } else { ty };
            ty.at_key(name)
        })
    }
}

impl fmt::Debug for TypeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape() {
            Shape::Object(object) => write!(f, "TypeRef({} {})", self.id, object.definition),
            other => write!(f, "TypeRef({} {other:?})", self.id),
        }
    }
}

impl<'a> FieldRef<'a> {
    pub fn name(self) -> &'a str {
        &self.field.name
    }

    pub fn ty(self) -> TypeRef<'a> {
        self.schemas.type_ref(self.field.ty)
    }

    pub fn merge_key(self) -> Option<&'a str> {
        self.field.merge_key.as_deref()
    }
}

impl std::ops::Deref for FieldRef<'_> {
    type Target = Field;

    fn deref(&self) -> &Field {
        self.field
    }
}

#[cfg(test)]
mod tests;

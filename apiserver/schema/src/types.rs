//! Shapes of types.
use serde_json::Value;

/// A set of types. See [`Schemas::builtin`].
#[derive(Debug)]
pub struct Schemas {}

/// A type in a [`Schemas`].
#[derive(Clone, Copy, Debug)]
pub struct TypeRef<'a> {
    pub(crate) schemas: &'a Schemas,
}

/// Why a custom resource's schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("{path}: {reason}")]
    Invalid { path: String, reason: String },
}

impl Schemas {
    /// All built-in types; made at the first call.
    pub fn builtin() -> &'static Schemas {
        unimplemented!()
    }
    /// The schema of a custom resource version: `openAPIV3Schema` as in the definition (None: everything is kept).
    pub fn custom(
        _gvk: &crate::resource::GroupVersionKind,
        _open_api_v3_schema: Option<&Value>,
    ) -> Result<Schemas, SchemaError> {
        unimplemented!()
    }
    /// The type of a kind, of its list kind too (`PodList`), and of the meta kinds in any group
    /// (`DeleteOptions`, `Status`, …).
    pub fn of(&self, _group: &str, _version: &str, _kind: &str) -> Option<TypeRef<'_>> {
        unimplemented!()
    }
    /// By OpenAPI definition name, `io.k8s.api.core.v1.PodSpec`.
    pub fn named(&self, _definition: &str) -> Option<TypeRef<'_>> {
        unimplemented!()
    }
}

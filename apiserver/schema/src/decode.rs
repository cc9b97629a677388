//! Strict decoding.
use crate::types::TypeRef;
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// A decoded object. Unknown fields of typed objects are not in `value`; of duplicates the last one is.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`
    pub unknown: Vec<String>,
    /// `duplicate field "spec.x"`
    pub duplicate: Vec<String>,
}

impl Decoded {
    /// The message of a 400 under fieldValidation=Strict: `strict decoding error: unknown field "spec.foo"`;
    /// None if there is nothing to complain about.
    pub fn strict_error(&self) -> Option<String> {
        unimplemented!()
    }
}

/// Why a body cannot be decoded. Display is Go's inner text (`json: cannot unmarshal …`).
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    message: String,
}

impl DecodeError {
    /// The BadRequest message: `Deployment in version "v1" cannot be handled as a Deployment: <inner>`.
    pub fn cannot_be_handled(&self, _version: &str, _kind: &str) -> String {
        unimplemented!()
    }
}

/// Decodes one document against a type. Null fields are absent, quantities, times and bytes are canonical.
pub fn decode(_bytes: &[u8], _format: Format, _ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    unimplemented!()
}

/// The same for a value at hand (after a patch). Duplicates cannot occur.
pub fn decode_value(_value: Value, _ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    unimplemented!()
}

/// One document without a type: every field is kept, duplicates are reported.
pub fn untyped(_bytes: &[u8], _format: Format) -> Result<Decoded, DecodeError> {
    unimplemented!()
}

/// `apiVersion` and `kind` of a document; empty where absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeMeta {
    pub api_version: String,
    pub kind: String,
}

/// Reads only `apiVersion` and `kind`, without building the rest.
pub fn type_meta(_bytes: &[u8], _format: Format) -> Result<TypeMeta, DecodeError> {
    unimplemented!()
}

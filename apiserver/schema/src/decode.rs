//! Strict decoding of JSON and YAML against a type, as upstream's decoder would into its Go struct.
//!
//! One pass over the bytes: fields that a type does not have are reported and dropped, duplicates are reported and the
//! last one wins, a wrong type is an error in Go's words. Values come out as upstream would write them again: null
//! fields and empty optional lists and maps are absent, quantities and times are canonical. Custom types keep nulls
//! and empty containers. The size of the input is the caller's to bound; its depth is bounded here.

mod scalar;
mod walk;

use crate::types::TypeRef;
use serde::de::DeserializeSeed;
use serde_json::Value;
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

/// A decoded object. Unknown fields are not in `value`; of duplicates the last one is.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    /// `unknown field "spec.foo"`, at most 100 together with `duplicate`.
    pub unknown: Vec<String>,
    /// `duplicate field "spec.x"`
    pub duplicate: Vec<String>,
    /// Both, in the order of the document.
    complaints: Vec<String>,
}

impl Decoded {
    /// All complaints in the order of the document: a warning each under fieldValidation=Warn.
    pub fn complaints(&self) -> impl Iterator<Item = &str> {
        self.complaints.iter().map(String::as_str)
    }

    /// What fieldValidation=Strict says: `strict decoding error: unknown field "spec.foo"`; `None` if all is well.
    pub fn strict_error(&self) -> Option<String> {
        let mut complaints = self.complaints();
        let mut text = format!("strict decoding error: {}", complaints.next()?);
        for complaint in complaints {
            // Writing to a string cannot fail.
            let _ = write!(text, ", {complaint}");
        }
        Some(text)
    }
}

/// Why a body cannot be decoded. `Display` is the inner text, `json: cannot unmarshal string into Go struct field …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    message: String,
}

impl DecodeError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    /// The message of the 400: `Deployment in version "v1" cannot be handled as a Deployment: json: cannot …`.
    pub fn cannot_be_handled(&self, version: &str, kind: &str) -> String {
        format!("{kind} in version {version:?} cannot be handled as a {kind}: {}", self.message)
    }
}

/// Decodes one document.
pub fn decode(bytes: &[u8], format: Format, ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    let mut context = walk::Context::default();
    let seed = walk::Seed::root(ty, &mut context);
    let result = match format {
        Format::Json => {
            let mut deserializer = serde_json::Deserializer::from_slice(bytes);
            seed.deserialize(&mut deserializer)
                .and_then(|value| deserializer.end().map(|()| value))
                .map_err(|e| e.to_string())
        }
        Format::Yaml => {
            seed.deserialize(serde_yaml::Deserializer::from_slice(bytes)).map_err(|e| e.to_string())
        }
    };
    context.finish(result)
}

/// The same for a value at hand, such as the result of a patch. Values have no duplicates.
pub fn decode_value(value: Value, ty: TypeRef<'_>) -> Result<Decoded, DecodeError> {
    let mut context = walk::Context::default();
    let result = walk::Seed::root(ty, &mut context).deserialize(value).map_err(|e| e.to_string());
    context.finish(result)
}

/// One document without a type: every field is kept, duplicates are reported.
pub fn untyped(bytes: &[u8], format: Format) -> Result<Decoded, DecodeError> {
    decode(bytes, format, crate::types::Schemas::any())
}

/// `apiVersion` and `kind` of a document; empty where absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct TypeMeta {
    #[serde(rename = "apiVersion", deserialize_with = "scalar::text_or_null")]
    pub api_version: String,
    #[serde(deserialize_with = "scalar::text_or_null")]
    pub kind: String,
}

/// Reads only `apiVersion` and `kind`; for JSON without building the rest.
pub fn type_meta(bytes: &[u8], format: Format) -> Result<TypeMeta, DecodeError> {
    // The short way refuses duplicates, which only strictness may refuse, and would take a list for an object.
    let is_object = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    if format == Format::Json
        && is_object
        && let Ok(meta) = serde_json::from_slice(bytes)
    {
        return Ok(meta);
    }
    long_type_meta(bytes, format)
}

fn long_type_meta(bytes: &[u8], format: Format) -> Result<TypeMeta, DecodeError> {
    let prefix =
        |e: DecodeError| DecodeError::new(format!("couldn't get version/kind; json parse error: {e}"));
    let syntax = |e: DecodeError| match format {
        Format::Json if e.message.starts_with("EOF ") => {
            prefix(DecodeError::new("unexpected end of JSON input"))
        }
        Format::Json => prefix(e),
        Format::Yaml => DecodeError::new(format!("yaml: {e}")),
    };
    let value = untyped(bytes, format).map_err(syntax)?.value;
    let text = |key: &str| match value.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(prefix(DecodeError::new(format!(
            "json: cannot unmarshal {} into Go struct field .{key} of type string",
            scalar::json_type(other)
        )))),
    };
    if !value.is_object() {
        let found = scalar::json_type(&value);
        return Err(prefix(DecodeError::new(format!(
            "json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        ))));
    }
    Ok(TypeMeta { api_version: text("apiVersion")?, kind: text("kind")? })
}

#[cfg(test)]
mod tests;

//! Request bodies to values, with `fieldValidation` applied and `kind`/`apiVersion` checked.

use http::{HeaderMap, header};
use keelson_schema::{
    decode::{self, DecodeError, Decoded, Format},
    types::TypeRef,
};
use serde_json::Value;

use crate::{
    encoding::protobuf, http::chain::WarningList, request::options::FieldValidation, served::Served,
    status::Status,
};

/// The encoding of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Text(Format),
    Protobuf,
}

/// The encoding of a request body; absent is JSON.
pub fn encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    match media_type(headers) {
        "" | "application/json" => Ok(Encoding::Text(Format::Json)),
        "application/yaml" => Ok(Encoding::Text(Format::Yaml)),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(Status::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            "application/vnd.kubernetes.protobuf",
        ])),
    }
}

/// The content type without its parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Decodes a body that must be an object of the endpoint's kind.
pub fn object(
    served: &Served,
    bytes: &[u8],
    encoding: Encoding,
    validation: FieldValidation,
    warnings: &WarningList,
) -> Result<Value, Status> {
    let resource = &served.kind.resource;
    let named = Named { ty: served.ty, version: &resource.version, kind: &resource.kind };
    let decoded = decoded(bytes, encoding, named)?;
    if validation == FieldValidation::Strict
        && let Some(message) = decoded.strict_error()
    {
        let kind = &resource.kind;
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {message}",
            resource.version
        )));
    }
    let mut value = checked(decoded, validation, warnings)?;
    type_meta(&mut value, &resource.kind, &resource.api_version())?;
    Ok(value)
}

/// A type with the names that messages call it by.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    pub ty: TypeRef<'static>,
    pub version: &'a str,
    pub kind: &'a str,
}

/// Decodes a body of any type.
pub fn decoded(bytes: &[u8], encoding: Encoding, named: Named<'_>) -> Result<Decoded, Status> {
    let cannot = |error: DecodeError| Status::bad_request(error.cannot_be_handled(named.version, named.kind));
    match encoding {
        Encoding::Text(format) => {
            decode::decode(bytes, format, named.ty).map_err(|error| match decode::type_meta(bytes, format) {
                Ok(_) => cannot(error),
                // Not even a kind can be read from it: no document at all.
                Err(error) => Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): {error} ({})",
                    named.kind,
                    summary(bytes)
                )),
            })
        }
        Encoding::Protobuf => {
            let value = protobuf::decode(bytes, named.ty).map_err(|error| {
                Status::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: {error}",
                    named.kind, named.version, named.kind
                ))
            })?;
            decode::decode_value(value, named.ty).map_err(cannot)
        }
    }
}

/// The beginning of a body: text where it looks like JSON, else hexadecimal digits.
fn summary(bytes: &[u8]) -> String {
    const LENGTH: usize = 30;
    let start = &bytes[..bytes.len().min(LENGTH)];
    let text = match start.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned(),
        Some(_) => start.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if bytes.len() > LENGTH { format!("{text} ...") } else { text }
}

/// Gives a value that was put together without its type the form of a decoded one.
pub fn canonical(value: Value, named: Named<'_>) -> Result<Value, Status> {
    decode::decode_value(value, named.ty)
        .map(|decoded| decoded.value)
        .map_err(|error| Status::bad_request(error.cannot_be_handled(named.version, named.kind)))
}

/// Applies `fieldValidation` to what decoding noticed.
pub fn checked(
    decoded: Decoded,
    validation: FieldValidation,
    warnings: &WarningList,
) -> Result<Value, Status> {
    match validation {
        FieldValidation::Ignore => {}
        FieldValidation::Warn => {
            warnings.extend(decoded.unknown);
            warnings.extend(decoded.duplicate);
        }
        FieldValidation::Strict => {
            if let Some(message) = decoded.strict_error() {
                return Err(Status::bad_request(message));
            }
        }
    }
    Ok(decoded.value)
}

/// Fills absent `kind` and `apiVersion`; other ones than the endpoint's are an error.
pub fn type_meta(value: &mut Value, kind: &str, api_version: &str) -> Result<(), Status> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let (found_kind, found_version) = (text("kind"), text("apiVersion"));
    if (!found_kind.is_empty() && found_kind != kind)
        || (!found_version.is_empty() && found_version != api_version)
    {
        let group = |version: &str| version.rsplit_once('/').map_or(String::new(), |(g, _)| g.to_string());
        let version = |text: &str| text.rsplit('/').next().unwrap_or_default().to_string();
        return Err(Status::bad_request(format!(
            "{found_kind} in version {:?} cannot be handled as a {kind}: converting ({}.{}).{found_kind} to ({}.{}).{kind}: unknown conversion",
            version(found_version),
            group(found_version),
            version(found_version),
            group(api_version),
            version(api_version),
        )));
    }
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request("the body is not an object"));
    };
    // First in the object, as every reader expects them.
    map.shift_remove("kind");
    map.shift_remove("apiVersion");
    map.shift_insert(0, "kind".into(), kind.into());
    map.shift_insert(1, "apiVersion".into(), api_version.into());
    Ok(())
}

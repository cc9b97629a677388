//! Protobuf request bodies (`application/vnd.kubernetes.protobuf`) to JSON values.
//!
//! kubectl's typed commands (`create deployment`, `auth can-i`, …) send nothing else and do not fall back. The schema
//! says what a field holds, [`numbers`] what it is called; so there is no code per type. Responses stay JSON, which
//! every such client accepts.
//!
//! Invariants: total over hostile input (bounded recursion, no length is trusted); a number that is not in the table
//! is skipped, as protobuf wants it.

mod numbers;
mod wire;

use base64::Engine;
use jiff::Timestamp;
use keelson_schema::types::{Shape, TypeRef};
use serde_json::{Map, Value};

use self::{
    numbers::Member,
    wire::{Reader, Wire},
};

/// The four bytes before every message, by which storage and clients know it.
const MAGIC: &[u8] = b"k8s\0";
/// Nesting beyond this is no object of ours.
const MAX_DEPTH: usize = 64;

/// A body that is not what it says it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00")]
    Prefix,
    #[error("proto: unexpected EOF")]
    Truncated,
    #[error("proto: illegal wireType {0}")]
    WireType(u8),
    #[error("proto: wrong wireType for field {0}")]
    Mismatch(String),
    #[error("proto: {0} is not UTF-8")]
    Utf8(String),
    #[error("proto: {0}")]
    Json(String),
    #[error("proto: message is nested too deeply")]
    Depth,
    #[error("proto: no message for {0}")]
    Unknown(String),
}

/// The envelope: `apiVersion` and `kind` (empty where absent), and the message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
}

pub fn envelope(body: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let mut reader = Reader::new(body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?);
    let mut found = Envelope::default();
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => {
                let mut meta = Reader::new(bytes);
                while let Some((number, value)) = meta.next()? {
                    match (number, value) {
                        (1, Wire::Bytes(bytes)) => found.api_version = text(bytes, "apiVersion")?,
                        (2, Wire::Bytes(bytes)) => found.kind = text(bytes, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => found.raw = bytes,
            _ => {}
        }
    }
    Ok(found)
}

/// Decodes a body against a type; `kind` and `apiVersion` come from the envelope.
pub fn decode(body: &[u8], ty: TypeRef<'static>) -> Result<Value, ProtobufError> {
    let envelope = envelope(body)?;
    let mut object = Map::new();
    for (field, text) in [("kind", envelope.kind), ("apiVersion", envelope.api_version)] {
        if !text.is_empty() {
            object.insert(field.into(), text.into());
        }
    }
    let Shape::Object(shape) = ty.shape() else {
        return Err(ProtobufError::Unknown(format!("{ty:?}")));
    };
    message(envelope.raw, ty, &shape.definition, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn text<'a>(bytes: &'a [u8], field: &str) -> Result<&'a str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::Utf8(field.into()))
}

/// Reads the fields of one message into an object of type `ty`.
fn message(
    bytes: &[u8],
    ty: TypeRef<'static>,
    definition: &str,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Depth);
    }
    let table = numbers::message(definition).ok_or_else(|| ProtobufError::Unknown(definition.into()))?;
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some((_, member)) = table.iter().find(|(known, _)| *known == number) else { continue };
        match *member {
            Member::Inline(short) => {
                let Wire::Bytes(inner) = wire else { return Err(ProtobufError::Mismatch(short.into())) };
                let package = definition.rsplit_once('.').map_or("", |(package, _)| package);
                message(inner, ty, &format!("{package}.{short}"), object, depth + 1)?;
            }
            Member::Field { name, counts } => {
                let Some(field) = ty.field(name) else { continue };
                let keep_zero = counts || field.required;
                put(object, name, field.ty(), wire, keep_zero, depth)?;
            }
        }
    }
    Ok(())
}

fn put(
    object: &mut Map<String, Value>,
    name: &str,
    ty: TypeRef<'static>,
    wire: Wire<'_>,
    keep_zero: bool,
    depth: usize,
) -> Result<(), ProtobufError> {
    match ty.shape() {
        Shape::List(_) => {
            let Some(item) = ty.item() else { return Ok(()) };
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(value(item, wire, name, depth)?);
            }
        }
        Shape::Map(_) => {
            let (Some(item), Wire::Bytes(entry)) = (ty.value(), wire) else {
                return Err(ProtobufError::Mismatch(name.into()));
            };
            let mut key = "";
            let mut found = None;
            let mut reader = Reader::new(entry);
            while let Some((number, wire)) = reader.next()? {
                match (number, wire) {
                    (1, Wire::Bytes(bytes)) => key = text(bytes, name)?,
                    (2, wire) => found = Some(value(item, wire, name, depth)?),
                    _ => {}
                }
            }
            let found = match found {
                Some(found) => found,
                // An empty value is left out on the wire.
                None => value(item, Wire::Bytes(&[]), name, depth)?,
            };
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key.into(), found);
            }
        }
        _ => {
            let found = value(ty, wire, name, depth)?;
            let zero = match &found {
                Value::Null => true,
                Value::String(text) => text.is_empty() && !keep_zero,
                Value::Number(number) => number.as_f64() == Some(0.0) && !keep_zero,
                Value::Bool(on) => !on && !keep_zero,
                _ => false,
            };
            if !zero {
                object.insert(name.into(), found);
            }
        }
    }
    Ok(())
}

/// One value of a type that is neither a repeated field nor a map at this place.
fn value(ty: TypeRef<'static>, wire: Wire<'_>, name: &str, depth: usize) -> Result<Value, ProtobufError> {
    let mismatch = || ProtobufError::Mismatch(name.into());
    Ok(match (ty.shape(), wire) {
        (Shape::String, Wire::Bytes(bytes)) => text(bytes, name)?.into(),
        (Shape::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        // Negative numbers are sign-extended to ten bytes; the cast takes them back.
        (Shape::Int32 | Shape::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        // The absent value of a map entry.
        (Shape::Int32 | Shape::Int64, Wire::Bytes([])) => 0.into(),
        (Shape::Boolean, Wire::Varint(number)) => (number != 0).into(),
        (Shape::Boolean, Wire::Bytes([])) => false.into(),
        (Shape::Number, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Shape::Number, Wire::Fixed32(bits)) => f64::from(f32::from_bits(bits)).into(),
        (Shape::Quantity, Wire::Bytes(bytes)) => match first_bytes(bytes)? {
            Some(quantity) => text(quantity, name)?.into(),
            None => "0".into(),
        },
        (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes, name)?,
        (Shape::Time, Wire::Bytes(bytes)) => time(bytes, false)?,
        (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, true)?,
        // RawExtension and FieldsV1: JSON in the first field.
        (Shape::Any { .. }, Wire::Bytes(bytes)) => match first_bytes(bytes)? {
            Some(json) => {
                serde_json::from_slice(json).map_err(|error| ProtobufError::Json(error.to_string()))?
            }
            None => Value::Null,
        },
        // A list in a list or map: a message of items.
        (Shape::List(_), Wire::Bytes(bytes)) => {
            let item = ty.item().ok_or_else(mismatch)?;
            let mut list = Vec::new();
            let mut reader = Reader::new(bytes);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    list.push(value(item, wire, name, depth + 1)?);
                }
            }
            list.into()
        }
        (Shape::Object(shape), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            message(bytes, ty, &shape.definition, &mut object, depth + 1)?;
            Value::Object(object)
        }
        _ => return Err(mismatch()),
    })
}

fn first_bytes(bytes: &[u8]) -> Result<Option<&[u8]>, ProtobufError> {
    let mut reader = Reader::new(bytes);
    let mut found = None;
    while let Some((number, wire)) = reader.next()? {
        if let (1, Wire::Bytes(bytes)) = (number, wire) {
            found = Some(bytes);
        }
    }
    Ok(found)
}

fn int_or_string(bytes: &[u8], name: &str) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number_value, mut text_value) = (false, 0_i64, "");
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number_value = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => text_value = text(bytes, name)?,
            _ => {}
        }
    }
    Ok(if is_text { text_value.into() } else { number_value.into() })
}

/// An empty message is Go's zero time, which JSON has as null.
fn time(bytes: &[u8], micro: bool) -> Result<Value, ProtobufError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0_i64, 0_i32);
    let mut reader = Reader::new(bytes);
    while let Some((number, wire)) = reader.next()? {
        match (number, wire) {
            (1, Wire::Varint(value)) => seconds = value.cast_signed(),
            (2, Wire::Varint(value)) => nanos = i32::try_from(value.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    let at = Timestamp::new(seconds, if micro { nanos } else { 0 })
        .map_err(|error| ProtobufError::Json(error.to_string()))?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(at.strftime(format).to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_schema::types::Schemas;
    use serde_json::json;

    fn built_in(group: &str, version: &str, kind: &str) -> Option<TypeRef<'static>> {
        Schemas::builtin().of(group, version, kind)
    }

    /// Writes a length-delimited field.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn varint(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[track_caller]
    fn check(gvk: (&str, &str, &str), raw: &[u8], expected: Value) {
        let (group, version, kind) = gvk;
        let api_version = if group.is_empty() { version.into() } else { format!("{group}/{version}") };
        let ty = built_in(group, version, kind).unwrap();
        assert_eq!(decode(&body(&api_version, kind, raw), ty).unwrap(), expected);
    }

    #[test]
    fn config_maps_and_secrets() {
        let metadata = [field(1, b"a"), field(2, b""), field(8, b"")].concat();
        let raw = [field(1, &metadata), field(2, &[field(1, b"k"), field(2, b"v")].concat()), varint(4, 0)]
            .concat();
        check(
            ("", "v1", "ConfigMap"),
            &raw,
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false}),
        );
        let raw = field(2, &[field(1, b"k"), field(2, b"\x00\x01")].concat());
        check(
            ("", "v1", "Secret"),
            &raw,
            json!({"kind": "Secret", "apiVersion": "v1", "data": {"k": "AAE="}}),
        );
    }

    #[test]
    fn zero_counts_only_where_it_is_told_apart() {
        // spec: replicas 0 (a pointer), minReadySeconds 0 (not one).
        let raw = field(2, &[varint(1, 0), varint(5, 0)].concat());
        check(
            ("apps", "v1", "Deployment"),
            &raw,
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"replicas": 0}}),
        );
    }

    #[test]
    fn special_types() {
        // A container with a probe on a named port (inlined handler) and a quantity.
        let port = [varint(1, 1), field(3, b"web")].concat();
        let http = field(2, &port);
        let handler = field(2, &http);
        let probe = field(1, &handler);
        let limit = field(1, &[field(1, b"cpu"), field(2, &field(1, b"100m"))].concat());
        let container = [field(1, b"c"), field(8, &limit), field(10, &probe)].concat();
        let raw = field(2, &field(2, &container));
        check(
            ("", "v1", "Pod"),
            &raw,
            json!({"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [{
                "name": "c", "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "web"}},
            }]}}),
        );
        assert_eq!(time(&varint(1, 60), false).unwrap(), "1970-01-01T00:01:00Z");
        assert_eq!(time(&[], false).unwrap(), Value::Null);
    }

    #[test]
    fn hostile_bodies_are_errors() {
        let ty = built_in("", "v1", "Pod").unwrap();
        let check = |bytes: &[u8], expected: ProtobufError| assert_eq!(decode(bytes, ty), Err(expected));
        check(b"{}", ProtobufError::Prefix);
        check(b"k8s\0\x12\xff", ProtobufError::Truncated);
        check(&body("v1", "Pod", b"\x0f"), ProtobufError::WireType(7));
        check(&body("v1", "Pod", &varint(1, 1)), ProtobufError::Mismatch("metadata".into()));
        check(&body("v1", "Pod", &field(1, &field(1, b"\xff"))), ProtobufError::Utf8("name".into()));
    }

    #[test]
    fn every_served_kind_has_its_numbers() {
        for kind in keelson_registry::kinds() {
            let resource = &kind.resource;
            let ty = built_in(&resource.group, &resource.version, &resource.kind).unwrap();
            let Shape::Object(shape) = ty.shape() else { panic!("{} is no object", resource.kind) };
            assert!(numbers::message(&shape.definition).is_some(), "{}", shape.definition);
        }
    }
}

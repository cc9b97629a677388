//! Objects, lists and Tables to bytes.
//!
//! Invariants: in the plain case the cached bytes of an object are sent as they are, behind its `kind` and
//! `apiVersion`; nothing is parsed unless another shape or a converted version was asked for.

pub mod accept;
pub mod compress;
pub mod protobuf;
pub mod table;

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use keelson_storage::Object;
use serde_json::{Value, json, value::RawValue};

pub use accept::{Media, Representation, Shape};

use crate::{
    http::body::{self, Response},
    served::Served,
    status::Status,
};

/// The size of the pieces in which lists are sent.
const CHUNK: usize = 64 * 1024;

/// `{"kind":"Pod","apiVersion":"v1"` with the comma that joins it to a body without its brace.
pub fn prefix(kind: &str, api_version: &str) -> String {
    format!(r#"{{"kind":{},"apiVersion":{},"#, quoted(kind), quoted(api_version))
}

fn quoted(text: &str) -> Value {
    Value::String(text.to_string())
}

/// The whole object as this endpoint serves it.
pub fn object_bytes(served: &Served, object: &Object) -> Bytes {
    if served.kind.conversion.is_some() {
        return served.value(object).to_string().into();
    }
    let mut bytes = BytesMut::with_capacity(served.prefix.len() + object.body().len());
    bytes.put_slice(served.prefix.as_bytes());
    bytes.put_slice(&object.body()[1..]);
    bytes.freeze()
}

/// The object in the shape that was asked for, as JSON.
pub fn shaped(
    served: &Served,
    object: &Object,
    shape: Shape,
    columns: table::Columns,
) -> Result<Bytes, Status> {
    match shape {
        Shape::Object => Ok(object_bytes(served, object)),
        Shape::PartialMetadata { version } => partial_metadata(object, version),
        Shape::Table { version } => {
            let row = table::row(served, object, columns.include, version)?;
            let meta = json!({ "resourceVersion": object.resource_version().to_string() });
            Ok(table::assemble(served, version, &meta, columns, &[row]))
        }
    }
}

fn partial_metadata(object: &Object, version: &str) -> Result<Bytes, Status> {
    let metadata = metadata_of(object)?;
    let mut bytes = BytesMut::with_capacity(metadata.len() + 80);
    bytes.put_slice(prefix("PartialObjectMetadata", &format!("meta.k8s.io/{version}")).as_bytes());
    bytes.put_slice(br#""metadata":"#);
    bytes.put_slice(metadata.as_bytes());
    bytes.put_u8(b'}');
    Ok(bytes.freeze())
}

/// The JSON text of an object's metadata, without building it.
pub fn metadata_of(object: &Object) -> Result<&str, Status> {
    #[derive(serde::Deserialize)]
    struct Only<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let only: Only<'_> = serde_json::from_slice(object.body())
        .map_err(|error| Status::internal(format!("cached object {}: {error}", object.name())))?;
    Ok(only.metadata.get())
}

/// A response with one object.
pub fn object_response(
    code: u16,
    served: &Served,
    object: &Object,
    representation: Representation,
    columns: table::Columns,
) -> Result<Response, Status> {
    let json = shaped(served, object, representation.shape, columns)?;
    bytes_response(code, json, representation.media)
}

/// A response with a value that is no stored object (reviews, Scale, Status).
pub fn value_response(code: u16, value: &Value, media: Media) -> Result<Response, Status> {
    match media {
        Media::Json => Ok(body::response(code, media.content_type(), value.to_string())),
        Media::Yaml => Ok(body::response(code, media.content_type(), to_yaml(value)?)),
    }
}

fn bytes_response(code: u16, json: Bytes, media: Media) -> Result<Response, Status> {
    match media {
        Media::Json => Ok(body::response(code, media.content_type(), json)),
        Media::Yaml => {
            let value: Value = serde_json::from_slice(&json).map_err(Status::internal)?;
            value_response(code, &value, media)
        }
    }
}

fn to_yaml(value: &Value) -> Result<String, Status> {
    serde_yaml::to_string(value).map_err(Status::internal)
}

/// What a list carries beside its items.
pub struct ListMeta {
    pub resource_version: u64,
    pub continue_token: Option<String>,
    pub remaining: Option<u64>,
}

impl ListMeta {
    fn to_json(&self) -> Value {
        let mut meta = json!({ "resourceVersion": self.resource_version.to_string() });
        if let Some(token) = &self.continue_token {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

/// A response with a list: sent in pieces that share the cached bytes until they are written.
pub fn list_response(
    served: &Served,
    meta: &ListMeta,
    items: Vec<Arc<Object>>,
    representation: Representation,
    columns: table::Columns,
) -> Result<Response, Status> {
    let meta = meta.to_json();
    let (kind, api_version) = match representation.shape {
        Shape::Table { version } => {
            let rows = items
                .iter()
                .map(|object| table::row(served, object, columns.include, version))
                .collect::<Result<Vec<_>, _>>()?;
            let json = table::assemble(served, version, &meta, columns, &rows);
            return bytes_response(200, json, representation.media);
        }
        Shape::PartialMetadata { version } => {
            ("PartialObjectMetadataList".to_string(), format!("meta.k8s.io/{version}"))
        }
        Shape::Object => {
            (format!("{}List", served.kind.resource.kind), served.kind.resource.api_version().into_owned())
        }
    };
    let head = format!(r#"{}"metadata":{meta},"items":["#, prefix(&kind, &api_version));
    let shape = representation.shape;
    let converted = served.kind.conversion.is_some();
    let item = move |served: &Served, object: &Object| -> Result<Bytes, Status> {
        match shape {
            Shape::PartialMetadata { version } => partial_metadata(object, version),
            _ if converted => {
                let mut value = served.value(object);
                if let Some(map) = value.as_object_mut() {
                    map.shift_remove("kind");
                    map.shift_remove("apiVersion");
                }
                Ok(value.to_string().into())
            }
            _ => Ok(object.body().clone()),
        }
    };
    if representation.media == Media::Yaml || items.len() < 16 {
        let mut json = BytesMut::from(head.as_bytes());
        for (index, object) in items.iter().enumerate() {
            if index > 0 {
                json.put_u8(b',');
            }
            json.put_slice(&item(served, object)?);
        }
        json.put_slice(b"]}\n");
        return bytes_response(200, json.freeze(), representation.media);
    }
    let served = served.clone();
    let mut queue = items.into_iter().enumerate();
    let mut head = Some(head);
    let mut done = false;
    let chunks = std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut chunk = BytesMut::with_capacity(CHUNK + CHUNK / 4);
        if let Some(head) = head.take() {
            chunk.put_slice(head.as_bytes());
        }
        while chunk.len() < CHUNK {
            let Some((index, object)) = queue.next() else {
                chunk.put_slice(b"]}\n");
                done = true;
                break;
            };
            if index > 0 {
                chunk.put_u8(b',');
            }
            match item(&served, &object) {
                Ok(bytes) => chunk.put_slice(&bytes),
                Err(status) => {
                    done = true;
                    return Some(Err(body::BoxError::from(status)));
                }
            }
        }
        Some(Ok(chunk.freeze()))
    });
    let mut response = body::response(200, Media::Json.content_type(), Bytes::new());
    *response.body_mut() = body::stream(futures::stream::iter(chunks));
    Ok(response)
}

//! `meta.k8s.io` Tables: what `kubectl get` prints.

use bytes::{BufMut, Bytes, BytesMut};
use keelson_storage::Object;
use serde_json::{Value, json};

use super::{metadata_of, prefix};
use crate::{request::Query, served::Served, status::Status};

/// What each row carries of its object (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

/// How a Table is written.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    pub include: Include,
    /// Later events of a watch leave the definitions out.
    pub definitions: bool,
}

impl Columns {
    pub fn from_query(query: &Query) -> Result<Self, Status> {
        let include = match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                return Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}")));
            }
        };
        Ok(Columns { include, definitions: true })
    }
}

/// One row as JSON text.
pub fn row(served: &Served, object: &Object, include: Include, version: &str) -> Result<String, Status> {
    let value = served.value(object);
    let cells = Value::Array(served.kind.row(&value, jiff::Timestamp::now()));
    let mut row = format!(r#"{{"cells":{cells}"#);
    if let Some(conditions) = served.kind.row_conditions(&value) {
        row.push_str(&format!(r#","conditions":{conditions}"#));
    }
    match include {
        Include::None => {}
        Include::Object => row.push_str(&format!(r#","object":{value}"#)),
        Include::Metadata => {
            let metadata = metadata_of(object)?;
            row.push_str(r#","object":"#);
            row.push_str(&prefix("PartialObjectMetadata", &format!("meta.k8s.io/{version}")));
            row.push_str(r#""metadata":"#);
            row.push_str(metadata);
            row.push('}');
        }
    }
    row.push('}');
    Ok(row)
}

/// The whole Table.
pub fn assemble(served: &Served, version: &str, meta: &Value, columns: Columns, rows: &[String]) -> Bytes {
    let definitions: Value = if columns.definitions {
        served
            .kind
            .columns
            .iter()
            .map(|column| {
                json!({
                    "name": column.name, "type": column.r#type, "format": column.format,
                    "description": column.description, "priority": column.priority,
                })
            })
            .collect()
    } else {
        Value::Null
    };
    let size: usize = rows.iter().map(String::len).sum();
    let mut bytes = BytesMut::with_capacity(size + rows.len() + 2048);
    bytes.put_slice(prefix("Table", &format!("meta.k8s.io/{version}")).as_bytes());
    bytes.put_slice(format!(r#""metadata":{meta},"columnDefinitions":{definitions},"rows":["#).as_bytes());
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            bytes.put_u8(b',');
        }
        bytes.put_slice(row.as_bytes());
    }
    bytes.put_slice(b"]}\n");
    bytes.freeze()
}

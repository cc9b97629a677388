//! POST and PUT.

use super::Call;
use crate::{
    generic::{decode, metadata},
    http::body::Response,
    request::options::WriteOptions,
    status::Status,
};

pub async fn create(call: &Call) -> Result<Response, Status> {
    call.representation()?;
    let options = WriteOptions::from_query(&call.query, "CreateOptions")?;
    let encoding = decode::encoding(&call.headers)?;
    let object =
        decode::object(&call.served, &call.body, encoding, options.field_validation, &call.warnings)?;
    let manager = call.manager(&options);
    let outcome = call.write(&options, &manager).create(object, "").await?;
    call.written(201, &outcome)
}

pub async fn update(call: &Call) -> Result<Response, Status> {
    call.representation()?;
    let options = WriteOptions::from_query(&call.query, "UpdateOptions")?;
    let encoding = decode::encoding(&call.headers)?;
    let object =
        decode::object(&call.served, &call.body, encoding, options.field_validation, &call.warnings)?;
    let manager = call.manager(&options);
    let name = call.path.name.as_str();
    let may_create = call.served.kind.create_on_update && call.path.subresource.is_empty();
    let written = call
        .write(&options, &manager)
        .update(name, |current| {
            if current.is_none() && (!may_create || wants_present(&object)) {
                return Err(Status::not_found(call.served.qualified(), name));
            }
            Ok(object.clone())
        })
        .await?;
    call.written(if written.created { 201 } else { 200 }, &written.outcome)
}

/// A PUT with a uid or resourceVersion means an object that exists.
fn wants_present(object: &serde_json::Value) -> bool {
    !metadata::text(object, "uid").is_empty() || !metadata::text(object, "resourceVersion").is_empty()
}

//! `/scale`: a workload's replicas as an `autoscaling/v1 Scale`.

use keelson_registry::scale::ScaleFields;
use keelson_schema::{
    decode::Format,
    types::{Schemas, TypeRef},
};
use keelson_storage::ReadVersion;
use serde_json::Value;

use super::{Call, patch};
use crate::{
    encoding,
    generic::{
        create::Outcome,
        decode::{self, Encoding},
        errors, metadata,
    },
    http::body::Response,
    request::options::WriteOptions,
    status::{Qualified, Status},
};

const SCALE: Qualified<'static> = Qualified { group: "autoscaling", name: "Scale" };

pub async fn serve(call: &Call) -> Result<Response, Status> {
    let fields = call.served.kind.scale.as_ref().ok_or_else(Status::no_such_resource)?;
    let ty = Schemas::builtin()
        .of("autoscaling", "v1", "Scale")
        .ok_or_else(|| Status::internal("no schema of Scale"))?;
    match call.verb.as_str() {
        "get" => get(call, fields).await,
        "update" => {
            let options = WriteOptions::from_query(&call.query, "UpdateOptions")?;
            let named = decode::Named { ty, version: "v1", kind: "Scale" };
            let decoded = decode::decoded(&call.body, decode::encoding(&call.headers)?, named)?;
            let mut scale = decode::checked(decoded, options.field_validation, &call.warnings)?;
            decode::type_meta(&mut scale, "Scale", "autoscaling/v1")?;
            write(call, fields, &options, |_| Ok(scale.clone())).await
        }
        "patch" => {
            let kind = patch::patch_type(call)?;
            let options = WriteOptions::from_query(&call.query, "PatchOptions")?;
            patch::check_options(kind, &options)?;
            let validation = options.field_validation;
            write(call, fields, &options, |current| {
                let ty: TypeRef<'static> = ty;
                if kind == patch::PatchType::Apply {
                    // The intent of an apply holds only replicas: a merge of them into the present Scale.
                    let named = decode::Named { ty, version: "v1", kind: "Scale" };
                    let decoded = decode::decoded(&call.body, Encoding::Text(Format::Yaml), named)?;
                    let intent = decode::checked(decoded, validation, &call.warnings)?;
                    let mut merged = current.clone();
                    if let Some(replicas) = intent["spec"].get("replicas") {
                        merged["spec"]["replicas"] = replicas.clone();
                    }
                    return Ok(merged);
                }
                patch::apply_patch(call, current, ty, kind, validation, &call.warnings)
            })
            .await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

async fn get(call: &Call, fields: &ScaleFields) -> Result<Response, Status> {
    let served = &call.served;
    let Some(resource) = &served.resource else { return Err(Status::no_such_resource()) };
    let key = served.key(call.namespace(), &call.path.name);
    let object = resource
        .get(key, ReadVersion::Latest)
        .await
        .map_err(|error| errors::storage(error, served.qualified(), &call.path.name))?;
    respond(call, &fields.read(&served.value(&object)))
}

fn respond(call: &Call, scale: &Value) -> Result<Response, Status> {
    let representation = encoding::accept::negotiate(&call.headers, false)?;
    encoding::value_response(200, scale, representation.media)
}

async fn write(
    call: &Call,
    fields: &ScaleFields,
    options: &WriteOptions,
    mut make: impl FnMut(&Value) -> Result<Value, Status> + Send,
) -> Result<Response, Status> {
    let manager = call.manager(options);
    let name = call.path.name.as_str();
    let served = &call.served;
    let written = call
        .write(options, &manager)
        .update(name, |current| {
            let Some(current) = current else {
                return Err(Status::not_found(served.qualified(), name));
            };
            let scale = make(&fields.read(current))?;
            let found = metadata::name(&scale);
            if !found.is_empty() && found != name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({found}) does not match the name on the URL ({name})"
                )));
            }
            let causes = fields.validate(&scale);
            if !causes.is_empty() {
                return Err(Status::invalid(SCALE, name, causes.into_iter().map(Into::into).collect()));
            }
            let mut object = current.clone();
            fields.write(&mut object, &scale);
            let version = metadata::text(&scale, "resourceVersion");
            if !version.is_empty() {
                metadata::set(&mut object, "resourceVersion", version);
            }
            Ok(object)
        })
        .await?;
    match &written.outcome {
        Outcome::Stored(object) => respond(call, &fields.read(&served.value(object))),
        Outcome::Imagined(value) => respond(call, &fields.read(value)),
    }
}

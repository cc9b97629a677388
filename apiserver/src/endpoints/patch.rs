//! PATCH: JSON patch, merge patch, strategic merge patch and server-side apply.

use keelson_schema::{
    apply,
    decode::{self as schema_decode, Format},
    patch,
    types::TypeRef,
};
use serde_json::{Value, json};

use super::Call;
use crate::{
    generic::{
        Write, decode, errors, metadata,
        update::{Ownership, Written},
    },
    http::{body::Response, chain::WarningList},
    request::options::{FieldValidation, WriteOptions},
    served::Served,
    status::{Cause, Qualified, Status},
};

/// The patch types, by content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

const TYPES: &[(&str, PatchType)] = &[
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    ("application/strategic-merge-patch+json", PatchType::Strategic),
    ("application/apply-patch+yaml", PatchType::Apply),
];

pub fn patch_type(call: &Call) -> Result<PatchType, Status> {
    let media = decode::media_type(&call.headers);
    TYPES.iter().find(|(name, _)| *name == media).map(|(_, kind)| *kind).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        Status::unsupported_media_type(&names)
    })
}

pub async fn serve(call: &Call) -> Result<Response, Status> {
    call.representation()?;
    let kind = patch_type(call)?;
    let options = WriteOptions::from_query(&call.query, "PatchOptions")?;
    check_options(kind, &options)?;
    let manager = call.manager(&options);
    let write = call.write(&options, &manager);
    let written = if kind == PatchType::Apply {
        applied(call, write).await?
    } else {
        patched(call, write, kind).await?
    };
    call.written(if written.created { 201 } else { 200 }, &written.outcome)
}

/// What `ValidatePatchOptions` refuses.
pub fn check_options(kind: PatchType, options: &WriteOptions) -> Result<(), Status> {
    let cause = match kind {
        PatchType::Apply if options.field_manager.is_empty() => {
            Cause::required("fieldManager", "is required for apply patch")
        }
        PatchType::Json | PatchType::Merge | PatchType::Strategic if options.force.is_some() => {
            Cause::forbidden("force", "may not be specified for non-apply patch")
        }
        _ => return Ok(()),
    };
    Err(Status::invalid(Qualified { group: "meta.k8s.io", name: "PatchOptions" }, "", vec![cause]))
}

async fn patched(call: &Call, write: Write<'_>, kind: PatchType) -> Result<Written, Status> {
    let name = call.path.name.as_str();
    let served = &call.served;
    let validation = write.options.field_validation;
    write
        .update(name, |current| {
            let Some(current) = current else {
                return Err(Status::not_found(served.qualified(), name));
            };
            apply_patch(call, current, served.ty, kind, validation, &call.warnings)
        })
        .await
}

/// Patches a value of a type and decodes the result strictly.
pub fn apply_patch(
    call: &Call,
    current: &Value,
    ty: TypeRef<'static>,
    kind: PatchType,
    validation: FieldValidation,
    warnings: &WarningList,
) -> Result<Value, Status> {
    let result = match kind {
        PatchType::Json => patch::json(current, &call.body),
        PatchType::Merge => patch::merge(current, &call.body),
        PatchType::Strategic => patch::strategic(current, &call.body, ty),
        // Apply has its own path: it needs the manager and ownership, not only the value.
        PatchType::Apply => return Err(Status::method_not_allowed()),
    };
    let patched = result.map_err(errors::patch)?;
    let invalid = |why: String| {
        let text = String::from_utf8_lossy(&call.body);
        let cause = Cause::invalid("patch", &json!(text), &why);
        Status::invalid(Qualified { group: "", name: "" }, "", vec![cause])
    };
    let decoded = schema_decode::decode_value(patched, ty).map_err(|error| invalid(error.to_string()))?;
    if validation == FieldValidation::Strict
        && let Some(message) = decoded.strict_error()
    {
        return Err(invalid(message));
    }
    decode::checked(decoded, validation, warnings)
}

async fn applied(call: &Call, mut write: Write<'_>) -> Result<Written, Status> {
    let name = call.path.name.as_str();
    let served = &call.served;
    let mut intent = intent(served, &call.body, write.options.field_validation, &call.warnings)?;
    if metadata::name(&intent).is_empty() {
        metadata::set(&mut intent, "name", name);
    }
    if served.kind.resource.namespaced && metadata::text(&intent, "namespace").is_empty() {
        metadata::set(&mut intent, "namespace", write.namespace);
    }
    if !metadata::text(&intent, "uid").is_empty() && intent["metadata"]["managedFields"].is_array() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let resource = &served.kind.resource;
    let api_version = resource.gvk().api_version();
    let named = decode::Named { ty: served.ty, version: &resource.version, kind: &resource.kind };
    let now = metadata::now();
    let force = write.options.force.unwrap_or(false);
    let may_create = call.path.subresource.is_empty();
    write.ownership = Ownership::Done;
    write
        .update(name, |current| {
            if current.is_none() && !may_create {
                return Err(Status::not_found(served.qualified(), name));
            }
            let applied = apply::apply(current, &intent, served.ty, write.writer(&api_version, &now), force)
                .map_err(errors::apply)?;
            decode::canonical(applied, named)
        })
        .await
}

/// The configuration of an apply as it was sent. It gets no type yet: fields that a decoder adds would become owned by
/// the manager, and ones that it drops would never be told of.
fn intent(
    served: &Served,
    body: &[u8],
    validation: FieldValidation,
    warnings: &WarningList,
) -> Result<Value, Status> {
    let decoded = schema_decode::untyped(body, Format::Yaml)
        .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
    if validation == FieldValidation::Strict
        && let Some(message) = decoded.strict_error()
    {
        let message = message.trim_start_matches("strict decoding error: ");
        return Err(Status::bad_request(format!("error strict decoding YAML: {message}")));
    }
    let value = decode::checked(decoded, validation, warnings)?;
    if !value.is_object() {
        return Err(Status::bad_request("error decoding YAML: the body is not an object"));
    }
    let kind = value["kind"].as_str().unwrap_or_default();
    let expected = &served.kind.resource.kind;
    if kind != expected {
        let version = value["apiVersion"].as_str().unwrap_or_default();
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {expected}: an apply patch names the kind of its object"
        )));
    }
    Ok(value)
}

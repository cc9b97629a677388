//! Binding a pod to a node.

use keelson_registry::core::pod::binding as rules;
use keelson_schema::types::Schemas;
use keelson_storage::{Change, Preconditions, UpdateError};
use serde_json::{Value, json};

use super::Call;
use crate::{
    encoding,
    generic::{decode, errors, metadata},
    http::body::Response,
    request::options::WriteOptions,
    status::{Qualified, Status},
};

pub(super) const PODS: Qualified<'static> = Qualified { group: "", name: "pods" };

/// Decodes the body of a subresource that has a kind of its own.
pub(super) fn body(call: &Call, options: &WriteOptions, gvk: (&str, &str, &str)) -> Result<Value, Status> {
    let (group, version, kind) = gvk;
    let ty = Schemas::builtin()
        .of(group, version, kind)
        .ok_or_else(|| Status::internal(format!("no schema of {kind}")))?;
    let named = decode::Named { ty, version, kind };
    let decoded = decode::decoded(&call.body, decode::encoding(&call.headers)?, named)?;
    let mut object = decode::checked(decoded, options.field_validation, &call.warnings)?;
    let api_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    decode::type_meta(&mut object, kind, &api_version)?;
    Ok(object)
}

/// The answer to a binding or an eviction.
pub(super) fn created(call: &Call) -> Result<Response, Status> {
    let representation = encoding::accept::negotiate(&call.headers, false)?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    encoding::value_response(201, &status, representation.media)
}

/// `pods/<name>/binding`, and the legacy `bindings` where the body names the pod.
pub async fn serve(call: &Call, name: &str) -> Result<Response, Status> {
    if call.verb != "create" {
        return Err(Status::method_not_allowed());
    }
    let options = WriteOptions::from_query(&call.query, "CreateOptions")?;
    let mut binding = body(call, &options, ("", "v1", "Binding"))?;
    let named = metadata::name(&binding).to_string();
    let name = if name.is_empty() { named.as_str() } else { name };
    if !named.is_empty() && named != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({name})"
        )));
    }
    let write = call.write(&options, "");
    write.settle_namespace(&mut binding)?;
    let causes = rules::validate(&binding);
    if !causes.is_empty() {
        let causes = causes.into_iter().map(Into::into).collect();
        return Err(Status::invalid(Qualified { group: "", name: "Binding" }, name, causes));
    }
    write.admit_create(name, &mut binding).await?;
    let pods = call
        .server
        .table
        .find("", "v1", "pods")
        .and_then(|served| served.resource.as_ref())
        .ok_or_else(Status::no_such_resource)?;
    let key = keelson_storage::Key::new(&call.path.namespace, name);
    let text = |field| Some(metadata::text(&binding, field)).filter(|t| !t.is_empty()).map(str::to_string);
    let preconditions = Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
    pods.update(key, &preconditions, |current| {
        let mut pod = current.value.clone();
        rules::assign(&mut pod, &binding, &metadata::now())
            .map_err(|error| Status::conflict(Qualified { group: "", name: "pods/binding" }, name, error))?;
        Ok(if options.dry_run { Change::Keep } else { Change::Write(pod) })
    })
    .await
    .map_err(|error: UpdateError<Status>| errors::update(error, PODS, name))?;
    created(call)
}

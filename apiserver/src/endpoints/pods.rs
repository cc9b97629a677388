//! Binding a pod to a node.

use keelson_schema::types::Schemas;
use keelson_storage::{Change, Preconditions, UpdateError};
use serde_json::{Value, json};

use super::Call;
use crate::{
    encoding,
    generic::{decode, errors, metadata},
    http::body::Response,
    request::options::WriteOptions,
    status::{Cause, Qualified, Status},
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
pub async fn binding(call: &Call, name: &str) -> Result<Response, Status> {
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
    let mut causes = Vec::new();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        causes.push(Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {kind:?}: supported values: \"Node\", \"<empty>\""),
            field: "target.kind".into(),
        });
    }
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_string();
    if node.is_empty() {
        causes.push(Cause::required("target.name", ""));
    }
    if !causes.is_empty() {
        return Err(Status::invalid(Qualified { group: "", name: "Binding" }, name, causes));
    }
    let write = call.write(&options, "");
    write.admit_create(name, &mut binding).await?;
    let pods = call
        .server
        .table
        .find("", "v1", "pods")
        .and_then(|served| served.resource.as_ref())
        .ok_or_else(Status::no_such_resource)?;
    let key = keelson_storage::Key::new(&call.path.namespace, name);
    if options.dry_run {
        pods.get(key, keelson_storage::ReadVersion::Latest)
            .await
            .map_err(|error| errors::storage(error, PODS, name))?;
        return created(call);
    }
    let text = |field| Some(metadata::text(&binding, field)).filter(|t| !t.is_empty()).map(str::to_string);
    let preconditions = Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
    pods.update(key, &preconditions, |current| bound(&current.value, &binding, &node).map(Change::Write))
        .await
        .map_err(|error: UpdateError<Status>| errors::update(error, PODS, name))?;
    created(call)
}

/// The pod on its node.
fn bound(pod: &Value, binding: &Value, node: &str) -> Result<Value, Status> {
    let name = metadata::name(pod);
    if metadata::is_deleting(pod) {
        return Err(Status::conflict(
            Qualified { group: "", name: "pods/binding" },
            name,
            format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let present = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !present.is_empty() {
        return Err(Status::conflict(
            Qualified { group: "", name: "pods/binding" },
            name,
            format!("pod {name} is already assigned to node {present:?}"),
        ));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return Err(Status::conflict(
            Qualified { group: "", name: "pods/binding" },
            name,
            format!("pod {name} has non-empty .spec.schedulingGates"),
        ));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][field].as_object().into_iter().flatten() {
            if let Some(metadata) = metadata::metadata(&mut pod) {
                let map = metadata.entry(field).or_insert_with(|| json!({}));
                map[key.as_str()] = value.clone();
            }
        }
    }
    set_condition(
        &mut pod,
        json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": metadata::now(),
        }),
    );
    Ok(pod)
}

/// Puts a condition in the place of the one of its type, or behind the others. The time of the transition stays where
/// the status does.
pub(super) fn set_condition(object: &mut Value, mut condition: Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    let Some(conditions) = conditions.as_array_mut() else {
        *conditions = json!([condition]);
        return;
    };
    match conditions.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] && known["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = known["lastTransitionTime"].take();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_bound_once() {
        let binding = json!({"metadata": {"name": "p", "annotations": {"a": "b"}}, "target": {"name": "n"}});
        let pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending"}});
        let bound_pod = bound(&pod, &binding, "n").unwrap();
        assert_eq!(bound_pod["spec"]["nodeName"], "n");
        assert_eq!(bound_pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(bound_pod["status"]["conditions"][0]["type"], "PodScheduled");
        let again = bound(&bound_pod, &binding, "m").unwrap_err();
        assert_eq!(again.code, 409);
        assert!(again.message.contains(r#"is already assigned to node "n""#), "{}", again.message);
        let deleting =
            json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        assert_eq!(bound(&deleting, &binding, "n").unwrap_err().code, 409);
    }
}

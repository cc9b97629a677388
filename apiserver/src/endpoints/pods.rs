//! Verbs that only pods have: binding to a node and eviction.

use keelson_schema::types::Schemas;
use keelson_storage::{Change, Object, Preconditions, UpdateError};
use serde_json::{Value, json};

use super::Call;
use crate::{
    encoding,
    generic::{decode, delete::Deleted, errors, metadata, selectors},
    http::body::Response,
    request::{DeleteOptions, options::WriteOptions},
    status::{Cause, Qualified, Status},
};

const PODS: Qualified<'static> = Qualified { group: "", name: "pods" };

/// Decodes the body of a subresource that has a kind of its own.
fn body(call: &Call, options: &WriteOptions, gvk: (&str, &str, &str)) -> Result<Value, Status> {
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

fn created(call: &Call) -> Result<Response, Status> {
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
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": metadata::now(),
    });
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    match pod["status"]["conditions"].as_array_mut() {
        None => pod["status"]["conditions"] = json!([condition]),
        Some(conditions) => match conditions.iter_mut().find(|known| known["type"] == "PodScheduled") {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        },
    }
    Ok(pod)
}

/// `pods/<name>/eviction`: a delete that asks the disruption budgets first.
pub async fn eviction(call: &Call) -> Result<Response, Status> {
    if call.verb != "create" {
        return Err(Status::method_not_allowed());
    }
    let mut options = WriteOptions::from_query(&call.query, "CreateOptions")?;
    let mut eviction = body(call, &options, ("policy", "v1", "Eviction"))?;
    let name = call.path.name.as_str();
    let named = metadata::name(&eviction);
    if !named.is_empty() && named != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let delete_options: DeleteOptions = match eviction.get("deleteOptions") {
        None | Some(Value::Null) => DeleteOptions::default(),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| Status::bad_request(format!("deleteOptions: {error}")))?,
    };
    options.dry_run |= delete_options.validate()?;
    let write = call.write(&options, "");
    write.admit_create(name, &mut eviction).await?;
    let Some(pods) = &call.served.resource else { return Err(Status::no_such_resource()) };
    let pod = pods
        .get(call.served.key(call.namespace(), name), keelson_storage::ReadVersion::Latest)
        .await
        .map_err(|error| errors::storage(error, PODS, name))?;
    let finished = matches!(pod.field("status.phase"), Some("Succeeded" | "Failed" | "Pending"));
    if !finished {
        disrupt(call, &pod, options.dry_run).await?;
    }
    let mut write = call.write(&options, "");
    write.subresource = "";
    match write.delete(name, &delete_options).await? {
        Deleted::Gone(_) | Deleted::Pending(_) | Deleted::Imagined { .. } => created(call),
    }
}

/// Takes one disruption from the budget of the pod, if it has one.
async fn disrupt(call: &Call, pod: &Object, dry_run: bool) -> Result<(), Status> {
    let Some(budgets) = call
        .server
        .table
        .find("policy", "v1", "poddisruptionbudgets")
        .and_then(|served| served.resource.as_ref())
    else {
        return Ok(());
    };
    let matching: Vec<_> = budgets
        .cached_list(pod.namespace())
        .into_iter()
        .filter(|budget| {
            let selector = &budget.value()["spec"]["selector"];
            selector.is_object() && selectors::label_selector_matches(selector, pod)
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let refused = |budget: &Value| {
        let name = metadata::name(budget);
        let (healthy, desired) = (&budget["status"]["currentHealthy"], &budget["status"]["desiredHealthy"]);
        Status::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0)
            .with_cause(Cause {
                reason: "DisruptionBudget".into(),
                message: format!(
                    "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
                ),
                field: String::new(),
            })
    };
    let group = Qualified { group: "policy", name: "poddisruptionbudgets" };
    budgets
        .update(budget.key(), &Preconditions::default(), |current| {
            let allowed = current.value["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            if allowed <= 0 {
                return Err(refused(&current.value));
            }
            if dry_run {
                return Ok(Change::Keep);
            }
            let mut next = current.value.clone();
            next["status"]["disruptionsAllowed"] = (allowed - 1).into();
            if !next["status"]["disruptedPods"].is_object() {
                next["status"]["disruptedPods"] = json!({});
            }
            next["status"]["disruptedPods"][pod.name()] = metadata::now().into();
            Ok(Change::Write(next))
        })
        .await
        .map_err(|error| errors::update(error, group, budget.name()))?;
    Ok(())
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

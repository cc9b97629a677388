//! `pods/<name>/eviction`: a delete that asks the disruption budgets first.
//!
//! Invariant: a decision that rests on the pod's state (it is not ready, it has not begun) holds for the very version
//! that is then deleted.

use keelson_storage::{Change, ListOptions, Object, ReadVersion, Resource, Scope, UpdateError};
use serde_json::{Value, json};

use super::{
    Call,
    binding::{PODS, body, created},
};
use crate::{
    generic::{errors, metadata, selectors},
    http::body::Response,
    request::{
        DeleteOptions,
        options::{Preconditions, WriteOptions},
    },
    status::{Cause, Qualified, Status},
};

const BUDGETS: Qualified<'static> = Qualified { group: "policy", name: "poddisruptionbudgets" };
const VIOLATED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Evictions that the disruption controller has not seen the end of.
const MAX_DISRUPTED: usize = 2000;
/// Rounds with a pod that changes meanwhile.
const ATTEMPTS: usize = 20;

/// Why a pod may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Permit {
    /// Nothing depends on it any more, no budget is about it, or its budget has one disruption less.
    AnyState,
    /// Only as it was read: with the name of the budget that it would fall under otherwise.
    ThisState { budget: Option<String> },
}

pub async fn serve(call: &Call) -> Result<Response, Status> {
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
    let delete_options = match eviction.get("deleteOptions") {
        None | Some(Value::Null) => DeleteOptions::default(),
        Some(value) => DeleteOptions::from_value(value.clone())?,
    };
    options.dry_run |= delete_options.validate()?;
    call.write(&options, "").admit_create(name, &mut eviction).await?;
    let pinned = |options: &DeleteOptions| {
        options.preconditions.as_ref().is_some_and(|wanted| wanted.resource_version.is_some())
    };
    let pods = call.served.resource.as_ref().ok_or_else(Status::no_such_resource)?;
    let mut last = Status::modified(PODS, name);
    for _ in 0..ATTEMPTS {
        let pod = pods
            .get(call.served.key(call.namespace(), name), ReadVersion::Latest)
            .await
            .map_err(|error| errors::storage(error, PODS, name))?;
        let permit = permit(call, &pod, options.dry_run).await?;
        let mut delete_options = delete_options.clone();
        let ours = permit != Permit::AnyState && !pinned(&delete_options);
        if ours {
            let wanted = delete_options.preconditions.get_or_insert_with(Preconditions::default);
            wanted.resource_version = Some(pod.resource_version().to_string());
        }
        match (evict(call, pods, &options, delete_options).await, permit) {
            (Ok(()), _) => return created(call),
            (Err(status), Permit::ThisState { budget }) if ours && status.reason == "Conflict" => {
                match budget {
                    // It may have become ready: the client asks again.
                    Some(budget) => return Err(unprocessed(&budget)),
                    None => last = status,
                }
            }
            (Err(status), _) => return Err(status),
        }
    }
    Err(last)
}

/// Marks the pod as the target of a disruption, which is how its owner tells an eviction from a failure, and deletes it.
async fn evict(
    call: &Call,
    pods: &Resource,
    options: &WriteOptions,
    mut delete_options: DeleteOptions,
) -> Result<(), Status> {
    let name = call.path.name.as_str();
    if !options.dry_run {
        let wanted = delete_options.preconditions.as_ref();
        let preconditions = keelson_storage::Preconditions {
            uid: wanted.and_then(|wanted| wanted.uid.clone()),
            resource_version: wanted.and_then(|wanted| wanted.resource_version.clone()),
        };
        let key = call.served.key(call.namespace(), name);
        let marked = pods
            .update(key, &preconditions, |current| {
                let mut pod = current.value.clone();
                set_condition(
                    &mut pod,
                    json!({
                        "type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
                        "lastTransitionTime": metadata::now(), "reason": "EvictionByEvictionAPI",
                        "message": "Eviction API: evicting",
                    }),
                );
                Ok(Change::Write(pod))
            })
            .await
            .map_err(|error: UpdateError<Status>| errors::update(error, PODS, name))?;
        if let Some(version) =
            delete_options.preconditions.as_mut().and_then(|wanted| wanted.resource_version.as_mut())
        {
            // The version that this request has just written.
            *version = marked.object().resource_version().to_string();
        }
    }
    let mut write = call.write(options, "");
    write.subresource = "";
    write.delete(name, &delete_options).await.map(drop)
}

/// Asks the budget of the pod, if it has one, and takes one disruption from it.
async fn permit(call: &Call, pod: &Object, dry_run: bool) -> Result<Permit, Status> {
    let value = pod.value();
    match value["status"]["phase"].as_str() {
        Some("Succeeded" | "Failed") => return Ok(Permit::AnyState),
        _ if metadata::is_deleting(&value) => return Ok(Permit::AnyState),
        Some("Pending") => return Ok(Permit::ThisState { budget: None }),
        _ => {}
    }
    let served = call.server.table.find("policy", "v1", "poddisruptionbudgets");
    let Some(budgets) = served.and_then(|served| served.resource.as_ref()) else {
        return Ok(Permit::AnyState);
    };
    let scope = Scope::Namespace(pod.namespace().to_owned());
    let all = budgets
        .list(ListOptions { scope, ..ListOptions::default() })
        .await
        .map_err(|error| errors::storage(error, BUDGETS, ""))?;
    let matching: Vec<_> = all
        .items
        .into_iter()
        .filter(|budget| {
            let selector = &budget.value()["spec"]["selector"];
            selector.is_object() && selectors::label_selector_matches(selector, pod)
        })
        .collect();
    let budget = match matching.as_slice() {
        [] => return Ok(Permit::AnyState),
        [one] => one,
        _ => {
            return Err(Status::unknown(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    if !is_ready(&value) && spares_unready(&budget.value()) {
        return Ok(Permit::ThisState { budget: Some(budget.name().to_owned()) });
    }
    budgets
        .update(budget.key(), &keelson_storage::Preconditions::default(), |current| {
            let next = taken_from(&current.value, pod.name())?;
            Ok(if dry_run { Change::Keep } else { Change::Write(next) })
        })
        .await
        .map_err(|error| errors::update(error, BUDGETS, budget.name()))?;
    Ok(Permit::AnyState)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Whether a budget lets go of a pod that does not count among the healthy ones anyway.
fn spares_unready(budget: &Value) -> bool {
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || (healthy >= desired && desired > 0)
}

fn refused(seconds: u32, message: String) -> Status {
    Status::too_many_requests(VIOLATED, seconds).with_cause(Cause {
        reason: "DisruptionBudget".into(),
        message,
        field: String::new(),
    })
}

fn unprocessed(budget: &str) -> Status {
    refused(10, format!("The disruption budget {budget} is still being processed by the server."))
}

/// The budget with one disruption less, by this pod.
fn taken_from(budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = metadata::name(budget);
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if number("observedGeneration") < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
        return Err(unprocessed(name));
    }
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(BUDGETS, name, "pdb disruptions allowed is negative"));
    }
    if budget["status"]["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        return Err(Status::forbidden(
            BUDGETS,
            name,
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
        let message =
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        return Err(refused(0, message));
    }
    let mut next = budget.clone();
    next["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        set_condition(
            &mut next,
            json!({
                "type": "DisruptionAllowed", "status": "False", "observedGeneration": number("observedGeneration"),
                "lastTransitionTime": metadata::now(), "reason": "InsufficientPods", "message": "",
            }),
        );
    }
    if !next["status"]["disruptedPods"].is_object() {
        next["status"]["disruptedPods"] = json!({});
    }
    next["status"]["disruptedPods"][pod] = metadata::now().into();
    Ok(next)
}

/// Puts a condition in the place of the one of its type, or behind the others. The time of the transition stays where
/// the status does.
fn set_condition(object: &mut Value, mut condition: Value) {
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
    fn budgets_give_and_refuse() {
        let check = |status: Value, expected: Result<(i64, bool), (u16, &str)>| {
            let budget = json!({"metadata": {"name": "b", "generation": 2}, "status": status});
            let found = taken_from(&budget, "p").map(|next| {
                assert!(next["status"]["disruptedPods"]["p"].is_string());
                let exhausted = next["status"]["conditions"][0]["reason"] == "InsufficientPods";
                (next["status"]["disruptionsAllowed"].as_i64().unwrap(), exhausted)
            });
            match (found, expected) {
                (Err(status), Err((code, text))) => {
                    let json = status.to_json().to_string();
                    assert!(status.code == code && json.contains(text), "{json}");
                }
                (found, expected) => {
                    assert_eq!(
                        found.map_err(|status| status.message),
                        expected.map_err(|(_, text)| text.into())
                    );
                }
            }
        };
        let seen = |allowed: i64| json!({"observedGeneration": 2, "disruptionsAllowed": allowed, "desiredHealthy": 3});
        check(seen(2), Ok((1, false)));
        check(seen(1), Ok((0, true)));
        check(seen(0), Err((429, "The disruption budget b needs 3 healthy pods and has 0 currently")));
        check(seen(-1), Err((403, "is negative")));
        check(json!({"observedGeneration": 1, "disruptionsAllowed": 1}), Err((429, "still being processed")));
    }

    #[test]
    fn unready_pods_are_spared_by_budgets_that_are_met() {
        let check = |policy: &str, healthy: i64, desired: i64, expected: bool| {
            let budget = json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": healthy, "desiredHealthy": desired}});
            assert_eq!(spares_unready(&budget), expected, "{policy} {healthy} {desired}");
        };
        check("IfHealthyBudget", 2, 2, true);
        check("IfHealthyBudget", 1, 2, false);
        check("IfHealthyBudget", 0, 0, false);
        check("AlwaysAllow", 0, 2, true);
    }
}

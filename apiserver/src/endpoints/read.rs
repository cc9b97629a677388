//! GET of one object and LIST.

use keelson_storage::{ListOptions as StorageList, ListVersion, ReadVersion};

use super::Call;
use crate::{
    encoding::{self, ListMeta},
    generic::{errors, selectors::Selection},
    http::body::Response,
    request::ListOptions,
    status::{Cause, Qualified, Status},
};

pub fn invalid_version(text: &str) -> Status {
    Status::invalid(
        Qualified { group: "meta.k8s.io", name: "ListOptions" },
        "",
        vec![Cause::invalid("resourceVersion", &text.into(), "must be an unsigned integer")],
    )
}

pub async fn get(call: &Call) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    let text = call.query.get("resourceVersion").unwrap_or_default();
    let version = ReadVersion::parse(text).ok_or_else(|| invalid_version(text))?;
    let served = &call.served;
    let Some(resource) = &served.resource else { return Err(Status::method_not_allowed()) };
    let key = served.key(call.namespace(), &call.path.name);
    let object = resource
        .get(key, version)
        .await
        .map_err(|error| errors::storage(error, served.qualified(), &call.path.name))?;
    encoding::object_response(200, served, &object, representation, columns)
}

pub async fn list(call: &Call) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    let options = ListOptions::from_query(&call.query)?;
    validate(&options, false)?;
    let served = &call.served;
    let Some(resource) = &served.resource else { return Err(Status::method_not_allowed()) };
    let selection =
        Selection::new(served, &call.path.namespace, "", &options.label_selector, &options.field_selector)?;
    let version_match = Some(options.resource_version_match.as_str()).filter(|m| !m.is_empty());
    let version = ListVersion::resolve(&options.resource_version, version_match, options.limit > 0)
        .ok_or_else(|| invalid_version(&options.resource_version))?;
    let list = resource
        .list(StorageList {
            scope: selection.scope,
            filter: selection.filter,
            version,
            limit: usize::try_from(options.limit).unwrap_or(usize::MAX),
            continue_token: Some(options.continue_token).filter(|token| !token.is_empty()),
        })
        .await;
    let list = match list {
        Ok(list) => list,
        Err(keelson_storage::Error::Expired { message, continue_token }) => {
            return Ok(expired(&Status::expired(message), continue_token.as_deref()));
        }
        Err(error) => return Err(errors::storage(error, served.qualified(), "")),
    };
    let meta = ListMeta {
        resource_version: list.resource_version,
        continue_token: list.continue_token,
        remaining: list.remaining,
    };
    encoding::list_response(served, &meta, list.items, representation, columns)
}

/// A 410 that says where the client may go on.
fn expired(status: &Status, continue_token: Option<&str>) -> Response {
    let mut object = status.to_json();
    if let Some(token) = continue_token {
        object["metadata"]["continue"] = token.into();
    }
    crate::http::body::response(status.code, "application/json", object.to_string())
}

/// Refuses combinations that upstream's `ValidateListOptions` refuses.
pub fn validate(options: &ListOptions, watching: bool) -> Result<(), Status> {
    let invalid = |field: &str, message: String| {
        let reason = if message.starts_with("Unsupported value") {
            "FieldValueNotSupported"
        } else {
            "FieldValueForbidden"
        };
        Err(Status::invalid(
            Qualified { group: "meta.k8s.io", name: "ListOptions" },
            "",
            vec![Cause { reason: reason.into(), message, field: field.into() }],
        ))
    };
    let matching = options.resource_version_match.as_str();
    if watching {
        return match (options.send_initial_events, matching) {
            (Some(_), "NotOlderThan") | (None, "") => Ok(()),
            (Some(_), "") => invalid(
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
            ),
            (None, _) => invalid(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                    .into(),
            ),
            (Some(_), other) => invalid(
                "resourceVersionMatch",
                format!("Unsupported value: {other:?}: supported values: \"NotOlderThan\""),
            ),
        };
    }
    if options.send_initial_events.is_some() {
        return invalid("sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for list".into());
    }
    if !options.continue_token.is_empty() && !matches!(options.resource_version.as_str(), "" | "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    match matching {
        "" => Ok(()),
        _ if !options.continue_token.is_empty() => invalid(
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden when continue is provided".into(),
        ),
        "Exact" | "NotOlderThan" if options.resource_version.is_empty() => invalid(
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided".into(),
        ),
        "Exact" if options.resource_version == "0" => invalid(
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"".into(),
        ),
        "Exact" | "NotOlderThan" => Ok(()),
        other => invalid(
            "resourceVersionMatch",
            format!("Unsupported value: {other:?}: supported values: \"\", \"Exact\", \"NotOlderThan\""),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;

    #[test]
    fn impossible_lists_are_refused() {
        let check = |query: &str, watching: bool, ok: bool| {
            let options = ListOptions::from_query(&Query::parse(query)).unwrap();
            assert_eq!(validate(&options, watching).is_ok(), ok, "{query}");
        };
        check("", false, true);
        check("resourceVersion=5&resourceVersionMatch=Exact", false, true);
        check("resourceVersion=0&resourceVersionMatch=Exact", false, false);
        check("resourceVersionMatch=NotOlderThan", false, false);
        check("resourceVersion=5&continue=x", false, false);
        check("resourceVersionMatch=NotOlderThan&sendInitialEvents=true", true, true);
        check("sendInitialEvents=true", true, false);
        check("sendInitialEvents=true", false, false);
        check("resourceVersion=5&resourceVersionMatch=Exact", true, false);
    }
}

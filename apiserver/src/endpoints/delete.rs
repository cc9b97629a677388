//! DELETE of one object and of a collection.

use futures::{StreamExt, TryStreamExt};
use keelson_storage::{ListOptions as StorageList, ListVersion};

use super::Call;
use crate::{
    encoding::{self, ListMeta},
    generic::{
        Write, decode,
        delete::{COLLECTION_PAGE, COLLECTION_WORKERS, Deleted},
        errors,
        selectors::Selection,
    },
    http::body::Response,
    request::{
        DeleteOptions, ListOptions,
        options::{FieldValidation, WriteOptions},
    },
    status::{self, Status},
};

/// Kinds whose deletion answers with the object instead of a Status (upstream's `ReturnDeletedObject`).
const RETURN_DELETED: &[(&str, &str)] = &[
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

fn options(call: &Call) -> Result<(DeleteOptions, WriteOptions), Status> {
    let options = if call.body.trim_ascii().is_empty() {
        DeleteOptions::from_query(&call.query)?
    } else {
        let ty = keelson_schema::types::Schemas::builtin()
            .of("", "v1", "DeleteOptions")
            .ok_or_else(|| Status::internal("no schema of DeleteOptions"))?;
        let named = decode::Named { ty, version: "v1", kind: "DeleteOptions" };
        let decoded = decode::decoded(&call.body, decode::encoding(&call.headers)?, named)?;
        DeleteOptions::from_value(decoded.value)?
    };
    let dry_run = options.validate()?;
    let write = WriteOptions {
        dry_run,
        field_manager: String::new(),
        field_validation: FieldValidation::Ignore,
        force: None,
    };
    Ok((options, write))
}

pub async fn one(call: &Call) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    let (options, write) = options(call)?;
    let served = &call.served;
    let name = call.path.name.as_str();
    let deleted = call.write(&write, "").delete(name, &options).await?;
    let returns_object = RETURN_DELETED.iter().any(|(group, plural)| served.is(group, plural));
    // Upstream says Accepted to the deprecated way of asking only: more would break existing clients.
    let accepted = options.orphan_dependents == Some(false);
    match deleted {
        Deleted::Gone(object) if !returns_object => {
            let status = status::success(served.qualified(), name, object.uid());
            encoding::value_response(200, &status, representation.media)
        }
        Deleted::Gone(object) => encoding::object_response(200, served, &object, representation, columns),
        Deleted::Pending(object) => {
            let code = if accepted { 202 } else { 200 };
            encoding::object_response(code, served, &object, representation, columns)
        }
        Deleted::Imagined { object, gone } => {
            let value = if gone && !returns_object {
                status::success(served.qualified(), name, crate::generic::metadata::text(&object, "uid"))
            } else {
                object
            };
            encoding::value_response(200, &value, representation.media)
        }
    }
}

pub async fn collection(call: &Call) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    let (options, write) = options(call)?;
    let list_options = ListOptions::from_query(&call.query)?;
    let served = &call.served;
    let Some(resource) = &served.resource else { return Err(Status::method_not_allowed()) };
    let selection = Selection::new(
        served,
        &call.path.namespace,
        "",
        &list_options.label_selector,
        &list_options.field_selector,
    )?;
    let mut token = None;
    let mut items = Vec::new();
    let resource_version = loop {
        let page = resource
            .list(StorageList {
                scope: selection.scope.clone(),
                filter: selection.filter.clone(),
                version: ListVersion::Latest,
                limit: COLLECTION_PAGE,
                continue_token: token.take(),
            })
            .await
            .map_err(|error| errors::storage(error, served.qualified(), ""))?;
        let deleted = futures::stream::iter(page.items)
            .map(|object| {
                let (write, options) = (call.write(&write, ""), &options);
                async move {
                    let write = Write { namespace: object.namespace(), ..write };
                    match write.delete(object.name(), options).await {
                        Ok(Deleted::Gone(object) | Deleted::Pending(object)) => Ok(Some(object)),
                        Ok(Deleted::Imagined { .. }) => Ok(Some(object.clone())),
                        // Somebody else was faster.
                        Err(status) if status.code == 404 => Ok(None),
                        Err(status) => Err(status),
                    }
                }
            })
            .buffered(COLLECTION_WORKERS)
            .try_collect::<Vec<_>>()
            .await?;
        items.extend(deleted.into_iter().flatten());
        match page.continue_token {
            Some(more) => token = Some(more),
            None => break page.resource_version,
        }
    };
    let meta = ListMeta { resource_version, continue_token: None, remaining: None };
    encoding::list_response(served, &meta, items, representation, columns)
}

//! `componentstatuses`: asks the scheduler, the controller manager and the store how they are, as upstream where it
//! looks for them: on this host.

use futures::future::join_all;
use keelson_objects::{fields::FieldSelector, labels::Selector};
use serde_json::{Value, json};

use super::Call;
use crate::{
    encoding::{self, Shape, accept, table},
    http::body::Response,
    request::ListOptions,
    server::Server,
    status::Status,
};

#[derive(Clone, Copy)]
enum Component {
    /// The port of its `/healthz`.
    Local(u16),
    Store,
}

const COMPONENTS: [(&str, Component); 3] = [
    ("scheduler", Component::Local(10259)),
    ("controller-manager", Component::Local(10257)),
    ("etcd-0", Component::Store),
];

pub async fn serve(call: &Call) -> Result<Response, Status> {
    call.warnings.add("v1 ComponentStatus is deprecated in v1.19+");
    let name = call.path.name.as_str();
    if call.verb == "get" {
        let found = COMPONENTS.into_iter().find(|(known, _)| *known == name);
        let component = found.ok_or_else(|| Status::not_found(call.served.qualified(), name))?;
        return respond(call, vec![status(&call.server, component).await]);
    }
    let options = ListOptions::from_query(&call.query)?;
    let malformed = |error: String| Status::bad_request(error);
    let labels: Selector = options.label_selector.parse().map_err(|error| malformed(format!("{error}")))?;
    let fields: FieldSelector =
        options.field_selector.parse().map_err(|error| malformed(format!("{error}")))?;
    let selected = COMPONENTS.into_iter().filter(|(name, _)| {
        labels.matches_with(|_| None)
            && fields.matches_with(|field| (field == "metadata.name").then_some(*name))
    });
    respond(call, join_all(selected.map(|component| status(&call.server, component))).await)
}

async fn status(server: &Server, (name, component): (&str, Component)) -> Value {
    let said = match component {
        Component::Local(port) => server.kubelet.healthz(port).await,
        Component::Store => {
            server.storage.ping().await.map(|()| "ok".into()).map_err(|error| error.to_string())
        }
    };
    let (status, message) = match said {
        Ok(message) => ("True", message),
        Err(message) => ("False", message),
    };
    json!({
        "metadata": { "name": name, "creationTimestamp": null },
        "conditions": [{ "type": "Healthy", "status": status, "message": message }],
    })
}

fn respond(call: &Call, mut items: Vec<Value>) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    let value = match representation.shape {
        Shape::PartialMetadata { .. } => return Err(Status::not_acceptable(accept::SPOKEN)),
        Shape::Table { version } => {
            let rows: Vec<String> = items
                .iter()
                .map(|item| {
                    let object = match columns.include {
                        table::Include::None => Value::Null,
                        table::Include::Object => item.clone(),
                        table::Include::Metadata => json!({
                            "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
                            "metadata": item["metadata"],
                        }),
                    };
                    let cells = call.served.kind.row(item, jiff::Timestamp::now());
                    json!({ "cells": cells, "object": object }).to_string()
                })
                .collect();
            let table = table::assemble(&call.served, version, &json!({}), columns, &rows);
            serde_json::from_slice(&table).map_err(Status::internal)?
        }
        Shape::Object if call.verb == "get" => {
            let mut object = json!({ "kind": "ComponentStatus", "apiVersion": "v1" });
            for (field, value) in items.pop().as_mut().and_then(Value::as_object_mut).into_iter().flatten() {
                object[field.as_str()] = value.take();
            }
            object
        }
        Shape::Object => {
            json!({ "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items })
        }
    };
    encoding::value_response(200, &value, representation.media)
}

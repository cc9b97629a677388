//! WATCH: a stream of JSON frames, one event each, for as long as the client and the cache want it.
//!
//! Invariants: events that are ready together go out in one piece; a watch that cannot go on ends with an ERROR
//! event, never silently; shutdown ends every watch.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::FutureExt;
use keelson_storage::{Object, WatchEvent, WatchOptions, WatchStart};
use rand::Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Call, read};
use crate::{
    encoding::{self, Media, Representation, Shape, table::Columns},
    generic::{errors, selectors::Selection},
    http::body::{self, BoxError, Response},
    metrics::LongRunning,
    request::ListOptions,
    served::Served,
    status::{Cause, Qualified, Status},
};

/// Pieces end near this size, so that a long backlog is not built up in memory.
const PIECE: usize = 32 * 1024;

/// Longer than any connection lasts, and no more than clocks can add.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub async fn serve(call: &Call) -> Result<Response, Status> {
    let (representation, columns) = call.representation()?;
    if representation.media != Media::Json {
        return Err(Status::not_acceptable(&["application/json", "application/json;stream=watch"]));
    }
    let options = ListOptions::from_query(&call.query)?;
    read::validate(&options, true)?;
    let served = &call.served;
    let Some(resource) = &served.resource else { return Err(Status::method_not_allowed()) };
    let selection = Selection::new(
        served,
        &call.path.namespace,
        &call.path.name,
        &options.label_selector,
        &options.field_selector,
    )?;
    let start =
        WatchStart::resolve(&options.resource_version, options.send_initial_events).ok_or_else(|| {
            Status::invalid(
                Qualified { group: "meta.k8s.io", name: "ListOptions" },
                "",
                vec![Cause::invalid(
                    "resourceVersion",
                    &options.resource_version.as_str().into(),
                    "must be an unsigned integer",
                )],
            )
        })?;
    let timeout = match options.timeout_seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => Duration::from_secs(seconds).min(LONGEST),
        None => {
            // Spread out, so that the clients of a restarted server do not all come back at once.
            let least = call.server.config.min_request_timeout.max(1);
            Duration::from_secs(rand::rng().random_range(least..=2 * least))
        }
    };
    let watch = resource
        .watch(WatchOptions {
            scope: selection.scope,
            filter: selection.filter,
            start,
            bookmarks: options.allow_watch_bookmarks,
            timeout: Some(timeout),
        })
        .await;
    let watch = match watch {
        Ok(watch) => watch,
        // Too old: a stream with this one event, as clients of a watch expect it.
        Err(keelson_storage::Error::Expired { message, .. }) => {
            let frame = error_frame(&Status::expired(message));
            return Ok(body::response(200, Media::Json.content_type(), frame));
        }
        Err(error) => return Err(errors::storage(error, served.qualified(), "")),
    };
    let feed = Feed {
        watch,
        encoder: Encoder { served: served.clone(), representation, columns },
        cancel: call.server.shutdown.clone(),
        _running: call.server.metrics.long_running(call),
    };
    let pieces = futures::stream::unfold(Some(feed), |feed| async move {
        let mut feed = feed?;
        let (piece, last) = feed.piece().await?;
        Some((Ok::<Bytes, BoxError>(piece), (!last).then_some(feed)))
    });
    let mut response = body::response(200, Media::Json.content_type(), Bytes::new());
    *response.body_mut() = body::stream(pieces);
    Ok(response)
}

struct Feed {
    watch: keelson_storage::Watch,
    encoder: Encoder,
    cancel: CancellationToken,
    _running: LongRunning,
}

impl Feed {
    /// The next piece and whether it is the last one.
    async fn piece(&mut self) -> Option<(Bytes, bool)> {
        let first = tokio::select! {
            event = self.watch.next() => event?,
            () = self.cancel.cancelled() => return None,
        };
        let mut piece = BytesMut::new();
        let mut next = Some(first);
        while let Some(event) = next {
            let expired = matches!(event, WatchEvent::Expired { .. });
            if let Err(status) = self.encoder.frame(&event, &mut piece) {
                piece.put_slice(&error_frame(&status));
                return Some((piece.freeze(), true));
            }
            if expired {
                return Some((piece.freeze(), true));
            }
            next = match piece.len() < PIECE {
                true => self.watch.next().now_or_never().flatten(),
                false => None,
            };
        }
        Some((piece.freeze(), false))
    }
}

struct Encoder {
    served: Served,
    representation: Representation,
    columns: Columns,
}

impl Encoder {
    fn frame(&mut self, event: &WatchEvent, out: &mut BytesMut) -> Result<(), Status> {
        let (name, object) = match event {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            WatchEvent::Bookmark { resource_version, initial_events_end } => {
                let object = self.bookmark(*resource_version, *initial_events_end);
                out.put_slice(format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").as_bytes());
                return Ok(());
            }
            WatchEvent::Expired { message } => {
                out.put_slice(&error_frame(&Status::expired(message.clone())));
                return Ok(());
            }
        };
        self.object(name, object, out)
    }

    fn object(&mut self, name: &str, object: &Arc<Object>, out: &mut BytesMut) -> Result<(), Status> {
        out.reserve(object.body().len() + 128);
        out.put_slice(format!("{{\"type\":\"{name}\",\"object\":").as_bytes());
        if self.representation.shape == Shape::Object && self.served.kind.conversion.is_none() {
            out.put_slice(self.served.prefix.as_bytes());
            out.put_slice(&object.body()[1..]);
        } else {
            let bytes = encoding::shaped(&self.served, object, self.representation.shape, self.columns)?;
            out.put_slice(bytes.trim_ascii_end());
            self.columns.definitions = false;
        }
        out.put_slice(b"}\n");
        Ok(())
    }

    fn bookmark(&self, resource_version: u64, initial_events_end: bool) -> Value {
        let mut metadata =
            json!({ "resourceVersion": resource_version.to_string(), "creationTimestamp": null });
        if initial_events_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let gvk = self.served.kind.resource.gvk();
        match self.representation.shape {
            Shape::Object => {
                json!({ "kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata })
            }
            Shape::PartialMetadata { version } => json!({
                "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
            }),
            Shape::Table { version } => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": { "resourceVersion": resource_version.to_string() },
                "columnDefinitions": null,
                "rows": [{ "cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                }}],
            }),
        }
    }
}

fn error_frame(status: &Status) -> Bytes {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status.to_json()).into()
}

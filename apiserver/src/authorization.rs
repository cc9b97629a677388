//! Asking the authorizers, for the request as a whole (a filter) and for what a request turns out to do (a PUT that
//! creates, a tunnel that is opened by GET).
//!
//! Invariant: no opinion at all is a refusal.

use std::sync::atomic::Ordering;

use keelson_access::{
    authz::{Attributes, Decision},
    status::Status as Refusal,
};

use crate::{server::Server, status::Status};

/// Refuses what no authorizer allows.
pub fn decide(server: &Server, attributes: &Attributes<'_>) -> Result<(), Status> {
    match server.access.authorizer.authorize(attributes) {
        Decision::Allow(_) => Ok(()),
        other => Err(refusal(server, Refusal::denied(attributes, other.reason()).into())),
    }
}

/// What a refused client is told. A server that has just started does not know all roles and accounts yet: it asks to
/// come back instead of telling clients that they may not do what they may.
pub fn refusal(server: &Server, status: Status) -> Status {
    if server.access.fed.load(Ordering::Acquire) {
        status
    } else {
        Status::service_unavailable("the server is starting: it has not read all roles and accounts yet")
            .retry_after(1)
    }
}

//! The few steps of a write that need state beyond the object: addresses and node ports of Services.
//!
//! An allocation is made before the write and released if the write does not happen; a leak (a crash in between) is
//! found by the periodic repair of [`crate::services`].

use serde_json::Value;

use super::Write;
use crate::{services::Allocation, status::Status};

/// What was allocated for a write that is under way.
#[derive(Default)]
#[must_use]
pub struct Allocated<'a>(Option<(&'a crate::services::Services, Vec<Allocation>)>);

impl Allocated<'_> {
    /// The write happened: the allocations are the object's.
    pub fn keep(self) {}

    /// The write did not happen (None: another writer was faster). Of a store that did not answer nobody knows whether
    /// it wrote: then nothing is given back, or two Services could end up with one address; the repair finds what
    /// nobody holds.
    pub async fn release(self, failure: Option<&Status>) {
        let unknown = failure.is_some_and(Status::is_failure_of_the_server);
        if let Some((services, allocations)) = self.0.filter(|_| !unknown) {
            services.release(&allocations).await;
        }
    }
}

pub async fn before_create<'a>(write: &Write<'a>, object: &mut Value) -> Result<Allocated<'a>, Status> {
    if !write.served.is("", "services") {
        return Ok(Allocated::default());
    }
    let services = &write.server.services;
    let made = services.allocate(object, None, write.options.dry_run).await?;
    Ok(Allocated(Some((services, made))))
}

pub async fn before_update<'a>(
    write: &Write<'a>,
    object: &mut Value,
    old: &Value,
) -> Result<Allocated<'a>, Status> {
    if !write.served.is("", "services") || !write.subresource.is_empty() {
        return Ok(Allocated::default());
    }
    let services = &write.server.services;
    let made = services.allocate(object, Some(old), write.options.dry_run).await?;
    Ok(Allocated(Some((services, made))))
}

/// Releases what the old object had and the stored one no longer has.
pub async fn after_update(write: &Write<'_>, old: &Value, new: &Value) {
    if write.served.is("", "services") && write.subresource.is_empty() {
        write.server.services.release_difference(old, Some(new)).await;
    }
}

pub async fn after_delete(write: &Write<'_>, old: &Value) {
    if write.served.is("", "services") {
        write.server.services.release_difference(old, None).await;
    }
}

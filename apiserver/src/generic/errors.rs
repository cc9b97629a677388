//! Errors of the packages below, as the Status that a client gets. See [`crate::status`].

use keelson_access::status::Status as Refusal;
use keelson_schema::{apply::ApplyError, patch::PatchError};
use keelson_storage::{Error, StoreError, SwapError, UpdateError};

use crate::status::{Cause, Details, Qualified, Status};

/// What storage said about the object `name`.
pub fn storage(error: Error, resource: Qualified<'_>, name: &str) -> Status {
    match error {
        Error::NotFound { .. } => Status::not_found(resource, name),
        Error::AlreadyExists { .. } => Status::already_exists(resource, name),
        Error::Precondition { message, .. } => Status::conflict(resource, name, message),
        Error::Contention { .. } => Status::modified(resource, name),
        Error::Expired { message, .. } => Status::expired(message),
        Error::TooLarge { requested, current } => Status::resource_version_too_large(requested, current),
        Error::InvalidContinue(_) => Status::bad_request(error.to_string()),
        Error::InvalidKey(_) => Status::bad_request(error.to_string()),
        Error::NotReady => Status::too_many_requests("storage is (re)initializing", 1),
        Error::Corrupt { .. } | Error::Unencodable(_) => Status::internal(error),
        Error::Store(error) => store(&error),
    }
}

/// What the way to the store did.
pub fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) => Status::service_unavailable(error.to_string()),
        StoreError::Timeout(_) => Status::timeout(error),
        StoreError::Compacted => Status::expired("The resourceVersion for the provided list is too old."),
        StoreError::TooLarge => Status::entity_too_large("the object is larger than the store takes"),
        other => Status::internal(other),
    }
}

pub fn swap(error: SwapError, resource: Qualified<'_>, name: &str) -> Status {
    match error {
        SwapError::Conflict(_) => Status::modified(resource, name),
        SwapError::Store(error) => store(&error),
    }
}

pub fn update(error: UpdateError<Status>, resource: Qualified<'_>, name: &str) -> Status {
    match error {
        UpdateError::Caller(status) => status,
        UpdateError::Storage(error) => storage(error, resource, name),
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let details = refusal.details.map(|details| {
            let causes = details
                .causes
                .into_iter()
                .map(|(reason, message, field)| Cause { reason, message, field })
                .collect();
            Box::new(Details {
                name: details.name,
                group: details.group,
                kind: details.kind,
                uid: String::new(),
                causes,
                retry_after_seconds: details.retry_after_seconds,
            })
        });
        Status { code: refusal.code, reason: refusal.reason, message: refusal.message, details }
    }
}

/// A patch that could not be applied.
pub fn patch(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(message) => Status::bad_request(message),
        PatchError::TooManyOperations { .. } => Status::entity_too_large(error),
        PatchError::NotApplicable(_) => Status::unprocessable(),
        PatchError::Internal(message) => Status::unknown(message),
    }
}

pub fn apply(error: ApplyError) -> Status {
    match error {
        ApplyError::Conflicts(ref conflicts) => {
            let causes = conflicts
                .iter()
                .map(|conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", conflict.manager),
                    field: conflict.field.clone(),
                })
                .collect();
            Status::apply_conflict(error.to_string(), causes)
        }
        ApplyError::BadRequest(message) => Status::bad_request(message),
        ApplyError::Internal(message) => Status::unknown(message),
    }
}

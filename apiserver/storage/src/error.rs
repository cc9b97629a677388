//! What can go wrong at the boundary to the API server: each variant is one answer to a client.

use std::sync::Arc;

use crate::client::StoreError;
use crate::object::Object;

/// Why a read or a write of an object failed.
///
/// The texts are those of upstream where a client gets to see them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No object has this key (404 NotFound).
    #[error("key not found: {key}")]
    NotFound { key: String },
    /// A create found an object under its key (409 AlreadyExists).
    #[error("key exists: {key}")]
    AlreadyExists { key: String, current: Arc<Object> },
    /// A UID or resourceVersion in the preconditions is not the object's (409 Conflict).
    #[error(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {message}"
    )]
    Precondition { key: String, message: String },
    /// Another writer won again and again; the client may retry (409 Conflict).
    #[error("the object has been modified; please apply your changes to the latest version and try again")]
    Contention { key: String },
    /// A watch or list at a revision that is no longer there (410 Expired). `continue_token` is what the
    /// client may go on with, inconsistently; it belongs into the Status' `metadata.continue`.
    #[error("{message}")]
    Expired { message: String, continue_token: Option<String> },
    /// The asked resourceVersion is ahead of the store (504 Timeout, cause ResourceVersionTooLarge,
    /// `retryAfterSeconds` 1).
    #[error("Too large resource version: {requested}, current: {current}")]
    TooLarge { requested: u64, current: u64 },
    /// The continue token was not made by this server (400 BadRequest).
    #[error("continue key is not valid: {0}")]
    InvalidContinue(String),
    /// A name or namespace that cannot be part of a key (400 BadRequest).
    #[error("invalid key: {0:?}")]
    InvalidKey(String),
    /// A stored value cannot be read as an object (500 InternalError).
    #[error("stored object {key} cannot be decoded: {reason}")]
    Corrupt { key: String, reason: String },
    /// The object to write is not a JSON object with metadata (500 InternalError).
    #[error("object cannot be encoded: {0}")]
    Unencodable(String),
    /// The cache of this resource has not been filled yet (429 TooManyRequests, retry after 1 s).
    #[error("storage is (re)initializing")]
    NotReady,
    /// The store did not answer or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why [`Resource::update`](crate::Resource::update) or [`Resource::delete`](crate::Resource::delete)
/// failed: storage, or the caller's own decision.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    #[error(transparent)]
    Storage(#[from] Error),
    /// What the closure returned; nothing was written.
    #[error("refused by the caller")]
    Caller(E),
}

impl<E> From<StoreError> for UpdateError<E> {
    fn from(error: StoreError) -> Self {
        Self::Storage(Error::Store(error))
    }
}

//! The API server's memory: an etcd v3 client, the codec between stored values and objects, and the
//! watch cache that answers reads and watches.
//!
//! One [`Storage`] per process holds the connection to the store and one watch on its prefix, which feeds
//! the caches of all [`Resource`]s. Writes go to the store as compare-and-swap transactions; the cache
//! learns of them only through the watch, so that what a client reads is always what the store holds.
//!
//! This crate knows no kinds, defaults or validation, and no HTTP: it is told prefixes and how to find
//! selectable fields, and hands back finished JSON bodies and typed errors.

mod client;
mod codec;
mod compaction;
mod continuation;
mod error;
mod feed;
mod lease;
mod list;
mod metrics;
mod object;
mod options;
mod raw;
mod resource;
mod storage;
mod subscription;
mod watch;

mod cache;

pub use client::{StoreConfig, StoreError, StoreTls};
pub use error::{Error, UpdateError};
pub use list::List;
pub use metrics::Metrics;
pub use object::{Key, Object, TypeMeta};
pub use options::{
    Filter, ListOptions, ListVersion, Preconditions, ReadVersion, Scope, WatchOptions, WatchStart,
};
pub use raw::{RawEntry, RawStore, SwapError};
pub use resource::{Change, Current, FieldsOf, Resource, ResourceConfig, Updated};
pub use storage::Storage;
pub use subscription::{Notice, Subscription};
pub use watch::{Watch, WatchEvent};

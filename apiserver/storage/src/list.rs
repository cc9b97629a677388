//! Lists from the cache and, for versions the cache has left behind, from the store.

use std::sync::Arc;

use crate::object::Object;

/// One page of a list.
pub struct List {
    /// `metadata.resourceVersion` of the list.
    pub resource_version: u64,
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// `metadata.continue`, if there is more.
    pub continue_token: Option<String>,
    /// `metadata.remainingItemCount`, only without selectors.
    pub remaining: Option<u64>,
}

//! Lists from the cache and, for versions the cache has left behind, from the store.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::etcdserverpb::RangeRequest;
use tokio::time::Instant;

use crate::cache::{Phase, scope_prefix};
use crate::client::{StoreError, prefix_end, revision};
use crate::continuation::Continuation;
use crate::error::Error;
use crate::feed::{FRESH_TIMEOUT, after};
use crate::object::{Key, Object};
use crate::options::{ListOptions, ListVersion, ReadVersion, Scope};
use crate::resource::Resource;

/// Entries per request to the store when the client sets no limit.
const PAGE: usize = 500;

/// The most entries that one request to the store asks for.
const MAX_PAGE: usize = 10_000;

/// 410 for a list at a version that is gone.
const TOO_OLD: &str = "The resourceVersion for the provided list is too old.";

/// 410 for a continue token whose version is gone.
const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. \
    You can start a new list without the continue parameter, or use the continue token in this response to \
    retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - \
    objects that were created, modified, or deleted between the time the first chunk was returned and now may \
    show up in the list.";

/// One page of a list.
#[derive(Debug)]
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

/// One page, decided: which version, from where, how much.
struct Page<'a> {
    options: &'a ListOptions,
    /// The first key, below the scope's prefix.
    start: String,
    limit: usize,
    /// The page goes on a list that pinned its version.
    continued: bool,
}

pub(crate) async fn list(resource: &Resource, options: ListOptions) -> Result<List, Error> {
    match &options.scope {
        Scope::All => {}
        Scope::Namespace(namespace) => {
            // A namespace that could not be part of a key would list something else.
            Key::new(namespace, "x").path(true)?;
        }
        Scope::Object { namespace, name } => {
            let listed = !resource.config().namespaced || !namespace.is_empty();
            if !listed {
                return Err(Error::InvalidKey(name.clone()));
            }
            resource.path(Key::new(namespace, name))?;
        }
    }
    let token = options.continue_token.as_deref().filter(|token| !token.is_empty());
    let (version, start, continued) = match token.map(Continuation::decode).transpose()? {
        None => (options.version, String::new(), false),
        Some(Continuation { version: Some(version), start }) => (ListVersion::Exact(version), start, true),
        Some(Continuation { version: None, start }) => (ListVersion::Latest, start, true),
    };
    let limit = if version == ListVersion::Any { 0 } else { options.limit };
    let page = Page { options: &options, start, limit, continued };
    let fresh = match version {
        ListVersion::Latest => resource.freshen(ReadVersion::Latest).await?,
        ListVersion::Any => resource.freshen(ReadVersion::Any).await?,
        ListVersion::AtLeast(version) => resource.freshen(ReadVersion::AtLeast(version)).await?,
        ListVersion::Exact(version) => {
            let reached = resource.inner.feed.wait_for(version, FRESH_TIMEOUT).await;
            if let Some(list) = page.cached_page(resource, Some(version))? {
                return Ok(list);
            }
            return page.stored_page(resource, Some(version), reached).await;
        }
    };
    if fresh && let Some(list) = page.cached_page(resource, None)? {
        return Ok(list);
    }
    page.stored_page(resource, None, true).await
}

impl Page<'_> {
    /// `None`: the cache is not filled, or not at the pinned version.
    fn cached_page(&self, resource: &Resource, pinned: Option<u64>) -> Result<Option<List>, Error> {
        let scope = &self.options.scope;
        let reached = resource.inner.feed.reached();
        let state = resource.cache.read();
        let now = reached.max(state.signal.version);
        let version = match pinned {
            // Nothing of this resource changed since, so its state then is its state now.
            Some(pinned) if state.signal.version <= pinned && pinned <= now => pinned,
            Some(_) => return Ok(None),
            None => now,
        };
        if state.signal.phase != Phase::Ready {
            return Ok(None);
        }
        state.check(scope)?;
        let selected = |object: &Object| self.options.filter.as_ref().is_none_or(|filter| filter(object));
        let mut range = state.range(scope, &self.start);
        if self.limit == 0 {
            let items = range.filter(|object| selected(object)).cloned().collect();
            return Ok(Some(List {
                resource_version: version,
                items,
                continue_token: None,
                remaining: None,
            }));
        }
        let mut items = Vec::with_capacity(self.limit.min(MAX_PAGE));
        let mut last = None;
        for object in range.by_ref() {
            last = Some(object);
            if selected(object) {
                items.push(object.clone());
                if items.len() == self.limit {
                    break;
                }
            }
        }
        let left = range.count() as u64;
        let continue_token = last.filter(|_| left > 0).map(|last| self.token(&last.key, version));
        let remaining = self.remaining(left);
        Ok(Some(List { resource_version: version, items, continue_token, remaining }))
    }

    /// Reads at `pinned`, or at the store's present revision. `reached`: the feed has seen `pinned`.
    async fn stored_page(
        &self,
        resource: &Resource,
        pinned: Option<u64>,
        reached: bool,
    ) -> Result<List, Error> {
        let scope_prefix = scope_prefix(&self.options.scope);
        let prefix = resource.full(&scope_prefix);
        let exact = matches!(self.options.scope, Scope::Object { .. });
        let mut request = RangeRequest {
            key: format!("{prefix}{}", self.start).into(),
            range_end: if exact { after(prefix.as_bytes()) } else { prefix_end(&prefix) },
            limit: (if self.limit == 0 { PAGE } else { self.limit }) as i64,
            revision: pinned.unwrap_or(0) as i64,
            ..Default::default()
        };
        let selected = |object: &Object| self.options.filter.as_ref().is_none_or(|filter| filter(object));
        let mut items = Vec::new();
        let mut token_from: Option<(Bytes, u64)> = None;
        let version = 'pages: loop {
            let started = Instant::now();
            let result = resource.inner.client.range(request.clone()).await;
            resource.inner.measure("list", &resource.label, started, result.is_err());
            let response = result.map_err(|error| self.refused(error, pinned, reached, resource))?;
            if request.revision == 0 {
                request.revision = revision(response.header.as_ref()) as i64;
            }
            let version = request.revision.max(0) as u64;
            let read = response.kvs.len();
            for (index, entry) in response.kvs.iter().enumerate() {
                let Some(path) = entry_path(&resource.prefix, &entry.key) else { continue };
                let object = resource.decode(path, entry)?.object;
                if selected(&object) {
                    items.push(object);
                    if items.len() == self.limit {
                        let left = (response.count.max(0) as u64).saturating_sub(index as u64 + 1);
                        if index + 1 < read || response.more {
                            token_from = Some((entry.key.clone(), left));
                        }
                        break 'pages version;
                    }
                }
            }
            match response.kvs.last() {
                Some(last) if response.more => request.key = after(&last.key),
                _ => break version,
            }
            // A selector that matches little should not cost a request per few entries.
            request.limit = (request.limit * 2).min(MAX_PAGE as i64).max(request.limit);
        };
        let (continue_token, remaining) = match token_from {
            None => (None, None),
            Some((key, left)) => {
                let path = entry_path(&resource.prefix, &key).unwrap_or_default();
                (Some(self.token(path, version)), self.remaining(left))
            }
        };
        Ok(List { resource_version: version, items, continue_token, remaining })
    }

    /// Goes on behind an object at a version.
    fn token(&self, path: &str, version: u64) -> String {
        let prefix = scope_prefix(&self.options.scope);
        let start = format!("{}\0", path.strip_prefix(&prefix).unwrap_or(path));
        Continuation { version: Some(version), start }.encode()
    }

    fn remaining(&self, left: u64) -> Option<u64> {
        (left > 0 && self.options.filter.is_none()).then_some(left)
    }

    fn refused(&self, error: StoreError, pinned: Option<u64>, reached: bool, resource: &Resource) -> Error {
        match (error, pinned) {
            (StoreError::Compacted, _) if self.continued => Error::Expired {
                message: CONTINUE_TOO_OLD.into(),
                continue_token: Some(Continuation { version: None, start: self.start.clone() }.encode()),
            },
            (StoreError::Compacted, _) => Error::Expired { message: TOO_OLD.into(), continue_token: None },
            (StoreError::FutureRevision, Some(requested)) if !reached => {
                Error::TooLarge { requested, current: resource.inner.feed.reached() }
            }
            (error, _) => error.into(),
        }
    }
}

fn entry_path<'a>(prefix: &str, key: &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(key).ok()?.strip_prefix(prefix)
}

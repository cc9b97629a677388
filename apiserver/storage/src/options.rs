//! The parameters of reads and watches, after the query string has been understood.

use std::sync::Arc;
use std::time::Duration;

use crate::object::Object;

/// Label and field selectors, compiled by the caller. `None` selects everything.
///
/// Called for every candidate object; it must be fast and must not block.
pub type Filter = Option<Arc<dyn Fn(&Object) -> bool + Send + Sync>>;

/// Which part of a resource is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All namespaces, or a cluster-scoped resource.
    All,
    /// One namespace.
    Namespace(String),
    /// One object (a field selector `metadata.name=`); the namespace is empty for cluster-scoped ones.
    Object { namespace: String, name: String },
}

/// How fresh a single read must be (`resourceVersion` of a GET).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVersion {
    /// `""`: nothing that was acknowledged before the read began may be missing.
    Latest,
    /// `"0"`: whatever the cache has.
    Any,
    /// `"N"`: not older than N.
    AtLeast(u64),
}

impl ReadVersion {
    /// Parses the query parameter; `None` if it is not a number.
    pub fn parse(resource_version: &str) -> Option<Self> {
        match resource_version {
            "" => Some(Self::Latest),
            text => match text.parse().ok()? {
                0 => Some(Self::Any),
                version => Some(Self::AtLeast(version)),
            },
        }
    }
}

/// How fresh a list must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListVersion {
    Latest,
    Any,
    AtLeast(u64),
    /// Exactly the state at N, else 410 Expired.
    Exact(u64),
}

impl ListVersion {
    /// Combines `resourceVersion`, `resourceVersionMatch` and `limit` by the table in the API concepts'
    /// reference. Combinations that validation refuses are the caller's to refuse; `None` if the version
    /// is not a number.
    pub fn resolve(resource_version: &str, version_match: Option<&str>, limited: bool) -> Option<Self> {
        Some(match (ReadVersion::parse(resource_version)?, version_match) {
            (ReadVersion::Latest, _) => Self::Latest,
            (ReadVersion::Any, _) => Self::Any,
            (ReadVersion::AtLeast(version), Some("Exact")) => Self::Exact(version),
            // Legacy: without a match, a limit pins the version.
            (ReadVersion::AtLeast(version), None) if limited => Self::Exact(version),
            (ReadVersion::AtLeast(version), _) => Self::AtLeast(version),
        })
    }
}

/// What to list.
#[derive(Clone)]
pub struct ListOptions {
    pub scope: Scope,
    pub filter: Filter,
    /// Ignored when `continue_token` is set: the token holds the version.
    pub version: ListVersion,
    /// 0: no limit. Ignored, as upstream does, for [`ListVersion::Any`].
    pub limit: usize,
    /// The client's token; an empty string counts as none.
    pub continue_token: Option<String>,
}

impl Default for ListOptions {
    fn default() -> Self {
        Self { scope: Scope::All, filter: None, version: ListVersion::Latest, limit: 0, continue_token: None }
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// Events after this version; older than the window is 410 Expired.
    After(u64),
    /// Events from now on, without the present state.
    Now,
    /// The present state (at least as fresh as told) as ADDED events, then what follows.
    /// With `mark_end`, the bookmark annotated `k8s.io/initial-events-end` separates the two.
    State { version: ReadVersion, mark_end: bool },
}

impl WatchStart {
    /// Combines `resourceVersion` and `sendInitialEvents`; `None` if the version is not a number.
    pub fn resolve(resource_version: &str, send_initial_events: Option<bool>) -> Option<Self> {
        let version = ReadVersion::parse(resource_version)?;
        Some(match (version, send_initial_events) {
            (_, Some(true)) => Self::State { version, mark_end: true },
            (ReadVersion::AtLeast(after), _) => Self::After(after),
            (_, Some(false)) => Self::Now,
            (_, None) => Self::State { version, mark_end: false },
        })
    }
}

/// What to watch.
#[derive(Clone)]
pub struct WatchOptions {
    pub scope: Scope,
    pub filter: Filter,
    pub start: WatchStart,
    /// `allowWatchBookmarks`: about one a minute, and one before the stream ends by `timeout`.
    pub bookmarks: bool,
    /// The stream ends by itself after this time.
    pub timeout: Option<Duration>,
}

/// Conditions on the present object that a write requires, from DeleteOptions or the object's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

//! The words for what is served: group, version, kind, resource, subresource. Shared by the registry, discovery and
//! OpenAPI. Data only; which resources exist is the registry's knowledge.

use std::{borrow::Cow, fmt};

/// A name that is either a constant of a built-in kind or comes from a custom resource definition.
pub type Name = Cow<'static, str>;

/// A kind in a group and version. The core group is the empty string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
}

impl GroupVersionKind {
    /// A kind known when the program is compiled.
    pub const fn new(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), version: Cow::Borrowed(version), kind: Cow::Borrowed(kind) }
    }

    /// Reads an object's `apiVersion` and `kind`. An apiVersion with more than one slash has no meaning: `None`.
    pub fn parse(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = split_api_version(api_version)?;
        Some(Self {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            kind: kind.to_owned().into(),
        })
    }

    /// `apps/v1`, or `v1` of the core group.
    pub fn api_version(&self) -> Name {
        api_version(&self.group, &self.version)
    }
}

impl fmt::Display for GroupVersionKind {
    /// Upstream's rendering: `apps/v1, Kind=Deployment`, and `/v1, Kind=Pod` for the core group.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// A resource (plural) in a group and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionResource {
    pub group: Name,
    pub version: Name,
    pub resource: Name,
}

impl GroupVersionResource {
    pub const fn new(group: &'static str, version: &'static str, resource: &'static str) -> Self {
        Self {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            resource: Cow::Borrowed(resource),
        }
    }
}

/// `("apps", "v1")` of `apps/v1`, `("", "v1")` of `v1`; `None` if there is more than one slash.
pub fn split_api_version(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        None => Some(("", api_version)),
        Some((_, rest)) if rest.contains('/') => None,
        Some(parts) => Some(parts),
    }
}

/// The reverse of [`split_api_version`].
pub fn api_version(group: &str, version: &str) -> Name {
    if group.is_empty() { Cow::Owned(version.to_owned()) } else { Cow::Owned(format!("{group}/{version}")) }
}

/// What can be done with a resource. Variants are in the order in which discovery lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    Create,
    Delete,
    DeleteCollection,
    Get,
    List,
    Patch,
    Update,
    Watch,
}

impl Verb {
    pub const ALL: &'static [Verb] = &[
        Verb::Create,
        Verb::Delete,
        Verb::DeleteCollection,
        Verb::Get,
        Verb::List,
        Verb::Patch,
        Verb::Update,
        Verb::Watch,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Patch => "patch",
            Verb::Update => "update",
            Verb::Watch => "watch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A resource as served in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub plural: Name,
    pub singular: Name,
    pub namespaced: bool,
    pub short_names: Cow<'static, [Name]>,
    pub categories: Cow<'static, [Name]>,
    pub verbs: Cow<'static, [Verb]>,
    pub subresources: Cow<'static, [Subresource]>,
}

impl ApiResource {
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind { group: self.group.clone(), version: self.version.clone(), kind: self.kind.clone() }
    }

    pub fn gvr(&self) -> GroupVersionResource {
        GroupVersionResource {
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.plural.clone(),
        }
    }

    /// `apps/v1`, or `v1` of the core group.
    pub fn api_version(&self) -> Name {
        api_version(&self.group, &self.version)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// A subresource: `status` of `deployments`. `kind` is what it speaks (`autoscaling/v1 Scale` of `scale`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: Name,
    pub kind: GroupVersionKind,
    pub verbs: Cow<'static, [Verb]>,
}

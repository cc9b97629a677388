//! Authorization: may this user do this?
//!
//! One trait, one file per mode. `authorize` runs on each request: no blocking, no JSON, no
//! formatting; reasons are made when policy is observed.

pub mod attributes;
pub mod escalation;
pub mod node;
mod node_graph;
pub mod rbac;
pub mod rules;
pub mod union;

use std::borrow::Cow;
use std::sync::Arc;

pub use attributes::{Attributes, Operator, Requirement};

use crate::user::UserInfo;

/// Why a decision was made; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Reason {
    pub const NONE: Self = Self::Static("");

    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl From<Cow<'static, str>> for Reason {
    fn from(text: Cow<'static, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::Static(text),
            Cow::Owned(text) => Self::Shared(text.into()),
        }
    }
}

/// An authorizer's answer. `NoOpinion` of all authorizers is a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(Reason),
    Deny(Reason),
    NoOpinion(Reason),
}

impl Decision {
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::Deny(reason) | Self::NoOpinion(reason) => reason.as_str(),
        }
    }
}

/// What a user may do in a namespace: `SelfSubjectRulesReview.status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub resource: Vec<ResourceRule>,
    pub non_resource: Vec<NonResourceRule>,
    /// True when an authorizer cannot list its rules.
    pub incomplete: bool,
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NonResourceRule {
    pub verbs: Vec<String>,
    pub non_resource_urls: Vec<String>,
}

pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// Adds what `user` may do in `namespace`.
    fn rules(&self, user: &UserInfo, namespace: &str, rules: &mut Rules);
}

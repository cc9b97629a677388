//! What is asked of an authorizer, borrowed from the request.

use crate::user::UserInfo;

/// One requirement of a field or label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// One request in the terms of authorization. Absent parts are empty strings.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    /// API verb (`get`, `list`, `deletecollection`, …) or the lower-case HTTP method of a
    /// non-resource request.
    pub verb: &'a str,
    pub namespace: &'a str,
    pub api_group: &'a str,
    pub api_version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub name: &'a str,
    pub resource_request: bool,
    /// The URL path of a non-resource request.
    pub path: &'a str,
    /// Only of list, watch and deletecollection; empty when there is none or it does not parse.
    pub field_selector: &'a [Requirement],
    pub label_selector: &'a [Requirement],
}

impl<'a> Attributes<'a> {
    /// A non-resource request of nothing yet: the base for struct update syntax.
    #[must_use]
    pub fn of(user: &'a UserInfo) -> Self {
        Self {
            user,
            verb: "",
            namespace: "",
            api_group: "",
            api_version: "",
            resource: "",
            subresource: "",
            name: "",
            resource_request: false,
            path: "",
            field_selector: &[],
            label_selector: &[],
        }
    }

    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }
}

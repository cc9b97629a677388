//! Impersonation: `Impersonate-*` headers, the permissions they need, and the user that results.
//!
//! The server asks the authorizer each of [`Impersonation::checks`] as the real user, and goes on
//! as [`Impersonation::user`] only if all are allowed. The headers must not be forwarded after that.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue};

use super::front_proxy::unescape;
use crate::authz::{Attributes, Authorizer, Decision};
use crate::status::Status;
use crate::user::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SERVICE_ACCOUNTS, UserInfo};

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// What a request asks to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Impersonation {
    name: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonation {
    /// None: the request does not impersonate.
    ///
    /// # Errors
    /// A group, UID or extra without a user; a value that is no UTF-8, because without it the request would go on as
    /// somebody else.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let one = |name: &str| headers.get(name).map(utf8).transpose().map(Option::unwrap_or_default);
        let mut asked = Self {
            name: one("impersonate-user")?,
            uid: one("impersonate-uid")?,
            groups: headers.get_all("impersonate-group").iter().map(utf8).collect::<Result<_, _>>()?,
            extra: BTreeMap::new(),
        };
        for (header, value) in headers {
            if let Some(key) = header.as_str().strip_prefix(EXTRA_PREFIX) {
                asked.extra.entry(unescape(key)).or_default().push(utf8(value)?);
            }
        }
        if asked == Self::default() {
            return Ok(None);
        }
        if asked.name.is_empty() {
            return Err(Status::internal("requested impersonation without impersonating a user"));
        }
        Ok(Some(asked))
    }

    /// Asks `authorizer` everything this needs of `requester`.
    ///
    /// # Errors
    /// The 403 of the first refusal.
    pub fn check(&self, requester: &UserInfo, authorizer: &dyn Authorizer) -> Result<(), Status> {
        let base = Attributes {
            verb: "impersonate",
            api_version: "v1",
            resource_request: true,
            ..Attributes::of(requester)
        };
        let ask = |attributes: Attributes<'_>| match authorizer.authorize(&attributes) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                Err(Status::denied(&attributes, reason.as_str()))
            }
        };
        let service_account = UserInfo::new(self.name.as_str(), &[]);
        match service_account.service_account() {
            Some((namespace, name)) => {
                ask(Attributes { resource: "serviceaccounts", namespace, name, ..base })?;
            }
            None => ask(Attributes { resource: "users", name: &self.name, ..base })?,
        }
        for group in &self.groups {
            ask(Attributes { resource: "groups", name: group, ..base })?;
        }
        let authentication = Attributes { api_group: "authentication.k8s.io", ..base };
        for (key, values) in &self.extra {
            for value in values {
                ask(Attributes { resource: "userextras", subresource: key, name: value, ..authentication })?;
            }
        }
        if !self.uid.is_empty() {
            ask(Attributes { resource: "uids", name: &self.uid, ..authentication })?;
        }
        Ok(())
    }

    /// The user the request continues as.
    #[must_use]
    pub fn user(self) -> UserInfo {
        let mut user = UserInfo { name: self.name, uid: self.uid, groups: self.groups, extra: self.extra };
        if user.groups.is_empty()
            && let Some((namespace, _)) = user.service_account()
        {
            let own = format!("{SERVICE_ACCOUNTS}:{namespace}");
            user.groups = vec![SERVICE_ACCOUNTS.into(), own];
        }
        let marked = user.in_group(ALL_AUTHENTICATED) || user.in_group(ALL_UNAUTHENTICATED);
        if user.name == ANONYMOUS {
            if !marked {
                user.groups.push(ALL_UNAUTHENTICATED.into());
            }
        } else if !marked {
            user.groups.push(ALL_AUTHENTICATED.into());
        }
        user
    }
}

fn utf8(value: &HeaderValue) -> Result<String, Status> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_owned).map_err(|_| Status::bad_request("an impersonation header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Reason, Rules};
    use http::HeaderName;

    /// Allows everything but the resource it names, and remembers nothing.
    struct AllBut(&'static str);

    impl Authorizer for AllBut {
        fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
            if attributes.resource == self.0 || attributes.verb != "impersonate" {
                Decision::NoOpinion(Reason::NONE)
            } else {
                Decision::Allow(Reason::NONE)
            }
        }

        fn rules(&self, _user: &UserInfo, _namespace: &str, _rules: &mut Rules) {}
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn becomes_whom_it_asks_for() {
        let check = |pairs: &[(&'static str, &'static str)], name: &str, groups: &[&str]| {
            let user = Impersonation::from_headers(&headers(pairs)).unwrap().unwrap().user();
            assert_eq!((user.name.as_str(), user.groups), (name, UserInfo::new("", groups).groups));
        };
        check(&[("impersonate-user", "jane")], "jane", &["system:authenticated"]);
        check(
            &[("impersonate-user", "jane"), ("impersonate-group", "a"), ("impersonate-group", "b")],
            "jane",
            &["a", "b", "system:authenticated"],
        );
        check(&[("impersonate-user", "system:anonymous")], "system:anonymous", &["system:unauthenticated"]);
        check(
            &[("impersonate-user", "system:serviceaccount:ns:sa")],
            "system:serviceaccount:ns:sa",
            &["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"],
        );
        assert_eq!(Impersonation::from_headers(&HeaderMap::new()), Ok(None));
        let user = |bytes: &[u8]| {
            let value = HeaderValue::from_bytes(bytes).unwrap();
            Impersonation::from_headers(&HeaderMap::from_iter([(
                HeaderName::from_static("impersonate-user"),
                value,
            )]))
        };
        assert_eq!(user("jürgen".as_bytes()).unwrap().unwrap().name, "jürgen");
        assert!(user(b"j\xfcrgen").is_err());
        assert!(Impersonation::from_headers(&headers(&[("impersonate-group", "a")])).is_err());
    }

    #[test]
    fn needs_a_permission_for_each_part() {
        let requester = UserInfo::new("admin", &[]);
        let check =
            |pairs: &[(&'static str, &'static str)], refused: &'static str, expected: Option<&str>| {
                let asked = Impersonation::from_headers(&headers(pairs)).unwrap().unwrap();
                let result = asked.check(&requester, &AllBut(refused)).map_err(|status| status.message);
                assert_eq!(result.err().as_deref(), expected);
            };
        let all = [
            ("impersonate-user", "jane"),
            ("impersonate-group", "a"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-scope", "s"),
        ];
        check(&all, "", None);
        check(
            &all,
            "users",
            Some(
                r#"users "jane" is forbidden: User "admin" cannot impersonate resource "users" in API group "" at the cluster scope"#,
            ),
        );
        check(
            &all,
            "groups",
            Some(
                r#"groups "a" is forbidden: User "admin" cannot impersonate resource "groups" in API group "" at the cluster scope"#,
            ),
        );
        check(
            &all,
            "uids",
            Some(
                r#"uids.authentication.k8s.io "u" is forbidden: User "admin" cannot impersonate resource "uids" in API group "authentication.k8s.io" at the cluster scope"#,
            ),
        );
        check(
            &all,
            "userextras",
            Some(
                r#"userextras.authentication.k8s.io "s" is forbidden: User "admin" cannot impersonate resource "userextras/scope" in API group "authentication.k8s.io" at the cluster scope"#,
            ),
        );
        check(
            &[("impersonate-user", "system:serviceaccount:ns:sa")],
            "serviceaccounts",
            Some(
                r#"serviceaccounts "sa" is forbidden: User "admin" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "ns""#,
            ),
        );
    }
}

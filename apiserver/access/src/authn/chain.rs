//! The chain of authenticators, in upstream's order: front proxy, client certificate, bearer token,
//! anonymous.
//!
//! Invariants: credentials that were recognized but refused never become anonymous; every user that
//! leaves here carries `system:authenticated` or `system:unauthenticated`.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use serde_json::{Value, json};

use super::front_proxy::FrontProxy;
use super::service_account::ServiceAccountTokens;
use super::x509::ClientCertificates;
use super::{Authenticated, Authenticator, AuthnError, Credentials};
use crate::state::texts;
use crate::status::Status;
use crate::user::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, UserInfo};

/// `--anonymous-auth`, or the `anonymous` part of an AuthenticationConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anonymous {
    Off,
    Everywhere,
    /// Only requests of exactly these paths.
    Paths(Vec<String>),
}

pub struct Authentication {
    pub front_proxy: Option<Arc<FrontProxy>>,
    pub client_certificates: Option<Arc<ClientCertificates>>,
    pub service_accounts: Option<ServiceAccountTokens>,
    pub anonymous: Anonymous,
}

impl Authentication {
    /// Who makes the request.
    ///
    /// # Errors
    /// None of the credentials is accepted: 401; the error is for the log.
    pub async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Authenticated, AuthnError> {
        if let Some(found) = self.recognize(credentials).await? {
            return Ok(mark_authenticated(found));
        }
        let anonymous = match &self.anonymous {
            Anonymous::Off => false,
            Anonymous::Everywhere => true,
            Anonymous::Paths(paths) => paths.iter().any(|path| path == credentials.path),
        };
        if anonymous { Ok(UserInfo::anonymous().into()) } else { Err(AuthnError::NoCredentials) }
    }

    async fn recognize(&self, credentials: &Credentials<'_>) -> Result<Option<Authenticated>, AuthnError> {
        // A later method may still accept what an earlier one refuses, as in upstream's union.
        let mut refused = None;
        if let Some(front_proxy) = &self.front_proxy {
            match front_proxy.authenticate(credentials).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        if let Some(certificates) = &self.client_certificates {
            match certificates.authenticate(credentials).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        if let Some(token) = bearer_token(credentials) {
            let audiences = self.audiences();
            match self.token(token, audiences).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => refused = Some(AuthnError::Token),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    fn audiences(&self) -> &[String] {
        self.service_accounts.as_ref().map_or(&[], ServiceAccountTokens::audiences)
    }

    async fn token(&self, token: &str, audiences: &[String]) -> Result<Option<Authenticated>, AuthnError> {
        match &self.service_accounts {
            Some(tokens) => tokens.authenticate(token, audiences).await,
            None => Ok(None),
        }
    }

    /// Answers a `TokenReview`: the same object with its status.
    ///
    /// # Errors
    /// 400 without a token.
    pub async fn review(&self, review: &Value) -> Result<Value, Status> {
        let spec = &review["spec"];
        let token = spec["token"].as_str().filter(|token| !token.is_empty());
        let token = token
            .ok_or_else(|| Status::bad_request("token is required for TokenReview in authentication"))?;
        let mut audiences: Vec<String> = texts(&spec["audiences"]).map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences = self.audiences().to_vec();
        }
        let status = match self.token(token, &audiences).await {
            Ok(Some(found)) => {
                let found = mark_authenticated(found);
                let mut status = json!({"authenticated": true, "user": found.user.to_json()});
                if !found.audiences.is_empty() {
                    status["audiences"] = json!(found.audiences);
                }
                status
            }
            Ok(None) => json!({"user": {}}),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        };
        let mut answer = review.clone();
        answer["status"] = status;
        Ok(answer)
    }
}

fn bearer_token<'a>(credentials: &Credentials<'a>) -> Option<&'a str> {
    let value = credentials.headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    let token = token.split(' ').next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn mark_authenticated(mut found: Authenticated) -> Authenticated {
    let user = &mut found.user;
    if !user.in_group(ALL_AUTHENTICATED) && !user.in_group(ALL_UNAUTHENTICATED) {
        user.groups.push(ALL_AUTHENTICATED.into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::x509::tests::{ca, client};
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer, Resource};
    use crate::state::State;
    use crate::token::claims::{Bound, Reference};
    use crate::token::tests::{RSA_KEY, tokens};
    use futures::FutureExt;
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn tries_certificate_then_token_then_nobody() {
        let ca = ca();
        let state = Arc::new(State::default());
        let account = json!({"metadata": {"namespace": "ns", "name": "sa", "uid": "s"}});
        state.observe(Resource::ServiceAccounts, Event::Upsert(&account));
        let tokens = Arc::new(tokens(&RSA_KEY, &[&RSA_KEY]));
        let bound = Bound {
            namespace: "ns".into(),
            serviceaccount: Reference { name: "sa".into(), uid: "s".into() },
            ..Bound::default()
        };
        let token = tokens.issue(bound, vec!["api".into()], crate::token::now(), 600).unwrap();
        let mut authentication = Authentication {
            front_proxy: None,
            client_certificates: Some(Arc::new(ClientCertificates::new(ca.1.as_bytes()).unwrap())),
            service_accounts: Some(ServiceAccountTokens::new(tokens, state, Arc::new(AlwaysFresh))),
            anonymous: Anonymous::Everywhere,
        };
        let certificate = [client(&ca, "jane", &["dev"])];
        let check = |authentication: &Authentication,
                     with_certificate: bool,
                     header: Option<&str>,
                     path: &str,
                     expected: Result<(&str, &[&str]), AuthnError>| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
            }
            let chain = if with_certificate { &certificate[..] } else { &[] };
            let credentials = Credentials { peer_certificates: chain, headers: &headers, path };
            let result = authentication.authenticate(&credentials).now_or_never().unwrap();
            let expected = expected.map(|(name, groups)| UserInfo::new(name, groups));
            match (result, expected) {
                (Ok(found), Ok(user)) => {
                    assert_eq!((found.user.name, found.user.groups), (user.name, user.groups));
                }
                (result, expected) => assert_eq!(result.map(|found| found.user), expected),
            }
        };
        let anonymous = ("system:anonymous", &["system:unauthenticated"][..]);
        let bearer = format!("Bearer {token}");
        let account_groups = ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"];
        check(
            &authentication,
            true,
            Some("Bearer nonsense"),
            "/",
            Ok(("jane", &["dev", "system:authenticated"])),
        );
        check(&authentication, false, None, "/", Ok(anonymous));
        check(
            &authentication,
            false,
            Some(&bearer),
            "/",
            Ok(("system:serviceaccount:ns:sa", &account_groups)),
        );
        check(&authentication, false, Some("Bearer nonsense"), "/", Err(AuthnError::Token));
        check(&authentication, false, Some("Basic eA=="), "/", Ok(anonymous));
        authentication.anonymous = Anonymous::Paths(vec!["/healthz".into()]);
        check(&authentication, false, None, "/healthz", Ok(anonymous));
        check(&authentication, false, None, "/api", Err(AuthnError::NoCredentials));
        authentication.anonymous = Anonymous::Off;
        check(&authentication, false, None, "/healthz", Err(AuthnError::NoCredentials));
    }
}

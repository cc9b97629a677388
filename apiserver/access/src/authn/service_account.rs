//! Service account tokens as credentials: who a verified token stands for, and whether the account
//! and the objects it is bound to still exist.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Authenticated, AuthnError};
use crate::observed::{Freshness, Resource};
use crate::state::State;
use crate::token::claims::{Claims, LEEWAY, Reference};
use crate::token::{Tokens, now};
use crate::user::{
    EXTRA_CREDENTIAL_ID, EXTRA_NODE_NAME, EXTRA_NODE_UID, EXTRA_POD_NAME, EXTRA_POD_UID, SERVICE_ACCOUNTS,
    UserInfo, service_account_user,
};

pub struct ServiceAccountTokens {
    tokens: Arc<Tokens>,
    state: Arc<State>,
    freshness: Arc<dyn Freshness>,
}

impl ServiceAccountTokens {
    #[must_use]
    pub fn new(tokens: Arc<Tokens>, state: Arc<State>, freshness: Arc<dyn Freshness>) -> Self {
        Self { tokens, state, freshness }
    }

    #[must_use]
    pub fn audiences(&self) -> &[String] {
        self.tokens.audiences()
    }

    /// Who `token` stands for, at one of `audiences`. None: no token of ours.
    ///
    /// # Errors
    /// Why a token of ours is not accepted.
    pub async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<Authenticated>, AuthnError> {
        let Some(claims) = self.tokens.verify(token).map_err(|_| AuthnError::Token)? else {
            return Ok(None);
        };
        let audiences = shared_audiences(&claims, self.tokens.audiences(), audiences)?;
        claims.check_time(now()).map_err(|reason| AuthnError::Claims(reason.into()))?;
        let user = match self.user(&claims, token, now()) {
            Err(AuthnError::NotObserved { resource, .. }) => {
                // Another API server may have stored it a moment ago.
                self.freshness.catch_up(resource).await;
                self.user(&claims, token, now())?
            }
            result => result?,
        };
        Ok(Some(Authenticated { user, audiences }))
    }

    fn user(&self, claims: &Claims, token: &str, now: i64) -> Result<UserInfo, AuthnError> {
        let Some(bound) = &claims.bound else { return self.legacy_user(claims, token) };
        let namespace = bound.namespace.as_str();
        let subject = service_account_user(namespace, &bound.serviceaccount.name);
        if claims.sub != subject {
            return Err(AuthnError::Claims("sub claim is invalid".into()));
        }
        let deleted = |at: Option<i64>| at.is_some_and(|at| at < now.saturating_sub(LEEWAY));
        let account = &bound.serviceaccount;
        self.check_account(namespace, account, deleted)?;
        let invalidated = || AuthnError::Claims("service account token has been invalidated".into());
        if let Some(reference) = &bound.secret {
            let secret = self
                .state
                .secret(namespace, &reference.name)
                .ok_or_else(|| missing(Resource::Secrets, namespace, &reference.name))?;
            if deleted(secret.deleted_at) {
                return Err(invalidated());
            }
            same_uid("secret", "secret", &secret.uid, &reference.uid)?;
        }
        let mut user = account_user(namespace, account);
        if let Some(reference) = &bound.pod {
            let pod = self
                .state
                .pod(namespace, &reference.name)
                .ok_or_else(|| missing(Resource::Pods, namespace, &reference.name))?;
            if deleted(pod.deleted_at) {
                return Err(invalidated());
            }
            same_uid("pod", "pod", &pod.uid, &reference.uid)?;
            user.extra.insert(EXTRA_POD_NAME.into(), vec![reference.name.clone()]);
            user.extra.insert(EXTRA_POD_UID.into(), vec![reference.uid.clone()]);
        }
        if let Some(reference) = &bound.node {
            if bound.pod.is_none() {
                // Only tokens bound to nothing but a node die with it; a pod's death says enough.
                let uid = self
                    .state
                    .node_uid(&reference.name)
                    .ok_or_else(|| missing(Resource::Nodes, "", &reference.name))?;
                same_uid("node", "node", &uid, &reference.uid)?;
            }
            user.extra.insert(EXTRA_NODE_NAME.into(), vec![reference.name.clone()]);
            if !reference.uid.is_empty() {
                user.extra.insert(EXTRA_NODE_UID.into(), vec![reference.uid.clone()]);
            }
        }
        if let Some(id) = &claims.jti {
            user.extra.insert(EXTRA_CREDENTIAL_ID.into(), vec![format!("JTI={id}")]);
        }
        Ok(user)
    }

    fn legacy_user(&self, claims: &Claims, token: &str) -> Result<UserInfo, AuthnError> {
        let claim = |name: &str, value: &Option<String>| -> Result<String, AuthnError> {
            let value = value.clone().filter(|value| !value.is_empty());
            value.ok_or_else(|| AuthnError::Claims(format!("{name} claim is missing")))
        };
        let namespace = claim("namespace", &claims.legacy_namespace)?;
        let secret_name = claim("secretName", &claims.legacy_secret)?;
        let account = Reference {
            name: claim("serviceAccountName", &claims.legacy_name)?,
            uid: claim("serviceAccountUID", &claims.legacy_uid)?,
        };
        if claims.sub != service_account_user(&namespace, &account.name) {
            return Err(AuthnError::Claims("sub claim is invalid".into()));
        }
        let secret = self
            .state
            .secret(&namespace, &secret_name)
            .ok_or_else(|| missing(Resource::Secrets, &namespace, &secret_name))?;
        if secret.deleted_at.is_some() {
            return Err(AuthnError::Claims("service account token has been invalidated".into()));
        }
        if secret.token != Some(Sha256::digest(token).into()) {
            return Err(AuthnError::Claims("service account token does not match server's copy".into()));
        }
        self.check_account(&namespace, &account, |at| at.is_some())?;
        Ok(account_user(&namespace, &account))
    }

    fn check_account(
        &self,
        namespace: &str,
        reference: &Reference,
        deleted: impl Fn(Option<i64>) -> bool,
    ) -> Result<(), AuthnError> {
        let account = self
            .state
            .service_account(namespace, &reference.name)
            .ok_or_else(|| missing(Resource::ServiceAccounts, namespace, &reference.name))?;
        if deleted(account.deleted_at) {
            return Err(AuthnError::Claims(format!(
                "service account {namespace}/{} has been deleted",
                reference.name
            )));
        }
        same_uid("service account", "", &account.uid, &reference.uid)
    }
}

fn account_user(namespace: &str, account: &Reference) -> UserInfo {
    UserInfo {
        name: service_account_user(namespace, &account.name),
        uid: account.uid.clone(),
        groups: vec![SERVICE_ACCOUNTS.into(), format!("{SERVICE_ACCOUNTS}:{namespace}")],
        ..UserInfo::default()
    }
}

fn missing(resource: Resource, namespace: &str, name: &str) -> AuthnError {
    AuthnError::NotObserved { resource, namespace: namespace.into(), name: name.into() }
}

fn same_uid(what: &str, reference: &str, uid: &str, claimed: &str) -> Result<(), AuthnError> {
    if uid == claimed {
        return Ok(());
    }
    Err(AuthnError::Claims(if reference.is_empty() {
        format!("{what} UID ({uid}) does not match claim ({claimed})")
    } else {
        format!("{what} UID ({uid}) does not match service account {reference} ref claim ({claimed})")
    }))
}

/// The asked-for audiences that the token is for. A token without audiences is for the API server.
fn shared_audiences(claims: &Claims, own: &[String], asked: &[String]) -> Result<Vec<String>, AuthnError> {
    let of_token = if claims.aud.is_empty() { own } else { &claims.aud };
    let shared: Vec<String> = of_token.iter().filter(|audience| asked.contains(audience)).cloned().collect();
    if shared.is_empty() && !asked.is_empty() {
        return Err(AuthnError::Claims(format!(
            "token audiences {:?} is invalid for the target audiences {asked:?}",
            claims.aud
        )));
    }
    Ok(shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{AlwaysFresh, Event, Observer};
    use crate::token::claims::Bound;
    use crate::token::tests::{RSA_KEY, tokens};
    use base64::Engine as _;
    use serde_json::{Value, json};

    fn authenticator() -> ServiceAccountTokens {
        let state = State::default();
        let tokens = tokens(&RSA_KEY, &[&RSA_KEY]);
        for (resource, object) in [
            (Resource::ServiceAccounts, json!({"metadata": {"namespace": "ns", "name": "sa", "uid": "s"}})),
            (Resource::Nodes, json!({"metadata": {"name": "node", "uid": "n"}})),
            (Resource::Secrets, json!({"metadata": {"namespace": "ns", "name": "secret", "uid": "x"}})),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "pod", "uid": "p"},
                "spec": {"serviceAccountName": "sa", "nodeName": "node"}}),
            ),
            (
                Resource::Pods,
                json!({"metadata": {"namespace": "ns", "name": "dying", "uid": "d",
                "deletionTimestamp": "2020-01-01T00:00:00Z"}, "spec": {}}),
            ),
        ] {
            state.observe(resource, Event::Upsert(&object));
        }
        ServiceAccountTokens::new(Arc::new(tokens), Arc::new(state), Arc::new(AlwaysFresh))
    }

    fn reference(name: &str, uid: &str) -> Option<Reference> {
        Some(Reference { name: name.into(), uid: uid.into() })
    }

    fn account() -> Bound {
        Bound { namespace: "ns".into(), serviceaccount: reference("sa", "s").unwrap(), ..Bound::default() }
    }

    fn authenticate(
        authenticator: &ServiceAccountTokens,
        token: &str,
        audiences: &[&str],
    ) -> Result<Option<Authenticated>, AuthnError> {
        let audiences: Vec<String> = audiences.iter().map(|&audience| audience.into()).collect();
        futures::FutureExt::now_or_never(authenticator.authenticate(token, &audiences)).unwrap()
    }

    #[test]
    fn accepts_tokens_while_what_they_are_bound_to_exists() {
        let authenticator = authenticator();
        let check = |bound: Bound, expected: Result<Value, &str>| {
            let token = authenticator.tokens.issue(bound, vec!["api".into()], now(), 600).unwrap();
            match (authenticate(&authenticator, &token, &["api"]), expected) {
                (Ok(Some(authenticated)), Ok(extra)) => {
                    let mut user = authenticated.user;
                    assert!(user.extra.remove(EXTRA_CREDENTIAL_ID).unwrap()[0].starts_with("JTI="));
                    assert_eq!(user.name, "system:serviceaccount:ns:sa");
                    assert_eq!(user.uid, "s");
                    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns"]);
                    assert_eq!(json!(user.extra), extra);
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (result, expected) => panic!("{result:?}, expected {expected:?}"),
            }
        };
        check(account(), Ok(json!({})));
        check(
            Bound { pod: reference("pod", "p"), node: reference("node", "n"), ..account() },
            Ok(json!({EXTRA_POD_NAME: ["pod"], EXTRA_POD_UID: ["p"],
                EXTRA_NODE_NAME: ["node"], EXTRA_NODE_UID: ["n"]})),
        );
        check(Bound { pod: reference("pod", "old"), ..account() }, Err("pod UID (p) does not match"));
        check(Bound { pod: reference("gone", "p"), ..account() }, Err("does not exist"));
        check(Bound { pod: reference("dying", "d"), ..account() }, Err("has been invalidated"));
        check(Bound { secret: reference("secret", "x"), ..account() }, Ok(json!({})));
        check(Bound { secret: reference("secret", "y"), ..account() }, Err("secret UID"));
        check(Bound { node: reference("node", "old"), ..account() }, Err("node UID"));
        check(
            Bound { serviceaccount: reference("sa", "old").unwrap(), ..account() },
            Err("service account UID (s) does not match claim (old)"),
        );
        check(Bound { namespace: "other".into(), ..account() }, Err("does not exist"));
    }

    #[test]
    fn checks_audiences_and_times() {
        let authenticator = authenticator();
        let check = |of_token: &[&str], asked: &[&str], issued: i64, expected: Result<&[&str], &str>| {
            let audiences = of_token.iter().map(|&audience| audience.into()).collect();
            let token = authenticator.tokens.issue(account(), audiences, issued, 600).unwrap();
            match (authenticate(&authenticator, &token, asked), expected) {
                (Ok(Some(authenticated)), Ok(audiences)) => assert_eq!(authenticated.audiences, audiences),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (result, expected) => panic!("{result:?}, expected {expected:?}"),
            }
        };
        check(&["api"], &["api"], now(), Ok(&["api"]));
        check(&["vault", "api"], &["api"], now(), Ok(&["api"]));
        check(&["vault"], &["api"], now(), Err("is invalid for the target audiences"));
        check(&["vault"], &["vault"], now(), Ok(&["vault"]));
        check(&[], &["api"], now(), Ok(&["api"]));
        check(&["api"], &["api"], now() - 10_000, Err("has expired"));
        check(&["api"], &["api"], now() + 10_000, Err("not valid yet"));
    }

    #[test]
    fn accepts_legacy_tokens_only_from_their_secret() {
        let authenticator = authenticator();
        let token = |uid: &str| {
            authenticator.tokens.issue_legacy("ns", &reference("sa", uid).unwrap(), "token").unwrap()
        };
        let store = |token: &str| {
            let data = base64::engine::general_purpose::STANDARD.encode(token);
            let secret = json!({"metadata": {"namespace": "ns", "name": "token"},
                "type": "kubernetes.io/service-account-token", "data": {"token": data}});
            authenticator.state.observe(Resource::Secrets, Event::Upsert(&secret));
        };
        let good = token("s");
        assert!(authenticate(&authenticator, &good, &["api"]).is_err());
        store(&good);
        assert!(authenticate(&authenticator, &good, &["api"]).unwrap().is_some());
        let old = token("old");
        assert!(authenticate(&authenticator, &old, &["api"]).is_err());
        store(&old);
        assert!(authenticate(&authenticator, &old, &["api"]).is_err());
        assert!(authenticate(&authenticator, &good, &["api"]).is_err());
    }
}

//! Whom each controller acts as: the process's own user, or (`--use-service-account-credentials`) the
//! kube-system service account of its name, with tokens from the TokenRequest API that are renewed when four
//! fifths of their life are over. All accounts share one connection, which carries no credential of its own.

use std::sync::Arc;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response, StatusCode};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::{Body, Client};
use tokio::sync::Mutex;
use tokio::time::Instant;

const NAMESPACE: &str = "kube-system";
const LIFE: Duration = Duration::from_secs(3600);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("requesting a token for the service account {NAMESPACE}/{account}")]
    Request { account: &'static str, source: kube::Error },
    #[error("the token for the service account {NAMESPACE}/{account} is missing or malformed")]
    Malformed { account: &'static str },
}

#[derive(Clone)]
pub enum Identities {
    /// Everything is done as the process's user.
    One(Client),
    /// `transport` carries no credential.
    ServiceAccounts { root: Client, transport: Client },
}

impl Identities {
    /// The client of a controller, named as its service account.
    #[must_use]
    pub fn client(&self, account: &'static str) -> Client {
        match self {
            Self::One(client) => client.clone(),
            Self::ServiceAccounts { root, transport } => {
                let tokens = Tokens { account, root: root.clone(), token: Mutex::new(None) };
                let (tokens, transport) = (Arc::new(tokens), transport.clone());
                let service = tower::service_fn(move |request: Request<Body>| {
                    send(tokens.clone(), transport.clone(), request)
                });
                Client::new(service, "default")
            }
        }
    }
}

async fn send(
    tokens: Arc<Tokens>,
    transport: Client,
    mut request: Request<Body>,
) -> Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>> {
    let token = tokens.current().await?;
    request.headers_mut().insert(AUTHORIZATION, token);
    let response = transport.send(request).await?;
    if response.status() == StatusCode::UNAUTHORIZED {
        // The account may have been made anew; whoever asked will ask again.
        *tokens.token.lock().await = None;
    }
    Ok(response)
}

struct Tokens {
    account: &'static str,
    root: Client,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Tokens {
    async fn current(&self) -> Result<HeaderValue, TokenError> {
        // Held while asking: many requests at once need one token.
        let mut known = self.token.lock().await;
        if let Some((token, renew)) = known.as_ref()
            && Instant::now() < *renew
        {
            return Ok(token.clone());
        }
        let answer =
            self.request().await.map_err(|source| TokenError::Request { account: self.account, source })?;
        let status = answer.status.ok_or(TokenError::Malformed { account: self.account })?;
        let (Some(token), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err(TokenError::Malformed { account: self.account });
        };
        let mut token = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| TokenError::Malformed { account: self.account })?;
        token.set_sensitive(true);
        let left = expires.0.duration_since(jiff::Timestamp::now());
        let life = Duration::try_from(left).unwrap_or(Duration::ZERO).min(LIFE);
        *known = Some((token.clone(), Instant::now() + life.mul_f64(0.8)));
        Ok(token)
    }

    async fn request(&self) -> Result<TokenRequest, kube::Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.root.clone(), NAMESPACE);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(Vec::new()),
                expiration_seconds: Some(LIFE.as_secs().try_into().unwrap_or(i64::MAX)),
                bound_object_ref: None,
            }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let ask = || accounts.create_subresource("token", self.account, &params, &request);
        match ask().await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let metadata = ObjectMeta { name: Some(self.account.to_owned()), ..ObjectMeta::default() };
                let account = ServiceAccount { metadata, ..ServiceAccount::default() };
                match accounts.create(&PostParams::default(), &account).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => return Err(error),
                }
                ask().await
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn answer(code: u16, body: &serde_json::Value) -> Result<Response<Body>, std::convert::Infallible> {
        let response = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
        Ok(response.unwrap())
    }

    /// Gives out tokens `t1`, `t2`, …; the account exists from the first attempt to create it on.
    fn root(issued: Arc<AtomicUsize>) -> Client {
        let exists = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let response = if !path.ends_with("/token") {
                exists.store(1, Ordering::SeqCst);
                answer(201, &json!({"metadata": {"name": "worker"}}))
            } else if exists.load(Ordering::SeqCst) == 0 {
                answer(
                    404,
                    &json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}),
                )
            } else {
                assert_eq!(path, "/api/v1/namespaces/kube-system/serviceaccounts/worker/token");
                let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                let expires = keelson_objects::times::plus_seconds(jiff::Timestamp::now(), 3600);
                let status =
                    json!({"token": format!("t{number}"), "expirationTimestamp": expires.to_string()});
                answer(201, &json!({"metadata": {}, "spec": {"audiences": []}, "status": status}))
            };
            async move { response }
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_asked_for_once_and_renewed() {
        let issued = Arc::new(AtomicUsize::new(0));
        // Refuses the first token once it is two.
        let transport = tower::service_fn(|request: Request<Body>| {
            let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
            let refused = request.uri().path().ends_with("/refuse") && token == "Bearer t2";
            async move {
                if refused {
                    let text =
                        json!({"kind": "Status", "status": "Failure", "code": 401, "reason": "Unauthorized"});
                    return answer(401, &text);
                }
                answer(200, &json!({"metadata": {"name": token}}))
            }
        });
        let transport = Client::new(transport, "default");
        let client = Identities::ServiceAccounts { root: root(issued.clone()), transport }.client("worker");
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let token = async |name: &str| maps.get(name).await.ok().and_then(|map| map.metadata.name);
        let both = futures::future::join(token("a"), token("b")).await;
        assert_eq!(both, (Some("Bearer t1".into()), Some("Bearer t1".into())));
        tokio::time::advance(Duration::from_secs(2900)).await;
        assert_eq!(token("a").await.as_deref(), Some("Bearer t2"));
        // A token that is no longer accepted is not used again.
        assert_eq!(token("refuse").await, None);
        assert_eq!(token("a").await.as_deref(), Some("Bearer t3"));
        assert_eq!(issued.load(Ordering::SeqCst), 3);
    }
}

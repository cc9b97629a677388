//! Service account tokens for pods, by TokenRequest, kept until four fifths of their life are over.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;

/// A token is renewed after a day even if it lives longer.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    audience: String,
    expiration: i64,
}

#[derive(Debug, Clone)]
struct Token {
    token: String,
    issued: Timestamp,
    expires: Timestamp,
}

impl Token {
    fn renew_at(&self) -> Timestamp {
        let life = self.expires.duration_since(self.issued);
        let part = SignedDuration::from_secs(life.as_secs() * 4 / 5).min(MAX_AGE);
        self.issued.saturating_add(part).unwrap_or(self.expires)
    }
}

/// Tokens by pod, audience and lifetime.
pub struct Tokens {
    client: Option<Client>,
    cache: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub fn new(client: Option<Client>) -> Self {
        Self { client, cache: Mutex::new(HashMap::new()) }
    }

    /// A token bound to the pod, and when to ask again.
    pub async fn get(
        &self,
        pod: &Pod,
        audience: &str,
        expiration: i64,
    ) -> Result<(String, Timestamp), String> {
        let metadata = &pod.metadata;
        let key =
            Key { uid: metadata.uid.clone().unwrap_or_default(), audience: audience.to_owned(), expiration };
        let now = Timestamp::now();
        let cached = self.cache.lock().get(&key).cloned();
        if let Some(token) = cached.as_ref().filter(|token| token.renew_at() > now) {
            return Ok((token.token.clone(), token.renew_at()));
        }
        match self.request(pod, audience, expiration).await {
            Ok(token) => {
                let answer = (token.token.clone(), token.renew_at());
                self.cache.lock().insert(key, token);
                Ok(answer)
            }
            // An old token that still works is better than none.
            Err(error) => match cached.filter(|token| token.expires > now) {
                Some(token) => {
                    tracing::warn!(pod = ?metadata.name, %error, "renewing a service account token");
                    Ok((token.token, now.saturating_add(SignedDuration::from_secs(10)).unwrap_or(now)))
                }
                None => Err(error),
            },
        }
    }

    /// The pod is gone.
    pub fn release(&self, uid: &str) {
        self.cache.lock().retain(|key, _| key.uid != uid);
    }

    async fn request(&self, pod: &Pod, audience: &str, expiration: i64) -> Result<Token, String> {
        let Some(client) = &self.client else {
            return Err("cannot use TokenManager when kubelet is in standalone mode".to_owned());
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                expiration_seconds: Some(expiration),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let issued = Timestamp::now();
        let answer = api
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .map_err(|error| format!("failed to fetch token: {error}"))?;
        let status = answer.status.ok_or("failed to fetch token: no status in the answer")?;
        let incomplete = || "failed to fetch token: the answer has no token".to_owned();
        let expires = status.expiration_timestamp.ok_or_else(incomplete)?.0;
        Ok(Token { token: status.token.ok_or_else(incomplete)?, issued, expires })
    }
}

//! Who asks (client certificate, bearer token, or nobody) and whether the API server lets them.
//!
//! Answers of the API server are kept as long as the configuration says, so that a stream of scrapes is not a stream
//! of reviews.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use http::{Method, Response, StatusCode, header, request::Parts};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use keelson_component_base::serve::{Authorize, Body, Peer, text};
use kube::{Api, api::PostParams};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::{config::AuthorizationMode, context::Kubelet};

/// Beyond this many kept answers the old ones go.
const CACHE_LIMIT: usize = 4096;

/// Someone who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
}

/// What is asked for: any of these subresources of the node being allowed is enough.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attributes {
    verb: &'static str,
    subresources: Vec<&'static str>,
}

struct Kept<V> {
    value: V,
    until: Instant,
}

struct Cache<K, V>(Mutex<HashMap<K, Kept<V>>>);

impl<K: std::hash::Hash + Eq, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        self.0.lock().get(key).filter(|kept| kept.until > Instant::now()).map(|kept| kept.value.clone())
    }

    fn put(&self, key: K, value: V, keep: Duration) {
        let mut map = self.0.lock();
        if map.len() >= CACHE_LIMIT {
            let now = Instant::now();
            map.retain(|_, kept| kept.until > now);
            if map.len() >= CACHE_LIMIT {
                map.clear();
            }
        }
        map.insert(key, Kept { value, until: Instant::now() + keep });
    }
}

struct Auth {
    kubelet: Arc<Kubelet>,
    /// By the token's digest: tokens themselves are not kept.
    tokens: Cache<[u8; 32], Option<User>>,
    decisions: Cache<(User, Attributes), bool>,
}

/// The check that the server makes of every request.
pub fn hook(kubelet: Arc<Kubelet>) -> Authorize {
    let auth = Arc::new(Auth { kubelet, tokens: Cache::new(), decisions: Cache::new() });
    Arc::new(move |parts: &Parts| {
        let auth = auth.clone();
        async move { auth.check(parts).await }.boxed()
    })
}

impl Auth {
    async fn check(&self, parts: &Parts) -> Result<(), Response<Body>> {
        let Some(user) = self.authenticate(parts).await else {
            return Err(text(StatusCode::UNAUTHORIZED, "Unauthorized"));
        };
        if self.kubelet.config.authorization.mode == AuthorizationMode::AlwaysAllow {
            return Ok(());
        }
        let attributes = attributes(&parts.method, parts.uri.path());
        match self.authorize(&user, &attributes).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let message = format!(
                    "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])",
                    user.name,
                    attributes.verb,
                    attributes.subresources.join(" ")
                );
                Err(text(StatusCode::FORBIDDEN, message))
            }
            Err(error) => {
                let message = format!(
                    "Authorization error (user={}, verb={}, resource=nodes, subresource(s)=[{}])",
                    user.name,
                    attributes.verb,
                    attributes.subresources.join(" ")
                );
                tracing::warn!(error, message);
                Err(text(StatusCode::INTERNAL_SERVER_ERROR, message))
            }
        }
    }

    async fn authenticate(&self, parts: &Parts) -> Option<User> {
        let authentication = &self.kubelet.config.authentication;
        let leaf = parts.extensions.get::<Peer>().and_then(|peer| peer.certificates.first());
        if let Some(user) = leaf.and_then(|leaf| from_certificate(leaf)) {
            return Some(user);
        }
        let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer
            .and_then(|value| value.split_once(' '))
            .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        if let Some((_, token)) = bearer {
            // A token that is wrong is not nobody's.
            return if authentication.webhook.enabled { self.review(token.trim()).await } else { None };
        }
        authentication.anonymous.enabled.then(|| User {
            name: "system:anonymous".to_owned(),
            uid: String::new(),
            groups: vec!["system:unauthenticated".to_owned()],
        })
    }

    async fn review(&self, token: &str) -> Option<User> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key) {
            return known;
        }
        let api: Api<TokenReview> = Api::all(self.kubelet.client.clone()?);
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() },
            ..TokenReview::default()
        };
        let answer = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(%error, "reviewing a token");
                return None;
            }
        };
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        });
        self.tokens.put(key, user.clone(), self.kubelet.config.authentication.webhook.cache_ttl);
        user
    }

    async fn authorize(&self, user: &User, attributes: &Attributes) -> Result<bool, String> {
        let key = (user.clone(), attributes.clone());
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let client = self.kubelet.client.clone().ok_or("no API server to ask")?;
        let api: Api<SubjectAccessReview> = Api::all(client);
        let mut allowed = false;
        for subresource in &attributes.subresources {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(user.name.clone()),
                    uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                    groups: Some(user.groups.clone()),
                    resource_attributes: Some(ResourceAttributes {
                        verb: Some(attributes.verb.to_owned()),
                        version: Some("v1".to_owned()),
                        resource: Some("nodes".to_owned()),
                        subresource: Some((*subresource).to_owned()),
                        name: Some(self.kubelet.node_name.clone()),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer =
                api.create(&PostParams::default(), &review).await.map_err(|error| error.to_string())?;
            allowed = answer.status.is_some_and(|status| status.allowed);
            if allowed {
                break;
            }
        }
        let webhook = &self.kubelet.config.authorization.webhook;
        let keep = if allowed { webhook.cache_authorized_ttl } else { webhook.cache_unauthorized_ttl };
        self.decisions.put(key, allowed, keep);
        Ok(allowed)
    }
}

/// The subject of a verified certificate: its common name is the user, its organizations the groups.
fn from_certificate(der: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organizations =
        subject.iter_organization().filter_map(|value| value.as_str().ok()).map(str::to_owned);
    let groups = organizations.chain(["system:authenticated".to_owned()]).collect();
    (!name.is_empty()).then_some(User { name, uid: String::new(), groups })
}

/// Upstream's mapping of paths to subresources of the node; the finer one is asked first.
fn attributes(method: &Method, path: &str) -> Attributes {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let under = |prefix: &str| path == prefix || path.starts_with(&format!("{prefix}/"));
    let subresources = if under("/stats") {
        vec!["stats"]
    } else if under("/metrics") {
        vec!["metrics"]
    } else if under("/logs") {
        vec!["log"]
    } else if under("/checkpoint") {
        vec!["checkpoint"]
    } else if under("/pods") || under("/runningpods") {
        vec!["pods", "proxy"]
    } else if under("/healthz") {
        vec!["healthz", "proxy"]
    } else if under("/configz") {
        vec!["configz", "proxy"]
    } else {
        vec!["proxy"]
    };
    Attributes { verb, subresources }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_subresources() {
        let check = |method: Method, path: &str, verb: &str, subresources: &[&str]| {
            let got = attributes(&method, path);
            assert_eq!((got.verb, got.subresources.as_slice()), (verb, subresources), "{path}");
        };
        check(Method::GET, "/metrics/resource", "get", &["metrics"]);
        check(Method::GET, "/metricsx", "get", &["proxy"]);
        check(Method::POST, "/exec/a/b/c", "create", &["proxy"]);
        check(Method::GET, "/pods", "get", &["pods", "proxy"]);
        check(Method::GET, "/stats/summary", "get", &["stats"]);
    }

    #[test]
    fn certificates_name_users_and_groups() {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "kubeadm:cluster-admins");
        let certificate = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let user = from_certificate(certificate.der()).unwrap();
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
        assert_eq!(from_certificate(b"nonsense"), None);
    }
}

//! Serving a daemon's own HTTPS endpoints the way upstream's daemons do: whoever asks for metrics is
//! authenticated and authorized by the API server (TokenReview, SubjectAccessReview), or by a client
//! certificate that the cluster's CA signed.
//!
//! Health endpoints stay open (the server asks for no decision on them). A failed review is a refusal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::request::Parts;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use keelson_component_base::serve::{self, Authorize, Peer};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an answer of the API server is gone by (upstream: ten seconds for what is allowed).
const REMEMBER: Duration = Duration::from_secs(10);
const MAX_REMEMBERED: usize = 256;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct User {
    name: String,
    groups: Vec<String>,
}

/// What was asked: a credential, or its absence, and what it wants.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    token: Option<String>,
    certificate_user: Option<User>,
    verb: String,
    path: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allowed,
    Unauthorized,
    Forbidden,
}

/// Decides with the API server behind `client`, whose user needs the rights of `system:auth-delegator`.
#[must_use]
pub fn authorize(client: kube::Client) -> Authorize {
    let remembered: Arc<Mutex<HashMap<Question, (Instant, Answer)>>> = Arc::default();
    Arc::new(move |parts: &Parts| {
        let (client, remembered) = (client.clone(), remembered.clone());
        let question = question(parts);
        Box::pin(async move {
            let known = remembered.lock().get(&question).copied();
            let answer = match known.filter(|(until, _)| *until > Instant::now()) {
                Some((_, answer)) => answer,
                None => {
                    let answer = ask(&client, &question).await.map_err(|error| {
                        tracing::warn!("cannot review a request for {}: {error}", question.path);
                        serve::text(
                            StatusCode::INTERNAL_SERVER_ERROR,
                            "cannot reach the API server for a decision\n",
                        )
                    })?;
                    let mut remembered = remembered.lock();
                    if remembered.len() >= MAX_REMEMBERED {
                        remembered.clear();
                    }
                    remembered.insert(question, (Instant::now() + REMEMBER, answer));
                    answer
                }
            };
            match answer {
                Answer::Allowed => Ok(()),
                Answer::Unauthorized => Err(serve::text(StatusCode::UNAUTHORIZED, "Unauthorized\n")),
                Answer::Forbidden => Err(serve::text(StatusCode::FORBIDDEN, "Forbidden\n")),
            }
        })
    })
}

fn question(parts: &Parts) -> Question {
    let header = parts.headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|h| h.strip_prefix("Bearer ")).map(|t| t.trim().to_owned());
    let certificate = parts.extensions.get::<Peer>().and_then(|peer| peer.certificates.first());
    Question {
        token,
        certificate_user: certificate.and_then(|certificate| user_of(certificate)),
        verb: parts.method.as_str().to_lowercase(),
        path: parts.uri.path().to_owned(),
    }
}

/// Common name and organizations of a certificate that TLS has verified.
fn user_of(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok());
    let groups = organizations.map(str::to_owned).chain(["system:authenticated".to_owned()]).collect();
    Some(User { name, groups })
}

async fn ask(client: &kube::Client, question: &Question) -> Result<Answer, kube::Error> {
    let user = match (&question.certificate_user, &question.token) {
        (Some(user), _) => user.clone(),
        (None, Some(token)) => match review_token(client, token).await? {
            Some(user) => user,
            None => return Ok(Answer::Unauthorized),
        },
        (None, None) => {
            User { name: "system:anonymous".to_owned(), groups: vec!["system:unauthenticated".to_owned()] }
        }
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name),
            groups: Some(user.groups),
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(question.path.clone()),
                verb: Some(question.verb.clone()),
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answered =
        Api::<SubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let allowed = answered.status.is_some_and(|status| status.allowed);
    Ok(if allowed { Answer::Allowed } else { Answer::Forbidden })
}

async fn review_token(client: &kube::Client, token: &str) -> Result<Option<User>, kube::Error> {
    let review = TokenReview {
        spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
        ..TokenReview::default()
    };
    let answered = Api::<TokenReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    let Some(status) = answered.status.filter(|status| status.authenticated == Some(true)) else {
        return Ok(None);
    };
    Ok(status.user.map(|user| User {
        name: user.username.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_the_credential_and_the_wish() {
        let request =
            http::Request::get("/metrics?x=1").header("authorization", "Bearer abc ").body(()).unwrap();
        let asked = question(&request.into_parts().0);
        assert_eq!(asked.token.as_deref(), Some("abc"));
        assert_eq!((asked.verb.as_str(), asked.path.as_str()), ("get", "/metrics"));
        assert!(asked.certificate_user.is_none());
    }
}

//! Authentication: from a request's credentials to a [`UserInfo`].
//!
//! One trait, one file per method. An authenticator says `Ok(None)` when the request carries none
//! of its credentials; only the chain decides what an unrecognized request becomes.

pub mod chain;
pub mod front_proxy;
pub mod impersonation;
pub mod service_account;
pub mod x509;

use futures::future::BoxFuture;
use http::HeaderMap;

use crate::observed::Resource;
use crate::user::UserInfo;

/// What a request offers as proof of identity.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// The peer's chain, leaf first, DER; rustls has verified it against the client CA or the
    /// request header CA (see `x509`), or it is empty.
    pub peer_certificates: &'a [rustls::pki_types::CertificateDer<'a>],
    pub headers: &'a HeaderMap,
    /// The request's path; anonymous access can be limited to some paths.
    pub path: &'a str,
}

/// A recognized requester.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    pub user: UserInfo,
    /// The audiences the credential is good for; empty when it says nothing of audiences.
    pub audiences: Vec<String>,
}

impl From<UserInfo> for Authenticated {
    fn from(user: UserInfo) -> Self {
        Self { user, audiences: Vec::new() }
    }
}

/// Why credentials that were recognized were not accepted. All become 401; the text is for the log
/// and for `TokenReview.status.error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    #[error("client certificate: {0}")]
    Certificate(String),
    #[error("invalid bearer token")]
    Token,
    #[error("no credentials, and anonymous requests are not allowed here")]
    NoCredentials,
    #[error("{0}")]
    Claims(String),
    /// The token names an object that has not been observed (yet): catch up and ask once more.
    #[error("service account token refers to {resource:?} {namespace}/{name}, which does not exist")]
    NotObserved { resource: Resource, namespace: String, name: String },
}

pub trait Authenticator: Send + Sync {
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthnError>>;
}

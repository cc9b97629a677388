//! Front proxies: an authenticating proxy names the user in request headers and proves itself with
//! a certificate of the request header CA.
//!
//! Invariant: headers count only after the proxy's certificate was verified and its common name is
//! among the allowed ones (an empty list allows all).

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use rustls::pki_types::UnixTime;

use super::x509::{Authority, CaError, common_name};
use super::{Authenticated, Authenticator, AuthnError, Credentials};
use crate::user::UserInfo;

/// `--requestheader-*`.
#[derive(Clone, Debug, Default)]
pub struct FrontProxyConfig {
    pub ca_pem: Vec<u8>,
    pub allowed_names: Vec<String>,
    /// `X-Remote-User`, …
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    /// `X-Remote-Extra-`, …
    pub extra_header_prefixes: Vec<String>,
}

pub struct FrontProxy {
    authority: Authority,
    config: FrontProxyConfig,
}

impl FrontProxy {
    /// # Errors
    /// [`CaError`] for a CA file without usable certificates.
    pub fn new(config: FrontProxyConfig) -> Result<Self, CaError> {
        Ok(Self { authority: Authority::new(&config.ca_pem)?, config })
    }

    fn user(&self, credentials: &Credentials<'_>) -> Result<Option<UserInfo>, AuthnError> {
        let Some(leaf) = credentials.peer_certificates.first() else { return Ok(None) };
        let Some(name) = first(credentials.headers, &self.config.username_headers) else { return Ok(None) };
        if self.authority.verify(credentials.peer_certificates, UnixTime::now()).is_err() {
            return Ok(None);
        }
        let (_, proxy) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| AuthnError::Certificate(error.to_string()))?;
        let proxy = common_name(proxy.subject()).unwrap_or_default();
        let allowed = &self.config.allowed_names;
        if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed == proxy) {
            return Err(AuthnError::Certificate(format!(
                "subject with cn={proxy} is not in the allowed list"
            )));
        }
        let mut user = UserInfo::new(name, &[]);
        user.uid = first(credentials.headers, &self.config.uid_headers).unwrap_or_default().into();
        for header in &self.config.group_headers {
            let values = credentials.headers.get_all(header.as_str()).iter();
            user.groups.extend(values.filter_map(utf8).map(str::to_owned));
        }
        for (header, value) in credentials.headers {
            let prefixes = self.config.extra_header_prefixes.iter();
            for prefix in prefixes.map(|prefix| prefix.to_ascii_lowercase()) {
                if let (Some(key), Some(value)) = (header.as_str().strip_prefix(&prefix), utf8(value)) {
                    user.extra.entry(unescape(key)).or_default().push(value.to_owned());
                }
            }
        }
        Ok(Some(user))
    }
}

impl Authenticator for FrontProxy {
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthnError>> {
        let user = self.user(credentials);
        Box::pin(std::future::ready(user.map(|user| user.map(Authenticated::from))))
    }
}

/// Names may be any text, not only ASCII.
fn utf8(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

fn first<'a>(headers: &'a HeaderMap, names: &[String]) -> Option<&'a str> {
    let values = names.iter().filter_map(|name| headers.get(name.as_str()).and_then(utf8));
    values.map(str::trim).find(|value| !value.is_empty())
}

/// Decodes `%xx`, which header names need for characters they may not hold; anything malformed is
/// taken as it stands.
pub(crate) fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let decoded = (byte == b'%')
            .then(|| std::str::from_utf8(tail.get(..2)?).ok())
            .flatten()
            .map(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            Some(None) => return key.to_owned(),
            None if byte == b'%' => return key.to_owned(),
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::x509::tests::{ca, client};
    use super::*;
    use http::HeaderName;

    #[test]
    fn believes_allowed_proxies_only() {
        let (ours, theirs) = (ca(), ca());
        let proxy = FrontProxy::new(FrontProxyConfig {
            ca_pem: ours.1.clone().into_bytes(),
            allowed_names: vec!["front-proxy-client".into()],
            username_headers: vec!["X-Remote-User".into()],
            uid_headers: vec!["X-Remote-Uid".into()],
            group_headers: vec!["X-Remote-Group".into()],
            extra_header_prefixes: vec!["X-Remote-Extra-".into()],
        })
        .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "jané"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-acme.com%2fproject", "p"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let check = |chain: &[rustls::pki_types::CertificateDer<'_>],
                     headers: &HeaderMap,
                     expected: Result<Option<&str>, ()>| {
            let credentials = Credentials { peer_certificates: chain, headers, path: "/" };
            let user = proxy.user(&credentials);
            assert_eq!(
                user.as_ref().map(|user| user.as_ref().map(|user| &*user.name)).map_err(|_| ()),
                expected
            );
            user
        };
        let empty = HeaderMap::new();
        let good = [client(&ours, "front-proxy-client", &[])];
        let user = check(&good, &headers, Ok(Some("jané"))).unwrap().unwrap();
        assert_eq!(user.groups, ["a", "b"]);
        assert_eq!(user.extra["acme.com/project"], ["p"]);
        check(&good, &empty, Ok(None)).unwrap();
        check(&[], &headers, Ok(None)).unwrap();
        check(&[client(&theirs, "front-proxy-client", &[])], &headers, Ok(None)).unwrap();
        assert!(check(&[client(&ours, "someone", &[])], &headers, Err(())).is_err());
    }

    #[test]
    fn unescapes_keys() {
        for (key, expected) in
            [("a", "a"), ("a%2fb", "a/b"), ("a%2", "a%2"), ("a%", "a%"), ("a%zz", "a%zz"), ("%ff", "%ff")]
        {
            assert_eq!(unescape(key), expected);
        }
    }
}

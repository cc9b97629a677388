//! Client certificates: common name → user, organizations → groups.
//!
//! The chain is verified here against the client CA although TLS has done so before: one listener
//! accepts certificates of several authorities (clients, front proxies), and only this check tells
//! whose it is. Results are kept for a minute by the leaf's hash, so that a connection's requests
//! share one verification and an expired certificate does not outlive it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use x509_parser::x509::X509Name;

use super::{Authenticated, Authenticator, AuthnError, Credentials};
use crate::user::{EXTRA_CREDENTIAL_ID, UserInfo};

/// The subject attribute that carries a user's UID.
const UID_OID: &str = "1.3.6.1.4.1.57683.2";
const REMEMBER_SECONDS: u64 = 60;
const REMEMBER_AT_MOST: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("read certificates: {0}")]
    Pem(String),
    #[error("no certificate in CA file")]
    Empty,
    #[error("verifier: {0}")]
    Verifier(String),
}

/// Verifies client certificates against one bundle of authorities.
pub struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Authority {
    /// # Errors
    /// [`CaError`] for a file without usable certificates.
    pub fn new(ca_pem: &[u8]) -> Result<Self, CaError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            let certificate = certificate.map_err(|error| CaError::Pem(format!("{error:?}")))?;
            roots.add(certificate).map_err(|error| CaError::Pem(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(CaError::Empty);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| CaError::Verifier(error.to_string()))?;
        Ok(Self { verifier })
    }

    /// Whether the chain (leaf first) ends here and is valid at `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), String> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Err("no certificate".into()) };
        self.verifier
            .verify_client_cert(leaf, intermediates, now)
            .map(|_| ())
            .map_err(|error| error.to_string())
    }
}

/// Whom a certificate stands for, and until when (Unix seconds) that is taken for granted.
struct Remembered {
    until: u64,
    user: Option<UserInfo>,
}

/// `--client-ca-file`.
pub struct ClientCertificates {
    authority: Authority,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
}

impl ClientCertificates {
    /// # Errors
    /// [`CaError`] for a file without usable certificates.
    pub fn new(ca_pem: &[u8]) -> Result<Self, CaError> {
        Ok(Self { authority: Authority::new(ca_pem)?, remembered: Mutex::default() })
    }

    /// The user a chain stands for; None when it is another authority's or names nobody.
    fn user(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Option<UserInfo>, AuthnError> {
        let Some(leaf) = chain.first() else { return Ok(None) };
        let hash: [u8; 32] = Sha256::digest(leaf).into();
        if let Some(known) = self.remembered.lock().get(&hash)
            && now.as_secs() < known.until
        {
            return Ok(known.user.clone());
        }
        let user = match self.authority.verify(chain, now) {
            Ok(()) => user_of(leaf)?,
            Err(reason) => {
                tracing::debug!(reason, "client certificate is not of the client CA");
                None
            }
        };
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBER_AT_MOST {
            remembered.clear();
        }
        let until = now.as_secs().saturating_add(REMEMBER_SECONDS);
        remembered.insert(hash, Remembered { until, user: user.clone() });
        Ok(user)
    }
}

impl Authenticator for ClientCertificates {
    fn authenticate<'a>(
        &'a self,
        credentials: &'a Credentials<'a>,
    ) -> BoxFuture<'a, Result<Option<Authenticated>, AuthnError>> {
        let user = self.user(credentials.peer_certificates, UnixTime::now());
        Box::pin(std::future::ready(user.map(|user| user.map(Authenticated::from))))
    }
}

/// Name, groups, UID and credential id from a DER certificate; None without a common name.
///
/// # Errors
/// [`AuthnError::Certificate`] when it does not parse.
pub fn user_of(certificate: &[u8]) -> Result<Option<UserInfo>, AuthnError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| AuthnError::Certificate(error.to_string()))?;
    let subject = parsed.subject();
    let Some(name) = common_name(subject) else { return Ok(None) };
    let mut user = UserInfo::new(name, &[]);
    user.groups =
        subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    let uid = subject.iter_attributes().find(|attribute| attribute.attr_type().to_id_string() == UID_OID);
    if let Some(uid) = uid.and_then(|attribute| attribute.as_str().ok()) {
        user.uid = uid.to_owned();
    }
    let mut id = String::from("X509SHA256=");
    for byte in Sha256::digest(certificate) {
        use std::fmt::Write as _;
        let _infallible = write!(id, "{byte:02x}");
    }
    user.extra.insert(EXTRA_CREDENTIAL_ID.into(), vec![id]);
    Ok(Some(user))
}

/// The subject's (last) common name, unless empty.
pub(crate) fn common_name<'a>(subject: &'a X509Name<'_>) -> Option<&'a str> {
    subject.iter_common_name().last()?.as_str().ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    pub(crate) struct Ca(Issuer<'static, KeyPair>, pub(crate) String);

    pub(crate) fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca(Issuer::new(params, key), pem)
    }

    pub(crate) fn client(ca: &Ca, name: &str, groups: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        if !name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, name);
        } else {
            params.distinguished_name = rcgen::DistinguishedName::new();
        }
        // rcgen holds one value per type, so further organizations come as custom attributes.
        if let Some(group) = groups.first() {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), &ca.0).unwrap().der().clone()
    }

    #[test]
    fn maps_subjects_to_users() {
        let (ours, theirs) = (ca(), ca());
        let authenticator = ClientCertificates::new(ours.1.as_bytes()).unwrap();
        let check = |chain: &[CertificateDer<'_>], expected: Option<(&str, &[&str])>| {
            for _remembered in 0..2 {
                let user = authenticator.user(chain, UnixTime::now()).unwrap();
                let expected = expected.map(|(name, groups)| UserInfo::new(name, groups));
                assert_eq!(user.as_ref().map(|user| &user.name), expected.as_ref().map(|user| &user.name));
                assert_eq!(user.map(|user| user.groups), expected.map(|user| user.groups));
            }
        };
        check(&[], None);
        check(
            &[client(&ours, "system:node:a", &["system:nodes"])],
            Some(("system:node:a", &["system:nodes"])),
        );
        check(&[client(&ours, "x", &[])], Some(("x", &[])));
        check(&[client(&theirs, "x", &["system:masters"])], None);
    }

    #[test]
    fn refuses_an_expired_certificate_after_remembering_it() {
        let ca = ca();
        let authenticator = ClientCertificates::new(ca.1.as_bytes()).unwrap();
        let chain = [client(&ca, "x", &[])];
        assert!(authenticator.user(&chain, UnixTime::now()).unwrap().is_some());
        let far = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1 << 40));
        assert_eq!(authenticator.user(&chain, far).unwrap(), None);
    }

    #[test]
    fn refuses_a_bundle_without_certificates() {
        assert!(matches!(Authority::new(b""), Err(CaError::Empty)));
    }
}

//! Service account tokens: issuing, verifying, and the OpenID documents about them.
//!
//! Knows keys, issuers and audiences; whether the account and the bound objects still exist is
//! `authn::service_account`'s question. A verified signature is remembered by the token's hash, so
//! that a busy client costs one verification, not one per request.

pub mod claims;
pub mod keys;
pub mod request;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Header, Validation};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use claims::{Bound, Claims, LEGACY_ISSUER};
use keys::{SigningKey, VerificationKey};

/// Where the API server publishes its verification keys.
pub const JWKS_PATH: &str = "/openid/v1/jwks";
pub const OPENID_CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";

/// Of each of the two generations of verified tokens.
const CACHE_GENERATION: usize = 1024;

/// `--service-account-*` and `--api-audiences`.
#[derive(Debug, Default)]
pub struct TokenConfig {
    /// The first one issues; all are accepted.
    pub issuers: Vec<String>,
    /// Empty: the issuers.
    pub audiences: Vec<String>,
    pub signing_key: Option<SigningKey>,
    pub verification_keys: Vec<VerificationKey>,
    /// `--service-account-max-token-expiration`, seconds.
    pub max_expiration: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("no service account signing key is configured")]
    NoSigningKey,
    #[error("no service account issuer is configured")]
    NoIssuer,
    #[error("sign token")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

pub struct Tokens {
    config: TokenConfig,
    verified: Mutex<Verified>,
}

/// Two generations: when the young one is full it becomes the old one, and what nobody used since
/// is forgotten.
#[derive(Default)]
struct Verified {
    young: HashMap<[u8; 32], Arc<Claims>>,
    old: HashMap<[u8; 32], Arc<Claims>>,
}

impl Verified {
    fn get(&mut self, hash: &[u8; 32]) -> Option<Arc<Claims>> {
        if let Some(claims) = self.young.get(hash) {
            return Some(claims.clone());
        }
        let claims = self.old.remove(hash)?;
        self.insert(*hash, claims.clone());
        Some(claims)
    }

    fn insert(&mut self, hash: [u8; 32], claims: Arc<Claims>) {
        if self.young.len() >= CACHE_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, claims);
    }
}

impl Tokens {
    #[must_use]
    pub fn new(mut config: TokenConfig) -> Self {
        if config.audiences.is_empty() {
            config.audiences.clone_from(&config.issuers);
        }
        Self { config, verified: Mutex::default() }
    }

    /// The audiences of this API server.
    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.config.audiences
    }

    pub(crate) fn max_expiration(&self) -> Option<i64> {
        self.config.max_expiration
    }

    /// Signs a bound token that is valid from `now` for `seconds`.
    ///
    /// # Errors
    /// [`TokenError`] without a signing key or issuer.
    pub fn issue(
        &self,
        bound: Bound,
        audiences: Vec<String>,
        now: i64,
        seconds: i64,
    ) -> Result<String, TokenError> {
        let issuer = self.config.issuers.first().ok_or(TokenError::NoIssuer)?;
        self.sign(&Claims {
            aud: audiences,
            exp: Some(now.saturating_add(seconds)),
            iat: Some(now),
            nbf: Some(now),
            iss: issuer.clone(),
            jti: Some(uuid::Uuid::new_v4().to_string()),
            sub: crate::user::service_account_user(&bound.namespace, &bound.serviceaccount.name),
            bound: Some(bound),
            ..Claims::default()
        })
    }

    /// Signs a token for a secret of type `kubernetes.io/service-account-token`; it never expires.
    ///
    /// # Errors
    /// [`TokenError`] without a signing key.
    pub fn issue_legacy(
        &self,
        namespace: &str,
        account: &claims::Reference,
        secret: &str,
    ) -> Result<String, TokenError> {
        self.sign(&Claims {
            iss: LEGACY_ISSUER.into(),
            sub: crate::user::service_account_user(namespace, &account.name),
            legacy_namespace: Some(namespace.into()),
            legacy_secret: Some(secret.into()),
            legacy_name: Some(account.name.clone()),
            legacy_uid: Some(account.uid.clone()),
            ..Claims::default()
        })
    }

    fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let key = self.config.signing_key.as_ref().ok_or(TokenError::NoSigningKey)?;
        let mut header = Header::new(key.algorithm);
        header.typ = None;
        header.kid = Some(key.id.clone());
        jsonwebtoken::encode(&header, claims, &key.encoding).map_err(TokenError::Sign)
    }

    /// None: not one of our tokens (other issuer, or no JWT at all).
    ///
    /// # Errors
    /// Unit: ours by its issuer, but no key of ours verifies it.
    pub fn verify(&self, token: &str) -> Result<Option<Arc<Claims>>, Unverified> {
        let Some(claims) = unverified_claims(token) else { return Ok(None) };
        if claims.iss != LEGACY_ISSUER && !self.config.issuers.contains(&claims.iss) {
            return Ok(None);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.verified.lock().get(&hash) {
            return Ok(Some(claims));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Unverified)?;
        let keys = &self.config.verification_keys;
        let named = |key: &&VerificationKey| Some(key.id.as_str()) == header.kid.as_deref();
        // A key id that is not ours may stem from an older way of naming keys: then try all.
        let any_named = keys.iter().any(|key| named(&key));
        for key in keys.iter().filter(|key| !any_named || named(key)) {
            if key.algorithm != header.alg {
                continue;
            }
            // Times are checked on each use, with a message for each case.
            let mut validation = Validation::new(key.algorithm);
            validation.validate_exp = false;
            validation.validate_nbf = false;
            validation.validate_aud = false;
            validation.required_spec_claims.clear();
            if let Ok(token) = jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation) {
                let claims = Arc::new(token.claims);
                self.verified.lock().insert(hash, claims.clone());
                return Ok(Some(claims));
            }
        }
        Err(Unverified)
    }

    /// The document at [`OPENID_CONFIGURATION_PATH`]; `jwks_uri` is `--service-account-jwks-uri` or
    /// [`JWKS_PATH`] on the server's external address. None: the issuer is no https URL, and nothing
    /// is published.
    #[must_use]
    pub fn openid_configuration(&self, jwks_uri: &str) -> Option<Value> {
        let issuer = self.config.issuers.first().filter(|issuer| issuer.starts_with("https://"))?;
        let mut algorithms: Vec<&str> =
            self.config.verification_keys.iter().map(VerificationKey::algorithm_name).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        Some(json!({
            "issuer": issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        }))
    }

    /// The JSON Web Key Set at [`JWKS_PATH`].
    #[must_use]
    pub fn jwks(&self) -> Value {
        json!({"keys": self.config.verification_keys.iter().map(VerificationKey::jwk).collect::<Vec<_>>()})
    }
}

/// No key verifies the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid bearer token")]
pub struct Unverified;

fn unverified_claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_header, payload, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::claims::Reference;
    use super::*;

    use aws_lc_rs::encoding::{AsDer, EcPrivateKeyRfc5915Der, Pkcs8V1Der};
    use base64::engine::general_purpose::STANDARD;
    use std::sync::LazyLock;

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    static RSA_PKCS8: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        der.as_ref().to_vec()
    });
    pub(crate) static RSA_KEY: LazyLock<String> = LazyLock::new(|| pem("PRIVATE KEY", &RSA_PKCS8));
    /// A PKCS #8 RSA key of 2048 bits wraps the PKCS #1 key in 26 bytes.
    static RSA_PKCS1_KEY: LazyLock<String> = LazyLock::new(|| pem("RSA PRIVATE KEY", &RSA_PKCS8[26..]));
    static EC_KEY: LazyLock<String> = LazyLock::new(|| {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der: EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
        pem("EC PRIVATE KEY", der.as_ref())
    });

    pub(crate) fn tokens(signing: &str, verification: &[&str]) -> Tokens {
        Tokens::new(TokenConfig {
            issuers: vec!["https://kubernetes.default.svc".into(), "old".into()],
            audiences: vec!["api".into()],
            signing_key: Some(SigningKey::parse(signing.as_bytes()).unwrap()),
            verification_keys: verification
                .iter()
                .flat_map(|pem| VerificationKey::parse_all(pem.as_bytes()).unwrap())
                .collect(),
            max_expiration: None,
        })
    }

    fn bound() -> Bound {
        Bound {
            namespace: "ns".into(),
            serviceaccount: Reference { name: "sa".into(), uid: "u".into() },
            ..Bound::default()
        }
    }

    #[test]
    fn what_one_key_signs_any_configured_key_set_with_it_verifies() {
        for key in [&**RSA_KEY, &**RSA_PKCS1_KEY, &**EC_KEY] {
            let token = tokens(key, &[]).issue(bound(), vec!["api".into()], 1000, 600).unwrap();
            let check = |verification: &[&str], expected: bool| {
                let tokens = tokens(key, verification);
                for _cached in 0..2 {
                    assert_eq!(tokens.verify(&token).is_ok(), expected);
                }
            };
            check(&[&RSA_KEY, &EC_KEY], true);
            check(&[key], true);
            check(&[], false);
        }
        let token = tokens(&RSA_KEY, &[]).issue(bound(), vec![], 0, 1).unwrap();
        assert_eq!(tokens(&RSA_KEY, &[&EC_KEY]).verify(&token), Err(Unverified));
    }

    #[test]
    fn a_changed_token_is_refused_and_a_foreign_one_is_nobodys() {
        let tokens = tokens(&RSA_KEY, &[&RSA_KEY]);
        let token = tokens.issue(bound(), vec!["api".into()], 1000, 600).unwrap();
        let claims = tokens.verify(&token).unwrap().unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp), ("system:serviceaccount:ns:sa", Some(1600)));
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"iss":"old","sub":"system:serviceaccount:ns:root"}"#);
        parts[1] = &forged;
        assert_eq!(tokens.verify(&parts.join(".")), Err(Unverified));
        let foreign = URL_SAFE_NO_PAD.encode(r#"{"iss":"https://example.org","sub":"x"}"#);
        parts[1] = &foreign;
        assert_eq!(tokens.verify(&parts.join(".")), Ok(None));
        assert_eq!(tokens.verify("opaque"), Ok(None));
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let payload = URL_SAFE_NO_PAD.encode(r#"{"iss":"old","sub":"system:serviceaccount:ns:sa"}"#);
        let tokens = tokens(&RSA_KEY, &[&RSA_KEY]);
        assert_eq!(tokens.verify(&format!("{header}.{payload}.")), Err(Unverified));
    }

    #[test]
    fn publishes_its_keys() {
        let tokens = tokens(&RSA_KEY, &[&RSA_KEY, &EC_KEY]);
        let configuration = tokens.openid_configuration("https://host/openid/v1/jwks").unwrap();
        assert_eq!(configuration["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
        let keys = tokens.jwks();
        assert_eq!(keys["keys"][0]["kty"], "RSA");
        assert_eq!(keys["keys"][0]["e"], "AQAB");
        assert_eq!(keys["keys"][0]["kid"].as_str().map(str::len), Some(43));
        assert_eq!(keys["keys"][1]["crv"], "P-256");
    }
}

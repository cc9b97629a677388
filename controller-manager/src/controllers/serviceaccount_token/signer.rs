//! Signs the tokens that are kept in secrets: RS256 with RSA keys, ES256 and ES384 with P-256 and P-384.
//!
//! A token of this kind has no end; it is good for as long as its secret and its account exist.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The issuer of these tokens, whatever that of bound tokens is.
const ISSUER: &str = "kubernetes/serviceaccount";

#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the service account key file is no PEM file")]
    Pem,
    #[error("the service account key file holds no RSA, P-256 or P-384 private key")]
    NoKey,
    #[error("signing a token")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Whose token it is, and where it is kept.
pub struct Subject<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub secret: &'a str,
}

pub struct Signer {
    header: Header,
    key: EncodingKey,
}

impl Signer {
    /// # Errors
    /// The file has no key that can be used.
    pub fn parse(pem: &[u8]) -> Result<Self, SignerError> {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|_| SignerError::Pem)?;
            let signer = match kind {
                SectionKind::RsaPrivateKey => RsaKeyPair::from_der(&der)
                    .ok()
                    .and_then(|pair| Self::rsa(&pair, EncodingKey::from_rsa_der(&der))),
                SectionKind::PrivateKey => match RsaKeyPair::from_pkcs8(&der) {
                    Ok(pair) => {
                        let text = STANDARD.encode(&der);
                        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
                        Self::rsa(&pair, EncodingKey::from_rsa_pem(pem.as_bytes())?)
                    }
                    Err(_) => Self::elliptic(&der),
                },
                SectionKind::EcPrivateKey => Self::elliptic(&der),
                _ => None,
            };
            if let Some(signer) = signer {
                return Ok(signer);
            }
        }
        Err(SignerError::NoKey)
    }

    /// The key is named by the hash of its public half, as upstream names it.
    fn new(algorithm: Algorithm, public: &PublicKeyX509Der<'_>, key: EncodingKey) -> Self {
        let mut header = Header::new(algorithm);
        header.typ = None;
        header.kid = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(public.as_ref())));
        Self { header, key }
    }

    fn rsa(pair: &RsaKeyPair, key: EncodingKey) -> Option<Self> {
        Some(Self::new(Algorithm::RS256, &pair.public_key().as_der().ok()?, key))
    }

    fn elliptic(der: &[u8]) -> Option<Self> {
        let curves: [(&'static EcdsaSigningAlgorithm, Algorithm); 2] = [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::ES256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::ES384),
        ];
        curves.into_iter().find_map(|(curve, algorithm)| {
            let pair = EcdsaKeyPair::from_private_key_der(curve, der).ok()?;
            let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().ok()?.as_ref());
            Some(Self::new(algorithm, &pair.public_key().as_der().ok()?, key))
        })
    }

    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, subject: &Subject<'_>) -> Result<String, SignerError> {
        let claims = json!({
            "iss": ISSUER,
            "kubernetes.io/serviceaccount/namespace": subject.namespace,
            "kubernetes.io/serviceaccount/secret.name": subject.secret,
            "kubernetes.io/serviceaccount/service-account.name": subject.account,
            "kubernetes.io/serviceaccount/service-account.uid": subject.account_uid,
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.account),
        });
        Ok(jsonwebtoken::encode(&self.header, &claims, &self.key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};

    #[test]
    fn tokens_verify_with_the_public_key() {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let signer = Signer::parse(pair.serialize_pem().as_bytes()).unwrap();
        let subject = Subject { namespace: "ns", account: "sa", account_uid: "u", secret: "s" };
        let token = signer.sign(&subject).unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        let key = DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes()).unwrap();
        let decoded = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap();
        assert_eq!(decoded.claims["sub"], "system:serviceaccount:ns:sa");
        assert_eq!(decoded.claims["kubernetes.io/serviceaccount/secret.name"], "s");
        assert_eq!(decoded.header.kid.unwrap().len(), 43);
    }

    #[test]
    fn files_without_a_key() {
        assert!(matches!(Signer::parse(b"nothing"), Err(SignerError::NoKey)));
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(Signer::parse(pair.serialize_pem().as_bytes()), Err(SignerError::NoKey)));
    }
}

//! Keys that sign and verify service account tokens.
//!
//! A key is known by its id, the unpadded base64url SHA-256 of its public key in PKIX form, as
//! upstream computes it. RSA signs RS256; P-256 signs ES256 and P-384 ES384. PEM files may hold
//! public keys, private keys (whose public half is used) and certificates.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rustls::pki_types::pem::{PemObject, SectionKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("not a PEM file: {0}")]
    Pem(String),
    #[error("holds no key")]
    Empty,
    #[error("holds no private key")]
    NoPrivateKey,
    #[error("unsupported or damaged {0} key")]
    Unsupported(&'static str),
    #[error("key rejected: {0}")]
    Rejected(String),
}

/// Verifies tokens.
pub struct VerificationKey {
    pub id: String,
    pub algorithm: Algorithm,
    pub(crate) decoding: DecodingKey,
    /// Members of the JSON Web Key, in upstream's order.
    jwk: Value,
}

/// Signs tokens.
pub struct SigningKey {
    pub id: String,
    pub algorithm: Algorithm,
    pub(crate) encoding: EncodingKey,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerificationKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl VerificationKey {
    /// Every key of a PEM file; at least one.
    ///
    /// # Errors
    /// [`KeyError`] for damaged or unsupported keys and files without any.
    pub fn parse_all(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for section in sections(pem)? {
            let spki = match section {
                (SectionKind::PublicKey, der) => der,
                (SectionKind::Certificate, der) => {
                    let (_, certificate) = x509_parser::parse_x509_certificate(&der)
                        .map_err(|_| KeyError::Unsupported("certificate"))?;
                    certificate.public_key().raw.to_vec()
                }
                private => match Private::parse(&private)? {
                    Some(private) => private.public,
                    None => continue,
                },
            };
            keys.push(Self::from_spki(&spki)?);
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(keys) }
    }

    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let unsupported = KeyError::Unsupported("public");
        let Ok((_, spki)) = SubjectPublicKeyInfo::from_der(der) else { return Err(unsupported) };
        let id = key_id(der);
        match spki.parsed() {
            Ok(ParsedKey::RSA(key)) => {
                let modulus = without_leading_zeros(key.modulus);
                let exponent = without_leading_zeros(key.exponent);
                let jwk = json!({"use": "sig", "kty": "RSA", "kid": id, "alg": "RS256",
                    "n": URL_SAFE_NO_PAD.encode(modulus), "e": URL_SAFE_NO_PAD.encode(exponent)});
                let decoding = DecodingKey::from_rsa_raw_components(modulus, exponent);
                Ok(Self { id, algorithm: Algorithm::RS256, decoding, jwk })
            }
            Ok(ParsedKey::EC(point)) => {
                let Some((&4, coordinates)) = point.data().split_first() else { return Err(unsupported) };
                let (algorithm, name, curve) = match coordinates.len() {
                    64 => (Algorithm::ES256, "ES256", "P-256"),
                    96 => (Algorithm::ES384, "ES384", "P-384"),
                    _ => return Err(unsupported),
                };
                let (x, y) = coordinates.split_at(coordinates.len() / 2);
                let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
                let decoding = DecodingKey::from_ec_components(&x, &y).map_err(|_| unsupported)?;
                let jwk = json!({"use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": name,
                    "x": x, "y": y});
                Ok(Self { id, algorithm, decoding, jwk })
            }
            _ => Err(unsupported),
        }
    }

    pub(crate) fn jwk(&self) -> &Value {
        &self.jwk
    }

    pub(crate) fn algorithm_name(&self) -> &str {
        self.jwk["alg"].as_str().unwrap_or_default()
    }
}

impl SigningKey {
    /// The first private key of a PEM file.
    ///
    /// # Errors
    /// [`KeyError`] when there is none or it is damaged or unsupported.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        for section in sections(pem)? {
            if let Some(private) = Private::parse(&section)? {
                let id = key_id(&private.public);
                return Ok(Self { id, algorithm: private.algorithm, encoding: private.encoding });
            }
        }
        Err(KeyError::NoPrivateKey)
    }
}

struct Private {
    algorithm: Algorithm,
    encoding: EncodingKey,
    /// PKIX DER.
    public: Vec<u8>,
}

impl Private {
    /// None: the section is no private key.
    fn parse((kind, der): &(SectionKind, Vec<u8>)) -> Result<Option<Self>, KeyError> {
        match kind {
            SectionKind::RsaPrivateKey => {
                let pair = RsaKeyPair::from_der(der).map_err(rejected)?;
                Self::rsa(&pair, EncodingKey::from_rsa_der(der)).map(Some)
            }
            SectionKind::PrivateKey => {
                if let Ok(pair) = RsaKeyPair::from_pkcs8(der) {
                    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
                    let pem = format!("-----BEGIN PRIVATE KEY-----\n{encoded}\n-----END PRIVATE KEY-----\n");
                    let encoding = EncodingKey::from_rsa_pem(pem.as_bytes())
                        .map_err(|error| KeyError::Rejected(error.to_string()))?;
                    return Self::rsa(&pair, encoding).map(Some);
                }
                Self::ec(der).map(Some)
            }
            SectionKind::EcPrivateKey => Self::ec(der).map(Some),
            _ => Ok(None),
        }
    }

    fn rsa(pair: &RsaKeyPair, encoding: EncodingKey) -> Result<Self, KeyError> {
        let public: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|_| KeyError::Unsupported("RSA"))?;
        Ok(Self { algorithm: Algorithm::RS256, encoding, public: public.as_ref().to_vec() })
    }

    fn ec(der: &[u8]) -> Result<Self, KeyError> {
        let curves: [(&'static EcdsaSigningAlgorithm, Algorithm); 2] = [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, Algorithm::ES256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, Algorithm::ES384),
        ];
        for (curve, algorithm) in curves {
            let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der) else { continue };
            let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Unsupported("EC"))?;
            let public: PublicKeyX509Der<'_> =
                pair.public_key().as_der().map_err(|_| KeyError::Unsupported("EC"))?;
            return Ok(Self {
                algorithm,
                encoding: EncodingKey::from_ec_der(pkcs8.as_ref()),
                public: public.as_ref().to_vec(),
            });
        }
        Err(KeyError::Unsupported("private"))
    }
}

fn sections(pem: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, KeyError> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| KeyError::Pem(format!("{error:?}")))
}

fn rejected(error: aws_lc_rs::error::KeyRejected) -> KeyError {
    KeyError::Rejected(error.to_string())
}

fn key_id(spki: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(spki))
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    &bytes[start..]
}

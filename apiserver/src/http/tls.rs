//! The listener's TLS: asks for a client certificate, checks that the client holds its key, and leaves whose it is to
//! authentication.
//!
//! That is upstream's way (`RequestClientCert`), and what clients rely on: a certificate of an unknown or expired
//! authority is a 401 with a Status, not a broken handshake, and client CA and front proxy CA can be different.
//! Invariant: nothing behind this trusts a chain before `keelson_access::authn::x509` has verified it.

use std::sync::Arc;

use keelson_component_base::tls::{ServerTls, TlsError};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// The configuration of the listener; the certificate follows its files.
pub fn server_config(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let alpn: [&[u8]; 2] = [b"h2", b"http/1.1"];
    let base = tls.server_config(&alpn)?;
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(AnyAuthority(algorithms)))
        .with_cert_resolver(base.cert_resolver.clone());
    config.alpn_protocols.clone_from(&base.alpn_protocols);
    Ok(Arc::new(config))
}

/// Takes certificates of any authority, if the client can sign with their keys.
#[derive(Debug)]
struct AnyAuthority(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyAuthority {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

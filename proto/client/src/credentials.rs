//! What a request and a connection carry to prove who asks: bearer tokens and client certificates that are read
//! again when their files change, and the trust in the server.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use keelson_component_base::tls;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::connection::ConnectError;
use crate::kubeconfig::{ClusterConfig, Source};

/// How long a look at credential files stays good.
const RECHECK: Duration = Duration::from_secs(10);
/// Debian's bundle; used when the kubeconfig names no CA.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The `Authorization` header of each request.
pub(crate) enum Authorization {
    Nothing,
    Fixed(HeaderValue),
    TokenFile { path: PathBuf, state: Mutex<Option<(Instant, HeaderValue)>> },
}

impl Authorization {
    pub(crate) fn new(config: &ClusterConfig) -> Result<Self, ConnectError> {
        Ok(match (&config.token, &config.basic) {
            (Some(Source::File(path)), _) => Self::TokenFile { path: path.clone(), state: Mutex::new(None) },
            (Some(Source::Inline(token)), _) => Self::Fixed(bearer(token)?),
            (None, Some((user, password))) => {
                Self::Fixed(sensitive(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))?)
            }
            (None, None) => Self::Nothing,
        })
    }

    /// The header as it is now. A token file that cannot be read leaves the token before in use.
    pub(crate) fn header(&self) -> Result<Option<HeaderValue>, ConnectError> {
        match self {
            Self::Nothing => Ok(None),
            Self::Fixed(header) => Ok(Some(header.clone())),
            Self::TokenFile { path, state } => {
                let mut state = state.lock();
                if let Some((read, header)) = state.as_ref()
                    && read.elapsed() < RECHECK
                {
                    return Ok(Some(header.clone()));
                }
                let fresh = fs::read(path)
                    .map_err(|source| ConnectError::Token { path: path.clone(), source })
                    .and_then(|token| bearer(&token));
                let header = match (fresh, state.as_ref()) {
                    (Ok(header), _) => header,
                    (Err(error), Some((_, header))) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "Keeping the previous token"
                        );
                        header.clone()
                    }
                    (Err(error), None) => return Err(error),
                };
                *state = Some((Instant::now(), header.clone()));
                Ok(Some(header))
            }
        }
    }

    /// The server did not accept the token: read the file again at the next request.
    pub(crate) fn rejected(&self) {
        if let Self::TokenFile { state, .. } = self
            && let Some((read, _)) = state.lock().as_mut()
            && let Some(past) = Instant::now().checked_sub(RECHECK)
        {
            *read = past;
        }
    }
}

fn bearer(token: &[u8]) -> Result<HeaderValue, ConnectError> {
    let token = std::str::from_utf8(token).map_err(|_| ConnectError::MalformedToken)?.trim();
    if token.is_empty() {
        return Err(ConnectError::MalformedToken);
    }
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, ConnectError> {
    let mut header = HeaderValue::from_str(text).map_err(|_| ConnectError::MalformedToken)?;
    header.set_sensitive(true);
    Ok(header)
}

/// Builds TLS configurations from files as they are at each dial, and tells when they have changed since.
pub(crate) struct Trust {
    config: ClusterConfig,
    seen: Mutex<(Instant, Vec<Option<SystemTime>>)>,
}

impl Trust {
    pub(crate) fn new(config: ClusterConfig) -> Self {
        let seen = Mutex::new((Instant::now(), modified(&config)));
        Self { config, seen }
    }

    /// Whether the certificate files have changed since this was last asked; looks at most every ten seconds.
    pub(crate) fn changed(&self) -> bool {
        let mut seen = self.seen.lock();
        if seen.0.elapsed() < RECHECK {
            return false;
        }
        let now = modified(&self.config);
        let changed = now != seen.1;
        *seen = (Instant::now(), now);
        changed
    }

    /// The name to verify the server's certificate by.
    pub(crate) fn server_name(&self, host: &str) -> Result<ServerName<'static>, ConnectError> {
        let name = self.config.tls_server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::ServerUrl(name.to_owned()))
    }

    pub(crate) fn client_config(&self, alpn: &[u8]) -> Result<Arc<ClientConfig>, ConnectError> {
        let identity = match &self.config.client_certificate {
            Some((certificate, key)) => Some((certificate.read()?, key.read()?)),
            None => None,
        };
        let identity = identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.as_slice()));
        let mut config = if self.config.insecure_skip_tls_verify {
            insecure(identity)?
        } else {
            let ca = match &self.config.certificate_authority {
                Some(source) => source.read()?,
                None => Source::File(Path::new(SYSTEM_CA).to_owned()).read()?,
            };
            tls::client_config(&ca, identity)?
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }
}

fn modified(config: &ClusterConfig) -> Vec<Option<SystemTime>> {
    let pair = config.client_certificate.as_ref().map(|(certificate, key)| [certificate, key]);
    let sources = config.certificate_authority.iter().chain(pair.into_iter().flatten());
    sources
        .map(|source| match source {
            Source::Inline(_) => None,
            Source::File(path) => fs::metadata(path).and_then(|metadata| metadata.modified()).ok(),
        })
        .collect()
}

fn insecure(identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig, ConnectError> {
    tls::install_provider();
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let builder =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(algorithms)));
    let Some((certificate, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let what = "the client certificate";
    builder
        .with_client_auth_cert(tls::certificates(certificate, what)?, tls::private_key(key, what)?)
        .map_err(|source| tls::TlsError::Unacceptable { what: what.to_owned(), source }.into())
}

/// `insecure-skip-tls-verify`: any certificate will do, its owner must still hold the key.
#[derive(Debug)]
struct AcceptAny(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

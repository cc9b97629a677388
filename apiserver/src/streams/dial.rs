//! Connections to kubelets, pods and service endpoints: TCP, TLS where asked, HTTP/1.1 that can be upgraded.

use std::{path::Path, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use keelson_component_base::tls;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    config::Config,
    http::body::{self, Body},
};

const CONNECT: Duration = Duration::from_secs(10);

/// How kubelets are reached, and everything else that this server passes requests on to.
pub struct Kubelet {
    /// Shows the API server's client certificate; for kubelets only.
    identified: Arc<ClientConfig>,
    /// Shows none and accepts any certificate, as upstream does for `https:` proxying to pods and services.
    anonymous: Arc<ClientConfig>,
    pub preferred_addresses: Vec<String>,
}

/// A file of the kubelet client's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeletConfigError {
    #[error("reading {path}")]
    Read { path: String, source: std::io::Error },
    #[error("the client towards kubelets")]
    Tls(#[source] tls::TlsError),
    #[error("the client towards kubelets: certificate and key")]
    Rustls(#[source] rustls::Error),
}

/// Why a target was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("dial tcp {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("dial tcp {address}: i/o timeout")]
    Timeout { address: String },
    #[error("tls to {address}: {source}")]
    Tls { address: String, source: std::io::Error },
    #[error("{0:?} is no name of a host")]
    Name(String),
    #[error("http to {address}: {source}")]
    Http { address: String, source: hyper::Error },
}

/// Which identity a connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    /// Any certificate is fine, none is shown.
    Https,
    /// The kubelet's API.
    Kubelet,
}

impl Kubelet {
    pub fn new(config: &Config) -> Result<Self, KubeletConfigError> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|source| KubeletConfigError::Read { path: path.display().to_string(), source })
        };
        let identity = match (&config.kubelet_client_certificate, &config.kubelet_client_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let identity = identity.as_ref().map(|(certificate, key)| (certificate.as_slice(), key.as_slice()));
        let identified = match &config.kubelet_certificate_authority {
            Some(authority) => {
                tls::client_config(&read(authority)?, identity).map_err(KubeletConfigError::Tls)?
            }
            // Without an authority upstream does not verify kubelets either; the flag exists for that.
            None => {
                let builder = unverified();
                match identity {
                    Some((certificate, key)) => {
                        let chain = tls::certificates(certificate, "kubelet client")
                            .map_err(KubeletConfigError::Tls)?;
                        let key = tls::private_key(key, "kubelet client").map_err(KubeletConfigError::Tls)?;
                        builder.with_client_auth_cert(chain, key).map_err(KubeletConfigError::Rustls)?
                    }
                    None => builder.with_no_client_auth(),
                }
            }
        };
        Ok(Kubelet {
            identified: Arc::new(http1_only(identified)),
            anonymous: Arc::new(http1_only(unverified().with_no_client_auth())),
            preferred_addresses: config.kubelet_preferred_address_types.clone(),
        })
    }

    /// Opens a connection for one request.
    pub async fn connect(
        &self,
        scheme: Scheme,
        host: &str,
        port: u16,
    ) -> Result<SendRequest<Body>, DialError> {
        let address = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let work = async {
            let tcp = TcpStream::connect((host, port))
                .await
                .map_err(|source| DialError::Connect { address: address.clone(), source })?;
            // Interactive streams are small packets.
            tcp.set_nodelay(true)
                .map_err(|source| DialError::Connect { address: address.clone(), source })?;
            let config = match scheme {
                Scheme::Http => return self.handshake(TokioIo::new(tcp), &address).await,
                Scheme::Https => self.anonymous.clone(),
                Scheme::Kubelet => self.identified.clone(),
            };
            let name =
                ServerName::try_from(host.to_string()).map_err(|_| DialError::Name(host.to_string()))?;
            let tls = TlsConnector::from(config)
                .connect(name, tcp)
                .await
                .map_err(|source| DialError::Tls { address: address.clone(), source })?;
            self.handshake(TokioIo::new(tls), &address).await
        };
        tokio::time::timeout(CONNECT, work)
            .await
            .unwrap_or_else(|_| Err(DialError::Timeout { address: address.clone() }))
    }

    /// What a daemon on this host says of its health; an error is what it says if it is not well, or why it was not
    /// reached.
    pub async fn healthz(&self, port: u16) -> Result<String, String> {
        /// More than a daemon says.
        const LENGTH: usize = 4096;
        let work = async {
            let mut sender =
                self.connect(Scheme::Https, "127.0.0.1", port).await.map_err(|error| error.to_string())?;
            let request =
                http::Request::get("/healthz").header(http::header::HOST, format!("127.0.0.1:{port}"));
            let request = request.body(body::empty()).map_err(|error| error.to_string())?;
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let well = answer.status().is_success();
            let body = http_body_util::Limited::new(answer.into_body(), LENGTH);
            let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if well { Ok(text) } else { Err(text) }
        };
        tokio::time::timeout(CONNECT, work).await.unwrap_or_else(|_| Err("it did not answer in time".into()))
    }

    async fn handshake<T>(&self, io: TokioIo<T>, address: &str) -> Result<SendRequest<Body>, DialError>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(io)
            .await
            .map_err(|source| DialError::Http { address: address.to_string(), source })?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection of a proxied request ended");
            }
        });
        Ok(sender)
    }
}

fn http1_only(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn unverified() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate))
}

/// Verifies signatures but not who signed.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

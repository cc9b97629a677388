//! TLS for servers and clients over rustls with aws-lc-rs, the one crypto provider.
//!
//! Server certificates and client CA bundles are files that are rotated in place: they are looked at when a
//! handshake begins (at most once a second), and a pair that does not load leaves the one before in use. A server with a
//! client CA resumes no sessions: the client of one is not verified again, so it would outlive the CA's change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

/// How long a look at the files stays good.
const RECHECK: Duration = Duration::from_secs(1);

/// Which step of building a TLS configuration failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("writing {}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{what} is not PEM")]
    Pem { what: String, source: rustls::pki_types::pem::Error },
    #[error("{0} holds no certificate")]
    NoCertificate(String),
    #[error("{what} is not acceptable")]
    Unacceptable { what: String, source: rustls::Error },
    #[error("building the verifier of client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error("making a self-signed certificate")]
    SelfSigned(#[source] rcgen::Error),
}

/// Makes aws-lc-rs the process's provider. Every binary calls it first; calling it again does nothing.
pub fn install_provider() {
    // An error means that a provider is installed already, and there is only this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// What a server asks of its clients when it has a client CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientAuth {
    /// No certificate, no connection.
    #[default]
    Required,
    /// A certificate is asked for and verified when sent; other means of authentication may follow.
    Optional,
}

/// A server's certificate, and the CA whose client certificates it accepts.
#[derive(Debug, Clone, Default)]
pub struct ServerTls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client_ca_file: Option<PathBuf>,
    pub client_auth: ClientAuth,
}

impl ServerTls {
    /// A configuration that follows its files. `alpn` lists the protocols in order of preference.
    ///
    /// # Errors
    /// A file cannot be read or does not hold what it should.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        install_provider();
        let certificate =
            Reloading::new(vec![self.cert_file.clone(), self.key_file.clone()], |paths| match paths {
                [cert, key] => certified_key(&read(cert)?, &read(key)?, &cert.display().to_string()),
                _ => Err(TlsError::NoCertificate("server".to_owned())),
            })?;
        let builder = ServerConfig::builder();
        let builder = match &self.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mandatory = self.client_auth == ClientAuth::Required;
                let verifier = Reloading::new(vec![path.clone()], move |paths| {
                    let mut roots = RootCertStore::empty();
                    for path in paths {
                        add_roots(&mut roots, &read(path)?, &path.display().to_string())?;
                    }
                    client_verifier(roots, mandatory)
                })?;
                builder.with_client_cert_verifier(Arc::new(ReloadingVerifier { inner: verifier, mandatory }))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ReloadingCertificate(certificate)));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        if self.client_ca_file.is_some() {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Arc::new(config))
    }
}

/// A client's configuration: the CAs it trusts and, where given, its certificate and key (all PEM).
///
/// # Errors
/// A text holds no certificate or key, or they do not fit together.
pub fn client_config(ca_pem: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<ClientConfig, TlsError> {
    install_provider();
    let mut roots = RootCertStore::empty();
    add_roots(&mut roots, ca_pem, "the CA bundle")?;
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let Some((cert_pem, key_pem)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let what = "the client certificate";
    builder
        .with_client_auth_cert(certificates(cert_pem, what)?, private_key(key_pem, "the client key")?)
        .map_err(|source| TlsError::Unacceptable { what: what.to_owned(), source })
}

/// The certificates of a PEM text, in their order; at least one.
///
/// # Errors
/// The text is not PEM or holds no certificate. `what` names it.
pub fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { what: what.to_owned(), source })?;
    if found.is_empty() { Err(TlsError::NoCertificate(what.to_owned())) } else { Ok(found) }
}

/// The first private key of a PEM text (PKCS#8, PKCS#1 or SEC1).
///
/// # Errors
/// The text holds no private key. `what` names it.
pub fn private_key(pem: &[u8], what: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|source| TlsError::Pem { what: what.to_owned(), source })
}

/// Uses `<dir>/<name>.crt` and `.key`, and makes a self-signed pair for `hosts` (IP addresses and DNS names) when
/// either is missing, as upstream's `--cert-dir` does. The key is readable by its owner only.
///
/// # Errors
/// The directory cannot be written.
pub fn ensure_self_signed(dir: &Path, name: &str, hosts: &[String]) -> Result<ServerTls, TlsError> {
    let cert_file = dir.join(format!("{name}.crt"));
    let key_file = dir.join(format!("{name}.key"));
    if !(cert_file.exists() && key_file.exists()) {
        let (cert_pem, key_pem) = self_signed(hosts)?;
        fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.to_owned(), source })?;
        write(&key_file, &key_pem, 0o600)?;
        write(&cert_file, &cert_pem, 0o644)?;
    }
    Ok(ServerTls { cert_file, key_file, ..ServerTls::default() })
}

/// A self-signed certificate and its key, as PEM.
///
/// # Errors
/// A host is no valid name.
pub fn self_signed(hosts: &[String]) -> Result<(String, String), TlsError> {
    let made = rcgen::generate_simple_self_signed(hosts.to_vec()).map_err(TlsError::SelfSigned)?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn add_roots(roots: &mut RootCertStore, pem: &[u8], what: &str) -> Result<(), TlsError> {
    for certificate in certificates(pem, what)? {
        roots.add(certificate).map_err(|source| TlsError::Unacceptable { what: what.to_owned(), source })?;
    }
    Ok(())
}

fn certified_key(cert_pem: &[u8], key_pem: &[u8], what: &str) -> Result<CertifiedKey, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates(cert_pem, what)?, private_key(key_pem, what)?, &provider)
        .map_err(|source| TlsError::Unacceptable { what: what.to_owned(), source })
}

fn client_verifier(roots: RootCertStore, mandatory: bool) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder(Arc::new(roots));
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(TlsError::Verifier)
}

type Load<T> = Box<dyn Fn(&[PathBuf]) -> Result<T, TlsError> + Send + Sync>;

/// A value made from files, made anew when one of them has changed.
struct Reloading<T> {
    paths: Vec<PathBuf>,
    load: Load<Arc<T>>,
    state: Mutex<Loaded<T>>,
}

struct Loaded<T> {
    value: Arc<T>,
    stamps: Vec<Stamp>,
    checked: Instant,
}

/// What tells one content of a file from the next: time, length and inode (a rename brings a new one).
type Stamp = Option<(SystemTime, u64, u64)>;

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    paths.iter().map(stamp).collect()
}

impl<T> Reloading<T> {
    fn new(
        paths: Vec<PathBuf>,
        load: impl Fn(&[PathBuf]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let load: Load<Arc<T>> = Box::new(move |paths| load(paths).map(Arc::new));
        let stamps = stamps(&paths);
        let value = load(&paths)?;
        Ok(Self { paths, load, state: Mutex::new(Loaded { value, stamps, checked: Instant::now() }) })
    }

    fn current(&self) -> Arc<T> {
        let mut state = self.state.lock();
        if state.checked.elapsed() >= RECHECK {
            self.recheck(&mut state);
        }
        state.value.clone()
    }

    fn recheck(&self, state: &mut Loaded<T>) {
        state.checked = Instant::now();
        let found = stamps(&self.paths);
        if found == state.stamps {
            return;
        }
        match (self.load)(&self.paths) {
            Ok(value) => {
                tracing::info!(files = ?self.paths, "Reloaded changed TLS files");
                state.value = value;
                state.stamps = found;
            }
            // The stamps stay as they were: the next handshake tries again, so a pair caught half-written heals.
            Err(error) => {
                tracing::warn!(files = ?self.paths, error = &error as &dyn std::error::Error, "Keeping the previous TLS files");
            }
        }
    }
}

struct ReloadingCertificate(Reloading<CertifiedKey>);

impl std::fmt::Debug for ReloadingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReloadingCertificate").field(&self.0.paths).finish()
    }
}

impl ResolvesServerCert for ReloadingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }
}

struct ReloadingVerifier {
    inner: Reloading<Arc<dyn ClientCertVerifier>>,
    mandatory: bool,
}

impl std::fmt::Debug for ReloadingVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReloadingVerifier").field(&self.inner.paths).finish()
    }
}

impl ClientCertVerifier for ReloadingVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// No hints: they would have to outlive a reload, and clients then simply offer the certificate they have.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.inner.current().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.current().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.current().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.current().supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, HandshakeKind, ServerConnection};

    use super::*;

    /// A CA and one certificate of it that is good for everything, as PEM files.
    fn authority(dir: &Path) -> ServerTls {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let file = |name: &str, pem: String| {
            let path = dir.join(name);
            fs::write(&path, pem).unwrap();
            path
        };
        ServerTls {
            cert_file: file("leaf.crt", leaf.pem()),
            key_file: file("leaf.key", key.serialize_pem()),
            client_ca_file: Some(file("ca.crt", ca.pem())),
            client_auth: ClientAuth::Required,
        }
    }

    /// One handshake, in memory, and what the server says behind it.
    fn shake_hands(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Option<HandshakeKind> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(client.clone(), name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        while client.wants_write() || server.wants_write() {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut up).unwrap();
            }
            let mut up = &up[..];
            while !up.is_empty() {
                server.read_tls(&mut up).unwrap();
                server.process_new_packets().unwrap();
            }
            while server.wants_write() {
                server.write_tls(&mut down).unwrap();
            }
            let mut down = &down[..];
            while !down.is_empty() {
                client.read_tls(&mut down).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        server.handshake_kind()
    }

    #[test]
    fn who_has_to_show_a_certificate_shows_it_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let required = authority(dir.path());
        let optional = ServerTls { client_auth: ClientAuth::Optional, ..required.clone() };
        let without = ServerTls { client_ca_file: None, ..required.clone() };
        install_provider();
        let pem = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let check = |tls: &ServerTls, resumes: bool| {
            for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
                let mut roots = RootCertStore::empty();
                add_roots(&mut roots, &pem("ca.crt"), "ca").unwrap();
                let chain = certificates(&pem("leaf.crt"), "leaf").unwrap();
                let client = ClientConfig::builder_with_protocol_versions(&[version])
                    .with_root_certificates(roots)
                    .with_client_auth_cert(chain, private_key(&pem("leaf.key"), "leaf").unwrap())
                    .unwrap();
                let (server, client) = (tls.server_config(&[]).unwrap(), Arc::new(client));
                assert_eq!(shake_hands(&server, &client), Some(HandshakeKind::Full));
                let again = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
                assert_eq!(shake_hands(&server, &client), Some(again), "{tls:?} {version:?}");
            }
        };
        check(&required, false);
        check(&optional, false);
        check(&without, true);
    }

    #[test]
    fn a_changed_pair_is_taken_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let tls =
            ensure_self_signed(dir.path(), "server", &["localhost".into(), "127.0.0.1".into()]).unwrap();
        let again = ensure_self_signed(dir.path(), "server", &["other".into()]).unwrap();
        assert_eq!(fs::read(&tls.cert_file).unwrap(), fs::read(&again.cert_file).unwrap());
        let paths = vec![tls.cert_file.clone(), tls.key_file.clone()];
        let reloading =
            Reloading::new(paths, |paths| certified_key(&read(&paths[0])?, &read(&paths[1])?, "x")).unwrap();
        let first = reloading.current();

        fs::write(&tls.cert_file, "half").unwrap();
        reloading.recheck(&mut reloading.state.lock());
        assert_eq!(reloading.current().cert, first.cert);

        let (cert_pem, key_pem) = self_signed(&["localhost".into()]).unwrap();
        fs::write(&tls.cert_file, cert_pem).unwrap();
        fs::write(&tls.key_file, key_pem).unwrap();
        reloading.recheck(&mut reloading.state.lock());
        assert_ne!(reloading.current().cert, first.cert);
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = ServerTls { cert_file: dir.path().join("no.crt"), ..ServerTls::default() };
        assert!(missing.server_config(&[]).unwrap_err().to_string().contains("no.crt"));
        assert!(matches!(client_config(b"", None), Err(TlsError::NoCertificate(_))));
    }
}

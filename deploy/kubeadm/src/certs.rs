//! The certificate tree of a cluster, in the files that upstream's `kubeadm init phase certs` makes.
//!
//! Invariants: an existing key is never overwritten, nor a certificate (a second run is harmless), but for
//! one of ours that ends soon, which is signed anew for the same key; keys are readable by their owner
//! only, and a file appears whole or not at all.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

/// How long a certificate authority is valid (upstream: ten years).
const AUTHORITY_VALIDITY: Duration = Duration::days(3650);
/// How long any other certificate is valid (upstream: one year).
const LEAF_VALIDITY: Duration = Duration::days(365);
/// A certificate that ends sooner than this is signed anew.
const RENEW_BEFORE: Duration = Duration::days(30);
/// Certificates start a little in the past, so that a host whose clock lags accepts them.
const BACKDATE: Duration = Duration::minutes(5);

/// Why a certificate or key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot make the certificate {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("{path} exists but {missing} does not: restore it, or remove both to have them made anew")]
    HalfPair { path: PathBuf, missing: PathBuf },
    #[error("{0:?} is no DNS name or IP address")]
    AlternativeName(String),
}

/// What the certificates of one control plane say about it.
#[derive(Debug, Clone)]
pub struct ClusterNames {
    /// Host name of this node.
    pub node: String,
    /// Address that the API server tells others to use.
    pub advertise_address: IpAddr,
    /// First address of the Service range: the `kubernetes` Service.
    pub service_address: IpAddr,
    pub dns_domain: String,
    /// More names and addresses for the API server's certificate.
    pub extra_sans: Vec<String>,
}

/// What a certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
    /// Both: members of the store speak to each other with one certificate.
    Peer,
}

/// One certificate to sign.
#[derive(Debug, Clone)]
pub struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub usage: Usage,
    pub alternative_names: Vec<String>,
}

impl Subject {
    pub fn client(common_name: impl Into<String>, organization: Option<&str>) -> Self {
        Self {
            common_name: common_name.into(),
            organizations: organization.map(str::to_owned).into_iter().collect(),
            usage: Usage::Client,
            alternative_names: Vec::new(),
        }
    }
}

/// A certificate authority that can sign.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, as PEM.
pub struct Pair {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// Reads `<stem>.crt` and `<stem>.key`, or makes and writes them when neither exists.
    pub fn ensure(stem: &Path, common_name: &str) -> Result<Self, CertError> {
        let (certificate_path, key_path) = pair_paths(stem);
        if pair_exists(&certificate_path, &key_path)? {
            let certificate_pem = read(&certificate_path)?;
            let key = KeyPair::from_pem(&read(&key_path)?).map_err(|source| make_error(&key_path, source))?;
            let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
                .map_err(|source| make_error(&certificate_path, source))?;
            return Ok(Self { certificate_pem, issuer });
        }
        let make = || -> Result<(String, String, Issuer<'static, KeyPair>), rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![common_name.to_owned()])?;
            params.distinguished_name = name(common_name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
                KeyUsagePurpose::KeyCertSign,
            ];
            set_validity(&mut params, AUTHORITY_VALIDITY);
            let certificate = params.self_signed(&key)?;
            let key_pem = key.serialize_pem();
            Ok((certificate.pem(), key_pem, Issuer::new(params, key)))
        };
        let (certificate_pem, key_pem, issuer) =
            make().map_err(|source| make_error(&certificate_path, source))?;
        write(&key_path, &key_pem, 0o600)?;
        write(&certificate_path, &certificate_pem, 0o644)?;
        Ok(Self { certificate_pem, issuer })
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a fresh key for `subject`.
    pub fn sign(&self, subject: &Subject) -> Result<Pair, CertError> {
        let key = KeyPair::generate()
            .map_err(|source| CertError::Make { name: subject.common_name.clone(), source })?;
        let certificate_pem = self.certify(subject, &key, LEAF_VALIDITY)?;
        Ok(Pair { certificate_pem, key_pem: key.serialize_pem() })
    }

    /// A certificate that says that `key` is the subject's.
    fn certify(&self, subject: &Subject, key: &KeyPair, validity: Duration) -> Result<String, CertError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&subject.common_name, &subject.organizations);
        params.subject_alt_names =
            subject.alternative_names.iter().map(|n| alternative_name(n)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match subject.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, validity);
        let certificate = params.signed_by(key, &self.issuer);
        let failed = |source| CertError::Make { name: subject.common_name.clone(), source };
        Ok(certificate.map_err(failed)?.pem())
    }

    /// Whether a certificate is of this authority and ends soon. Others are somebody else's to renew.
    pub(crate) fn is_to_be_renewed(&self, certificate_pem: &str) -> bool {
        let read = |pem: &str| {
            let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
            let certificate = pem.parse_x509().ok()?;
            let (subject, issuer) = (certificate.subject().as_raw(), certificate.issuer().as_raw());
            Some((subject.to_vec(), issuer.to_vec(), certificate.validity().not_after.timestamp()))
        };
        let (Some((own, ..)), Some((_, issuer, end))) = (read(&self.certificate_pem), read(certificate_pem))
        else {
            return false;
        };
        own == issuer && end < (OffsetDateTime::now_utc() + RENEW_BEFORE).unix_timestamp()
    }

    /// Writes `<stem>.crt` and `<stem>.key` for `subject` unless they exist; one that ends soon is signed anew.
    pub fn ensure_leaf(&self, stem: &Path, subject: &Subject) -> Result<(), CertError> {
        let (certificate_path, key_path) = pair_paths(stem);
        if pair_exists(&certificate_path, &key_path)? {
            if !self.is_to_be_renewed(&read(&certificate_path)?) {
                return Ok(());
            }
            // With the key that is there: the pair fits at every moment.
            let key = KeyPair::from_pem(&read(&key_path)?).map_err(|source| make_error(&key_path, source))?;
            return write(&certificate_path, &self.certify(subject, &key, LEAF_VALIDITY)?, 0o644);
        }
        let pair = self.sign(subject)?;
        write(&key_path, &pair.key_pem, 0o600)?;
        write(&certificate_path, &pair.certificate_pem, 0o644)
    }
}

/// The authorities of a cluster, after [`ensure_all`].
pub struct Authorities {
    pub cluster: Authority,
    pub front_proxy: Authority,
    pub store: Authority,
}

/// Makes every certificate and key of a control plane under `directory` (usually
/// `/etc/kubernetes/pki`) that is not there yet.
pub fn ensure_all(directory: &Path, names: &ClusterNames) -> Result<Authorities, CertError> {
    let at = |stem: &str| directory.join(stem);
    let cluster = Authority::ensure(&at("ca"), "kubernetes")?;
    let front_proxy = Authority::ensure(&at("front-proxy-ca"), "front-proxy-ca")?;
    let store = Authority::ensure(&at("etcd/ca"), "etcd-ca")?;

    cluster.ensure_leaf(&at("apiserver"), &apiserver_subject(names))?;
    cluster.ensure_leaf(
        &at("apiserver-kubelet-client"),
        &Subject::client("kube-apiserver-kubelet-client", Some("kubeadm:cluster-admins")),
    )?;
    front_proxy.ensure_leaf(&at("front-proxy-client"), &Subject::client("front-proxy-client", None))?;
    // A member's server and peer certificates carry the same names, as upstream's do.
    let member = Subject {
        common_name: names.node.clone(),
        organizations: Vec::new(),
        usage: Usage::Peer,
        alternative_names: vec![
            names.node.clone(),
            "localhost".to_owned(),
            names.advertise_address.to_string(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ],
    };
    store.ensure_leaf(&at("etcd/server"), &member)?;
    store.ensure_leaf(&at("etcd/peer"), &member)?;
    store.ensure_leaf(
        &at("etcd/healthcheck-client"),
        &Subject::client("kube-etcd-healthcheck-client", None),
    )?;
    store.ensure_leaf(&at("apiserver-etcd-client"), &Subject::client("kube-apiserver-etcd-client", None))?;
    ensure_service_account_key(directory)?;
    Ok(Authorities { cluster, front_proxy, store })
}

/// The API server's serving certificate, with upstream's names.
fn apiserver_subject(names: &ClusterNames) -> Subject {
    let mut alternative_names = vec![
        names.node.clone(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", names.dns_domain),
        "localhost".to_owned(),
        names.service_address.to_string(),
        names.advertise_address.to_string(),
        "127.0.0.1".to_owned(),
    ];
    for extra in &names.extra_sans {
        if !alternative_names.contains(extra) {
            alternative_names.push(extra.clone());
        }
    }
    Subject {
        common_name: "kube-apiserver".to_owned(),
        organizations: Vec::new(),
        usage: Usage::Server,
        alternative_names,
    }
}

/// A kubelet's serving certificate.
pub fn kubelet_serving_subject(node: &str, address: IpAddr) -> Subject {
    Subject {
        common_name: format!("system:node:{node}"),
        organizations: vec!["system:nodes".to_owned()],
        usage: Usage::Server,
        alternative_names: vec![node.to_owned(), address.to_string()],
    }
}

/// `sa.key` signs service account tokens, `sa.pub` verifies them.
fn ensure_service_account_key(directory: &Path) -> Result<(), CertError> {
    let (private_path, public_path) = (directory.join("sa.key"), directory.join("sa.pub"));
    if pair_exists(&private_path, &public_path)? {
        return Ok(());
    }
    let key = KeyPair::generate().map_err(|source| make_error(&private_path, source))?;
    write(&private_path, &key.serialize_pem(), 0o600)?;
    write(&public_path, &key.public_key_pem(), 0o644)
}

fn name(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    for organization in organizations {
        distinguished.push(DnType::OrganizationName, organization.as_str());
    }
    distinguished.push(DnType::CommonName, common_name);
    distinguished
}

fn alternative_name(text: &str) -> Result<SanType, CertError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let dns = text.to_owned().try_into().map_err(|_| CertError::AlternativeName(text.to_owned()))?;
    Ok(SanType::DnsName(dns))
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + validity;
}

fn pair_paths(stem: &Path) -> (PathBuf, PathBuf) {
    (with_suffix(stem, ".crt"), with_suffix(stem, ".key"))
}

fn with_suffix(stem: &Path, suffix: &str) -> PathBuf {
    let mut text = stem.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

/// Whether both files exist; one without the other is an error, since making only one would
/// silently replace half of somebody's trust.
fn pair_exists(first: &Path, second: &Path) -> Result<bool, CertError> {
    match (first.exists(), second.exists()) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        (true, false) => Err(CertError::HalfPair { path: first.to_owned(), missing: second.to_owned() }),
        (false, true) => Err(CertError::HalfPair { path: second.to_owned(), missing: first.to_owned() }),
    }
}

fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(|source| CertError::Read { path: path.to_owned(), source })
}

fn make_error(path: &Path, source: rcgen::Error) -> CertError {
    CertError::Make { name: path.display().to_string(), source }
}

/// Writes a file whole: into a temporary one beside it, synced, then renamed.
pub(crate) fn write(path: &Path, content: &str, mode: u32) -> Result<(), CertError> {
    let error = |source| CertError::Write { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(error)?;
    let temporary = with_suffix(path, ".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(error)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&temporary, path).map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::PublicKeyData;
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use x509_parser::prelude::*;

    fn names() -> ClusterNames {
        ClusterNames {
            node: "node-1".into(),
            advertise_address: "192.0.2.7".parse().unwrap(),
            service_address: "10.96.0.1".parse().unwrap(),
            dns_domain: "cluster.local".into(),
            extra_sans: vec!["api.example.org".into()],
        }
    }

    fn parsed<T>(path: &Path, read: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let pem = fs::read(path).unwrap();
        let (_, pem) = parse_x509_pem(&pem).unwrap();
        read(&pem.parse_x509().unwrap())
    }

    #[test]
    fn every_certificate_chains_to_its_authority() {
        let directory = tempfile::tempdir().unwrap();
        ensure_all(directory.path(), &names()).unwrap();
        for (leaf, authority) in [
            ("apiserver", "ca"),
            ("apiserver-kubelet-client", "ca"),
            ("front-proxy-client", "front-proxy-ca"),
            ("etcd/server", "etcd/ca"),
            ("etcd/peer", "etcd/ca"),
            ("etcd/healthcheck-client", "etcd/ca"),
            ("apiserver-etcd-client", "etcd/ca"),
        ] {
            let at = |stem: &str| directory.path().join(format!("{stem}.crt"));
            let issuer = parsed(&at(authority), |c| c.subject().to_string());
            assert_eq!(parsed(&at(leaf), |c| c.issuer().to_string()), issuer, "{leaf}");
            let mode =
                fs::metadata(directory.path().join(format!("{leaf}.key"))).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{leaf}.key");
        }
    }

    #[test]
    fn the_api_server_certificate_has_upstreams_names() {
        let directory = tempfile::tempdir().unwrap();
        ensure_all(directory.path(), &names()).unwrap();
        let found: BTreeSet<String> = parsed(&directory.path().join("apiserver.crt"), |certificate| {
            let extension = certificate.subject_alternative_name().unwrap().unwrap();
            extension
                .value
                .general_names
                .iter()
                .map(|name| match name {
                    GeneralName::DNSName(name) => (*name).to_owned(),
                    GeneralName::IPAddress(octets) => {
                        octets.iter().map(u8::to_string).collect::<Vec<_>>().join(".")
                    }
                    other => panic!("unexpected name {other:?}"),
                })
                .collect()
        });
        let expected = [
            "node-1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "10.96.0.1",
            "192.0.2.7",
            "127.0.0.1",
            "api.example.org",
        ];
        assert_eq!(found, expected.into_iter().map(str::to_owned).collect());
    }

    #[test]
    fn what_ends_soon_is_signed_anew_for_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(&directory.path().join("ca"), "kubernetes").unwrap();
        let other = Authority::ensure(&directory.path().join("other"), "other").unwrap();
        let stem = directory.path().join("leaf");
        let (certificate_path, key_path) = pair_paths(&stem);
        let subject = Subject::client("somebody", None);
        let check = |days: i64, signer: &Authority, renewed: bool| {
            let key = KeyPair::generate().unwrap();
            let before = signer.certify(&subject, &key, Duration::days(days)).unwrap();
            fs::write(&certificate_path, &before).unwrap();
            fs::write(&key_path, key.serialize_pem()).unwrap();
            authority.ensure_leaf(&stem, &subject).unwrap();
            assert_eq!(fs::read_to_string(&certificate_path).unwrap() != before, renewed, "{days}");
            assert_eq!(fs::read_to_string(&key_path).unwrap(), key.serialize_pem());
            let public = parsed(&certificate_path, |certificate| certificate.public_key().raw.to_vec());
            assert_eq!(public, key.subject_public_key_info());
            let renew = authority.is_to_be_renewed(&fs::read_to_string(&certificate_path).unwrap());
            assert!(!renew, "{days}");
        };
        check(200, &authority, false);
        check(10, &authority, true);
        check(-1, &authority, true);
        check(10, &other, false);
    }

    #[test]
    fn a_second_run_changes_nothing_and_half_a_pair_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        ensure_all(directory.path(), &names()).unwrap();
        let before = fs::read(directory.path().join("apiserver.crt")).unwrap();
        ensure_all(directory.path(), &names()).unwrap();
        assert_eq!(fs::read(directory.path().join("apiserver.crt")).unwrap(), before);
        fs::remove_file(directory.path().join("ca.key")).unwrap();
        let error = ensure_all(directory.path(), &names()).err().unwrap().to_string();
        assert!(error.contains("ca.crt exists but") && error.contains("ca.key does not"), "{error}");
    }
}

//! kubeconfig files of the daemons and of the administrator, with their client certificates inside.
//!
//! Invariant: an existing file is kept, unless it points at another server or authority, or its certificate
//! ends soon.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::certs::{Authority, CertError, Subject, write};

/// One kubeconfig to write.
#[derive(Debug, Clone)]
pub struct Kubeconfig<'a> {
    /// URL of the API server, such as `https://192.0.2.7:6443`.
    pub server: &'a str,
    /// Name of the user entry; the certificate's subject is what the API server goes by.
    pub user: &'a str,
    pub subject: Subject,
}

/// Writes the kubeconfig at `path` unless one for the same server and authority is there that lasts.
pub fn ensure(path: &Path, authority: &Authority, wanted: &Kubeconfig<'_>) -> Result<(), CertError> {
    let authority_data = BASE64.encode(authority.certificate_pem());
    if let Ok(text) = std::fs::read_to_string(path)
        && let Ok(existing) = serde_yaml::from_str::<Value>(&text)
    {
        let cluster = &existing["clusters"][0]["cluster"];
        let certificate = existing["users"][0]["user"]["client-certificate-data"].as_str();
        let certificate = certificate.and_then(|data| BASE64.decode(data).ok());
        let ends_soon = certificate
            .and_then(|pem| String::from_utf8(pem).ok())
            .is_some_and(|pem| authority.is_to_be_renewed(&pem));
        if cluster["server"] == wanted.server
            && cluster["certificate-authority-data"] == authority_data.as_str()
            && !ends_soon
        {
            return Ok(());
        }
    }
    let pair = authority.sign(&wanted.subject)?;
    let context = format!("{}@kubernetes", wanted.user);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "kubernetes",
            "cluster": { "certificate-authority-data": authority_data, "server": wanted.server },
        }],
        "contexts": [{ "name": context, "context": { "cluster": "kubernetes", "user": wanted.user } }],
        "current-context": context,
        "users": [{
            "name": wanted.user,
            "user": {
                "client-certificate-data": BASE64.encode(pair.certificate_pem),
                "client-key-data": BASE64.encode(pair.key_pem),
            },
        }],
    });
    let text = serde_yaml::to_string(&config).map_err(|source| CertError::Write {
        path: path.to_owned(),
        source: std::io::Error::other(source),
    })?;
    write(path, &text, 0o600)
}

/// The kubeconfig files of one control plane and its first node, by upstream's file names.
pub fn ensure_all(
    directory: &Path,
    authority: &Authority,
    server: &str,
    node: &str,
) -> Result<(), CertError> {
    let node_user = format!("system:node:{node}");
    let wanted = [
        (
            "admin.conf",
            "kubernetes-admin",
            Subject::client("kubernetes-admin", Some("kubeadm:cluster-admins")),
        ),
        (
            "super-admin.conf",
            "kubernetes-super-admin",
            Subject::client("kubernetes-super-admin", Some("system:masters")),
        ),
        (
            "controller-manager.conf",
            "system:kube-controller-manager",
            Subject::client("system:kube-controller-manager", None),
        ),
        ("scheduler.conf", "system:kube-scheduler", Subject::client("system:kube-scheduler", None)),
        ("kubelet.conf", node_user.as_str(), Subject::client(node_user.clone(), Some("system:nodes"))),
    ];
    for (file, user, subject) in wanted {
        ensure(&directory.join(file), authority, &Kubeconfig { server, user, subject })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_kept_until_its_server_changes() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::ensure(&directory.path().join("ca"), "kubernetes").unwrap();
        let path = directory.path().join("admin.conf");
        let read = || std::fs::read_to_string(&path).unwrap();
        ensure_all(directory.path(), &authority, "https://192.0.2.7:6443", "node-1").unwrap();
        let first = read();
        ensure_all(directory.path(), &authority, "https://192.0.2.7:6443", "node-1").unwrap();
        assert_eq!(read(), first);
        ensure_all(directory.path(), &authority, "https://192.0.2.8:6443", "node-1").unwrap();
        let moved: Value = serde_yaml::from_str(&read()).unwrap();
        assert_eq!(moved["clusters"][0]["cluster"]["server"], "https://192.0.2.8:6443");
        assert_eq!(moved["current-context"], "kubernetes-admin@kubernetes");
    }
}

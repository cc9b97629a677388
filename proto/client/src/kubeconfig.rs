//! Reads kubeconfig files and the in-cluster service account into one [`ClusterConfig`].
//!
//! Relative paths are relative to the file. What the client cannot do (exec plugins, auth providers, proxies,
//! impersonation) is refused by name and never silently skipped. Unknown fields are passed over, as kubectl does.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error("reading {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parsing kubeconfig {}", path.display())]
    Parse { path: PathBuf, source: serde_yaml::Error },
    #[error("kubeconfig {}: {message}", path.display())]
    Invalid { path: PathBuf, message: String },
    #[error("not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be set")]
    NotInCluster,
}

/// Bytes given inline, or a file that is read again whenever they are needed.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    Inline(Vec<u8>),
    File(PathBuf),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl Source {
    /// The bytes as they are now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, KubeconfigError> {
        match self {
            Self::Inline(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                std::fs::read(path).map_err(|source| KubeconfigError::Read { path: path.clone(), source })
            }
        }
    }
}

/// How to reach a cluster, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Base URLs, tried in turn.
    pub servers: Vec<String>,
    /// `None`: the system's CA bundle.
    pub certificate_authority: Option<Source>,
    pub insecure_skip_tls_verify: bool,
    /// The name that the server's certificate must carry, when it is not the URL's host.
    pub tls_server_name: Option<String>,
    /// Certificate and key.
    pub client_certificate: Option<(Source, Source)>,
    pub token: Option<Source>,
    pub basic: Option<(String, String)>,
    /// The context's namespace, else `default`.
    pub namespace: String,
}

impl ClusterConfig {
    /// A configuration without credentials.
    #[must_use]
    pub fn anonymous(server: &str, certificate_authority: Option<Source>) -> Self {
        Self {
            servers: vec![server.to_owned()],
            certificate_authority,
            insecure_skip_tls_verify: false,
            tls_server_name: None,
            client_certificate: None,
            token: None,
            basic: None,
            namespace: "default".to_owned(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
    contexts: Vec<NamedContext>,
    current_context: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Cluster,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    tls_server_name: String,
    proxy_url: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    username: String,
    password: String,
    exec: Option<serde_yaml::Value>,
    auth_provider: Option<serde_yaml::Value>,
    #[serde(rename = "as")]
    impersonate: String,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Context,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: String,
}

/// Loads the current context of a kubeconfig file.
///
/// # Errors
/// The file cannot be read or parsed, the context does not lead to a cluster, or it asks for what is refused.
pub fn load(path: &Path) -> Result<ClusterConfig, KubeconfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// As [`load`], for a text; `path` is what relative paths and errors refer to.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, path: &Path) -> Result<ClusterConfig, KubeconfigError> {
    let file: Kubeconfig = serde_yaml::from_str(text)
        .map_err(|source| KubeconfigError::Parse { path: path.to_owned(), source })?;
    resolve(file, path.parent().unwrap_or(Path::new("")))
        .map_err(|message| KubeconfigError::Invalid { path: path.to_owned(), message })
}

fn resolve(file: Kubeconfig, base: &Path) -> Result<ClusterConfig, String> {
    let context = if file.current_context.is_empty() && file.contexts.len() == 1 {
        file.contexts.into_iter().next()
    } else {
        file.contexts.into_iter().find(|context| context.name == file.current_context)
    };
    let context =
        context.ok_or_else(|| format!("context {:?} does not exist", file.current_context))?.context;
    let cluster = file
        .clusters
        .into_iter()
        .find(|cluster| cluster.name == context.cluster)
        .ok_or_else(|| format!("cluster {:?} does not exist", context.cluster))?
        .cluster;
    let user = match file.users.into_iter().find(|user| user.name == context.user) {
        Some(user) => user.user,
        None if context.user.is_empty() => User::default(),
        None => return Err(format!("user {:?} does not exist", context.user)),
    };
    for (field, set) in [
        ("exec", user.exec.is_some()),
        ("auth-provider", user.auth_provider.is_some()),
        ("as", !user.impersonate.is_empty()),
        ("proxy-url", !cluster.proxy_url.is_empty()),
    ] {
        if set {
            return Err(format!("{field} is not supported"));
        }
    }
    let servers: Vec<String> = cluster
        .server
        .split(',')
        .map(|server| server.trim().trim_end_matches('/').to_owned())
        .filter(|server| !server.is_empty())
        .collect();
    if servers.is_empty() {
        return Err("server is not set".to_owned());
    }
    let source = |field: &str, data: String, file: String| -> Result<Option<Source>, String> {
        // Data overrides files, as in client-go.
        if !data.is_empty() {
            let compact: String = data.split_whitespace().collect();
            let bytes = STANDARD.decode(compact).map_err(|error| format!("{field}-data: {error}"))?;
            return Ok(Some(Source::Inline(bytes)));
        }
        Ok((!file.is_empty()).then(|| Source::File(base.join(file))))
    };
    let certificate = source("client-certificate", user.client_certificate_data, user.client_certificate)?;
    let key = source("client-key", user.client_key_data, user.client_key)?;
    let client_certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err("client-certificate is set but client-key is not".to_owned()),
        (None, Some(_)) => return Err("client-key is set but client-certificate is not".to_owned()),
    };
    // A token file takes precedence over the token that stands beside it.
    let token = if user.token_file.is_empty() {
        (!user.token.is_empty()).then(|| Source::Inline(user.token.into_bytes()))
    } else {
        Some(Source::File(base.join(user.token_file)))
    };
    Ok(ClusterConfig {
        servers,
        certificate_authority: source(
            "certificate-authority",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )?,
        insecure_skip_tls_verify: cluster.insecure_skip_tls_verify,
        tls_server_name: (!cluster.tls_server_name.is_empty()).then_some(cluster.tls_server_name),
        client_certificate,
        token,
        basic: (!user.username.is_empty()).then_some((user.username, user.password)),
        namespace: if context.namespace.is_empty() { "default".to_owned() } else { context.namespace },
    })
}

/// The configuration that every pod is given.
///
/// # Errors
/// The environment is not a pod's.
pub fn in_cluster() -> Result<ClusterConfig, KubeconfigError> {
    let (Ok(host), Ok(port)) =
        (std::env::var("KUBERNETES_SERVICE_HOST"), std::env::var("KUBERNETES_SERVICE_PORT"))
    else {
        return Err(KubeconfigError::NotInCluster);
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let directory = Path::new(SERVICE_ACCOUNT);
    let mut config = ClusterConfig::anonymous(
        &format!("https://{host}:{port}"),
        Some(Source::File(directory.join("ca.crt"))),
    );
    config.token = Some(Source::File(directory.join("token")));
    if let Ok(namespace) = std::fs::read_to_string(directory.join("namespace")) {
        config.namespace = namespace.trim().to_owned();
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\npreferences: {{}}\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: k, user: u, namespace: team}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[test]
    fn every_kind_of_credential() {
        let path = Path::new("/etc/kubernetes/x.conf");
        let parse = |cluster: &str, user: &str| parse(&file(cluster, user), path).unwrap();
        let config = parse(
            "server: 'https://a:6443,https://b:6443/', certificate-authority: pki/ca.crt, tls-server-name: kubernetes",
            "client-certificate: /abs/c.pem, client-key-data: a2V5",
        );
        assert_eq!(config.servers, ["https://a:6443", "https://b:6443"]);
        assert_eq!(config.certificate_authority, Some(Source::File("/etc/kubernetes/pki/ca.crt".into())));
        assert_eq!(config.tls_server_name.as_deref(), Some("kubernetes"));
        let (certificate, key) = config.client_certificate.unwrap();
        assert_eq!(certificate, Source::File("/abs/c.pem".into()));
        assert_eq!(key, Source::Inline(b"key".to_vec()));
        assert_eq!(config.namespace, "team");

        let config = parse("server: http://a, insecure-skip-tls-verify: true", "token: t, tokenFile: token");
        assert_eq!(config.token, Some(Source::File("/etc/kubernetes/token".into())));
        assert!(config.insecure_skip_tls_verify);
        let config = parse("server: http://a", "username: x, password: y");
        assert_eq!(config.basic, Some(("x".into(), "y".into())));
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let error = parse(text, Path::new("f")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check(&file("server: https://a", "exec: {command: x}"), "exec is not supported");
        check(&file("server: https://a, proxy-url: http://p", "token: t"), "proxy-url is not supported");
        check(&file("server: ''", "token: t"), "server is not set");
        check(&file("server: https://a", "client-key-data: a2V5"), "client-certificate is not");
        check(&file("server: https://a, certificate-authority-data: '%'", ""), "certificate-authority-data");
        check("current-context: nope", "context \"nope\" does not exist");
        check("{", "parsing kubeconfig f");
    }
}

//! Builds [`Access`] from flags and files, and feeds it what exists from the watch caches.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use keelson_access::{
    admission::chain::{Dependencies, PluginError, plugins},
    authn::{
        chain::{Anonymous, Authentication},
        front_proxy::{FrontProxy, FrontProxyConfig},
        service_account::ServiceAccountTokens,
        x509::{CaError, ClientCertificates},
    },
    authz::{
        Authorizer,
        node::NodeAuthorizer,
        rbac::Rbac,
        union::{Always, Union},
    },
    observed::{Event, Freshness, Observer, Resource as Observed},
    state::State,
    token::{
        TokenConfig, Tokens,
        keys::{KeyError, SigningKey, VerificationKey},
    },
};
use keelson_storage::{ListOptions, ListVersion, Notice, Resource};
use tokio::sync::Notify;

use crate::{config::Config, served::Table, server::Access};

/// A file or flag of access that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("reading {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("service account key {path}")]
    Key { path: PathBuf, source: KeyError },
    #[error("client CA {path}")]
    Ca { path: PathBuf, source: CaError },
    #[error("admission plugins")]
    Plugin(#[from] PluginError),
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::Read { path: path.to_owned(), source })
}

/// Everything about access that a server needs; [`Feed::start`] must run for it to see objects.
pub fn build(config: &Config, table: &Table) -> Result<(Access, Feed), AccessError> {
    let state = Arc::new(State::default());
    let rbac = Arc::new(Rbac::default());
    let mut observers: Vec<Arc<dyn Observer>> = vec![state.clone(), rbac.clone()];
    let progress = Arc::new(Progress::new(table));
    let freshness: Arc<dyn Freshness> = progress.clone();
    let tokens = Arc::new(tokens(config)?);
    let authentication = Authentication {
        front_proxy: front_proxy(config)?.map(Arc::new),
        client_certificates: match &config.client_ca_file {
            None => None,
            Some(path) => {
                let certificates = ClientCertificates::new(&read(path)?)
                    .map_err(|source| AccessError::Ca { path: path.clone(), source })?;
                Some(Arc::new(certificates))
            }
        },
        service_accounts: Some(ServiceAccountTokens::new(tokens.clone(), state.clone(), freshness.clone())),
        anonymous: anonymous(config),
    };
    let mut modes: Vec<Arc<dyn Authorizer>> = Vec::new();
    for mode in &config.authorization_mode {
        match mode.as_str() {
            "RBAC" => modes.push(rbac.clone()),
            "AlwaysAllow" => modes.push(Arc::new(Always(true))),
            "AlwaysDeny" => modes.push(Arc::new(Always(false))),
            // Config::validate has refused every other word.
            _ => {
                let node = Arc::new(NodeAuthorizer::default());
                observers.push(node.clone());
                modes.push(node);
            }
        }
    }
    let authorizer: Arc<dyn Authorizer> = Arc::new(Union::new(modes));
    let admission = plugins(
        &config.enable_admission_plugins,
        &config.disable_admission_plugins,
        &Dependencies {
            state: state.clone(),
            freshness: freshness.clone(),
            authorizer: authorizer.clone(),
            not_ready_seconds: config.default_not_ready_toleration_seconds,
            unreachable_seconds: config.default_unreachable_toleration_seconds,
        },
    )?;
    let access = Access {
        authentication,
        authorizer,
        rbac,
        admission,
        tokens,
        state,
        freshness: freshness.clone(),
        fed: AtomicBool::new(false),
    };
    Ok((access, Feed { observers, progress }))
}

/// Nobody in particular may do anything where everything is allowed: as upstream, the flag is overruled then.
fn anonymous(config: &Config) -> Anonymous {
    let everything_is_allowed = config.authorization_mode.iter().any(|mode| mode == "AlwaysAllow");
    match (config.anonymous_auth, everything_is_allowed) {
        (false, _) => Anonymous::Off,
        (true, false) => Anonymous::Everywhere,
        (true, true) => {
            tracing::warn!("--anonymous-auth is not allowed with the AlwaysAllow authorizer: it is off");
            Anonymous::Off
        }
    }
}

fn tokens(config: &Config) -> Result<Tokens, AccessError> {
    let mut verification_keys = Vec::new();
    for path in &config.service_account_key_files {
        let keys = VerificationKey::parse_all(&read(path)?)
            .map_err(|source| AccessError::Key { path: path.clone(), source })?;
        verification_keys.extend(keys);
    }
    let path = &config.service_account_signing_key_file;
    let signing_key =
        SigningKey::parse(&read(path)?).map_err(|source| AccessError::Key { path: path.clone(), source })?;
    let longest = config.service_account_max_token_expiration;
    Ok(Tokens::new(TokenConfig {
        issuers: config.service_account_issuer.clone(),
        audiences: config.api_audiences.clone(),
        signing_key: Some(signing_key),
        verification_keys,
        max_expiration: (!longest.is_zero()).then(|| i64::try_from(longest.as_secs()).unwrap_or(i64::MAX)),
    }))
}

fn front_proxy(config: &Config) -> Result<Option<FrontProxy>, AccessError> {
    let Some(path) = &config.requestheader_client_ca_file else { return Ok(None) };
    FrontProxy::new(FrontProxyConfig {
        ca_pem: read(path)?,
        allowed_names: config.requestheader_allowed_names.clone(),
        username_headers: config.requestheader_username_headers.clone(),
        uid_headers: config.requestheader_uid_headers.clone(),
        group_headers: config.requestheader_group_headers.clone(),
        extra_header_prefixes: config.requestheader_extra_headers_prefix.clone(),
    })
    .map(Some)
    .map_err(|source| AccessError::Ca { path: path.clone(), source })
}

/// How far the observers have come, per resource.
struct Progress {
    resources: HashMap<Observed, (Arc<Resource>, Seen)>,
}

#[derive(Default)]
struct Seen {
    version: AtomicU64,
    moved: Notify,
}

/// Longest wait of a catch-up; a request must not hang on a store that is away.
const CATCH_UP: Duration = Duration::from_secs(2);

impl Progress {
    fn new(table: &Table) -> Self {
        let resources = Observed::ALL.iter().filter_map(|observed| {
            let (group, plural) = observed.group_resource();
            let resource = table.find_any(group, plural)?.resource.clone()?;
            Some((*observed, (resource, Seen::default())))
        });
        Progress { resources: resources.collect() }
    }
}

impl Freshness for Progress {
    fn catch_up(&self, observed: Observed) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some((resource, seen)) = self.resources.get(&observed) else { return };
            let work = async {
                // A consistent list brings the cache up to the store's revision of now.
                let options =
                    ListOptions { limit: 1, version: ListVersion::Latest, ..ListOptions::default() };
                if resource.list(options).await.is_err() {
                    return;
                }
                let newest = resource
                    .cached_list("")
                    .iter()
                    .map(|object| object.resource_version())
                    .max()
                    .unwrap_or(0);
                loop {
                    let moved = seen.moved.notified();
                    if seen.version.load(Ordering::Acquire) >= newest {
                        return;
                    }
                    moved.await;
                }
            };
            if tokio::time::timeout(CATCH_UP, work).await.is_err() {
                tracing::warn!(resource = ?observed, "access could not catch up with the store");
            }
        })
    }
}

/// Shows the observers every object.
pub struct Feed {
    observers: Vec<Arc<dyn Observer>>,
    progress: Arc<Progress>,
}

impl Feed {
    /// Starts one task per resource; they end with the storage. The receiver's value is the number of resources
    /// whose state has not been shown completely yet.
    pub fn start(self) -> tokio::sync::watch::Receiver<usize> {
        let (pending, receiver) = tokio::sync::watch::channel(self.progress.resources.len());
        let observers: Arc<[Arc<dyn Observer>]> = self.observers.into();
        let pending = Arc::new(pending);
        for (observed, (resource, _)) in &self.progress.resources {
            let observed = *observed;
            let mut subscription = resource.subscribe();
            let (observers, progress, pending) = (observers.clone(), self.progress.clone(), pending.clone());
            tokio::spawn(async move {
                let Some((_, seen)) = progress.resources.get(&observed) else { return };
                while let Some(notice) = subscription.next().await {
                    let object = match &notice {
                        Notice::Synced => {
                            pending.send_modify(|left| *left = left.saturating_sub(1));
                            continue;
                        }
                        Notice::Upsert(object) => {
                            let value = object.value();
                            observers.iter().for_each(|one| one.observe(observed, Event::Upsert(&value)));
                            object
                        }
                        Notice::Delete(object) => {
                            let event = Event::Delete { namespace: object.namespace(), name: object.name() };
                            observers.iter().for_each(|one| one.observe(observed, event));
                            object
                        }
                    };
                    seen.version.fetch_max(object.resource_version(), Ordering::AcqRel);
                    seen.moved.notify_waiters();
                }
            });
        }
        receiver
    }
}

//! Builds every part from flags and configuration, and runs them until the process is told to stop.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use k8s_openapi::api::core::v1::Service;
use keelson_client::cache;
use keelson_component_base::{
    health::Checks,
    metrics::Registry,
    serve::{Endpoints, ServeError},
    shutdown,
};
use kube::{Api, Client};
use parking_lot::RwLock;

use crate::{
    cgroups::{Cgroups, Version},
    config::{self, ConfigError, Flags, KubeletConfiguration},
    context::{self, Kubelet, RuntimeCondition},
    events::Events,
    eviction::{self, Pressures},
    images::{self, Images},
    metrics::Metrics,
    mirror::Mirrors,
    node::{self, NodeReporter, capacity},
    objects::Referenced,
    pod::{dns, resources::Amounts},
    pods::{API, FILE, Pods},
    runtime::{ConnectError, Runtime, events::Events as RuntimeEvents},
    server, source,
    volumes::{Volumes, token::Tokens},
};

/// Why the kubelet does not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("configuration")]
    Config(#[from] ConfigError),
    #[error("container runtime")]
    Runtime(#[from] ConnectError),
    #[error("--kubeconfig")]
    Client(#[from] keelson_client::ConnectError),
    #[error("{0}")]
    Host(String),
    #[error("making {0}")]
    Directory(std::path::PathBuf, #[source] std::io::Error),
    #[error("making the pods' cgroups")]
    Cgroups(#[source] std::io::Error),
    #[error("resolvConf {0:?}")]
    Resolver(String, #[source] std::io::Error),
    #[error("serving")]
    Serve(#[from] ServeError),
    #[error("serving certificate")]
    Tls(#[from] keelson_component_base::tls::TlsError),
    #[error("signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the kubelet until SIGINT or SIGTERM.
///
/// # Errors
/// What keeps it from starting; once it runs it does not end by itself.
pub async fn run(flags: Flags) -> Result<(), RunError> {
    let mut config = match &flags.config {
        Some(path) => config::load(path)?,
        None => KubeletConfiguration::default(),
    };
    if let Some(endpoint) = &flags.container_runtime_endpoint {
        config.container_runtime_endpoint.clone_from(endpoint);
    }
    config.validate()?;
    eviction::validate(&config).map_err(ConfigError::Invalid)?;
    let labels = config::node_labels(&flags.node_labels)?;
    let hostname = hostname(&flags)?;
    let cgroups = Cgroups::new(&config.cgroup_root);
    check_host(&config, &cgroups)?;
    let cancel = shutdown::signalled().map_err(RunError::Signals)?;

    let registry = Registry::new();
    let metrics = Arc::new(Metrics::default());
    metrics.register(&registry);
    metrics.set_node(&hostname);
    let image_endpoint = Some(config.image_service_endpoint.as_str()).filter(|endpoint| !endpoint.is_empty());
    let runtime = Runtime::connect(&config.container_runtime_endpoint, image_endpoint, metrics.clone())?;
    let client = flags
        .kubeconfig
        .as_deref()
        .map(|path| keelson_client::connect(path, &keelson_client::user_agent("kubelet")))
        .transpose()?;
    let root =
        std::path::absolute(&flags.root_dir).map_err(|e| RunError::Directory(flags.root_dir.clone(), e))?;
    for directory in [root.join("pods"), config.pod_logs_dir.clone()] {
        std::fs::create_dir_all(&directory).map_err(|error| RunError::Directory(directory, error))?;
    }
    let root = private_pods(&root).map_err(|error| RunError::Directory(root, error))?;
    let addresses = if flags.node_ip.is_empty() { default_addresses().await } else { flags.node_ip.clone() };
    let (kubelet, pods_slot) =
        build(&config, client.clone(), runtime, metrics, cgroups, &hostname, root, &addresses)?;
    kubelet.record_of_node(&node::events::starting());
    let mut limit = crate::admission::pods_limit(&kubelet);
    if !config.enforce_node_allocatable.iter().any(|what| what == "pods") {
        limit.memory = 0;
    }
    kubelet.cgroups.prepare(limit).map_err(RunError::Cgroups)?;
    kubelet.record_of_node(&node::events::allocatable_enforced());

    let runtime_events = Arc::new(RuntimeEvents::new(kubelet.runtime.clone(), kubelet.metrics.clone()));
    let mut sources = Vec::new();
    if client.is_some() {
        sources.push(API);
    }
    if config.static_pod_path.is_some() {
        sources.push(FILE);
    }
    let mirrors = client.clone().map(|client| Mirrors::new(client, &hostname));
    let pods = Pods::new(kubelet.clone(), runtime_events.clone(), mirrors, sources);
    // The cell was made above and is filled only here.
    let _ = pods_slot.set(pods.clone());
    let pressures = Arc::new(Pressures::default());
    let reporter = Arc::new(NodeReporter {
        kubelet: kubelet.clone(),
        runtime_events: runtime_events.clone(),
        pressures: pressures.clone(),
        labels,
        addresses,
        hostname: hostname.clone(),
        register: flags.register_node,
        changed: tokio::sync::Notify::new(),
    });

    let checks = checks(&runtime_events);
    let servers = serve(&flags, &kubelet, &pods, &runtime_events, &registry, &checks).await?;
    let tasks = tokio_util::task::TaskTracker::new();
    for server in servers {
        tasks.spawn(server.run(cancel.clone()));
    }
    tasks.spawn(reporter.clone().watch_runtime(cancel.clone()));
    let woken = pods.clone();
    tasks.spawn(runtime_events.clone().run(move |uid| woken.wake(uid), cancel.clone()));
    if let Some(client) = client {
        tasks.spawn(source::api::run(client.clone(), hostname.clone(), pods.clone(), cancel.clone()));
        tasks.spawn(reporter.clone().run(client, cancel.clone()));
    } else if !config.pod_cidr.is_empty() {
        let (reporter, cidr) = (reporter.clone(), config.pod_cidr.clone());
        tasks.spawn(async move {
            if let Err(error) = reporter.update_pod_cidr(&cidr).await {
                tracing::warn!(%error, "telling the runtime the pod CIDR");
            }
        });
    }
    if let Some(directory) = config.static_pod_path.clone() {
        let (pods, cancel) = (pods.clone(), cancel.clone());
        tasks.spawn(source::file::run(
            directory,
            hostname.clone(),
            config.file_check_frequency,
            pods,
            cancel,
        ));
    }
    tasks.spawn(pods.clone().housekeeping(cancel.clone()));
    tasks.spawn(images::gc::run(kubelet.clone(), cancel.clone()));
    tasks.spawn(eviction::run(kubelet.clone(), pods.clone(), pressures, cancel.clone()));
    tasks.spawn(server::rotation::run(kubelet.clone(), cancel.clone()));
    keelson_component_base::systemd::notify_ready();
    tracing::info!(node = hostname, version = crate::node::status::VERSION, "the kubelet runs");
    cancel.cancelled().await;
    tasks.close();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), tasks.wait()).await;
    Ok(())
}

/// The root's true path, by which the kernel lists mounts; what pods have below it is not for every user of the host.
fn private_pods(root: &std::path::Path) -> std::io::Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let root = std::fs::canonicalize(root)?;
    std::fs::set_permissions(root.join("pods"), std::fs::Permissions::from_mode(0o750))?;
    Ok(root)
}

fn hostname(flags: &Flags) -> Result<String, RunError> {
    let name = match &flags.hostname_override {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .map_err(|error| RunError::Host(format!("the host's name: {error}")))?
            .to_string_lossy()
            .into_owned(),
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err(RunError::Host("empty hostname is invalid".to_owned()));
    }
    Ok(name)
}

/// What the configuration forbids the host to be.
fn check_host(config: &KubeletConfiguration, cgroups: &Cgroups) -> Result<(), RunError> {
    if config.fail_swap_on && capacity::swap_is_on() {
        let text = "running with swap on is not supported, please disable swap or set failSwapOn to false";
        return Err(RunError::Host(text.to_owned()));
    }
    if cgroups.version() == Version::V1 {
        if config.fail_cgroup_v1 {
            let text = "kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is deprecated \
                        (set failCgroupV1 to false to run on it)";
            return Err(RunError::Host(text.to_owned()));
        }
        tracing::warn!("cgroup v1 support is in maintenance mode, please migrate to cgroup v2");
    }
    Ok(())
}

/// The address that this host would send from, without sending anything.
async fn default_addresses() -> Vec<IpAddr> {
    let Ok(socket) = tokio::net::UdpSocket::bind("0.0.0.0:0").await else { return Vec::new() };
    let address = match socket.connect("192.0.2.1:9").await {
        Ok(()) => socket.local_addr().ok().map(|address| address.ip()),
        Err(_) => None,
    };
    vec![address.unwrap_or(IpAddr::from([127, 0, 0, 1]))]
}

type PodsSlot = Arc<OnceLock<Arc<Pods>>>;

#[expect(clippy::too_many_arguments, reason = "called once, right after each of these was made")]
fn build(
    config: &KubeletConfiguration,
    client: Option<Client>,
    runtime: Runtime,
    metrics: Arc<Metrics>,
    cgroups: Cgroups,
    hostname: &str,
    root: std::path::PathBuf,
    addresses: &[IpAddr],
) -> Result<(Arc<Kubelet>, PodsSlot), RunError> {
    let pods: PodsSlot = Arc::default();
    let slot = pods.clone();
    let beside = pods.clone();
    let requested_beside = Arc::new(move |uid: &str| {
        beside.get().map_or_else(Amounts::default, |pods| pods.requested_beside(uid))
    });
    let wake: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |uid: &str| {
        if let Some(pods) = slot.get() {
            pods.retry(uid);
        }
    });
    let events = Events::new(client.as_ref(), hostname);
    let services = client.clone().map(|client| {
        let api: Api<Service> = Api::all(client);
        cache::start(api, cache::config(), context::service_env, cache::Indexers::default())
    });
    let capacity = capacity::machine();
    let host_resolver = dns::host_resolver(&config.resolv_conf)
        .map_err(|e| RunError::Resolver(config.resolv_conf.clone(), e))?;
    let kubelet = Kubelet {
        node_name: hostname.to_owned(),
        images: Images::new(runtime.clone(), events.clone(), config.serialize_image_pulls),
        volumes: Volumes {
            root: root.clone(),
            config_maps: Arc::new(Referenced::new(client.clone(), wake.clone())),
            secrets: Arc::new(Referenced::new(client.clone(), wake)),
            tokens: Tokens::new(client.clone()),
            node: capacity,
        },
        root,
        runtime,
        client,
        events,
        services,
        metrics,
        cgroups,
        capacity,
        host_ips: RwLock::new(addresses.iter().map(IpAddr::to_string).collect()),
        runtime_condition: RwLock::new(RuntimeCondition::default()),
        host_resolver,
        requested_beside,
        config: config.clone(),
    };
    Ok((Arc::new(kubelet), pods))
}

fn checks(events: &Arc<RuntimeEvents>) -> Checks {
    let checks = Checks::new();
    let events = events.clone();
    // A kubelet is alive while it can look at its containers; before the first look it is only starting.
    checks.add("pleg", move || match events.healthy() {
        Err(why) if !why.contains("yet to be successful") => Err(why),
        _ => Ok(()),
    });
    checks
}

async fn serve(
    flags: &Flags,
    kubelet: &Arc<Kubelet>,
    pods: &Arc<Pods>,
    events: &Arc<RuntimeEvents>,
    registry: &Registry,
    checks: &Checks,
) -> Result<Vec<keelson_component_base::serve::Bound>, RunError> {
    let config = &kubelet.config;
    let mut servers = Vec::new();
    if config.healthz_port > 0 {
        let address = SocketAddr::new(config.healthz_bind_address, config.healthz_port);
        servers.push(Endpoints::new(address, checks.clone(), registry.clone()).bind().await?);
    }
    if config.enable_server {
        let directory = flags.cert_dir.clone().unwrap_or_else(|| kubelet.root.join("pki"));
        let server = server::Server {
            kubelet: kubelet.clone(),
            pods: pods.clone(),
            runtime_events: events.clone(),
            registry: registry.clone(),
            checks: checks.clone(),
        };
        servers.push(server.endpoints(&directory)?.bind().await?);
    }
    Ok(servers)
}

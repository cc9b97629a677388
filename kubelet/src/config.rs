//! Flags and `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1), with upstream's names and defaults.
//!
//! A field that upstream knows and this kubelet does not act on is refused by name, as is one nobody knows: a setting
//! is never silently without effect.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Deserializer};

/// What is given on the command line.
#[derive(Debug, clap::Parser)]
#[command(name = "kubelet", about = "Runs the pods of one node through a container runtime", version)]
pub struct Flags {
    /// A KubeletConfiguration file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// How to reach the API server; without it only static pods run.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of the node, one or one of each family; the first is what pods are told.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// The node's name instead of the host's.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Where pods' volumes and the kubelet's own state live.
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Where a self-signed serving certificate is put if none is configured.
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// Labels the node registers with.
    #[arg(long, value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Whether to create the Node object.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true",
        value_parser = keelson_component_base::flags::boolean, action = clap::ArgAction::Set)]
    pub register_node: bool,
    /// The runtime's socket; the configuration file's containerRuntimeEndpoint if absent.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    #[command(flatten)]
    pub log: keelson_component_base::logging::LogArgs,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading {0}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{0} is not a KubeletConfiguration")]
    Parse(PathBuf, #[source] serde_yaml::Error),
    #[error(
        "{path}: apiVersion {api_version:?}, kind {kind:?}: only kubelet.config.k8s.io/v1beta1 KubeletConfiguration is known"
    )]
    Kind { path: PathBuf, api_version: String, kind: String },
    #[error("{path}: field {field:?} is not supported by this kubelet; remove it")]
    Unsupported { path: PathBuf, field: String },
    #[error("invalid configuration: {0}")]
    Invalid(String),
    #[error("--node-labels: {0:?} is not key=value")]
    NodeLabel(String),
    #[error("--node-labels: unknown 'kubernetes.io' or 'k8s.io' label {0:?}")]
    ReservedLabel(String),
}

/// Upstream's fields that this kubelet does not act on.
const UNSUPPORTED: &[&str] = &[
    "allowedUnsafeSysctls",
    "allowedStaticPods",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "contentType",
    "cpuCFSQuotaPeriod",
    "cpuManagerPolicy",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "crashLoopBackOff",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "eventBurst",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "featureGates",
    "hairpinMode",
    "imageMaximumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "maxParallelImagePulls",
    "memoryManagerPolicy",
    "memorySwap",
    "memoryThrottlingFactor",
    "memoryReservationPolicy",
    "nodeLeaseRenewIntervalFraction",
    "nodeStatusMaxImages",
    "oomScoreAdj",
    "podPidsLimit",
    "podsPerCore",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "providerID",
    "qosReserved",
    "registerNode",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "reservedSystemCPUs",
    "rotateCertificates",
    "runOnce",
    "runtimeRequestTimeout",
    "seccompDefault",
    "serverTLSBootstrap",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodURL",
    "staticPodURLHeader",
    "streamingConnectionIdleTimeout",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCipherSuites",
    "tlsCurvePreferences",
    "tlsMinVersion",
    "topologyManagerPolicy",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
    "enableProfilingHandler",
    "enableContentionProfiling",
    "reservedCPUs",
    "experimentalWatchEvents",
    "httpCheckFrequency",
    "enableCRISocketEvents",
    "enableNodeDeclaredFeatures",
];

/// `KubeletConfiguration`, the fields in use.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubeletConfiguration {
    pub api_version: String,
    pub kind: String,
    pub address: IpAddr,
    pub port: u16,
    pub read_only_port: u16,
    pub authentication: Authentication,
    pub authorization: Authorization,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub cgroup_driver: String,
    pub cgroup_root: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    pub container_runtime_endpoint: String,
    pub image_service_endpoint: String,
    pub static_pod_path: Option<PathBuf>,
    #[serde(deserialize_with = "duration")]
    pub file_check_frequency: Duration,
    pub tls_cert_file: Option<PathBuf>,
    pub tls_private_key_file: Option<PathBuf>,
    pub healthz_port: u16,
    pub healthz_bind_address: IpAddr,
    pub max_pods: u32,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    #[serde(deserialize_with = "duration")]
    pub node_status_update_frequency: Duration,
    #[serde(deserialize_with = "duration")]
    pub node_status_report_frequency: Duration,
    pub node_lease_duration_seconds: u32,
    pub fail_swap_on: bool,
    #[serde(rename = "failCgroupV1")]
    pub fail_cgroup_v1: bool,
    #[serde(deserialize_with = "duration")]
    pub sync_frequency: Duration,
    #[serde(rename = "resolvConf")]
    pub resolv_conf: String,
    pub eviction_hard: Option<BTreeMap<String, String>>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u8,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u8,
    #[serde(rename = "imageMinimumGCAge", deserialize_with = "duration")]
    pub image_minimum_gc_age: Duration,
    pub register_with_taints: Vec<Taint>,
    pub serialize_image_pulls: bool,
    pub pod_logs_dir: PathBuf,
    pub container_log_max_size: String,
    pub container_log_max_files: u32,
    pub kube_reserved: BTreeMap<String, String>,
    pub system_reserved: BTreeMap<String, String>,
    pub enforce_node_allocatable: Vec<String>,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    pub enable_debugging_handlers: bool,
    pub enable_server: bool,
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            api_version: String::new(),
            kind: String::new(),
            address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            read_only_port: 0,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_root: String::new(),
            cgroups_per_qos: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            image_service_endpoint: String::new(),
            static_pod_path: None,
            file_check_frequency: Duration::from_secs(20),
            tls_cert_file: None,
            tls_private_key_file: None,
            healthz_port: 10248,
            healthz_bind_address: IpAddr::from([127, 0, 0, 1]),
            max_pods: 110,
            pod_cidr: String::new(),
            node_status_update_frequency: Duration::from_secs(10),
            node_status_report_frequency: Duration::from_secs(300),
            node_lease_duration_seconds: 40,
            fail_swap_on: true,
            fail_cgroup_v1: true,
            sync_frequency: Duration::from_secs(60),
            resolv_conf: "/etc/resolv.conf".to_owned(),
            eviction_hard: None,
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: Duration::from_secs(120),
            register_with_taints: Vec::new(),
            serialize_image_pulls: true,
            pod_logs_dir: "/var/log/pods".into(),
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            kube_reserved: BTreeMap::new(),
            system_reserved: BTreeMap::new(),
            enforce_node_allocatable: vec!["pods".to_owned()],
            cpu_cfs_quota: true,
            enable_debugging_handlers: true,
            enable_server: true,
            event_record_qps: 50,
        }
    }
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: Webhook,
    pub anonymous: Anonymous,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: Option<PathBuf>,
}

/// Bearer tokens by TokenReview.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    pub enabled: bool,
    #[serde(rename = "cacheTTL", deserialize_with = "duration")]
    pub cache_ttl: Duration,
}

impl Default for Webhook {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: Duration::from_secs(120) }
    }
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Anonymous {
    pub enabled: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authorization {
    pub mode: AuthorizationMode,
    pub webhook: AuthorizationWebhook,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: AuthorizationMode::Webhook, webhook: AuthorizationWebhook::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AuthorizationMode {
    Webhook,
    AlwaysAllow,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationWebhook {
    #[serde(rename = "cacheAuthorizedTTL", deserialize_with = "duration")]
    pub cache_authorized_ttl: Duration,
    #[serde(rename = "cacheUnauthorizedTTL", deserialize_with = "duration")]
    pub cache_unauthorized_ttl: Duration,
}

impl Default for AuthorizationWebhook {
    fn default() -> Self {
        Self {
            cache_authorized_ttl: Duration::from_secs(300),
            cache_unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

/// Reads and checks a configuration file.
///
/// # Errors
/// Names the file and the field at fault.
pub fn load(path: &std::path::Path) -> Result<KubeletConfiguration, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.into(), e))?;
    parse(&text, path)
}

fn parse(text: &str, path: &std::path::Path) -> Result<KubeletConfiguration, ConfigError> {
    let at = |e| ConfigError::Parse(path.to_path_buf(), e);
    let raw: serde_yaml::Mapping = serde_yaml::from_str(text).map_err(at)?;
    let known = raw.keys().filter_map(|key| key.as_str()).find(|key| UNSUPPORTED.contains(key));
    if let Some(field) = known {
        return Err(ConfigError::Unsupported { path: path.into(), field: field.to_owned() });
    }
    let config: KubeletConfiguration = serde_yaml::from_str(text).map_err(at)?;
    if config.api_version != "kubelet.config.k8s.io/v1beta1" || config.kind != "KubeletConfiguration" {
        let (api_version, kind) = (config.api_version, config.kind);
        return Err(ConfigError::Kind { path: path.into(), api_version, kind });
    }
    config.validate()?;
    Ok(config)
}

impl KubeletConfiguration {
    /// What cannot be said by the fields' types.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |text: &str| Err(ConfigError::Invalid(text.to_owned()));
        if self.cgroup_driver != "cgroupfs" {
            return invalid("cgroupDriver: only \"cgroupfs\" is supported by this kubelet");
        }
        if !self.cgroups_per_qos {
            return invalid("cgroupsPerQOS: only true is supported by this kubelet");
        }
        if self.read_only_port != 0 {
            return invalid(
                "readOnlyPort: only 0 is supported by this kubelet: an unauthenticated port is not served",
            );
        }
        if self.tls_cert_file.is_some() != self.tls_private_key_file.is_some() {
            return invalid("tlsCertFile and tlsPrivateKeyFile go together");
        }
        if self.image_gc_low_threshold_percent >= self.image_gc_high_threshold_percent
            || self.image_gc_high_threshold_percent > 100
        {
            return invalid(
                "imageGCLowThresholdPercent must be below imageGCHighThresholdPercent, which is at most 100",
            );
        }
        if let Some(other) =
            self.enforce_node_allocatable.iter().find(|key| !matches!(key.as_str(), "pods" | "none"))
        {
            return Err(ConfigError::Invalid(format!(
                "enforceNodeAllocatable: {other:?} is not supported by this kubelet"
            )));
        }
        if self.container_log_max_files < 2 {
            return invalid("containerLogMaxFiles must be greater than 1");
        }
        if self.authorization.mode == AuthorizationMode::AlwaysAllow && self.authentication.anonymous.enabled
        {
            tracing::warn!("anonymous requests are authenticated and everything is allowed to them");
        }
        Ok(())
    }
}

/// `k1=v1,k2=v2` as labels; a kubelet may not give its node labels that belong to the cluster.
///
/// # Errors
/// Names the label at fault.
pub fn node_labels(flags: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    const ALLOWED: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    ];
    flags
        .iter()
        .filter(|flag| !flag.is_empty())
        .map(|flag| {
            let (key, value) = flag.split_once('=').ok_or_else(|| ConfigError::NodeLabel(flag.clone()))?;
            let domain = key.split_once('/').map_or("", |(domain, _)| domain);
            let under = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
            let own = under("kubelet.kubernetes.io") || under("node.kubernetes.io");
            if (under("kubernetes.io") || under("k8s.io")) && !own && !ALLOWED.contains(&key) {
                return Err(ConfigError::ReservedLabel(key.to_owned()));
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Ok(keelson_component_base::duration::GoDuration::deserialize(deserializer)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn check(body: &str, expected: Result<(), &str>) {
        let result = parse(&format!("{HEAD}{body}"), std::path::Path::new("f.yaml"));
        match (result, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(part)) => {
                let mut text = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    text = format!("{text}: {source}");
                }
                assert!(text.contains(part), "{text:?} has no {part:?}");
            }
            (got, expected) => panic!("{body}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn fields() {
        check("port: 10251\nclusterDNS: [10.96.0.10]\nsyncFrequency: 1m0s\npodCIDR: 10.0.0.0/24\n", Ok(()));
        check(
            "authentication: {x509: {clientCAFile: /ca}, webhook: {cacheTTL: 0s}}\nimageGCHighThresholdPercent: 90\n",
            Ok(()),
        );
        check("registerWithTaints: [{key: a, effect: NoSchedule}]\nfailCgroupV1: false\n", Ok(()));
        check("prot: 1\n", Err("prot"));
        check("cpuManagerPolicy: static\n", Err("\"cpuManagerPolicy\" is not supported"));
        check("cgroupDriver: systemd\n", Err("cgroupfs"));
        check("authorization: {mode: Sometimes}\n", Err("Sometimes"));
        check("syncFrequency: soon\n", Err("soon"));
        check("readOnlyPort: 10255\n", Err("readOnlyPort"));
    }

    #[test]
    fn labels() {
        let check = |flag: &str, accepted: bool| {
            assert_eq!(node_labels(&[flag.to_owned()]).is_ok(), accepted, "{flag}");
        };
        check("a=b", true);
        check("example.com/a=b", true);
        check("node.kubernetes.io/x=y", true);
        check("topology.kubernetes.io/zone=z", true);
        check("node-role.kubernetes.io/control-plane=", false);
        check("a", false);
    }
}

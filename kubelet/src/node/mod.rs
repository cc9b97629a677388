//! This machine as a Node: registers it, tells its status, renews its Lease, and hands its pod CIDR to the runtime.

pub mod capacity;
pub mod events;
pub mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{ContainerImage, Node, NodeSpec, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use keelson_proto::cri;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    admission,
    context::{Kubelet, RuntimeCondition},
    eviction::{Pressure, Pressures},
    runtime::events::Events as RuntimeEvents,
};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Volumes are attached to this node by the attach-detach controller, and never by the kubelet.
const CONTROLLER_ATTACHES: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Upstream reports the fifty largest.
const MAX_IMAGES: usize = 50;
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);
const RUNTIME_PERIOD: Duration = Duration::from_secs(5);
const RUNTIME_PERIOD_DOWN: Duration = Duration::from_millis(500);

/// Everything that tells the API server about this machine.
pub struct NodeReporter {
    pub kubelet: Arc<Kubelet>,
    pub runtime_events: Arc<RuntimeEvents>,
    pub pressures: Arc<Pressures>,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub hostname: String,
    pub register: bool,
    /// The runtime's condition changed.
    pub changed: Notify,
}

/// What the last report was about.
#[derive(Default)]
struct Reported {
    at: Option<std::time::Instant>,
    unschedulable: bool,
}

impl NodeReporter {
    /// Asks the runtime how it is, for as long as the kubelet runs.
    pub async fn watch_runtime(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let condition = self.runtime_condition().await;
            let healthy = condition.runtime.is_ok() && condition.network.is_ok();
            let known = std::mem::replace(&mut *self.kubelet.runtime_condition.write(), condition.clone());
            if known != condition {
                tracing::info!(?condition, "the container runtime's condition");
                self.changed.notify_one();
            }
            tokio::select! {
                () = tokio::time::sleep(if healthy { RUNTIME_PERIOD } else { RUNTIME_PERIOD_DOWN }) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn runtime_condition(&self) -> RuntimeCondition {
        let response = match self.kubelet.runtime.status(cri::StatusRequest { verbose: false }).await {
            Ok(response) => response,
            Err(error) => {
                let down = format!("container runtime is down: {error}");
                return RuntimeCondition {
                    runtime: Err(down.clone()),
                    network: Err(down),
                    recursive_read_only: BTreeSet::new(),
                };
            }
        };
        let conditions = response.status.map(|status| status.conditions).unwrap_or_default();
        let handlers = response.runtime_handlers.into_iter();
        let recursive_read_only = handlers
            .filter(|handler| handler.features.as_ref().is_some_and(|f| f.recursive_read_only_mounts))
            .map(|handler| handler.name)
            .collect();
        let of = |kind: &str, prefix: &str| match conditions.iter().find(|condition| condition.r#type == kind)
        {
            Some(condition) if condition.status => Ok(()),
            Some(c) => Err(format!("{prefix}: {kind}=false reason:{} message:{}", c.reason, c.message)),
            None => Err(format!("{prefix}: {kind} is not reported")),
        };
        RuntimeCondition {
            runtime: of("RuntimeReady", "container runtime not ready"),
            network: of("NetworkReady", "container runtime network not ready"),
            recursive_read_only,
        }
    }

    /// Runtime and kubelet must name cgroups alike, or no container starts.
    async fn check_cgroup_driver(&self) {
        // Runtimes before containerd 1.7 do not tell.
        if let Ok(response) = self.kubelet.runtime.runtime_config(cri::RuntimeConfigRequest {}).await
            && response.linux.is_some_and(|linux| linux.cgroup_driver() == cri::CgroupDriver::Systemd)
        {
            tracing::warn!(
                "the container runtime's cgroup driver is systemd, and this kubelet has only cgroupfs \
                 (containerd: set SystemdCgroup = false)"
            );
        }
    }

    /// Registers and reports until cancelled.
    pub async fn run(self: Arc<Self>, client: Client, cancel: CancellationToken) {
        let nodes: Api<Node> = Api::all(client.clone());
        let info = self.system_info().await;
        self.check_cgroup_driver().await;
        if self.register {
            tokio::select! {
                () = self.register(&nodes, &info) => {}
                () = cancel.cancelled() => return,
            }
        }
        let lease = self.clone().renew_lease(client.clone(), cancel.clone());
        let cidr = self.clone().watch_node(client, cancel.clone());
        futures::join!(self.report(&nodes, &info, &cancel), lease, cidr);
    }

    async fn register(&self, nodes: &Api<Node>, info: &NodeSystemInfo) {
        let mut pause = RETRY;
        loop {
            match self.register_once(nodes, info).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "registering the node"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn register_once(&self, nodes: &Api<Node>, info: &NodeSystemInfo) -> Result<(), kube::Error> {
        let name = &self.kubelet.node_name;
        let mut labels = status::labels(&self.hostname);
        labels.extend(self.labels.clone());
        let annotations = BTreeMap::from([(CONTROLLER_ATTACHES.to_owned(), "true".to_owned())]);
        let taints = &self.kubelet.config.register_with_taints;
        let status = self.status(info, None).await;
        let first = events::of_status(name, None, &status);
        let node = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.clone()),
                annotations: Some(annotations.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: (!taints.is_empty()).then(|| taints.clone()),
                ..NodeSpec::default()
            }),
            status: Some(status),
        };
        match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => tracing::info!(node = name, "registered"),
            Err(kube::Error::Api(error)) if error.code == 409 => {
                // Known from before: only our labels may have changed.
                let patch = serde_json::json!({"metadata": {"labels": labels, "annotations": annotations}});
                nodes.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
            }
            Err(error) => return Err(error),
        }
        first.iter().for_each(|told| self.kubelet.record_of_node(told));
        Ok(())
    }

    async fn report(&self, nodes: &Api<Node>, info: &NodeSystemInfo, cancel: &CancellationToken) {
        let mut reported = Reported::default();
        loop {
            let pause = match self.report_once(nodes, info, &mut reported).await {
                Ok(()) => self.kubelet.config.node_status_update_frequency,
                Err(error) => {
                    tracing::warn!(%error, "reporting the node's status");
                    Duration::from_secs(1)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.changed.notified() => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Compares with what the API server has, since others write there too: the node lifecycle controller does when it
    /// has not heard from this kubelet.
    async fn report_once(
        &self,
        nodes: &Api<Node>,
        info: &NodeSystemInfo,
        reported: &mut Reported,
    ) -> Result<(), kube::Error> {
        let name = &self.kubelet.node_name;
        let node = match nodes.get(name).await {
            Err(kube::Error::Api(error)) if error.code == 404 && self.register => {
                // Somebody deleted the node: it is still here.
                self.register(nodes, info).await;
                nodes.get(name).await?
            }
            other => other?,
        };
        let unschedulable = node.spec.is_some_and(|spec| spec.unschedulable == Some(true));
        if std::mem::replace(&mut reported.unschedulable, unschedulable) != unschedulable {
            self.kubelet.record_of_node(&events::of_schedulable(name, unschedulable));
        }
        let known = node.status.unwrap_or_default();
        let tell = |told: &events::Told| self.kubelet.record_of_node(told);
        let new = self.status(info, Some(&known)).await;
        let frequency = self.kubelet.config.node_status_report_frequency;
        let due = reported.at.is_none_or(|at| at.elapsed() >= frequency);
        if due || status::differs(&known, &new) {
            self.patch(nodes, &new, &known).await?;
            reported.at = Some(std::time::Instant::now());
            events::of_status(name, Some(&known), &new).iter().for_each(tell);
        }
        Ok(())
    }

    async fn patch(
        &self,
        nodes: &Api<Node>,
        new: &NodeStatus,
        known: &NodeStatus,
    ) -> Result<(), kube::Error> {
        let mut value = serde_json::to_value(new).unwrap_or_default();
        // Addresses merge by type upstream, which loses one of two of the same type: they are replaced as a whole.
        if known.addresses != new.addresses
            && let Some(addresses) = value.get_mut("addresses").and_then(serde_json::Value::as_array_mut)
        {
            addresses.push(serde_json::json!({"$patch": "replace"}));
        } else if let Some(map) = value.as_object_mut() {
            map.remove("addresses");
        }
        let patch = serde_json::json!({"status": value});
        let params = PatchParams::default();
        nodes.patch_status(&self.kubelet.node_name, &params, &Patch::Strategic(patch)).await.map(|_| ())
    }

    /// Why the node is not ready, if it is not.
    fn ready(&self) -> Result<(), String> {
        let condition = self.kubelet.runtime_condition.read().clone();
        let problems: Vec<String> = [condition.runtime, condition.network, self.runtime_events.healthy()]
            .into_iter()
            .filter_map(Result::err)
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(format!("[{}]", problems.join(", ")).replace("[[", "["))
        }
    }

    async fn status(&self, info: &NodeSystemInfo, before: Option<&NodeStatus>) -> NodeStatus {
        let kubelet = &self.kubelet;
        let images = kubelet.runtime.list_images(cri::ListImagesRequest::default()).await.map(|r| r.images);
        let measured = status::Measured {
            capacity: kubelet.capacity,
            allocatable: admission::allocatable(kubelet),
            storage: capacity::filesystem(&kubelet.root).map_or(0, |(size, _)| size),
            max_pods: kubelet.config.max_pods,
            hostname: self.hostname.clone(),
            addresses: self.addresses.clone(),
            port: kubelet.config.port,
            info: info.clone(),
            images: image_list(images.unwrap_or_default()),
            ready: self.ready(),
            memory_pressure: self.pressures.has(Pressure::Memory),
            disk_pressure: self.pressures.has(Pressure::Disk),
            pid_pressure: self.pressures.has(Pressure::Pid),
        };
        status::status(&measured, before, Timestamp::now())
    }

    async fn system_info(&self) -> NodeSystemInfo {
        let read =
            |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let release = read("/etc/os-release");
        let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let version = self.kubelet.runtime.version(cri::VersionRequest { version: "v1".to_owned() }).await;
        let runtime = version.map_or_else(
            |_| format!("{}://Unknown", crate::pod::RUNTIME_NAME),
            |version| format!("{}://{}", version.runtime_name, version.runtime_version),
        );
        NodeSystemInfo {
            architecture: status::architecture().to_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: runtime,
            kernel_version: read("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: status::VERSION.to_owned(),
            machine_id: read("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()),
            system_uuid: read("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        }
    }

    /// Keeps the node's Lease, by which the node lifecycle controller knows that this kubelet lives.
    async fn renew_lease(self: Arc<Self>, client: Client, cancel: CancellationToken) {
        let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
        let nodes: Api<Node> = Api::all(client);
        let duration = self.kubelet.config.node_lease_duration_seconds;
        let period = Duration::from_secs(u64::from(duration)) / 4;
        loop {
            let mut pause = RETRY;
            while let Err(error) = self.renew_once(&leases, &nodes).await {
                tracing::warn!(%error, "renewing the node's lease");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = cancel.cancelled() => return,
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
            // A little early and uneven, so that nodes do not all renew at once.
            tokio::select! {
                () = tokio::time::sleep(period.mul_f64(rand::random_range(1.0..1.04))) => {}
                () = cancel.cancelled() => return,
            }
        }
    }

    async fn renew_once(&self, leases: &Api<Lease>, nodes: &Api<Node>) -> Result<(), kube::Error> {
        let name = &self.kubelet.node_name;
        let now = MicroTime(Timestamp::now());
        let patch = serde_json::json!({"spec": {"renewTime": now, "holderIdentity": name}});
        match leases.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(error)) if error.code == 404 => {
                let owner = nodes.get_opt(name).await?.and_then(|node| node.metadata.uid);
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASE_NAMESPACE.to_owned()),
                        owner_references: owner.map(|uid| {
                            vec![OwnerReference {
                                api_version: "v1".to_owned(),
                                kind: "Node".to_owned(),
                                name: name.clone(),
                                uid,
                                ..OwnerReference::default()
                            }]
                        }),
                        ..ObjectMeta::default()
                    },
                    spec: Some(LeaseSpec {
                        holder_identity: Some(name.clone()),
                        lease_duration_seconds: i32::try_from(
                            self.kubelet.config.node_lease_duration_seconds,
                        )
                        .ok(),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                leases.create(&PostParams::default(), &lease).await.map(|_| ())
            }
            Err(error) => Err(error),
        }
    }

    /// Tells the runtime the node's pod CIDR whenever it is given one.
    async fn watch_node(self: Arc<Self>, client: Client, cancel: CancellationToken) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.kubelet.node_name));
        let mut events = Box::pin(watcher::watcher(Api::<Node>::all(client), config));
        let (mut told, mut pause) = (self.kubelet.config.pod_cidr.clone(), RETRY);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = cancel.cancelled() => return,
            };
            let node = match event {
                Some(Ok(Event::Apply(node) | Event::InitApply(node))) => node,
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    tracing::debug!(%error, "watching this node");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
                None => return,
            };
            pause = RETRY;
            let spec = node.spec.unwrap_or_default();
            let cidrs = spec
                .pod_cidrs
                .filter(|cidrs| !cidrs.is_empty())
                .map(|cidrs| cidrs.join(","))
                .or(spec.pod_cidr);
            if let Some(cidr) = cidrs.filter(|cidr| !cidr.is_empty() && *cidr != told) {
                match self.update_pod_cidr(&cidr).await {
                    Ok(()) => told = cidr,
                    Err(error) => tracing::warn!(cidr, %error, "telling the runtime the pod CIDR"),
                }
            }
        }
    }

    /// The CRI call by which a runtime with a CNI template writes its configuration.
    pub async fn update_pod_cidr(&self, cidr: &str) -> crate::runtime::Result<()> {
        tracing::info!(cidr, "the node's pod CIDR");
        let network_config = Some(cri::NetworkConfig { pod_cidr: cidr.to_owned() });
        let request =
            cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
        self.kubelet.runtime.update_runtime_config(request).await.map(|_| ())
    }
}

fn image_list(mut images: Vec<cri::Image>) -> Vec<ContainerImage> {
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        })
        .collect()
}

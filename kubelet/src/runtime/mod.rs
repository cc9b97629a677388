//! The container runtime, spoken to over CRI v1 gRPC on a Unix socket.
//!
//! One method per call, each timed and counted as upstream's `kubelet_runtime_operations_*`. Nothing about pods is
//! decided here: [`observe`] turns what the runtime reports into [`observe::ObservedPod`], [`names`] says how our
//! containers are recognised, [`events`] notices changes.

pub mod events;
pub mod names;
pub mod observe;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use keelson_proto::cri::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint, Uri},
};

use crate::metrics::Metrics;

/// Most calls; creating a sandbox includes the network plugins, hence as generous as upstream's default.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A node full of containers lists more than tonic's 4 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A call that the runtime refused or that did not reach it.
///
/// Shown as Go's gRPC shows it: users see these sentences in pod statuses and events.
#[derive(Debug, Clone, thiserror::Error)]
#[error("rpc error: code = {code} desc = {message}")]
pub struct RuntimeError {
    /// Code name as Go spells it.
    pub code: GrpcCode,
    /// The runtime's own words.
    pub message: String,
}

/// A gRPC code that prints as Go's `codes.Code` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcCode(pub Code);

impl std::fmt::Display for GrpcCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Code::Ok => "OK",
            Code::Cancelled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        })
    }
}

impl From<Status> for RuntimeError {
    fn from(status: Status) -> Self {
        Self { code: GrpcCode(status.code()), message: status.message().to_owned() }
    }
}

impl RuntimeError {
    /// Whether the thing named in the call is unknown to the runtime.
    pub fn is_not_found(&self) -> bool {
        self.code.0 == Code::NotFound
    }

    /// Whether this runtime does not have the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code.0 == Code::Unimplemented
    }
}

/// Why the runtime cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("container runtime endpoint {0:?} is not a unix:// address or an absolute path")]
    Endpoint(String),
    #[error("container runtime endpoint {0:?}")]
    Uri(String, #[source] tonic::transport::Error),
}

/// What a call to the runtime gives.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// A handle on the runtime; cheap to clone, all clones share one connection.
#[derive(Clone)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    metrics: Arc<Metrics>,
}

/// One CRI call: method name, request, client and metric label in a row.
macro_rules! calls {
    ($($(#[$doc:meta])* $client:ident . $method:ident($request:ident) -> $response:ident, $label:literal;)*) => {
        impl Runtime {
            $($(#[$doc])*
            pub async fn $method(&self, request: cri::$request) -> Result<cri::$response> {
                let mut client = self.$client.clone();
                // Requests are large: a future that holds one lives on the heap.
                let call = Box::pin(async move { client.$method(Request::new(request)).await });
                self.timed($label, CALL_TIMEOUT, call).await
            })*
        }
    };
}

calls! {
    /// Name and versions of the runtime.
    runtime.version(VersionRequest) -> VersionResponse, "version";
    /// Conditions of the runtime and its network.
    runtime.status(StatusRequest) -> StatusResponse, "status";
    /// How the runtime is configured; not before containerd 1.7.
    runtime.runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse, "runtime_config";
    /// Tells the runtime the node's pod CIDR.
    runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse, "update_runtime_config";
    /// Makes and starts a sandbox, its network included.
    runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse, "run_podsandbox";
    /// Stops a sandbox; its containers are killed if any still run.
    runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse, "stop_podsandbox";
    /// Removes a sandbox with its containers.
    runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse, "remove_podsandbox";
    /// One sandbox, its addresses included.
    runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse, "podsandbox_status";
    /// All sandboxes, filtered.
    runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse, "list_podsandbox";
    /// Makes a container; its image must be present.
    runtime.create_container(CreateContainerRequest) -> CreateContainerResponse, "create_container";
    /// Starts a container that was created.
    runtime.start_container(StartContainerRequest) -> StartContainerResponse, "start_container";
    /// Removes a container.
    runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse, "remove_container";
    /// All containers, filtered.
    runtime.list_containers(ListContainersRequest) -> ListContainersResponse, "list_containers";
    /// One container, exit code and reason included.
    runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse, "container_status";
    /// Resources of a running container.
    runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse, "update_container_resources";
    /// Makes the runtime write to a new log file after ours was renamed.
    runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse, "reopen_container_log";
    /// An URL to stream an exec from.
    runtime.exec(ExecRequest) -> ExecResponse, "exec";
    /// An URL to attach to.
    runtime.attach(AttachRequest) -> AttachResponse, "attach";
    /// An URL to forward ports through.
    runtime.port_forward(PortForwardRequest) -> PortForwardResponse, "port_forward";
    /// CPU and memory of all containers, filtered.
    runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse, "list_container_stats";
    /// All images.
    images.list_images(ListImagesRequest) -> ListImagesResponse, "list_images";
    /// One image, absent if it is not there.
    images.image_status(ImageStatusRequest) -> ImageStatusResponse, "image_status";
    /// Removes an image.
    images.remove_image(RemoveImageRequest) -> RemoveImageResponse, "remove_image";
    /// How full the image store is.
    images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse, "image_fs_info";
}

impl Runtime {
    /// Names the endpoints; the connection is made by the first call and made again whenever it breaks.
    pub fn connect(
        endpoint: &str,
        image_endpoint: Option<&str>,
        metrics: Arc<Metrics>,
    ) -> std::result::Result<Self, ConnectError> {
        let channel = channel(endpoint)?;
        let images = match image_endpoint {
            Some(other) if other != endpoint => self::channel(other)?,
            _ => channel.clone(),
        };
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(images).max_decoding_message_size(MESSAGE_LIMIT),
            metrics,
        })
    }

    /// Stops a container: SIGTERM (or the image's stop signal), then SIGKILL after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let limit = CALL_TIMEOUT + Duration::from_secs(grace.max(0).unsigned_abs());
        match self.timed("stop_container", limit, async move { client.stop_container(request).await }).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Runs a command in a container and collects what it says; `timeout` zero means none.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<cri::ExecSyncResponse> {
        let mut client = self.runtime.clone();
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        // The runtime enforces the command's timeout; ours only guards against a runtime that hangs.
        let limit = if timeout.is_zero() { Duration::from_secs(24 * 3600) } else { timeout + CALL_TIMEOUT };
        self.timed("exec_sync", limit, async move { client.exec_sync(request).await }).await
    }

    /// Pulls an image; slow registries have no limit here.
    pub async fn pull_image(&self, request: cri::PullImageRequest) -> Result<cri::PullImageResponse> {
        let mut client = self.images.clone();
        let limit = Duration::from_secs(24 * 3600);
        let call = Box::pin(async move { client.pull_image(request).await });
        self.timed("pull_image", limit, call).await
    }

    /// Container events as the runtime sends them; unimplemented before containerd 1.7.
    pub async fn container_events(&self) -> Result<tonic::Streaming<cri::ContainerEventResponse>> {
        let mut client = self.runtime.clone();
        Ok(client.get_container_events(cri::GetEventsRequest {}).await?.into_inner())
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        call: impl Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    ) -> Result<T> {
        let started = std::time::Instant::now();
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result.map(tonic::Response::into_inner).map_err(RuntimeError::from),
            Err(_) => Err(RuntimeError {
                code: GrpcCode(Code::DeadlineExceeded),
                message: "context deadline exceeded".to_owned(),
            }),
        };
        self.metrics.runtime_operation(operation, started.elapsed(), result.is_ok());
        result
    }
}

fn channel(endpoint: &str) -> std::result::Result<Channel, ConnectError> {
    let path = match endpoint.strip_prefix("unix://") {
        Some(path) => path,
        None if endpoint.starts_with('/') => endpoint,
        None => return Err(ConnectError::Endpoint(endpoint.to_owned())),
    };
    let path = PathBuf::from(path);
    // The URI only satisfies HTTP/2's :authority; the connector ignores it.
    let endpoint =
        Endpoint::from_shared("http://localhost").map_err(|e| ConnectError::Uri(endpoint.to_owned(), e))?;
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    })))
}

//! Taking away every pod sandbox of a host through the CRI, as `make down` does once the kubelet is
//! stopped, so that the runtime itself removes mounts, cgroups and network interfaces.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use keelson_proto::cri::runtime_service_client::RuntimeServiceClient;
use keelson_proto::cri::{ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest};
use tonic::transport::{Channel, Endpoint};

/// Why the sandboxes of a host could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot reach the container runtime at {0}")]
    Connect(PathBuf, #[source] tonic::transport::Error),
    #[error("the container runtime refused to list sandboxes")]
    List(#[source] Box<tonic::Status>),
    #[error("the container runtime refused to remove sandbox {0}")]
    Remove(String, #[source] Box<tonic::Status>),
}

/// A client of the CRI runtime service on a unix socket.
pub async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>, SandboxError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is never resolved: the connector dials the socket.
    let channel = Endpoint::from_static("http://runtime").connect_with_connector(connector).await;
    Ok(RuntimeServiceClient::new(channel.map_err(|error| SandboxError::Connect(socket.to_owned(), error))?))
}

/// Stops and removes all sandboxes; returns how many there were.
pub async fn remove_all(socket: &Path) -> Result<usize, SandboxError> {
    let mut runtime = connect(socket).await?;
    let list = runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
    let sandboxes = list.map_err(|status| SandboxError::List(Box::new(status)))?.into_inner().items;
    for sandbox in &sandboxes {
        let id = &sandbox.id;
        let failed = |status| SandboxError::Remove(id.clone(), Box::new(status));
        runtime
            .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.clone() })
            .await
            .map_err(failed)?;
        runtime
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.clone() })
            .await
            .map_err(failed)?;
    }
    Ok(sandboxes.len())
}

//! The kubelet's HTTPS server on port 10250: logs, exec, attach, port-forward, stats, metrics.
//!
//! Every request is authenticated and authorized ([`auth`]) before a handler sees it, health apart.

pub mod auth;
pub mod line;
pub mod logs;
pub mod query;
pub mod rotation;
pub mod stats;
pub mod streams;
pub mod trust;

use std::{net::SocketAddr, path::Path, sync::Arc};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use keelson_component_base::{
    health::Checks,
    metrics::Registry,
    serve::{Body, Endpoints, Route, content, text},
    tls,
};
use serde_json::json;

use crate::{context::Kubelet, pods::Pods, runtime::events::Events as RuntimeEvents};

/// What the server answers from.
#[derive(Clone)]
pub struct Server {
    pub kubelet: Arc<Kubelet>,
    pub pods: Arc<Pods>,
    pub runtime_events: Arc<RuntimeEvents>,
    pub registry: Registry,
    pub checks: Checks,
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    fn response(&self) -> Response<Body> {
        let status = match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        text(status, format!("{self}\n"))
    }
}

impl Server {
    /// The server with its certificate: the configured one, or a self-signed one in `directory`.
    ///
    /// # Errors
    /// When a certificate cannot be read or made.
    pub fn endpoints(self, directory: &Path) -> Result<Endpoints, tls::TlsError> {
        let config = &self.kubelet.config;
        let mut certificate = match (&config.tls_cert_file, &config.tls_private_key_file) {
            (Some(cert_file), Some(key_file)) => tls::ServerTls {
                cert_file: cert_file.clone(),
                key_file: key_file.clone(),
                ..tls::ServerTls::default()
            },
            _ => {
                let mut hosts = vec![self.kubelet.node_name.clone()];
                hosts.extend(self.kubelet.host_ips());
                tls::ensure_self_signed(directory, "kubelet", &hosts)?
            }
        };
        certificate.client_ca_file.clone_from(&config.authentication.x509.client_ca_file);
        certificate.client_auth = tls::ClientAuth::Optional;
        let address = SocketAddr::new(config.address, config.port);
        let mut endpoints = Endpoints::new(address, self.checks.clone(), self.registry.clone());
        endpoints.tls = Some(certificate);
        endpoints.authorize = Some(auth::hook(self.kubelet.clone()));
        endpoints.routes = self.routes();
        Ok(endpoints)
    }

    fn routes(self) -> Vec<Route> {
        let route = |path: &str, answer: fn(Self, Request<Incoming>) -> Answer| {
            let server = self.clone();
            Route::new(path, move |request| {
                let answer = answer(server.clone(), request);
                async move { answer.await.unwrap_or_else(|refusal| refusal.response()) }
            })
        };
        let mut routes = vec![
            route("/pods", |server, _| Box::pin(async move { Ok(server.pod_list()) })),
            route("/runningpods/", |server, _| Box::pin(async move { Ok(server.running_pods()) })),
            route("/runningpods", |server, _| Box::pin(async move { Ok(server.running_pods()) })),
            route("/stats/summary", |server, _| Box::pin(async move { stats::summary(&server).await })),
            route("/metrics/resource", |server, _| Box::pin(async move { stats::resource(&server).await })),
        ];
        if self.kubelet.config.enable_debugging_handlers {
            routes.extend([
                route("/containerLogs/", |server, request| Box::pin(logs::serve(server, request))),
                route("/exec/", |server, request| Box::pin(streams::exec(server, request))),
                route("/attach/", |server, request| Box::pin(streams::attach(server, request))),
                route("/portForward/", |server, request| Box::pin(streams::port_forward(server, request))),
                route("/run/", |server, request| Box::pin(streams::run(server, request))),
            ]);
        }
        routes
    }

    fn pod_list(&self) -> Response<Body> {
        let items = self.pods.list().into_iter().map(|(pod, status)| {
            let mut pod = (*pod).clone();
            pod.status = Some(status);
            pod
        });
        list(items.collect())
    }

    fn running_pods(&self) -> Response<Body> {
        let items = self.runtime_events.pods().into_iter().map(|(uid, known)| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(known.name);
            pod.metadata.namespace = Some(known.namespace);
            pod.metadata.uid = Some(uid);
            pod
        });
        list(items.collect())
    }

    /// The status of a container that a URL names.
    fn container(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        container: &str,
    ) -> Result<ContainerStatus, Refusal> {
        let (_, status) = self.pod(namespace, name, uid)?;
        let lists = [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ];
        let found = lists.into_iter().flatten().flatten().find(|status| status.name == container).cloned();
        found.ok_or_else(|| {
            Refusal::NotFound(format!("container {container:?} not found in pod \"{name}_{namespace}\""))
        })
    }

    fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<(Arc<Pod>, PodStatus), Refusal> {
        self.pods
            .find(namespace, name, uid)
            .ok_or_else(|| Refusal::NotFound(format!("pod \"{name}_{namespace}\" does not exist")))
    }
}

type Answer = futures::future::BoxFuture<'static, Result<Response<Body>, Refusal>>;

fn list(items: Vec<Pod>) -> Response<Body> {
    let body = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    content(StatusCode::OK, "application/json", body.to_string())
}

/// The id in `containerd://<id>`.
fn bare_id(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

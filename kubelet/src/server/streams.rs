//! exec, attach, port-forward and run: the runtime gives a URL, and the client's connection is joined to it.
//!
//! SPDY goes through byte for byte. WebSocket is translated here: runtimes before containerd 2 know neither v5 nor
//! port-forward over WebSocket.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use keelson_component_base::serve::{Body, text};
use keelson_proto::cri;
use keelson_streaming::{
    remote_command::{self, StdinEnd, Streams},
    tunnel,
    upgrade::{self, Switched, UpgradeError},
    websocket,
};

use super::{Refusal, Server, bare_id, query};

const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
const PORT_FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// containerd drops the output of an attachment as soon as its stdin ends, unless the container has stdinOnce: what a
/// command says in answer to the last of its input would not arrive. kubectl ends stdin when a pipe into it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the streams carry.
#[derive(Debug, Clone, Copy)]
enum Traffic {
    Command(Streams, StdinEnd),
    Ports,
}

/// `<prefix>/<namespace>/<pod>[/<uid>]/<container>`.
fn running_container(server: &Server, path: &str, prefix: &str) -> Result<String, Refusal> {
    let parts = query::segments(path, prefix);
    let found = match parts.as_slice() {
        [namespace, pod, container] => server.container(namespace, pod, None, container)?,
        [namespace, pod, uid, container] => server.container(namespace, pod, Some(uid), container)?,
        _ => return Err(Refusal::NotFound("404 page not found".to_owned())),
    };
    let running = found.state.as_ref().is_some_and(|state| state.running.is_some());
    match &found.container_id {
        Some(id) if running => Ok(bare_id(id).to_owned()),
        _ => Err(Refusal::Internal(format!("container not found ({:?})", found.name))),
    }
}

/// Whether the container's stdin ends with the first attachment to it.
fn stdin_once(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let once = containers.map(|found| (&found.name, found.stdin_once));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|found| (&found.name, found.stdin_once));
    once.chain(ephemeral).any(|(name, once)| name == container && once == Some(true))
}

fn internal(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::Internal(error.to_string())
}

/// Runs a command in a container with its streams connected.
pub async fn exec(server: Server, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let id = running_container(&server, request.uri().path(), "/exec/")?;
    let text = request.uri().query().unwrap_or_default();
    let streams = streams(text)?;
    let command: Vec<String> = query::pairs(text)
        .into_iter()
        .filter(|(name, _)| name == "command")
        .map(|(_, value)| value)
        .collect();
    if command.is_empty() {
        return Err(Refusal::BadRequest("you must specify at least 1 command".to_owned()));
    }
    let wanted = cri::ExecRequest {
        container_id: id,
        cmd: command,
        tty: streams.tty,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    let url = server.kubelet.runtime.exec(wanted).await.map_err(|error| internal(&error))?.url;
    join(request, &url, Traffic::Command(streams, StdinEnd::OfInput)).await
}

/// Connects to the streams of a container's own process.
pub async fn attach(server: Server, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path();
    let id = running_container(&server, path, "/attach/")?;
    let stdin_end = match query::segments(path, "/attach/").as_slice() {
        [namespace, pod, .., container] if !stdin_once(&server.pod(namespace, pod, None)?.0, container) => {
            StdinEnd::OfAttachment(LAST_WORDS)
        }
        _ => StdinEnd::OfInput,
    };
    let streams = streams(request.uri().query().unwrap_or_default())?;
    let wanted = cri::AttachRequest {
        container_id: id,
        tty: streams.tty,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    let url = server.kubelet.runtime.attach(wanted).await.map_err(|error| internal(&error))?.url;
    join(request, &url, Traffic::Command(streams, stdin_end)).await
}

/// Connects to ports of a pod.
pub async fn port_forward(server: Server, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let parts = query::segments(request.uri().path(), "/portForward/");
    let (pod, _) = match parts.as_slice() {
        [namespace, pod] => server.pod(namespace, pod, None)?,
        [namespace, pod, uid] => server.pod(namespace, pod, Some(uid))?,
        _ => return Err(Refusal::NotFound("404 page not found".to_owned())),
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let observed = server.kubelet.runtime.observe(uid).await.map_err(|error| internal(&error))?;
    let sandbox = observed
        .ready_sandbox()
        .ok_or_else(|| Refusal::NotFound(format!("pod {:?} is not running", crate::pod::describe(&pod))))?;
    let ports = query::pairs(request.uri().query().unwrap_or_default())
        .iter()
        .filter(|(name, _)| matches!(name.as_str(), "port" | "ports"))
        .filter_map(|(_, value)| value.parse().ok())
        .collect();
    let wanted = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: ports };
    let url = server.kubelet.runtime.port_forward(wanted).await.map_err(|error| internal(&error))?.url;
    join(request, &url, Traffic::Ports).await
}

/// Runs a command to its end and answers with what it said.
pub async fn run(server: Server, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let id = running_container(&server, request.uri().path(), "/run/")?;
    let pairs = query::pairs(request.uri().query().unwrap_or_default());
    let command = query::value(&pairs, "cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
    let output = server
        .kubelet
        .runtime
        .exec_sync(&id, command, Duration::ZERO)
        .await
        .map_err(|error| internal(&error))?;
    let said = [output.stdout, output.stderr].concat();
    if output.exit_code != 0 {
        return Err(Refusal::Internal(format!(
            "command exited with {}: {}",
            output.exit_code,
            String::from_utf8_lossy(&said)
        )));
    }
    Ok(text(StatusCode::OK, said))
}

fn streams(query: &str) -> Result<Streams, Refusal> {
    let streams = Streams::from_query(query);
    if streams.stdin || streams.stdout || streams.stderr {
        Ok(streams)
    } else {
        Err(Refusal::BadRequest("you must specify at least 1 of stdin, stdout, stderr".to_owned()))
    }
}

/// Joins the client's connection to the runtime's URL, in the protocol that the client asks for.
async fn join(request: Request<Incoming>, url: &str, traffic: Traffic) -> Result<Response<Body>, Refusal> {
    match upgrade::wanted(request.headers()).as_deref() {
        Some("websocket") => join_websocket(request, url, traffic).await,
        Some(protocol) if protocol.starts_with("spdy/") => join_spdy(request, url).await,
        _ => Err(Refusal::BadRequest("unable to upgrade: missing upgrade headers in request".to_owned())),
    }
}

async fn join_spdy(request: Request<Incoming>, url: &str) -> Result<Response<Body>, Refusal> {
    let versions = request.headers().get_all(PROTOCOL_VERSION).iter().cloned().collect();
    let (headers, runtime) = match dial(url, versions).await {
        Ok(switched) => switched,
        Err(DialError::Refused(response)) => return Ok(*response),
        Err(DialError::Failed(error)) => return Err(Refusal::Internal(error)),
    };
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    if let Some(version) = headers.get(PROTOCOL_VERSION) {
        response.headers_mut().insert(PROTOCOL_VERSION, version.clone());
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(client) => tunnel::copy(TokioIo::new(client), runtime).await,
            Err(error) => tracing::debug!(%error, "the client did not switch to SPDY"),
        }
    });
    Ok(response)
}

async fn join_websocket(
    request: Request<Incoming>,
    url: &str,
    traffic: Traffic,
) -> Result<Response<Body>, Refusal> {
    let (spoken, version): (&[&str], _) = match traffic {
        Traffic::Command(..) => (remote_command::PROTOCOLS, remote_command::RUNTIME_PROTOCOL),
        Traffic::Ports => (&[tunnel::PORT_FORWARD], PORT_FORWARD_PROTOCOL),
    };
    let offered = websocket::offered(request.headers()).join(", ");
    let protocol = websocket::choose(request.headers(), spoken).ok_or_else(|| {
        Refusal::BadRequest(format!(
            "unable to upgrade: none of the protocols [{offered}] is one of {spoken:?}"
        ))
    })?;
    let response: Response<Empty<Bytes>> = websocket::accept(request.headers(), Some(protocol))
        .ok_or_else(|| Refusal::BadRequest("not a proper WebSocket handshake".to_owned()))?;
    let (_, runtime) = match dial(url, vec![HeaderValue::from_static(version)]).await {
        Ok(switched) => switched,
        Err(DialError::Refused(response)) => return Ok(*response),
        Err(DialError::Failed(error)) => return Err(Refusal::Internal(error)),
    };
    tokio::spawn(async move {
        let client = match hyper::upgrade::on(request).await {
            Ok(client) => websocket::serve(TokioIo::new(client)).await,
            Err(error) => {
                tracing::debug!(%error, "the client did not switch to WebSocket");
                return;
            }
        };
        match traffic {
            Traffic::Command(streams, stdin_end) => {
                remote_command::translate(client, runtime, streams, stdin_end, protocol).await;
            }
            Traffic::Ports => tunnel::websocket(client, runtime).await,
        }
    });
    Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync()))
}

enum DialError {
    /// The runtime's own answer.
    Refused(Box<Response<Body>>),
    Failed(String),
}

/// Connects to the runtime's streaming server and switches to SPDY.
async fn dial(url: &str, versions: Vec<HeaderValue>) -> Result<(HeaderMap, Switched), DialError> {
    let failed =
        |error: &dyn std::fmt::Display| DialError::Failed(format!("runtime streaming server: {error}"));
    let uri: Uri = url.parse().map_err(|error| failed(&error))?;
    let authority = uri.authority().ok_or_else(|| failed(&"its URL has no host"))?;
    if uri.scheme_str() != Some("http") {
        return Err(failed(&format!("scheme of {url:?} is not http")));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = tokio::net::TcpStream::connect((host, authority.port_u16().unwrap_or(80)))
        .await
        .map_err(|error| failed(&error))?;
    let _ = stream.set_nodelay(true);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1");
    for version in versions {
        builder = builder.header(PROTOCOL_VERSION, version);
    }
    let request = builder.body(Empty::new()).map_err(|error| failed(&error))?;
    upgrade::connect(stream, request).await.map_err(|error| match error {
        UpgradeError::Refused(response) => {
            let (parts, body) = response.into_parts();
            DialError::Refused(Box::new(text(parts.status, body)))
        }
        other => failed(&other),
    })
}

//! The scheduler's loop against an API server that the test plays: what it watches is fed by hand, and each binding
//! is answered by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of a test fail as the test does")]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use keelson_client::events::Recorder;
use keelson_component_base::metrics::Registry;
use kube::client::Body;
use kube_scheduler::bind::Binder;
use kube_scheduler::metrics::Metrics;
use kube_scheduler::plugins;
use kube_scheduler::server::Scheduler;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// A binding that waits for its answer.
struct Asked {
    uid: String,
    node: String,
    answer: oneshot::Sender<u16>,
}

struct Cluster {
    pods: mpsc::UnboundedSender<Value>,
    bindings: mpsc::UnboundedReceiver<Asked>,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn synced(kind: &str, version: &str) -> Value {
    let metadata = json!({"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}});
    event("BOOKMARK", json!({"kind": kind, "apiVersion": version, "metadata": metadata}))
}

fn pod(name: &str, uid: &str, version: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": version},
        "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Pending"}})
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn watch(events: mpsc::UnboundedReceiver<Value>) -> Answer {
    let lines = futures::stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((event, events))
    });
    let frames = lines.map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn answer(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

/// Starts a scheduler for a cluster of one node, `n1`, without pods.
fn start() -> Cluster {
    let (pods, of_pods) = mpsc::unbounded_channel();
    let (nodes, of_nodes) = mpsc::unbounded_channel();
    let (namespaces, of_namespaces) = mpsc::unbounded_channel();
    let allocatable = json!({"cpu": "4", "memory": "4Gi", "pods": "10"});
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "resourceVersion": "1"},
        "status": {"allocatable": allocatable}});
    nodes.send(event("ADDED", node)).unwrap();
    nodes.send(synced("Node", "v1")).unwrap();
    pods.send(synced("Pod", "v1")).unwrap();
    namespaces.send(synced("PartialObjectMetadata", "meta.k8s.io/v1")).unwrap();
    let watches = [("/nodes", of_nodes), ("/pods", of_pods), ("/namespaces", of_namespaces)];
    let watches = Arc::new(Mutex::new(watches.map(|(path, events)| (path, Some(events)))));
    let (asked, bindings) = mpsc::unbounded_channel();
    let keep = (nodes, namespaces);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (watches, asked) = (watches.clone(), asked.clone());
        let _open = &keep;
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path().to_owned();
            if path.ends_with("/binding") {
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let text = |pointer: &str| body.pointer(pointer).unwrap().as_str().unwrap().to_owned();
                let (reply, code) = oneshot::channel();
                let question =
                    Asked { uid: text("/metadata/uid"), node: text("/target/name"), answer: reply };
                asked.send(question).unwrap();
                let code = code.await.unwrap_or(500);
                let status = if code < 400 { "Success" } else { "Failure" };
                let body = json!({"kind": "Status", "apiVersion": "v1", "status": status, "code": code});
                return Ok::<_, Infallible>(answer(code, &body));
            }
            let mut watches = watches.lock().await;
            for (place, events) in watches.iter_mut() {
                if path.ends_with(*place)
                    && let Some(events) = events.take()
                {
                    return Ok(watch(events));
                }
            }
            Ok(answer(201, &json!({"metadata": {}, "involvedObject": {}})))
        }
    });
    let client = kube::Client::new(service, "default");
    let name = "default-scheduler";
    let scheduler = Scheduler {
        name: name.to_owned(),
        profile: plugins::default_profile(),
        metrics: Metrics::new(&Registry::new(), name),
        binder: Binder { recorder: Recorder::new(client.clone(), name, ""), client },
    };
    let stop = CancellationToken::new();
    tokio::spawn(scheduler.run(stop.clone()));
    Cluster { pods, bindings, stop }
}

impl Cluster {
    fn pod(&self, kind: &str, pod: Value) {
        self.pods.send(event(kind, pod)).unwrap();
    }

    async fn binding(&mut self) -> Asked {
        tokio::time::timeout(PATIENCE, self.bindings.recv()).await.expect("a binding in time").unwrap()
    }
}

#[tokio::test]
async fn a_pod_is_bound_although_its_predecessor_was_not() {
    let mut cluster = start();
    cluster.pod("ADDED", pod("web-0", "first", "2"));
    let first = cluster.binding().await;
    assert_eq!((first.uid.as_str(), first.node.as_str()), ("first", "n1"));
    // It is deleted and made again under its name while its binding is under way.
    cluster.pod("DELETED", pod("web-0", "first", "3"));
    cluster.pod("ADDED", pod("web-0", "second", "4"));
    let second = cluster.binding().await;
    assert_eq!(second.uid, "second");
    second.answer.send(500).unwrap();
    first.answer.send(409).unwrap();
    assert_eq!(cluster.binding().await.uid, "second");
}

#[tokio::test]
async fn a_conflict_that_no_watch_explains_is_tried_again() {
    let mut cluster = start();
    cluster.pod("ADDED", pod("web-0", "first", "2"));
    cluster.binding().await.answer.send(409).unwrap();
    assert_eq!(cluster.binding().await.uid, "first");
}

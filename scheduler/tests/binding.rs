//! The scheduler's loop against an API server that the test plays: what it watches is fed by hand, each binding
//! is answered by hand, and what it patches is looked at.
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
    claims: mpsc::UnboundedSender<Value>,
    volumes: mpsc::UnboundedSender<Value>,
    classes: mpsc::UnboundedSender<Value>,
    /// Path and body of each patch.
    patches: mpsc::UnboundedReceiver<(String, Value)>,
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

/// A claim of 1Gi in class `late`.
fn claim(name: &str, version: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "resourceVersion": version},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}})
}

fn volume(name: &str, version: &str) -> Value {
    json!({"kind": "PersistentVolume", "apiVersion": "v1",
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {"storageClassName": "late", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}},
        "status": {"phase": "Available"}})
}

/// Starts a scheduler for a cluster of one node, `n1`, without pods and volumes.
fn start() -> Cluster {
    let (pods, of_pods) = mpsc::unbounded_channel();
    let (nodes, of_nodes) = mpsc::unbounded_channel();
    let (namespaces, of_namespaces) = mpsc::unbounded_channel();
    let (claims, of_claims) = mpsc::unbounded_channel();
    let (volumes, of_volumes) = mpsc::unbounded_channel();
    let (classes, of_classes) = mpsc::unbounded_channel();
    let (patched, patches) = mpsc::unbounded_channel();
    let allocatable = json!({"cpu": "4", "memory": "4Gi", "pods": "10"});
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n1", "resourceVersion": "1"},
        "status": {"allocatable": allocatable}});
    nodes.send(event("ADDED", node)).unwrap();
    nodes.send(synced("Node", "v1")).unwrap();
    pods.send(synced("Pod", "v1")).unwrap();
    namespaces.send(synced("PartialObjectMetadata", "meta.k8s.io/v1")).unwrap();
    claims.send(synced("PersistentVolumeClaim", "v1")).unwrap();
    volumes.send(synced("PersistentVolume", "v1")).unwrap();
    classes.send(synced("StorageClass", "storage.k8s.io/v1")).unwrap();
    let watches = [
        ("/nodes", of_nodes),
        ("/pods", of_pods),
        ("/namespaces", of_namespaces),
        ("/persistentvolumeclaims", of_claims),
        ("/persistentvolumes", of_volumes),
        ("/storageclasses", of_classes),
    ];
    let watches = Arc::new(Mutex::new(watches.map(|(path, events)| (path, Some(events)))));
    let (asked, bindings) = mpsc::unbounded_channel();
    let keep = (nodes, namespaces);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (watches, asked, patched) = (watches.clone(), asked.clone(), patched.clone());
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
            if parts.method == http::Method::PATCH {
                let body = body.collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                patched.send((path.clone(), body)).unwrap();
                return Ok(answer(200, &json!({"metadata": {}})));
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
    Cluster { pods, claims, volumes, classes, patches, bindings, stop }
}

impl Cluster {
    fn pod(&self, kind: &str, pod: Value) {
        self.pods.send(event(kind, pod)).unwrap();
    }

    /// The next patch of this path.
    async fn patch(&mut self, path: &str) -> Value {
        let find = async {
            loop {
                let (patched, body) = self.patches.recv().await.unwrap();
                if patched == path {
                    return body;
                }
            }
        };
        tokio::time::timeout(PATIENCE, find).await.expect("a patch in time")
    }

    /// Why the pod `ns/web-0` waits, as it is noted next.
    async fn reason(&mut self) -> String {
        let patch = self.patch("/api/v1/namespaces/ns/pods/web-0/status").await;
        patch["status"]["conditions"][0]["message"].as_str().unwrap().to_owned()
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

/// The pod `web-0` that uses the claim `data`.
fn storing_pod() -> Value {
    let mut pod = pod("web-0", "first", "2");
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    pod
}

#[tokio::test]
async fn a_pod_waits_for_its_claim() {
    let mut cluster = start();
    cluster.pod("ADDED", storing_pod());
    let prefix = "0/1 nodes are available:";
    assert_eq!(cluster.reason().await, format!("{prefix} persistentvolumeclaim \"data\" not found."));
    let mut claim = claim("data", "3");
    claim["spec"]["storageClassName"] = json!("immediate");
    cluster.claims.send(event("ADDED", claim.clone())).unwrap();
    let unbound = format!("{prefix} pod has unbound immediate PersistentVolumeClaims.");
    assert_eq!(cluster.reason().await, unbound);
    claim["metadata"]["resourceVersion"] = json!("4");
    claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    claim["spec"]["volumeName"] = json!("disk");
    claim["status"] = json!({"phase": "Bound"});
    cluster.claims.send(event("MODIFIED", claim)).unwrap();
    assert_eq!(cluster.reason().await, format!("{prefix} persistentvolume \"disk\" not found."));
    cluster.volumes.send(event("ADDED", volume("disk", "5"))).unwrap();
    assert_eq!(cluster.binding().await.uid, "first");
}

#[tokio::test]
async fn the_first_consumer_of_a_claim_reserves_its_volume() {
    let mut cluster = start();
    let class = json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1",
        "metadata": {"name": "late", "resourceVersion": "2"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"});
    cluster.classes.send(event("ADDED", class)).unwrap();
    cluster.claims.send(event("ADDED", claim("data", "3"))).unwrap();
    cluster.pod("ADDED", storing_pod());
    // Watches are not ordered among each other, so the first reasons may be others.
    let none = "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.";
    while cluster.reason().await != none {}
    cluster.volumes.send(event("ADDED", volume("disk", "4"))).unwrap();
    let reserved = cluster.patch("/api/v1/persistentvolumes/disk").await;
    assert_eq!(
        reserved,
        json!({"metadata": {"resourceVersion": "4", "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}},
            "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "ns",
                "name": "data", "uid": "uid-data", "resourceVersion": "3"}}})
    );
    assert_eq!(cluster.reason().await, "waiting for persistentvolumeclaims to be bound: data");
    // Then the controller of volumes binds the claim, which the test plays.
    let mut bound = claim("data", "5");
    bound["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    bound["spec"]["volumeName"] = json!("disk");
    cluster.claims.send(event("MODIFIED", bound)).unwrap();
    assert_eq!(cluster.binding().await.node, "n1");
}

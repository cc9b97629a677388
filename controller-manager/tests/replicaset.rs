//! The ReplicaSet controller against an API server that the test plays: it shows what is watched only when the test
//! says so, as a cache that is behind does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "the helpers of a test fail as the test does")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use keelson_client::queue;
use kube::client::Body;
use kube_controller_manager::context::{Context, Settings};
use kube_controller_manager::controllers::replicaset;
use kube_controller_manager::identity::Identities;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

struct Cluster {
    sets: mpsc::UnboundedSender<Value>,
    pods: mpsc::UnboundedSender<Value>,
    /// Method, the end of the path, and what was sent.
    writes: mpsc::UnboundedReceiver<(Method, String, Value)>,
    controller: tokio::task::AbortHandle,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

fn synced(kind: &str, version: &str) -> Value {
    let metadata = json!({"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}});
    event("BOOKMARK", &json!({"kind": kind, "apiVersion": version, "metadata": metadata}))
}

fn set(uid: &str, generation: i64, replicas: i32) -> Value {
    json!({"kind": "ReplicaSet", "apiVersion": "apps/v1",
        "metadata": {"name": "web", "namespace": "ns", "uid": uid, "generation": generation,
            "resourceVersion": format!("{generation}{uid}")},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}})
}

fn settings() -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        allocate_node_cidrs: false,
        cluster_cidrs: Vec::new(),
        service_cidrs: Vec::new(),
        node_cidr_mask_size: 24,
        node_cidr_mask_size_ipv6: 64,
        root_ca: None,
        service_account_key: None,
        node_monitor_period: second,
        node_monitor_grace_period: second,
        node_startup_grace_period: second,
        terminated_pod_gc_threshold: 0,
        concurrency: BTreeMap::new(),
    }
}

fn watch(events: mpsc::UnboundedReceiver<Value>) -> Answer {
    let lines = futures::stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((event, events))
    });
    let frames = lines.map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn start() -> Cluster {
    let (sets, of_sets) = mpsc::unbounded_channel();
    let (pods, of_pods) = mpsc::unbounded_channel();
    sets.send(synced("ReplicaSet", "apps/v1")).unwrap();
    pods.send(synced("Pod", "v1")).unwrap();
    let watches = HashMap::from([("replicasets", of_sets), ("pods", of_pods)]);
    let watches = Arc::new(Mutex::new(watches));
    let (written, writes) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (watches, written) = (watches.clone(), written.clone());
        async move {
            let (parts, body) = request.into_parts();
            let path = parts.uri.path().to_owned();
            let last = path.rsplit('/').next().unwrap_or_default().to_owned();
            let body = body.collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            if parts.method == Method::GET {
                let events = watches.lock().remove(last.as_str()).expect("one watch of each kind");
                return Ok::<_, Infallible>(watch(events));
            }
            if last != "events" {
                written.send((parts.method, last, body.clone())).unwrap();
            }
            Ok(Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync()))
        }
    });
    let client = kube::Client::new(service, "default");
    let identities = Identities::One(client.clone());
    let context = Context::new(client, identities, queue::Metrics::unregistered(), settings());
    let controller = tokio::spawn(replicaset::run(context)).abort_handle();
    Cluster { sets, pods, writes, controller }
}

impl Cluster {
    async fn write(&mut self) -> (Method, String, Value) {
        let write = tokio::time::timeout(PATIENCE, self.writes.recv()).await;
        write.expect("a write in time").unwrap()
    }

    async fn until_pod(&mut self) {
        while !matches!(self.write().await, (Method::POST, last, _) if last == "pods") {}
    }

    /// The pods that are made until the status of this generation is written.
    async fn until_status(&mut self, generation: i64) -> Vec<Value> {
        let mut made = Vec::new();
        loop {
            let (method, last, body) = self.write().await;
            match (method, last.as_str()) {
                (Method::POST, "pods") => made.push(body),
                (Method::PUT, "status") if body["status"]["observedGeneration"] == generation => {
                    return made;
                }
                _ => {}
            }
        }
    }

    fn pod(&self, kind: &str, number: usize, made: &Value) {
        let mut pod = made.clone();
        pod["metadata"]["name"] = json!(format!("web-{number}"));
        pod["metadata"]["uid"] = json!(format!("pod-{number}"));
        pod["metadata"]["resourceVersion"] = json!(format!("{number}{kind}"));
        pod["kind"] = "Pod".into();
        pod["apiVersion"] = "v1".into();
        self.pods.send(event(kind, &pod)).unwrap();
    }
}

#[tokio::test]
async fn pods_that_the_cache_does_not_show_yet_are_not_made_again() {
    let mut cluster = start();
    cluster.sets.send(event("ADDED", &set("a", 1, 3))).unwrap();
    let made = cluster.until_status(1).await;
    assert_eq!(made.len(), 3);
    assert_eq!(made[0]["metadata"]["ownerReferences"][0]["uid"], "a");
    // Looked at again while no pod is shown, and while some are.
    cluster.sets.send(event("MODIFIED", &set("a", 2, 3))).unwrap();
    assert!(cluster.until_status(2).await.is_empty());
    cluster.pod("ADDED", 0, &made[0]);
    cluster.sets.send(event("MODIFIED", &set("a", 3, 4))).unwrap();
    assert!(cluster.until_status(3).await.is_empty());
    // Once all are shown, the one that is missing is made, and only that.
    cluster.pod("ADDED", 1, &made[1]);
    cluster.pod("ADDED", 2, &made[2]);
    cluster.until_pod().await;
    cluster.sets.send(event("MODIFIED", &set("a", 4, 4))).unwrap();
    assert!(cluster.until_status(4).await.is_empty());
}

#[tokio::test]
async fn a_set_does_not_wait_for_the_pods_of_its_predecessor() {
    let mut cluster = start();
    cluster.sets.send(event("ADDED", &set("a", 1, 2))).unwrap();
    assert_eq!(cluster.until_status(1).await.len(), 2);
    cluster.sets.send(event("DELETED", &set("a", 2, 2))).unwrap();
    cluster.sets.send(event("ADDED", &set("b", 3, 1))).unwrap();
    let made = cluster.until_status(3).await;
    assert_eq!(made.len(), 1);
    assert_eq!(made[0]["metadata"]["ownerReferences"][0]["uid"], "b");
}

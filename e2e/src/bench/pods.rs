//! From a pod's creation to its status Running, one pod after the other, the image being there.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use keelson_client::raw;
use kube::client::{Body, Client};
use serde_json::{Value, json};

use super::api::call;
use super::stats::Latencies;
use super::{BenchError, Row, Section};

/// How long one pod may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `count` pods in a namespace of their own.
pub async fn run(client: &Client, count: usize, image: &str) -> Result<Section, BenchError> {
    let namespace = format!("keelson-bench-pods-{}", std::process::id());
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    call(client, Method::POST, "/api/v1/namespaces", &object).await?;
    let measured = measure(client, &namespace, count, image).await;
    let deleted = call(client, Method::DELETE, &format!("/api/v1/namespaces/{namespace}"), &json!({})).await;
    let rows = measured?;
    deleted?;
    Ok(Section { title: format!("Pods ({image})"), peer: None, rows })
}

async fn measure(
    client: &Client,
    namespace: &str,
    count: usize,
    image: &str,
) -> Result<Vec<Row>, BenchError> {
    // Pods are refused until the namespace has its default service account.
    let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
    let asked = Instant::now();
    while raw::get(client, &account).await.is_err() {
        if asked.elapsed() > TIMEOUT {
            return Err(BenchError::Unexpected(format!("{namespace} gets no default service account")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all = format!("/api/v1/namespaces/{namespace}/pods");
    let (mut running, mut gone) = (Latencies::default(), Latencies::default());
    for number in 0..count {
        let name = format!("pod-{number}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"],
                }],
            },
        });
        let started = Instant::now();
        let created: Value = serde_json::from_slice(&call(client, Method::POST, &all, &pod).await?)
            .map_err(|error| BenchError::Unexpected(error.to_string()))?;
        let version = created["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let query =
            format!("{all}?watch=true&resourceVersion={version}&fieldSelector=metadata.name%3D{name}");
        let body = raw::stream(client, Method::GET, &query, None, Bytes::new()).await?.into_body();
        let mut events = Events { body, line: Vec::new() };
        events.until(|event| event["object"]["status"]["phase"] == "Running").await?;
        running.push(started.elapsed());
        let started = Instant::now();
        call(client, Method::DELETE, &format!("{all}/{name}"), &json!({})).await?;
        events.until(|event| event["type"] == "DELETED").await?;
        gone.push(started.elapsed());
    }
    Ok(vec![
        Row::new(format!("created to Running, p50 of {count}"), "s", running.percentile(50) / 1000.0),
        Row::new(format!("created to Running, p99 of {count}"), "s", running.percentile(99) / 1000.0),
        Row::new(format!("deleted to gone (grace 0), p50 of {count}"), "s", gone.percentile(50) / 1000.0),
        Row::new(format!("deleted to gone (grace 0), p99 of {count}"), "s", gone.percentile(99) / 1000.0),
    ])
}

/// The events of one watch.
struct Events {
    body: Body,
    line: Vec<u8>,
}

impl Events {
    /// Reads until `accept` takes an event.
    async fn until(&mut self, accept: impl Fn(&Value) -> bool) -> Result<(), BenchError> {
        let wait = async {
            while let Some(frame) = self.body.frame().await {
                let Ok(data) = frame?.into_data() else { continue };
                self.line.extend_from_slice(&data);
                while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = self.line.drain(..=end).collect();
                    let event = serde_json::from_slice(&line)
                        .map_err(|error| BenchError::Unexpected(error.to_string()))?;
                    if accept(&event) {
                        return Ok(());
                    }
                }
            }
            Err(BenchError::Unexpected("the watch ended".to_owned()))
        };
        tokio::time::timeout(TIMEOUT, wait)
            .await
            .map_err(|_| BenchError::Unexpected(format!("a pod took more than {} s", TIMEOUT.as_secs())))?
    }
}
